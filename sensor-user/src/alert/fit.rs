//! A document as a line that the alert log can read back at a start: what would be longer is cut.
//!
//! Of one audit event up to 64 KiB are kept, and an incident lists 200 of them: whoever makes the
//! requests must not be able to fill more than a log takes. Called wherever documents are written.

use serde_json::Value;

use super::ecs::Document;

/// Longest line, bytes without its end.
pub const LONGEST: usize = 1 << 20;
/// More than most documents have, bytes.
const USUAL: usize = 8 << 10;
/// Longest text of a document that is cut, bytes of JSON: a name in Kubernetes has 253 at most.
const TEXT: usize = 256;
/// Texts of a list there.
const LIST: usize = 16;
/// Keys of an object there; more than the document itself has anywhere.
const KEYS: usize = 32;

/// The line, without its end. Only a document that would be longer than [`LONGEST`] is cut: each text
/// to its beginning and `…`, each list of texts to its beginning and its last (of `sourceIPs` the only
/// one that is not the client's to choose). All requests stay listed.
///
/// # Errors
/// The document has no JSON form.
pub fn line(document: &Document) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(USUAL);
    serde_json::to_writer(&mut line, document)?;
    if line.len() <= LONGEST {
        return Ok(line);
    }
    let mut value = serde_json::to_value(document)?;
    // Commands are short, and half of one must not be run.
    let commands = value.pointer_mut("/tokentrail/response").map(Value::take);
    cut(&mut value);
    if let (Some(place), Some(commands)) = (value.pointer_mut("/tokentrail/response"), commands) {
        *place = commands;
    }
    line.clear();
    serde_json::to_writer(&mut line, &value)?;
    Ok(line)
}

fn cut(value: &mut Value) {
    match value {
        Value::String(text) => cut_text(text),
        Value::Array(list) => {
            if list.len() > LIST && list.iter().all(Value::is_string) {
                list.drain(LIST - 1..list.len() - 1);
            }
            list.iter_mut().for_each(cut);
        }
        Value::Object(object) => {
            let entries = std::mem::take(object).into_iter().take(KEYS);
            object.extend(entries.map(|(mut key, mut value)| {
                cut_text(&mut key);
                cut(&mut value);
                (key, value)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn cut_text(text: &mut String) {
    let mut length = 0;
    for (at, char) in text.char_indices() {
        length += match char {
            '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
            '\0'..='\u{1f}' => r"\u0000".len(),
            _ => char.len_utf8(),
        };
        if length > TEXT {
            text.truncate(at);
            text.push('…');
            return;
        }
    }
}

#[cfg(test)]
mod tests;

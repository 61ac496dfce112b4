//! Events that are wrapped in lines, against a full parse.

use serde_json::Value;

use crate::audit::lines::{Fit, Lines, MAX_LINE};

/// Objects and lists in each other in which events are looked for.
const PLACES: usize = 8;

/// What is unwrapped of a line is the same however it is cut into chunks; and what a parser finds, if the
/// line is an object.
///
/// The last byte says how the others are cut.
pub fn envelopes(input: &[u8]) {
    let Some((cut, text)) = input.split_last() else { return };
    let whole = handed_on(text, text.len().max(1));
    assert_eq!(handed_on(text, usize::from(*cut) + 1), whole);
    for line in text.split(|byte| matches!(byte, 0 | b'\n')) {
        let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(line) else { continue };
        // No key twice, no white space.
        let object = Value::Object(object);
        let line = object.to_string();
        let (mut events, mut is_cloud_audit) = (Vec::new(), false);
        if !line.starts_with("{\"kind\":\"Event\"") {
            look_into(&object, 1, &mut events, &mut is_cloud_audit);
        }
        if line.len() > MAX_LINE || events.iter().any(|event| event.len() > MAX_LINE) {
            continue;
        }
        let expected = if events.is_empty() {
            let fit = if is_cloud_audit { Fit::CloudAudit } else { Fit::Whole };
            vec![(line.clone().into_bytes(), fit)]
        } else {
            events.into_iter().map(|event| (event.into_bytes(), Fit::Whole)).collect()
        };
        assert_eq!(handed_on(line.as_bytes(), usize::from(*cut) + 1), expected, "{line}");
    }
}

/// The lines of a text in chunks of this size.
fn handed_on(text: &[u8], chunk: usize) -> Vec<(Vec<u8>, Fit)> {
    let mut lines = Lines::new(0);
    let mut found = Vec::new();
    for mut rest in text.chunks(chunk) {
        while let Some(line) = lines.next_line(&mut rest) {
            found.push((line.bytes.to_vec(), line.fit));
        }
    }
    found.extend(lines.finish().map(|line| (line.bytes.to_vec(), line.fit)));
    assert_eq!(lines.complete(), text.len() as u64);
    found
}

/// The events in an object or list in which they are looked for; it is the so many-th of these.
fn look_into(value: &Value, places: usize, events: &mut Vec<String>, is_cloud_audit: &mut bool) {
    let is_deeper = places < PLACES;
    match value {
        Value::Array(elements) if is_deeper => {
            for element in elements.iter().filter(|it| it.is_object()) {
                look_into(element, places + 1, events, is_cloud_audit);
            }
        }
        Value::Object(members) => {
            for (key, value) in members {
                match (key.as_str(), value) {
                    ("records" | "logEvents" | "events", Value::Array(_))
                    | ("properties", Value::Object(_))
                        if is_deeper =>
                    {
                        look_into(value, places + 1, events, is_cloud_audit);
                    }
                    ("log" | "message", Value::String(text)) => {
                        let event = String::from_utf8_lossy(text.as_bytes().trim_ascii_start());
                        events.extend(event.starts_with('{').then(|| event.into_owned()));
                    }
                    ("protoPayload", _) => *is_cloud_audit = true,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

//! From the bytes of an `EventList` to its items, a line each: what the file source reads.
//!
//! Pure and of bounded memory whatever the input: it counts brackets and keeps nothing but a short
//! key. It judges the frame alone; what stands in an item is judged by those who judge lines.
//! Called by `post`.

use memchr::memchr2;

use super::metrics::BadBody;

/// Longer than each word that is looked for.
const MAX_WORD: usize = 32;

/// Cuts one body.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// Objects and lists open, the list itself is the first.
    depth: u64,
    /// In a string, and whether its next byte is escaped.
    string: Option<bool>,
    /// The last string directly in the list's object, as far as it can be of interest.
    word: Vec<u8>,
    /// Whose value comes.
    key: Key,
    /// In the list of items.
    listing: bool,
    /// An item has begun.
    in_item: bool,
    /// There was a key `items`.
    found: bool,
    ended: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    Kind,
    Items,
    #[default]
    Other,
}

impl Items {
    /// Adds to `lines` what these bytes bring: items, each ended by a newline.
    ///
    /// # Errors
    /// What comes is no `EventList`; the rest of the body is of no use.
    pub(super) fn push(&mut self, bytes: &[u8], lines: &mut Vec<u8>) -> Result<(), BadBody> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            let Some(escaped) = self.string else {
                self.structure(byte, lines)?;
                rest = after;
                continue;
            };
            let end = if escaped { None } else { memchr2(b'"', b'\\', rest) };
            // An escaped byte is inside, whatever it is.
            let (inside, after) = match end {
                Some(at) => rest.split_at(at),
                None if escaped => rest.split_at(1),
                None => (rest, Default::default()),
            };
            self.string = Some(false);
            self.inside(inside, lines);
            rest = after;
            if let Some((&byte, after)) = after.split_first().filter(|_| end.is_some()) {
                rest = after;
                self.inside(&[byte], lines);
                self.string = (byte == b'\\').then_some(true);
                if byte == b'"' {
                    self.end_string()?;
                }
            }
        }
        Ok(())
    }

    /// Judges what was pushed, once nothing more comes.
    ///
    /// # Errors
    /// It was no whole `EventList`. Items that were complete are items nevertheless.
    pub(super) fn finish(&self) -> Result<(), BadBody> {
        match (self.ended, self.found) {
            (false, _) => Err(BadBody::Torn),
            (true, false) => Err(BadBody::NoItems),
            (true, true) => Ok(()),
        }
    }

    /// A byte outside of strings.
    fn structure(&mut self, byte: u8, lines: &mut Vec<u8>) -> Result<(), BadBody> {
        let at_items = self.listing && self.depth == 2;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                if self.in_item {
                    lines.push(b' ');
                }
                return Ok(());
            }
            _ if self.ended || (self.depth == 0 && byte != b'{') => return Err(BadBody::NotJson),
            b'[' if self.depth == 1 && self.key == Key::Items => {
                (self.listing, self.found, self.depth) = (true, true, 2);
                return Ok(());
            }
            b'}' | b']' if at_items => {
                self.end_item(lines);
                (self.listing, self.depth) = (false, 1);
                return Ok(());
            }
            b',' if at_items => {
                self.end_item(lines);
                return Ok(());
            }
            b'"' => {
                self.string = Some(false);
                self.word.clear();
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                self.ended = self.depth == 0;
            }
            b':' if self.depth == 1 => {
                self.key = match self.word.as_slice() {
                    b"kind" => Key::Kind,
                    b"items" => Key::Items,
                    _ => Key::Other,
                };
                // `null`, as Go writes a list that was never made.
                self.found |= self.key == Key::Items;
            }
            b',' if self.depth == 1 => self.key = Key::Other,
            _ => {}
        }
        if self.listing {
            self.in_item = true;
            lines.push(byte);
        }
        Ok(())
    }

    /// Bytes of a string, its last quote as well.
    fn inside(&mut self, bytes: &[u8], lines: &mut Vec<u8>) {
        if self.listing {
            // JSON has no newline in a string; here it must not end a line.
            lines.extend(bytes.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
        } else if self.depth == 1 {
            let room = MAX_WORD.saturating_sub(self.word.len());
            self.word.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    fn end_string(&mut self) -> Result<(), BadBody> {
        if self.listing || self.depth != 1 {
            return Ok(());
        }
        if self.word.last() == Some(&b'"') {
            self.word.pop();
        }
        if self.key == Key::Kind && self.word != b"EventList" {
            return Err(BadBody::WrongKind);
        }
        Ok(())
    }

    fn end_item(&mut self, lines: &mut Vec<u8>) {
        if std::mem::take(&mut self.in_item) {
            lines.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests;

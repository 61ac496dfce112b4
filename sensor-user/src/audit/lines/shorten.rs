//! Makes a line of any length fit: streams JSON through and leaves out what alerts never need.
//!
//! Of the object's values `requestObject` and `responseObject` become `null`; a string is cut, a
//! list keeps its beginning and its last element (`sourceIPs`: the only address that a client
//! cannot set), and a value that is too long even so becomes `null`. A client controls the URI, the
//! `X-Forwarded-For` list and more, up to the server's megabyte of headers: an over-long line must
//! not be a way to go unseen. Garbage goes in, garbage comes out; the decoder judges it.

use memchr::memchr2;

use super::{Fit, MAX_LINE};

/// Strings are cut at this many bytes; longer than any URI that proxies let through.
const MAX_STRING: usize = 8 << 10;
/// From here on a list only keeps its last element.
const MAX_LIST: usize = 4 << 10;
/// A value of the object that is longer becomes `null`.
const MAX_VALUE: usize = 12 << 10;
/// Values share this much, which leaves the rest for the short ones at the end (times).
const SHARED: usize = MAX_LINE - (4 << 10);
/// A value up to this length is always kept.
const SHORT_VALUE: usize = 64;

/// The state between two pieces of one line.
#[derive(Debug, Default)]
pub(super) struct Shortener {
    /// At most [`MAX_LINE`] bytes.
    kept: Vec<u8>,
    /// More would have to be kept than that.
    full: bool,
    /// Objects and lists open.
    depth: u64,
    string: Option<Str>,
    /// Where the last string at depth 1 began in `kept`: a value's key.
    key_at: usize,
    /// The value of a key at depth 1 that is being read.
    value: Option<Value>,
}

/// A string being read.
#[derive(Debug)]
struct Str {
    /// Its opening quote in `kept`.
    at: usize,
    /// The next byte belongs to an escape.
    escaped: bool,
    /// Something was left out.
    cut: bool,
}

/// A value of the outermost object being read.
#[derive(Debug)]
struct Value {
    /// Its first byte in `kept`.
    at: usize,
    /// Length at which it is given up.
    limit: usize,
    /// It was given up: `null` stands in its place.
    dropped: bool,
    /// It is a list.
    list: bool,
    /// Where in `kept` the elements go that replace each other.
    last: Option<usize>,
}

impl Shortener {
    /// Takes the next piece of the line.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.full {
                return;
            }
            if let Some(string) = &mut self.string {
                if string.escaped {
                    string.escaped = false;
                    self.keep_in_string(&[byte]);
                    bytes = rest;
                    continue;
                }
                let run = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                let (plain, rest) = bytes.split_at(run);
                self.keep_in_string(plain);
                bytes = rest;
                match bytes.split_first() {
                    Some((b'"', rest)) => {
                        self.end_string();
                        bytes = rest;
                    }
                    Some((_, rest)) => {
                        self.keep_in_string(b"\\");
                        if let Some(string) = &mut self.string {
                            string.escaped = true;
                        }
                        bytes = rest;
                    }
                    None => {}
                }
            } else {
                self.structure(byte);
                bytes = rest;
            }
        }
    }

    /// What was kept of the line.
    pub(super) fn finish(&mut self) -> (&[u8], Fit) {
        (&self.kept, if self.full { Fit::TooLong } else { Fit::Shortened })
    }

    /// A byte outside strings.
    fn structure(&mut self, byte: u8) {
        match byte {
            b'"' => {
                let at = self.kept.len();
                if self.depth == 1 && self.value.is_none() {
                    self.key_at = at;
                }
                self.keep(b"\"");
                self.string = Some(Str { at, escaped: false, cut: false });
            }
            b'{' | b'[' => {
                if let (1, Some(value)) = (self.depth, &mut self.value) {
                    value.list = byte == b'[';
                }
                self.depth += 1;
                self.keep(&[byte]);
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.value = None;
                }
                self.keep(&[byte]);
            }
            b':' if self.depth == 1 && self.value.is_none() => self.begin_value(),
            b',' if self.depth == 1 => {
                self.value = None;
                self.keep(b",");
            }
            b',' if self.depth == 2 => self.next_element(),
            _ => self.keep(&[byte]),
        }
    }

    fn begin_value(&mut self) {
        let key = self.kept.get(self.key_at..).unwrap_or_default().trim_ascii_end();
        let body = matches!(key, b"\"requestObject\"" | b"\"responseObject\"");
        self.keep(b":");
        let at = self.kept.len();
        let limit = SHARED.saturating_sub(at).clamp(SHORT_VALUE, MAX_VALUE);
        if body {
            self.keep(b"null");
        }
        self.value = Some(Value { at, limit, dropped: body, list: false, last: None });
    }

    fn next_element(&mut self) {
        self.keep(b",");
        let Some(value) = &mut self.value else { return };
        if value.dropped || !value.list || self.kept.len() - value.at < MAX_LIST {
            return;
        }
        let last = *value.last.get_or_insert(self.kept.len());
        self.kept.truncate(last);
    }

    fn keep_in_string(&mut self, bytes: &[u8]) {
        let Some(string) = &mut self.string else { return };
        let room = MAX_STRING.saturating_sub(self.kept.len().saturating_sub(string.at));
        let fits = bytes.get(..room).unwrap_or(bytes);
        string.cut |= fits.len() < bytes.len();
        self.keep(fits);
    }

    fn end_string(&mut self) {
        let Some(string) = self.string.take() else { return };
        if string.cut && !self.value.as_ref().is_some_and(|value| value.dropped) {
            let inside = self.kept.get(string.at + 1..).unwrap_or_default();
            let safe = without_torn_escape(inside);
            self.kept.truncate(string.at + 1 + safe);
        }
        self.keep(b"\"");
    }

    fn keep(&mut self, mut bytes: &[u8]) {
        if let Some(value) = &mut self.value {
            if value.dropped {
                return;
            }
            if self.kept.len() - value.at + bytes.len() > value.limit {
                value.dropped = true;
                self.kept.truncate(value.at);
                bytes = b"null";
            }
        }
        if self.kept.len() + bytes.len() > MAX_LINE {
            self.full = true;
            return;
        }
        self.kept.extend_from_slice(bytes);
    }
}

/// Length of the longest beginning of a JSON string's inside that ends in no half escape and no half
/// surrogate pair. A half UTF-8 character is left to the decoder, which reads lossily.
fn without_torn_escape(inside: &[u8]) -> usize {
    let mut at = 0;
    while let Some(rest) = inside.get(at..).filter(|rest| !rest.is_empty()) {
        let length = match rest {
            [b'\\', b'u', b'd' | b'D', b'8'..=b'9' | b'a' | b'A' | b'b' | b'B', ..] => 12,
            [b'\\', b'u', ..] => 6,
            [b'\\', ..] => 2,
            _ => 1,
        };
        if length > rest.len() {
            break;
        }
        at += length;
    }
    at
}

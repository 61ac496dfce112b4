//! Makes a line of any length fit: streams JSON through and leaves out what alerts never need.
//!
//! Of the object's values `requestObject` and `responseObject` become `null`; a string is cut, a
//! list keeps its beginning and its last element (`sourceIPs`: the only address that a client
//! cannot set), an object leaves out members, down to those of the user's `extra`; and a value that
//! is too long even so becomes `null`. What the API server itself says of credentials and decisions
//! stays. A client controls the URI, the `X-Forwarded-For` list, whom it acts as and more, up to the
//! server's megabyte of headers: an over-long line must not be a way to go unseen, or to be judged
//! by less. Garbage goes in, garbage comes out; the decoder judges it.

use memchr::memchr2;

use super::{Fit, MAX_LINE};

/// Strings are cut at this many bytes; longer than any URI that proxies let through.
const MAX_STRING: usize = 8 << 10;
/// From here on a list only keeps its last element.
const MAX_LIST: usize = 4 << 10;
/// A value is given up, or members of it are, beyond this length.
const MAX_VALUE: usize = 12 << 10;
/// Values share this much, which leaves the rest for what stays whatever came before.
const SHARED: usize = MAX_LINE - (16 << 10);
/// A value up to this length is always kept, unless there may be any number of its kind.
const SHORT_VALUE: usize = 64;
/// What the API server says of a credential or a decision is kept up to this length. There are less
/// than ten of them.
const WITNESS: usize = 1 << 10;
/// Objects in objects that are looked into, the line itself included: `user.extra` is the third.
const LEVELS: usize = 3;

/// The state between two pieces of one line.
#[derive(Debug, Default)]
pub(super) struct Shortener {
    /// At most [`MAX_LINE`] bytes.
    kept: Vec<u8>,
    /// More would have to be kept than that.
    full: bool,
    /// Objects and lists open.
    depth: usize,
    string: Option<Str>,
    /// Where the last key of the innermost object began in `kept`.
    key_at: usize,
    /// The value of that key, while it is being read.
    value: Option<Value>,
    /// The objects that are looked into, outermost first.
    objects: Vec<Object>,
    /// Only the bodies go.
    bodies_alone: bool,
}

/// An object that is looked into.
#[derive(Debug)]
struct Object {
    whose: Whose,
    /// Length of `kept` up to which its members have room.
    end: usize,
    /// Members of it were left out.
    lacks: bool,
}

/// Which member of the line something is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    User,
    Annotations,
    Other,
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

/// A value of the innermost object being read.
#[derive(Debug)]
struct Value {
    whose: Whose,
    /// Its first byte in `kept`.
    at: usize,
    /// Length at which it is given up.
    limit: usize,
    /// It was given up: `null` stands in its place, or nothing.
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

    /// One that leaves out nothing but the bodies.
    pub(super) fn of_bodies() -> Self {
        Self { bodies_alone: true, ..Self::default() }
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
                if self.is_between_members() {
                    self.key_at = at;
                }
                self.keep(b"\"");
                self.string = Some(Str { at, escaped: false, cut: false });
            }
            b'{' | b'[' => {
                if self.depth == self.objects.len() {
                    self.begin_inside(byte);
                }
                self.depth += 1;
                self.keep(&[byte]);
            }
            b'}' | b']' => {
                if self.depth == self.objects.len() {
                    self.end_object();
                }
                self.depth = self.depth.saturating_sub(1);
                self.keep(&[byte]);
            }
            b':' if self.is_between_members() => self.begin_value(),
            b',' if self.depth == self.objects.len() => {
                if !self.end_member() {
                    self.keep(b",");
                }
            }
            b',' if self.depth == self.objects.len() + 1 => self.next_element(),
            _ => self.keep(&[byte]),
        }
    }

    fn is_between_members(&self) -> bool {
        self.depth > 0 && self.depth == self.objects.len() && self.value.is_none()
    }

    /// The object or list that a value is begins, or the line itself.
    fn begin_inside(&mut self, byte: u8) {
        let levels = if self.bodies_alone { 1 } else { LEVELS };
        let looks_into = byte == b'{' && self.objects.len() < levels;
        match &mut self.value {
            Some(value) if looks_into && !value.dropped => {
                let (whose, end) = (value.whose, value.at.saturating_add(value.limit));
                self.objects.push(Object { whose, end, lacks: false });
                self.value = None;
            }
            Some(value) => value.list = byte == b'[',
            None if looks_into && self.depth == 0 => {
                self.objects.push(Object { whose: Whose::Other, end: SHARED, lacks: false });
            }
            None => {}
        }
    }

    fn end_object(&mut self) {
        self.end_member();
        if self.objects.pop().is_some_and(|object| object.lacks) {
            // What was left out last left the comma before it.
            self.kept.truncate(self.kept.trim_ascii_end().len());
            self.kept.pop_if(|byte| *byte == b',');
        }
    }

    /// Whether it was left out.
    fn end_member(&mut self) -> bool {
        let (level, dropped) = (self.objects.len(), self.value.take().is_some_and(|it| it.dropped));
        let left_out = dropped && level > 1;
        if let (true, Some(object)) = (left_out, self.objects.last_mut()) {
            object.lacks = true;
            self.kept.truncate(self.key_at);
        }
        left_out
    }

    fn begin_value(&mut self) {
        let Some(object) = self.objects.last() else { return };
        let (level, end) = (self.objects.len(), object.end);
        let key = self.kept.get(self.key_at..).unwrap_or_default().trim_ascii_end();
        let body = level == 1 && matches!(key, b"\"requestObject\"" | b"\"responseObject\"");
        let whose = match (level, key) {
            (1, b"\"user\"") => Whose::User,
            (1, b"\"annotations\"") => Whose::Annotations,
            _ => object.whose,
        };
        let least = match (level, whose) {
            (3, Whose::User) | (2, Whose::Annotations) if is_witness(key) => WITNESS,
            (2, Whose::Annotations) => 0,
            (1 | 2, _) => SHORT_VALUE,
            _ => 0,
        };
        self.keep(b":");
        let at = self.kept.len();
        let limit = match self.bodies_alone {
            true => usize::MAX,
            false => end.saturating_sub(at).clamp(least, MAX_VALUE),
        };
        if body {
            self.keep(b"null");
        }
        self.value = Some(Value { whose, at, limit, dropped: body, list: false, last: None });
    }

    fn next_element(&mut self) {
        self.keep(b",");
        let Some(value) = &mut self.value else { return };
        let room = if self.bodies_alone { usize::MAX } else { MAX_LIST.min(value.limit / 2) };
        if value.dropped || !value.list || self.kept.len() - value.at < room {
            return;
        }
        let last = *value.last.get_or_insert(self.kept.len());
        self.kept.truncate(last);
    }

    fn keep_in_string(&mut self, bytes: &[u8]) {
        let Some(string) = &mut self.string else { return };
        let longest = if self.bodies_alone { usize::MAX } else { MAX_STRING };
        let room = longest.saturating_sub(self.kept.len().saturating_sub(string.at));
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
                bytes = if self.objects.len() > 1 { b"" } else { b"null" };
            }
        }
        if self.kept.len() + bytes.len() > MAX_LINE {
            self.full = true;
            return;
        }
        self.kept.extend_from_slice(bytes);
    }
}

/// Whether the API server itself says something of a credential or a decision under this key.
fn is_witness(key: &[u8]) -> bool {
    key.starts_with(b"\"authentication.kubernetes.io/")
        || key.starts_with(b"\"authorization.k8s.io/")
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

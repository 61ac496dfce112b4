//! Audit events within documents of a cloud's log service, which carries each as a string.
//!
//! ```text
//! {…,"properties":{"log":"EVENT",…}}              AKS diagnostic settings, a record a line
//! {"records":[{…,"properties":{"log":"EVENT"}},…]}                   the same over Event Hubs
//! {…,"logEvents":[{…,"message":"EVENT"},…]}       CloudWatch Logs, a subscription's document
//! {"events":[{…,"message":"EVENT"},…]}, {…,"message":"EVENT"}       the same, asked for
//! ```
//!
//! Pure and of bounded memory whatever the input: it counts brackets, and of the document keeps one key
//! and one event. It judges the frame alone; what stands in an event is judged by those who judge lines. A
//! string that is no object is some other log's, and no event. Called by `lines`, which knows no other
//! place where a document is opened.

use memchr::memchr2;

use super::Kept;

/// How each line begins that kube-apiserver writes: the only question to such a line.
const ORDINARY: &[u8] = b"{\"kind\":\"Event\"";
/// Keys of lists whose elements may carry events.
const LISTS: [&[u8]; 3] = [b"records", b"logEvents", b"events"];
/// Keys of strings that may be events.
const EVENTS: [&[u8]; 2] = [b"log", b"message"];
/// Key of the object that may hold one of these.
const PROPERTIES: &[u8] = b"properties";
/// Key of what Google Cloud has in place of an event.
const CLOUD_AUDIT: &[u8] = b"protoPayload";
/// Objects and lists in each other in which events are looked for.
const PLACES: usize = 8;
/// Longer than each key that is looked for.
const MAX_KEY: usize = 32;
/// What stands before an event at most, bytes.
const MAX_LEAD: usize = 1 << 10;

/// Whether the line that begins here may be such a document.
pub(super) fn may_begin(line: &[u8]) -> bool {
    !line.starts_with(ORDINARY)
        && line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).starts_with(b"{")
}

/// A line without the time and the name of the stream that `aws logs tail` writes before an event.
pub(super) fn without_lead(line: &[u8]) -> &[u8] {
    if !line.first().is_some_and(u8::is_ascii_digit) {
        return line;
    }
    let lead = line.iter().take(MAX_LEAD).position(|byte| matches!(byte, b'{' | b'"'));
    match lead.and_then(|at| line.split_at_checked(at)) {
        Some(([.., b' '], event)) if event.starts_with(ORDINARY) => event,
        _ => line,
    }
}

/// What is longer than this holds all of what stands before an event.
pub(super) const LEAD: usize = MAX_LEAD + ORDINARY.len();

/// The state between two pieces of one line.
#[derive(Debug, Default)]
pub(super) struct Envelope {
    /// What is missing at the beginning of an ordinary line, while it may be one: it may have been cut
    /// before that was seen.
    ordinary: Option<&'static [u8]>,
    /// Objects and lists open.
    depth: usize,
    /// Those of them in which events are looked for, outermost first.
    places: Vec<Place>,
    /// The last key of the innermost place, as far as it can be of interest.
    key: Vec<u8>,
    /// Its value comes.
    valued: bool,
    string: Option<Str>,
    escape: Escape,
    /// The first half of a surrogate pair.
    high: Option<u16>,
    /// The event being read, or ready.
    event: Kept,
    /// It has begun: with a brace.
    begun: bool,
    ready: bool,
    /// An event was ready.
    carried: bool,
    /// It is an entry of Google Cloud's.
    cloud_audit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Object,
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Str {
    Key,
    Event,
    Other,
}

/// How much of an escape was read.
#[derive(Clone, Copy, Debug, Default)]
enum Escape {
    #[default]
    None,
    Begun,
    Unicode {
        value: u16,
        digits: u8,
    },
}

impl Envelope {
    /// Prepares for another line, of whose events so much is kept whole.
    pub(super) fn begin(&mut self, longest: usize) {
        let (event, ordinary) = (Kept::new(longest), Some(ORDINARY));
        *self = Self { event, ordinary, ..Self::default() };
    }

    /// Takes the next piece of the line, up to where an event is ready; how much that is.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        if std::mem::take(&mut self.ready) {
            self.event.clear();
        }
        if self.is_ordinary(bytes) {
            return bytes.len();
        }
        let mut rest = bytes;
        while !self.ready
            && let Some((&byte, after)) = rest.split_first()
        {
            rest = match self.string {
                None => {
                    self.structure(byte);
                    after
                }
                Some(string) => self.inside(string, rest),
            };
        }
        bytes.len() - rest.len()
    }

    /// Whether the line is an ordinary one after all, with what comes next of it.
    fn is_ordinary(&mut self, bytes: &[u8]) -> bool {
        self.ordinary = self.ordinary.and_then(|missing| {
            let (now, later) = missing.split_at(missing.len().min(bytes.len()));
            bytes.starts_with(now).then_some(later)
        });
        self.ordinary.is_some_and(<[u8]>::is_empty)
    }

    /// The event, if one is ready.
    pub(super) fn ready(&mut self) -> Option<&mut Kept> {
        self.ready.then_some(&mut self.event)
    }

    /// Whether there was an event.
    pub(super) fn has_carried(&self) -> bool {
        self.carried
    }

    /// Whether the document has come to its end.
    pub(super) fn is_whole(&self) -> bool {
        self.depth == 0 && self.string.is_none()
    }

    /// Whether it is an entry of Google Cloud's audit log.
    pub(super) fn is_cloud_audit(&self) -> bool {
        self.cloud_audit
    }

    /// The innermost object or list, if events are looked for in it.
    fn place(&self) -> Option<Place> {
        self.places.last().copied().filter(|_| self.places.len() == self.depth)
    }

    /// A byte outside of strings.
    fn structure(&mut self, byte: u8) {
        let place = self.place();
        match byte {
            b'"' => {
                let is_event = self.valued && EVENTS.contains(&self.key.as_slice());
                self.string = Some(match place {
                    Some(Place::Object) if is_event => Str::Event,
                    Some(Place::Object) if !self.valued => Str::Key,
                    _ => Str::Other,
                });
                if self.string == Some(Str::Key) {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                let key = self.key.as_slice();
                let next = match (place, byte) {
                    (None, b'{') if self.depth == 0 => Some(Place::Object),
                    (Some(Place::List), b'{') => Some(Place::Object),
                    (Some(Place::Object), b'[') if LISTS.contains(&key) => Some(Place::List),
                    (Some(Place::Object), b'{') if key == PROPERTIES => Some(Place::Object),
                    _ => None,
                };
                self.places.extend(next.filter(|_| self.places.len() < PLACES));
                self.depth += 1;
                self.valued = false;
            }
            b'}' | b']' => {
                if place.is_some() {
                    self.places.pop();
                }
                self.depth = self.depth.saturating_sub(1);
                self.valued = false;
            }
            b':' if place.is_some() => {
                self.valued = true;
                self.cloud_audit |= self.key == CLOUD_AUDIT;
            }
            b',' if place.is_some() => self.valued = false,
            _ => {}
        }
    }

    /// Takes the next bytes of a string; what is left.
    fn inside<'a>(&mut self, string: Str, bytes: &'a [u8]) -> &'a [u8] {
        let Some((&byte, after)) = bytes.split_first() else { return bytes };
        match self.escape {
            Escape::None => {
                let run = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                let (plain, rest) = bytes.split_at(run);
                self.take(string, plain);
                match rest.split_first() {
                    Some((b'"', rest)) => {
                        self.end_string(string);
                        rest
                    }
                    Some((_, rest)) => {
                        self.escape = Escape::Begun;
                        rest
                    }
                    None => rest,
                }
            }
            Escape::Begun => {
                self.escape = Escape::None;
                match byte {
                    b'u' => self.escape = Escape::Unicode { value: 0, digits: 0 },
                    b'b' => self.take(string, b"\x08"),
                    b'f' => self.take(string, b"\x0c"),
                    b'n' => self.take(string, b"\n"),
                    b'r' => self.take(string, b"\r"),
                    b't' => self.take(string, b"\t"),
                    _ => self.take(string, &[byte]),
                }
                after
            }
            Escape::Unicode { value, digits } => {
                let Some(digit) = char::from(byte).to_digit(16) else {
                    // No JSON. What the event is then, its decoder says.
                    self.escape = Escape::None;
                    return bytes;
                };
                let value = value << 4 | u16::try_from(digit).unwrap_or_default();
                self.escape = Escape::Unicode { value, digits: digits + 1 };
                if digits == 3 {
                    self.escape = Escape::None;
                    self.take_unit(string, value);
                }
                after
            }
        }
    }

    /// A unit of UTF-16.
    fn take_unit(&mut self, string: Str, unit: u16) {
        if let 0xd800..0xdc00 = unit {
            self.take_lone_half(string);
            self.high = Some(unit);
            return;
        }
        let units = self.high.take().into_iter().chain([unit]);
        for decoded in char::decode_utf16(units) {
            let mut buffer = [0; 4];
            let text = decoded.unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut buffer);
            self.take(string, text.as_bytes());
        }
    }

    fn take_lone_half(&mut self, string: Str) {
        if self.high.take().is_some() {
            self.take(string, "\u{fffd}".as_bytes());
        }
    }

    /// What a string says, its escapes resolved.
    fn take(&mut self, string: Str, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.take_lone_half(string);
        match string {
            Str::Key => {
                let room = MAX_KEY.saturating_sub(self.key.len());
                self.key.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            }
            Str::Event => {
                let text = if self.begun { bytes } else { bytes.trim_ascii_start() };
                if !self.begun && !text.is_empty() {
                    self.begun = text.starts_with(b"{");
                    if !self.begun {
                        self.string = Some(Str::Other);
                        return;
                    }
                }
                self.event.push(text);
            }
            Str::Other => {}
        }
    }

    fn end_string(&mut self, string: Str) {
        self.take_lone_half(string);
        self.string = None;
        self.ready = std::mem::take(&mut self.begun);
        self.carried |= self.ready;
    }
}

#[cfg(test)]
mod tests;

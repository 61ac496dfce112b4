//! Which audit lines matter, found without decoding the others, and the decoding of those.
//!
//! Sound: a line that is skipped could not have changed an alert. What matters is the caller's
//! [`Interest`]: requests of pods, of all or of those by name or on a node; of service accounts; ways
//! into a pod (exec, attach, ephemeral container); TokenRequests; audit canaries. So a line must contain a key and a value of these
//! literally, or an escape that could decode to a part of them. Pure; called by the sources and by
//! `replay`.

use std::{borrow::Cow, fmt, net::IpAddr, str, sync::LazyLock};

use memchr::{
    memchr_iter, memchr2,
    memmem::{Finder, FinderRev},
};
use serde::Deserialize;

use super::{
    AuditRecord, BadLine, NODE_NAME, ObjectRef, POD_NAME, POD_UID, ResponseStatus, SERVICE_ACCOUNT,
    Stage, Unique, User, canary,
};
use crate::{
    redact::{redact, redact_name},
    time::Micros,
};

/// Which events are of use to the caller.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// Requests made with a pod's identity.
    pub pods: Pods<'a>,
    /// Requests of service accounts, whether or not their token names a pod.
    pub accounts: Users<'a>,
    /// Requests for a way into a pod.
    pub sessions: bool,
    /// Requests for a service account's token.
    pub token_requests: Users<'a>,
    /// Audit canaries of any agent.
    pub canaries: bool,
    /// An event that does not say when it was received takes its stage's time for that.
    pub received_may_lack: bool,
}

/// Whose requests are of use.
#[derive(Clone, Copy)]
pub enum Pods<'a> {
    /// Of every pod, by the uid in the user's `extra`.
    All,
    /// Of pods that this knows by one of the names in the user's `extra`.
    Named(&'a dyn Fn(&str) -> bool),
    /// Of pods that this knows by a uid there.
    WithUid(&'a dyn Fn(&str) -> bool),
    /// Of the pods of a node.
    OfNode(Node<'a>),
}

/// A node's pods, by any sign of them.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// Its name, as tokens carry it.
    pub name: &'a str,
    /// Whether a pod of this uid is there.
    pub has_pod: &'a dyn Fn(&str) -> bool,
    /// Whether a pod of this service account, by user name, is there. Asked where a token names no pod.
    pub has_account: &'a dyn Fn(&str) -> bool,
}

/// Which users are of interest.
#[derive(Clone, Copy)]
pub enum Users<'a> {
    /// None.
    None,
    /// All.
    All,
    /// Those of whom this says so.
    Named(&'a dyn Fn(&str) -> bool),
}

impl fmt::Debug for Users<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::All => "All",
            Self::Named(_) => "Named",
        })
    }
}

impl fmt::Debug for Pods<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "All",
            Self::Named(_) => "Named",
            Self::WithUid(_) => "WithUid",
            Self::OfNode(_) => "OfNode",
        })
    }
}

impl Interest<'static> {
    /// What correlation as events happen can use.
    pub const LIVE: Self = Self {
        pods: Pods::All,
        accounts: Users::All,
        sessions: true,
        token_requests: Users::All,
        canaries: true,
        received_may_lack: false,
    };
}

impl Interest<'_> {
    fn wants(&self, user: &User, object: Option<&ObjectRef>) -> bool {
        let has = |key: &str, known: &dyn Fn(&str) -> bool| {
            user.extra.get(key).is_some_and(|values| values.iter().any(|value| known(value)))
        };
        let of_pod = match self.pods {
            Pods::All => has(POD_UID, &|_| true),
            Pods::Named(known) => has(POD_NAME, known),
            Pods::WithUid(known) => has(POD_UID, known),
            Pods::OfNode(node) => {
                let names_no_pod = user.extra.get(POD_UID).is_none_or(Vec::is_empty);
                has(POD_UID, node.has_pod)
                    || has(NODE_NAME, &|name| name == node.name)
                    || (names_no_pod && (node.has_account)(&user.username))
            }
        };
        of_pod
            || (user.username.starts_with(SERVICE_ACCOUNT) && self.accounts.has(&user.username))
            || object.is_some_and(|object| {
                (self.sessions && object.is_way_into_pod())
                    || (object.is_token_of_account() && self.token_requests.has(&user.username))
            })
    }
}

impl Users<'_> {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Named(of_interest) => of_interest(name),
        }
    }
}

/// What a line is worth.
#[expect(clippy::large_enum_variant, reason = "moved once, straight into its batch")]
#[derive(Debug, PartialEq)]
pub enum Scan {
    /// It cannot change an alert.
    Skip,
    /// It may.
    Record(AuditRecord),
    /// It is no audit event, or a broken one.
    Bad(BadLine),
}

/// What a line is worth at first sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glance {
    /// It cannot change an alert.
    Skip,
    /// [`decode`] tells.
    Decode,
    /// It is no audit event.
    Bad(BadLine),
}

/// Judges one line (without its newline).
pub fn classify(line: &[u8], interest: &Interest<'_>) -> Scan {
    match glance(line, interest) {
        Glance::Skip => Scan::Skip,
        Glance::Bad(reason) => Scan::Bad(reason),
        Glance::Decode => match decode(line, interest) {
            Ok(Some(record)) => Scan::Record(record),
            Ok(None) => Scan::Skip,
            Err(reason) => Scan::Bad(reason),
        },
    }
}

/// Judges one line (without its newline) as far as that needs no decoding.
pub fn glance(line: &[u8], interest: &Interest<'_>) -> Glance {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Glance::Bad(BadLine::Blank);
    }
    // All that a line which cannot matter is asked: garbage and torn lines show at their ends.
    if !(line.starts_with(b"{") && line.ends_with(b"}")) {
        return Glance::Bad(BadLine::NotJson);
    }
    if can_matter(line, interest) { Glance::Decode } else { Glance::Skip }
}

/// The last `stageTimestamp` in complete lines, found without decoding them.
///
/// A body may hold a key of that name, but kube-apiserver writes bodies before its own
/// (field order of `Event`), and inside a string the key's quotes would be escaped.
pub fn last_stage_timestamp(lines: &[u8]) -> Option<Micros> {
    const KEY: &[u8] = b"\"stageTimestamp\"";
    static FINDER: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(KEY));
    let behind = |at: usize| lines.get(at + KEY.len()..);
    let text = FINDER.rfind_iter(lines).find_map(|at| value(behind(at)?))?;
    Micros::parse_believable(str::from_utf8(text).ok()?)
}

/// The `stageTimestamp` of one line, found without decoding it. `None` if only decoding tells: the
/// key is not there exactly once, or may be hidden by an escape.
pub fn stage_timestamp(line: &[u8]) -> Option<Micros> {
    static KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"stageTimestamp\""));
    timestamp(line, &KEY)
}

/// The `requestReceivedTimestamp` of one line, in the same way.
pub fn received_timestamp(line: &[u8]) -> Option<Micros> {
    static KEY: LazyLock<Finder<'static>> =
        LazyLock::new(|| Finder::new(b"\"requestReceivedTimestamp\""));
    timestamp(line, &KEY)
}

fn timestamp(line: &[u8], key: &Finder<'_>) -> Option<Micros> {
    let mut found = key.find_iter(line);
    let (at, None) = (found.next()?, found.next()) else { return None };
    let text = value(line.get(at + key.needle().len()..)?)?;
    if may_hide_key(line) {
        return None;
    }
    Micros::parse_believable(str::from_utf8(text).ok()?)
}

fn can_matter(line: &[u8], interest: &Interest<'_>) -> bool {
    static UID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(end_of(POD_UID)));
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(end_of(POD_NAME)));
    static NODE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(end_of(NODE_NAME)));
    let of_pod = match interest.pods {
        Pods::All => UID.find(line).is_some(),
        Pods::Named(known) => names_pod(line, &NAME, known),
        Pods::WithUid(known) => names_pod(line, &UID, known),
        Pods::OfNode(node) => {
            names_pod(line, &UID, node.has_pod)
                || names_pod(line, &NODE, &|name| name == node.name)
                || names_account(line, Users::Named(node.has_account))
        }
    };
    of_pod
        || names_account(line, interest.accounts)
        || names_subresource(line, interest)
        || (interest.canaries && bears_mark(line))
        || may_hide_key(line)
}

/// The longest end of a key that is searched for with vector instructions alone. No other key that
/// Kubernetes writes ends so.
fn end_of(key: &'static str) -> &'static [u8] {
    key.as_bytes().last_chunk::<32>().map_or(key.as_bytes(), |end| end.as_slice())
}

/// Whether the mark of an audit canary stands in the line.
fn bears_mark(line: &[u8]) -> bool {
    static MARK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(canary::MARK));
    MARK.find(line).is_some()
}

/// Whether a service account of interest stands in the line, or one that only decoding tells.
fn names_account(line: &[u8], accounts: Users<'_>) -> bool {
    static BEGINNING: LazyLock<Finder<'static>> =
        LazyLock::new(|| Finder::new(b"\"system:serviceaccount:"));
    match accounts {
        Users::None => false,
        Users::All => BEGINNING.find(line).is_some(),
        Users::Named(of_interest) => {
            BEGINNING.find_iter(line).any(|at| match text(line.get(at..).unwrap_or_default()) {
                Some((name, _)) if name.is_ascii() => str::from_utf8(name).is_ok_and(of_interest),
                _ => true,
            })
        }
    }
}

/// Whether a pod or node that is known by this key stands in the line, or one that only decoding
/// tells.
///
/// The key may be there more than once: a client can impersonate somebody with an `extra` of its
/// choice. The user's own is one of them.
fn names_pod(line: &[u8], key: &Finder<'_>, known: &dyn Fn(&str) -> bool) -> bool {
    key.find_iter(line).any(|at| {
        // `…/pod-name":["cart-0"]`, the only form that kube-apiserver writes.
        let rest = line.get(at + key.needle().len()..).unwrap_or_default();
        match rest.strip_prefix(b"\":[").and_then(text) {
            Some((name, [b']', ..])) if name.is_ascii() => str::from_utf8(name).is_ok_and(known),
            _ => true,
        }
    })
}

/// Whether a subresource of interest stands in the line, or one that only decoding tells.
fn names_subresource(line: &[u8], interest: &Interest<'_>) -> bool {
    const KEY: &[u8] = b"\"subresource\"";
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
    FINDER.find_iter(line).any(|at| match value(line.get(at + KEY.len()..).unwrap_or_default()) {
        Some(b"exec" | b"attach" | b"ephemeralcontainers") => interest.sessions,
        Some(b"token") => names_user(line, interest.token_requests),
        Some(_) => false,
        None => true,
    })
}

/// Whether a user of interest stands in the line, or one whose name only decoding tells. As with
/// pods, the user's own name is one of all that stand there.
fn names_user(line: &[u8], users: Users<'_>) -> bool {
    const KEY: &[u8] = b"\"username\"";
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
    match users {
        Users::None => false,
        Users::All => true,
        Users::Named(of_interest) => FINDER.find_iter(line).any(|at| {
            match value(line.get(at + KEY.len()..).unwrap_or_default()) {
                Some(name) if name.is_ascii() => str::from_utf8(name).is_ok_and(of_interest),
                _ => true,
            }
        }),
    }
}

/// The inside of the string that is the value behind a key; `None` if it is none, or has escapes.
fn value(behind_key: &[u8]) -> Option<&[u8]> {
    let rest = behind_key.trim_ascii_start().strip_prefix(b":")?;
    text(rest.trim_ascii_start()).map(|(inside, _)| inside)
}

/// The inside of the string that begins here, and what follows it; `None` as above.
fn text(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = rest.strip_prefix(b"\"")?;
    let end = memchr2(b'"', b'\\', inside)?;
    let (text, rest) = inside.split_at(end);
    Some((text, rest.strip_prefix(b"\"")?))
}

/// Whether an escape could stand for a character of a key or a value that is looked for: any but
/// those that Go writes (control characters, `<`, `>`, `&`, U+2028, U+2029, U+FFFD), which none of
/// them has. The rest is rare.
fn may_hide_key(line: &[u8]) -> bool {
    memchr_iter(b'\\', line).any(|at| match line.get(at + 1..) {
        Some([b'/', ..]) => true,
        Some([b'u', rest @ ..]) => !matches!(
            rest,
            [b'0', b'0', b'0' | b'1', _, ..]
                | [b'0', b'0', b'2', b'6', ..]
                | [b'0', b'0', b'3', b'c' | b'e', ..]
                | [b'2', b'0', b'2', b'8' | b'9', ..]
                | [b'f', b'f', b'f', b'd', ..]
        ),
        _ => false,
    })
}

/// An event as it is on the wire: anything may be missing or null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    kind: Option<String>,
    api_version: Option<String>,
    #[serde(rename = "auditID")]
    audit_id: Option<String>,
    stage: Option<Stage>,
    #[serde(rename = "requestURI")]
    request_uri: Option<String>,
    verb: Option<String>,
    user: Option<User>,
    impersonated_user: Option<User>,
    #[serde(rename = "sourceIPs")]
    source_ips: Option<Vec<String>>,
    user_agent: Option<String>,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
    request_received_timestamp: Option<String>,
    stage_timestamp: Option<String>,
    annotations: Option<Unique<Option<String>>>,
}

/// What is kept of one text, bytes: a URI may take most of a line, and records are stored.
const MAX_TEXT: usize = 4 << 10;

/// Text that a client chose, without what looks like a secret: records are stored.
fn clean(text: String) -> String {
    clean_by(redact, text)
}

fn clean_by(redact: fn(&str) -> Cow<'_, str>, mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    match redact(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(clean) => clean,
    }
}

/// An address in the one form in which it is compared: an IPv4 address may be given as an IPv6 one.
fn clean_address(text: String) -> String {
    match text.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => clean(text),
    }
}

fn clean_user(user: User) -> User {
    let User { username, uid, groups, extra } = user;
    let values = |values: Vec<String>| values.into_iter().map(clean).collect();
    let name = |name| clean_by(redact_name, name);
    User {
        username: name(username),
        uid: clean(uid),
        groups: groups.into_iter().map(name).collect(),
        extra: extra.into_iter().map(|(key, list)| (clean(key), values(list))).collect(),
    }
}

fn clean_status(status: ResponseStatus) -> ResponseStatus {
    let ResponseStatus { code, status, reason, message } = status;
    ResponseStatus {
        code,
        status: status.map(clean),
        reason: reason.map(clean),
        message: message.map(clean),
    }
}

/// Parts of the path, whatever stood there.
fn clean_object(object: ObjectRef) -> ObjectRef {
    let ObjectRef { resource, namespace, name, subresource, api_group, api_version } = object;
    ObjectRef {
        resource: resource.map(clean),
        namespace: namespace.map(clean),
        name: name.map(clean),
        subresource: subresource.map(clean),
        api_group: api_group.map(clean),
        api_version: api_version.map(clean),
    }
}

/// Decodes one line (without its newline); `None` if it is of no interest after all.
///
/// # Errors
/// The line is no audit event, or a broken one.
pub fn decode(line: &[u8], interest: &Interest<'_>) -> Result<Option<AuditRecord>, BadLine> {
    // A byte that is no UTF-8 must not hide a request: it is replaced, not a reason to refuse.
    let text = str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed);
    let event: Event = serde_json::from_str(&text)
        .map_err(|error| if error.is_data() { BadLine::WrongShape } else { BadLine::NotJson })?;
    // Items of an EventList carry neither kind nor version.
    if event.kind.is_some_and(|kind| kind != "Event")
        || event.api_version.is_some_and(|version| !version.starts_with("audit.k8s.io/"))
    {
        return Err(BadLine::WrongKind);
    }
    let user = event.user.unwrap_or_default();
    let object_ref = event.object_ref;
    let canary = interest.canaries
        && event.user_agent.as_ref().is_some_and(|agent| agent.starts_with(canary::MARK));
    if !canary && !interest.wants(&user, object_ref.as_ref()) {
        return Ok(None);
    }
    let time = |text: &str| Micros::parse_believable(text).ok_or(BadLine::BadTime);
    let stage_timestamp = time(event.stage_timestamp.as_deref().unwrap_or_default())?;
    let received = match event.request_received_timestamp.as_deref() {
        None if interest.received_may_lack => stage_timestamp,
        text => time(text.unwrap_or_default())?,
    };
    Ok(Some(AuditRecord {
        audit_id: clean(event.audit_id.unwrap_or_default()),
        stage: event.stage.ok_or(BadLine::WrongShape)?,
        request_uri: clean(event.request_uri.unwrap_or_default()),
        verb: clean(event.verb.unwrap_or_default()),
        user: clean_user(user),
        impersonated_user: event.impersonated_user.map(clean_user),
        source_ips: event.source_ips.unwrap_or_default().into_iter().map(clean_address).collect(),
        user_agent: event.user_agent.map(clean),
        object_ref: object_ref.map(clean_object),
        response_status: event.response_status.map(clean_status),
        request_received_timestamp: received,
        stage_timestamp,
        annotations: event
            .annotations
            .unwrap_or_default()
            .0
            .into_iter()
            .map(|(key, value)| (clean(key), clean(value.unwrap_or_default())))
            .collect(),
    }))
}

#[cfg(test)]
mod tests;

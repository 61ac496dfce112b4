//! Which audit lines matter, found without decoding the others, and the decoding of those.
//!
//! Sound: a line that is skipped could not have changed an alert. Today a line matters if its user
//! carries a pod uid, if it opens a way into a pod (exec, attach, ephemeral container), or if it is
//! an audit canary. So it must contain that key, one of those words or the canary's mark literally,
//! or an escape that could decode to a part of them. Pure; called by the sources.

use std::{borrow::Cow, collections::BTreeMap, str, sync::LazyLock};

use memchr::memmem::{Finder, FinderRev};
use serde::Deserialize;

use super::{AuditRecord, BadLine, ObjectRef, POD_UID, ResponseStatus, Stage, User, canary};
use crate::{redact::redact, time::Micros};

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

/// Judges one line (without its newline).
pub fn classify(line: &[u8]) -> Scan {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Scan::Bad(BadLine::Blank);
    }
    // All that a line which cannot matter is asked: garbage and torn lines show at their ends.
    if !(line.starts_with(b"{") && line.ends_with(b"}")) {
        return Scan::Bad(BadLine::NotJson);
    }
    if !can_matter(line) {
        return Scan::Skip;
    }
    match decode(line) {
        Ok(Some(record)) => Scan::Record(record),
        Ok(None) => Scan::Skip,
        Err(reason) => Scan::Bad(reason),
    }
}

/// The last `stageTimestamp` in complete lines, found without decoding them.
///
/// A body may hold a key of that name, but kube-apiserver writes bodies before its own
/// (field order of `Event`), and inside a string the key's quotes would be escaped.
pub fn last_stage_timestamp(lines: &[u8]) -> Option<Micros> {
    const KEY: &[u8] = b"\"stageTimestamp\":\"";
    static FINDER: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(KEY));
    let value = lines.get(FINDER.rfind(lines)? + KEY.len()..)?;
    let end = value.iter().take(40).position(|byte| *byte == b'"')?;
    believable(str::from_utf8(value.get(..end)?).ok()?)
}

fn can_matter(line: &[u8]) -> bool {
    static KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(POD_UID));
    static MARK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(canary::MARK));
    KEY.find(line).is_some()
        || names_session(line)
        || may_hide_key(line)
        || MARK.find(line).is_some()
}

/// Whether a word for a way into a pod stands in the line as a whole string, as it does as a
/// `subresource`.
fn names_session(line: &[u8]) -> bool {
    static WORDS: LazyLock<[Finder<'static>; 3]> =
        LazyLock::new(|| ["\"exec\"", "\"attach\"", "\"ephemeralcontainers\""].map(Finder::new));
    WORDS.iter().any(|word| word.find(line).is_some())
}

/// Whether an escape could stand for a character of the key: `\/`, or `\u00XX` for a lower-case
/// letter, `-`, `.` or `/`. Go itself escapes only control characters, `<`, `>`, `&`, U+2028, U+2029
/// and U+FFFD, so this is rare; the frequent `\u0026` of request URIs does not count.
fn may_hide_key(line: &[u8]) -> bool {
    static SLASH: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br"\/"));
    static ASCII: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br"\u00"));
    SLASH.find(line).is_some()
        || ASCII.find_iter(line).any(|at| {
            matches!(
                line.get(at + 4..at + 6),
                Some([b'6' | b'7', _] | [b'2', b'd'..=b'f' | b'D'..=b'F'])
            )
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
    annotations: Option<BTreeMap<String, Option<String>>>,
}

/// Text that a client chose, without what looks like a secret: records are stored.
fn clean(text: String) -> String {
    match redact(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(clean) => clean,
    }
}

fn clean_user(user: User) -> User {
    let User { username, uid, groups, extra } = user;
    let values = |values: Vec<String>| values.into_iter().map(clean).collect();
    User {
        username: clean(username),
        uid: clean(uid),
        groups: values(groups),
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

fn decode(line: &[u8]) -> Result<Option<AuditRecord>, BadLine> {
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
    if user.extra.get(POD_UID).is_none_or(Vec::is_empty)
        && !object_ref.as_ref().is_some_and(ObjectRef::is_way_into_pod)
        && !event.user_agent.as_ref().is_some_and(|agent| agent.starts_with(canary::MARK))
    {
        return Ok(None);
    }
    let time = |text: Option<String>| text.as_deref().and_then(believable).ok_or(BadLine::BadTime);
    Ok(Some(AuditRecord {
        audit_id: clean(event.audit_id.unwrap_or_default()),
        stage: event.stage.ok_or(BadLine::WrongShape)?,
        request_uri: clean(event.request_uri.unwrap_or_default()),
        verb: clean(event.verb.unwrap_or_default()),
        user: clean_user(user),
        impersonated_user: event.impersonated_user.map(clean_user),
        source_ips: event.source_ips.unwrap_or_default().into_iter().map(clean).collect(),
        user_agent: event.user_agent.map(clean),
        object_ref: object_ref.map(clean_object),
        response_status: event.response_status.map(clean_status),
        request_received_timestamp: time(event.request_received_timestamp)?,
        stage_timestamp: time(event.stage_timestamp)?,
        annotations: event
            .annotations
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (clean(key), clean(value.unwrap_or_default())))
            .collect(),
    }))
}

/// A time between the first Kubernetes and far from now. Anything else is a zero value or a broken
/// clock, and one such time would move the watermark for good.
fn believable(text: &str) -> Option<Micros> {
    /// 2014-06-06
    const FIRST: Micros = Micros::from_secs(1_402_012_800);
    /// 2200-01-01
    const LAST: Micros = Micros::from_secs(7_258_118_400);
    Micros::parse(text).filter(|time| (FIRST..LAST).contains(time))
}

#[cfg(test)]
mod tests;

//! The API server's audit log: the typed subset of `audit.k8s.io/v1` that alerts are made of, and
//! the sources that yield it.
//!
//! The way of a line: `tail` reads bytes from the file, `stdin` from a pipe, or `webhook` takes them from
//! the API server; `lines` cuts and unwraps them, `scan` decides which lines may matter, `sieve` counts the others, the batch goes
//! to the engine, which has `decoder` decode those that matter on its node, and once its alerts are
//! written the engine moves the position in `checkpoint`, or has the API server answered. `canary`
//! finds out whether that way works.
//!
//! Source of the field semantics: kubernetes/apiserver `pkg/apis/audit/v1/types.go`.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor},
};
use tokio::sync::oneshot;

use crate::time::Micros;

pub mod canary;
pub mod checkpoint;
pub mod decoder;
pub mod lines;
mod metrics;
pub mod scan;
mod sieve;
pub mod stdin;
pub mod tail;
pub mod webhook;

pub use metrics::{AuditMetrics, BadLine};

/// `user.extra` key that names the pod a token is bound to, by uid.
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// `user.extra` key that names the pod a token is bound to.
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// `user.extra` key that names the node of that pod.
pub const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// `user.extra` key that names the credential.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Annotation of a TokenRequest that names the credential it minted.
pub const ISSUED_CREDENTIAL_ID: &str = "authentication.kubernetes.io/issued-credential-id";
/// How the user names of service accounts begin; namespace and name follow.
pub const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Stage of a request at which an event was written, in the order of a request's life.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
pub enum Stage {
    /// Received; nothing decided yet.
    RequestReceived,
    /// Headers sent, body to follow: watches, exec, logs. The only stage of a 401.
    ResponseStarted,
    /// Done.
    ResponseComplete,
    /// The handler panicked.
    Panic,
}

/// `authentication.k8s.io/v1` `UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct User {
    /// Name, as `system:serviceaccount:<namespace>:<name>`; empty on a 401.
    #[serde(deserialize_with = "or_default")]
    pub username: String,
    /// Uid of the account.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What the authenticator adds: pod, node, credential.
    #[serde(deserialize_with = "lists_of_texts", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The object that a request names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectRef {
    /// Resource, plural.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subresource: Option<String>,
    /// API group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_group: Option<String>,
    /// API version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
}

impl ObjectRef {
    /// Whether it is a way into a running pod.
    pub fn is_way_into_pod(&self) -> bool {
        self.resource.as_deref() == Some("pods")
            && matches!(
                self.subresource.as_deref(),
                Some("exec" | "attach" | "ephemeralcontainers")
            )
    }

    /// Whether it is what tokens are minted at.
    pub fn is_token_of_account(&self) -> bool {
        self.resource.as_deref() == Some("serviceaccounts")
            && self.subresource.as_deref() == Some("token")
    }
}

/// `metav1.Status`, as far as alerts show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct ResponseStatus {
    /// HTTP code; `None` too if it is none (an admission webhook may answer with any integer).
    #[serde(deserialize_with = "http_code", skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// `Failure`, or nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Machine-readable reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// One audit event, without bodies. Serialised under its original names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// Chosen by the client if it likes: no key.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// Stage at which this was written.
    pub stage: Stage,
    /// URI with query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Verb, lower case.
    pub verb: String,
    /// The authenticated user, never the impersonated one.
    #[serde(default)]
    pub user: User,
    /// Whom the user acts as. Its `extra` is client-chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<User>,
    /// Addresses; only the last is not client-set.
    #[serde(default, rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    /// Client-chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// What the request is about; `None` for non-resource URIs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    /// Outcome; absent in `RequestReceived`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<ResponseStatus>,
    /// When the request reached the API server.
    pub request_received_timestamp: Micros,
    /// When this stage was reached.
    pub stage_timestamp: Micros,
    /// Decision, reason, credential ids.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl AuditRecord {
    /// Values of a `user.extra` key, never the impersonated user's.
    pub fn extra_values(&self, key: &str) -> &[String] {
        self.user.extra.get(key).map_or(&[], Vec::as_slice)
    }

    /// First value of a `user.extra` key.
    pub fn extra(&self, key: &str) -> Option<&str> {
        self.extra_values(key).first().map(String::as_str)
    }

    /// Uid of the pod that the request's token is bound to. Nobody but a service account has such a
    /// token, whatever else an authenticator lets users say of themselves.
    pub fn pod_uid(&self) -> Option<&str> {
        self.service_account()?;
        self.extra(POD_UID)
    }

    /// Namespace and name of the service account that asked.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.user.username.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')
    }

    /// The address that the API server itself saw: the last of `sourceIPs`.
    pub fn source_ip(&self) -> Option<&str> {
        self.source_ips.last().map(String::as_str)
    }

    /// Resource with subresource, as `pods/exec`; the path for non-resource requests.
    pub fn resource(&self) -> Cow<'_, str> {
        let object = self.object_ref.as_ref();
        let resource = object.and_then(|object| object.resource.as_deref());
        match (resource, object.and_then(|object| object.subresource.as_deref())) {
            (Some(resource), Some(subresource)) => format!("{resource}/{subresource}").into(),
            (Some(resource), None) => resource.into(),
            (None, _) => self.request_uri.split('?').next().unwrap_or_default().into(),
        }
    }

    /// Namespace and name of the service account that a TokenRequest mints for.
    pub fn minted_for(&self) -> Option<(&str, &str)> {
        let object = self.object_ref.as_ref().filter(|object| object.is_token_of_account())?;
        if self.verb != "create" {
            return None;
        }
        object.namespace.as_deref().zip(object.name.as_deref())
    }

    /// Whether the API server did what was asked; `None` while that is not known, and where it failed by
    /// itself (5xx): that says nothing of what was done until then.
    pub fn allowed(&self) -> Option<bool> {
        let code = self.response_status.as_ref().and_then(|status| status.code);
        match (self.decision(), code) {
            (Some("forbid"), _) | (_, Some(400..500)) => Some(false),
            (_, Some(500..)) => None,
            (Some("allow"), _) | (_, Some(_)) => Some(true),
            (_, None) => None,
        }
    }

    /// Whether what was asked is done or may be: a list that ended in a timeout was sent in part.
    pub fn may_be_done(&self) -> bool {
        self.allowed().unwrap_or(self.decision() == Some("allow"))
    }

    /// Whether `other` is of a later stage of the same request: by the time, and by the stage where that
    /// is the same.
    pub fn is_before(&self, other: &Self) -> bool {
        (self.stage_timestamp, self.stage) < (other.stage_timestamp, other.stage)
    }

    /// Takes over what a later stage of the same request tells of its outcome.
    pub fn take_outcome(&mut self, later: &Self) {
        self.stage = later.stage;
        self.stage_timestamp = later.stage_timestamp;
        if later.response_status.is_some() {
            self.response_status.clone_from(&later.response_status);
        }
        self.annotations.extend(later.annotations.clone());
    }

    /// `allow` or `forbid`, as the authorizer annotated it.
    pub fn decision(&self) -> Option<&str> {
        self.annotations.get("authorization.k8s.io/decision").map(String::as_str)
    }

    /// Whether the API server would not do it, or could not.
    pub fn was_refused(&self) -> bool {
        let code = self.response_status.as_ref().and_then(|status| status.code);
        self.decision() == Some("forbid") || code.is_some_and(|code| code >= 400)
    }
}

/// A line that may matter. Whether it does, the reader of the log cannot tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLine {
    /// The line, without its newline, bodies and overlong values.
    pub line: Box<[u8]>,
    /// Offset behind it.
    pub end: u64,
    /// When it was read.
    pub read_at: std::time::Instant,
    /// The audit side that has read it for this agent; `None` if this one has by itself.
    pub side: Option<Arc<str>>,
}

/// A record and when its line was read.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    /// The event.
    pub record: AuditRecord,
    /// When its line was read: start of the alert's latency.
    pub read_at: std::time::Instant,
    /// As of its line.
    pub side: Option<Arc<str>>,
    /// Whether it was taken before. It is not taken again, but whoever sends it waits for what became of it.
    pub is_repeated: bool,
}

impl ReadRecord {
    /// What the wall clock showed when the line was read, as it shows `now` now.
    pub fn read_wall(&self, now: Micros) -> Micros {
        now - Micros::from_duration(self.read_at.elapsed())
    }
}

/// What a source hands on at once: what may matter, and how far it has come.
#[derive(Debug)]
pub struct AuditBatch {
    /// Index of the source in the configuration.
    pub source: usize,
    /// Lines, in their order. The webhook has none: it has to decode its events.
    pub lines: Vec<ReadLine>,
    /// Records, in the order of their events.
    pub records: Vec<ReadRecord>,
    /// Greatest `stageTimestamp` seen so far, of lines that were skipped too.
    pub newest_stage: Option<Micros>,
    /// To be checkpointed once the alerts of `lines` are safe; `None` if the source has no place to
    /// go on from.
    pub position: Option<checkpoint::Position>,
    /// To be told once the alerts of this batch and of all before it are safe, and what other nodes ask of this
    /// batch is with the broker.
    pub acknowledge: Option<oneshot::Sender<()>>,
}

/// What a source shows of itself to readiness and `/statusz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Whether it can be read.
    pub state: SourceState,
    /// Greatest `stageTimestamp` seen.
    pub newest_stage: Option<Micros>,
    /// How far it has been read.
    pub position: Option<checkpoint::Position>,
    /// Boot clock, nanoseconds, at which the last look began that reached its end: all that was
    /// written before has been handed on. `None` until the first such look.
    pub complete_at_boot_ns: Option<u64>,
    /// All requests received until then were handed on, as the audit sides behind the broker say.
    pub answered_through: Option<Micros>,
    /// Number of the round of questions that this considers.
    #[serde(skip)]
    pub answered_round: u64,
}

impl SourceStatus {
    /// Whether the source is open: what readiness asks.
    pub fn is_open(&self) -> bool {
        self.state == SourceState::Open
    }
}

/// Whether a source can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Not tried yet.
    #[default]
    Starting,
    /// Being read.
    Open,
    /// Not there, looked for until it is; the text says so.
    Absent(String),
    /// Not readable, tried again until it is; the text says why.
    Waiting(String),
}

/// Go writes `null` for an absent slice, map or time: that is the empty value, not an error.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// As `or_default`, for a map of lists and the elements of these; one text is a list of one.
fn lists_of_texts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Texts {
        List(Vec<Option<String>>),
        One(String),
    }
    let Unique(map) = or_default::<D, Unique<Option<Texts>>>(deserializer)?;
    let list = |texts| match texts {
        Some(Texts::List(texts)) => texts.into_iter().flatten().collect(),
        Some(Texts::One(text)) => vec![text],
        None => Vec::new(),
    };
    Ok(map.into_iter().map(|(key, texts)| (key, list(texts))).collect())
}

/// A map in which no key is there twice: of two values nobody could say which one the API server meant.
#[derive(Debug)]
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map without a key that is there twice")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unique<T>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = members.next_entry()? {
                    if map.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key that is there twice"));
                    }
                }
                Ok(Unique(map))
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

fn http_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let code = Option::<i64>::deserialize(deserializer)?;
    Ok(code.and_then(|code| u16::try_from(code).ok()).filter(|code| *code != 0))
}

//! Exceptions: false positives that somebody has judged, so that a rule keeps quiet about them.
//!
//! [`Exceptions::swallowing`] is asked where an alert would be told. An exception matches if all
//! of its conditions do; a condition on a fact that is absent does not: silence must be earned by
//! what is known. `entry` reads and refuses them, `hits` counts what they swallow.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{RequestKind, catalogue::RuleId, glob::Glob};
use crate::{attribution::Grade, time::Micros};

mod entry;
pub mod hits;

pub(super) use entry::Entry;
pub use entry::ExceptionError;

/// The name of an exception. It stays the same when its file is loaded anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExceptionId(Arc<str>);

impl ExceptionId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExceptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of that which would be told. `None` is "not known", or "has none".
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// Name of the cluster.
    pub cluster: Option<&'a str>,
    /// Namespace of the pod, or of the service account that a token was minted for.
    pub namespace: Option<&'a str>,
    /// Name of the pod's controller.
    pub owner: Option<&'a str>,
    /// Service account of the pod, or the one that a token was minted for; the name alone.
    pub service_account: Option<&'a str>,
    /// Name of the pod whose token it is.
    pub pod: Option<&'a str>,
    /// Name of the container that the reader runs in.
    pub container: Option<&'a str>,
    /// Image of that container, as the pod names it.
    pub image: Option<&'a str>,
    /// Executable of the reader, a path.
    pub executable: Option<&'a str>,
    /// Command line of the reader.
    pub command: Option<&'a str>,
    /// User of the request as the audit log has it: for R2 the one that mints.
    pub user: Option<&'a str>,
    /// Who opened the session in the container; `None` where several may have.
    pub initiator: Option<&'a str>,
    /// User agent of the request.
    pub user_agent: Option<&'a str>,
    /// Verb of the request.
    pub verb: Option<&'a str>,
    /// Resource of the request, `secrets` or `pods/exec`.
    pub resource: Option<&'a str>,
    /// Address that the request came from: the last of the audit event's.
    pub source: Option<IpAddr>,
    /// How the token was opened.
    pub grade: Option<Grade>,
    /// Whether the reader entered with the container's main process.
    pub native: Option<bool>,
    /// Whether the request is the workload's own.
    pub request: Option<RequestKind>,
}

/// A text of a [`Subject`], by its name there and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Cluster,
    Namespace,
    Owner,
    ServiceAccount,
    Pod,
    Container,
    Image,
    Executable,
    Command,
    User,
    Initiator,
    UserAgent,
    Verb,
    Resource,
}

impl Field {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Namespace => "namespace",
            Self::Owner => "owner",
            Self::ServiceAccount => "service_account",
            Self::Pod => "pod",
            Self::Container => "container",
            Self::Image => "image",
            Self::Executable => "executable",
            Self::Command => "command",
            Self::User => "user",
            Self::Initiator => "initiator",
            Self::UserAgent => "user_agent",
            Self::Verb => "verb",
            Self::Resource => "resource",
        }
    }

    const fn of<'a>(self, subject: &Subject<'a>) -> Option<&'a str> {
        match self {
            Self::Cluster => subject.cluster,
            Self::Namespace => subject.namespace,
            Self::Owner => subject.owner,
            Self::ServiceAccount => subject.service_account,
            Self::Pod => subject.pod,
            Self::Container => subject.container,
            Self::Image => subject.image,
            Self::Executable => subject.executable,
            Self::Command => subject.command,
            Self::User => subject.user,
            Self::Initiator => subject.initiator,
            Self::UserAgent => subject.user_agent,
            Self::Verb => subject.verb,
            Self::Resource => subject.resource,
        }
    }

    /// Whether an attacker sets it as they like.
    const fn is_attackers(self) -> bool {
        matches!(self, Self::UserAgent | Self::Command | Self::Executable)
    }
}

/// One condition of an exception.
#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Text(Field, Glob),
    Source(IpNet),
    Grade(Grade),
    Native(bool),
    Request(RequestKind),
}

impl Condition {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Text(field, glob) => field.of(subject).is_some_and(|text| glob.matches(text)),
            // An IPv4 peer of a dual-stack server shows as ::ffff:a.b.c.d.
            Self::Source(net) => subject.source.is_some_and(|it| net.contains(&it.to_canonical())),
            Self::Grade(grade) => subject.grade == Some(*grade),
            Self::Native(native) => subject.native == Some(*native),
            Self::Request(kind) => subject.request == Some(*kind),
        }
    }

    /// Key and value as the file has them.
    fn as_pair(&self) -> (&'static str, String) {
        match self {
            Self::Text(field, glob) => (field.as_str(), glob.to_string()),
            Self::Source(net) => ("source", net.to_string()),
            Self::Grade(grade) => ("grade", grade.as_str().to_owned()),
            Self::Native(native) => ("native", native.to_string()),
            Self::Request(kind) => ("request", kind.as_str().to_owned()),
        }
    }

    /// Whether it keeps out anything that an attacker cannot choose.
    fn narrows(&self) -> bool {
        match self {
            Self::Text(field, glob) => !field.is_attackers() && !glob.matches_all(),
            Self::Source(net) => net.prefix_len() > 0,
            Self::Native(_) => false,
            Self::Grade(_) | Self::Request(_) => true,
        }
    }
}

/// The last day on which an exception holds, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    day: jiff::civil::Date,
    end: Micros,
}

impl Until {
    /// Whether that day is over.
    pub fn is_past(self, now: Micros) -> bool {
        now >= self.end
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.day.fmt(f)
    }
}

/// One exception.
#[derive(Clone, Debug, PartialEq)]
pub struct Exception {
    /// Its name.
    pub id: ExceptionId,
    /// The rule that keeps quiet.
    pub rule: RuleId,
    /// Why, in the words of whoever wrote it.
    pub reason: String,
    /// The last day on which it holds.
    pub until: Option<Until>,
    conditions: Vec<Condition>,
}

impl Exception {
    /// What must hold: keys and values of the file.
    pub fn conditions(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.conditions.iter().map(Condition::as_pair)
    }

    /// Whether its last day is over.
    pub fn is_past(&self, now: Micros) -> bool {
        self.until.is_some_and(|until| until.is_past(now))
    }

    fn swallows(&self, rule: RuleId, subject: &Subject<'_>, now: Micros) -> bool {
        self.rule == rule
            && !self.is_past(now)
            && self.conditions.iter().all(|condition| condition.holds(subject))
    }
}

/// All exceptions, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exceptions(Vec<Exception>);

impl Exceptions {
    /// The first exception that keeps this rule quiet about this subject. `now` is the time of what
    /// would be told, so that a replay gives what the run gave.
    pub fn swallowing(
        &self,
        rule: RuleId,
        subject: &Subject<'_>,
        now: Micros,
    ) -> Option<ExceptionId> {
        let exception = self.0.iter().find(|exception| exception.swallows(rule, subject, now))?;
        Some(exception.id.clone())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Exception> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests;

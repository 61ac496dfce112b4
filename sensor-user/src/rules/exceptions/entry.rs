//! An exception as it stands in the rules file, and what is refused there. Called by the rulebook.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::{civil::Date, tz::TimeZone};
use serde::Deserialize;

use super::{Condition, Exception, ExceptionId, Exceptions, Field, Until};
use crate::{
    attribution::Grade,
    rules::{
        RequestKind,
        catalogue::RuleId,
        glob::{Glob, GlobError},
    },
    time::Micros,
};

/// Names become labels of a metric.
const MAX_NAME: usize = 63;
/// More judged false positives than this are no longer judged; each is a label of a metric.
const MAX_EXCEPTIONS: usize = 500;

/// The keys of an exception.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rules) struct Entry {
    name: Option<String>,
    rule: RuleId,
    reason: Option<String>,
    until: Option<String>,
    cluster: Option<String>,
    namespace: Option<String>,
    owner: Option<String>,
    service_account: Option<String>,
    pod: Option<String>,
    container: Option<String>,
    image: Option<String>,
    executable: Option<String>,
    command: Option<String>,
    user: Option<String>,
    initiator: Option<String>,
    user_agent: Option<String>,
    verb: Option<String>,
    resource: Option<String>,
    source: Option<String>,
    grade: Option<Grade>,
    native: Option<bool>,
    request: Option<RequestKind>,
}

/// Why an exception is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExceptionError {
    /// Nothing to count it by.
    #[error("it has no name; give it one, by which what it swallows is counted")]
    Unnamed,
    /// A name that would make a bad label.
    #[error(
        "{name:?} is no name; use at most {MAX_NAME} letters, digits, dots, dashes and underscores"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Counted as one, they could not be told apart.
    #[error("another exception has this name; choose a different one")]
    SameName,
    /// Nobody will know why it is there.
    #[error("it has no reason; say why this is a false positive")]
    Unexplained,
    /// A pattern that cannot be meant.
    #[error("{field}: {source}")]
    Pattern {
        /// The key.
        field: &'static str,
        /// What is wrong with it.
        source: GlobError,
    },
    /// Not a network.
    #[error("source: {value:?} is no address and no network; write it as 10.0.0.0/8")]
    Source {
        /// What was given.
        value: String,
    },
    /// Not a date.
    #[error("until: {value:?} is no date; write the last day on which it holds as 2026-12-31")]
    Until {
        /// What was given.
        value: String,
    },
    /// Whoever attacks could choose to be excepted.
    #[error(
        "it names only what an attacker chooses (user_agent, command, executable, native), or \
         patterns that match everything; add what they cannot choose, as namespace or \
         service_account"
    )]
    AttackersChoice,
    /// Too many to count.
    #[error("it is one too many; there is room for {MAX_EXCEPTIONS}, merge some by patterns")]
    TooMany,
}

impl Exceptions {
    /// Adds an exception as it was read.
    ///
    /// # Errors
    /// It is refused; nothing was added.
    pub(in crate::rules) fn add(&mut self, entry: Entry) -> Result<(), ExceptionError> {
        let exception = entry.compile()?;
        if self.0.iter().any(|other| other.id == exception.id) {
            return Err(ExceptionError::SameName);
        }
        if self.0.len() == MAX_EXCEPTIONS {
            return Err(ExceptionError::TooMany);
        }
        self.0.push(exception);
        Ok(())
    }
}

impl Entry {
    /// Its name, if it has one.
    pub(in crate::rules) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn compile(self) -> Result<Exception, ExceptionError> {
        let conditions = self.conditions()?;
        let name = self.name.ok_or(ExceptionError::Unnamed)?;
        let in_label = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-' | '_');
        if !(1..=MAX_NAME).contains(&name.len()) || !name.chars().all(in_label) {
            return Err(ExceptionError::Name { name });
        }
        // One line, however it was written.
        let reason: Vec<&str> = self.reason.iter().flat_map(|it| it.split_whitespace()).collect();
        let reason = reason.join(" ");
        if reason.is_empty() {
            return Err(ExceptionError::Unexplained);
        }
        let until = self.until.map(|text| parse_until(&text)).transpose()?;
        if !conditions.iter().any(Condition::narrows) {
            return Err(ExceptionError::AttackersChoice);
        }
        let id = ExceptionId(Arc::from(name));
        Ok(Exception { id, rule: self.rule, reason, until, conditions })
    }

    fn conditions(&self) -> Result<Vec<Condition>, ExceptionError> {
        let mut conditions = Vec::new();
        for (field, pattern) in self.texts() {
            if let Some(pattern) = pattern {
                let glob = Glob::parse(pattern)
                    .map_err(|source| ExceptionError::Pattern { field: field.as_str(), source })?;
                conditions.push(Condition::Text(field, glob));
            }
        }
        if let Some(value) = &self.source {
            let net = parse_net(value);
            let net = net.ok_or_else(|| ExceptionError::Source { value: value.clone() })?;
            conditions.push(Condition::Source(net));
        }
        conditions.extend(self.grade.map(Condition::Grade));
        conditions.extend(self.native.map(Condition::Native));
        conditions.extend(self.request.map(Condition::Request));
        Ok(conditions)
    }

    fn texts(&self) -> [(Field, Option<&String>); 14] {
        [
            (Field::Cluster, self.cluster.as_ref()),
            (Field::Namespace, self.namespace.as_ref()),
            (Field::Owner, self.owner.as_ref()),
            (Field::ServiceAccount, self.service_account.as_ref()),
            (Field::Pod, self.pod.as_ref()),
            (Field::Container, self.container.as_ref()),
            (Field::Image, self.image.as_ref()),
            (Field::Executable, self.executable.as_ref()),
            (Field::Command, self.command.as_ref()),
            (Field::User, self.user.as_ref()),
            (Field::Initiator, self.initiator.as_ref()),
            (Field::UserAgent, self.user_agent.as_ref()),
            (Field::Verb, self.verb.as_ref()),
            (Field::Resource, self.resource.as_ref()),
        ]
    }
}

/// A network, or a single address.
fn parse_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn parse_until(text: &str) -> Result<Until, ExceptionError> {
    let parse = || {
        // The library takes more forms than this one.
        let day = text.parse::<Date>().ok().filter(|day| day.to_string() == text)?;
        let end = day.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok()?;
        Some(Until { day, end: Micros(end.timestamp().as_microsecond()) })
    };
    parse().ok_or_else(|| ExceptionError::Until { value: text.to_owned() })
}

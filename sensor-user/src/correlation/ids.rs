//! Ids that are hashes of facts: the same inputs give the same ids, in `run`, after a crash and in
//! a replay.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    attribution::{ProcessKey, TokenOpen},
    audit::{AuditRecord, Stage},
    rules::{Band, catalogue::RuleId},
};

/// What incidents without an exposure are told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What an attacker cannot choose freely; bounds how many there are.
    pub owner: String,
    /// The rest.
    pub rest: Vec<String>,
}

/// SHA-256 over length-prefixed parts, so that no two lists of parts run together.
struct Parts(Sha256);

impl Parts {
    fn new(domain: &str) -> Self {
        Self(Sha256::new()).part(domain.as_bytes())
    }

    fn part(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn key(self, key: &Key) -> Self {
        key.rest.iter().fold(self.part(key.owner.as_bytes()), |parts, it| parts.part(it.as_bytes()))
    }

    /// The first 16 bytes: enough for any number of events a cluster will see.
    fn finish(self) -> [u8; 16] {
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(self.0.finalize()) {
            *to = from;
        }
        id
    }

    fn finish_hex(self) -> String {
        hex(self.finish())
    }
}

fn hex(id: [u8; 16]) -> String {
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Identity of a request: the same for all its stages and for duplicates of them.
///
/// `auditID` alone is chosen by the client, so the authenticated user, the URI and the received
/// time are part of it. Impersonation is not: it is absent in `RequestReceived`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// The identity of the request that this stage belongs to.
    pub fn of(record: &AuditRecord) -> Self {
        let user = &record.user;
        let mut parts = Parts::new("request")
            .part(record.audit_id.as_bytes())
            .part(user.username.as_bytes())
            .part(user.uid.as_bytes());
        for group in &user.groups {
            parts = parts.part(b"group").part(group.as_bytes());
        }
        for (key, values) in &user.extra {
            parts = parts.part(b"extra").part(key.as_bytes());
            for value in values {
                parts = parts.part(value.as_bytes());
            }
        }
        let received = record.request_received_timestamp.0.to_le_bytes();
        Self(parts.part(record.request_uri.as_bytes()).part(&received).finish())
    }

    /// Its digits.
    pub fn hex(self) -> String {
        hex(self.0)
    }
}

/// Of a request that an exception of this rule swallowed.
pub fn swallowed_request(rule: RuleId, request: RequestId) -> String {
    Parts::new("swallowed-request").part(rule.as_str().as_bytes()).part(&request.0).finish_hex()
}

/// Of an open that an exception of this rule swallowed.
pub fn swallowed_open(rule: RuleId, boot_id: &str, open: &TokenOpen) -> String {
    Parts::new("swallowed-open")
        .part(rule.as_str().as_bytes())
        .part(boot_id.as_bytes())
        .part(&open.process.tgid.to_le_bytes())
        .part(&open.process.start_boottime_ns.to_le_bytes())
        .part(&open.inode.to_le_bytes())
        .part(&open.ktime_ns.to_le_bytes())
        .finish_hex()
}

/// `incident.id` of an R1 incident.
pub fn incident_id(
    cluster: &str,
    boot_id: &str,
    pod_uid: &str,
    entry: ProcessKey,
    first_open_ktime_ns: u64,
) -> String {
    Parts::new("incident")
        .part(cluster.as_bytes())
        .part(boot_id.as_bytes())
        .part(pod_uid.as_bytes())
        .part(&entry.tgid.to_le_bytes())
        .part(&entry.start_boottime_ns.to_le_bytes())
        .part(&first_open_ktime_ns.to_le_bytes())
        .finish_hex()
}

/// `incident.id` of what is read from outside.
pub fn outside_id(cluster: &str, boot_id: &str, reader: &Key, first_open_ktime_ns: u64) -> String {
    Parts::new("outside")
        .part(cluster.as_bytes())
        .part(boot_id.as_bytes())
        .key(reader)
        .part(&first_open_ktime_ns.to_le_bytes())
        .finish_hex()
}

/// `incident.id` of an incident without an exposure: of what joins it and its first request, and
/// for Elastic's query the stage, since each is an alert of its own there.
pub fn request_incident_id(
    cluster: &str,
    rule: RuleId,
    key: &Key,
    first: RequestId,
    stage: Option<Stage>,
) -> String {
    let parts = Parts::new("request-incident")
        .part(cluster.as_bytes())
        .part(rule.as_str().as_bytes())
        .key(key)
        .part(&first.0);
    match stage {
        Some(stage) => parts.part(format!("{stage:?}").as_bytes()).finish_hex(),
        None => parts.finish_hex(),
    }
}

/// `event.id` of what is told about an incident.
pub fn event_id(rule: &str, incident_id: &str, kind: &str, band: Band) -> String {
    Parts::new("event")
        .part(rule.as_bytes())
        .part(incident_id.as_bytes())
        .part(kind.as_bytes())
        .part(&[band.score()])
        .finish_hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(
            Parts::new("x").part(b"ab").part(b"c").finish(),
            Parts::new("x").part(b"a").part(b"bc").finish()
        );
    }

    #[test]
    fn an_event_id_differs_by_kind_and_band() {
        let id = |kind, band| event_id("r", "i", kind, band);
        assert_ne!(id("alert", Band::Medium), id("incident", Band::Medium));
        assert_ne!(id("alert", Band::Medium), id("alert", Band::High));
        assert_eq!(id("alert", Band::Medium), id("alert", Band::Medium));
        assert_eq!(id("alert", Band::Medium).len(), 32);
    }
}

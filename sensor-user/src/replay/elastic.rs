//! The two rules as Elasticsearch evaluates them, for people who compare: an EQL sequence by pod
//! name, and a query. Pure; fed in the order of time by `replay`.
//!
//! It need not remember much: an open that is older than the sequence's span can only be used up by
//! the next request without an alert, so it can as well be forgotten.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::opens::OpenDocument;
use crate::{
    audit::{AuditRecord, ObjectRef, POD_NAME, Stage},
    rules::token_request::is_systems,
    time::Micros,
};

/// `maxspan` of the sequence, inclusive.
pub const MAX_SPAN: Micros = Micros::from_secs(60);
/// Pods with a pending open; the one whose open is oldest gives way.
const PODS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8_191);

/// What a rule matched.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    /// A token was opened interactively, and the API server then answered that pod.
    Sequence {
        /// The pod's name: what the two have in common.
        name: String,
        /// The open.
        open: Arc<OpenDocument>,
        /// The answered request.
        request: Arc<AuditRecord>,
    },
    /// Somebody asked for a service account's token.
    TokenRequest {
        /// The request, at whatever stage.
        request: Arc<AuditRecord>,
    },
}

/// The state of the sequence: one pending open a pod name.
pub struct Elastic {
    pending: LruCache<String, Arc<OpenDocument>>,
    evicted: u64,
}

impl Default for Elastic {
    fn default() -> Self {
        Self { pending: LruCache::new(PODS), evicted: 0 }
    }
}

impl Elastic {
    /// Takes an open that fulfils the rule's conditions.
    pub fn open(&mut self, open: OpenDocument) {
        self.forget(open.time);
        let open = Arc::new(open);
        for name in &open.names {
            // What comes too late for its place must not undo what came after it.
            if self.pending.peek(name).is_some_and(|pending| pending.time > open.time) {
                continue;
            }
            if let Some((given_up, _)) = self.pending.push(name.clone(), Arc::clone(&open)) {
                self.evicted += u64::from(given_up != *name);
            }
        }
    }

    /// Takes an audit event. `has_user_name` tells an empty name from none.
    pub fn request(&mut self, record: AuditRecord, has_user_name: bool, matches: &mut Vec<Match>) {
        let request = Arc::new(record);
        self.forget(request.stage_timestamp);
        if is_answer(&request) {
            for name in request.extra_values(POD_NAME) {
                let open = self.pending.pop(name);
                match open {
                    // Nothing of it comes after an open that is yet to come.
                    Some(open) if open.time > request.stage_timestamp => {
                        self.pending.push(name.clone(), open);
                    }
                    Some(open) if request.stage_timestamp - open.time <= MAX_SPAN => {
                        let (name, request) = (name.clone(), Arc::clone(&request));
                        matches.push(Match::Sequence { name, open, request });
                    }
                    Some(_) | None => {}
                }
            }
        }
        if has_user_name && is_token_request(&request) {
            matches.push(Match::TokenRequest { request });
        }
    }

    /// Whether an event of this pod would use up an open.
    pub fn is_pending(&self, name: &str) -> bool {
        self.pending.contains(name)
    }

    /// Pending opens that gave way to others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Opens come in the order of time, so the oldest are those that were pushed first.
    fn forget(&mut self, now: Micros) {
        while self.pending.peek_lru().is_some_and(|(_, open)| now - open.time > MAX_SPAN) {
            self.pending.pop_lru();
        }
    }
}

fn is_answer(record: &AuditRecord) -> bool {
    matches!(record.stage, Stage::ResponseStarted | Stage::ResponseComplete)
}

fn is_token_request(record: &AuditRecord) -> bool {
    record.verb == "create"
        && record.object_ref.as_ref().is_some_and(ObjectRef::is_token_of_account)
        && !is_systems(&record.user.username)
}

#[cfg(test)]
mod tests;

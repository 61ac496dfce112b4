//! Who got into a pod: `exec`, `attach` and ephemeral containers, as the audit log saw them. Not a
//! trigger, only evidence: when a token is opened, the sessions of its pod are the candidates.

use std::{collections::VecDeque, num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::{Open, Settings, ids::RequestId};
use crate::{
    attribution::Grade,
    audit::{AuditRecord, Stage},
    time::Micros,
};

/// Sessions remembered of one pod: one pod's flood costs no other pod its evidence.
const PER_POD: usize = 16;
/// Pods remembered.
const PODS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(511);

/// A way into a pod that somebody asked for.
#[derive(Clone, Debug)]
pub struct Session {
    id: RequestId,
    /// Received time on the steady axis.
    time: Micros,
    /// The request, as of its latest stage.
    pub record: Arc<AuditRecord>,
}

/// The sessions of all pods, by namespace and name: that is all that such a request says of a pod.
#[derive(Debug)]
pub struct Sessions(LruCache<(String, String), VecDeque<Session>>);

impl Default for Sessions {
    fn default() -> Self {
        Self(LruCache::new(PODS))
    }
}

/// Whether the session asked for a terminal; `None` where the request does not say.
fn wants_terminal(record: &AuditRecord) -> Option<bool> {
    let query = record.request_uri.split_once('?')?.1;
    Some(query.split('&').any(|pair| pair == "tty=true" || pair == "tty=1"))
}

fn pod_of(record: &AuditRecord) -> Option<(&str, &str)> {
    let object = record.object_ref.as_ref().filter(|object| object.is_way_into_pod())?;
    object.namespace.as_deref().zip(object.name.as_deref())
}

impl Sessions {
    /// Remembers a session, or a later stage of one; one that was refused is none. `true` if it was
    /// granted and a restart has to know it.
    pub fn note(&mut self, record: &AuditRecord, time: Micros) -> bool {
        let Some((namespace, name)) = pod_of(record) else { return false };
        if record.was_refused() {
            self.forget_refused(record, namespace, name);
            return false;
        }
        let key = (namespace.to_owned(), name.to_owned());
        let sessions = self.0.get_or_insert_mut(key, VecDeque::new);
        let id = RequestId::of(record);
        if let Some(known) = sessions.iter_mut().find(|session| session.id == id) {
            // What the API server made of it comes with the later stages.
            let granted = record.stage != Stage::RequestReceived;
            let is_news = granted && known.record.stage == Stage::RequestReceived;
            if granted {
                known.record = Arc::new(record.clone());
            }
            return is_news;
        }
        if sessions.len() == PER_POD {
            // Somebody who asks much and is not answered must not cost those who got in.
            let unanswered = |it: &Session| it.record.stage == Stage::RequestReceived;
            let place = sessions.iter().position(unanswered).unwrap_or_default();
            sessions.remove(place);
        }
        let place = sessions.partition_point(|session| session.time <= time);
        sessions.insert(place, Session { id, time, record: Arc::new(record.clone()) });
        record.stage != Stage::RequestReceived
    }

    /// Those into a pod, oldest first.
    pub fn of(&self, namespace: &str, name: &str) -> Vec<Arc<AuditRecord>> {
        let sessions = self.0.peek(&(namespace.to_owned(), name.to_owned()));
        sessions.into_iter().flatten().map(|session| Arc::clone(&session.record)).collect()
    }

    /// Whether this is one that is remembered.
    pub fn holds(&self, record: &AuditRecord) -> bool {
        let Some((namespace, name)) = pod_of(record) else { return false };
        let sessions = self.0.peek(&(namespace.to_owned(), name.to_owned()));
        let id = RequestId::of(record);
        sessions.into_iter().flatten().any(|session| session.id == id)
    }

    fn forget_refused(&mut self, record: &AuditRecord, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(sessions) = self.0.peek_mut(&key) else { return };
        let id = RequestId::of(record);
        sessions.retain(|session| session.id != id);
        if sessions.is_empty() {
            self.0.pop(&key);
        }
    }

    /// Who may have opened the token, best first: sessions that were not refused, begun before the
    /// open, with a terminal if the open has one, the latest first.
    pub fn candidates(
        &self,
        Open { open, skew_us, .. }: &Open,
        namespace: &str,
        pod_name: &str,
        settings: &Settings,
    ) -> Vec<Arc<AuditRecord>> {
        let key = (namespace.to_owned(), pod_name.to_owned());
        let sessions = self.0.peek(&key).into_iter().flatten();
        let terminal = match open.grade {
            Grade::Interactive | Grade::Terminal => Some(true),
            Grade::Exec => Some(false),
            // The token was not opened from within, or not by way of a session.
            Grade::Outside | Grade::Foreign | Grade::Workload => return Vec::new(),
        };
        let mut fitting: Vec<&Session> = sessions
            .filter(|session| {
                let age = open.time - session.time;
                !session.record.was_refused() && -skew_us <= age.0 && age <= settings.session_memory
            })
            .collect();
        fitting.sort_by_key(|session| {
            let asked = wants_terminal(&session.record);
            let contradicts = asked.is_some() && asked != terminal;
            (contradicts, std::cmp::Reverse(session.time))
        });
        fitting.into_iter().map(|session| Arc::clone(&session.record)).collect()
    }

    /// Forgets what began before `horizon`.
    pub fn forget(&mut self, horizon: Micros) {
        let mut empty = Vec::new();
        for (pod, sessions) in &mut self.0 {
            sessions.retain(|session| session.time >= horizon);
            if sessions.is_empty() {
                empty.push(pod.clone());
            }
        }
        for pod in empty {
            self.0.pop(&pod);
        }
    }
}

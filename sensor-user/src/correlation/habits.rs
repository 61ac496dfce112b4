//! What requests a workload makes by itself, so that those of a visitor stand out. Of each pod, and
//! of its owner and image across pods, it remembers user agents, verbs and resources for 24 hours.

use std::{collections::HashMap, num::NonZeroUsize};

use lru::LruCache;

use super::Request;
use crate::{attribution::pods::Pod, audit::AuditRecord, rules::RequestKind, time::Micros};

/// How long something that was seen counts.
const REMEMBERED: Micros = Micros::from_secs(24 * 3_600);
/// Different words of one kind that are remembered of one workload.
const WORDS: usize = 64;
/// Longest word remembered, bytes; a longer user agent is known by its beginning.
const WORD: usize = 256;
/// Pods, and as many workloads.
const PODS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

/// The memory.
#[derive(Debug)]
pub struct Habits {
    pods: LruCache<String, Habit>,
    workloads: LruCache<Workload, Habit>,
    /// Since when nothing was missed or forgotten.
    since: Option<Micros>,
    /// How long a pod must have been watched before what was not seen is new.
    learning: Micros,
}

/// What outlives a pod: its owner with the images it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Workload {
    namespace: Box<str>,
    owner: Box<str>,
    images: Vec<Box<str>>,
}

#[derive(Debug, Default)]
struct Habit {
    agents: Words,
    verbs: Words,
    resources: Words,
}

/// Words with the times at which they were first and last seen.
#[derive(Debug, Default)]
struct Words(HashMap<Box<str>, (Micros, Micros)>);

impl Habits {
    /// Nothing yet. What was not seen is new where a pod was watched for at least `learning`.
    pub fn new(learning: Micros) -> Self {
        let (pods, workloads) = (LruCache::new(PODS), LruCache::new(PODS));
        Self { pods, workloads, since: None, learning }
    }

    /// Watching begins, if it has not.
    pub fn begin(&mut self, now: Micros) {
        self.since.get_or_insert(now);
    }

    /// Notes a request that no exposure explains.
    pub fn learn(&mut self, uid: &str, pod: Option<&Pod>, record: &AuditRecord, time: Micros) {
        if self.pods.len() == PODS.get() && !self.pods.contains(uid) {
            self.since = self.since.max(Some(time));
        }
        self.pods.get_or_insert_mut(uid.to_owned(), Habit::default).note(record, time);
        if let Some(workload) = pod.and_then(Workload::of) {
            self.workloads.get_or_insert_mut(workload, Habit::default).note(record, time);
        }
    }

    /// Whether the workload made requests like this one before `exposed`.
    pub fn kind(&self, request: &Request, exposed: Micros) -> RequestKind {
        let (pod, record) = (request.pod.as_deref(), &request.record);
        let earlier = pod.and_then(Workload::of).and_then(|it| self.workloads.peek(&it));
        let habits = [request.pod_uid().and_then(|uid| self.pods.peek(uid)), earlier];
        if habits.into_iter().flatten().any(|habit| habit.has(record, exposed)) {
            return RequestKind::Own;
        }
        let born = pod.and_then(|pod| pod.created);
        let since = self.since.max(born).filter(|_| self.since.is_some());
        match since {
            Some(since) if exposed - since >= self.learning => RequestKind::New,
            _ => RequestKind::Unknown,
        }
    }
}

impl Workload {
    fn of(pod: &Pod) -> Option<Self> {
        let owner = pod.owner.as_ref()?;
        Some(Self {
            namespace: pod.namespace.clone(),
            owner: format!("{}/{}", owner.kind, owner.name).into(),
            images: pod.containers.iter().map(|it| it.image.clone()).collect(),
        })
    }
}

impl Habit {
    fn note(&mut self, record: &AuditRecord, time: Micros) {
        self.agents.note(record.user_agent.as_deref().unwrap_or_default(), time);
        self.verbs.note(&record.verb, time);
        self.resources.note(&record.resource(), time);
    }

    fn has(&self, record: &AuditRecord, before: Micros) -> bool {
        self.agents.has(record.user_agent.as_deref().unwrap_or_default(), before)
            && self.verbs.has(&record.verb, before)
            && self.resources.has(&record.resource(), before)
    }
}

impl Words {
    fn note(&mut self, word: &str, time: Micros) {
        let word = clip(word);
        if let Some((first, last)) = self.0.get_mut(word) {
            // What was not seen for a day begins anew.
            *first = if time - *last > REMEMBERED { time } else { time.min(*first) };
            *last = time.max(*last);
            return;
        }
        if self.0.len() >= WORDS {
            let oldest = self.0.iter().min_by_key(|(word, (_, last))| (*last, (*word).clone()));
            if let Some(word) = oldest.map(|(word, _)| word.clone()) {
                self.0.remove(&word);
            }
        }
        self.0.insert(word.into(), (time, time));
    }

    fn has(&self, word: &str, before: Micros) -> bool {
        self.0
            .get(clip(word))
            .is_some_and(|(first, last)| *first < before && *last >= before - REMEMBERED)
    }
}

fn clip(word: &str) -> &str {
    word.get(..word.floor_char_boundary(WORD)).unwrap_or_default()
}

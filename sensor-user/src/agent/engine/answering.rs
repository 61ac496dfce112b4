//! Answering what other nodes ask, from the audit sources of this agent: lines as they are read, lines that
//! were read before somebody asked, and where these do not reach back the log files once more. A part of
//! `engine`.
//!
//! Who wants a record is decided in [`Asked`], who may know of a session in [`Places`].

use std::{collections::HashSet, num::NonZeroUsize, path::PathBuf, sync::Arc};

use lru::LruCache;
use tokio::{
    sync::{mpsc, watch},
    task,
};
use tracing::warn;

use self::{outbox::Outbox, places::Places};
use crate::{
    audit::{
        AuditRecord, NODE_NAME,
        scan::{Interest as Lines, Node, Pods, Scan, Users, classify},
        tail::search,
    },
    correlation::{Correlator, journal::Journal},
    nats::{
        NatsMetrics,
        answering::{Answer, Asks, Reached},
        asked::{Asked, PodName, Wanted, name_of, pod_name},
        interest::{Question, Refused},
        progress::{Covered, Revision},
        recent::Recent,
    },
    time::Micros,
};

/// Records that may wait for the broker. Beyond that they are found again in the log.
pub(super) const QUEUE: usize = 4_096;
/// What nodes ask that may wait for the engine.
pub(super) const ASKS: usize = 64;
/// Names of pods of which somebody was told who got in.
const INTRODUCED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Records of a search that may wait for the engine.
const FOUND: usize = 64;

/// What is asked, what could be asked, and what is on its way.
pub(super) struct Answering {
    /// This agent, as a word.
    own: String,
    /// Whether it asks for itself, which is answered without a broker.
    asks_itself: bool,
    asked: Asked,
    recent: Recent,
    /// Nodes that have been told who got into pods of a name.
    introduced: LruCache<(String, PodName), ()>,
    places: Places,
    /// Log files that can be searched.
    logs: Vec<PathBuf>,
    /// Whether there is a source that cannot.
    unsearchable: bool,
    asks: mpsc::Receiver<Asks>,
    outbox: Outbox,
    /// Revision of the bucket up to which is known what is asked.
    seen: Revision,
    to_search: Asked,
    searching: Option<Search>,
    /// Searches that were begun.
    searches: u64,
    /// What is to be said next.
    next: Option<Next>,
    reached: watch::Sender<Option<Reached>>,
    metrics: NatsMetrics,
}

/// A search that goes on.
struct Search {
    found: mpsc::Receiver<AuditRecord>,
    /// What it is for.
    asked: Arc<Asked>,
}

/// What may be said once all is done that had to be when it was true. What is asked meanwhile is no part of it: who
/// always asks for more must not keep it from being said.
struct Next {
    reached: Reached,
    /// So many searches have to be over.
    searches: u64,
    /// So many names have to be looked up.
    lookups: u64,
    /// Then, so many records have to be with the broker.
    queued: Option<u64>,
}

/// Something that happened.
pub(super) enum Event {
    /// A node has said what it asks.
    Asked(Asks),
    /// A search found a record.
    Found(Box<AuditRecord>),
    /// A search came to its end.
    Searched,
    /// It was looked up where the pod of a name is.
    Placed(places::Found),
}

/// Where it begins: this node, its sources, and the ends of channels.
pub(super) struct Ends {
    pub(super) own: String,
    pub(super) asks_itself: bool,
    pub(super) logs: Vec<PathBuf>,
    pub(super) unsearchable: bool,
    pub(super) look_back: usize,
    pub(super) places: Places,
    pub(super) asks: mpsc::Receiver<Asks>,
    pub(super) queue: mpsc::Sender<Answer>,
    pub(super) done: watch::Receiver<u64>,
    pub(super) reached: watch::Sender<Option<Reached>>,
    pub(super) metrics: NatsMetrics,
}

impl Answering {
    pub(super) fn new(ends: Ends, now: Micros) -> Self {
        let Ends {
            own,
            asks_itself,
            logs,
            unsearchable,
            look_back,
            places,
            asks,
            queue,
            done,
            reached,
            metrics,
        } = ends;
        Self {
            own,
            asks_itself,
            asked: Asked::default(),
            recent: Recent::new(look_back, now),
            introduced: LruCache::new(INTRODUCED),
            places,
            logs,
            unsearchable,
            asks,
            outbox: Outbox::new(queue, done),
            seen: Revision::default(),
            to_search: Asked::default(),
            searching: None,
            searches: 0,
            next: None,
            reached,
            metrics,
        }
    }

    /// What happens next; a search goes on while there is room for what it finds. Cancelling loses nothing.
    pub(super) async fn event(&mut self) -> Option<Event> {
        let Self { asks, searching, places, outbox, .. } = self;
        let has_room = outbox.has_room();
        let found = async {
            match searching {
                Some(search) if has_room => search.found.recv().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            asks = asks.recv() => asks.map(Event::Asked),
            found = found => Some(found.map_or(Event::Searched, |it| Event::Found(Box::new(it)))),
            found = places.found() => Some(Event::Placed(found)),
        }
    }

    /// Takes what happened; times are wall clock.
    pub(super) fn take(&mut self, event: Event, known: &Correlator<impl Journal>, now: Micros) {
        match event {
            Event::Asked(asks) => self.hear(asks, known, now),
            Event::Found(record) => {
                if let Some(search) = &self.searching {
                    let wanted = search.asked.wanted(&record);
                    self.send_to(wanted, &record, known);
                }
            }
            Event::Searched => {
                self.searching = None;
                self.search();
            }
            Event::Placed(found) => {
                if let Some(name) = self.places.take(found, now) {
                    self.introduce_all(&name, known);
                }
            }
        }
    }

    /// Whether anybody asks for requests of this pod.
    pub(super) fn wants_pod(&self, uid: &str) -> bool {
        self.asked.has_pod(uid)
    }

    /// The same of a service account, by user name.
    pub(super) fn wants_account(&self, user: &str) -> bool {
        self.asked.has_account(user)
    }

    /// Records that are for the broker so far, up to the last that is no canary.
    pub(super) fn due(&self) -> u64 {
        self.outbox.due()
    }

    /// How many of them are with the broker, and all before them.
    pub(super) fn done(&self) -> u64 {
        self.outbox.done()
    }

    /// Whether there are records that found no room, and are not with the broker yet.
    pub(super) fn is_behind(&self) -> bool {
        self.outbox.is_behind()
    }

    /// Keeps a line that was read then, for those who ask later.
    pub(super) fn keep(&mut self, line: Box<[u8]>, read: Micros) {
        self.recent.push(line, read);
    }

    /// Sends a record to those who want it.
    pub(super) fn answer(&mut self, record: &AuditRecord, known: &Correlator<impl Journal>) {
        let wanted = self.asked.wanted(record);
        self.send_to(wanted, record, known);
        if let Some(name) = self.asked.way_into(record) {
            // A pod that had this name before may have been elsewhere. Who was refused may have been told of already.
            let received = record.request_received_timestamp;
            if record.was_refused() || self.places.is_known(&name, received) {
                self.tell_session(&name, record);
            } else {
                // By then it is among the known ones: also for who was told of others, should the lookup fail.
                for node in self.who_asks_about(&name) {
                    self.introduced.pop(&(node, name.clone()));
                }
                self.places.look_up(&name);
            }
        }
        for node in self.asked.canary_of(record) {
            self.send_canary(node, record);
        }
    }

    /// Sends a node its audit canary. Who posted it does not wait for that: a broker that is away would keep
    /// API servers from posting.
    fn send_canary(&mut self, node: String, record: &AuditRecord) {
        let payload = serde_json::to_vec(record).unwrap_or_default();
        if !self.outbox.give_canary(Answer::canary(node, &self.own, record, payload)) {
            self.metrics.deferred.inc();
        }
    }

    fn send_to(&mut self, wanted: Wanted, record: &AuditRecord, known: &Correlator<impl Journal>) {
        self.metrics.refused(Refused::Node).inc_by(wanted.foreign);
        let is_its_own = record.extra(NODE_NAME).is_some();
        for node in wanted.nodes {
            // First who got in: the alert begins with the record that follows.
            if let Some(name) = pod_name(record) {
                self.introduce(&node, &name, is_its_own, known);
            }
            self.send(node, record);
        }
    }

    /// Tells a node once who got into a pod, as far as it may know; what is not known of that is looked up. That the
    /// pod is its own is known from claims of its token, where these name the node.
    fn introduce(
        &mut self,
        node: &str,
        name: &PodName,
        is_its_own: bool,
        known: &Correlator<impl Journal>,
    ) {
        let key = (node.to_owned(), name.clone());
        if self.introduced.get(&key).is_some() {
            return;
        }
        let mut has_room = true;
        for session in known.sessions_into(&name.0, &name.1) {
            let received = session.request_received_timestamp;
            if !is_its_own && !self.places.is_known(name, received) {
                return self.places.look_up(name);
            }
            if is_its_own || self.places.may_hear(node, name, received) {
                has_room &= self.send(node.to_owned(), &session);
            }
        }
        if has_room {
            self.introduced.put(key, ());
        }
    }

    /// The same to all that ask about pods of a name, now that it is known where that pod is.
    fn introduce_all(&mut self, name: &PodName, known: &Correlator<impl Journal>) {
        for node in self.who_asks_about(name) {
            self.introduced.put((node, name.clone()), ());
        }
        for session in known.sessions_into(&name.0, &name.1) {
            self.tell_session(name, &session);
        }
    }

    /// Nodes that ask about pods of a name.
    fn who_asks_about(&self, name: &PodName) -> HashSet<String> {
        self.asked.of_name(name).map(|(node, _)| node.to_owned()).collect()
    }

    /// Tells who asks about pods of this name of a session into one, as far as is known who may know.
    fn tell_session(&mut self, name: &PodName, session: &AuditRecord) {
        let received = session.request_received_timestamp;
        // Who got in did so before.
        let asking = self.asked.of_name(name).filter(|(_, it)| received <= it.until);
        let nodes: HashSet<String> = asking.map(|(node, _)| node.to_owned()).collect();
        for node in nodes {
            if self.places.may_hear(&node, name, received) && !self.send(node.clone(), session) {
                self.introduced.pop(&(node, name.clone()));
            }
        }
    }

    /// Gives a record to the queue; whether it found room there.
    fn send(&mut self, node: String, record: &AuditRecord) -> bool {
        // A record has a JSON form: it was made of one.
        let payload = serde_json::to_vec(record).unwrap_or_default();
        let answer = Answer::new(node, record, payload);
        let has_room = self.outbox.give(answer, record.request_received_timestamp);
        if !has_room {
            self.metrics.deferred.inc();
        }
        has_room
    }

    /// Hears what a node asks, and with it all that others have said meanwhile: one look back does.
    fn hear(&mut self, first: Asks, known: &Correlator<impl Journal>, now: Micros) {
        let mut new = Asked::default();
        let mut next = Some(first);
        while let Some(Asks { node, question, revision }) = next {
            if self.seen.bucket != revision.bucket {
                // Answers that waited may be gone, too: all that is asked is to be answered again.
                self.asked = Asked::default();
                self.introduced.clear();
            }
            self.seen = revision;
            if !question.is_empty() && !self.asked.has_room(&node) {
                self.metrics.refused(Refused::Bounds).inc();
            } else if node != self.own || !self.asks_itself {
                let Question { interests, canary } = self.asked.take(&node, question, now);
                self.to_search.drop_unasked(&node, &self.asked);
                if let Some(run) = canary {
                    new.add_canary(&node, run);
                }
                for interest in interests {
                    if let Some(name) = name_of(&interest) {
                        self.introduced.pop(&(node.clone(), name));
                    }
                    new.add(&node, &interest);
                }
            }
            next = self.asks.try_recv().ok();
        }
        self.look_back(&mut new, known);
    }

    /// Answers from what was read before, and first with who got in.
    fn look_back(&mut self, new: &mut Asked, known: &Correlator<impl Journal>) {
        if new.is_empty() {
            return;
        }
        let named = new.interests().filter_map(|(node, it)| Some((node, name_of(it)?)));
        for (node, name) in named.collect::<HashSet<_>>() {
            self.introduce(node, &name, false, known);
        }
        let mut records: Vec<AuditRecord> = with_lines_about(new, |lines| {
            let record = |line| match classify(line, lines) {
                Scan::Record(record) => Some(record),
                Scan::Skip | Scan::Bad(_) => None,
            };
            // A canary may have been asked for before this node was.
            let earliest = new.interests().map(|(_, interest)| interest.from).min();
            let from = earliest.filter(|_| !new.has_canary()).unwrap_or(Micros::MIN);
            self.recent.lines_since(from).filter_map(record).collect()
        });
        // What finds no room is what was received last: the next time begins with it.
        records.sort_by_key(|record| record.request_received_timestamp);
        for record in records {
            self.send_to(new.wanted(&record), &record, known);
            for node in new.canary_of(&record) {
                self.send_canary(node, &record);
            }
        }
        for (node, interest) in new.interests() {
            if self.recent.reaches(interest.from) {
                continue;
            }
            if self.unsearchable {
                self.metrics.beyond_reach.inc();
            }
            if !self.logs.is_empty() {
                self.to_search.add(node, interest);
            }
        }
        self.search();
    }

    /// Begins to search the log files, if that has to be and is not going on.
    fn search(&mut self) {
        if self.searching.is_some() || self.to_search.is_empty() {
            return;
        }
        let asked = Arc::new(std::mem::take(&mut self.to_search));
        let logs = self.logs.clone();
        let (sender, found) = mpsc::channel(FOUND);
        self.searching = Some(Search { found, asked: Arc::clone(&asked) });
        self.searches += 1;
        self.metrics.searches.inc();
        let beyond_reach = self.metrics.beyond_reach.clone();
        task::spawn_blocking(move || {
            let from = asked.interests().map(|(_, it)| it.from).min().unwrap_or_default();
            let mut take = |record: Option<AuditRecord>| match record {
                Some(record) => sender.blocking_send(record).is_ok(),
                None => !sender.is_closed(),
            };
            for path in &logs {
                let searched =
                    with_lines_about(&asked, |lines| search::search(path, from, lines, &mut take));
                if let Err(why) = searched {
                    beyond_reach.inc_by(asked.pods() as u64);
                    warn!(path = %path.display(), why, "requests of before are not looked for");
                }
            }
        });
    }

    /// Once a second: forgets what is over, and says how far all sources are. Times are wall clock.
    pub(super) fn pass_time(
        &mut self,
        is_any_open: bool,
        through: Option<Micros>,
        last_event: Option<Micros>,
        now: Micros,
        known: &Correlator<impl Journal>,
    ) {
        if let Some(since) = self.outbox.again() {
            self.look_back(&mut self.asked.since(since), known);
            self.outbox.was_given_again();
            // What is to be done before something may be said is more by now.
            self.next = None;
        }
        if !is_any_open {
            return;
        }
        self.asked.forget(now);
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.interests.set(gauge(self.asked.pods()));
        self.metrics.look_back_bytes.set(gauge(self.recent.bytes()));
        let Some(through) = through else {
            // One source has not begun. The others answer, and how far all are is not known.
            self.reached.send_if_modified(|reached| {
                let is_first = reached.is_none();
                reached.get_or_insert(Reached { covered: None });
                is_first
            });
            return;
        };
        let next = self.next.get_or_insert_with(|| {
            let covered = Covered { through, seen: self.seen, last_event, sends_canaries: true };
            Next {
                reached: Reached { covered: Some(covered) },
                searches: self.searches + u64::from(!self.to_search.is_empty()),
                lookups: self.places.begun(),
                queued: None,
            }
        });
        let searched = self.searches - u64::from(self.searching.is_some());
        let is_settled = searched >= next.searches
            && self.places.ended() >= next.lookups
            && !self.outbox.is_deferred();
        if is_settled {
            next.queued.get_or_insert(self.outbox.queued());
        }
        if next.queued.is_some_and(|queued| self.outbox.taken() >= queued) {
            self.reached.send_replace(Some(next.reached));
            self.next = None;
        }
    }
}

/// Calls `f` with the lines that may be about what is asked.
fn with_lines_about<T>(asked: &Asked, f: impl FnOnce(&Lines<'_>) -> T) -> T {
    let has_pod = |uid: &str| asked.has_pod(uid);
    let has_account = |user: &str| asked.has_account(user);
    f(&Lines {
        pods: Pods::OfNode(Node { name: "", has_pod: &has_pod, has_account: &has_account }),
        accounts: Users::None,
        sessions: false,
        token_requests: Users::None,
        canaries: asked.has_canary(),
        received_may_lack: false,
    })
}

mod outbox;
pub(super) mod places;
#[cfg(test)]
mod tests;

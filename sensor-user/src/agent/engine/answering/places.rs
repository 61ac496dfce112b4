//! Who may be told who got into a pod: the node that this pod is on, as the Kubernetes API says. A session names a
//! pod and no uid, and whoever asks may name any. The one place that decides that. A part of `answering`.
//!
//! Without an API to ask whoever asks is believed.

use std::{
    collections::{HashSet, VecDeque},
    num::NonZeroUsize,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use lru::LruCache;
use tokio::sync::{OnceCell, mpsc};
use tracing::warn;

use crate::{
    api::{Access, ApiClient, Place},
    nats::{NatsMetrics, asked::PodName, names},
    time::Micros,
};

/// Names of which is remembered where the pod is.
const KNOWN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Names that may wait to be looked up.
const WAITING: usize = 4_096;
/// Requests to the API at once.
const AT_ONCE: usize = 8;
/// How often is said that the API does not tell.
const SAID: Duration = Duration::from_mins(1);

/// What was found out, if it could be.
pub(super) type Found = (PodName, Result<Option<Place>, String>);

/// Where pods are, and what is yet to be found out.
pub(in super::super) struct Places {
    lookups: Option<Lookups>,
    known: LruCache<PodName, Known>,
}

/// The pod that had this name then, if one did.
struct Known {
    place: Option<Place>,
    /// Wall clock.
    then: Micros,
}

struct Lookups {
    asked: mpsc::Sender<PodName>,
    found: mpsc::Receiver<Found>,
    waiting: VecDeque<PodName>,
    /// Those that wait, and those that are asked for.
    pending: HashSet<PodName>,
    begun: u64,
    ended: u64,
    /// When it was last said that the API does not tell.
    said: Option<Instant>,
    metrics: NatsMetrics,
}

/// The other ends: what is to be looked up, and where it goes.
pub(in super::super) struct LookupEnds {
    pub(super) asked: mpsc::Receiver<PodName>,
    pub(super) found: mpsc::Sender<Found>,
}

impl Places {
    /// That believe whoever asks.
    pub(in super::super) fn anywhere() -> Self {
        Self { lookups: None, known: LruCache::new(KNOWN) }
    }

    /// That are looked up at the other ends.
    pub(in super::super) fn looked_up(metrics: NatsMetrics) -> (Self, LookupEnds) {
        // What waits does so here.
        let (asked, to_ask) = mpsc::channel(1);
        let (answer, found) = mpsc::channel(AT_ONCE);
        let lookups = Lookups {
            asked,
            found,
            waiting: VecDeque::new(),
            pending: HashSet::new(),
            begun: 0,
            ended: 0,
            said: None,
            metrics,
        };
        let places = Self { lookups: Some(lookups), known: LruCache::new(KNOWN) };
        (places, LookupEnds { asked: to_ask, found: answer })
    }

    /// Whether it is known where the pod was that had this name then.
    pub(super) fn is_known(&mut self, name: &PodName, then: Micros) -> bool {
        self.lookups.is_none() || self.known.get(name).is_some_and(|known| then <= known.then)
    }

    /// Whether a node may hear of a session into a pod of this name, asked for then, by what is known of it.
    pub(super) fn may_hear(&mut self, node: &str, name: &PodName, received: Micros) -> bool {
        self.lookups.is_none()
            || self.known.get(name).is_some_and(|known| known.may_hear(node, received))
    }

    /// Begins to find out where the pod of a name is now.
    pub(super) fn look_up(&mut self, name: &PodName) {
        let Some(lookups) = &mut self.lookups else { return };
        if lookups.pending.contains(name) {
            return;
        }
        if lookups.waiting.len() == WAITING {
            lookups.fail("too many are to be looked up");
            return;
        }
        lookups.pending.insert(name.clone());
        lookups.waiting.push_back(name.clone());
        lookups.begun += 1;
    }

    /// Lookups that were begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.lookups.as_ref().map_or(0, |lookups| lookups.begun)
    }

    /// How many of them have ended. They do in their order.
    pub(super) fn ended(&self) -> u64 {
        self.lookups.as_ref().map_or(0, |lookups| lookups.ended)
    }

    /// The next name that was looked up; never, if none is. Cancelling loses nothing.
    pub(super) async fn found(&mut self) -> Found {
        let Some(lookups) = &mut self.lookups else { return std::future::pending().await };
        loop {
            let is_waiting = !lookups.waiting.is_empty();
            tokio::select! {
                Ok(room) = lookups.asked.reserve(), if is_waiting => {
                    if let Some(name) = lookups.waiting.pop_front() {
                        room.send(name);
                    }
                }
                Some(found) = lookups.found.recv() => return found,
                // Who looks up is gone, which ends the agent.
                else => std::future::pending().await,
            }
        }
    }

    /// Takes what was found out then; the name, if it was.
    pub(super) fn take(&mut self, (name, found): Found, then: Micros) -> Option<PodName> {
        let lookups = self.lookups.as_mut()?;
        lookups.pending.remove(&name);
        lookups.ended += 1;
        match found {
            Ok(place) => {
                self.known.put(name.clone(), Known { place, then });
                Some(name)
            }
            Err(why) => {
                lookups.fail(&why);
                None
            }
        }
    }
}

impl Known {
    fn may_hear(&self, node: &str, received: Micros) -> bool {
        let Some(Place { node: found, since }) = &self.place else {
            // It was of one that is gone.
            return true;
        };
        // Or of one that was there before.
        received < *since || found.as_deref().is_some_and(|it| names::word(it) == node)
    }
}

impl Lookups {
    fn fail(&mut self, why: &str) {
        self.metrics.unplaced.inc();
        if self.said.is_none_or(|said| said.elapsed() >= SAID) {
            self.said = Some(Instant::now());
            warn!(why, "no node is told who got into a pod, as it is not known where that is");
        }
    }
}

impl LookupEnds {
    /// Looks up, in order, until nobody asks any more.
    pub(in super::super) async fn serve(self, access: Access) {
        let Self { mut asked, found } = self;
        // A credential that was fine when the agent started may be gone for a while.
        let client = OnceCell::new();
        let look_up = async |name: PodName| {
            let opened = client.get_or_try_init(|| ApiClient::open(&access)).await;
            let place = match opened {
                Ok(client) => client.place(&name.0, &name.1).await,
                Err(error) => Err(error.to_string()),
            };
            (name, place)
        };
        let names = stream::poll_fn(|context| asked.poll_recv(context));
        let mut places = pin!(names.map(look_up).buffered(AT_ONCE));
        while let Some(place) = places.next().await {
            if found.send(place).await.is_err() {
                return;
            }
        }
    }
}

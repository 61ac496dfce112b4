//! Opens whose documents name their pod and not its uid. They wait for requests of a pod of that name:
//! each uid that asks within the window gets a copy, just before its first request.
//!
//! What is done here follows the order of event time alone. Called by the live semantics, in turn.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::{correlation::Open, time::Micros};

/// Names at once, and of each as many opens and uids as below.
const NAMES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
const OPENS: usize = 16;
const UIDS: usize = 8;

/// Namespace and name of a pod.
pub(super) type PodName = (Box<str>, Box<str>);

/// Those opens.
#[derive(Debug)]
pub(super) struct ByName {
    names: LruCache<PodName, Named>,
    window: Micros,
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Named {
    opens: Vec<Waiting>,
    /// Uids that asked, each with the last time.
    asked: Vec<(String, Micros)>,
}

#[derive(Debug)]
struct Waiting {
    open: Open,
    /// Uids that have it.
    given: Vec<String>,
}

impl Waiting {
    fn time(&self) -> Micros {
        self.open.open.time
    }

    /// The open as that of a pod; without one of the name alone, which no request bears.
    fn of(&self, name: &PodName, uid: Option<&str>) -> Open {
        let mut open = self.open.clone();
        open.open.pod_uid =
            Some(uid.map_or_else(|| format!("{}/{}", name.0, name.1), str::to_owned));
        open
    }
}

impl ByName {
    /// None yet. A request belongs to an open for so long.
    pub(super) fn new(window: Micros) -> Self {
        Self { names: LruCache::new(NAMES), window }
    }

    /// An open, and what comes of it at once: copies for those that asked within its skew, or that have
    /// one of the same name within the window before.
    pub(super) fn open(&mut self, name: &PodName, open: Open) -> Vec<Open> {
        let (time, skew, window) = (open.open.time, Micros(open.skew_us), self.window);
        let mut out = Vec::new();
        if self.names.len() >= NAMES.get()
            && !self.names.contains(name)
            && let Some((name, named)) = self.names.pop_lru()
        {
            let untold = named.opens.iter().filter(|it| it.given.is_empty());
            out.extend(untold.map(|it| it.of(&name, None)));
        }
        let named = self.names.get_or_insert_mut(name.clone(), Named::default);
        let asked = named.asked.iter().filter(|(_, at)| (time - skew..=time).contains(at));
        let mut given: Vec<String> = asked.map(|(uid, _)| uid.clone()).collect();
        for earlier in named.opens.iter().filter(|it| it.time() + window >= time) {
            given.extend(earlier.given.iter().cloned());
        }
        given.sort_unstable();
        given.dedup();
        let waiting = Waiting { open, given };
        out.extend(waiting.given.iter().map(|uid| waiting.of(name, Some(uid))));
        if named.opens.len() >= OPENS {
            let oldest = named.opens.remove(0);
            out.extend(oldest.given.is_empty().then(|| oldest.of(name, None)));
        }
        named.opens.push(waiting);
        out
    }

    /// A request by a pod of this name, and the opens that are its pod's from now on.
    pub(super) fn request(&mut self, name: PodName, uid: &str, time: Micros) -> Vec<Open> {
        let (window, mut out) = (self.window, Vec::new());
        if let Some(named) = self.names.peek_mut(&name) {
            for waiting in &mut named.opens {
                let (from, to) =
                    (waiting.time() - Micros(waiting.open.skew_us), waiting.time() + window);
                let is_given = waiting.given.iter().any(|known| known == uid);
                if (from..=to).contains(&time) && !is_given && waiting.given.len() < UIDS {
                    waiting.given.push(uid.to_owned());
                    out.push(waiting.of(&name, Some(uid)));
                }
            }
        }
        let named = self.names.get_or_insert_mut(name, Named::default);
        named.asked.retain(|(known, _)| known != uid);
        if named.asked.len() >= UIDS {
            named.asked.remove(0);
        }
        named.asked.push((uid.to_owned(), time));
        out
    }

    /// Those for which nothing can come from before the watermark, and nobody asked.
    pub(super) fn expire(&mut self, watermark: Micros) -> Vec<Open> {
        let (window, mut out) = (self.window, Vec::new());
        for (name, named) in &mut self.names {
            let over = named.opens.extract_if(.., |it| it.time() + window < watermark);
            out.extend(over.filter(|it| it.given.is_empty()).map(|it| it.of(name, None)));
        }
        out.sort_by_key(|open| open.open.time);
        out
    }
}

//! Exposures: for how long after an open a pod's requests are suspicious. All bounds are
//! inclusive, all times are on the steady axis.

use std::{collections::VecDeque, sync::Arc};

use super::{Open, Settings};
use crate::{attribution::ProcessKey, rules::token_access, time::Micros};

/// Opens kept of an exposure beside its first: evidence, and anchors for requests to come.
const KEPT_OPENS: usize = 3;

/// The opens of one entry process (one `kubectl exec` session) in one pod, none further than the
/// window from the next.
#[derive(Clone, Debug)]
pub struct Exposure {
    /// Boot that the kernel times belong to.
    pub boot_id: String,
    /// The process by which the session entered the container.
    pub entry: ProcessKey,
    /// The first open.
    pub first: Arc<Open>,
    /// The newest ones, oldest first.
    newest: VecDeque<Arc<Open>>,
    /// All opens.
    pub count: u64,
    /// The first open that is worth telling where no request follows.
    pub read: Option<Arc<Open>>,
}

impl Exposure {
    /// An exposure that starts with this open.
    pub fn new(open: Arc<Open>) -> Self {
        let count = open.open.count();
        Self {
            boot_id: open.boot_id.clone(),
            entry: open.open.entry.key,
            read: Some(Arc::clone(&open)).filter(|open| token_access::is_token_read(&open.open)),
            first: open,
            newest: VecDeque::new(),
            count,
        }
    }

    /// Whether it explains only requests that are new for the pod.
    pub fn needs_new_request(&self) -> bool {
        token_access::needs_new_request(&self.first.open)
    }

    /// Takes an open of the same session in; `false` if it is not one.
    pub fn extend(&mut self, open: &Arc<Open>, settings: &Settings) -> bool {
        let time = open.open.time;
        let only_new = self.needs_new_request();
        let is_alike = token_access::needs_new_request(&open.open) == only_new
            && self.entry == open.open.entry.key
            && self.boot_id == open.boot_id;
        if !is_alike || time + settings.window < self.first_open() {
            return false;
        }
        // A workload may read like that for as long as it lives, and so long nothing is held: once
        // it is over, the next open begins another one, which must not reach back into it.
        if only_new && time > self.first_open() + settings.longest_tail {
            let counts = time - Micros(open.skew_us) <= self.end(settings);
            if counts {
                self.count = self.count.saturating_add(open.open.count());
            }
            return counts;
        }
        if time > self.end(settings) {
            return false;
        }
        self.count = self.count.saturating_add(open.open.count());
        let open = Arc::clone(open);
        if token_access::is_token_read(&open.open)
            && self.read.as_ref().is_none_or(|read| time < read.open.time)
        {
            self.read = Some(Arc::clone(&open));
        }
        if time < self.first.open.time {
            let later = std::mem::replace(&mut self.first, open);
            self.newest.push_front(later);
        } else {
            let place = self.newest.partition_point(|kept| kept.open.time <= time);
            self.newest.insert(place, open);
        }
        if self.newest.len() > KEPT_OPENS {
            self.newest.pop_front();
        }
        true
    }

    /// Time of the first open.
    pub fn first_open(&self) -> Micros {
        self.first.open.time
    }

    /// Time of the last open.
    pub fn last_open(&self) -> Micros {
        self.newest.back().map_or(self.first.open.time, |open| open.open.time)
    }

    /// The earliest received time that belongs to it.
    pub fn start(&self) -> Micros {
        self.first_open() - Micros(self.first.skew_us)
    }

    /// The latest received time that belongs to it.
    pub fn end(&self, settings: &Settings) -> Micros {
        self.last_open() + settings.window
    }

    /// The opens that are kept, oldest first.
    pub fn opens(&self) -> impl Iterator<Item = &Arc<Open>> {
        std::iter::once(&self.first).chain(&self.newest)
    }
}

/// The exposure and open that a request at `time` is joined with, among exposures that explain any
/// request or that explain new ones only: the newest open not after it, else the earliest after it
/// (within the skew).
pub fn anchor<'a>(
    exposures: &'a [Exposure],
    only_new: bool,
    time: Micros,
    settings: &Settings,
) -> Option<(&'a Exposure, Arc<Open>)> {
    let holding = exposures
        .iter()
        .filter(|exposure| exposure.needs_new_request() == only_new)
        .filter(|exposure| exposure.start() <= time && time <= exposure.end(settings));
    let opens = holding.flat_map(|exposure| exposure.opens().map(move |open| (exposure, open)));
    let best = opens.min_by_key(|(_, open)| {
        let open = &open.open;
        let after = open.time > time;
        let distance = (open.time.0 - time.0).abs();
        (after, distance, open.ktime_ns, open.process)
    });
    best.map(|(exposure, open)| (exposure, Arc::clone(open)))
}

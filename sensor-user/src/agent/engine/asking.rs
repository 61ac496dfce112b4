//! What this node asks others: requests of pods whose token was opened here, for as long as one could be
//! joined. A part of `engine`.

use std::sync::Arc;

use tokio::sync::watch;

use super::Engine;
use crate::{
    attribution::pods::Pod,
    correlation::Span,
    nats::interest::{Interest, Round},
    time::Micros,
};

/// How much longer than needed by now is asked: what goes on is not said anew for each open.
const AHEAD: Micros = Micros::from_secs(60);

/// How far back is asked: an incident may go on for longer.
const OLDEST: Micros = Micros::from_secs(12 * 3_600);

/// What was asked last.
pub(super) struct Asking {
    round: watch::Sender<Round>,
}

impl Asking {
    pub(super) fn new(round: watch::Sender<Round>) -> Self {
        Self { round }
    }

    /// Number of the last round.
    pub(super) fn number(&self) -> u64 {
        self.round.borrow().number
    }

    /// What is asked.
    #[cfg(test)]
    pub(super) fn asked(&self) -> Vec<Interest> {
        self.round.borrow().interests.clone()
    }
}

impl Engine {
    /// Asks what has to be asked by now, if that is not what is asked already.
    pub(super) fn ask(&mut self) {
        let Some(asking) = &self.asking else { return };
        let round = asking.round.borrow();
        let before = &round.interests;
        let clock = &self.senses.clock;
        let mut changed = false;
        let interests: Vec<Interest> = self
            .join
            .correlator
            .wanted()
            .map(|Span { pod_uid, from, until }| {
                let (from, until) = (clock.steady_to_wall(from), clock.steady_to_wall(until));
                let pod = self.senses.pods.index.pod(pod_uid);
                let asked = before.iter().find(|it| it.pod == *pod_uid);
                // The index may learn of a pod later than the kernel does.
                let known = asked.filter(|it| it.name.is_some() || pod.is_none());
                let from = from.max(until - OLDEST);
                if let Some(asked) = known.filter(|it| it.from <= from && it.until >= until) {
                    return asked.clone();
                }
                changed = true;
                interest(pod_uid, from, until + AHEAD, pod)
            })
            .collect();
        changed |= interests.len() != before.len();
        let number = round.number + 1;
        drop(round);
        if changed {
            asking.round.send_replace(Round { number, interests });
        }
    }
}

fn interest(pod_uid: &str, from: Micros, until: Micros, pod: Option<&Arc<Pod>>) -> Interest {
    let text = |text: &str| Some(text.to_owned()).filter(|it| !it.is_empty());
    let addresses = pod.map(|pod| if pod.host_network { &pod.host_ips } else { &pod.ips });
    Interest {
        pod: pod_uid.to_owned(),
        from,
        until,
        namespace: pod.and_then(|pod| text(&pod.namespace)),
        name: pod.and_then(|pod| text(&pod.name)),
        account: pod.and_then(|pod| text(&pod.service_account)),
        addresses: addresses.into_iter().flatten().map(ToString::to_string).collect(),
    }
}

//! How the sensor comes to be another one: at the start, where what was attached before may have seen
//! opens that nobody took, and whenever the self-test fails. A part of `engine`.
//!
//! For a moment both see. Of each open that both tell of, one is taken.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use super::{AgentError, Engine, TICK};
use crate::{
    attribution::{ProcessKey, TokenOpen},
    correlation::{Open, journal::Entry},
    kernel::{
        Sensor, SensorError,
        pins::{PinError, Pins},
        route_name,
    },
    time::Micros,
};

/// From a failure to the first attempt to attach anew: readiness is published before.
const SOON: Duration = TICK.saturating_mul(2);
/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(10);

/// Opens that were taken, and that another sensor may tell of as well.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By process and inode, when.
    opens: HashMap<(ProcessKey, u64), Vec<u64>>,
    until: Option<Instant>,
}

impl Known {
    /// Two sensors that are attached at once read the clock one after the other, and the opener may have
    /// to wait for its core in between.
    const APART_NS: u64 = 100_000_000;
    /// How long after another one was ended its last opens may be told.
    const LINGER: Duration = Duration::from_secs(10);

    /// Notes what the journal holds of this boot.
    pub(super) fn remember(&mut self, entry: &Entry, boot: &str) {
        if let Entry::Open(Open { boot_id, open, .. })
        | Entry::OpenAlone(Open { boot_id, open, .. })
        | Entry::GivenUp(Open { boot_id, open, .. }) = entry
            && boot_id == boot
        {
            self.add(open);
        }
    }

    /// Notes one.
    fn add(&mut self, open: &TokenOpen) {
        self.opens.entry((open.process, open.inode)).or_default().push(open.ktime_ns);
    }

    /// Notes all of these.
    fn add_all(&mut self, others: Self) {
        for (key, times) in others.opens {
            self.opens.entry(key).or_default().extend(times);
        }
    }

    /// Whether it is known; each is so once.
    pub(super) fn take(&mut self, open: &TokenOpen) -> bool {
        let Some(times) = self.opens.get_mut(&(open.process, open.inode)) else { return false };
        let apart = |time: &u64| time.abs_diff(open.ktime_ns);
        let nearest = (0..).zip(&*times).min_by_key(|(_, time)| apart(time));
        let Some((at, _)) = nearest.filter(|(_, time)| apart(time) < Self::APART_NS) else {
            return false;
        };
        times.swap_remove(at);
        true
    }

    /// From now on nothing more is added.
    fn settle(&mut self) {
        self.until = Some(Instant::now() + Self::LINGER);
    }

    /// Forgets all of them, once nobody tells of them any more.
    pub(super) fn forget(&mut self) {
        if self.until.is_none_or(|until| until <= Instant::now()) {
            *self = Self::default();
        }
    }
}

/// That the sensor sees nothing.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the self-test said.
    why: String,
    /// When it last passed.
    since: Micros,
    /// What attaching anew said, if that failed.
    tried: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        self.tried.as_ref().map_or(Ok(()), |tried| write!(f, "; attaching anew failed: {tried}"))
    }
}

impl Engine {
    /// Takes what the programs of agents before saw and nobody took, then the opens that were held back
    /// while another agent was at work; from now on this one's programs stay, if they are to.
    pub(in crate::agent) fn take_over(
        &mut self,
        pins: Option<Result<Pins, PinError>>,
        held_back: Vec<TokenOpen>,
    ) -> Result<(), AgentError> {
        let now = self.senses.clock.now().steady;
        let Self { senses, join, known, .. } = self;
        // What this sensor may tell of as well. Apart from what the journal has: of volumes that were
        // written alike a process may have read the same inode number twice in a moment.
        let mut left = Known::default();
        match pins {
            Some(Ok(pins)) => senses.take_over(pins, |open, pods, now| {
                left.add(&open);
                if !known.take(&open) {
                    join.open(open, pods, now);
                }
            })?,
            Some(Err(why)) => {
                if let Some((sensor, _)) = &mut senses.sensor {
                    sensor.not_kept(&why);
                }
            }
            None => {}
        }
        known.add_all(left);
        for open in held_back {
            if !known.take(&open) {
                join.join(open, &senses.pods.index, now);
            }
        }
        known.settle();
        self.tell(None);
        Ok(())
    }

    /// What a tick of the self-test asks for. One failure may be a moment's; after two the agent is not
    /// ready, and a moment later the routes are tried from the first one on.
    pub(super) async fn test_sensor(&mut self) -> Result<(), AgentError> {
        let Err(first) = self.try_sensor().await else {
            self.recover();
            return Ok(());
        };
        if self.sensor_failure.is_some() {
            return self.attach_anew().await;
        }
        tracing::warn!(why = %first, "a self-test failed, testing once more");
        if let Err(error) = self.try_sensor().await {
            let why = error.to_string();
            tracing::error!(
                why,
                route = self.route(),
                "the sensor no longer sees opens; it is attached anew"
            );
            let since = self.senses.sensor().map(Sensor::proven).unwrap_or_default();
            self.sensor_failure = Some(Failure { why, since, tried: None });
            self.self_test.reset_after(SOON);
        }
        Ok(())
    }

    /// Opens the canary; opens of others that arrive meanwhile are taken as ever.
    async fn try_sensor(&mut self) -> Result<(), SensorError> {
        let Self { senses, join, known, .. } = self;
        let result = senses
            .self_test(|open, pods, now| {
                if !known.take(&open) {
                    join.open(open, pods, now);
                }
            })
            .await;
        self.tell(None);
        result
    }

    /// The sensor sees again what it did not see for a while.
    fn recover(&mut self) {
        let Some(failure) = self.sensor_failure.take() else { return };
        if let Some((sensor, _)) = &mut self.senses.sensor {
            tracing::warn!(route = route_name(sensor.route()), "the sensor sees opens again");
            sensor.recovered(failure.since, failure.why);
        }
    }

    /// Tries all routes again, in their order.
    async fn attach_anew(&mut self) -> Result<(), AgentError> {
        let (Some((sensor, _)), Some(failure)) = (&self.senses.sensor, &mut self.sensor_failure)
        else {
            return Ok(());
        };
        match Sensor::start(&self.sensor, sensor.metrics()).await {
            Ok(successor) => {
                tracing::warn!(
                    route = route_name(successor.route()), degraded = ?successor.degraded(),
                    "the sensor is attached anew and sees opens again"
                );
                let why = std::mem::take(&mut failure.why);
                self.sensor_failure = None;
                let Self { senses, join, known, .. } = self;
                senses.replace(successor, why, |open, pods, now| {
                    known.add(&open);
                    join.open(open, pods, now);
                })?;
                known.settle();
                self.tell(None);
                self.self_test.reset();
            }
            Err(error) => {
                tracing::error!(%error, "the sensor cannot be attached anew");
                failure.tried = Some(error.to_string());
                self.self_test.reset_after(AGAIN);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_that_two_sensors_saw_is_known_once_and_others_are_not() {
        let at = |ktime_ns: u64| {
            let mut open = TokenOpen::example(Micros(0));
            open.ktime_ns = ktime_ns;
            open
        };
        let mut known = Known::default();
        known.add(&at(1_000_000_000));
        let mut other = at(1_000_000_000);
        other.inode += 1;
        assert!(!known.take(&other), "another file");
        assert!(!known.take(&at(1_500_000_000)), "another time");
        // The other one's clock was read a moment later.
        assert!(known.take(&at(1_000_002_000)));
        assert!(!known.take(&at(1_000_002_000)), "a second one of the same process");
    }

    #[test]
    fn what_is_known_is_forgotten_when_nobody_tells_of_it_any_more() {
        let open = TokenOpen::example(Micros(0));
        let mut known = Known::default();
        known.add(&open);
        known.settle();
        known.forget();
        assert!(known.take(&open), "not at once");
        known.add(&open);
        known.until = Some(Instant::now());
        known.forget();
        assert!(!known.take(&open));
    }
}

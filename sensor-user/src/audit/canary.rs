//! The audit canary: whether a request that the agent makes itself comes back in the audit stream.
//! If so, the whole way works (policy, log, source), and the event's times give the API server's
//! clock and the stream's delay. Silence is a status and a metric; nothing waits for it.
//!
//! A state machine over what was asked and what was read, with the times passed in; `probe` makes
//! the requests. Called by the agent's canary feed and by `tokentrail check`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::Serialize;

use super::AuditRecord;
use crate::time::Micros;

mod metrics;
pub mod probe;
pub mod run;

pub use metrics::CanaryMetrics;
use run::Run;

/// How the user agent of every agent's canary begins; `scan` lets such lines through. The name of the run
/// follows.
pub const MARK: &str = "tokentrail-canary/";

/// What is asked for, but for the number of the request: the pods of a namespace that is not there. An
/// empty list that the agent may ask for, and policies that hide health checks, discovery and leases
/// do not hide it. A refusal is audited as well; the API server ignores what it does not know.
const URI: &str = "/api/v1/namespaces/tokentrail-canary/pods?limit=1&canary=";

/// So many rounds without a sound, where there was one before, are still no silence: behind a load
/// balancer some requests go to API servers whose logs are followed elsewhere.
const QUIET_ROUNDS: i64 = 2;

/// Ways that are known at once: the sources of this agent and more audit sides than a node hears.
const WAYS: usize = 128;

/// By which way an event came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Index of the audit source.
    pub source: usize,
    /// The audit side elsewhere that has read it, if one has.
    pub side: Option<Arc<str>>,
}

/// One request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which of this run.
    pub number: u64,
    /// This machine's wall clock just before.
    pub sent: Micros,
    /// This machine's wall clock at the answer, or a sentence why there was none that is audited.
    pub answered: Result<Micros, String>,
}

/// What the newest of this run's requests that came back by a way tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// When its event was read, by this machine's clock.
    pub heard: Micros,
    /// The API server's clock less this machine's, microseconds.
    pub clock_offset_us: i64,
    /// How far offset and delay may be wrong either way: half of the round trip, microseconds.
    pub clock_offset_error_us: i64,
    /// From the event's `stageTimestamp` to when its line was read, by the API server's clock,
    /// microseconds. Below zero only within the error.
    pub delay_us: i64,
    /// Which request it was.
    #[serde(skip)]
    pub number: u64,
}

impl Measured {
    /// What the clocks may drift apart from one request to the next.
    const DRIFT_US: i64 = 100_000;
    /// A clock that is behind by more is not one to go by, microseconds.
    const MOST_US: i64 = 3_600_000_000;

    /// How much earlier than an event of this machine the API server may date what follows it: by what its
    /// clock is behind, as far as that is known until the request after `newest`.
    fn skew(&self, newest: u64) -> Micros {
        let rounds = newest.saturating_sub(self.number).saturating_add(1);
        let drift = Self::DRIFT_US.saturating_mul(i64::try_from(rounds).unwrap_or(i64::MAX));
        let error = self.clock_offset_error_us.saturating_add(drift);
        Micros(error.saturating_sub(self.clock_offset_us).clamp(0, Self::MOST_US))
    }
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is none.
    Off,
    /// Nothing is known yet.
    Starting,
    /// Canaries come back.
    Heard,
    /// The API server does not answer the requests.
    Unanswered,
    /// It answers, but they do not come back.
    Silent,
}

/// As `/statusz` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How it stands.
    pub state: State,
    /// The same as a sentence, with what to do about it.
    pub detail: String,
    /// Clock and delay, once a request came back.
    #[serde(flatten)]
    pub measured: Option<Measured>,
}

impl Status {
    /// Without a canary, for this reason.
    pub fn off(why: &str) -> Self {
        Self { state: State::Off, detail: why.to_owned(), measured: None }
    }

    /// What is wrong, if anything is.
    pub fn failure(&self) -> Option<String> {
        match self.state {
            State::Unanswered | State::Silent => Some(format!("audit canary: {}", self.detail)),
            State::Off | State::Starting | State::Heard => None,
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clock_offset_us, clock_offset_error_us, delay_us, .. } = self;
        write!(
            f,
            "read {delay_us} µs after they happened; the API server's clock less this machine's: \
             {clock_offset_us} µs; either may be wrong by {clock_offset_error_us} µs"
        )
    }
}

/// A request of this run as the audit stream has it.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    number: u64,
    received: Micros,
    stage: Micros,
    read: Micros,
    /// What this or an earlier one told.
    measured: Option<Measured>,
}

/// What was asked, what came back, and what that means.
#[derive(Debug)]
pub struct Canary {
    run: Run,
    patience: Micros,
    every: Micros,
    metrics: CanaryMetrics,
    /// Number, sending and answer of the newest request that was answered.
    answered: Option<(u64, Micros, Micros)>,
    /// The newest request that came back by each way.
    sightings: BTreeMap<Way, Sighting>,
    failure: Option<String>,
    /// Since when there is an answered request and nothing was heard.
    quiet_since: Option<Micros>,
    heard: bool,
    measured: Option<Measured>,
    /// Who this agent is to the API server, once it was heard.
    user: Option<String>,
}

impl Canary {
    /// For requests of `run`, made `every` so often; an event may be read `patience` after its request.
    pub fn new(run: Run, every: Micros, patience: Micros, metrics: CanaryMetrics) -> Self {
        Self {
            run,
            patience,
            every,
            metrics,
            answered: None,
            sightings: BTreeMap::new(),
            failure: None,
            quiet_since: None,
            heard: false,
            measured: None,
            user: None,
        }
    }

    /// Takes a request that was made. Its event may have been seen before.
    pub fn note(&mut self, asked: Asked, now: Micros) {
        self.metrics.asked(asked.answered.is_ok());
        match asked.answered {
            Err(why) => self.failure = Some(why),
            Ok(answered) => {
                self.failure = None;
                self.answered = Some((asked.number, asked.sent, answered));
                if self.sightings.values().all(|sighting| sighting.number < asked.number) {
                    self.quiet_since.get_or_insert(now);
                }
                self.measure();
            }
        }
    }

    /// Takes an event that was read by this way when this machine's wall clock showed `read`; whatever is
    /// no canary is ignored.
    pub fn see(&mut self, record: &AuditRecord, read: Micros, way: &Way) {
        let Some(name) = record.user_agent.as_deref().and_then(run::of_user_agent) else { return };
        if name == self.run.name() {
            let Some(number) = self.run.number(&record.request_uri) else { return };
            self.user.get_or_insert_with(|| record.user.username.clone());
            self.metrics.heard(true);
            // The first stage of a request tells; later ones only repeat it.
            let before = self.sightings.get(way);
            if before.is_none_or(|sighting| sighting.number < number) {
                let sighting = Sighting {
                    number,
                    received: record.request_received_timestamp,
                    stage: record.stage_timestamp,
                    read,
                    measured: before.and_then(|sighting| sighting.measured),
                };
                if before.is_none() && self.sightings.len() >= WAYS {
                    self.forget_one();
                }
                self.sightings.insert(way.clone(), sighting);
                self.measure();
            }
        } else if read - record.stage_timestamp <= self.patience
            && self.user.as_ref() == Some(&record.user.username)
        {
            // Another agent's proves the stream as well, unless it was read from a backlog. Anybody
            // can call themselves one, but not be of our account.
            self.metrics.heard(false);
        } else {
            return;
        }
        self.heard = true;
        self.quiet_since = None;
    }

    /// Forgets the way by which nothing came for longest.
    fn forget_one(&mut self) {
        let oldest = self.sightings.iter().min_by_key(|(_, sighting)| sighting.number);
        if let Some(way) = oldest.map(|(way, _)| way.clone()) {
            self.sightings.remove(&way);
        }
    }

    /// Measures by the newest answered request, by all ways by which it came.
    fn measure(&mut self) {
        let Some((number, sent, answered)) = self.answered else { return };
        // A clock that was set meanwhile measures nothing.
        if answered < sent {
            return;
        }
        let half = (answered - sent).0 / 2;
        let of_request = |sighting: &&mut Sighting| {
            sighting.number == number && sighting.measured.is_none_or(|it| it.number < number)
        };
        for sighting in self.sightings.values_mut().filter(of_request) {
            let offset = sighting.received - sent - Micros(half);
            let measured = Measured {
                heard: sighting.read,
                clock_offset_us: offset.0,
                clock_offset_error_us: half,
                delay_us: (sighting.read + offset - sighting.stage).0,
                number,
            };
            sighting.measured = Some(measured);
            self.metrics.measured(&measured);
            self.measured = Some(measured);
        }
    }

    /// The API server's clock and the stream's delay by the newest request that came back, once known.
    pub fn measured(&self) -> Option<Measured> {
        self.measured
    }

    /// The same for each way.
    pub fn ways(&self) -> impl Iterator<Item = (&Way, Measured)> {
        self.sightings.iter().filter_map(|(way, sighting)| Some((way, sighting.measured?)))
    }

    /// The same for one way.
    pub fn measured_by(&self, way: &Way) -> Option<Measured> {
        self.sightings.get(way)?.measured
    }

    /// How much earlier than an event of this machine the API server whose events come by this way may date
    /// what follows it; `None` where nobody measured it.
    pub fn skew(&self, way: &Way) -> Option<Micros> {
        let (newest, ..) = self.answered?;
        self.measured_by(way).map(|measured| measured.skew(newest))
    }

    /// What it all means now, on the same clock as `now` of [`Self::note`].
    pub fn status(&self, now: Micros) -> Status {
        let allowed = match self.heard {
            true => self.patience + Micros(self.every.0.saturating_mul(QUIET_ROUNDS)),
            false => self.patience,
        };
        let silent = self.quiet_since.is_some_and(|since| now - since > allowed);
        let (state, detail) = if let Some(why) = &self.failure {
            (State::Unanswered, why.clone())
        } else if silent {
            let seconds = allowed.0 / 1_000_000;
            let detail = format!(
                "the API server answers this agent's requests, but none was among the audit events within \
                 {seconds} s: the audit policy hides them, the log is another API server's, or it \
                 is not written; who is hidden as this agent is goes unseen"
            );
            (State::Silent, detail)
        } else if self.heard {
            let detail = self.measured.map_or_else(
                || "requests of other agents come back".to_owned(),
                |measured| format!("requests come back: {measured}"),
            );
            (State::Heard, detail)
        } else {
            (State::Starting, "no request has come back yet".to_owned())
        };
        self.metrics.silent(silent);
        Status { state, detail, measured: self.measured }
    }
}

#[cfg(test)]
impl Canary {
    /// One that stands like this, and has measured that by one way.
    pub(crate) fn example(state: State, way: Way, measured: Measured) -> Self {
        let [every, patience] = [Micros(0); 2];
        let mut canary = Self::new(Run::example(), every, patience, CanaryMetrics::default());
        let sighting = Sighting {
            number: measured.number,
            received: Micros(0),
            stage: Micros(0),
            read: Micros(0),
            measured: Some(measured),
        };
        canary.sightings.insert(way, sighting);
        canary.answered = Some((measured.number, Micros(0), Micros(0)));
        canary.heard = true;
        canary.failure = (state == State::Unanswered).then(String::new);
        canary.quiet_since = (state == State::Silent).then_some(Micros(0));
        canary
    }
}

#[cfg(test)]
mod tests;

//! Taking over from another agent without a gap, as a rolling update wants it: the new one is ready
//! while the old one still runs. Its sensor is attached and holds back what it sees; when the old
//! one has let go of what only one may have, the engine begins with that.
//!
//! Ready only while it could go on: a version that cannot read or write what the configuration names
//! must not replace one that can.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{AgentError, Alone, Senses, files, senses::ready};
use crate::{
    admin::{Condition, Health},
    attribution::TokenOpen,
    config::Config,
    kernel::Finding,
    time::Micros,
};

/// How often that is tried: what the gap would be without a sensor that holds back.
const RETRY: Duration = Duration::from_millis(50);
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Opens held back, the newest.
const HELD_BACK: usize = 1_024;
/// How old they get. The old agent has journalled what happened before, and may have told all of it and
/// forgotten it since: an open is kept there for the window at least, in which requests belong to it.
const AGE: Micros = Micros::from_secs(60);

/// Waits for what only one agent may have. Also returns the last opens that the sensor saw until then,
/// attributed when they happened: of a process that is gone, not everything can be asked later.
pub(super) async fn wait(
    config: &Config,
    senses: &mut Senses,
    health: &Health,
) -> Result<(Alone, Vec<TokenOpen>), AgentError> {
    let directory = &config.state_dir;
    tracing::info!(state_dir = %directory.display(), "standing by until the other agent ends");
    let mut held_back = HeldBack::default();
    let mut looked: Option<Instant> = None;
    loop {
        let alone = Alone::take(config);
        // After the attempt: once it succeeds, the other agent reads no more.
        senses.drain(|open, _, now| held_back.push(open, now));
        match alone {
            Ok(alone) => {
                held_back.forget(senses.clock.now().steady);
                return Ok((alone, held_back.opens.into()));
            }
            Err(error) if error.is_taken() => {}
            Err(error) => return Err(error),
        }
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            senses.keep_up();
            publish(config, senses, health);
        }
        tokio::select! {
            Some(change) = senses.pods.changed() => {
                senses.pods.index.apply(change, senses.clock.now().steady);
            }
            // An exec probe lives for some milliseconds, and is known while it does.
            ready = ready(senses.sensor.as_ref()) => ready?,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Opens that the old agent may not have taken, in the order in which they came.
#[derive(Debug, Default)]
struct HeldBack {
    opens: VecDeque<TokenOpen>,
}

impl HeldBack {
    /// Times are steady.
    fn push(&mut self, open: TokenOpen, now: Micros) {
        self.forget(now);
        if self.opens.len() == HELD_BACK {
            self.opens.pop_front();
        }
        self.opens.push_back(open);
    }

    /// Forgets those that are too old.
    fn forget(&mut self, now: Micros) {
        while self.opens.front().is_some_and(|oldest| now - oldest.time > AGE) {
            self.opens.pop_front();
        }
    }
}

fn publish(config: &Config, senses: &Senses, health: &Health) {
    let mut conditions = vec![("standby".to_owned(), Condition::Holds)];
    for path in config.audit_logs.iter().filter(|_| !config.audit_log_optional) {
        let name = format!("audit log {}", path.display());
        conditions.push((name, files::readable(path).into()));
    }
    // The address may be the other agent's for now.
    if let Some(webhook) = &config.audit_webhook {
        let usable = webhook.files.check().map_err(|error| error.to_string());
        conditions.push((format!("audit webhook {}", webhook.listen), usable.into()));
    }
    for Finding { what, ok, detail } in files::written(config) {
        let condition = if ok { Condition::Holds } else { Condition::Fails(detail) };
        conditions.push((what.to_owned(), condition));
    }
    health.publish(|report| {
        senses.route().clone_into(&mut report.route);
        report.conditions = conditions.into_iter().collect();
        "nothing yet: another agent of this node is at work".clone_into(&mut report.audit);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_old_agent_may_have_forgotten_is_not_told_again() {
        let at = |seconds| TokenOpen::example(Micros::from_secs(seconds));
        let mut held_back = HeldBack::default();
        for seconds in [100, 130, 159] {
            held_back.push(at(seconds), Micros::from_secs(160));
        }
        assert_eq!(held_back.opens.len(), 3);
        held_back.forget(Micros::from_secs(161));
        let kept: Vec<_> = held_back.opens.iter().map(|open| open.time).collect();
        assert_eq!(kept, [130, 159].map(Micros::from_secs));
    }

    #[test]
    fn of_too_many_the_newest_are_held_back() {
        let mut held_back = HeldBack::default();
        for micros in 0..2_000 {
            held_back.push(TokenOpen::example(Micros(micros)), Micros(micros));
        }
        assert_eq!(held_back.opens.len(), HELD_BACK);
        assert_eq!(held_back.opens.back().map(|open| open.time), Some(Micros(1_999)));
    }
}

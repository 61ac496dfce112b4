//! Taking over from another agent without a gap, as a rolling update wants it: the new one is ready
//! while the old one still runs. Its sensor is attached and holds back what it sees; when the old
//! one has let go of the state directory, the engine begins with that.

use std::{collections::VecDeque, path::Path, time::Duration};

use tokentrail_ebpf::OpenRecord;

use super::{AgentError, StateDir, StateError};
use crate::{
    admin::{Condition, Health},
    kernel::{self, Sensor},
};

/// How often the directory is tried: what the gap would be without a sensor that holds back.
const RETRY: Duration = Duration::from_millis(50);
/// Opens held back, the newest: the old agent has told of those before.
const HELD_BACK: usize = 1_024;

/// Waits for the state directory. Also returns the last opens that the sensor saw until then.
pub(super) async fn wait(
    directory: &Path,
    mut sensor: Option<&mut Sensor>,
    health: &Health,
) -> Result<(StateDir, Vec<OpenRecord>), AgentError> {
    tracing::info!(state_dir = %directory.display(), "standing by until the other agent ends");
    let mut held_back = VecDeque::new();
    loop {
        let state = StateDir::open(directory);
        // After the attempt: once it succeeds, the other agent reads no more.
        if let Some(sensor) = &mut sensor {
            sensor.drain(|record| {
                if held_back.len() == HELD_BACK {
                    held_back.pop_front();
                }
                held_back.push_back(*record);
            });
        }
        match state {
            Ok(state) => return Ok((state, held_back.into())),
            Err(StateError::Taken { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        health.publish(|report| {
            report.route = sensor
                .as_ref()
                .map_or("none", |sensor| kernel::route_name(sensor.route()))
                .to_owned();
            report.conditions = [("standby".to_owned(), Condition::Holds)].into();
            "nothing yet: another agent of this node is at work".clone_into(&mut report.audit);
        });
        tokio::time::sleep(RETRY).await;
    }
}

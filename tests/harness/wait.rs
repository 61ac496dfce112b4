//! Waiting for a condition, with a deadline and a reason to print when it passes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything may take that is bound to happen. Long, because an emulated machine is slow
/// and only a failing test ever waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Shortest and longest time between two looks at a condition.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(5));

/// Asks `condition` until it gives a value, and returns that.
///
/// # Errors
/// If `condition` fails, or gives nothing before `deadline` has passed; `what` says what for.
pub fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain until {what}");
        }
        // An eighth of the time gone: precise where latency is measured, cheap where it is not.
        thread::sleep((start.elapsed() / 8).clamp(PAUSES.0, PAUSES.1));
    }
}

//! What this node sees by itself: the sensor, who was behind an open, when it was. The engine and an
//! agent that stands by take opens from here.

use tokentrail_ebpf::OpenRecord;

use super::PodFeed;
use crate::{
    attribution::{Attributor, OpenTimes, SavedLearning, TokenOpen, pods::PodIndex},
    kernel::{self, Sensor, SensorError, clock::Clock, pins::Pins},
    time::Micros,
};

/// The sensor with what makes token opens of its records.
pub(super) struct Senses {
    /// What sees opens, and what knows whose they are; `None` on the audit side alone.
    pub(super) sensor: Option<(Sensor, Attributor)>,
    /// The pods of this node.
    pub(super) pods: PodFeed,
    /// The clocks.
    pub(super) clock: Clock,
}

impl Senses {
    pub(super) fn new(sensor: Option<(Sensor, Attributor)>, pods: PodFeed) -> Self {
        let mut senses = Self { sensor, pods, clock: Clock::system() };
        senses.watch_volumes();
        senses
    }

    /// The sensor, if there is one.
    pub(super) fn sensor(&self) -> Option<&Sensor> {
        self.sensor.as_ref().map(|(sensor, _)| sensor)
    }

    /// Its hook route; `none` without one.
    pub(super) fn route(&self) -> &'static str {
        self.sensor().map_or("none", |sensor| kernel::route_name(sensor.route()))
    }

    /// Takes every record out of the ring; `take` also gets the steady clock. A record is released
    /// after it returned.
    pub(super) fn drain(&mut self, mut take: impl FnMut(TokenOpen, &PodIndex, Micros)) {
        self.clock.now();
        let Self { sensor, pods, clock } = self;
        if let Some((sensor, attributor)) = sensor {
            sensor.drain(|record| {
                if let Some(open) = attributed(record, attributor, &pods.index, clock) {
                    take(open, &pods.index, clock.now().steady);
                }
            });
        }
        self.watch_volumes();
    }

    /// Opens the canary; opens of others that arrive meanwhile are taken as ever.
    pub(super) async fn self_test(
        &mut self,
        mut take: impl FnMut(TokenOpen, &PodIndex, Micros),
    ) -> Result<(), SensorError> {
        let Self { sensor, pods, clock } = self;
        let Some((sensor, attributor)) = sensor else { return Ok(()) };
        let on_record = |record: &OpenRecord| {
            if let Some(open) = attributed(record, attributor, &pods.index, clock) {
                take(open, &pods.index, clock.now().steady);
            }
        };
        sensor.self_test(on_record).await
    }

    /// Takes over from agents whose pins are here: `take` gets what they left.
    pub(super) fn take_over(
        &mut self,
        pins: Pins,
        mut take: impl FnMut(TokenOpen, &PodIndex, Micros),
    ) -> Result<(), SensorError> {
        let Self { sensor, pods, clock } = self;
        let Some((sensor, attributor)) = sensor else { return Ok(()) };
        sensor.take_over(pins, |record| {
            if let Some(open) = attributed(record, attributor, &pods.index, clock) {
                take(open, &pods.index, clock.now().steady);
            }
        })
    }

    /// Goes on with another sensor, since `why` this one no longer sees; `take` gets what it left.
    pub(super) fn replace(
        &mut self,
        successor: Sensor,
        why: String,
        mut take: impl FnMut(TokenOpen, &PodIndex, Micros),
    ) -> Result<(), SensorError> {
        let Self { sensor, pods, clock } = self;
        let Some((sensor, attributor)) = sensor else { return Ok(()) };
        sensor.replace(successor, why, |record| {
            if let Some(open) = attributed(record, attributor, &pods.index, clock) {
                take(open, &pods.index, clock.now().steady);
            }
        })
    }

    /// Whether [`Self::has_pod`] knows of every pod that runs here by now.
    pub(super) fn knows_pods(&mut self, now: Micros) -> bool {
        self.sensor.as_mut().is_some_and(|(_, attributor)| attributor.knows_pods(now))
    }

    /// Whether a pod is of this node, by its volumes or the index.
    pub(super) fn has_pod(&self, uid: &str) -> bool {
        self.sensor.as_ref().is_some_and(|(_, attributor)| attributor.has_pod(uid))
            || self.pods.index.pod(uid).is_some()
    }

    /// Notices new and gone volumes; to be called about once a second.
    pub(super) fn keep_up(&mut self) {
        if let Some((_, attributor)) = &mut self.sensor
            && let Err(error) = attributor.keep_up()
        {
            tracing::warn!(%error, "mounts cannot be read; pods of new volumes stay unknown");
        }
        if let Some(sensor) = self.sensor() {
            sensor.beat();
        }
        self.watch_volumes();
    }

    /// What is learned about workloads, if that changed since it was last asked.
    pub(super) fn take_changed_learning(&mut self) -> Option<SavedLearning> {
        self.sensor.as_mut().and_then(|(_, attributor)| attributor.take_changed_learning())
    }

    fn watch_volumes(&mut self) {
        if let Some((sensor, attributor)) = &mut self.sensor
            && let Some(devices) = attributor.take_changed_devices(&self.pods.index)
            && let Err(error) = sensor.watch_devices(&devices.into_iter().collect())
        {
            tracing::warn!(%error, "tokens under unusual names stay unseen");
        }
    }
}

fn attributed(
    record: &OpenRecord,
    attributor: &mut Attributor,
    pods: &PodIndex,
    clock: &Clock,
) -> Option<TokenOpen> {
    let times = OpenTimes {
        time: clock.boot_to_steady(record.ktime_ns),
        wall: clock.boot_to_wall(record.ktime_ns),
    };
    let open = attributor.attribute(record, times, pods).ok()?;
    tracing::debug!(grade = ?open.grade, pod = open.pod_uid, comm = open.comm, "token opened");
    Some(open)
}

/// Waits for records; for ever where there is no sensor.
pub(super) async fn ready(sensor: Option<&(Sensor, Attributor)>) -> Result<(), SensorError> {
    match sensor {
        Some((sensor, _)) => Ok(sensor.ready().await?),
        None => std::future::pending().await,
    }
}

//! The sensor: opens of token-like files, as the kernel saw them.
//!
//! Owns everything that touches BPF: resolving offsets, choosing a route into the kernel, reading
//! the ring, the self-test and the clocks. The only user of aya. It decides nothing about a
//! record; `attribution` does. `agent` starts it and drains it:
//!
//! 1. [`Sensor::start`] tries each route of the table until one loads, attaches and reports the
//!    canary;
//! 2. then forever [`ready`](Sensor::ready), [`drain`](Sensor::drain), and on a tick of a few
//!    seconds `drain` as well, since lost records wake nobody up;
//! 3. [`watch_devices`](Sensor::watch_devices) whenever the set of volumes changes and
//!    [`self_test`](Sensor::self_test) every few minutes;
//! 4. [`take_over`](Sensor::take_over) before all that, where what is attached outlives agents; and
//!    [`replace`](Sensor::replace) when the self-test fails. Each time a whole new load of the programs
//!    follows another one; nothing of the old one but who belongs to which session is used again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aya::maps::{Array, MapData};
use serde::{Deserialize, Serialize};
use tokentrail_ebpf::{Counter, OpenRecord, Route, VolumeBit, names};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use self::{
    attach::Link, canary::Canary, clock::Sampler as _, log::KernelLog, pins::Kept,
    repeats::Repeats, ring::Reader,
};
use crate::time::Micros;

mod attach;
#[cfg(feature = "bench")]
pub mod bench;
pub mod btf;
mod canary;
pub mod clock;
mod error;
mod log;
mod metrics;
pub mod pins;
mod predecessor;
mod preflight;
mod repeats;
mod ring;
mod succession;

pub use self::{
    error::SensorError,
    metrics::{KernelMetrics, Loss},
    predecessor::Gap,
    preflight::{Finding, preflight},
};

/// The BPF object; empty in a binary that was built without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tokentrail-bpf"));

/// How long a canary's record may take. It is in the ring before the open returns, so this only
/// covers a reader that was descheduled.
const CANARY_DEADLINE: Duration = Duration::from_secs(1);
/// Opens kept that happen between the attachment and the first [`Sensor::drain`].
const BACKLOG: usize = 256;

/// Which way into the kernel to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RouteChoice {
    /// The best one that works.
    #[default]
    Auto,
    /// Only the BTF trampoline at the return of `security_file_open`.
    Fexit,
    /// Only the kprobe at its entry.
    Kprobe,
    /// Only the tracepoints at the exits of the open calls.
    Exit,
}

impl RouteChoice {
    fn allows(self, route: Route) -> bool {
        match self {
            Self::Auto => true,
            Self::Fexit => route == Route::Fexit,
            Self::Kprobe => route == Route::Kprobe,
            Self::Exit => route == Route::Exit,
        }
    }
}

/// A route's name, as flags and documents have it.
pub fn route_name(route: Route) -> &'static str {
    match route {
        Route::Fexit => "fexit",
        Route::Kprobe => "kprobe",
        Route::Exit => "exit",
    }
}

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct SensorConfig {
    /// Which route to take.
    pub route: RouteChoice,
    /// BTF of the running kernel, if it is not at [`btf::KERNEL_BTF`].
    pub btf: Option<PathBuf>,
    /// Whether the exit route looks for opens by 32-bit calls too, at a price for every call of the
    /// machine.
    pub compat_opens: bool,
    /// Directory on tmpfs for the canary, if not the first of `/run` and `/dev/shm` that is.
    pub canary_dir: Option<PathBuf>,
    /// Directory on a BPF file system in which what is attached outlives the agent, if it is to.
    pub pin_dir: Option<PathBuf>,
}

impl SensorConfig {
    fn btf(&self) -> &Path {
        self.btf.as_deref().unwrap_or(Path::new(btf::KERNEL_BTF))
    }
}

/// An attached route and the reader of its records.
pub struct Sensor {
    log: Option<KernelLog>,
    reader: Reader,
    repeats: Repeats,
    volumes: Array<MapData, u64>,
    /// What `volumes` holds: its words that are not zero.
    watched: BTreeMap<u32, u64>,
    volume_changes: Array<MapData, u64>,
    changes: u64,
    /// What reports opens. Detaches on drop, as the next one does.
    links: Vec<Link>,
    /// What follows sessions.
    sessions: Vec<Link>,
    route: Route,
    degraded: Vec<String>,
    /// What may be pinned.
    maps: Vec<(&'static str, MapData)>,
    pins: Option<pins::Pins>,
    kept: Option<Kept>,
    gaps: VecDeque<Gap>,
    /// When a self-test last passed.
    proven: Micros,
    canary: Canary,
    backlog: VecDeque<OpenRecord>,
    metrics: KernelMetrics,
}

impl Sensor {
    /// Loads the object, then takes the first route that attaches and reports the canary.
    ///
    /// Blocks for some hundred milliseconds while the kernel verifies programs. Must run within a
    /// tokio runtime that has I/O and time enabled.
    pub async fn start(config: &SensorConfig, metrics: KernelMetrics) -> Result<Self, SensorError> {
        if OBJECT.is_empty() {
            return Err(SensorError::NoObject);
        }
        preflight::privilege().map_err(SensorError::Privilege)?;
        let layout = btf::layout(config.btf())?;
        preflight::ring_buffer().map_err(SensorError::NoRingBuffer)?;
        let canary =
            Canary::new(config.canary_dir.as_deref()).map_err(SensorError::CanaryDirectory)?;
        let pinned = config.pin_dir.as_deref().map(pins::sessions).unwrap_or_default();
        let mut ebpf = attach::load(OBJECT, &layout.offsets, log::level(), &pinned)
            .map_err(|error| SensorError::Load(attach::reason("load", &error)))?;
        let maps = |error| SensorError::Load(attach::reason("maps", &error));
        let mut sensor = Self {
            // First: others take maps out of the object.
            maps: if config.pin_dir.is_some() {
                succession::handles(&ebpf).map_err(maps)?
            } else {
                Vec::new()
            },
            log: KernelLog::new(&mut ebpf),
            reader: Reader::new(&mut ebpf).map_err(maps)?,
            repeats: ring::take(&mut ebpf, names::REPEATS).and_then(Repeats::new).map_err(maps)?,
            volumes: ring::take(&mut ebpf, names::VOLUME_DEVICES)
                .and_then(Array::try_from)
                .map_err(maps)?,
            watched: BTreeMap::new(),
            volume_changes: ring::take(&mut ebpf, names::VOLUME_CHANGES)
                .and_then(Array::try_from)
                .map_err(maps)?,
            changes: 0,
            links: Vec::new(),
            sessions: Vec::new(),
            route: Route::Exit,
            degraded: layout
                .absent
                .iter()
                .map(|name| format!("this kernel has no {name}"))
                .collect(),
            pins: None,
            kept: None,
            gaps: VecDeque::new(),
            proven: Micros(0),
            canary,
            backlog: VecDeque::new(),
            metrics,
        };
        let types = attach::Types::of(config.btf.as_deref());
        let sessions = attach::sessions(&mut ebpf, &types);
        sensor.sessions = sessions.links;
        sensor.degraded.extend(sessions.blind);
        let mut tried = Vec::new();
        for plan in attach::ROUTES.iter().filter(|plan| config.route.allows(plan.route)) {
            let name = format!("{}{}", route_name(plan.route), plan.manner);
            let refused = match plan.attach(&mut ebpf, &types) {
                Err(why) => why,
                Ok(attached) => match sensor.first_test().await {
                    Err(error) => error.to_string(),
                    Ok(()) => {
                        sensor.links = attached.links;
                        sensor.route = plan.route;
                        sensor.degraded.extend(attached.blind);
                        if !plan.manner.is_empty() {
                            let taken = format!("route {name} is taken: {}", attach::UNREAD);
                            warn!("{taken}");
                            sensor.degraded.push(taken);
                        }
                        if plan.route == Route::Exit {
                            let absent = layout.absent_of_uring.iter();
                            sensor.degraded.extend(absent.map(|name| {
                                format!("opens by io_uring are not seen: this kernel has no {name}")
                            }));
                            if config.compat_opens {
                                let compat = attach::compat(&mut ebpf);
                                sensor.links.extend(compat.links);
                                sensor.degraded.extend(compat.blind);
                            }
                        }
                        drop((ebpf, types));
                        release_memory();
                        return Ok(sensor);
                    }
                },
            };
            debug!(route = name, refused, "route does not work here");
            sensor.degraded.push(format!("route {name} does not work here: {refused}"));
            tried.push((name, refused));
        }
        Err(SensorError::NoRoute { tried })
    }

    /// The route that is attached.
    pub fn route(&self) -> Route {
        self.route
    }

    /// What it counts.
    pub fn metrics(&self) -> KernelMetrics {
        self.metrics.clone()
    }

    /// What this machine cannot do, one sentence each: refused routes, facts that will be missing.
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    /// A record of an open by this very process: the last self-test's.
    pub fn own_record(&self) -> Option<&OpenRecord> {
        self.canary.record()
    }

    /// Waits until there may be records. Cancelling loses nothing.
    pub async fn ready(&self) -> io::Result<()> {
        if self.backlog.is_empty() { self.reader.ready().await } else { Ok(()) }
    }

    /// Lends each waiting record to `each` and then releases it; returns how many there were. At
    /// most a few hundred at once: [`ready`](Self::ready) returns at once if there are more.
    pub fn drain(&mut self, mut each: impl FnMut(&OpenRecord)) -> usize {
        let mut count = 0;
        while let Some(record) = self.backlog.front() {
            each(record);
            self.backlog.pop_front();
            count += 1;
        }
        let (canary, metrics, repeats) = (&mut self.canary, &self.metrics, &mut self.repeats);
        self.reader.read(|decoded| match decoded {
            Ok(record) if canary.recognise(&record) => {}
            Ok(record) => {
                metrics.seen(record.ktime_ns);
                repeats.note(&record);
                each(&record);
                count += 1;
            }
            Err(error) => {
                if metrics.undecodable() == 1 {
                    warn!(%error, "the kernel side wrote a record that is none; counting from here on");
                }
            }
        });
        let (now_ns, _) = clock::System.sample();
        for record in self.repeats.settle(now_ns) {
            each(&record);
            count += 1;
        }
        self.read_losses();
        if let Some(log) = &mut self.log {
            log.flush();
        }
        count
    }

    /// Makes the kernel side report every open of a regular file on these devices, whatever its
    /// name: `s_dev` in kernel encoding. Only tmpfs can be watched, which is what the kubelet
    /// mounts for service-account volumes; other devices are ignored.
    pub fn watch_devices(&mut self, devices: &BTreeSet<u32>) -> Result<(), SensorError> {
        self.watch_words(bitmap(devices))
    }

    fn watch_words(&mut self, words: BTreeMap<u32, u64>) -> Result<(), SensorError> {
        if words == self.watched {
            return Ok(());
        }
        let failed = |error| SensorError::Map {
            action: "watch a volume",
            reason: attach::reason("map", &error),
        };
        for word in self.watched.keys().chain(words.keys()).collect::<BTreeSet<_>>() {
            let (old, new) = (self.watched.get(word), words.get(word));
            if old != new {
                self.volumes.set(*word, new.copied().unwrap_or_default(), 0).map_err(failed)?;
            }
        }
        // Makes the kernel side forget what it remembers of the old set.
        self.changes += 1;
        self.volume_changes.set(0, self.changes, 0).map_err(failed)?;
        self.watched = words;
        Ok(())
    }

    /// Opens the canary and waits for its record, a second at most. Records of others that arrive
    /// meanwhile go to `each` as in [`drain`](Self::drain); the canary's own never do.
    pub async fn self_test(
        &mut self,
        mut each: impl FnMut(&OpenRecord),
    ) -> Result<(), SensorError> {
        let result = self.test(&mut each).await;
        self.metrics.canary(result.is_ok());
        if result.is_ok() {
            self.proven = Micros::from(SystemTime::now());
        }
        result
    }

    async fn test(&mut self, each: &mut impl FnMut(&OpenRecord)) -> Result<(), SensorError> {
        // A full ring would swallow the canary.
        self.drain(&mut *each);
        self.canary
            .open()
            .map_err(|error| SensorError::Canary(format!("cannot open its file: {error}")))?;
        let deadline = Instant::now() + CANARY_DEADLINE;
        let mut in_time = true;
        loop {
            self.drain(&mut *each);
            if self.canary.seen() {
                return Ok(());
            }
            if !in_time {
                return Err(SensorError::Canary(format!(
                    "attached, but nothing came within {CANARY_DEADLINE:?}"
                )));
            }
            // Who was not run for so long looks once more.
            match timeout_at(deadline, self.reader.ready()).await {
                Ok(ready) => ready?,
                Err(_) => in_time = false,
            }
        }
    }

    /// The test of a route just attached, before there is anybody to take other records.
    async fn first_test(&mut self) -> Result<(), SensorError> {
        let mut backlog = VecDeque::new();
        let mut overflow = 0;
        let result = self
            .self_test(|record| {
                if backlog.len() < BACKLOG { backlog.push_back(*record) } else { overflow += 1 }
            })
            .await;
        self.backlog = backlog;
        self.metrics.lost(Loss::Starting, overflow);
        result
    }

    fn read_losses(&mut self) {
        let mut take = |counter| match self.reader.losses().take(counter) {
            Ok(new) => new,
            Err(error) => {
                debug!(%error, "cannot read a counter");
                0
            }
        };
        for (counter, loss) in LOSSES {
            self.metrics.lost(loss, take(counter));
        }
        self.metrics.repeated(take(Counter::Repeated));
        self.metrics.sessions_full(take(Counter::SessionsFull));
    }
}

/// What the kernel side counts.
const LOSSES: [(Counter, Loss); 3] = [
    (Counter::LostRingFull, Loss::RingFull),
    (Counter::LostUnreadable, Loss::Unreadable),
    (Counter::LostFlood, Loss::Flood),
];

/// Devices as words of the kernel side's bitmap.
fn bitmap(devices: &BTreeSet<u32>) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for bit in devices.iter().filter_map(|device| VolumeBit::of(*device)) {
        *words.entry(bit.word).or_default() |= bit.mask;
    }
    words
}

/// Gives back what parsing type information took: megabytes in small pieces, which the C library
/// would keep for the life of the process.
fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_become_bits_and_those_that_are_no_tmpfs_none() {
        let devices = BTreeSet::from([0, 63, 64, 130, 8 << 20 | 1]);
        assert_eq!(bitmap(&devices), BTreeMap::from([(0, 1 | 1 << 63), (1, 1), (2, 4)]));
        assert_eq!(bitmap(&BTreeSet::new()), BTreeMap::new());
    }

    #[tokio::test]
    async fn a_binary_without_the_object_says_how_to_build_one() {
        if !OBJECT.is_empty() {
            return;
        }
        let result = Sensor::start(&SensorConfig::default(), KernelMetrics::default()).await;
        let error = result.err().unwrap();
        assert!(matches!(error, SensorError::NoObject));
        assert!(error.to_string().contains("cargo xtask build"), "{error}");
    }

    #[test]
    fn a_directory_that_is_not_on_tmpfs_cannot_hold_the_canary() {
        let config =
            SensorConfig { canary_dir: Some(PathBuf::from("/proc/1")), ..SensorConfig::default() };
        let findings = preflight(&config);
        let finding = findings.iter().find(|f| f.what == "directory for the self-test").unwrap();
        assert!(!finding.ok && finding.detail.contains("/proc/1"), "{finding:?}");
    }

    #[test]
    fn missing_type_information_is_found_before_anything_is_loaded() {
        let config = SensorConfig { btf: Some("/nonexistent".into()), ..SensorConfig::default() };
        let findings = preflight(&config);
        let finding = findings.iter().find(|f| f.what == "kernel type information (BTF)").unwrap();
        assert!(!finding.ok && finding.detail.contains("/nonexistent"), "{finding:?}");
    }

    #[test]
    fn an_error_without_a_route_names_every_route_that_was_tried() {
        let tried = vec![("fexit".into(), "attach: no".into()), ("exit".into(), "load: no".into())];
        let text = SensorError::NoRoute { tried }.to_string();
        assert!(text.contains("fexit: attach: no") && text.contains("exit: load: no"), "{text}");
    }

    #[test]
    fn metrics_have_names_with_one_prefix_and_losses_by_reason() {
        let metrics = KernelMetrics::default();
        let mut registry = prometheus_client::registry::Registry::default();
        metrics.register(&mut registry);
        metrics.lost(Loss::RingFull, 5);
        metrics.lost(Loss::RingFull, 2);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("tokentrail_kernel_lost_total{reason=\"ring_full\"} 7"), "{text}");
        assert!(text.contains("tokentrail_kernel_records_total 0"), "{text}");
    }
}

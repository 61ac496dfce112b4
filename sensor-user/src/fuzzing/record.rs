//! Records as the kernel side might write them, through attribution to a recorded document and back.

use std::{cell::RefCell, fs, path::Path};

use tempfile::TempDir;
use tokentrail_ebpf::{ABI_VERSION, Missing, OpenRecord, Route};
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    alert::record::Recorder,
    attribution::{
        AttributionConfig, AttributionMetrics, Attributor, Grade, OpenTimes, TokenOpen,
        pods::PodIndex,
    },
    correlation::Open,
    redact::redact_args,
    replay::opens,
    time::Micros,
};

const POD: &str = "eb052b63-ea96-4728-ab4a-64ab3babccd7";
const DEVICE: u32 = 77;
/// 2026-11-21
const NOW: Micros = Micros::from_secs(1_795_219_200);

/// Whatever a record holds, its open is the same each time, is read from a recording as it was, and
/// accuses nobody without ground.
///
/// The input changes a record of an ordinary read: place in it, length, bytes, and so on.
pub fn record(input: &[u8]) {
    // No length and no bytes of one are too strange to be refused.
    let _ = OpenRecord::try_from(input);
    let Ok(record) = OpenRecord::try_from(changed(input).as_slice()) else { return };
    thread_local!(static NODE: RefCell<Option<Node>> = RefCell::new(Node::new()));
    NODE.with_borrow_mut(|node| {
        if let Some(node) = node {
            node.is_sound(&record);
        }
    });
}

fn changed(mut input: &[u8]) -> Vec<u8> {
    let mut bytes = ordinary().as_bytes().to_vec();
    while let Some(([high, low, length], rest)) = input.split_first_chunk() {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % bytes.len();
        let (new, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let place = bytes.iter_mut().skip(at);
        place.zip(new).for_each(|(old, new)| *old = *new);
        input = rest;
    }
    bytes
}

/// A read of the pod's token by its main process.
fn ordinary() -> OpenRecord {
    OpenRecord {
        abi_version: ABI_VERSION,
        route: Route::Fexit as u32,
        tgid: 100,
        pid: 101,
        pidns_level: 1,
        s_dev: DEVICE,
        comm: name("app"),
        leader_comm: name("app"),
        file_name: name("token"),
        parent_name: name("..2024_11_24_09_06_53.3676909075"),
        mount_names: ["serviceaccount", "kubernetes.io", "secrets"].map(name),
        exe_names: ["app", "bin", "/"].map(name),
        cgroup_names: [&"5".repeat(64), &format!("pod{POD}"), "kubepods", "", "", ""].map(name),
        ..OpenRecord::new_zeroed()
    }
}

fn name<const N: usize>(text: &str) -> [u8; N] {
    let mut name = [0; N];
    name.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    name
}

/// A node with one pod, and what attributes and records there.
struct Node {
    attributor: Attributor,
    pods: PodIndex,
    recorder: Recorder,
    _directory: TempDir,
}

impl Node {
    fn new() -> Option<Self> {
        let directory = TempDir::new().ok()?;
        let config = AttributionConfig {
            proc_root: directory.path().join("proc"),
            cgroup_root: directory.path().join("cgroup"),
            own_tgid: 999,
            ..AttributionConfig::default()
        };
        let point = format!(
            "/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/kube-api-access-x"
        );
        let process = config.proc_root.join("1");
        let volume = process.join("root").join(point.trim_start_matches('/'));
        fs::create_dir_all(&volume).ok()?;
        fs::write(volume.join("token"), "").ok()?;
        let mount = format!("7 2 0:{DEVICE} / {point} rw shared:1 - tmpfs tmpfs rw\n");
        fs::write(process.join("mountinfo"), mount).ok()?;
        Some(Self {
            attributor: Attributor::new(config, None, AttributionMetrics::default()).ok()?,
            pods: PodIndex::default(),
            recorder: Recorder::open(Path::new("/dev/null"), "node".to_owned()).ok()?,
            _directory: directory,
        })
    }

    fn is_sound(&mut self, record: &OpenRecord) {
        let times = OpenTimes { time: NOW, wall: NOW };
        let found = self.attributor.attribute(record, times, &self.pods);
        assert_eq!(self.attributor.attribute(record, times, &self.pods), found);
        let Ok(open) = found else { return };
        let is_terminal = matches!(open.grade, Grade::Interactive | Grade::Terminal);
        let has_terminal = record.tty_dev != 0 && record.missing & Missing::TERMINAL == 0;
        assert!(has_terminal || !is_terminal, "{open:?}");
        if let (Some(reader), Some(volume)) = (&open.reader, &open.volume) {
            assert_eq!(open.grade == Grade::Outside, reader.pod_uid != volume.pod_uid, "{open:?}");
        }
        assert_ne!(record.open_flags & 3, 1, "written, not read: {open:?}");
        assert_eq!(redact_args(open.args.clone()), open.args);
        self.is_read_as_recorded(&open);
    }

    fn is_read_as_recorded(&self, open: &TokenOpen) {
        let line = self.recorder.document(&Open::new("boot", open.clone())).to_string();
        let read = opens::parse(line.as_bytes());
        assert!(matches!(read, Ok(Some(_))), "{read:?} for {line}");
        let Ok(Some(read)) = read else { return };
        assert_eq!(read.open(), *open);
        let container = open.reader.as_ref().and_then(|reader| reader.container_id.as_ref());
        let is_elastic = open.grade == Grade::Interactive && container.is_some();
        assert_eq!(read.is_elastic, is_elastic, "{line}");
    }
}

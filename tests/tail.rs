//! The tailer where root is needed or where it takes long: logs on overlay and bind mounts, and bursts
//! far above any API server's.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use tempfile::TempDir;
use tokentrail::audit::{
    AuditBatch, AuditMetrics, SourceStatus,
    checkpoint::Position,
    decoder::Decoder,
    scan::Interest,
    tail::{TailConfig, follow},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

/// Bounds failures alone.
const DEADLINE: Duration = Duration::from_secs(120);

fn line(id: &str) -> String {
    format!(
        r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"{id}","stage":"ResponseComplete","requestURI":"/api","verb":"get","user":{{"username":"system:serviceaccount:shop:till","extra":{{"authentication.kubernetes.io/pod-uid":["u-1"]}}}},"requestReceivedTimestamp":"2026-11-21T23:50:21.010116Z","stageTimestamp":"2026-11-21T23:50:21.014096Z"}}
"#
    )
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn rotate(path: &Path) {
    fs::rename(path, path.with_file_name("audit-2026-11-21T20-29-11.123.log")).unwrap();
}

fn mount_overlay(folder: &Path) {
    let part = |name| folder.join(name).display().to_string();
    let (lower, upper, work) = (part("lower"), part("upper"), part("work"));
    let options =
        CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}")).unwrap();
    mount("overlay", part("here"), "overlay", MountFlags::empty(), &*options).unwrap();
}

/// A mount point in a folder, until it is dropped.
struct Mounted {
    folder: TempDir,
}

impl Mounted {
    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for part in ["lower", "upper", "work", "here"] {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
        folder
    }

    /// `lower` below `upper`, as a container sees its image.
    fn overlay(folder: TempDir) -> Self {
        mount_overlay(folder.path());
        Self { folder }
    }

    /// `lower` in another place, as a pod sees a folder of its host.
    fn bind(folder: TempDir) -> Self {
        mount_bind(folder.path().join("lower"), folder.path().join("here")).unwrap();
        Self { folder }
    }

    /// The log by this way.
    fn log(&self, by: &str) -> PathBuf {
        self.folder.path().join(by).join("audit.log")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path().join("here"), UnmountFlags::DETACH);
    }
}

struct Following {
    path: PathBuf,
    batches: mpsc::Receiver<AuditBatch>,
    status: watch::Receiver<SourceStatus>,
    metrics: AuditMetrics,
    position: Option<Position>,
    task: JoinHandle<()>,
}

impl Following {
    fn start(path: PathBuf, start: Option<Position>) -> Self {
        let (sender, batches) = mpsc::channel(16);
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let metrics = AuditMetrics::default();
        let config = TailConfig { path: path.clone(), source: 0, start: start.clone() };
        let task = tokio::spawn(follow(config, sender, status_sender, metrics.clone()));
        Self { path, batches, status, metrics, position: start, task }
    }

    /// One that has taken its first look.
    async fn open(path: PathBuf) -> Self {
        let mut tail = Self::start(path, None);
        timeout(DEADLINE, tail.status.wait_for(SourceStatus::is_open)).await.unwrap().unwrap();
        tail
    }

    async fn restart(self) -> Self {
        drop(self.batches);
        timeout(DEADLINE, self.task).await.unwrap().unwrap();
        Self::start(self.path, self.position)
    }

    async fn next(&mut self) -> Vec<String> {
        let batch = timeout(DEADLINE, self.batches.recv()).await.unwrap().unwrap();
        self.position.clone_from(&batch.position);
        // As the engine does it.
        let mut decoder = Decoder::new("audit.log".to_owned(), self.metrics.clone());
        let records = decoder.decode_all(&batch.lines, &Interest::LIVE);
        records.into_iter().map(|read| read.record.audit_id).collect()
    }

    async fn expect(&mut self, ids: &[&str]) {
        let mut found = Vec::new();
        while found.len() < ids.len() {
            found.extend(self.next().await);
        }
        assert_eq!(found, ids);
    }
}

/// Everything that happens to a log, at the place where it is written, seen at the place where it is
/// read.
async fn lives_through_everything(mounted: &Mounted, written: &str) {
    let log = mounted.log(written);
    let mut tail = Following::open(mounted.log("here")).await;
    append(&log, &line("a"));
    tail.expect(&["a"]).await;
    rotate(&log);
    append(&log, &line("b"));
    tail.expect(&["b"]).await;
    let mut tail = tail.restart().await;
    append(&log, &line("c"));
    tail.expect(&["c"]).await;
    fs::write(&log, line("other") + &line("d")).unwrap();
    tail.expect(&["other", "d"]).await;
    fs::remove_file(&log).unwrap();
    append(&log, &line("e"));
    tail.expect(&["e"]).await;
    assert_eq!(tail.metrics.truncations.get(), 1);
    assert_eq!(tail.metrics.lost_positions.get(), 0);
}

#[tokio::test]
async fn a_log_in_a_container_s_own_file_system_is_followed_from_its_image_on() {
    let folder = Mounted::folder();
    // Of the image: copied up by the first write, under the reader's open handle.
    append(&folder.path().join("lower/audit.log"), &line("old"));
    lives_through_everything(&Mounted::overlay(folder), "here").await;
}

#[tokio::test]
async fn a_log_that_is_written_below_an_overlay_is_followed_all_the_same() {
    let folder = Mounted::folder();
    append(&folder.path().join("upper/audit.log"), "");
    // The kernel calls changes from below undefined and inotify does not tell of them: the clock does.
    let mounted = Mounted::overlay(folder);
    let mut tail = Following::open(mounted.log("here")).await;
    append(&mounted.log("upper"), &line("a"));
    tail.expect(&["a"]).await;
    append(&mounted.log("upper"), &line("b"));
    tail.expect(&["b"]).await;
}

#[tokio::test]
async fn an_overlay_that_is_mounted_anew_has_other_numbers_and_nothing_is_read_twice() {
    let folder = Mounted::folder();
    append(&folder.path().join("upper/audit.log"), "");
    let mounted = Mounted::overlay(folder);
    let mut tail = Following::open(mounted.log("here")).await;
    append(&mounted.log("here"), &line("a"));
    tail.expect(&["a"]).await;
    let position = tail.position;
    drop(tail.batches);
    timeout(DEADLINE, tail.task).await.unwrap().unwrap();
    let other = Mounted::overlay(Mounted::folder());
    let here = mounted.folder.path().join("here");
    unmount(&here, UnmountFlags::empty()).unwrap();
    // The number that it had is taken meanwhile.
    let third = Mounted::overlay(Mounted::folder());
    mount_overlay(mounted.folder.path());
    append(&mounted.log("here"), &line("b"));
    let mut tail = Following::start(mounted.log("here"), position.clone());
    tail.expect(&["b"]).await;
    assert_ne!(tail.position.as_ref().unwrap().device, position.unwrap().device);
    drop((other, third));
}

#[tokio::test]
async fn a_folder_of_the_host_is_followed_by_its_bind_mount_whoever_writes_where() {
    for written in ["lower", "here"] {
        let folder = Mounted::folder();
        append(&folder.path().join("lower/audit.log"), "");
        lives_through_everything(&Mounted::bind(folder), written).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_of_a_hundred_thousand_lines_and_more_lose_and_repeat_nothing() {
    const LINES: usize = 300_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    append(&path, "");
    let mut tail = Following::open(path.clone()).await;
    // As fast as the disk takes it, a thousand lines a write, rotated every 60,000.
    let writer = std::thread::spawn(move || {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        for chunk in 0..LINES / 1_000 {
            if chunk % 60 == 59 {
                let name = format!("audit-2026-11-21T20-29-{chunk:08}.log");
                fs::rename(&path, path.with_file_name(name)).unwrap();
                file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            }
            let lines: String =
                (0..1_000).map(|number| line(&(chunk * 1_000 + number).to_string())).collect();
            file.write_all(lines.as_bytes()).unwrap();
        }
    });
    let mut next = 0;
    while next < LINES {
        for id in tail.next().await {
            assert_eq!(id, next.to_string());
            next += 1;
        }
    }
    writer.join().unwrap();
    assert_eq!(tail.metrics.rotations.get(), 5);
    assert_eq!(tail.metrics.truncations.get() + tail.metrics.lost_positions.get(), 0);
}

//! The kernel side against the running kernel: the route that this machine offers loads, attaches
//! and reports the opens it should, and only those. Needs root and the BPF object:
//! `cargo test --features system-tests --test kernel`.
//!
//! `TOKENTRAIL_TEST_ROUTE` forces a route, as the virtual-machine tests do.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::ValueEnum as _;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokentrail::kernel::{
    KernelMetrics, RouteChoice, Sensor, SensorConfig, SensorError, route_name,
};
use tokentrail_ebpf::{COMMAND_LEN, MatchedBy, Missing, OpenRecord, Route, until_nul};

#[path = "kernel/flood.rs"]
mod flood;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(until_nul(bytes)).into_owned()
}

fn config() -> SensorConfig {
    let route = std::env::var("TOKENTRAIL_TEST_ROUTE")
        .map_or(RouteChoice::Auto, |name| RouteChoice::from_str(&name, true).unwrap());
    SensorConfig { route, ..SensorConfig::default() }
}

/// A volume as the kubelet mounts and writes it.
struct Volume {
    root: PathBuf,
    _outer: tempfile::TempDir,
}

impl Volume {
    fn new() -> Self {
        Self::on("tmpfs")
    }

    fn on(file_system: &str) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("kube-api-access-test1");
        fs::create_dir(&root).unwrap();
        mount(file_system, &root, file_system, MountFlags::empty(), None).unwrap();
        let data = root.join("..2026_11_21_10_00_00.1");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink("..2026_11_21_10_00_00.1", root.join("..data")).unwrap();
        for file in ["token", "ca.crt", "namespace"] {
            fs::write(data.join(file), "content").unwrap();
            std::os::unix::fs::symlink(Path::new("..data").join(file), root.join(file)).unwrap();
        }
        Self { root, _outer: outer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn device(&self) -> u32 {
        let dev = fs::metadata(&self.root).unwrap().dev();
        rustix::fs::major(dev) << 20 | rustix::fs::minor(dev)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.root, UnmountFlags::DETACH).unwrap();
    }
}

/// A started sensor whose records are picked by inode, since other tests open files meanwhile.
struct Bench {
    sensor: Sensor,
    metrics: KernelMetrics,
}

impl Bench {
    async fn start() -> Self {
        let metrics = KernelMetrics::default();
        let sensor = Sensor::start(&config(), metrics.clone()).await.unwrap();
        Self { sensor, metrics }
    }

    /// What this sensor's programs cannot read of any open, as bits of [`Missing`].
    fn unreadable(&self) -> u32 {
        let typed = self.sensor.degraded().iter().any(|it| it.contains("by typed reads is taken"));
        if typed { Missing::CGROUP | Missing::MOUNT } else { 0 }
    }

    /// All records of a file that are there now; the ring has them before an open returns.
    fn records_of(&mut self, path: &Path) -> Vec<OpenRecord> {
        let wanted = fs::metadata(path).unwrap();
        // Inode numbers of a tmpfs are small: those of another one on this machine are the same.
        let device = rustix::fs::major(wanted.dev()) << 20 | rustix::fs::minor(wanted.dev());
        let mut found = Vec::new();
        while self.sensor.drain(|record| {
            if (record.s_dev, record.file_ino) == (device, wanted.ino()) {
                found.push(*record);
            }
        }) > 0
        {}
        found
    }

    /// The first record of a file, which may be opened later.
    async fn record_of(&mut self, path: &Path) -> OpenRecord {
        let first = async {
            loop {
                if let Some(record) = self.records_of(path).first() {
                    return *record;
                }
                self.sensor.ready().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), first).await.unwrap()
    }
}

#[tokio::test]
async fn an_open_of_a_token_comes_with_every_fact_about_its_opener() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    let child = Command::new("/bin/cat").arg(&token).output().unwrap();
    assert!(child.status.success());

    let records = bench.records_of(&token);
    assert_eq!(records.len(), 1, "{records:?}");
    let record = records[0];
    assert_eq!(record.route, bench.sensor.route() as u32);
    assert_eq!(record.matched_by, MatchedBy::Name as u32);
    let unreadable = bench.unreadable();
    assert_eq!(record.missing, unreadable, "{record:?}");
    assert_eq!(text(&record.file_name), "token");
    assert_eq!(text(&record.parent_name), "..2026_11_21_10_00_00.1");
    assert_eq!(record.s_dev, volume.device());
    let mount = if unreadable & Missing::MOUNT == 0 { "kube-api-access-test1" } else { "" };
    assert_eq!(text(&record.mount_names[0]), mount);
    assert_eq!(text(&record.comm), "cat");
    assert_eq!(text(&record.leader_comm), "cat");
    assert_eq!(record.tgid, record.pid);
    let executable = fs::canonicalize("/bin/cat").unwrap();
    assert_eq!(text(&record.exe_names[0]), executable.file_name().unwrap().to_str().unwrap());
    assert_eq!(record.exe_ino, fs::metadata(&executable).unwrap().ino());
    let argv: Vec<&[u8]> =
        record.argv[..record.argv_len as usize].split(|byte| *byte == 0).collect();
    assert_eq!(argv, [b"/bin/cat", token.to_str().unwrap().as_bytes(), b""]);
    assert_eq!((record.uid, record.euid), (0, 0));
    assert_eq!(u64::from(record.mntns_ino), fs::metadata("/proc/self/ns/mnt").unwrap().ino());
    assert_eq!(u64::from(record.pidns_ino), fs::metadata("/proc/self/ns/pid").unwrap().ino());
    // Standard output is the pipe of `output()`.
    assert_eq!(record.fds[1].mode & 0o170_000, 0o010_000);
    assert!(record.start_boottime_ns < record.ktime_ns);
    assert_ne!(record.cgroup_id, 0);
    assert_ne!(record.entry_cgroup.tgid, 0);
    assert_ne!(record.entry_pidns.tgid, 0);
    if bench.sensor.route() == Route::Fexit {
        assert_eq!(text(&record.path), fs::canonicalize(&token).unwrap().to_str().unwrap());
    }
}

/// A cgroup of the hierarchy that tells containers apart on this machine.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let memory = root.join("memory");
        let hierarchy = if memory.is_dir() { memory } else { root.to_owned() };
        let path = hierarchy.join(format!("tokentrail-test-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A shell that enters a container, this cgroup and a mount namespace, and there becomes a session:
    /// another shell, of a script and its `$0`.
    fn session(&self, script: &[&str]) -> Command {
        let enter = format!(
            "echo $$ > {}/cgroup.procs; exec unshare -m /bin/sh -c \"$@\"",
            self.0.display()
        );
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &enter, "sh"]).args(script).stdout(Stdio::null());
        shell
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process has ended, but the kernel may take a moment to notice.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn the_processes_where_a_session_enters_a_container_are_found() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    let cgroup = Cgroup::new();
    // A shell enters the cgroup, then a pid namespace is made, whose first process is a shell that
    // runs `cat` as a child: three generations, two boundaries.
    let script = format!(
        "echo $$ > {}/cgroup.procs; unshare -p -f /bin/sh -c '/bin/cat {}; true'; true",
        cgroup.0.display(),
        token.display()
    );
    let shell = Command::new("/bin/sh").arg("-c").arg(script).stdout(Stdio::null()).spawn();
    let mut shell = shell.unwrap();
    assert!(shell.wait().unwrap().success());

    let records = bench.records_of(&token);
    assert_eq!(records.len(), 1);
    let record = records[0];
    let unreadable = bench.unreadable();
    assert_eq!(record.missing, unreadable, "{record:?}");
    assert_eq!(text(&record.comm), "cat");
    assert_eq!(record.cgroup_id, fs::metadata(&cgroup.0).unwrap().ino());
    let name = cgroup.0.file_name().unwrap().to_str().unwrap();
    if unreadable & Missing::CGROUP == 0 {
        assert_eq!(text(&record.cgroup_names[0]), name);
    } else {
        assert!(record.cgroup_names[0].starts_with(&record.cgroup_id.to_le_bytes()));
        let above = fs::metadata(cgroup.0.parent().unwrap()).unwrap().ino();
        assert!(record.cgroup_names[1].starts_with(&above.to_le_bytes()));
    }
    assert_eq!(record.nspid, 2);
    assert_eq!(record.entry_cgroup.tgid, shell.id());
    assert_eq!(text(&record.entry_cgroup.comm), "sh");
    assert_eq!(record.entry_pidns.nspid, 1);
    assert_eq!(record.entry_pidns.tgid, record.ppid);
    assert_ne!(record.entry_pidns.tgid, shell.id());
    let times = [record.entry_cgroup, record.entry_pidns].map(|entry| entry.start_boottime_ns);
    assert!(times[0] <= times[1] && times[1] <= record.start_boottime_ns, "{record:?}");
}

#[tokio::test]
async fn what_a_session_began_with_is_told_whatever_it_executed_since() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    let cgroup = Cgroup::new();
    let long = "x".repeat(300);
    for (name, kept) in [("session", true), (long.as_str(), false)] {
        let then = format!("exec /bin/sh -c '/bin/cat {}; true'", token.display());
        assert!(cgroup.session(&[&then, name]).status().unwrap().success());

        let records = bench.records_of(&token);
        assert_eq!(records.len(), 1);
        let command = records[0].session_command;
        let whole = format!("/bin/sh\0-c\0{then}\0{name}\0");
        assert_eq!(command.length as usize, whole.len(), "its whole length, also where it is cut");
        let text = &command.text[..whole.len().min(COMMAND_LEN)];
        assert_eq!(text, &whole.as_bytes()[..text.len()]);
        assert_eq!(text.len() == whole.len(), kept);
    }
}

#[tokio::test]
async fn whoever_was_forked_in_a_session_is_of_it_until_somebody_outside_starts_another() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    let cgroup = Cgroup::new();
    let read = format!("read line < {}", token.display());
    let become_cat = format!("exec /bin/cat {}", token.display());
    for (then, of_the_shell) in [(&read, true), (&become_cat, false)] {
        // The session ends; what it forked twice waits for that. Here, unlike in a pid namespace,
        // its parent is then outside: as with a session that a runtime's helper starts.
        let late = format!("while [ -e /proc/$session ]; do :; done; {then}");
        let session = format!("session=$$; ( ({late}) & ); true");
        let mut shell = cgroup.session(&[&session]).spawn().unwrap();
        assert!(shell.wait().unwrap().success());

        let record = bench.record_of(&token).await;
        assert_ne!(record.entry_cgroup.tgid, shell.id(), "nobody above it is of the session");
        let (began, command) =
            if of_the_shell { (shell.id(), "/bin/sh") } else { (record.tgid, "/bin/cat") };
        assert_eq!(record.session.tgid, u64::from(began), "{then}");
        assert!(record.session.start_boottime_ns <= record.start_boottime_ns, "{record:?}");
        assert_eq!(text(&record.session_command.text), command);
    }
}

#[tokio::test]
async fn a_terminal_is_told_from_a_pipe() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let open = || {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap()
    };
    // The pipeline of `cat token | base64`: only standard output is elsewhere.
    let status = Command::new("setsid")
        .args(["-c", "/bin/cat"])
        .arg(&token)
        .stdin(open())
        .stdout(Stdio::null())
        .stderr(open())
        .status();
    assert!(status.unwrap().success());

    let records = bench.records_of(&token);
    assert_eq!(records.len(), 1);
    let record = records[0];
    let device = fs::metadata(&name).unwrap().rdev();
    let device = rustix::fs::major(device) << 20 | rustix::fs::minor(device);
    assert_eq!(record.tty_dev, device, "{record:?}");
    assert_eq!(record.fds.map(|fd| fd.rdev == device), [true, false, true]);
}

#[tokio::test]
async fn only_token_like_files_are_reported_unless_their_device_is_watched() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let cases = [("token", true), ("ca.crt", true), ("namespace", false)];
    for (name, reported) in cases {
        fs::read(volume.path(name)).unwrap();
        let records = bench.records_of(&volume.path(name));
        assert_eq!(records.len(), usize::from(reported), "{name}");
    }
    // The right name outside of a directory that starts with `..`, and on another file system.
    let plain = volume.root.join("plain");
    fs::create_dir(&plain).unwrap();
    fs::write(plain.join("token"), "").unwrap();
    assert!(bench.records_of(&plain.join("token")).is_empty());
    let other = Volume::on("ramfs");
    fs::read(other.path("token")).unwrap();
    assert!(bench.records_of(&other.path("token")).is_empty());

    // Another volume: this process has just read those files.
    let volume = Volume::new();
    fs::create_dir(volume.path("plain")).unwrap();
    for name in ["plain/token", "plain/later"] {
        fs::write(volume.path(name), "").unwrap();
    }
    // What wrote those.
    bench.records_of(&volume.path("token"));
    bench.sensor.watch_devices(&BTreeSet::from([volume.device()])).unwrap();
    for (name, matched) in [
        ("token", MatchedBy::Name),
        ("namespace", MatchedBy::Device),
        ("plain/token", MatchedBy::Device),
    ] {
        fs::read(volume.path(name)).unwrap();
        let records = bench.records_of(&volume.path(name));
        assert_eq!(records.len(), 1, "{name}");
        assert_eq!(records[0].matched_by, matched as u32, "{name}");
    }
    // A directory on a watched device is no file.
    let plain = volume.path("plain");
    fs::File::open(&plain).unwrap();
    assert!(bench.records_of(&plain).is_empty());

    bench.sensor.watch_devices(&BTreeSet::new()).unwrap();
    fs::read(plain.join("later")).unwrap();
    assert!(bench.records_of(&plain.join("later")).is_empty());
}

#[tokio::test]
async fn every_way_to_open_by_path_descriptor_or_handle_is_seen() {
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat, openat2};
    let mut bench = Bench::start().await;
    // Each in a volume of its own, which stays, as the next could have its numbers: what repeats an
    // open is not told.
    let mut volumes = Vec::new();
    let mut seen = |how: &dyn Fn(&Volume, &Path)| {
        let volume = Volume::new();
        let token = volume.path("token");
        // What wrote it.
        bench.records_of(&token);
        how(&volume, &token);
        volumes.push(volume);
        bench.records_of(&token).len()
    };
    let directory = |volume: &Volume| open(&volume.root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let path_only = |token: &Path| open(token, OFlags::PATH, Mode::empty()).unwrap();

    let found = seen(&|volume, token| {
        let link = volume.path("innocent");
        std::os::unix::fs::symlink(token, &link).unwrap();
        fs::read(&link).unwrap();
    });
    assert_eq!(found, 1, "through a symbolic link");

    let found = seen(&|volume, _| {
        let flags = OFlags::RDONLY;
        openat(directory(volume), "..data/token", flags, Mode::empty()).unwrap();
    });
    assert_eq!(found, 1, "relative to a directory");

    let found = seen(&|volume, _| {
        let (flags, how) = (OFlags::RDONLY, ResolveFlags::empty());
        openat2(directory(volume), "token", flags, Mode::empty(), how).unwrap();
    });
    assert_eq!(found, 1, "by openat2");

    let found = seen(&|_, token| {
        fs::read(format!("/proc/self/root{}", token.display())).unwrap();
    });
    assert_eq!(found, 1, "through /proc/PID/root");

    assert_eq!(seen(&|_, token| drop(path_only(token))), 0, "O_PATH reads nothing");
    let found = seen(&|_, token| {
        use std::os::fd::AsRawFd as _;
        let path_only = path_only(token);
        fs::read(format!("/proc/self/fd/{}", path_only.as_raw_fd())).unwrap();
    });
    assert_eq!(found, 1, "reopening an O_PATH descriptor");

    let found = seen(&|volume, _| assert!(fs::read(volume.path("absent")).is_err()));
    assert_eq!(found, 0, "a failed open of something else");
}

#[tokio::test]
async fn the_self_test_can_be_repeated_and_its_opens_reach_nobody() {
    let mut bench = Bench::start().await;
    assert!(bench.metrics.canary_ok());
    let own = std::process::id();
    let mut canaries = 0;
    for _ in 0..3 {
        bench
            .sensor
            .self_test(|record| {
                canaries += u32::from(
                    record.nspid == own
                        && text(&record.parent_name).starts_with("..tokentrail-canary"),
                );
            })
            .await
            .unwrap();
    }
    assert_eq!(canaries, 0);
    assert!(bench.metrics.canary_ok());
}

#[tokio::test]
async fn waiting_ends_when_a_token_is_opened() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    while bench.sensor.drain(|_| {}) > 0 {}
    let opener = {
        let token = token.clone();
        std::thread::spawn(move || fs::read(token).unwrap())
    };
    let wanted = fs::metadata(&token).unwrap().ino();
    let mut found = false;
    tokio::time::timeout(Duration::from_secs(10), async {
        while !found {
            bench.sensor.ready().await.unwrap();
            bench.sensor.drain(|record| found |= record.file_ino == wanted);
        }
    })
    .await
    .unwrap();
    opener.join().unwrap();
}

#[tokio::test]
async fn a_route_that_the_kernel_refuses_is_named_with_its_reason() {
    let config =
        SensorConfig { btf: Some(PathBuf::from("/nonexistent/btf")), ..SensorConfig::default() };
    let error = Sensor::start(&config, KernelMetrics::default()).await.err().unwrap();
    assert!(matches!(error, SensorError::Btf(_)), "{error}");
    assert!(error.to_string().contains("/nonexistent/btf"), "{error}");

    for choice in [RouteChoice::Fexit, RouteChoice::Kprobe, RouteChoice::Exit] {
        let config = SensorConfig { route: choice, ..SensorConfig::default() };
        match Sensor::start(&config, KernelMetrics::default()).await {
            Ok(sensor) => println!("{choice:?} works: {:?}", sensor.degraded()),
            Err(SensorError::NoRoute { tried }) => {
                assert!(!tried.is_empty() && tried.iter().all(|(_, why)| !why.is_empty()));
                // Of `fexit` there are two plans.
                assert!(tried.iter().all(|(name, _)| name.starts_with(&tried[0].0)), "{tried:?}");
                println!("{choice:?} is refused: {tried:?}");
            }
            Err(other) => panic!("{choice:?}: {other}"),
        }
    }
}

#[tokio::test]
async fn at_debug_level_the_programs_say_what_they_matched() {
    /// Collects what a subscriber writes.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let bench = Bench::start().await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let expected =
        format!("{}: reported an open that matched by 1", route_name(bench.sensor.route()));
    assert!(text.contains(&expected), "{text}");
}

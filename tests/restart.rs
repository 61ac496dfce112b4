//! Opens while no agent runs, and around the moments at which one follows another: each is read by
//! somebody, and by nobody twice. And a sensor that no longer sees: told, and attached anew.
//!
//! Everything is pinned in a BPF file system of the test's own.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    collections::HashSet,
    env, fs,
    hash::{BuildHasher as _, RandomState},
    io::{ErrorKind, Write as _, stdout},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, unmount};
use serde_json::Value;
use tokentrail_tests::{
    Agent, Finished, NODE_NAME, Node, PATIENCE, Pod, Sandbox, TOKEN_PATH, Workload, tokentrail,
    wait_until,
};

/// Opens of the tests that count them, each of a process of its own.
const OPENS: usize = 250;
/// Kills meanwhile.
const KILLS: usize = 6;

/// A node whose agents keep what is attached.
struct Kept<'sandbox> {
    sandbox: &'sandbox Sandbox,
    node: Node<'sandbox>,
    pins: PathBuf,
}

impl<'sandbox> Kept<'sandbox> {
    fn new(sandbox: &'sandbox Sandbox) -> Self {
        let pins = sandbox.file_system("bpf", "bpf", MountFlags::empty(), c"").unwrap();
        let pins = pins.join("tokentrail");
        let mut node = Node::new(sandbox).unwrap();
        node.agent = node.agent.args(["--pin-dir".as_ref(), pins.as_os_str()]);
        Self { sandbox, node, pins }
    }

    fn uninstall(&self) -> Finished {
        self.sandbox.run(tokentrail().arg("uninstall").arg("--pin-dir").arg(&self.pins)).unwrap()
    }

    /// Where this node's are.
    fn of_node(&self) -> PathBuf {
        self.pins.join(NODE_NAME)
    }

    /// Folders below the directory of this node's pins, as `v2/12345`.
    fn sets(&self) -> Vec<String> {
        let names = |folder: &Path| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
        };
        let versions = names(&self.of_node()).into_iter();
        let sets = versions.flat_map(|version| {
            let sets = names(&self.of_node().join(&version)).into_iter();
            sets.map(move |set| format!("{version}/{set}")).collect::<Vec<_>>()
        });
        sets.collect()
    }

    /// Makes the only set there is one of version 1. Returns its version and number.
    fn pretend_other_version(&self) -> (String, String) {
        let sets = self.sets();
        assert_eq!(sets.len(), 1, "{sets:?}");
        let set = sets.concat();
        let (version, number) = set.split_once('/').unwrap();
        fs::rename(self.of_node().join(version), self.of_node().join("v1")).unwrap();
        (version.to_owned(), number.to_owned())
    }

    /// The recorded opens of a workload's token by `cat`, of which none is there twice.
    fn opens_by_cat(&self, victim: &Workload) -> usize {
        let opens = self.node.opens_of(&victim.pod).unwrap();
        let mut ids = HashSet::new();
        for open in &opens {
            let id = text(open, "/event/id").to_owned();
            assert!(ids.insert(id), "recorded twice: {open:#}");
        }
        opens.iter().filter(|open| text(open, "/process/name") == "cat").count()
    }
}

fn text<'document>(document: &'document Value, pointer: &str) -> &'document str {
    document.pointer(pointer).and_then(Value::as_str).unwrap()
}

/// Whether this kernel keeps the route attached while no agent runs; where not, the agent says so.
fn keeps(agent: &Agent) -> bool {
    let status = agent.status().unwrap();
    let degraded = status.get("degraded").unwrap().as_array().unwrap();
    !degraded.iter().any(|why| why.as_str().unwrap().contains("cannot keep that attached"))
}

/// Opens the token again and again, as a session in the container.
fn open_often(victim: &Workload) {
    let script = format!(
        "for i in $(seq {OPENS}); do cat {TOKEN_PATH} > /dev/null; sleep 0.02; done; echo done"
    );
    let finished = victim.container.exec(&["sh", "-c", &script]).unwrap();
    assert_eq!(finished.output.trim(), "done", "{finished:?}");
}

/// A number that differs from run to run.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[test]
fn what_is_opened_while_no_agent_runs_is_told_once_by_the_next_one() {
    for end in [Agent::kill, |agent: Agent| agent.terminate().map(drop)] {
        let sandbox = Sandbox::create().unwrap();
        let kept = Kept::new(&sandbox);
        let node = &kept.node;
        let agent = node.agent.start().unwrap();
        let keeps = keeps(&agent);
        let victim = node.workload().unwrap();
        end(agent).unwrap();
        victim.attack().unwrap();
        node.request_by(&victim.pod).unwrap();
        let agent = node.agent.start().unwrap();
        node.settle().unwrap();
        if keeps {
            let alert = node.the_alert_about(&victim.pod).unwrap();
            assert_eq!(alert["tokentrail"]["grade"], "interactive");
            assert_eq!(kept.opens_by_cat(&victim), 1);
        }
        // What could not be kept is named with its time.
        let gaps = agent.status().unwrap()["gaps"].as_array().unwrap().len();
        assert_eq!(gaps, usize::from(!keeps));
        let unseen = agent.metric("tokentrail_kernel_unseen_seconds_total", &[]).unwrap();
        assert_eq!(unseen > 0.0, !keeps, "{unseen}");
    }
}

#[test]
fn of_tokens_that_a_process_opens_at_once_while_no_agent_runs_each_is_told() {
    let sandbox = Sandbox::create().unwrap();
    let kept = Kept::new(&sandbox);
    let node = &kept.node;
    let agent = node.agent.start().unwrap();
    let keeps = keeps(&agent);
    // Files of the same inode number, each in a file system of its own.
    let pods: Vec<Pod> = (0..4).map(|_| Pod::create(&sandbox).unwrap()).collect();
    agent.kill().unwrap();
    let tokens = pods.iter().map(|pod| pod.volume().join("token"));
    let read = sandbox.run(Command::new("cat").args(tokens)).unwrap();
    assert!(read.success(), "{read:?}");
    let _agent = node.agent.start().unwrap();
    for pod in pods.iter().filter(|_| keeps) {
        let told = || Ok(Some(node.opens_of(pod)?).filter(|opens| !opens.is_empty()));
        let opens = wait_until(PATIENCE, "the open is told", told).unwrap();
        assert_eq!(opens.len(), 1, "{opens:#?}");
    }
}

#[test]
fn whenever_agents_are_killed_each_open_is_read_once() {
    let sandbox = Sandbox::create().unwrap();
    let kept = Kept::new(&sandbox);
    let node = &kept.node;
    let victim = node.workload().unwrap();
    let first = node.agent.start().unwrap();
    let keeps = keeps(&first);
    let mut agent = thread::scope(|scope| {
        let mut agent = first;
        let opener = scope.spawn(|| open_often(&victim));
        for _ in 0..KILLS {
            // Anywhere from the first instructions of a start, when nothing is pinned yet or both sets
            // are, to the quiet after it.
            let chance = random() % 1_000_000;
            if chance.is_multiple_of(2) {
                agent.wait_until_ready().unwrap();
            }
            thread::sleep(Duration::from_micros(chance / 4));
            agent.kill().unwrap();
            agent = node.agent.spawn().unwrap();
        }
        opener.join().unwrap();
        agent
    });
    agent.wait_until_ready().unwrap();
    // Where starts are slow, the opens of before are too long ago for a request by now.
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
    let lost = agent.metric("tokentrail_kernel_lost_total", &[]).unwrap();
    assert!(lost.abs() < f64::EPSILON, "{lost}");
    let gaps = agent.status().unwrap()["gaps"].clone();
    if keeps {
        assert_eq!(kept.opens_by_cat(&victim), OPENS + 1);
        assert_eq!(gaps, Value::Array(Vec::new()));
    }
    assert_eq!(kept.sets().len(), 1, "{:?}", kept.sets());
}

#[test]
fn an_agent_that_stands_by_takes_over_without_missing_or_repeating_an_open() {
    let sandbox = Sandbox::create().unwrap();
    let mut kept = Kept::new(&sandbox);
    kept.node.agent = kept.node.agent.args(["--take-over"]);
    let node = &kept.node;
    let victim = node.workload().unwrap();
    let first = node.agent.start().unwrap();
    let second = node.agent.start().unwrap();
    assert_eq!(kept.sets().len(), 1, "the second keeps nothing while the first one works");
    thread::scope(|scope| {
        let opener = scope.spawn(|| open_often(&victim));
        first.wait_for_metric("tokentrail_kernel_records_total", &[], 10.0).unwrap();
        first.kill().unwrap();
        opener.join().unwrap();
    });
    node.request_by(&victim.pod).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
    if keeps(&second) {
        assert_eq!(kept.opens_by_cat(&victim), OPENS);
    }
    assert_eq!(second.status().unwrap()["gaps"], Value::Array(Vec::new()));
    assert_eq!(kept.sets().len(), 1, "{:?}", kept.sets());
}

#[test]
fn programs_of_another_version_are_read_as_far_as_they_can_be_and_removed() {
    let sandbox = Sandbox::create().unwrap();
    let kept = Kept::new(&sandbox);
    let node = &kept.node;
    let agent = node.agent.start().unwrap();
    let keeps = keeps(&agent);
    let victim = node.workload().unwrap();
    agent.kill().unwrap();
    let (version, number) = kept.pretend_other_version();
    // And what a start left that did not come to its end.
    fs::create_dir(kept.of_node().join("v1/new-1")).unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    if keeps {
        node.the_alert_about(&victim.pod).unwrap();
    }
    let sets = kept.sets();
    assert_eq!(sets.len(), 1, "{sets:?}");
    assert!(sets[0].starts_with(&format!("{version}/")) && !sets[0].ends_with(&number), "{sets:?}");
    assert!(!kept.of_node().join("v1").exists());
}

#[test]
fn who_entered_a_container_before_a_restart_is_known_after_it() {
    let sandbox = Sandbox::create().unwrap();
    let kept = Kept::new(&sandbox);
    let node = &kept.node;
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    // The session ends, what it forked becomes a child of the container's main process and waits.
    let late = format!("while [ ! -e /tmp/go ]; do sleep 0.05; done; cat {TOKEN_PATH}");
    let session = format!("( ({late}) < /dev/null > /dev/null 2>&1 & )");
    victim.container.exec(&["sh", "-c", &session]).unwrap();
    agent.kill().unwrap();
    let _agent = node.agent.start().unwrap();
    victim.container.workload("touch /tmp/go").unwrap();
    let open = wait_until(PATIENCE, "the orphan's open is recorded", || {
        let opens = node.opens_of(&victim.pod)?;
        Ok(opens.into_iter().find(|open| open["process"]["name"] == "cat"))
    });
    assert_eq!(open.unwrap()["tokentrail"]["grade"], "exec");
}

#[test]
fn uninstall_removes_what_every_version_left_and_nothing_of_others() {
    let sandbox = Sandbox::create().unwrap();
    let kept = Kept::new(&sandbox);
    let node = &kept.node;
    let agent = node.agent.start().unwrap();
    let refused = kept.uninstall();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.errors.contains("another tokentrail keeps its programs"), "{refused:?}");
    agent.kill().unwrap();
    let (_, number) = kept.pretend_other_version();
    let others = kept.pins.join("of-somebody-else");
    fs::create_dir(&others).unwrap();

    let removed = kept.uninstall();
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let expected = format!("removed {}\n", kept.of_node().join("v1").join(number).display());
    assert_eq!(removed.output, expected);
    assert!(others.exists() && !kept.of_node().join("v1").exists());

    fs::remove_dir(&others).unwrap();
    for _ in 0..2 {
        let again = kept.uninstall();
        assert_eq!(again.code, Some(0), "{again:?}");
        assert_eq!(again.output, format!("nothing is pinned in {}\n", kept.pins.display()));
    }
    assert!(!kept.pins.exists());

    // Nothing saw this.
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    assert!(node.alerts_about(&victim.pod).unwrap().is_empty());
}

#[test]
fn two_agents_do_not_keep_their_programs_in_one_directory() {
    let sandbox = Sandbox::create().unwrap();
    let kept = Kept::new(&sandbox);
    let agent = kept.node.agent.start().unwrap();
    let mut other = Node::new(&sandbox).unwrap();
    other.agent = other.agent.state(sandbox.folder().join("other-state"));
    other.agent = other.agent.args(["--pin-dir".as_ref(), kept.pins.as_os_str()]);
    let (status, log) = other.agent.spawn().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another tokentrail keeps its programs in"), "{log}");
    assert!(log.contains(&kept.of_node().display().to_string()), "{log}");
    assert_eq!(agent.get("/readyz").unwrap().status, 200, "the first one goes on");
}

#[test]
fn where_nothing_can_be_pinned_the_agent_goes_on_and_says_so() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let pins = sandbox.folder().join("pins");
    node.agent = node.agent.args(["--pin-dir".as_ref(), pins.as_os_str()]);
    let agent = node.agent.start().unwrap();
    let degraded = agent.status().unwrap()["degraded"].to_string();
    assert!(degraded.contains("on no BPF file system"), "{degraded}");
    assert!(!pins.exists());
    let checked = sandbox.run(
        tokentrail()
            .args(["check", "--no-kube", "--pin-dir"])
            .arg(&pins)
            .arg("--state-dir")
            .arg(sandbox.folder()),
    );
    let checked = checked.unwrap();
    let line = checked.output.lines().find(|line| line.contains("pin directory")).unwrap();
    assert!(line.starts_with("WARNING") && line.contains("mount -t bpf"), "{line}");
}

/// An agent that tests itself every second, with its canary in this folder of the sandbox.
fn tests_itself<'sandbox>(sandbox: &'sandbox Sandbox, canary: &Path) -> Node<'sandbox> {
    let config = sandbox.folder().join("config.yaml");
    let text = format!("self-test-seconds: 1\ncanary-dir: {}\n", canary.display());
    fs::write(&config, text).unwrap();
    let mut node = Node::new(sandbox).unwrap();
    node.agent = node.agent.args(["--config".as_ref(), config.as_os_str()]);
    node
}

fn wait_until_not_ready(agent: &Agent) -> String {
    wait_until(PATIENCE, "the sensor makes it unready", || {
        let answer = agent.get("/readyz")?;
        let named = answer.body.lines().find(|line| line.starts_with("sensor: "));
        Ok(named.filter(|_| answer.status == 503).map(str::to_owned))
    })
    .unwrap()
}

#[test]
fn a_sensor_that_does_not_see_its_own_open_makes_the_agent_unready_until_it_does() {
    let sandbox = Sandbox::create().unwrap();
    let canary = sandbox.tmpfs("canary", MountFlags::empty(), c"size=64k").unwrap();
    let node = tests_itself(&sandbox, &canary);
    let mut agent = node.agent.start().unwrap();
    // The canary is written, and nobody tells: it is no tmpfs any more.
    sandbox.file_system("ramfs", "canary", MountFlags::empty(), c"").unwrap();
    let why = wait_until_not_ready(&agent);
    assert!(why.contains("nothing came"), "{why}");
    wait_until(PATIENCE, "attaching anew is tried", || {
        Ok(agent.log().contains("cannot be attached anew").then_some(()))
    })
    .unwrap();
    assert!(agent.log().contains("testing once more"), "{}", agent.log());
    unmount(&canary, UnmountFlags::empty()).unwrap();
    agent.wait_until_ready().unwrap();
    let gaps = agent.status().unwrap()["gaps"].clone();
    assert!(gaps[0]["why"].as_str().unwrap().contains("nothing came"), "{gaps}");
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
}

/// Whether the kernel calls what is attached to functions; dropping it turns that on again.
struct NoFunctionTracing;

impl NoFunctionTracing {
    const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";

    /// None where the kernel does not let go of functions that a trampoline is attached to (5.10), or of
    /// any (7.3).
    fn begin() -> Option<Self> {
        const REFUSALS: [ErrorKind; 2] = [ErrorKind::ResourceBusy, ErrorKind::Unsupported];
        match fs::write(Self::SWITCH, "0") {
            Err(error) if REFUSALS.contains(&error.kind()) => None,
            written => {
                written.unwrap();
                Some(Self)
            }
        }
    }
}

impl Drop for NoFunctionTracing {
    fn drop(&mut self) {
        fs::write(Self::SWITCH, "1").unwrap();
    }
}

#[test]
fn when_a_route_no_longer_fires_the_next_one_is_taken() {
    // For a moment no function of the machine is traced: in a virtual machine alone.
    if env::var("TOKENTRAIL_EXPECT_ROUTE").as_deref() != Ok("fexit") {
        writeln!(stdout(), "skipped: only where fexit is sure to be the route").unwrap();
        return;
    }
    let sandbox = Sandbox::create().unwrap();
    let canary = sandbox.tmpfs("canary", MountFlags::empty(), c"size=64k").unwrap();
    let pins = sandbox.file_system("bpf", "bpf", MountFlags::empty(), c"").unwrap();
    let mut node = tests_itself(&sandbox, &canary);
    node.agent = node.agent.args(["--pin-dir".as_ref(), pins.join("tokentrail").as_os_str()]);
    let mut agent = node.agent.start().unwrap();
    assert_eq!(agent.status().unwrap()["route"], "fexit");
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    let Some(_off) = NoFunctionTracing::begin() else {
        writeln!(stdout(), "skipped: here a trampoline cannot be kept from being called").unwrap();
        return;
    };
    wait_until_not_ready(&agent);
    agent.wait_until_ready().unwrap();
    let found = agent.status().unwrap();
    // On x86 a probe of a function's start is a trace of the function.
    let (dead, alive) =
        ["fexit", "kprobe", "exit"].split_at(if cfg!(target_arch = "x86_64") { 2 } else { 1 });
    assert_eq!(found["route"], alive[0], "{found:#}");
    for route in dead {
        let tried = format!("route {route} does not work here");
        assert!(found["degraded"].to_string().contains(&tried), "{found:#}");
    }
    assert!(found["gaps"][0]["why"].as_str().unwrap().contains("nothing came"), "{found:#}");
    let anew = agent.metric("tokentrail_kernel_attached_anew_total", &[]).unwrap();
    assert!((anew - 1.0).abs() < f64::EPSILON, "{anew}");
    // It sees, and what it sees while the agent is away is kept as before.
    let [seen, unwatched] = &victims;
    seen.attack().unwrap();
    node.request_by(&seen.pod).unwrap();
    node.wait_for("alert", &seen.pod).unwrap();
    agent.kill().unwrap();
    unwatched.attack().unwrap();
    node.request_by(&unwatched.pod).unwrap();
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    node.the_alert_about(&seen.pod).unwrap();
    node.the_alert_about(&unwatched.pod).unwrap();
}

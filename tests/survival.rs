//! What may happen to the agent between an open and its alert: kills, restarts, rotations while it
//! is away, full disks. Whatever it is, every attack is told, and told once.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    fs::{self, OpenOptions},
    hash::{BuildHasher as _, RandomState},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use rustix::{
    mount::MountFlags,
    process::{Pid, Signal, kill_process},
};
use tokentrail_tests::{
    Agent, AuditLine, Node, PATIENCE, Pod, Request, Sandbox, Stage, compress, fill,
    machine::cgroup_hierarchies, wait_until,
};

/// Rounds of the test that kills at random.
const ROUNDS: usize = 10;
/// A page of a tmpfs.
const PAGE: u64 = 4096;

#[test]
fn an_agent_killed_between_open_and_request_tells_the_attack_after_its_restart() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.wait_until_seen(&victim).unwrap();
    let open = &node.opens_of(&victim.pod).unwrap()[0];
    agent.kill().unwrap();
    let killed = Timestamp::now();
    // While nobody watches.
    node.request_by(&victim.pod).unwrap();
    let _agent = node.agent.start().unwrap();
    let alert = node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["tokentrail"]["grade"], "interactive");
    assert_eq!(alert["process"]["pid"], open["process"]["pid"]);
    // The incident is the one that began with the open of before.
    assert_eq!(alert["tokentrail"]["incident"]["first"], open["@timestamp"]);
    let created: Timestamp = alert["event"]["created"].as_str().unwrap().parse().unwrap();
    assert!(created > killed);
}

#[test]
fn an_agent_killed_right_after_an_alert_does_not_tell_it_again() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    agent.kill().unwrap();
    let agent = node.agent.start().unwrap();
    // It was found again, and recognised by its id.
    agent.wait_for_metric("tokentrail_alert_log_duplicates_total", &[], 1.0).unwrap();
    // The incident goes on: one more request of it is no news.
    let line = AuditLine::recorded(Request::GetSecret, Stage::ResponseComplete, &victim.pod);
    node.audit.append(&line.unwrap()).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn an_alert_that_a_crash_cut_off_is_told_whole_after_the_restart() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let [told, cut_off] = [node.workload().unwrap(), node.workload().unwrap()];
    for victim in [&told, &cut_off] {
        victim.attack().unwrap();
        node.request_by(&victim.pod).unwrap();
        node.wait_for("alert", &victim.pod).unwrap();
    }
    agent.kill().unwrap();
    let alerts = OpenOptions::new().write(true).open(node.agent.alerts().path()).unwrap();
    alerts.set_len(alerts.metadata().unwrap().len() - 1_000).unwrap();
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    node.the_alert_about(&told.pod).unwrap();
    node.the_alert_about(&cut_off.pod).unwrap();
}

#[test]
fn whenever_the_agent_is_killed_every_attack_is_told_exactly_once() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let mut victims = Vec::new();
    for _ in 0..ROUNDS {
        let agent = node.agent.start().unwrap();
        let victim = node.workload().unwrap();
        victim.attack().unwrap();
        node.wait_until_seen(&victim).unwrap();
        let chance = random();
        if chance.is_multiple_of(4) {
            agent.kill().unwrap();
            node.request_by(&victim.pod).unwrap();
        } else {
            node.request_by(&victim.pod).unwrap();
            // Around the time that the alert takes, or that until the next checkpoint: the point in
            // the agent's work is the chance.
            let reach = if chance.is_multiple_of(2) { 2_000 } else { 1_500_000 };
            thread::sleep(Duration::from_micros(chance % reach));
            agent.kill().unwrap();
        }
        if chance.is_multiple_of(3) {
            node.audit.rotate_by_rename().unwrap();
        }
        victims.push(victim);
    }
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    for victim in &victims {
        node.the_alert_about(&victim.pod).unwrap();
    }
}

#[test]
fn a_log_that_was_rotated_while_the_agent_was_away_is_read_from_where_it_stopped() {
    rotated_while_away(|_| ());
}

#[test]
fn a_log_that_was_rotated_and_compressed_while_the_agent_was_away_is_read_all_the_same() {
    rotated_while_away(|path| compress(path).unwrap());
}

fn rotated_while_away(then: impl Fn(&Path)) {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    for victim in &victims {
        victim.attack().unwrap();
        node.wait_until_seen(victim).unwrap();
    }
    agent.kill().unwrap();
    for victim in &victims {
        node.request_by(&victim.pod).unwrap();
        then(&node.audit.rotate_by_rename().unwrap());
    }
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    for victim in &victims {
        node.the_alert_about(&victim.pod).unwrap();
    }
}

#[test]
fn an_agent_that_is_asked_to_end_ends_well_and_reads_nothing_twice() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    let status = agent.terminate().unwrap();
    assert_eq!(status.code(), Some(0));
    // Without a checkpoint it would begin at the end and read none of these.
    let other = Pod::create(&sandbox).unwrap();
    for _ in 0..3 {
        node.request_by(&other).unwrap();
    }
    let agent = node.agent.start().unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
    let lines = agent.metric("tokentrail_audit_lines_total", &[]).unwrap();
    assert!((lines - 4.0).abs() < f64::EPSILON, "three and the witness's: {lines}");
    kill_process(Pid::from_raw(agent.pid().cast_signed()).unwrap(), Signal::INT).unwrap();
    let (status, log) = agent.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn alerts_wait_while_the_disk_is_full_and_are_written_once_when_there_is_space() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let disk = sandbox.tmpfs("disk", MountFlags::empty(), c"size=128k").unwrap();
    node.agent = node.agent.alert_log(disk.join("alerts.ndjson"));
    let mut agent = node.agent.start().unwrap();
    let victims = [node.workload().unwrap(), node.workload().unwrap()];
    let ballast = fill_but_a_page(&disk);
    for victim in &victims {
        victim.attack().unwrap();
        node.request_by(&victim.pod).unwrap();
    }
    agent.wait_for_metric("tokentrail_alert_log_pending_lines", &[], 2.0).unwrap();
    agent.wait_for_metric("tokentrail_alert_log_write_failures_total", &[], 1.0).unwrap();
    wait_until_not_ready(&agent, "alert log");
    assert_eq!(agent.get("/livez").unwrap().status, 200);
    assert!(node.agent.alerts().all().unwrap().is_empty());
    fs::remove_file(ballast).unwrap();
    node.settle().unwrap();
    for victim in &victims {
        node.the_alert_about(&victim.pod).unwrap();
    }
    agent.wait_until_ready().unwrap();
}

#[test]
fn an_alert_that_waits_for_space_survives_the_agent() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let disk = sandbox.tmpfs("disk", MountFlags::empty(), c"size=128k").unwrap();
    node.agent = node.agent.alert_log(disk.join("alerts.ndjson"));
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    let ballast = fill_but_a_page(&disk);
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    agent.wait_for_metric("tokentrail_alert_log_pending_lines", &[], 1.0).unwrap();
    // Also with a moment to put things away: there is nowhere to put them.
    assert_eq!(agent.terminate().unwrap().code(), Some(0));
    let agent = node.agent.spawn().unwrap();
    agent.wait_for_metric("tokentrail_alert_log_pending_lines", &[], 1.0).unwrap();
    agent.kill().unwrap();
    fs::remove_file(ballast).unwrap();
    let _agent = node.agent.start().unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn opens_wait_while_the_state_directory_has_no_space_and_then_survive_the_agent() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let disk = sandbox.tmpfs("disk", MountFlags::empty(), c"size=64k").unwrap();
    node.agent = node.agent.state(disk.join("state"));
    let mut agent = node.agent.start().unwrap();
    let [told, untold] = [node.workload().unwrap(), node.workload().unwrap()];
    let ballast = fill(&disk).unwrap();
    told.attack().unwrap();
    untold.attack().unwrap();
    node.request_by(&told.pod).unwrap();
    // Alerts do not depend on it.
    node.wait_for("alert", &told.pod).unwrap();
    wait_until_not_ready(&agent, "journal");
    fs::remove_file(ballast).unwrap();
    agent.wait_until_ready().unwrap();
    agent.kill().unwrap();
    node.request_by(&untold.pod).unwrap();
    let _agent = node.agent.start().unwrap();
    node.settle().unwrap();
    node.the_alert_about(&told.pod).unwrap();
    node.the_alert_about(&untold.pod).unwrap();
}

#[test]
fn nothing_of_the_agent_stays_behind() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let ended = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    assert_eq!(ended.terminate().unwrap().code(), Some(0));
    // One that still runs when the sandbox ends.
    let running = node.agent.start().unwrap();
    victim.attack().unwrap();
    let folder = sandbox.folder().to_path_buf();
    let (agent, main) = (running.pid(), victim.container.main_pid());
    let cgroup = victim.container.cgroup().to_path_buf();
    drop((running, node));
    sandbox.close().unwrap();
    assert!(!folder.exists());
    for pid in [agent, main] {
        // Dead at least: whoever adopted it may reap it a moment later.
        let process = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(process.is_empty() || process.contains(") Z "), "{process}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*folder.to_string_lossy()), "{mounts}");
    for hierarchy in cgroup_hierarchies().unwrap() {
        let left = hierarchy.mount.join(cgroup.parent().unwrap());
        assert!(!left.exists(), "{left:?}");
    }
}

/// As [`fill`], but a piece of an alert still fits.
fn fill_but_a_page(folder: &Path) -> PathBuf {
    let ballast = fill(folder).unwrap();
    let size = fs::metadata(&ballast).unwrap().len();
    OpenOptions::new().write(true).open(&ballast).unwrap().set_len(size - PAGE).unwrap();
    ballast
}

/// Waits until `/readyz` is 503 and names this condition.
fn wait_until_not_ready(agent: &Agent, condition: &str) {
    wait_until(PATIENCE, &format!("{condition} makes it unready"), || {
        let answer = agent.get("/readyz")?;
        let named = answer.body.lines().any(|line| line.starts_with(condition));
        Ok((answer.status == 503 && named).then_some(()))
    })
    .unwrap();
}

/// A number that differs from run to run.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

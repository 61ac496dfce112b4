//! What the harness promises to every other test: its containers are real ones, they read tokens
//! the way people and workloads do, and nothing of them stays behind.

use std::fs;

use anyhow::{Result, ensure};
use tokentrail_tests::{
    Container, Pod, Sandbox, TOKEN_PATH,
    machine::{cgroup_hierarchies, obstacle_to_containers},
};

/// Prints the shell's parent, its controlling terminal (field 7 of `stat`) and its descriptors.
const WHO: &str =
    "cut -d' ' -f4,7 /proc/$$/stat; for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done";

fn container() -> Result<(Sandbox, Pod, Container)> {
    ensure!(obstacle_to_containers().is_none(), "{:?}", obstacle_to_containers());
    let sandbox = Sandbox::create()?;
    let pod = Pod::create(&sandbox)?;
    let container = Container::start(&sandbox, &pod)?;
    Ok((sandbox, pod, container))
}

#[test]
fn a_container_finds_its_token_where_pods_have_it_laid_out_as_the_kubelet_does() {
    let (_sandbox, mut pod, container) = container().unwrap();
    assert_eq!(container.exec(&["cat", TOKEN_PATH]).unwrap().output, pod.token);
    let path = container.exec(&["readlink", "-f", TOKEN_PATH]).unwrap().output;
    assert!(path.starts_with("/run/secrets/kubernetes.io/serviceaccount/..2"), "{path}");
    let old = pod.token.clone();
    pod.rotate_token().unwrap();
    assert_ne!(pod.token, old);
    assert_eq!(container.exec(&["cat", TOKEN_PATH]).unwrap().output, pod.token);
}

#[test]
fn a_container_is_in_its_pods_cgroup_in_every_hierarchy() {
    let (_sandbox, pod, container) = container().unwrap();
    let pid = container.main_pid();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let expected = format!("/kubepods/burstable/pod{}/{}", pod.uid, container.id());
    assert!(cgroups.lines().all(|line| line.ends_with(&expected)), "{cgroups}");
    for hierarchy in cgroup_hierarchies().unwrap() {
        let procs = hierarchy.mount.join(container.cgroup()).join("cgroup.procs");
        let procs = fs::read_to_string(procs).unwrap();
        assert!(procs.lines().any(|line| line == pid.to_string()), "{hierarchy:?}: {procs:?}");
    }
}

#[test]
fn a_session_with_a_terminal_is_controlled_by_it_and_has_it_as_its_descriptors() {
    let (_sandbox, _pod, container) = container().unwrap();
    let shown = container.exec_tty(&["sh", "-c", WHO]).unwrap().output;
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    // Major 136, the first devpts device: the container has an instance of its own.
    assert_eq!(lines, ["0 34816", "/dev/pts/0", "/dev/pts/0", "/dev/pts/0"]);
}

#[test]
fn a_terminal_session_may_have_its_errors_elsewhere() {
    let (_sandbox, _pod, container) = container().unwrap();
    let shown = container.exec_tty_without_errors(&["sh", "-c", WHO]).unwrap().output;
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    assert_eq!(lines, ["0 34816", "/dev/pts/0", "/dev/pts/0", "/dev/null"]);
}

#[test]
fn a_session_without_a_terminal_has_none_and_comes_from_outside_the_container() {
    let (_sandbox, _pod, container) = container().unwrap();
    let output = container.exec(&["sh", "-c", WHO]).unwrap().output;
    assert!(output.starts_with("0 0\n"), "parent 0 and terminal 0 expected: {output}");
    assert!(!output.contains("/dev/pts"), "{output}");
}

#[test]
fn the_workload_itself_reads_in_the_main_processs_own_tree() {
    let (_sandbox, pod, container) = container().unwrap();
    let read = container.workload(&format!("cat {TOKEN_PATH}")).unwrap();
    assert!(read.success());
    assert_eq!(read.output, pod.token);
    // Its parent is the main process (1 in the container), and it has no terminal.
    let who = container.workload("cut -d' ' -f4,7 /proc/self/stat").unwrap();
    assert_eq!(who.output, "1 0\n");
    assert_eq!(container.workload("exit_code() { return 7; }; exit_code").unwrap().code, Some(7));
}

#[test]
fn nothing_stays_behind_when_a_sandbox_ends() {
    let (sandbox, pod, container) = container().unwrap();
    let folder = sandbox.folder().to_path_buf();
    let stat = format!("/proc/{}/stat", container.main_pid());
    sandbox.close().unwrap();
    assert!(!folder.exists());
    // Dead at least: whoever adopted it may reap it a moment later.
    let process = fs::read_to_string(&stat).unwrap_or_default();
    assert!(process.is_empty() || process.contains(") Z "), "{process}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&pod.uid), "{mounts}");
    for hierarchy in cgroup_hierarchies().unwrap() {
        let left = hierarchy.mount.join(container.cgroup().parent().unwrap());
        assert!(!left.exists(), "{left:?}");
    }
}

//! A container's main process, found over made-up trees.

use tokentrail_ebpf::OpenRecord;

use super::*;
use crate::attribution::fixture::{
    CONTAINER, Node, POD, ancestor, cgroup_names, cgroup_of, exec_record, record,
};

fn processes(node: &Node) -> Processes {
    Processes::new(node.path("proc"), node.path("cgroup"))
}

fn is_native(processes: &mut Processes, record: &OpenRecord) -> Option<bool> {
    let reader = Reader::of(record, processes, None);
    processes.is_native(record.entry_cgroup, &reader)
}

#[test]
fn stat_lines_are_read_whatever_the_process_is_called() {
    let rest = "S 50 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 5000 0 0";
    for comm in ["app", "a b", "a) S 1 (b", ")", ""] {
        let stat = Stat { comm: comm.to_owned(), ppid: 50, start_ticks: 5_000 };
        assert_eq!(Stat::parse(&format!("100 ({comm}) {rest}\n")), Some(stat), "{comm}");
    }
    for text in ["", "100 (app)", "100 (app) S", "100 (app) S x 1", "100 app S 50 1 1 0"] {
        assert_eq!(Stat::parse(text), None, "{text}");
    }
}

#[test]
fn the_process_that_started_first_is_the_main_one() {
    let node = Node::new();
    node.process(190, "sh", 50, 7_000, &cgroup_of(POD));
    // Started in the same tick as its parent, under a smaller id.
    node.process(99, "child", 100, 5_000, &cgroup_of(POD));
    node.cgroup("memory", &cgroup_of(POD), &[99, 100, 190, 4_242]);
    let mut processes = processes(&node);
    assert_eq!(is_native(&mut processes, &record()), Some(true));
    assert_eq!(is_native(&mut processes, &exec_record()), Some(false));
}

#[test]
fn cgroups_are_found_in_every_kind_of_hierarchy() {
    for hierarchy in ["", "unified", "memory", "pids", "systemd"] {
        let node = Node::new();
        fs::remove_dir_all(node.path("cgroup")).unwrap();
        node.cgroup(hierarchy, &cgroup_of(POD), &[100]);
        assert_eq!(is_native(&mut processes(&node), &record()), Some(true), "{hierarchy}");
    }
}

#[test]
fn groups_inside_the_container_belong_to_it() {
    // crun's `container`; systemd moves even the main process.
    for below in ["container", "init.scope"] {
        let node = Node::new();
        let nested = format!("{}/{below}", cgroup_of(POD));
        node.cgroup("memory", &cgroup_of(POD), &[]);
        node.cgroup("memory", &nested, &[100]);
        let record = OpenRecord { cgroup_names: cgroup_names(&nested), ..record() };
        assert_eq!(is_native(&mut processes(&node), &record), Some(true), "{below}");
    }
}

#[test]
fn a_walk_that_ended_at_an_inner_group_goes_on_to_the_containers_border() {
    let node = Node::new();
    let service = format!("{}/system.slice/ssh.service", cgroup_of(POD));
    node.process(150, "sshd", 100, 6_000, &service);
    node.cgroup("memory", &service, &[150]);
    let by_service = OpenRecord {
        entry_cgroup: ancestor(150, 6_000, 30, "sshd"),
        cgroup_names: cgroup_names(&service),
        ..record()
    };
    assert_eq!(is_native(&mut processes(&node), &by_service), Some(true));
    // Entered from outside and moved itself there.
    node.process(50, "containerd-shim", 1, 4_000, "/system.slice/containerd.service");
    node.process(160, "sh", 50, 6_500, &service);
    let entered = OpenRecord { entry_cgroup: ancestor(160, 6_500, 31, "sh"), ..by_service };
    assert_eq!(is_native(&mut processes(&node), &entered), Some(false));
}

#[test]
fn where_the_agent_sees_another_root_the_path_is_still_found() {
    // kind: the kernel names what lies above the node's own cgroup namespace.
    let node = Node::new();
    let path = format!("/docker/{}{}", "0".repeat(64), cgroup_of(POD));
    let record = OpenRecord { cgroup_names: cgroup_names(&path), ..record() };
    assert_eq!(is_native(&mut processes(&node), &record), Some(true));
}

#[test]
fn a_path_too_deep_for_the_record_is_read_from_proc() {
    let node = Node::new();
    let path = format!("/a/b/c/d{}", cgroup_of(POD));
    node.process(100, "app", 50, 5_000, &path);
    fs::remove_dir_all(node.path("cgroup")).unwrap();
    node.cgroup("memory", &path, &[100]);
    let record = OpenRecord { cgroup_names: cgroup_names(&path), ..record() };
    assert_eq!(is_native(&mut processes(&node), &record), Some(true));
    // Nobody left to ask.
    node.end(100);
    assert_eq!(is_native(&mut processes(&node), &record), None);
}

#[test]
fn the_main_process_is_remembered_beyond_its_end_and_found_anew_after_a_change() {
    let node = Node::new();
    let mut processes = processes(&node);
    assert_eq!(is_native(&mut processes, &record()), Some(true));
    node.end(100);
    node.cgroup("memory", &cgroup_of(POD), &[]);
    assert_eq!(is_native(&mut processes, &record()), Some(true), "its last open, read late");
    assert_eq!(is_native(&mut processes, &exec_record()), None);
    // The id passes to another process: not the same start, not the main process.
    node.process(100, "app", 50, 9_999, &cgroup_of(POD));
    node.cgroup("memory", &cgroup_of(POD), &[100]);
    let reused = OpenRecord { entry_cgroup: ancestor(100, 9_999, 1, "app"), ..record() };
    assert_eq!(is_native(&mut processes, &reused), Some(true));
}

#[test]
fn a_container_with_too_many_processes_or_groups_has_no_known_main_process() {
    let node = Node::new();
    let crowd: Vec<u32> = (1_000..).take(MAX_PROCESSES + 1).collect();
    node.cgroup("memory", &cgroup_of(POD), &crowd);
    assert_eq!(is_native(&mut processes(&node), &record()), None);
    let node = Node::new();
    for index in 0..=MAX_CGROUPS {
        node.cgroup("memory", &format!("{}/{index}", cgroup_of(POD)), &[100]);
    }
    assert_eq!(is_native(&mut processes(&node), &record()), None);
}

#[test]
fn names_cannot_lead_out_of_the_cgroup_tree() {
    let node = Node::new();
    let processes = processes(&node);
    assert_eq!(processes.cgroup_directory(&["memory", "..", "..", "proc"]), None);
    assert_eq!(processes.cgroup_directory(&[]), None);
    let found = processes.cgroup_directory(&cgroup::components(&cgroup_of(POD))).unwrap();
    assert!(found.ends_with(CONTAINER));
}

#[test]
fn where_the_node_is_a_container_processes_are_known_by_their_start() {
    let node = Node::new();
    fs::create_dir_all(node.path("proc/self/ns")).unwrap();
    std::os::unix::fs::symlink("pid:[4026532555]", node.path("proc/self/ns/pid")).unwrap();
    // The kernel's ids are not the node's.
    let seen_from_above = |record: OpenRecord| {
        let mut entry_cgroup = record.entry_cgroup;
        entry_cgroup.tgid += 10_000;
        OpenRecord { tgid: record.tgid + 10_000, entry_cgroup, ..record }
    };
    let mut processes = processes(&node);
    assert_eq!(is_native(&mut processes, &seen_from_above(record())), Some(true));
    assert_eq!(is_native(&mut processes, &seen_from_above(exec_record())), Some(false));
}

//! Records of which the kernel side could not read much, on the made-up node.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
};

use super::*;
use crate::attribution::fixture::{Node, POD, cgroup_names, cgroup_of, name, names, record};

const PATH: &str =
    "/var/run/secrets/kubernetes.io/serviceaccount/..2024_11_24_09_06_53.36769/token";

/// The read that the kernel side would have told with all its facts, told by types alone.
fn unread() -> OpenRecord {
    OpenRecord {
        missing: COMPLETABLE,
        file_name: [0; _],
        parent_name: [0; _],
        mount_names: names(["", "", ""]),
        exe_names: names(["", "", ""]),
        cgroup_names: cgroup_names(""),
        path: name(PATH),
        ..record()
    }
}

fn completed(node: &Node, record: &OpenRecord) -> OpenRecord {
    let config = node.config();
    let mut processes = Processes::new(config.proc_root, config.cgroup_root);
    complete(record, &mut processes).unwrap()
}

/// A node as of cgroup v2, and the id of the container's group.
fn unified() -> (Node, u64) {
    let node = Node::new();
    node.write("cgroup/cgroup.controllers", "memory pids\n");
    node.cgroup("", &cgroup_of(POD), &[100]);
    let id = fs::metadata(node.path(&format!("cgroup{}", cgroup_of(POD)))).unwrap().ino();
    (node, id)
}

#[test]
fn a_record_that_lacks_nothing_is_left_as_it_is() {
    let node = Node::new();
    let config = node.config();
    let mut processes = Processes::new(config.proc_root, config.cgroup_root);
    assert_eq!(complete(&record(), &mut processes), None);
    // Nobody can say this later.
    let nameless = OpenRecord { missing: Missing::NAMESPACES, ..record() };
    assert_eq!(complete(&nameless, &mut processes), None);
}

#[test]
fn a_live_process_completes_everything() {
    let (node, cgroup_id) = unified();
    node.write("proc/100/cmdline", "app\0--verbose\0\0");
    for descriptor in ["0", "1"] {
        fs::create_dir_all(node.path("proc/100/fd")).unwrap();
        symlink("/dev/null", node.path(&format!("proc/100/fd/{descriptor}"))).unwrap();
    }
    node.executable(100, "usr/bin/app");
    let found = completed(&node, &OpenRecord { cgroup_id, ..unread() });
    assert_eq!(found.missing, 0);
    assert_eq!(found.file_name, name("token"));
    assert_eq!(found.parent_name, name("..2024_11_24_09_06_53.36769"));
    assert_eq!(found.mount_names, names(["serviceaccount", "kubernetes.io", "secrets"]));
    assert_eq!(found.exe_names, names(["app", "bin", "usr"]));
    assert_eq!(found.cgroup_names, cgroup_names(&cgroup_of(POD)));
    let length = usize::try_from(found.argv_len).unwrap();
    assert_eq!(&found.argv[..length], b"app\0--verbose\0\0", "an empty word is one");
    let null = kernel_dev(1, 3);
    assert_eq!(found.fds.map(|fd| fd.rdev), [null, null, 0], "the third is closed");
}

#[test]
fn what_a_process_that_is_gone_cannot_tell_stays_missing() {
    let (node, cgroup_id) = unified();
    // Another one has its id by now.
    node.process(100, "other", 1, 6_000, "/");
    node.write("proc/100/cmdline", "other\0");
    node.executable(100, "usr/bin/other");
    let found = completed(&node, &OpenRecord { cgroup_id, ..unread() });
    assert_eq!(found.missing, Missing::EXECUTABLE | Missing::ARGV | Missing::DESCRIPTORS);
    assert_eq!((found.argv_len, found.exe_names), (0, names(["", "", ""])));
    assert_eq!(found.cgroup_names, cgroup_names(&cgroup_of(POD)), "its group is still there");
}

#[test]
fn a_group_is_searched_for_once_and_those_that_came_since_are_found() {
    let (node, cgroup_id) = unified();
    let config = node.config();
    let mut processes = Processes::new(config.proc_root, config.cgroup_root);
    assert_eq!(processes.cgroup_of_id(0), None);
    assert_eq!(processes.cgroup_of_id(u64::MAX), None);
    assert_eq!(processes.cgroup_of_id(cgroup_id), Some(cgroup_of(POD)));
    let later = format!("{}/later", cgroup_of(POD));
    node.cgroup("", &later, &[]);
    let id = fs::metadata(node.path(&format!("cgroup{later}"))).unwrap().ino();
    assert_eq!(processes.cgroup_of_id(id), Some(later));
    // Ids of v1 are those of one hierarchy of several.
    fs::remove_file(node.path("cgroup/cgroup.controllers")).unwrap();
    assert_eq!(processes.cgroup_of_id(cgroup_id), None);
}

#[test]
fn a_path_that_no_kubelet_made_names_no_mount() {
    let node = Node::new();
    let path = |path: &str| completed(&node, &OpenRecord { path: name(path), ..unread() });
    let found = path("/token");
    assert_ne!(found.missing & Missing::MOUNT, 0);
    assert_ne!(found.missing & Missing::FILE_NAME, 0, "its directory is the root");
    let found = path("");
    assert_ne!(found.missing & Missing::FILE_NAME, 0);
    let found = path("/a/..2024/deep/er/tok");
    assert_eq!(found.parent_name, name("er"));
    assert_eq!(found.mount_names, names(["a", "", ""]));
}

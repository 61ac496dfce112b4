//! Records of a made-up node, and what becomes of them.

use std::fs;

use tokentrail_ebpf::{Ancestor, Missing, OpenRecord, TaskKey};

use super::{
    fixture::{
        CONTAINER, Node, OTHER_POD, OWN, PIPE, POD, PTS, PTY, TICK, ancestor, cgroup_names,
        cgroup_of, exec_record, name, names, record,
    },
    pods::{ContainerKind, Pod, PodChange, Projected, ProjectedFile},
    *,
};

const TIMES: OpenTimes = OpenTimes { time: Micros(1_000_000), wall: Micros(2_000_000) };

fn attribute(node: &Node, record: &OpenRecord) -> Result<TokenOpen, Ignored> {
    node.attributor().attribute(record, TIMES, &PodIndex::default())
}

fn grade(node: &Node, record: &OpenRecord) -> Result<Grade, Ignored> {
    attribute(node, record).map(|open| open.grade)
}

/// A process of the host.
fn host_record(comm: &str) -> OpenRecord {
    OpenRecord {
        tgid: 300,
        cgroup_names: cgroup_names("/user.slice/session-1.scope"),
        leader_comm: name(comm),
        pidns_level: 0,
        ..record()
    }
}

#[test]
fn the_open_says_whose_token_was_read_by_whom() {
    let node = Node::new();
    let open = attribute(&node, &record()).unwrap();
    assert_eq!(open.pod_uid.as_deref(), Some(POD));
    assert_eq!(open.volume.unwrap().name, "kube-api-access-x2v9d");
    let reader = open.reader.unwrap();
    assert_eq!((reader.pod_uid.as_str(), reader.container_id.as_deref()), (POD, Some(CONTAINER)));
    assert_eq!(open.path, "/var/run/secrets/kubernetes.io/serviceaccount/token");
    assert_eq!((open.time, open.wall, open.ktime_ns), (TIMES.time, TIMES.wall, 9_000 * TICK));
    assert_eq!((open.process.tgid, open.pid, open.entry.key.tgid), (100, 101, 100));
    assert_eq!((open.comm.as_str(), open.leader_comm.as_str()), ("worker", "app"));
    assert_eq!((open.executable.as_str(), open.executable_id), ("/bin/app", (9, 1_000)));
    assert_eq!((open.cgroup, open.route.as_str()), (cgroup_of(POD), "fexit"));
    assert_eq!((open.tty, open.native, open.degraded), (None, Some(true), vec![]));
}

#[test]
fn the_grade_tells_the_manner_of_the_open() {
    let node = Node::new();
    let tty = |record| OpenRecord { tty_dev: PTS, fds: [PTY; 3], ..record };
    let half = |record| OpenRecord { tty_dev: PTS, fds: [PTY, PTY, PIPE], ..record };
    for (record, expected, native) in [
        (record(), Grade::Workload, Some(true)),
        (exec_record(), Grade::Exec, Some(false)),
        (tty(exec_record()), Grade::Interactive, Some(false)),
        (tty(record()), Grade::Interactive, Some(true)),
        (half(exec_record()), Grade::Terminal, Some(false)),
        (half(record()), Grade::Terminal, Some(true)),
        (tty(host_record("cat")), Grade::Outside, None),
    ] {
        let open = attribute(&node, &record).unwrap();
        assert_eq!((open.grade, open.native), (expected, native));
    }
    let open = attribute(&node, &tty(exec_record())).unwrap();
    assert!(open.interactive());
    assert_eq!(open.tty, Some((136, 0)));
}

#[test]
fn another_pods_process_and_the_hosts_are_outside() {
    let node = Node::new();
    let neighbour = OpenRecord { cgroup_names: cgroup_names(&cgroup_of(OTHER_POD)), ..record() };
    let open = attribute(&node, &neighbour).unwrap();
    assert_eq!(open.grade, Grade::Outside);
    assert_eq!(open.pod_uid.as_deref(), Some(POD), "the victim, not the reader");
    assert_eq!(open.reader.unwrap().pod_uid, OTHER_POD);

    let open = attribute(&node, &host_record("cat")).unwrap();
    assert_eq!((open.grade, open.reader, open.native), (Grade::Outside, None, None));
    assert_eq!(open.pod_uid.as_deref(), Some(POD));

    // Through /proc/<pid>/root, of a volume that mountinfo does not show.
    let unknown = OpenRecord { s_dev: 4_000, ..host_record("cat") };
    let open = attribute(&node, &unknown).unwrap();
    assert_eq!((open.grade, open.pod_uid), (Grade::Outside, None));
    assert_eq!(open.degraded, ["volume"]);
}

#[test]
fn a_volume_that_mountinfo_does_not_show_is_the_readers() {
    let node = Node::new();
    for mount in [
        ["serviceaccount", "kubernetes.io", "secrets"],
        ["kube-api-access-x2v9d", "kubernetes.io~projected", "volumes"],
    ] {
        let unknown = OpenRecord { s_dev: 4_000, mount_names: names(mount), ..record() };
        let open = attribute(&node, &unknown).unwrap();
        assert_eq!((open.grade, open.pod_uid.as_deref()), (Grade::Workload, Some(POD)));
        assert_eq!((open.volume, open.degraded), (None, vec!["volume".to_owned()]));
    }
}

#[test]
fn what_is_no_token_of_a_service_account_is_ignored() {
    let node = Node::new();
    let file = |name_: &str| OpenRecord { file_name: name(name_), ..record() };
    let elsewhere = names(["certs", "etc", "/"]);
    for (record, expected) in [
        (file("token"), Ok(Grade::Workload)),
        (file("ca.crt"), Ok(Grade::Workload)),
        (file("namespace"), Err(Ignored::OtherFile)),
        (file("service-ca.crt"), Err(Ignored::OtherFile)),
        (OpenRecord { s_dev: 4_000, ..file("namespace") }, Err(Ignored::OtherFile)),
        (OpenRecord { open_flags: 0o1101, ..record() }, Err(Ignored::WriteOnly)),
        (OpenRecord { open_flags: 0o2, ..record() }, Ok(Grade::Workload)),
        // A known volume counts wherever it is mounted, an unknown one does not.
        (OpenRecord { mount_names: elsewhere, ..record() }, Ok(Grade::Workload)),
        (
            OpenRecord { s_dev: 4_000, mount_names: elsewhere, ..record() },
            Err(Ignored::NotServiceAccountVolume),
        ),
        (OpenRecord { tgid: OWN, ..record() }, Err(Ignored::Own)),
    ] {
        assert_eq!(grade(&node, &record), expected);
    }
    assert_eq!(attribute(&node, &file("ca.crt")).unwrap().file, TokenFile::CaCert);
}

#[test]
fn a_hard_link_to_the_token_is_the_token_by_another_name() {
    let node = Node::new();
    let volume = "proc/1/root/var/lib/kubelet/pods/".to_owned()
        + &format!("{POD}/volumes/kubernetes.io~projected/kube-api-access-x2v9d");
    let inode = |name: &str| {
        let found = fs::metadata(node.path(&format!("{volume}/{name}"))).unwrap();
        std::os::unix::fs::MetadataExt::ino(&found)
    };
    let link = |file_ino| OpenRecord { file_name: name("innocent"), file_ino, ..record() };
    let open = attribute(&node, &link(inode("token"))).unwrap();
    assert_eq!((open.file, open.grade), (TokenFile::Token, Grade::Workload));
    assert_eq!(grade(&node, &link(inode("namespace"))), Err(Ignored::OtherFile));
    // Inode numbers are a volume's own.
    let elsewhere = OpenRecord { s_dev: 4_000, ..link(inode("token")) };
    assert_eq!(grade(&node, &elsewhere), Err(Ignored::OtherFile));
}

#[test]
fn what_the_pods_spec_calls_a_token_is_one_and_nothing_else() {
    let node = Node::new();
    let index = |files: &[(&str, Option<TokenFile>)]| {
        let files =
            files.iter().map(|(path, file)| ProjectedFile { path: (*path).into(), file: *file });
        let name = "kube-api-access-x2v9d".into();
        let projected = vec![Projected { name, files: files.collect(), has_secret: false }];
        let pod = Pod { uid: POD.into(), projected, ..Pod::default() };
        let mut pods = PodIndex::default();
        pods.apply(PodChange::Present(Box::new(pod)), TIMES.time);
        pods
    };
    let beside = index(&[("token", None), ("a/b/tok", Some(TokenFile::Token))]);
    let others = index(&[("token", None)]);
    let nested = OpenRecord { file_name: name("tok"), parent_name: name("b"), ..record() };
    // Of another file system, mounted where tokens are: nothing is known of it.
    let unknown = OpenRecord { s_dev: 4_000, ..record() };
    for (pods, record, expected) in [
        (&beside, &nested, Ok(TokenFile::Token)),
        (&beside, &record(), Err(Ignored::OtherFile)),
        (&others, &record(), Err(Ignored::NotServiceAccountVolume)),
        (&others, &nested, Err(Ignored::NotServiceAccountVolume)),
        (&others, &unknown, Ok(TokenFile::Token)),
        (&PodIndex::default(), &record(), Ok(TokenFile::Token)),
        (&PodIndex::default(), &nested, Err(Ignored::OtherFile)),
    ] {
        let open = node.attributor().attribute(record, TIMES, pods);
        assert_eq!(open.map(|open| open.file), expected);
    }
    let open = node.attributor().attribute(&nested, TIMES, &beside).unwrap();
    assert_eq!(
        open.path, "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "as rules know it"
    );
    assert!(open.raw_path.ends_with("/b/tok"), "{}", open.raw_path);
}

#[test]
fn pods_of_another_node_on_this_kernel_are_out_of_scope() {
    let node = Node::new();
    let config = AttributionConfig { kubelet_cgroup: Some("/node-a".to_owned()), ..node.config() };
    let mut attributor = Attributor::new(config, None, AttributionMetrics::default()).unwrap();
    let mut grade = |path: &str, s_dev| {
        let cgroup_names = cgroup_names(path);
        let record = OpenRecord { cgroup_names, s_dev, ..record() };
        attributor.attribute(&record, TIMES, &PodIndex::default()).map(|open| open.grade)
    };
    let (ours, theirs) =
        (format!("/node-a{}", cgroup_of(POD)), format!("/node-b{}", cgroup_of(OTHER_POD)));
    assert_eq!(grade(&ours, 77), Ok(Grade::Workload));
    assert_eq!(grade(&ours, 4_000), Ok(Grade::Workload));
    assert_eq!(grade(&theirs, 4_000), Err(Ignored::OutOfScope));
    assert_eq!(grade(&theirs, 77), Ok(Grade::Outside), "our token, read from over there");
}

#[test]
fn the_agents_own_cgroup_says_which_pods_are_this_nodes() {
    let node = Node::new();
    let own = OpenRecord {
        cgroup_names: cgroup_names(&format!("/node-a{}", cgroup_of(OTHER_POD))),
        ..record()
    };
    let metrics = AttributionMetrics::default();
    let mut attributor = Attributor::new(node.config(), Some(&own), metrics).unwrap();
    for (path, expected) in [
        (format!("/node-a{}", cgroup_of(POD)), Ok(Grade::Workload)),
        (format!("/node-b{}", cgroup_of(POD)), Err(Ignored::OutOfScope)),
    ] {
        let record = OpenRecord { cgroup_names: cgroup_names(&path), s_dev: 4_000, ..record() };
        let open = attributor.attribute(&record, TIMES, &PodIndex::default());
        assert_eq!(open.map(|open| open.grade), expected, "{path}");
    }
}

/// An index with the pod, whose container runs `command` as a probe.
fn index_with(kind: ContainerKind, command: &[&str]) -> PodIndex {
    let container = pods::Container {
        name: "main".into(),
        kind,
        image: "app:1".into(),
        digest: None,
        ids: vec![CONTAINER.into()],
        blocked: false,
        hooks: vec![pods::Hook(command.iter().map(|word| (*word).into()).collect())],
    };
    let pod = Pod { uid: POD.into(), containers: vec![container], ..Pod::default() };
    let mut pods = PodIndex::default();
    pods.apply(PodChange::Present(Box::new(pod)), TIMES.time);
    pods
}

#[test]
fn a_session_with_the_command_of_a_probe_is_the_workloads() {
    let node = Node::new();
    let pods = index_with(ContainerKind::Main, &["sh", "-c", "cat token"]);
    let told = |command: &[u8]| {
        let mut record =
            OpenRecord { entry_cgroup: ancestor(200, 8_000, 20, "sh"), ..exec_record() };
        record.argv[..command.len()].copy_from_slice(command);
        record.argv_len = u32::try_from(command.len()).unwrap();
        record
    };
    let by_child = exec_record();
    let grade = |record: &OpenRecord| {
        node.attributor().attribute(record, TIMES, &pods).map(|open| open.grade)
    };
    // The opener is the entry process: the record tells.
    assert_eq!(grade(&told(b"sh\0-c\0cat token\0")), Ok(Grade::Workload));
    assert_eq!(grade(&told(b"sh\0-c\0cat  token\0")), Ok(Grade::Exec));
    assert_eq!(grade(&told(b"sh\0-c\0cat\0")), Ok(Grade::Exec));
    assert_eq!(grade(&told(&[b'x'; tokentrail_ebpf::TEXT_LEN])), Ok(Grade::Exec), "cut off");
    let unread = OpenRecord { missing: Missing::ARGV, ..told(b"sh\0-c\0cat token\0") };
    assert_eq!(grade(&unread), Ok(Grade::Exec), "not read");
    // A child opens: its entry process is asked, as long as it lives.
    assert_eq!(grade(&by_child), Ok(Grade::Exec), "gone");
    node.process(190, "sh", 50, 7_000, &cgroup_of(POD));
    node.write("proc/190/cmdline", "sh\0-c\0cat token\0");
    assert_eq!(grade(&by_child), Ok(Grade::Workload));
    node.process(190, "sh", 50, 7_001, &cgroup_of(POD));
    assert_eq!(grade(&by_child), Ok(Grade::Exec), "another process of that id");
    // What it began with counts before anything it has become, and when it is gone.
    let began = |command: &[u8], length: u32| {
        let mut record = told(b"sh\0-c\0cat token\0");
        record.session_command.length = length;
        record.session_command.text[..command.len()].copy_from_slice(command);
        record
    };
    assert_eq!(grade(&began(b"sh\0-c\0id\0", 9)), Ok(Grade::Exec), "a disguise");
    let gone = OpenRecord { tgid: 300, ..began(b"sh\0-c\0cat token\0", 16) };
    assert_eq!(grade(&gone), Ok(Grade::Workload));
    let long = began(&[b'x'; tokentrail_ebpf::COMMAND_LEN], 300);
    assert_eq!(grade(&long), Ok(Grade::Workload), "cut off: its present command has to do");
    // A terminal is never the kubelet's.
    let tty = OpenRecord { tty_dev: PTS, fds: [PTY; 3], ..told(b"sh\0-c\0cat token\0") };
    assert_eq!(grade(&tty), Ok(Grade::Interactive));
}

#[test]
fn whoever_was_forked_in_a_session_is_of_it_whatever_its_parent_is_now() {
    let node = Node::new();
    let shell = TaskKey { start_boottime_ns: 7_000 * TICK, tgid: 190 };
    let mut orphan = OpenRecord {
        tgid: 300,
        start_boottime_ns: 8_000 * TICK,
        session: shell,
        // Its parent is the container's main process by now.
        ..record()
    };
    orphan.session_command.text[..9].copy_from_slice(b"/bin/sh\0x");
    let open = node.attributor().attribute(&orphan, TIMES, &PodIndex::default()).unwrap();
    assert_eq!((open.grade, open.native), (Grade::Exec, Some(false)));
    assert_eq!((open.entry.key.tgid, open.entry.comm.as_str()), (190, "sh"));

    // Also where more processes are between than the kernel side's walk passes.
    let deep = OpenRecord {
        missing: Missing::ANCESTORS,
        entry_cgroup: Ancestor { tgid: 0, ..orphan.entry_cgroup },
        entry_pidns: Ancestor { tgid: 0, ..orphan.entry_pidns },
        ..orphan
    };
    let open = node.attributor().attribute(&deep, TIMES, &PodIndex::default()).unwrap();
    assert_eq!((open.grade, open.native), (Grade::Exec, Some(false)));

    // Also where the main process cannot be told.
    fs::remove_dir_all(node.path("proc/100")).unwrap();
    let open = node.attributor().attribute(&orphan, TIMES, &PodIndex::default()).unwrap();
    assert_eq!(open.grade, Grade::Exec);

    // Without a pid namespace of its own, the main process's own orphans are told of as well.
    let node = Node::new();
    let main = TaskKey { start_boottime_ns: 5_000 * TICK + 1_234, tgid: 100 };
    let daemon = OpenRecord { session: main, entry_cgroup: ancestor(300, 8_000, 9, "d"), ..orphan };
    let open = node.attributor().attribute(&daemon, TIMES, &PodIndex::default()).unwrap();
    assert_eq!((open.grade, open.native), (Grade::Workload, Some(true)));
}

#[test]
fn the_first_process_of_an_ephemeral_container_has_entered() {
    let node = Node::new();
    for (kind, expected) in [
        (ContainerKind::Ephemeral, Grade::Exec),
        (ContainerKind::Main, Grade::Workload),
        (ContainerKind::Sidecar, Grade::Workload),
    ] {
        let pods = index_with(kind, &[]);
        let open = node.attributor().attribute(&record(), TIMES, &pods).unwrap();
        assert_eq!((open.grade, open.native), (expected, Some(true)), "{kind:?}");
    }
}

/// A node whose kubelet is process 60, and a record of its open.
fn node_with_kubelet() -> (Node, OpenRecord) {
    let node = Node::new();
    node.process(60, "kubelet", 1, 800, "/system.slice/kubelet.service");
    node.executable(60, "usr/bin/kubelet");
    fs::copy(node.path("proc/1/mountinfo"), node.path("proc/60/mountinfo")).unwrap();
    std::os::unix::fs::symlink(node.path("proc/1/root"), node.path("proc/60/root")).unwrap();
    let by_kubelet = OpenRecord {
        tgid: 60,
        start_boottime_ns: 800 * TICK + 5,
        cgroup_names: cgroup_names("/system.slice/kubelet.service"),
        ..host_record("kubelet")
    };
    (node, by_kubelet)
}

#[test]
fn the_kubelet_is_known_by_its_executable_not_by_its_name() {
    use std::os::unix::fs::MetadataExt;
    let (node, by_kubelet) = node_with_kubelet();
    assert_eq!(grade(&node, &by_kubelet), Err(Ignored::Kubelet));

    // Another process, and another name, but its executable.
    let file = fs::metadata(node.path("usr/bin/kubelet")).unwrap();
    let dev = volumes::kernel_dev(rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let restarted = OpenRecord { exe_dev: dev, exe_ino: file.ino(), ..host_record("renamed") };
    assert_eq!(grade(&node, &restarted), Err(Ignored::Kubelet));

    // Another executable under its name, also if it runs while the agent looks.
    node.process(300, "kubelet", 1, 5_000, "/user.slice/session-1.scope");
    node.executable(300, "tmp/kubelet");
    assert_eq!(grade(&node, &host_record("kubelet")), Ok(Grade::Outside));

    // In a pod nobody is the kubelet.
    let file = fs::metadata(node.path("usr/bin/kubelet")).unwrap();
    let in_pod = OpenRecord {
        exe_dev: dev,
        exe_ino: file.ino(),
        cgroup_names: cgroup_names(&cgroup_of(OTHER_POD)),
        ..record()
    };
    assert_eq!(grade(&node, &in_pod), Ok(Grade::Outside));
}

#[test]
fn a_kubelet_that_starts_after_the_agent_or_anew_is_recognised() {
    let (node, by_kubelet) = node_with_kubelet();
    fs::rename(node.path("proc/60"), node.path("later")).unwrap();
    let mut attributor = node.attributor();
    let mut grade = |record: &OpenRecord, second| {
        let times = OpenTimes { time: Micros::from_secs(second), ..TIMES };
        attributor.attribute(record, times, &PodIndex::default()).map(|open| open.grade)
    };
    assert_eq!(grade(&by_kubelet, 1), Ok(Grade::Outside));
    fs::rename(node.path("later"), node.path("proc/60")).unwrap();
    assert_eq!(grade(&by_kubelet, 1), Ok(Grade::Outside), "looked for once a second");
    assert_eq!(grade(&by_kubelet, 2), Err(Ignored::Kubelet));

    fs::rename(node.path("proc/60"), node.path("proc/61")).unwrap();
    node.process(61, "kubelet", 1, 9_100, "/system.slice/kubelet.service");
    fs::remove_file(node.path("proc/61/exe")).unwrap();
    node.executable(61, "usr/bin/kubelet-new");
    let anew = OpenRecord { tgid: 61, start_boottime_ns: 9_100 * TICK, ..by_kubelet };
    assert_eq!(grade(&anew, 9), Err(Ignored::Kubelet));
}

#[test]
fn an_unknown_place_is_not_outside() {
    let node = Node::new();
    let unread =
        OpenRecord { missing: Missing::CGROUP, cgroup_names: cgroup_names(""), ..exec_record() };
    let open = attribute(&node, &unread).unwrap();
    assert_eq!((open.grade, open.reader), (Grade::Workload, None));
    assert_eq!(open.pod_uid.as_deref(), Some(POD), "the volume tells");
    assert_eq!(open.degraded, ["cgroup"]);

    // While the process lives, /proc tells; also where cgroup v1 left it in the v2 root.
    node.process(200, "cat", 190, 8_000, &cgroup_of(POD));
    for missing in [Missing::CGROUP, 0] {
        let open = attribute(&node, &OpenRecord { missing, ..unread }).unwrap();
        assert_eq!(open.grade, Grade::Exec);
        assert_eq!(open.reader.unwrap().container_id.as_deref(), Some(CONTAINER));
    }
    // Not if the id is another process's by now.
    node.process(200, "cat", 190, 8_888, &cgroup_of(OTHER_POD));
    assert_eq!(grade(&node, &unread), Ok(Grade::Workload));
}

#[test]
fn what_came_late_is_told_beside_what_never_came() {
    let node = Node::new();
    node.write("proc/200/cmdline", "cat\0token\0");
    node.process(200, "cat", 190, 8_000, &cgroup_of(POD));
    let missing = Missing::ARGV | Missing::USER | Missing::CGROUP;
    let open = attribute(&node, &OpenRecord { missing, ..exec_record() }).unwrap();
    assert_eq!(open.args, ["cat", "token"]);
    assert_eq!(open.degraded, ["cgroup", "args", "user"]);
    assert_eq!(open.reader.unwrap().container_id.as_deref(), Some(CONTAINER));
}

#[test]
fn a_host_process_deep_in_a_session_is_outside() {
    let node = Node::new();
    let path = "/user.slice/user-0.slice/user@0.service/app.slice/app-term.slice/shell.scope";
    let deep = OpenRecord { cgroup_names: cgroup_names(path), ..exec_record() };
    let open = attribute(&node, &deep).unwrap();
    assert_eq!((open.grade, open.degraded), (Grade::Outside, vec!["cgroup".to_owned()]));
    // The session's shell is in the same cgroup and still there to ask.
    node.process(190, "sh", 1, 7_000, path);
    let open = attribute(&node, &deep).unwrap();
    assert_eq!((open.grade, open.degraded), (Grade::Outside, vec![]));
    // A container's tree of groups may be as deep.
    node.process(190, "sh", 50, 7_000, &format!("{}/a/b/c/d/e/f/g", cgroup_of(POD)));
    let nested = OpenRecord { cgroup_names: cgroup_names("/a/b/c/d/e/f/g"), ..exec_record() };
    assert_eq!(grade(&node, &nested), Ok(Grade::Exec));
}

#[test]
fn a_cut_cgroup_name_is_completed_from_proc() {
    let node = Node::new();
    let slice = POD.replace('-', "_");
    let path = format!("/kubepods-besteffort-pod{slice}.slice:cri-containerd:{CONTAINER}");
    node.process(100, "app", 50, 5_000, &path);
    node.cgroup("memory", &path, &[100]);
    let record = OpenRecord { cgroup_names: cgroup_names(&path), ..record() };
    let open = attribute(&node, &record).unwrap();
    assert_eq!(open.reader.unwrap().runtime.as_deref(), Some("containerd"));
    assert_eq!((open.native, open.cgroup), (Some(true), path));
    node.end(100);
    let open = attribute(&node, &record).unwrap();
    let reader = open.reader.unwrap();
    assert_eq!((reader.pod_uid.as_str(), reader.container_id), (POD, None), "at least the pod");
}

#[test]
fn without_the_main_process_the_pid_namespace_tells() {
    let node = Node::new();
    fs::remove_dir_all(node.path("cgroup")).unwrap();
    let missing = |bits| OpenRecord { missing: bits, ..exec_record() };
    for (record, native, grade) in [
        (record(), Some(true), Grade::Workload),
        (exec_record(), Some(false), Grade::Exec),
        // Entered, then made a pid namespace: not the container's process 1.
        (
            OpenRecord { entry_pidns: ancestor(195, 7_500, 1, "cat"), ..exec_record() },
            None,
            Grade::Workload,
        ),
        // The host's pid namespace, or nothing read: unknown is no accusation.
        (OpenRecord { pidns_level: 0, ..exec_record() }, None, Grade::Workload),
        (missing(Missing::ANCESTORS), None, Grade::Workload),
        (missing(Missing::NAMESPACES), None, Grade::Workload),
        (OpenRecord { entry_pidns: ancestor(0, 0, 0, ""), ..exec_record() }, None, Grade::Workload),
    ] {
        let open = attribute(&node, &record).unwrap();
        assert_eq!((open.native, open.grade), (native, grade));
        assert_eq!(open.degraded.last().unwrap(), "main_process");
    }
}

#[test]
fn a_shared_pid_namespace_does_not_make_the_workload_an_intruder() {
    let node = Node::new();
    let shared = OpenRecord { entry_pidns: ancestor(100, 5_000, 7, "app"), ..record() };
    assert_eq!(grade(&node, &shared), Ok(Grade::Workload));
    let host =
        OpenRecord { entry_pidns: ancestor(1, 1, 1, "systemd"), pidns_level: 0, ..exec_record() };
    assert_eq!(grade(&node, &host), Ok(Grade::Exec));
}

#[test]
fn an_executable_that_was_not_learned_is_foreign_to_the_containers_own_tree() {
    let node = Node::new();
    let mut attributor = node.attributor();
    let mut grade = |record: OpenRecord| {
        attributor.attribute(&record, TIMES, &PodIndex::default()).unwrap().grade
    };
    assert_eq!(grade(record()), Grade::Workload);
    // Ten minutes after the start of its main process, 100.
    let later = |record| OpenRecord { ktime_ns: (5_000 + 60_001) * TICK, ..record };
    let shell = |record| OpenRecord { exe_names: names(["sh", "bin", "/"]), ..later(record) };
    let tty = |record| OpenRecord { tty_dev: PTS, fds: [PTY; 3], ..record };
    for (record, expected) in [
        (later(record()), Grade::Workload),
        (shell(record()), Grade::Foreign),
        // The same program elsewhere.
        (OpenRecord { exe_names: names(["app", "tmp", "/"]), ..later(record()) }, Grade::Foreign),
        (shell(exec_record()), Grade::Exec),
        (tty(shell(record())), Grade::Interactive),
        // Unknown is no accusation: not which executable, not whether it entered.
        (OpenRecord { missing: Missing::EXECUTABLE, ..shell(record()) }, Grade::Workload),
        (OpenRecord { exe_names: names(["", "", ""]), ..later(record()) }, Grade::Workload),
        (OpenRecord { missing: Missing::ANCESTORS, ..shell(record()) }, Grade::Workload),
        // Learning is over.
        (shell(record()), Grade::Foreign),
    ] {
        assert_eq!(grade(record), expected);
    }
}

#[test]
fn opens_and_ignored_records_are_counted_by_kind() {
    let node = Node::new();
    let metrics = AttributionMetrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut attributor = Attributor::new(node.config(), None, metrics).unwrap();
    for record in [record(), exec_record(), OpenRecord { tgid: OWN, ..record() }] {
        let _ = attributor.attribute(&record, TIMES, &PodIndex::default());
    }
    attributor.take_changed_devices(&PodIndex::default()).unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"tokentrail_attribution_opens_total{grade="workload"} 1"#,
        r#"tokentrail_attribution_opens_total{grade="exec"} 1"#,
        r#"tokentrail_attribution_opens_total{grade="outside"} 0"#,
        r#"tokentrail_attribution_ignored_total{reason="own"} 1"#,
        r#"tokentrail_attribution_ignored_total{reason="kubelet"} 0"#,
        r#"tokentrail_attribution_unlearned_total{what="executable"} 0"#,
        "tokentrail_attribution_volumes 1",
        r#"tokentrail_attribution_volume_refreshes_total{result="read"} 1"#,
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

proptest::proptest! {
    // Each case makes a node of files.
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn no_record_makes_attribution_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), size_of::<OpenRecord>()),
        known in proptest::prelude::any::<bool>(),
    ) {
        use zerocopy::FromBytes;
        let node = Node::new();
        let mut record = OpenRecord::read_from_bytes(&bytes).unwrap();
        if known {
            record = OpenRecord { s_dev: 77, file_name: name("token"), ..record };
        }
        let _ = attribute(&node, &record);
    }
}

//! What the cluster promises to every test in it: pods that run, terminals, tokens and an audit
//! log; and that the machine afterwards is as it was, however it ended.

use std::{
    collections::BTreeSet,
    env, fs,
    net::IpAddr,
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use tokentrail_tests::{
    Finished, PATIENCE, TOKEN_PATH,
    cluster::{BOX_IMAGE, Cluster, ClusterNode, CutOff, Network, Options},
    machine::cgroup_hierarchies,
    wait_until,
};

/// A name that no developer uses.
const NAME: &str = "life";

/// The machine, for the one test that looks at all of it.
fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells this test's program that it is the one to be killed.
const VICTIM: &str = "TOKENTRAIL_CLUSTER_LIFE_VICTIM";

/// A pod on this node: an HTTP server, ended within a second.
fn pod(name: &str, node: &ClusterNode) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node.name(),
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": BOX_IMAGE,
                "imagePullPolicy": "Never",
                "command": ["httpd", "-f", "-h", "/etc"],
            }],
        },
    })
    .to_string()
}

fn pod_ip(cluster: &Cluster, name: &str) -> Result<IpAddr> {
    let pod = cluster.get(&["pod", name])?;
    let ip = pod.pointer("/status/podIP").and_then(|ip| ip.as_str()).context("no address")?;
    Ok(ip.parse()?)
}

/// Everything on this machine that a cluster could leave behind, a line each.
struct Machine(BTreeSet<String>);

impl Machine {
    fn now() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut lines: BTreeSet<String> = mounts.map(|path| format!("mount {path}")).collect();
        let folders = [
            "/etc/cni",
            "/opt",
            "/run/containerd",
            "/run/containerd/s",
            "/run/netns",
            "/sys/class/net",
            "/var/lib",
            "/var/lib/cni/results",
            "/var/lib/kubelet",
            "/var/log/containers",
            "/var/log/pods",
            "/var/tmp",
            "/var/tmp/tokentrail-cluster",
        ]
        .map(PathBuf::from);
        let hierarchies = cgroup_hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount);
        for folder in hierarchies.chain(folders) {
            lines.extend(
                list(&folder)
                    .iter()
                    .filter(|path| !is_others(path))
                    .map(|path| path.display().to_string()),
            );
        }
        for setting in ["kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory"] {
            let value = fs::read_to_string(Path::new("/proc/sys").join(setting))?;
            lines.insert(format!("{setting} = {value}"));
        }
        let rules = Command::new("iptables-save").output()?.stdout;
        let rules = String::from_utf8_lossy(&rules).into_owned();
        lines.extend(rules.lines().filter(|line| line.starts_with('-')).map(str::to_owned));
        lines.extend(processes());
        lines.retain(|line| !names_another(line));
        Ok(Self(lines))
    }

    /// Holds the machine as it is now against this.
    fn assert_unchanged(&self, when: &str) -> Result<()> {
        let now = Self::now()?;
        let more: Vec<_> = now.0.difference(&self.0).collect();
        let less: Vec<_> = self.0.difference(&now.0).collect();
        ensure!(more.is_empty() && less.is_empty(), "{when}: left {more:#?}, lost {less:#?}");
        Ok(())
    }
}

/// Whether this is about somebody's own cluster: they may be working with it meanwhile.
fn names_another(text: &str) -> bool {
    text.contains("/tokentrail-")
        && !text.contains(&format!("/tokentrail-{NAME}"))
        && !text.contains(&format!("/tokentrail-cluster/{NAME}"))
        && !text.ends_with("/tokentrail-cluster")
}

/// Whether a file belongs to another cluster, by what it says or points to, or in the case of a
/// socket by somebody's listening there.
fn is_others(path: &Path) -> bool {
    let Ok(facts) = fs::symlink_metadata(path) else { return true };
    if facts.is_symlink() {
        return fs::read_link(path).is_ok_and(|to| names_another(&to.to_string_lossy()));
    }
    if facts.file_type().is_socket() {
        return UnixStream::connect(path).is_ok();
    }
    facts.is_file() && fs::read_to_string(path).is_ok_and(|text| names_another(&text))
}

/// Processes that belong to clusters of this name by their cgroup or their command line.
fn processes() -> Vec<String> {
    let marks = [format!("/tokentrail-{NAME}"), format!("/tokentrail-cluster/{NAME}")];
    let mut found = Vec::new();
    for process in list(Path::new("/proc")) {
        let read = |file: &str| {
            let bytes = fs::read(process.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let command = read("cmdline");
        let text = format!("process {command} in {}", read("cgroup"));
        // One without a command line is dead and waits for its parent to notice.
        if !command.is_empty() && marks.iter().any(|mark| text.contains(mark)) {
            found.push(text);
        }
    }
    found
}

fn list(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[test]
fn pods_run_on_two_nodes_and_nothing_of_them_is_left_afterwards() {
    let _alone = machine();
    Cluster::take_down(NAME).unwrap();
    let before = Machine::now().unwrap();
    let cluster = Cluster::up(&Options::new(NAME).unwrap()).unwrap();
    let nodes = cluster.nodes();
    assert_eq!(nodes.len(), 2);

    let names = ["one", "two"];
    for (name, node) in names.iter().zip(nodes) {
        cluster.apply(&pod(name, node)).unwrap();
    }
    for (name, node) in names.iter().zip(nodes) {
        cluster.wait_for_pod("default", name).unwrap();
        let ip = pod_ip(&cluster, name).unwrap();
        let answer = node.get(&format!("http://{ip}/passwd")).unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body.starts_with("root:"), "{answer:?}");
        // The other node reaches it by the wire between them.
        for node in nodes {
            assert_eq!(node.get(&format!("http://{ip}/none")).unwrap().status, 404);
        }
    }

    // The terminal is a real one from here to the process in the container.
    let who = format!("tty; head -c 3 {TOKEN_PATH}; apicall /version");
    let shell = ["exec", "-it", "two", "--", "sh", "-c", &who];
    let shown = cluster.kubectl_tty(&shell).unwrap();
    assert!(shown.success(), "{shown:?}");
    assert!(shown.output.contains("/dev/pts/0"), "{shown:?}");
    assert!(shown.output.contains("eyJ"), "{shown:?}");
    let uid = cluster.get(&["pod", "two"]).unwrap();
    let uid = uid.pointer("/metadata/uid").unwrap().as_str().unwrap();
    wait_until(PATIENCE, "the audit log tells of the pod's request", || {
        let log = fs::read_to_string(cluster.audit_log())?;
        Ok(log.lines().any(|line| line.contains(uid) && line.contains("/version")).then_some(()))
    })
    .unwrap();

    cluster.down().unwrap();
    before.assert_unchanged("after down").unwrap();
}

#[test]
fn a_cluster_in_trouble_recovers_from_it() {
    let _alone = machine();
    Cluster::take_down(NAME).unwrap();
    let options = Options { nodes: 1, ..Options::new(NAME).unwrap() };
    let cluster = Cluster::up(&options).unwrap();
    let [node] = cluster.nodes() else { panic!("one node was asked for") };
    cluster.apply(&pod("one", node)).unwrap();
    cluster.wait_for_pod("default", "one").unwrap();
    let ask = || {
        let ask = ["exec", "one", "--", "timeout", "3", "apicall", "/version"];
        cluster.kubectl(&ask).unwrap().success()
    };
    assert!(ask());
    let ip = pod_ip(&cluster, "one").unwrap();
    for whom in [CutOff::Pod(ip), CutOff::Pods] {
        let fault = node.cut_off(whom).unwrap();
        assert!(!ask(), "{whom:?}");
        fault.mend().unwrap();
        assert!(ask(), "{whom:?}");
    }
    assert!(node.cut_off(CutOff::Kubelet).is_err());

    let frozen = cluster.freeze_api_server().unwrap();
    let hasty = ["get", "--raw=/version", "--request-timeout=1s"];
    assert!(!cluster.kubectl(&hasty).unwrap().success());
    frozen.mend().unwrap();
    cluster.kubectl_ok(&["get", "--raw=/version"]).unwrap();

    cluster.restart_api_server(&["--audit-log-maxage=1".to_owned()]).unwrap();
    let token = || {
        let read = ["exec", "one", "--", "cat", TOKEN_PATH];
        cluster.kubectl(&read).ok().filter(Finished::success).map(|read| read.output)
    };
    let old = wait_until(PATIENCE, "the pod is reached again", || Ok(token())).unwrap();
    node.restart_kubelet().unwrap();
    wait_until(2 * PATIENCE, "the kubelet has brought another token", || {
        Ok(token().filter(|token| *token != old))
    })
    .unwrap();
    cluster.down().unwrap();
}

#[test]
fn what_a_killed_program_has_begun_can_be_taken_down() {
    let _alone = machine();
    if env::var_os(VICTIM).is_some() {
        Cluster::up(&Options::new(NAME).unwrap()).unwrap().keep();
        return;
    }
    Cluster::take_down(NAME).unwrap();
    let before = Machine::now().unwrap();
    for component in ["setup", "kube-apiserver", "containerd-node-b", "kubelet-node-b"] {
        let mut victim = Command::new(env::current_exe().unwrap())
            .args(["--exact", "what_a_killed_program_has_begun_can_be_taken_down"])
            .env(VICTIM, "1")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(PATIENCE, &format!("{component} was started"), || {
            let group = format!("tokentrail-{NAME}/system/{component}");
            let hierarchies = cgroup_hierarchies()?;
            Ok(hierarchies.iter().any(|it| it.mount.join(&group).exists()).then_some(()))
        })
        .unwrap();
        let refused = Cluster::take_down(NAME).unwrap_err().to_string();
        assert!(refused.contains("another program is working on cluster life"), "{refused}");
        victim.kill().unwrap();
        victim.wait().unwrap();
        let refused = Cluster::up(&Options::new(NAME).unwrap()).err().unwrap().to_string();
        assert!(refused.contains("cargo xtask cluster down --name life"), "{refused}");
        Cluster::take_down(NAME).unwrap();
        before.assert_unchanged(&format!("killed when {component} was started")).unwrap();
    }
}

#[test]
fn clusters_leave_each_other_and_what_is_not_theirs_alone() {
    let _alone = machine();
    Cluster::take_down(NAME).unwrap();
    let before = Machine::now().unwrap();
    let options = Options { nodes: 1, ..Options::new(NAME).unwrap() };

    // Somebody else's cgroup.
    let hierarchies = cgroup_hierarchies().unwrap();
    let foreign = hierarchies.first().unwrap().mount.join(format!("tokentrail-{NAME}"));
    fs::create_dir(&foreign).unwrap();
    let refused = Cluster::up(&options).err().unwrap().to_string();
    let kept = Cluster::take_down(NAME).unwrap_err().to_string();
    fs::remove_dir(&foreign).unwrap();
    assert!(refused.contains(&format!("the cgroup {foreign:?} exists")), "{refused}");
    assert!(kept.contains("not touching it"), "{kept}");

    let same = Network { nodes: [10, 88], ..Network::default() };
    let refused = Cluster::up(&Options { network: same, ..options.clone() }).err().unwrap();
    assert!(refused.to_string().contains("cannot both have 10.88.0.0/16"), "{refused}");
    before.assert_unchanged("after refusals").unwrap();

    let other = Options { name: "lifetwo".to_owned(), ..options.clone() };
    Cluster::take_down(&other.name).unwrap();
    let cluster = Cluster::up(&options).unwrap();
    let other = Cluster::up(&other).unwrap();
    assert!(Cluster::up(&options).is_err());
    other.down().unwrap();
    // Still there, and still what it was.
    cluster.kubectl_ok(&["get", "node", "node-a"]).unwrap();
    assert!(cluster.components().unwrap().iter().all(|(_, running)| *running));
    drop(cluster);
    before.assert_unchanged("after two clusters").unwrap();
}

//! A real Kubernetes on this machine: etcd, the API server with its audit log, controllers, and one
//! or two nodes with containerd and kubelet, each node in a network namespace of its own.
//!
//! ```text
//! Cluster ── everything named after it: folder, cgroups, namespaces (layout)
//!   ├─ pki, control_plane ── who is who; etcd, API server, controllers on node a
//!   ├─ ClusterNode ── containerd, kubelet, what its pods answer, faults
//!   ├─ network, components, images ── what both are made of
//!   ├─ Deployment ── the agent on every node, by its chart and from its image
//!   ├─ Victim ── a pod to be attacked
//!   └─ teardown, host ── all of it gone, the machine as before
//! ```
//!
//! It builds nothing: the programs are handed in. The whole-program tests, the demo, the benchmark
//! and `cargo xtask cluster` call it.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    process::Signal,
};
use serde_json::{Value, json};

use crate::{
    command::{Finished, run_with_input, run_with_pipes, run_with_terminal},
    line::Line,
    machine::{find_program, obstacle_to_containers},
    sandbox::{Ledger, Undo},
};

mod components;
mod control_plane;
pub mod deployment;
mod host;
mod images;
mod layout;
mod network;
mod node;
mod pki;
mod teardown;
pub mod victim;

pub use images::{BOX_IMAGE, KUBECTL_IMAGE};
pub use layout::Network;
pub use network::CutOff;
pub use node::{ClusterNode, Fault};

pub(crate) use layout::Layout;
pub(crate) use teardown::take_down;

/// Programs that a cluster needs from the machine.
const PROGRAMS: [&str; 8] =
    ["busybox", "containerd", "ctr", "ip", "iptables", "nsenter", "runc", "/usr/lib/cni/bridge"];

/// What the one program of Kubernetes is called as.
const COMPONENTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"];

/// How a cluster shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; clusters of different names live side by side.
    pub name: String,
    /// How many nodes, one or two.
    pub nodes: u8,
    /// Addresses inside of it.
    pub network: Network,
    /// More options for the API server.
    pub api_server_args: Vec<String>,
    /// Kubernetes as one program.
    pub kube: PathBuf,
    /// The API client for its pods.
    pub apicall: PathBuf,
}

impl Options {
    /// Two nodes, made of the programs that `TOKENTRAIL_KUBE` and `TOKENTRAIL_APICALL` name.
    ///
    /// # Errors
    /// If these variables are not set: `cargo xtask test` sets them.
    pub fn new(name: &str) -> Result<Self> {
        let program = |variable: &str| {
            env::var_os(variable).map(PathBuf::from).with_context(|| {
                format!("{variable} names no program; `cargo xtask test` builds it and sets it")
            })
        };
        Ok(Self::with_programs(name, program("TOKENTRAIL_KUBE")?, program("TOKENTRAIL_APICALL")?))
    }

    /// Two nodes, made of these programs.
    pub fn with_programs(name: &str, kube: PathBuf, apicall: PathBuf) -> Self {
        let (network, api_server_args) = (Network::default(), Vec::new());
        Self { name: name.to_owned(), nodes: 2, network, api_server_args, kube, apicall }
    }
}

/// Why no cluster can run here; `None` if one can.
pub fn obstacle_to_clusters() -> Option<String> {
    obstacle_to_containers().or_else(|| {
        let missing = PROGRAMS.into_iter().find(|program| find_program(program).is_none())?;
        Some(format!("{missing} is not installed"))
    })
}

/// Another API server of a cluster; it ends when this is dropped.
pub struct ApiServer {
    /// Where it listens, in the nodes' networks.
    pub address: String,
    /// Its audit log; the folder holds nothing else.
    pub audit_log: PathBuf,
    _until_dropped: Fault,
}

/// A cluster that is up.
pub struct Cluster {
    layout: Layout,
    network: Network,
    nodes: Vec<ClusterNode>,
    ledger: Arc<Ledger>,
}

impl Cluster {
    /// Brings one up, to the point at which pods can be made. It goes when this is dropped, and on
    /// Ctrl-C, unless it is [kept](Cluster::keep).
    ///
    /// # Errors
    /// Names what is in the way, or what did not start with the end of its log. Nothing is left
    /// behind then.
    pub fn up(options: &Options) -> Result<Self> {
        if let Some(obstacle) = obstacle_to_clusters() {
            bail!("no cluster can run here: {obstacle}");
        }
        let layout = Layout::new(&options.name)?;
        options.network.check()?;
        ensure!(
            (1..=2).contains(&options.nodes),
            "a cluster has one or two nodes, not {}",
            options.nodes
        );
        for program in [&options.kube, &options.apicall] {
            ensure!(program.is_file(), "{program:?} is no program");
        }
        let ledger = Ledger::create()?;
        let lock = ledger.change(|undo| {
            let lock = claim(&layout, options)?;
            undo.push(Undo::Cluster(layout.clone()));
            Ok(lock)
        })?;
        let cluster = Self::new(layout, options.network, options.nodes, ledger);
        let started = cluster.start(options);
        drop(lock);
        started.map(|()| cluster)
    }

    /// One that is up already. It stays when this is dropped.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn attach(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        let facts = fs::read(layout.facts()).with_context(|| {
            format!("there is no cluster {name}; `cargo xtask cluster up` makes one")
        })?;
        let facts: Value = serde_json::from_slice(&facts)?;
        let network = facts.get("network").and_then(Network::from_json);
        let nodes = facts.get("nodes").and_then(Value::as_u64).map(u8::try_from);
        let (Some(network), Some(Ok(nodes))) = (network, nodes) else {
            bail!("{:?} is damaged; take the cluster down", layout.facts());
        };
        Ok(Self::new(layout, network, nodes, Ledger::create()?))
    }

    /// Takes down the cluster of this name, whoever brought it up and however far that got.
    ///
    /// # Errors
    /// Names what cannot be removed. Without such a cluster there is nothing to do.
    pub fn take_down(name: &str) -> Result<()> {
        take_down(&Layout::new(name)?)
    }

    fn new(layout: Layout, network: Network, nodes: u8, ledger: Arc<Ledger>) -> Self {
        let nodes = (0..nodes)
            .zip(layout::NODE_NAMES)
            .map(|(index, name)| ClusterNode::new(&layout, &network, name, index))
            .collect();
        Self { layout, network, nodes, ledger }
    }

    /// Leaves it running when this is dropped.
    pub fn keep(self) {
        self.ledger.forget_cluster();
    }

    /// Takes it down now.
    ///
    /// # Errors
    /// Names what cannot be removed.
    pub fn down(self) -> Result<()> {
        // Whether it was kept or not: processes of ours first.
        self.ledger.forget_cluster();
        self.ledger.undo()?;
        take_down(&self.layout)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.layout.name()
    }

    /// Where everything of it is.
    pub fn folder(&self) -> PathBuf {
        self.layout.folder()
    }

    /// The API server's audit log; its folder holds nothing else.
    pub fn audit_log(&self) -> PathBuf {
        self.layout.audit_log()
    }

    /// Where the API server listens, in the nodes' networks.
    pub fn api_server(&self) -> String {
        self.network.api_server()
    }

    /// The certificate that the API server is verified by.
    pub fn authority(&self) -> PathBuf {
        self.layout.pki("ca.crt")
    }

    /// The administrator's kubeconfig; its address is one of the first node's network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig("admin")
    }

    /// Its nodes, the one with the control plane first.
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// The node of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> Result<&ClusterNode> {
        let mut nodes = self.nodes.iter();
        nodes.find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    /// A program in the network of the first node, where the API server is reached. It ends with
    /// the cluster at the latest.
    ///
    /// # Errors
    /// If its cgroup cannot be made.
    pub fn command(&self, program: &Path) -> Result<Command> {
        client_command(&self.layout, program)
    }

    /// `kubectl` as the cluster's administrator.
    ///
    /// # Errors
    /// As [`Cluster::command`].
    pub fn kubectl_command(&self) -> Result<Command> {
        kubectl_command(&self.layout)
    }

    /// Runs `kubectl` to its end.
    ///
    /// # Errors
    /// If it does not start or end; not if it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<Finished> {
        self.run(self.kubectl_command()?.args(args))
    }

    /// Runs `kubectl` and returns what it printed.
    ///
    /// # Errors
    /// If it fails, with its message.
    pub fn kubectl_ok(&self, args: &[&str]) -> Result<String> {
        succeeded(self.kubectl(args)?, args)
    }

    /// Runs `kubectl` with this on its standard input.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<Finished> {
        run_with_input(&self.ledger, self.kubectl_command()?.args(args), input)
    }

    /// Runs `kubectl` at a terminal, as somebody at a keyboard does.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_tty(&self, args: &[&str]) -> Result<Finished> {
        self.run_tty(self.kubectl_command()?.args(args))
    }

    /// Runs a program of [`Cluster::command`] to its end; its output goes through pipes.
    ///
    /// # Errors
    /// If it does not start or end; not if it fails.
    pub fn run(&self, command: &mut Command) -> Result<Finished> {
        run_with_pipes(&self.ledger, command)
    }

    /// Runs a program of [`Cluster::command`] to its end, at a terminal.
    ///
    /// # Errors
    /// As [`Cluster::run`].
    pub fn run_tty(&self, command: &mut Command) -> Result<Finished> {
        run_with_terminal(&self.ledger, command)
    }

    /// Makes or changes the objects of a manifest, YAML or JSON.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let args = ["apply", "-f", "-"];
        succeeded(self.kubectl_with_input(&args, manifest)?, &args)
    }

    /// An object as JSON: `["pod", "cart-0", "--namespace", "shop"]`.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let args = [&["get", "--output=json"][..], what].concat();
        Ok(serde_json::from_str(&self.kubectl_ok(&args)?)?)
    }

    /// Makes a namespace and waits until pods can be made in it.
    ///
    /// # Errors
    /// If that fails.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.kubectl_ok(&["create", "namespace", name])?;
        self.wait_for_namespace(name)
    }

    fn wait_for_namespace(&self, name: &str) -> Result<()> {
        // One at a time: kubectl takes two that are missing for an error.
        ["serviceaccount/default", "configmap/kube-root-ca.crt"].iter().try_for_each(|object| {
            let args = ["wait", "--for=create", "--timeout=50s", "--namespace", name, object];
            self.kubectl_ok(&args).map(drop)
        })
    }

    /// Waits until a pod is ready.
    ///
    /// # Errors
    /// If it is not in time; tells what the cluster says about it.
    pub fn wait_for_pod(&self, namespace: &str, pod: &str) -> Result<()> {
        let pod = format!("pod/{pod}");
        let ready = "--for=condition=Ready";
        let args = ["wait", ready, "--timeout=50s", "--namespace", namespace, &pod];
        self.kubectl_ok(&args).map(drop).with_context(|| {
            let about = self.kubectl(&["describe", "--namespace", namespace, &pod]);
            about.map(|it| it.output).unwrap_or_default()
        })
    }

    /// Puts the image of an archive (`docker save`, OCI) on all nodes.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.import(archive))
    }

    /// Puts an image with `kubectl` on all nodes, for pods that look after the cluster.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn import_kubectl(&self) -> Result<()> {
        let archive = self.layout.folder().join("kubectl.tar");
        images::write_kubectl(&archive, &self.layout.program("kubectl"))?;
        self.import_image(&archive)
    }

    /// Stops the API server as a machine that hangs would, until the result is dropped.
    ///
    /// # Errors
    /// If it is not running.
    pub fn freeze_api_server(&self) -> Result<Fault> {
        let group = self.layout.component_cgroup(control_plane::API_SERVER);
        ensure!(components::signal(&group, Signal::STOP)? > 0, "the API server is not running");
        Ok(Fault::new(move || components::signal(&group, Signal::CONT).map(drop)))
    }

    /// Ends the API server and starts it with these options besides the usual ones.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn restart_api_server(&self, args: &[String]) -> Result<()> {
        node::stop(&self.layout, control_plane::API_SERVER)?;
        control_plane::start_api_server(&self.layout, &self.network, args)?;
        self.wait_for_api_server()
    }

    /// Starts another API server beside the one that all know, on the same store and with an audit log of its
    /// own. It goes when the result is dropped.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn another_api_server(&self) -> Result<ApiServer> {
        let name = control_plane::OTHER_API_SERVER;
        control_plane::start_other_api_server(&self.layout, &self.network)?;
        let layout = self.layout.clone();
        let server = ApiServer {
            address: format!("{}:{}", self.network.node_ip(0), self.network.api_port + 1),
            audit_log: self.layout.other_audit_log(),
            _until_dropped: Fault::new(move || node::stop(&layout, name)),
        };
        control_plane::wait_for_api_server(&self.layout, name, &server.address)?;
        Ok(server)
    }

    /// Lays a line from the first node to a network of its own (see [`Sandbox::network`]), which all nodes and
    /// pods then reach.
    ///
    /// # Errors
    /// If it cannot be laid.
    ///
    /// [`Sandbox::network`]: crate::Sandbox::network
    pub fn line_to(&self, far: &Path) -> Result<Line> {
        network::line_to(&self.layout, &self.network, &self.nodes, far)
    }

    fn wait_for_api_server(&self) -> Result<()> {
        let name = control_plane::API_SERVER;
        control_plane::wait_for_api_server(&self.layout, name, &self.api_server())
    }

    /// Every component that was started, and whether it is running.
    ///
    /// # Errors
    /// If the cgroups cannot be read.
    pub fn components(&self) -> Result<Vec<(String, bool)>> {
        let names = components::names(&self.layout)?.into_iter();
        let components = names.filter(|name| name != "setup" && name != "kubectl");
        Ok(components
            .map(|name| {
                let running = components::is_running(&self.layout, &name);
                (name, running)
            })
            .collect())
    }

    fn start(&self, options: &Options) -> Result<()> {
        let layout = &self.layout;
        let names: Vec<&str> = self.nodes.iter().map(ClusterNode::name).collect();
        for folder in ["audit", "bin", "log"].into_iter().chain(names.iter().copied()) {
            fs::create_dir(layout.folder().join(folder))?;
        }
        for component in COMPONENTS {
            symlink(&options.kube, layout.program(component))?;
        }
        let containerd = find_program("containerd").context("containerd is not installed")?;
        symlink(containerd, layout.program("containerd"))?;
        pki::write(layout, &self.network, &names)?;
        network::create(layout, &self.network, &names)?;
        let image = layout.folder().join("box.tar");
        images::write_box(&image, &options.apicall)?;

        // The API server takes longest; the nodes' containerds start meanwhile.
        control_plane::start_api_server(layout, &self.network, &options.api_server_args)?;
        thread::scope(|scope| {
            let nodes: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(|| node.start_containerd(&image)))
                .collect();
            let ready = self.wait_for_api_server();
            for node in nodes {
                node.join().map_err(|_| anyhow!("a thread that starts a node panicked"))??;
            }
            ready
        })?;
        control_plane::start_controllers(layout)?;
        self.nodes.iter().try_for_each(ClusterNode::start_kubelet)?;
        self.wait_for_nodes(&names)?;
        self.wait_for_namespace("default")
    }

    fn wait_for_nodes(&self, names: &[&str]) -> Result<()> {
        for (node, condition) in names.iter().flat_map(|node| {
            ["--for=create", "--for=condition=Ready"].map(|condition| (node, condition))
        }) {
            let args = ["wait", "--timeout=50s", condition, &format!("node/{node}")];
            self.kubectl_ok(&args).map(drop).with_context(|| {
                let log = format!("kubelet-{node}");
                format!("{log} wrote:\n{}", components::end_of_log(&self.layout, &log))
            })?;
        }
        let [first, ..] = names else { return Ok(()) };
        let role = "node-role.kubernetes.io/control-plane=";
        self.kubectl_ok(&["label", "node", first, role]).map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.ledger.undo_or_report();
    }
}

/// Makes the cluster's folder, so that whatever comes now can be found and taken down. No other
/// program takes it down while the returned file is open.
fn claim(layout: &Layout, options: &Options) -> Result<File> {
    let host = host::Host::lock()?;
    let claimed = claim_locked(layout, options, &host);
    if claimed.is_err() {
        host.release()?;
    }
    claimed
}

fn claim_locked(layout: &Layout, options: &Options, host: &host::Host) -> Result<File> {
    if layout.facts().exists() {
        bail!(
            "cluster {0} is up already, or was left behind: `cargo xtask cluster down --name {0}` \
             takes it down",
            layout.name()
        );
    }
    if let Some(thing) = teardown::in_the_way(layout)? {
        bail!("{thing}, and cluster {} needs that name; choose another", layout.name());
    }
    host.prepare()?;
    let facts = json!({"nodes": options.nodes, "network": options.network.to_json()});
    // Complete from the start: a folder without its facts would be nobody's.
    let draft = tempfile::Builder::new().prefix(".").tempdir_in(Layout::base())?;
    let facts_name = layout.facts();
    let facts_name = facts_name.file_name().unwrap_or_default();
    fs::write(draft.path().join(facts_name), facts.to_string())?;
    let lock = File::create_new(draft.path().join(Layout::LOCK))?;
    fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let draft = draft.keep();
    fs::rename(&draft, layout.folder())
        .with_context(|| format!("could not make {:?}", layout.folder()))?;
    Ok(lock)
}

fn kubectl_command(layout: &Layout) -> Result<Command> {
    client_command(layout, &layout.program("kubectl"))
}

fn client_command(layout: &Layout, program: &Path) -> Result<Command> {
    let [first, _] = layout::NODE_NAMES;
    let mut command = components::command(layout, first, "kubectl", program)?;
    command.env("KUBECONFIG", layout.kubeconfig("admin"));
    command.env("KUBECACHEDIR", layout.folder().join("kubectl-cache"));
    Ok(command)
}

fn succeeded(finished: Finished, args: &[&str]) -> Result<String> {
    if !finished.success() {
        bail!("`kubectl {}` failed: {}", args.join(" "), finished.errors.trim());
    }
    Ok(finished.output)
}

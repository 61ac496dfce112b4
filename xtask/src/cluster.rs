//! `cargo xtask cluster` and `cargo xtask kubectl`: a real Kubernetes on this machine, to try the
//! product in. What a cluster is made of is in the tests' harness; here it is given its programs.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use tokentrail_tests::cluster::{
    Cluster, Network, Options,
    deployment::{Deployment, Package},
    obstacle_to_clusters,
};

use crate::{
    debian, golang, image,
    shell::{announce, say},
};

/// What to do with a cluster.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Bring one up: etcd, API server with audit log, controllers, nodes with containerd
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
        nodes: u8,
        /// Also install the agent on each node, by its chart from its image
        #[arg(long)]
        agent: bool,
        #[command(flatten)]
        network: NetworkArgs,
        #[command(flatten)]
        name: Name,
    },
    /// Take it down, with all that it left on this machine
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Tell what of it is running
    Status {
        #[command(flatten)]
        name: Name,
    },
    /// Put the image of an archive (`docker save` or OCI) on all nodes
    Load {
        /// The archive
        archive: PathBuf,
        #[command(flatten)]
        name: Name,
    },
}

/// Which cluster.
#[derive(Args)]
pub(crate) struct Name {
    /// Its name: clusters of different names live side by side
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

/// Addresses inside of the cluster. They are in network namespaces of its own, so this machine's
/// network and other clusters may use the same.
#[derive(Args)]
pub(crate) struct NetworkArgs {
    /// Start of the nodes' addresses
    #[arg(long, default_value = "10.90", value_parser = range)]
    nodes_net: [u8; 2],
    /// Start of the pods' addresses on the first node; the second has the next
    #[arg(long, default_value = "10.88", value_parser = range)]
    pods_net: [u8; 2],
    /// Start of the services' addresses
    #[arg(long, default_value = "10.96", value_parser = range)]
    services_net: [u8; 2],
    /// The API server's port
    #[arg(long, default_value_t = 6443)]
    api_port: u16,
}

/// The cluster that is meant where none is named.
const DEFAULT_NAME: &str = "dev";

/// Names another one for `cargo xtask kubectl`, whose arguments are all kubectl's.
const NAME_VARIABLE: &str = "TOKENTRAIL_CLUSTER";

/// Runs one command about a cluster.
///
/// # Errors
/// If it fails; what was begun is undone.
pub(crate) fn run(action: Action) -> Result<()> {
    match action {
        Action::Up { nodes, agent, network, name } => {
            let network = Network {
                nodes: network.nodes_net,
                pods: network.pods_net,
                services: network.services_net,
                api_port: network.api_port,
            };
            up(&name.name, nodes, network, agent)
        }
        Action::Down { name } => {
            let start = Instant::now();
            Cluster::take_down(&name.name)?;
            say(format_args!("cluster {} is down ({:.1} s)", name.name, seconds(start)));
            Ok(())
        }
        Action::Status { name } => status(&name.name),
        Action::Load { archive, name } => {
            let archive = archive.canonicalize().context("there is no such archive")?;
            Cluster::attach(&name.name)?.import_image(&archive)
        }
    }
}

/// Becomes `kubectl` as the cluster's administrator, with these arguments and this terminal.
///
/// # Errors
/// If there is no cluster.
pub(crate) fn kubectl(arguments: &[OsString]) -> Result<()> {
    let name = std::env::var(NAME_VARIABLE).unwrap_or_else(|_| DEFAULT_NAME.to_owned());
    let cluster = Cluster::attach(&name)?;
    let error = cluster.kubectl_command()?.args(arguments).exec();
    Err(error).context("could not start kubectl")
}

/// What a cluster is made of.
#[derive(Clone)]
pub(crate) struct Programs {
    kube: PathBuf,
    apicall: PathBuf,
}

impl Programs {
    /// Tells a test where they are.
    pub(crate) fn hand_to(&self, test: &mut Command) {
        test.env("TOKENTRAIL_KUBE", &self.kube).env("TOKENTRAIL_APICALL", &self.apicall);
    }

    /// The API client, which runs outside of pods too.
    pub(crate) fn apicall(&self) -> &Path {
        &self.apicall
    }

    /// Two nodes made of them.
    pub(crate) fn options(&self, name: &str) -> Options {
        Options::with_programs(name, self.kube.clone(), self.apicall.clone())
    }
}

/// Installs and builds what a cluster is made of.
///
/// # Errors
/// If something cannot be installed or built, or this machine cannot run a cluster.
pub(crate) fn prepare() -> Result<Programs> {
    debian::install(&debian::CLUSTER)?;
    if let Some(obstacle) = obstacle_to_clusters() {
        bail!("no cluster can run here: {obstacle}");
    }
    Ok(Programs { kube: golang::kube()?, apicall: golang::apicall()? })
}

/// A cluster with the agent in it, as whole-program tests, the demo and the benchmark need it. It
/// goes when this is dropped.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) package: Package,
    programs: Programs,
}

impl Scene {
    /// Brings a cluster of this name up, makes the agent's image and installs it by its chart.
    ///
    /// # Errors
    /// If something cannot be built or does not get ready.
    pub(crate) fn set(programs: Programs, name: &str) -> Result<Self> {
        let package = package()?;
        announce("a cluster of two nodes with the agent on both");
        let cluster = Cluster::up(&programs.clone().options(name))?;
        Deployment::install(&cluster, package.clone())?;
        Ok(Self { cluster, package, programs })
    }

    /// Tells a test where everything is.
    pub(crate) fn hand_to(&self, test: &mut Command) {
        self.programs.hand_to(test);
        test.env(NAME_VARIABLE, self.cluster.name())
            .env("TOKENTRAIL_HELM", &self.package.helm)
            .env("TOKENTRAIL_IMAGE", &self.package.image);
    }

    /// Takes it down.
    ///
    /// # Errors
    /// Names what cannot be removed.
    pub(crate) fn clear(self) -> Result<()> {
        self.cluster.down()
    }
}

/// Makes what the agent is installed from.
fn package() -> Result<Package> {
    Ok(Package { helm: golang::helm()?, image: image::run(None, None)? })
}

fn up(name: &str, nodes: u8, network: Network, agent: bool) -> Result<()> {
    let options = Options { nodes, network, ..prepare()?.options(name) };
    let package = if agent { Some(package()?) } else { None };
    announce(format_args!("cluster {name}: {nodes} node(s)"));
    let start = Instant::now();
    let cluster = Cluster::up(&options)?;
    say(format_args!("cluster {name} is up ({:.1} s)", seconds(start)));
    if let Some(package) = package {
        let agents = Deployment::install(&cluster, package)?;
        for node in cluster.nodes() {
            say(format_args!(
                "  alerts of {}: {}",
                node.name(),
                agents.alerts(node).path().display()
            ));
        }
    }
    say(format_args!("  audit log: {}", cluster.audit_log().display()));
    let variable = if name == DEFAULT_NAME { "" } else { NAME_VARIABLE };
    let equals = if variable.is_empty() { String::new() } else { format!("={name} ") };
    say(format_args!("  {variable}{equals}cargo xtask kubectl get nodes"));
    cluster.keep();
    Ok(())
}

fn status(name: &str) -> Result<()> {
    let cluster = Cluster::attach(name)?;
    let components = cluster.components()?;
    for (component, running) in &components {
        say(format_args!("{component}: {}", if *running { "running" } else { "NOT RUNNING" }));
    }
    for node in cluster.nodes() {
        say(format_args!(
            "{}: {}, cgroups below {}, nsenter --net={}",
            node.name(),
            node.ip(),
            node.cgroup_root().display(),
            node.netns().display()
        ));
    }
    say(format_args!("audit log: {}", cluster.audit_log().display()));
    say(cluster.kubectl_ok(&["get", "nodes,pods", "--all-namespaces"])?.trim_end());
    if components.iter().any(|(_, running)| !running) {
        bail!("cluster {name} is not whole");
    }
    Ok(())
}

fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// `10.90` → the first two numbers of an address.
fn range(text: &str) -> Result<[u8; 2], String> {
    let numbers: Vec<u8> = text.split('.').filter_map(|part| part.parse().ok()).collect();
    match numbers.as_slice() {
        [first, second] if text.split('.').count() == 2 => Ok([*first, *second]),
        _ => Err("the first two numbers of an address, such as 10.90".to_owned()),
    }
}

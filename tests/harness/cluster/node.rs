//! One node: a containerd and a kubelet in a network namespace and below a cgroup of their own.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    components, images,
    layout::{Layout, Network, subnet},
    network::{self, BRIDGE, CutOff},
};
use crate::{
    agent::Answer,
    command::run_silent,
    machine::cgroup_hierarchies,
    wait::{PATIENCE, wait_until},
};

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterNode {
    layout: Layout,
    network: Network,
    name: &'static str,
    index: u8,
}

impl ClusterNode {
    pub(crate) fn new(layout: &Layout, network: &Network, name: &'static str, index: u8) -> Self {
        Self { layout: layout.clone(), network: *network, name, index }
    }

    /// Its name in the API.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.network.node_ip(self.index)
    }

    /// What its kubelet has as `--root-dir`.
    pub fn kubelet_root(&self) -> PathBuf {
        self.layout.node(self.name).join("kubelet")
    }

    /// What its kubelet has as `cgroupRoot`.
    pub fn cgroup_root(&self) -> PathBuf {
        Path::new("/").join(self.layout.node_cgroup(self.name))
    }

    /// Its network namespace, for `nsenter --net=…`.
    pub fn netns(&self) -> PathBuf {
        self.layout.netns(self.name)
    }

    /// The socket of its containerd.
    pub fn containerd_socket(&self) -> PathBuf {
        self.layout.node(self.name).join("containerd.sock")
    }

    /// Asks an HTTP server that the node reaches, such as one of its pods'.
    ///
    /// # Errors
    /// If there is no answer; any status is one.
    pub fn get(&self, url: &str) -> Result<Answer> {
        network::get(&self.layout, self.name, url)
    }

    /// Drops packets to the API server until the result is dropped.
    ///
    /// # Errors
    /// If the rule cannot be made, or it would cut off the control plane from itself.
    pub fn cut_off(&self, whom: CutOff) -> Result<Fault> {
        if whom == CutOff::Kubelet && self.index == 0 {
            bail!("{} is where the control plane lives; cut off another node", self.name);
        }
        network::cut_off(&self.layout, &self.network, self.name, whom, true)?;
        let node = self.clone();
        Ok(Fault::new(move || {
            network::cut_off(&node.layout, &node.network, node.name, whom, false)
        }))
    }

    /// Ends the kubelet and starts it again. It asks for new tokens then.
    ///
    /// # Errors
    /// If it does not end or start.
    pub fn restart_kubelet(&self) -> Result<()> {
        let component = self.component("kubelet");
        stop(&self.layout, &component)?;
        self.start_kubelet()
    }

    /// Puts the image of an archive into its containerd.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let socket = self.containerd_socket();
        run_silent(
            Command::new("ctr")
                .arg("--address")
                .arg(socket)
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(archive),
        )
        .with_context(|| format!("could not import {archive:?} on {}", self.name))
    }

    /// Starts containerd, and gives it the image without which no pod starts.
    pub(crate) fn start_containerd(&self, image: &Path) -> Result<()> {
        self.make_cgroups()?;
        let folder = self.layout.node(self.name);
        let cni = folder.join("cni");
        fs::create_dir(&cni)?;
        fs::write(cni.join("10-pods.conflist"), self.cni_config().to_string())?;
        let config = folder.join("containerd.toml");
        fs::write(&config, self.containerd_config())?;
        let component = self.component("containerd");
        let program = self.layout.program("containerd");
        let mut containerd = components::command(&self.layout, self.name, &component, &program)?;
        containerd.arg("--config").arg(&config);
        components::start(&self.layout, &component, &containerd)?;
        let socket = self.containerd_socket();
        wait_until(PATIENCE, "containerd answers", || {
            if !components::is_running(&self.layout, &component) {
                bail!("{component} ended");
            }
            let mut ask = Command::new("ctr");
            let answers = socket.exists()
                && ask.arg("--address").arg(&socket).arg("version").output()?.status.success();
            Ok(answers.then_some(()))
        })
        .with_context(|| {
            format!("it wrote:\n{}", components::end_of_log(&self.layout, &component))
        })?;
        self.import(image)
    }

    /// Starts the kubelet.
    pub(crate) fn start_kubelet(&self) -> Result<()> {
        let folder = self.layout.node(self.name);
        let config = folder.join("kubelet.json");
        fs::write(&config, self.kubelet_config().to_string())?;
        let component = self.component("kubelet");
        let program = self.layout.program("kubelet");
        let mut kubelet = components::command(&self.layout, self.name, &component, &program)?;
        kubelet
            .arg("--config")
            .arg(&config)
            .arg(format!("--kubeconfig={}", self.layout.kubeconfig(self.name).display()))
            .arg(format!("--root-dir={}", self.kubelet_root().display()))
            .arg(format!("--cert-dir={}", folder.join("kubelet-pki").display()))
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={}", self.ip()));
        components::start(&self.layout, &component, &kubelet)
    }

    pub(crate) fn component(&self, program: &str) -> String {
        format!("{program}-{}", self.name)
    }

    fn make_cgroups(&self) -> Result<()> {
        let group = self.layout.node_cgroup(self.name);
        for hierarchy in cgroup_hierarchies()? {
            let mut folder = hierarchy.mount.clone();
            for part in &group {
                let parent = folder.clone();
                folder.push(part);
                if hierarchy.unified {
                    // What the root offers, one after the other: one that is refused spoils all.
                    let offered = fs::read_to_string(parent.join("cgroup.controllers"))?;
                    for controller in offered.split_whitespace() {
                        let _ = fs::write(
                            parent.join("cgroup.subtree_control"),
                            format!("+{controller}"),
                        );
                    }
                }
                fs::create_dir_all(&folder)
                    .with_context(|| format!("could not create the cgroup {folder:?}"))?;
                // A new group of cgroup v1 has no processor and no memory at all.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if !hierarchy.unified && parent.join(file).exists() {
                        fs::write(folder.join(file), fs::read(parent.join(file))?)
                            .with_context(|| format!("could not write {file} in {folder:?}"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Version 2 is what containerd 1.6 knows and what later ones still read.
    fn containerd_config(&self) -> String {
        let folder = self.layout.node(self.name);
        let folder = folder.display();
        let image = images::BOX_IMAGE;
        format!(
            r#"version = 2
root = "{folder}/containerd"
state = "{folder}/state"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  # Raising one's own importance takes a right that not every machine's root has.
  restrict_oom_score_adj = true
  disable_apparmor = true
  # Below the folder, to go with it.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{folder}/runc"
"#
        )
    }

    fn cni_config(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": self.layout.cni_network(self.name),
            "plugins": [{
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.layout.node(self.name).join("addresses"),
                    "ranges": [[{"subnet": subnet(self.network.pods_of(self.index))}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        })
    }

    fn kubelet_config(&self) -> Value {
        let folder = self.layout.node(self.name);
        let server = |kind| self.layout.pki(&format!("{}-server.{kind}", self.name));
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.layout.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup_root(),
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket().display()),
            "enforceNodeAllocatable": [],
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
            },
            "failCgroupV1": false,
            "failSwapOn": false,
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": false,
            // Its default needs a right that not every machine's root has.
            "oomScoreAdj": 0,
            "podLogsDir": folder.join("logs"),
            "resolvConf": "",
            "tlsCertFile": server("crt"),
            "tlsPrivateKeyFile": server("key"),
            "volumePluginDir": folder.join("volume-plugins"),
        })
    }
}

/// Kills a component and waits until nothing of it is left.
pub(crate) fn stop(layout: &Layout, component: &str) -> Result<()> {
    let group = layout.component_cgroup(component);
    wait_until(PATIENCE, &format!("{component} has ended"), || {
        Ok((components::signal(&group, Signal::KILL)? == 0).then_some(()))
    })
}

/// Something that is broken until this is dropped.
#[must_use = "what is broken is mended when this is dropped"]
pub struct Fault(Option<Box<dyn FnOnce() -> Result<()> + Send>>);

impl Fault {
    pub(crate) fn new(mend: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self(Some(Box::new(mend)))
    }

    /// Mends it now.
    ///
    /// # Errors
    /// If that fails.
    pub fn mend(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |mend| mend())
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|mend| mend()) {
            crate::sandbox::report(Err(error));
        }
    }
}

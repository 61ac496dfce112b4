//! Networks of their own, and lines between them that can be cut: to who is at one end, the other is then gone
//! without a word. Nothing here touches the machine's own network.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    command::run_silent,
    sandbox::{Sandbox, Undo, report},
};

/// Addresses that belong to nobody (RFC 5737): a network for each line.
const NETWORKS: [[u8; 3]; 2] = [[192, 0, 2], [198, 51, 100]];

/// A line between two networks. It goes when this is dropped.
pub struct Line {
    near: PathBuf,
    far: PathBuf,
    name: String,
    network: [u8; 3],
}

impl Line {
    /// Lays one from the network kept by one file to that kept by the other; `number` is 0 or 1 where there
    /// are two.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn lay(near: &Path, far: &Path, number: usize) -> Result<Self> {
        let network = *NETWORKS.get(number).context("there are two lines at most")?;
        let name = format!("line{number}");
        let line = Self { near: near.to_owned(), far: far.to_owned(), name, network };
        let name = &line.name;
        // Made inside: there is no moment at which the machine itself has these interfaces.
        ip(near, &format!("link add {name} type veth peer name {name} netns {}", far.display()))?;
        for (network, address) in [(near, line.near_ip()), (far, line.far_ip())] {
            ip(network, &format!("address add {address}/24 dev {name}"))?;
            ip(network, &format!("link set {name} up"))?;
        }
        Ok(line)
    }

    /// The address of its far end.
    pub fn far_ip(&self) -> IpAddr {
        self.address(2)
    }

    /// The address of its near end.
    pub fn near_ip(&self) -> IpAddr {
        self.address(1)
    }

    /// The network at its far end, for `nsenter --net=…`.
    pub fn far(&self) -> &Path {
        &self.far
    }

    /// From now on nothing gets through.
    ///
    /// # Errors
    /// If it cannot be cut.
    pub fn cut(&self) -> Result<()> {
        ip(&self.near, &format!("link set {} down", self.name))
    }

    /// Something gets through again.
    ///
    /// # Errors
    /// If it cannot be mended.
    pub fn mend(&self) -> Result<()> {
        ip(&self.near, &format!("link set {} up", self.name))
    }

    /// Has the far end send what is for these addresses (all, if it is `default`) through this line.
    ///
    /// # Errors
    /// If that cannot be told it.
    pub fn route_back(&self, whose: &str) -> Result<()> {
        ip(&self.far, &format!("route add {whose} via {}", self.near_ip()))
    }

    fn address(&self, last: u8) -> IpAddr {
        let [first, second, third] = self.network;
        Ipv4Addr::new(first, second, third, last).into()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Connections that were cut keep a network alive for minutes, and with it all that is in it.
        report(ip(&self.near, &format!("link del {}", self.name)));
    }
}

impl Sandbox {
    /// A network with nothing in it but a loopback interface, kept by a file of this name. It goes with the
    /// sandbox.
    ///
    /// # Errors
    /// If it cannot be made (needs root).
    pub fn network(&self, name: &str) -> Result<PathBuf> {
        let file = self.folder().join(name);
        self.ledger().change(|undo| {
            undo.push(Undo::Mount(file.clone()));
            create_network(&file)
        })?;
        ip(&file, "link set lo up")?;
        Ok(file)
    }
}

/// Makes a network namespace that is kept by a mount on this file.
pub(crate) fn create_network(file: &Path) -> Result<()> {
    File::create_new(file).with_context(|| format!("could not create {file:?}"))?;
    run_silent(Command::new("unshare").arg(format!("--net={}", file.display())).arg("true"))
}

/// Does something in the network that is kept by this file, and so do the programs that it starts.
///
/// # Errors
/// If the network cannot be entered, or the work fails.
pub fn in_network<T: Send>(network: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(network).with_context(|| format!("could not open {network:?}"))?;
    // A thread of its own: it never comes back to this program's network.
    let enter = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("could not enter {network:?}"))?;
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// `ip` with these words, in a network.
pub(crate) fn ip(network: &Path, words: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.display())).args(["--", "ip"]);
    run_silent(command.args(words.split(' ')))
}

//! The nodes' network namespaces: how they are joined, and how a part of them is cut off for a
//! while. Nothing here touches the machine's own network.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    components,
    layout::{Layout, Network, subnet},
};
use crate::agent::{Answer, http_get};

/// The bridge of a node's pods.
pub(crate) const BRIDGE: &str = "cni0";

/// Makes the nodes' namespaces and joins them as one wire would.
pub(crate) fn create(layout: &Layout, network: &Network, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let file = layout.netns(node);
        File::create_new(&file).with_context(|| format!("could not create {file:?}"))?;
        run(Command::new("unshare").arg(format!("--net={}", file.display())).arg("true"))?;
    }
    if let [one, other] = nodes {
        // Made inside: there is no moment at which the machine itself has these interfaces.
        let other = layout.netns(other);
        let line = format!("ip link add wire type veth peer name wire netns {}", other.display());
        in_node(layout, one, &line)?;
    }
    for (index, node) in (0..).zip(nodes) {
        in_node(layout, node, "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        let ip = network.node_ip(index);
        let line = if nodes.len() == 1 {
            format!("ip addr add {ip}/32 dev lo")
        } else {
            let other = 1 - index;
            format!(
                "ip addr add {ip}/16 dev wire; ip link set wire up; ip route add {} via {}",
                subnet(network.pods_of(other)),
                network.node_ip(other),
            )
        };
        in_node(layout, node, &line)?;
        // What a kube-proxy would do for the one service that every pod knows.
        in_node(
            layout,
            node,
            &format!(
                "iptables -w -t nat -A PREROUTING -d {service} -p tcp --dport 443 \
             -j DNAT --to-destination {server}",
                service = network.api_service_ip(),
                server = network.api_server(),
            ),
        )?;
    }
    Ok(())
}

/// Whose packets to the API server are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// Those of one pod, by its address.
    Pod(IpAddr),
    /// Those of all pods of the node.
    Pods,
    /// Those of the node itself, that is of its kubelet.
    Kubelet,
}

/// Turns the dropping of packets on or off.
pub(crate) fn cut_off(
    layout: &Layout,
    network: &Network,
    node: &str,
    whom: CutOff,
    on: bool,
) -> Result<()> {
    let change = if on { "-I" } else { "-D" };
    // Before the address of the service is translated, and for connections that exist as well.
    let rule = match whom {
        CutOff::Pod(ip) => format!("PREROUTING -s {ip} -d {}", network.api_service_ip()),
        CutOff::Pods => format!("PREROUTING -i {BRIDGE} -d {}", network.api_service_ip()),
        CutOff::Kubelet => {
            let [ip, port] = [network.node_ip(0).to_string(), network.api_port.to_string()];
            format!("OUTPUT -d {ip} -p tcp --dport {port}")
        }
    };
    let (chain, rule) = rule.split_once(' ').unwrap_or_default();
    in_node(layout, node, &format!("iptables -w -t raw {change} {chain} {rule} -j DROP"))
}

/// Asks an HTTP server that a node can reach, such as one of its pods'.
pub(crate) fn get(layout: &Layout, node: &str, url: &str) -> Result<Answer> {
    let netns = layout.netns(node);
    let namespace = File::open(&netns).with_context(|| format!("could not open {netns:?}"))?;
    // A thread of its own: it never comes back to this program's network.
    let ask = || -> Result<Answer> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("could not enter {netns:?}"))?;
        http_get(url)
    };
    thread::scope(|scope| scope.spawn(ask).join())
        .unwrap_or_else(|_| Err(anyhow!("the thread that asked {url} panicked")))
}

/// Runs a line of shell in a node's network.
fn in_node(layout: &Layout, node: &str, line: &str) -> Result<()> {
    let mut command = components::command(layout, node, "setup", Path::new("sh"))?;
    run(command.args(["-ec", line]))
}

/// Runs a program that says nothing unless it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start {:?}", command.get_program()))?;
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", args.join(" "), said.trim());
    }
    Ok(())
}

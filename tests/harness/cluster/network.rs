//! The nodes' network namespaces: how they are joined, and how a part of them is cut off for a
//! while. Nothing here touches the machine's own network.

use std::{net::IpAddr, path::Path};

use anyhow::{Result, bail};

use super::{
    components,
    layout::{Layout, Network, subnet},
    node::ClusterNode,
};
use crate::{
    agent::{Answer, http_get},
    command::run_silent,
    line::{Line, create_network, in_network},
};

/// The bridge of a node's pods.
pub(crate) const BRIDGE: &str = "cni0";

/// Makes the nodes' namespaces and joins them as one wire would.
pub(crate) fn create(layout: &Layout, network: &Network, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        create_network(&layout.netns(node))?;
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

/// Lays a line from the first node to another network. Pods reach it as they reach each other: by their own
/// addresses.
pub(crate) fn line_to(
    layout: &Layout,
    network: &Network,
    nodes: &[ClusterNode],
    far: &Path,
) -> Result<Line> {
    let [first, others @ ..] = nodes else { bail!("there is no node") };
    let line = Line::lay(&first.netns(), far, 0)?;
    line.route_back("default")?;
    for node in others {
        let (ip, first) = (line.far_ip(), network.node_ip(0));
        in_node(layout, node.name(), &format!("ip route replace {ip} via {first}"))?;
    }
    Ok(line)
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
    in_network(&layout.netns(node), || http_get(url))
}

/// Runs a line of shell in a node's network.
fn in_node(layout: &Layout, node: &str, line: &str) -> Result<()> {
    let mut command = components::command(layout, node, "setup", Path::new("sh"))?;
    run_silent(command.args(["-ec", line]))
}

//! The agent in a real cluster: from the moment at which an attacker has the API server's answer to
//! the alert line that a log shipper can read, over 200 attacks; what the agent costs, with few pods
//! on its node and with fifty; and what 250 pods add to its memory.

use std::{thread, time::Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokentrail_tests::{
    PATIENCE,
    cluster::{
        BOX_IMAGE, Cluster, ClusterNode,
        deployment::{Deployment, Package},
        victim::Victim,
    },
};

use super::{
    index,
    latency::AlertLines,
    report::{Row, quantile},
    rest::{REST, cpu_seconds, peak_mb, resident_mb},
};
use crate::{
    cluster::{self, Scene},
    shell::announce,
};

/// Attacks in all, and victims at a time: an incident alerts once, so each attack needs a pod.
const ATTACKS: usize = 200;
const VICTIMS: usize = 25;
/// Pods beside the agent in the second look at its cost.
const PODS: u32 = 50;

/// Brings a cluster up, measures and takes it down.
///
/// # Errors
/// If something does not start, or an attack raises no alert.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let scene = Scene::set(cluster::prepare()?, "bench")?;
    let rows = measure_in(&scene.cluster, scene.package.clone())?;
    scene.clear()?;
    Ok(rows)
}

fn measure_in(cluster: &Cluster, package: Package) -> Result<Vec<Row>> {
    let agents = Deployment::attach(cluster, package);
    let node = cluster.nodes().first().context("the cluster has no node")?;
    let mut rows = cost(&agents, node, "few pods")?;
    announce(format_args!("{PODS} pods on {}", node.name()));
    cluster.apply(&crowd(node).to_string())?;
    let wait = ["rollout", "status", "deployment/crowd", "--timeout=170s"];
    cluster.kubectl_ok(&wait)?;
    rows.extend(cost(&agents, node, &format!("{PODS} pods"))?);
    cluster.kubectl_ok(&["delete", "deployment", "crowd", "--wait=false"])?;
    rows.extend(latency(cluster, &agents, node)?);
    let other = cluster.nodes().last().context("the cluster has no node")?;
    rows.push(index::measure(cluster, &agents, other)?);
    Ok(rows)
}

fn cost(agents: &Deployment<'_>, node: &ClusterNode, when: &str) -> Result<Vec<Row>> {
    let pid = agents.pid(node)?;
    announce(format_args!("an agent with {when}, left alone for {} s", REST.as_secs()));
    let (before, start) = (cpu_seconds(pid)?, Instant::now());
    thread::sleep(REST);
    let share = (cpu_seconds(pid)? - before) / start.elapsed().as_secs_f64() * 100.0;
    let resident = resident_mb(pid)?;
    Ok(vec![
        Row::new(
            format!("most memory since its start, {when}"),
            format!("{:.1} MB", peak_mb(pid)?),
        ),
        Row::new(format!("resident memory, {when}"), format!("{resident:.1} MB"))
            .at_most(resident, 25.0, "MB"),
        Row::new(format!("CPU, {when}"), format!("{share:.2} %")).at_most(
            share,
            0.2,
            "% of one core",
        ),
    ])
}

fn latency(cluster: &Cluster, agents: &Deployment<'_>, node: &ClusterNode) -> Result<Vec<Row>> {
    let (mut millis, mut own) = (Vec::new(), Vec::new());
    while millis.len() < ATTACKS {
        announce(format_args!("attacks {} to {}", millis.len() + 1, millis.len() + VICTIMS));
        let victims: Vec<_> = (0..VICTIMS)
            .map(|_| Victim::create(cluster, node, &json!({})))
            .collect::<Result<_>>()?;
        // They can be read while kubectl is still ending; those of before come first.
        let seen = AlertLines::follow(agents.alerts(node).path())?.in_background();
        for victim in victims {
            let done = victim.exec(&["-it"], &format!("apicall {}", victim.uri("pods")))?;
            let answered = answered(&done.output).with_context(|| format!("{done:?}"))?;
            let (at, took) = loop {
                let (at, document) = seen.recv_timeout(PATIENCE).context("no alert came")?;
                if victim.is_of(&document) {
                    let took = document.pointer("/tokentrail/latency_us").and_then(Value::as_f64);
                    let at = Timestamp::now() - at.elapsed();
                    break (at, took.context("an alert does not say how long it took")? / 1e3);
                }
            };
            millis.push(at.duration_since(answered).as_secs_f64() * 1e3);
            own.push(took);
        }
    }
    let [p50, p99, all] = [0.5, 0.99, 1.0].map(|share| quantile(&millis, share));
    let shown = |value: f64| format!("{value:.3} ms");
    Ok(vec![
        Row::new("of that, from the audit line read on, 50 % within", shown(quantile(&own, 0.5))),
        Row::new("of that, from the audit line read on, 99 % within", shown(quantile(&own, 0.99))),
        Row::new("of that, from the audit line read on, all within", shown(quantile(&own, 1.0))),
        Row::new("answer to alert line, 50 % within", shown(p50)).at_most(p50, 1.0, "ms"),
        Row::new("answer to alert line, 99 % within", shown(p99)).at_most(p99, 5.0, "ms"),
        Row::new("all within", shown(all)),
    ])
}

/// When the attacker's client had its answer, as it says itself.
fn answered(output: &str) -> Result<Timestamp> {
    let line = output.lines().find(|line| line.contains(" GET ")).context("no answer")?;
    let mut words = line.trim_start_matches('\0').split(' ');
    let (status, time) = (words.next(), words.next());
    ensure!(status == Some("200"), "the request was not allowed");
    time.context("no time")?.parse().context("no time")
}

fn crowd(node: &ClusterNode) -> Value {
    let labels = json!({"app": "crowd"});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "crowd", "namespace": "default"},
        "spec": {
            "replicas": PODS, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeName": node.name(), "terminationGracePeriodSeconds": 1,
                    "containers": [
                        {"name": "main", "image": BOX_IMAGE, "imagePullPolicy": "Never"},
                    ],
                },
            },
        },
    })
}

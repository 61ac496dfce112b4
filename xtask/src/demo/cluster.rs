//! `cargo xtask demo --cluster`: the same attack where nothing is made up: a cluster of two nodes, the
//! agent on both as users install it, `kubectl exec -it` at a real terminal, and requests that the
//! API server itself allows, refuses and logs.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{
    TOKEN_PATH,
    cluster::{
        deployment::{Deployment, NAMESPACE},
        victim::Victim,
    },
};

use crate::{
    cluster::{self, Scene},
    shell::say,
};

/// Brings everything up, attacks, shows the alert and takes everything down.
///
/// # Errors
/// If something is missing, or the alert is not as it must be.
pub(crate) fn run() -> Result<()> {
    let scene = Scene::set(cluster::prepare()?, "demo")?;
    let start = Instant::now();
    play(&scene)?;
    scene.clear().context("the demo did not clean up after itself")?;
    say(format_args!(
        "\nThe cluster is gone; the attack took {:.1} s.",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn play(scene: &Scene) -> Result<()> {
    let cluster = &scene.cluster;
    let agents = Deployment::attach(cluster, scene.package.clone());
    let [first, second] = cluster.nodes() else { anyhow::bail!("the cluster has not two nodes") };
    for args in [&["get", "nodes"][..], &["get", "pods", "--namespace", NAMESPACE]] {
        say(format_args!("\n$ kubectl {}", args.join(" ")));
        indent(&cluster.kubectl_ok(args)?);
    }
    let victim = Victim::create(cluster, first, &json!({}))?;
    let (allowed, denied) = (victim.uri("pods"), victim.uri("secrets/db"));
    let script = format!("cat {TOKEN_PATH} > /dev/null; apicall {allowed}; apicall {denied}");
    say(format_args!(
        "\n$ kubectl exec -it --namespace {} {} -- sh\n/ # cat {TOKEN_PATH}\n/ # apicall {allowed}; \
         apicall {denied}",
        victim.namespace, victim.pod
    ));
    let done = victim.exec(&["-it"], &script)?;
    indent(&done.output);
    let alert = agents
        .alerts(first)
        .wait_for("the attack raises an alert", |it| victim.is_of(it))
        .with_context(|| agents.said(first))?;
    let other = agents.alerts(second).matching(|it| victim.is_of(it))?;
    ensure!(other.is_empty(), "the other node alerted as well: {other:?}");
    let grade = alert.pointer("/tokentrail/grade").and_then(Value::as_str);
    ensure!(grade == Some("interactive"), "the grade is {grade:?}");
    let (agent, log) = (agents.pod(first)?, agents.alerts(first));
    let agent = agent.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let log = log.path().to_string_lossy().into_owned();
    say(format_args!("\n$ kubectl exec --namespace {NAMESPACE} {agent} -- /tokentrail alerts"));
    let show = ["exec", "--namespace", NAMESPACE, agent, "--", "/tokentrail", "alerts", &log];
    indent(&cluster.kubectl_ok(&show)?);
    say(format_args!("  {} has no alert about it: the pod is not its own.", second.name()));
    Ok(())
}

fn indent(text: &str) {
    text.lines().for_each(|line| say(format_args!("  {}", line.trim_matches(['\0', '\r']))));
}

//! Somebody opens a token as fast as it goes: others are seen nonetheless, the alert log does not
//! fill, and whatever got no record is counted. What it costs is `cargo xtask bench opens`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails as the test does"
)]

use std::{
    fs::File,
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokentrail_tests::{
    Agent, Container, Finished, Node, PATIENCE, Sandbox, TOKEN_PATH, Workload, wait_until,
};

const REPEATS: &str = "tokentrail_kernel_repeats_total";
const RECORDS: &str = "tokentrail_kernel_records_total";
const LOST: &str = "tokentrail_kernel_lost_total";

/// Ends a flood, also where a test fails: until then nobody would.
struct Stop<'container>(&'container Container);

impl Stop<'_> {
    fn now(&self) -> Result<()> {
        let flag = self.0.bundle().join("workload/stop");
        File::create(&flag).with_context(|| format!("could not create {flag:?}")).map(drop)
    }
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.now().unwrap();
    }
}

/// A session in a container that runs this line of shell over and over, then prints how often.
fn start<'scope, 'env: 'scope>(
    scope: &'scope thread::Scope<'scope, 'env>,
    container: &'env Container,
    line: &str,
) -> ScopedJoinHandle<'scope, Result<Finished>> {
    let script = format!("n=0; until [ -e /workload/stop ]; do {line}; n=$((n+1)); done; echo $n");
    scope.spawn(move || container.exec(&["sh", "-c", &script]))
}

fn times(flood: ScopedJoinHandle<'_, Result<Finished>>) -> u32 {
    flood.join().unwrap().unwrap().output.trim().parse().unwrap()
}

/// Waits until `/statusz` says so, which it does once a second.
fn wait_for_statusz(agent: &Agent, pointer: &str, least: f64) {
    wait_until(PATIENCE, &format!("{pointer} of /statusz is at least {least}"), || {
        let status = agent.status()?;
        let found = status.pointer(pointer).and_then(Value::as_f64);
        Ok(found.context("there is no such field")?.ge(&least).then_some(()))
    })
    .unwrap();
}

/// Opens by somebody else and requests by both: what is told must not depend on the flood.
fn attack_meanwhile(node: &Node<'_>, flooded: &Workload) {
    let other = node.workload().unwrap();
    other.attack().unwrap();
    node.request_by(&other.pod).unwrap();
    let alert = node.wait_for("alert", &other.pod).unwrap();
    assert_eq!(alert["tokentrail"]["grade"], "interactive");
    assert_eq!(alert["tokentrail"]["incident"]["opens"], 1);
    node.request_by(&flooded.pod).unwrap();
    let alert = node.wait_for("alert", &flooded.pod).unwrap();
    assert_eq!(alert["tokentrail"]["grade"], "exec");
}

#[test]
fn a_process_that_opens_its_token_in_a_loop_hides_nobody_and_every_open_is_counted() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    let container = &victim.container;
    let opens = thread::scope(|scope| {
        let stop = Stop(container);
        // The shell itself opens: one process.
        let flood = start(scope, container, &format!(": < {TOKEN_PATH}"));
        agent.wait_for_metric(REPEATS, &[], 1_000.0).unwrap();
        attack_meanwhile(&node, &victim);
        stop.now().unwrap();
        times(flood)
    });
    // The last ones are told a second after them.
    let counted = || -> u64 {
        let recorded = node.opens_of(&victim.pod).unwrap();
        recorded.iter().map(|it| 1 + it["tokentrail"]["open"]["repeats"].as_u64().unwrap()).sum()
    };
    wait_until(
        PATIENCE,
        "all opens are told",
        || Ok((counted() >= u64::from(opens)).then_some(())),
    )
    .unwrap();
    assert_eq!(counted(), u64::from(opens));

    node.settle().unwrap();
    assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
    let [repeats, records, lost] =
        [REPEATS, RECORDS, LOST].map(|name| agent.metric(name, &[]).unwrap());
    assert!(lost < 1.0, "{lost} were lost");
    let opens = f64::from(opens);
    assert!(repeats + records >= opens && records < opens / 10.0, "{repeats} {records} {opens}");
    wait_for_statusz(&agent, "/opens/repeats", repeats);
}

#[test]
fn a_crowd_of_processes_that_open_a_token_loses_records_of_its_own_alone() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    let container = &victim.container;
    thread::scope(|scope| {
        let stop = Stop(container);
        // Each time another process, forked by the shell.
        let flood = start(scope, container, &format!("(: < {TOKEN_PATH})"));
        agent.wait_for_metric(LOST, &[r#"reason="flood""#], 100.0).unwrap();
        attack_meanwhile(&node, &victim);
        // Another session in the same container has a share of its own.
        victim.attack().unwrap();
        let by_terminal = || -> Result<usize> {
            let opens = node.opens_of(&victim.pod)?;
            Ok(opens.iter().filter(|it| it["tokentrail"]["grade"] == "interactive").count())
        };
        node.settle().unwrap();
        assert_eq!(by_terminal().unwrap(), 1);
        stop.now().unwrap();
        times(flood)
    });
    assert_eq!(node.alerts_about(&victim.pod).unwrap().len(), 1);
    assert!(agent.metric(LOST, &[r#"reason="ring_full""#]).unwrap() < 1.0);
    wait_for_statusz(&agent, "/opens/lost/flood", 100.0);
    assert!(agent.log().contains("opens of tokens are lost"), "{}", agent.log());
}

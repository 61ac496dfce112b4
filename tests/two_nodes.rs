//! The whole picture: a cluster of two nodes where only one has audit logs, those of two API servers, and a real
//! NATS server on a machine of its own between the agents, which their chart installed. While attacks go on, the
//! server is killed, cut off and out of space, and the agents are killed. Each attack alerts once, on the node
//! where the token was opened, and its incident has all its requests. `helm test` tells whether it works.
//! `cargo xtask test` brings the cluster up; the agents are afterwards as they were installed.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokentrail_tests::{
    Broker, Line, PATIENCE, Sandbox, TOKEN_PATH,
    cluster::{
        ApiServer, Cluster, ClusterNode, KUBECTL_IMAGE,
        deployment::{Deployment, NAMESPACE, Package},
        victim::Victim,
    },
    fill, in_network, tokentrail, wait_until,
};

/// Attacks while nothing fails, and rounds in which an agent is killed.
const CALM: usize = 4;
const KILLS: usize = 4;
/// The password of all logins.
const PASSWORD: &str = "of-the-test";
/// What an incident lasts at least, and what an audit side takes to say that all of it was read.
const INCIDENT: Duration = Duration::from_secs(90);

/// The cluster, the agents in it and what is between them.
struct Scene<'cluster> {
    cluster: &'cluster Cluster,
    agents: Deployment<'cluster>,
    node_a: &'cluster ClusterNode,
    node_b: &'cluster ClusterNode,
    other: ApiServer,
    line: Line,
    url: String,
    began: Instant,
}

/// A login of the broker, with the permissions that are shipped for such a one.
fn user(folder: &Path, name: &str, file: &str, cluster: &str) -> Result<String> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats").join(file);
    let permissions = fs::read_to_string(shipped)?.replace("CLUSTER", cluster);
    let include = format!("{name}.conf");
    fs::write(folder.join(&include), permissions.replace("NODE", name))?;
    Ok(format!("{{ user: {name}, password: {PASSWORD}, permissions: {{ include {include} }} }}\n"))
}

/// A broker at the far end of the line, with a login for each node and one for its operator, who has made the
/// stream and the bucket.
fn broker<'sandbox>(
    sandbox: &'sandbox Sandbox,
    line: &Line,
    cluster: &str,
) -> Result<Broker<'sandbox>> {
    let folder = sandbox.folder();
    let users = [
        user(folder, "operator", "admin.conf", cluster)?,
        user(folder, "node-a", "control-plane.conf", cluster)?,
        user(folder, "node-b", "node.conf", cluster)?,
    ]
    .concat();
    let broker =
        Broker::behind(sandbox, line, &format!("authorization {{ users [\n{users}\n] }}"))?;
    let (password, config) = (folder.join("password"), folder.join("operator.yaml"));
    fs::write(&password, PASSWORD)?;
    let login = json!({
        "nats": broker.url(), "nats-user": "operator", "nats-password-file": password,
        "cluster-name": cluster, "node-name": "operator",
    });
    fs::write(&config, login.to_string())?;
    let mut set_up = tokentrail();
    let done = sandbox.run(set_up.args(["nats", "setup", "--config"]).arg(config))?;
    ensure!(done.success(), "{done:?}");
    Ok(broker)
}

impl Scene<'_> {
    /// Values of a node's release; its `helm test` has so many seconds.
    fn values(&self, node: &ClusterNode, patience: u32) -> Value {
        let audit = if node.name() == self.node_a.name() { "file" } else { "nats" };
        let mut values = json!({
            "nats": {"url": self.url, "secretName": format!("nats-{}", node.name()),
                     "user": node.name(), "passwordFile": "password"},
            "audit": {"mode": audit},
            "test": {"enabled": true, "image": KUBECTL_IMAGE, "patience": patience},
        });
        if let ("file", Some(values)) = (audit, values.as_object_mut()) {
            let (log, other) = (self.cluster.audit_log(), &self.other.audit_log);
            let folder = other.parent();
            let options = [&log, other].map(|log| format!("--audit-log={}", log.display()));
            let mount = json!([{"name": "other", "mountPath": folder, "readOnly": true}]);
            let volume = json!([{"name": "other", "hostPath": {"path": folder}}]);
            values.insert("extraArgs".to_owned(), json!(options));
            values.insert("extraVolumes".to_owned(), volume);
            values.insert("extraVolumeMounts".to_owned(), mount);
        }
        values
    }

    /// The agents' logins, and the agents with them.
    fn install(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            let name = format!("nats-{}", node.name());
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "stringData": {"password": PASSWORD},
            });
            self.cluster.apply(&secret.to_string())?;
            self.agents.helm(node, &self.values(node, 3))?;
        }
        self.agents.wait_until_ready()
    }

    /// Reads the token at a terminal, as somebody does who has got in, and keeps it.
    fn open(&self, victim: &Victim<'_>) -> Result<()> {
        let done = victim.exec(&["-it"], &format!("cp {TOKEN_PATH} /tmp/taken"))?;
        ensure!(done.success(), "{done:?}");
        Ok(())
    }

    /// Asks both API servers in turn with that token, for what is allowed and what is not.
    fn ask(&self, victim: &Victim<'_>) -> Result<()> {
        let other = format!("--server {}", self.other.address);
        let asks = [("", "pods"), (&other, "secrets/db"), ("", "secrets/db"), (&other, "pods")];
        let script = asks.map(|(server, what)| {
            format!("apicall --insecure --token-file /tmp/taken {server} {}", victim.uri(what))
        });
        let done = victim.exec(&[], &script.join(" && "))?;
        let codes: Vec<_> = done.output.lines().filter_map(|line| line.get(..3)).collect();
        ensure!(codes == ["200", "403", "403", "200"], "{done:?}");
        Ok(())
    }

    fn attack(&self, victim: &Victim<'_>) -> Result<()> {
        self.open(victim)?;
        self.ask(victim)
    }

    fn alert(&self, victim: &Victim<'_>) -> Result<Value> {
        let what = format!("node-b alerts about {}", victim.namespace);
        let alert = self.agents.alerts(self.node_b).wait_for(&what, |it| victim.is_of(it));
        alert.with_context(|| {
            let said = [self.node_a, self.node_b].map(|node| self.agents.said(node));
            said.join("\n")
        })
    }

    /// Waits until the agent of node b says what is wrong with the broker.
    fn wait_until_unready(&self) -> Result<()> {
        let what = "node-b says that NATS is away";
        let ok = |status: &Value| status.pointer("/conditions/NATS") == Some(&json!("ok"));
        self.agents.wait_for_status(self.node_b, what, |status| !ok(status)).map(drop)
    }

    /// When the requests of a pod were received, as its incident and as both logs have it.
    fn logged(&self, victim: &Victim<'_>) -> Result<Vec<Timestamp>> {
        let mut times = Vec::new();
        for log in [self.cluster.audit_log(), self.other.audit_log.clone()] {
            for line in fs::read_to_string(log)?.lines().filter(|line| line.contains(&victim.uid)) {
                let event: Value = serde_json::from_str(line)?;
                let uid = event.pointer("/user/extra/authentication.kubernetes.io~1pod-uid/0");
                if uid == Some(&json!(victim.uid))
                    && event.get("stage") == Some(&json!("ResponseComplete"))
                {
                    times.push(time(&event, "/requestReceivedTimestamp")?);
                }
            }
        }
        times.sort();
        Ok(times)
    }

    /// Tells how far the test is: it is long, and figures are for those who read.
    fn note(&self, what: &str) {
        let _ = writeln!(std::io::stderr(), "{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Everything about this victim: one alert on its node, none elsewhere, one summary with all requests.
    fn check(&self, victim: &Victim<'_>) -> Result<()> {
        let b = self.agents.alerts(self.node_b);
        let what = format!("the incident of {} is summed up", victim.namespace);
        let mut summaries = Vec::new();
        wait_until(INCIDENT, &what, || {
            summaries = b.matching(|it| victim.is_told("incident", it))?;
            Ok((!summaries.is_empty()).then_some(()))
        })?;
        let alerts = b.matching(|it| victim.is_of(it))?;
        ensure!(alerts.len() == 1, "{} alerts: {alerts:#?}", alerts.len());
        let strays = self
            .agents
            .alerts(self.node_a)
            .matching(|it| ["alert", "incident"].iter().any(|kind| victim.is_told(kind, it)))?;
        ensure!(strays.is_empty(), "node-a tells it, too: {strays:#?}");
        let [summary] = &summaries[..] else { return Err(anyhow!("{summaries:#?}")) };
        let told = summary.pointer("/tokentrail/evidence/requests").and_then(Value::as_array);
        let told = told.context("the summary lists no requests")?.iter();
        let mut told: Vec<_> = told.map(|it| time(it, "/time")).collect::<Result<_>>()?;
        told.sort();
        let logged = self.logged(victim)?;
        ensure!(logged.len() == 4 && told == logged, "{logged:?} were logged, told: {summary:#}");
        let count = summary.pointer("/tokentrail/incident/requests");
        ensure!(count == Some(&json!(4)), "{summary:#}");
        Ok(())
    }
}

fn time(document: &Value, pointer: &str) -> Result<Timestamp> {
    let text = document.pointer(pointer).and_then(Value::as_str);
    Ok(text.with_context(|| format!("no {pointer} in {document:#}"))?.parse()?)
}

/// From the moment at which the API server writes the line to the document of the alert.
fn delay(alert: &Value) -> Result<Duration> {
    let logged = time(alert, "/kubernetes/audit/stageTimestamp")?;
    Ok(time(alert, "/event/created")?.duration_since(logged).unsigned_abs())
}

/// All that happens, in its order. The caller is in the network of node a.
fn play(
    scene: &Scene<'_>,
    broker: &mut Broker<'_>,
    disk: &Path,
    victims: &[Victim<'_>],
) -> Result<()> {
    let (calm, rest) = victims.split_at(CALM);
    let mut rest = rest.iter();
    let mut next = || rest.next().context("there are too few victims");

    let mut delays = Vec::new();
    for victim in calm {
        scene.attack(victim)?;
        let alert = scene.alert(victim)?;
        // Which node may know that, the audit side asked the API.
        let who = alert.pointer("/client/user/name");
        ensure!(who == Some(&json!("kubernetes-admin")), "who got in is not told: {alert:#}");
        delays.push(delay(&alert)?);
    }
    scene.note(&format!("audit line to alert on the other node: {delays:?}"));

    let (open, whole) = (next()?, next()?);
    scene.open(open)?;
    broker.kill()?;
    scene.ask(open)?;
    scene.attack(whole)?;
    broker.start_again()?;
    scene.alert(open)?;
    scene.alert(whole)?;
    scene.note("the broker was killed and started again");

    let (open, whole) = (next()?, next()?);
    scene.open(open)?;
    scene.line.cut()?;
    scene.ask(open)?;
    scene.attack(whole)?;
    let failed = scene.agents.test(scene.node_b)?;
    ensure!(!failed.success(), "helm test finds nothing wrong: {failed:?}");
    let mut sentences = failed.errors.lines().filter(|line| line.starts_with("FAILED"));
    let sentence = sentences.next().unwrap_or_default();
    let is_clear = sentence.starts_with("FAILED  node-b: no alert about ");
    ensure!(is_clear && sentences.next().is_none(), "{failed:?}");
    scene.note(sentence);
    scene.wait_until_unready()?;
    scene.line.mend()?;
    scene.alert(open)?;
    scene.alert(whole)?;
    scene.note("the line to the broker was cut and mended");

    let (open, whole) = (next()?, next()?);
    scene.open(open)?;
    let ballast = fill(disk)?;
    scene.ask(open)?;
    scene.attack(whole)?;
    fs::remove_file(ballast)?;
    // A server of 2.9 may answer nothing any more by now, until it is killed and started anew.
    broker.kill()?;
    broker.start_again()?;
    scene.alert(open)?;
    scene.alert(whole)?;
    scene.note("the broker's disk was full and has space again");

    let seed = fastrand::u64(..);
    scene.note(&format!("agents are killed by seed {seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    // Each twice: a kubelet takes its time with those that end too often.
    let mut killed = [scene.node_a, scene.node_b].repeat(KILLS / 2);
    random.shuffle(&mut killed);
    for node in killed {
        let victim = next()?;
        scene.open(victim)?;
        let asked = random.bool();
        if asked {
            scene.ask(victim)?;
        }
        wait_until(PATIENCE, "there is an agent to kill", || Ok(scene.agents.kill(node).ok()))?;
        if !asked {
            scene.ask(victim)?;
        }
    }
    scene.agents.wait_until_ready()?;
    scene.note("agents were killed");

    for node in [scene.node_b, scene.node_a] {
        scene.agents.helm(node, &scene.values(node, 40))?;
        let done = scene.agents.test(node)?;
        let says = format!("ok      {}", node.name());
        let sentences = done.errors.lines().filter(|line| *line == says).count();
        ensure!(done.success() && sentences == 1, "{done:?}\n{}", scene.agents.said(node));
    }
    scene.note("helm test is content with both nodes");

    for victim in victims {
        scene.check(victim).with_context(|| victim.namespace.clone())?;
    }
    scene.note("all incidents are whole");
    Ok(())
}

fn run() -> Result<()> {
    let began = Instant::now();
    let name = std::env::var("TOKENTRAIL_CLUSTER")
        .context("TOKENTRAIL_CLUSTER names no cluster; `cargo xtask test` brings one up")?;
    let cluster = Cluster::attach(&name)?;
    let (node_a, node_b) = (cluster.node("node-a")?, cluster.node("node-b")?);
    let sandbox = Sandbox::create()?;
    let line = cluster.line_to(&sandbox.network("machine")?)?;
    let disk: PathBuf = Broker::disk(&sandbox)?;
    in_network(&node_a.netns(), || {
        let agents = Deployment::attach(&cluster, Package::from_environment()?);
        let mut broker = broker(&sandbox, &line, &name)?;
        let url = broker.url();
        let other = cluster.another_api_server()?;
        let scene = Scene { cluster: &cluster, agents, node_a, node_b, other, line, url, began };
        scene.note("two API servers and a broker");
        let outcome = thread::scope(|scope| {
            let images = scope.spawn(|| cluster.import_kubectl());
            let victims = scope.spawn(|| {
                let victim = |_| Victim::create(&cluster, node_b, &json!({}));
                (0..CALM + 6 + KILLS).map(victim).collect::<Result<Vec<_>>>()
            });
            scene.install()?;
            let joined = |_| anyhow!("a thread that prepares the test panicked");
            images.join().map_err(joined)??;
            let victims = victims.join().map_err(joined)??;
            scene.note("agents, victims and an image with kubectl");
            play(&scene, &mut broker, &disk, &victims)
        });
        // As they were installed, whatever came of it.
        for node in cluster.nodes() {
            scene.agents.helm(node, &json!({}))?;
        }
        outcome
    })
}

#[test]
fn whatever_fails_each_attack_alerts_once_where_the_token_was_opened_with_all_its_requests() {
    let result = run();
    assert!(result.is_ok(), "{:?}", result.err());
}

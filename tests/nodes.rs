//! More than one node: a token is opened on one, the request is in the audit log of another, and a real NATS
//! server is between them. Whatever is away for a while, each attack alerts once.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener},
    thread,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokentrail_tests::{
    Agent, AgentSetup, AuditLine, AuditLog, Broker, Node, PATIENCE, Request, Sandbox, Stage,
    Workload, api, compress, tokentrail, wait_until,
};

/// The counter of lines that were read.
const LINES: &str = "tokentrail_audit_lines_total";
/// The rule of what is told here.
const R1: &str = "token-access-then-api-request";

/// The node whose agent has a sensor and no audit log, and one that follows the log for it.
struct Scene<'sandbox> {
    /// Where tokens are opened; `audit` is what the other one follows.
    node: Node<'sandbox>,
    side: AgentSetup<'sandbox>,
}

impl<'sandbox> Scene<'sandbox> {
    fn new(sandbox: &'sandbox Sandbox, broker: &Broker<'sandbox>) -> Self {
        let mut node = Node::new(sandbox).unwrap();
        node.agent = node.agent.without_audit_log().args(broker.arguments());
        let side = broker.side("node-a", &node.audit);
        Self { node, side }
    }

    /// With an audit side that waits a second for what comes late.
    fn with_little_lateness(mut self, sandbox: &Sandbox) -> Self {
        let config = sandbox.folder().join("side.yaml");
        fs::write(&config, "audit-lateness-seconds: 1\n").unwrap();
        self.side = self.side.args(["--config".as_ref(), config.as_os_str()]);
        self
    }

    /// Both, and a pod that was attacked and that the audit side is asked about.
    fn asked(&self) -> (Agent, Agent, Workload) {
        let side = self.side.start().unwrap();
        let agent = self.node.agent.start().unwrap();
        let victim = self.node.workload().unwrap();
        victim.attack().unwrap();
        wait_until_asked(&side);
        (side, agent, victim)
    }

    /// A pod that was attacked and has asked, all of which its node and the audit side have read.
    fn attacked(&self, side: &Agent) -> Workload {
        let victim = self.node.workload().unwrap();
        victim.attack().unwrap();
        self.node.wait_until_seen(&victim).unwrap();
        let read = side.metric(LINES, &[]).unwrap();
        self.node.request_by(&victim.pod).unwrap();
        side.wait_for_metric(LINES, &[], read + 1.0).unwrap();
        victim
    }
}

/// Waits until it knows that pods are asked about.
fn wait_until_asked(side: &Agent) {
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
}

#[test]
fn a_request_in_another_nodes_log_alerts_where_the_token_was_opened() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    let victim = scene.node.workload().unwrap();
    // Who got in is in that log as well, from before anybody asked.
    scene.node.audit.append(&AuditLine::session(&victim.pod).unwrap()).unwrap();
    victim.attack().unwrap();
    wait_until_asked(&side);
    scene.node.request_by(&victim.pod).unwrap();
    let alert = scene.node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(alert["tokentrail"]["grade"], "interactive");
    assert_eq!(alert["kubernetes"]["audit"]["objectRef"]["resource"], "pods");
    assert_eq!(alert["client"]["user"]["name"], "admin", "{alert:#}");
    assert!(scene.side.alerts().all().unwrap().is_empty(), "the audit side has nothing to tell");
    // It is shown once a second.
    let status = wait_until(PATIENCE, "the node shows the audit side and its answer", || {
        Ok(Some(agent.status()?).filter(|it| {
            it["nats"]["audit_sides"]["node-a"].is_object() && it["nats"]["last_answer"].is_string()
        }))
    })
    .unwrap();
    assert_eq!(status["conditions"]["NATS"], "ok", "{status:#}");
    assert_eq!(status["audit"], "audit sides over NATS");
    assert_eq!(status["nats"]["unanswered_since"], Value::Null);
}

#[test]
fn a_token_that_names_no_pod_is_known_by_account_and_address_and_a_name_that_is_acted_as_by_nothing()
 {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let mut scene = Scene::new(&sandbox, &broker);
    let victim = scene.node.workload().unwrap();
    let mut known = api::pod(&victim, "shop/cart:1", &json!({}));
    known["status"]["podIPs"] = json!([{"ip": "10.89.0.7"}]);
    scene.node.agent = scene.node.agent.kubeconfig(api::serve(&sandbox, &[known]).unwrap());
    let side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    agent.wait_for_metric("tokentrail_pods_held", &[], 1.0).unwrap();
    victim.attack().unwrap();
    wait_until_asked(&side);
    let forged = AuditLine::acting_as(&victim.pod).unwrap();
    let elsewhere = AuditLine::of_secrets_token("10.89.0.8").unwrap();
    let here = AuditLine::of_secrets_token("10.89.0.7").unwrap();
    for line in [&forged, &elsewhere, &here] {
        scene.node.audit.append(line).unwrap();
    }
    // Answers are in the order of the log.
    let alert = scene.node.wait_for("alert", &victim.pod).unwrap();
    let request = &alert["kubernetes"]["audit"];
    assert_eq!(request["auditID"], here.audit_id(), "{alert:#}");
    assert_eq!(alert["source"]["ip"], "10.89.0.7");
    assert_eq!(alert["tokentrail"]["confidence"], "low");
    side.wait_for_metric("tokentrail_nats_published_total", &[], 1.0).unwrap();
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], 1.0).unwrap();
    let published = side.metric("tokentrail_nats_published_total", &[]).unwrap();
    assert!(published < 1.5, "{published} answers: what is nobody's is not sent");
    assert!(scene.side.alerts().all().unwrap().is_empty());
}

#[test]
fn a_request_that_was_read_before_anybody_asked_alerts() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    broker.kill().unwrap();
    let victim = scene.attacked(&side);
    wait_until(PATIENCE, "the node is not ready", || {
        Ok(agent.get("/readyz")?.body.contains("NATS: ").then_some(()))
    })
    .unwrap();
    broker.start_again().unwrap();
    scene.node.settled_alert_about(&victim.pod).unwrap();
    assert!(side.metric("tokentrail_nats_searches_total", &[]).unwrap() < 0.5, "it was in memory");
}

#[test]
fn a_request_that_was_read_by_an_audit_side_that_is_gone_alerts() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let mut scene = Scene::new(&sandbox, &broker);
    let side = scene.side.start().unwrap();
    let _agent = scene.node.agent.start().unwrap();
    broker.kill().unwrap();
    // In a compressed file by the time that it is looked for, in a renamed one, and in the live one.
    let victims = [(); 3].map(|()| {
        let before = scene.node.audit.rotate_by_rename().unwrap();
        (scene.attacked(&side), before)
    });
    compress(&victims[1].1).unwrap();
    // Its position is behind the requests, and what it had in memory goes with it.
    assert!(side.terminate().unwrap().success());
    broker.start_again().unwrap();
    let side = scene.side.start().unwrap();
    for (victim, _) in &victims {
        scene.node.wait_for("alert", &victim.pod).unwrap();
    }
    scene.node.settle().unwrap();
    for (victim, _) in &victims {
        scene.node.the_alert_about(&victim.pod).unwrap();
    }
    side.wait_for_metric("tokentrail_nats_searches_total", &[], 1.0).unwrap();
}

#[test]
fn a_request_made_while_the_node_is_away_alerts_when_it_is_back() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let (side, agent, victim) = scene.asked();
    agent.kill().unwrap();
    scene.node.request_by(&victim.pod).unwrap();
    side.wait_for_metric("tokentrail_nats_published_total", &[], 1.0).unwrap();
    let _agent = scene.node.agent.start().unwrap();
    scene.node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn whatever_is_killed_and_however_often_each_attack_alerts_once() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let mut side = scene.side.start().unwrap();
    let mut agent = scene.node.agent.start().unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut victims = Vec::new();
    for _ in 0..12 {
        let victim = scene.node.workload().unwrap();
        victim.attack().unwrap();
        // The journal has it: from here on it survives.
        scene.node.wait_until_seen(&victim).unwrap();
        let early = random.bool();
        if early {
            scene.node.request_by(&victim.pod).unwrap();
        }
        match random.u8(0..4) {
            0 => {
                agent.kill().unwrap();
                agent = scene.node.agent.spawn().unwrap();
            }
            1 => {
                side.kill().unwrap();
                side = scene.side.spawn().unwrap();
            }
            2 => {
                broker.kill().unwrap();
                broker.start_again().unwrap();
            }
            _ => {}
        }
        if !early {
            scene.node.request_by(&victim.pod).unwrap();
        }
        agent.wait_until_ready().unwrap();
        victims.push(victim);
    }
    side.wait_until_ready().unwrap();
    for victim in &victims {
        scene.node.wait_for("alert", &victim.pod).unwrap();
    }
    scene.node.settle().unwrap();
    for victim in &victims {
        scene.node.the_alert_about(&victim.pod).unwrap();
    }
}

#[test]
fn requests_spread_over_two_logs_are_one_incident_and_two_readers_of_a_log_are_one() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let other = AuditLog::create(sandbox.folder().join("other.log")).unwrap();
    let twin = broker.side("node-a2", &scene.node.audit);
    let other_side = broker.side("node-c", &other);
    let sides = [&scene.side, &twin, &other_side].map(|it| it.start().unwrap());
    let _agent = scene.node.agent.start().unwrap();
    let victim = scene.node.workload().unwrap();
    victim.attack().unwrap();
    sides.iter().for_each(wait_until_asked);
    scene.node.request_by(&victim.pod).unwrap();
    // Sides are in no order: only then is the graver request sure to come second.
    scene.node.wait_for("alert", &victim.pod).unwrap();
    let line = AuditLine::recorded(Request::GetSecret, Stage::ResponseComplete, &victim.pod);
    other.append(&line.unwrap()).unwrap();
    let count = |name: &str| -> f64 { sides.iter().map(|it| it.metric(name, &[]).unwrap()).sum() };
    wait_until(PATIENCE, "all three have published", || {
        let (published, duplicates) =
            (count("tokentrail_nats_published_total"), count("tokentrail_nats_duplicates_total"));
        Ok((published > 1.5 && published + duplicates > 2.5).then_some(()))
    })
    .unwrap();
    let escalation = scene.node.wait_for("escalation", &victim.pod).unwrap();
    let alert = scene.node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(
        alert["tokentrail"]["incident"]["id"], escalation["tokentrail"]["incident"]["id"],
        "one incident"
    );
    // What needs no open is told where it is read: by both readers, as one and the same event.
    other.append(&AuditLine::mint("mallory", "shop", "cart").unwrap()).unwrap();
    let minted = AuditLine::mint("mallory", "shop", "till").unwrap();
    scene.node.audit.append(&minted).unwrap();
    let told = |setup: &AgentSetup<'_>| {
        let told = setup
            .alerts()
            .wait_for("the minted token is told", |it| it["rule"]["id"] == "token-request-by-user");
        told.unwrap()["event"]["id"].clone()
    };
    assert_eq!(told(&scene.side), told(&twin));
    assert_ne!(told(&scene.side), told(&other_side));
}

#[test]
fn a_token_minted_by_a_pod_that_is_asked_about_is_told_by_one_of_both() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let (_side, _agent, victim) = scene.asked();
    let user = format!("system:serviceaccount:shop:{}", victim.pod.service_account);
    let of_pod =
        format!(r#""extra":{{"authentication.kubernetes.io/pod-uid":["{}"],"#, victim.pod.uid);
    let minted = AuditLine::mint(&user, "shop", "till").unwrap();
    scene.node.audit.append(&minted.replacing(r#""extra":{"#, &of_pod)).unwrap();
    scene.node.settled_alert_about(&victim.pod).unwrap();
    let is_minted = |it: &Value| it["rule"]["id"] == "token-request-by-user";
    scene.side.alerts().wait_for("the audit side tells it", is_minted).unwrap();
    assert_eq!(scene.node.agent.alerts().matching(is_minted).unwrap(), Vec::<Value>::new());
}

/// The state of the bucket that the audit side has seen, as it said to the node.
fn seen(agent: &Agent) -> (Option<Timestamp>, u64) {
    let status = agent.status().unwrap();
    let seen = |what| status.pointer(&format!("/nats/audit_sides/node-a/seen/{what}"));
    let made = seen("bucket").and_then(Value::as_str).and_then(|it| it.parse().ok());
    (made, seen("number").and_then(Value::as_u64).unwrap_or_default())
}

#[test]
fn a_read_that_nothing_follows_is_told_once_all_audit_sides_are_past_it_also_in_a_bucket_made_anew()
{
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker).with_little_lateness(&sandbox);
    let (_side, agent, victim) = scene.asked();
    let (old, _) = wait_until(PATIENCE, "the node hears that its question was seen", || {
        Ok(Some(seen(&agent)).filter(|(_, number)| *number > 0))
    })
    .unwrap();
    // While the exposure goes on; nobody is restarted.
    broker.make_anew("KV_tokentrail_test").unwrap();
    wait_until(PATIENCE, "the node hears that of the new bucket", || {
        Ok(Some(seen(&agent)).filter(|(made, number)| *made > old && *number > 0))
    })
    .unwrap();
    // Among the node's answers lies what the server says to somebody who fetches his own: it waits for nobody.
    let answers = agent.metric("tokentrail_nats_answers_total", &[]).unwrap();
    let mut somebody = broker.log_in("", "", "_INBOX.somebody").unwrap();
    let next = "$JS.API.CONSUMER.MSG.NEXT.tokentrail_test.node-b";
    let said =
        somebody.publish(next, "tokentrail.test.request.node-b", br#"{"batch":1,"no_wait":true}"#);
    assert_eq!(said.unwrap(), None);
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], answers + 1.0).unwrap();
    let told = || Ok(scene.node.told("token-read", "alert", &victim.pod)?.into_iter().next());
    wait_until(PATIENCE * 2, "the read is told", told).unwrap();
}

#[test]
fn what_waited_in_a_stream_of_answers_that_is_made_anew_is_answered_again() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let (side, agent, victim) = scene.asked();
    scene.node.wait_until_seen(&victim).unwrap();
    agent.kill().unwrap();
    scene.node.request_by(&victim.pod).unwrap();
    side.wait_for_metric("tokentrail_nats_published_total", &[], 1.0).unwrap();
    broker.make_anew("tokentrail_test").unwrap();
    let _agent = scene.node.agent.start().unwrap();
    scene.node.wait_for("alert", &victim.pod).unwrap();
    scene.node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn an_answer_that_somebody_kept_adds_nothing_to_its_incident_nor_begins_another() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker).with_little_lateness(&sandbox);
    let (side, agent, victim) = scene.asked();
    agent.kill().unwrap();
    scene.node.request_by(&victim.pod).unwrap();
    side.wait_for_metric("tokentrail_nats_published_total", &[], 1.0).unwrap();
    let answer = broker.answer_to("node-b").unwrap();
    let agent = scene.node.agent.start().unwrap();
    scene.node.wait_for("alert", &victim.pod).unwrap();
    let send_again = || {
        let taken = agent.metric("tokentrail_nats_answers_total", &[]).unwrap();
        broker.publish("tokentrail.test.request.node-b", &answer).unwrap();
        agent.wait_for_metric("tokentrail_nats_answers_total", &[], taken + 1.0).unwrap();
    };
    send_again();
    let told = || Ok(scene.node.told(R1, "incident", &victim.pod)?.into_iter().next());
    let summary = wait_until(PATIENCE * 2, "the incident is summed up", told).unwrap();
    assert_eq!(summary["tokentrail"]["incident"]["requests"], 1, "{summary:#}");
    send_again();
    scene.node.settled_alert_about(&victim.pod).unwrap();
    assert_eq!(scene.node.told(R1, "incident", &victim.pod).unwrap().len(), 1);
}

#[test]
fn what_anybody_writes_to_the_broker_is_counted_and_harms_nobody() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    let victim = scene.node.workload().unwrap();
    let line = AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &victim.pod);
    let line = line.unwrap();
    // A record of a pod whose token nobody opened, of another cluster, and no records at all.
    let node = "tokentrail.test.request.node-b";
    broker.publish(node, line.text().as_bytes()).unwrap();
    broker.publish("tokentrail.elsewhere.request.node-b", line.text().as_bytes()).unwrap();
    for garbage in [&b""[..], b"{", b"[]", b"{}", b"\xff\xfe", &[b'{'; 60_000]] {
        broker.publish(node, garbage).unwrap();
    }
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], 7.0).unwrap();
    let bad = agent.metric("tokentrail_audit_bad_lines_total", &[]).unwrap();
    assert!(bad > 3.5, "{bad}");
    // What cannot be asked, and what node-z must not.
    let key = |key: &str| format!("$KV.tokentrail_test.{key}");
    let foreign = format!(
        r#"{{"interests":[{{"pod":"{}","from":"2020-01-01T00:00:00Z","until":"2020-01-01T10:00:00Z"}},
        {{"pod":"{}","from":"{}","until":"{}"}}]}}"#,
        victim.pod.uid,
        victim.pod.uid,
        Timestamp::now() - SignedDuration::from_mins(1),
        Timestamp::now() + SignedDuration::from_hours(1),
    );
    broker.publish(&key("ask.node-z"), foreign.as_bytes()).unwrap();
    broker.publish(&key("ask.node=y"), foreign.as_bytes()).unwrap();
    broker.publish(&key("ask.node-x"), b"no document").unwrap();
    broker.publish(&key("ask.node-w"), br#"{"interests":[{"pod":"","from":"2020-01-01T00:00:00Z","until":"2020-01-01T00:00:00Z"}]}"#).unwrap();
    broker.publish(&key("side.nobody"), b"not so far").unwrap();
    agent.wait_for_metric("tokentrail_nats_refused_words_total", &[], 1.0).unwrap();
    let refused = "tokentrail_nats_refused_interests_total";
    for reason in ["key", "shape", "bounds"] {
        side.wait_for_metric(refused, &[&format!("reason=\"{reason}\"")], 1.0).unwrap();
    }
    victim.attack().unwrap();
    side.wait_for_metric("tokentrail_nats_interests", &[], 2.0).unwrap();
    scene.node.request_by(&victim.pod).unwrap();
    scene.node.settled_alert_about(&victim.pod).unwrap();
    side.wait_for_metric(refused, &["reason=\"node\""], 1.0).unwrap();
}

#[test]
fn a_server_behind_a_broken_line_only_delays() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    broker.freeze(true).unwrap();
    let victim = scene.node.workload().unwrap();
    victim.attack().unwrap();
    scene.node.wait_until_seen(&victim).unwrap();
    scene.node.request_by(&victim.pod).unwrap();
    side.wait_for_metric(LINES, &[], 1.0).unwrap();
    // The question waits for its answer, and that is noticed.
    wait_until(PATIENCE, "the node notices", || {
        Ok((agent.status()?["conditions"]["NATS"] != "ok").then_some(()))
    })
    .unwrap();
    broker.freeze(false).unwrap();
    scene.node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn whatever_is_wrong_with_the_broker_is_one_sentence() {
    let sandbox = Sandbox::create().unwrap();
    let folder = sandbox.folder();
    let without_jetstream = Broker::configured(&sandbox, "").unwrap();
    let empty = Broker::bare(&sandbox, "").unwrap();
    let locked =
        Broker::configured(&sandbox, "authorization { user: agent, password: right-password }")
            .unwrap();
    let password = folder.join("password");
    fs::write(&password, "wrong-password\n").unwrap();
    let login = format!("nats-user: agent\nnats-password-file: {}\n", password.display());
    let nobody = "nats://127.0.0.1:9".to_owned();
    let old = older_server();
    let lacks = "nats-credentials-file: /nowhere/agent.creds\n".to_owned();
    let useless = format!("nats-nkey-file: {}\n", password.display());
    let cases = [
        (nobody, String::new(), "no NATS server at nats://127.0.0.1:9"),
        (without_jetstream.url(), String::new(), "no JetStream for this login"),
        (empty.url(), String::new(), "make it with `tokentrail nats setup`"),
        (locked.url(), String::new(), "refuses this login"),
        (locked.url(), login, "refuses this login"),
        (old, String::new(), "of version 2.8.4; 2.9 is the oldest"),
        (empty.url(), lacks, "cannot read /nowhere/agent.creds"),
        (empty.url(), useless, "is of no use"),
        (empty.url(), format!("nats-ca-file: {}\n", password.display()), "TLS"),
    ];
    for (url, more, says) in cases {
        let config = folder.join("config.yaml");
        fs::write(&config, format!("nats: {url}\ncluster-name: test\n{more}")).unwrap();
        let mut check = tokentrail();
        check.args(["check", "--no-kube", "--no-sensor", "--audit-log", "/dev/null", "--config"]);
        let found = sandbox.run(check.arg(&config)).unwrap();
        let line = found.output.lines().find(|it| it.contains("  NATS  ")).unwrap_or_default();
        assert!(line.starts_with("MISSING") && line.contains(says), "{says}: {found:?}");
    }
    empty.set_up().unwrap();
    // And once more, as after an update.
    empty.set_up().unwrap();
    let mut check = tokentrail();
    check.args(["check", "--no-kube", "--no-sensor", "--audit-log", "/dev/null"]);
    let found = sandbox.run(check.args(empty.arguments())).unwrap();
    assert!(found.output.contains("stream and bucket there"), "{found:?}");
    assert!(!found.output.contains("password"), "{found:?}");
}

#[test]
fn a_stream_that_would_lose_answers_is_refused_and_set_up_puts_it_right() {
    const STREAM: &str = "tokentrail_test";
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let mut anybody = broker.log_in("", "", "_INBOX.test").unwrap();
    let mut api = |verb: &str, payload: &Value| {
        let subject = format!("$JS.API.STREAM.{verb}.{STREAM}");
        let answer = anybody.ask(&subject, "", payload.to_string().as_bytes()).unwrap();
        assert!(answer.get("error").is_none(), "{verb} {payload}: {answer}");
        answer
    };
    let right = api("INFO", &json!({}))["config"].clone();
    let with = |changes: Value| {
        let mut config = right.clone();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config
    };
    let says = |part: &str| {
        let mut check = tokentrail();
        check.args(["check", "--no-kube", "--no-sensor", "--audit-log", "/dev/null"]);
        let found = sandbox.run(check.args(broker.arguments())).unwrap();
        let line = found.output.lines().find(|it| it.contains("  NATS  ")).unwrap_or_default();
        assert!(line.contains(part), "{part}: {found:?}");
    };
    let old = json!({"discard": "old", "discard_new_per_subject": false});
    for (changes, part) in [
        (
            json!({"subjects": ["elsewhere"]}),
            "does not take the subjects of answers; `tokentrail nats setup`",
        ),
        (old, "drops answers that wait when it is full; `tokentrail nats setup`"),
        (json!({"discard_new_per_subject": false}), "when a node's share is used up; `tokentrail"),
    ] {
        api("UPDATE", &with(changes));
        says(part);
        broker.set_up().unwrap();
        says("stream and bucket there");
    }
    api("DELETE", &json!({}));
    api("CREATE", &with(json!({"retention": "limits"})));
    says("is no work queue, so answers that were taken stay; delete it, and make it anew");
    let refusal = broker.set_up().unwrap_err().to_string();
    assert!(refusal.contains("cannot be made what it must be") && refusal.contains("delete it"));
    api("DELETE", &json!({}));
    broker.set_up().unwrap();
    says("stream and bucket there");
}

/// A server that says it is of a version before 2.9, and then nothing.
fn older_server() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let info =
                r#"{"server_id":"x","version":"2.8.4","max_payload":1048576,"headers":true}"#;
            stream.write_all(format!("INFO {info}\r\n").as_bytes()).unwrap();
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.starts_with("PING") {
                        stream.write_all(b"PONG\r\n").unwrap();
                    }
                }
            });
        }
    });
    format!("nats://{address}")
}

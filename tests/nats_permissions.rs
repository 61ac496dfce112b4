//! What logins on the NATS server may do: with the permissions of `deploy/nats`, on a real server. All that is
//! needed works, and whoever has stolen a node's login does nothing in another node's name.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{fs, path::Path, thread};

use jiff::{SignedDuration, Timestamp};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::{Value, json};
use tokentrail_tests::{
    Agent, AgentSetup, AuditLine, Broker, Finished, Login, Node, PATIENCE, Sandbox, api,
    tokentrail, wait_until,
};

/// The password of all of them.
const PASSWORD: &str = "of-the-test";
const NODE_A: &str = "node-a_east";
/// The pod of an audit side.
const AUDIT_SIDE: &str = "tokentrail-audit-5d4f-x2x";

/// A file in `deploy/nats`, for the cluster of the tests.
fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats").join(file);
    fs::read_to_string(path).unwrap().replace("CLUSTER", "test")
}

/// A user of the broker with the permissions of one of them.
fn user(sandbox: &Sandbox, name: &str, file: &str, node: &str) -> String {
    let permissions = format!("{name}.conf");
    fs::write(sandbox.folder().join(&permissions), shipped(file).replace("NODE", node)).unwrap();
    format!("{{ user: {name}, password: {PASSWORD}, permissions: {{ include {permissions} }} }}\n")
}

/// A broker with an operator, an audit side, two nodes with a login each, a login that all nodes share, and
/// one that may do anything. Stream and bucket are there.
fn broker(sandbox: &Sandbox) -> Broker<'_> {
    let users = [
        user(sandbox, "operator", "admin.conf", "machine"),
        user(sandbox, "audit", "audit-side.conf", "*"),
        user(sandbox, "node-a", "node.conf", NODE_A),
        user(sandbox, "node-b", "node.conf", "node-b"),
        user(sandbox, "shared", "node.conf", "*"),
        format!("{{ user: anybody, password: {PASSWORD} }}"),
    ]
    .concat();
    let broker =
        Broker::bare(sandbox, &format!("authorization {{ users [\n{users}\n] }}")).unwrap();
    let done = set_up(sandbox, &broker, "operator", "machine");
    assert!(done.success(), "{done:?}");
    broker
}

fn set_up(sandbox: &Sandbox, broker: &Broker<'_>, user: &str, machine: &str) -> Finished {
    let mut setup = tokentrail();
    setup.args(["nats", "setup"]).args(broker.arguments());
    setup.args(login(sandbox, user, &format!("node-name: {machine}\n")));
    sandbox.run(&mut setup).unwrap()
}

/// The option by which an agent logs in as a user.
fn login(sandbox: &Sandbox, user: &str, more: &str) -> [String; 2] {
    let password = sandbox.folder().join("password");
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let file = sandbox.folder().join(format!("config-{user}.yaml"));
    let config = format!("nats-user: {user}\nnats-password-file: {}\n{more}", password.display());
    fs::write(&file, config).unwrap();
    ["--config".to_owned(), file.display().to_string()]
}

fn log_in(broker: &Broker<'_>, user: &str, node: &str) -> Login {
    broker.log_in(user, PASSWORD, &format!("_INBOX_tokentrail.test.{node}.inbox")).unwrap()
}

/// An agent that follows the node's audit log for others.
fn side<'sandbox>(
    sandbox: &'sandbox Sandbox,
    node: &Node<'_>,
    broker: &Broker<'_>,
) -> AgentSetup<'sandbox> {
    AgentSetup::new(sandbox, node.audit.path())
        .node_name(AUDIT_SIDE)
        .state(sandbox.folder().join("state-side"))
        .alert_log(sandbox.folder().join("alerts-side.ndjson"))
        .args(["--no-sensor".to_owned()])
        .args(broker.arguments())
        .args(login(sandbox, "audit", ""))
}

/// A node that asks, with its login.
fn asking<'sandbox>(sandbox: &'sandbox Sandbox, broker: &Broker<'_>) -> Node<'sandbox> {
    let mut node = Node::new(sandbox).unwrap();
    // As on a worker: configured as a control plane is, and there is no log.
    let absent = sandbox.folder().join("of-no-api-server.log");
    node.agent = node
        .agent
        .without_audit_log()
        .args(["--audit-log-optional".as_ref(), "--audit-log".as_ref(), absent.as_os_str()])
        .node_name("node-b")
        .args(broker.arguments())
        .args(login(sandbox, "node-b", ""));
    node
}

#[test]
fn each_part_does_its_work_with_its_permissions_alone() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = broker(&sandbox);
    let node = asking(&sandbox, &broker);
    let setup = side(&sandbox, &node, &broker);
    let mut side_agent = thread::scope(|scope| {
        let start = scope.spawn(|| {
            // A thread's own, and what it executes has none of them either.
            for each in CapabilitySet::all() {
                let _ = remove_capability_from_bounding_set(each);
            }
            setup.spawn()
        });
        start.join().unwrap().unwrap()
    });
    side_agent.wait_until_ready().unwrap();
    let agent = node.agent.start().unwrap();
    for round in 1..=2 {
        let victim = node.workload().unwrap();
        victim.attack().unwrap();
        side_agent.wait_for_metric("tokentrail_nats_interests", &[], f64::from(round)).unwrap();
        node.request_by(&victim.pod).unwrap();
        node.wait_for("alert", &victim.pod).unwrap();
        agent.wait_for_metric("tokentrail_nats_alerts_published_total", &[], round.into()).unwrap();
        wait_until(PATIENCE, "the answer is acknowledged", || {
            let mut anybody = log_in(&broker, "anybody", "x");
            let info = anybody.ask("$JS.API.CONSUMER.INFO.tokentrail_test.node-b", "", b"")?;
            let left = ["/num_pending", "/num_ack_pending"].map(|it| info.pointer(it));
            Ok((left == [Some(&json!(0)); 2]).then_some(()))
        })
        .unwrap();
        agent.wait_for_metric("tokentrail_nats_audit_sides", &[], 1.0).unwrap();
        // And once more, with what they find when they come back.
        broker.kill().unwrap();
        broker.start_again().unwrap();
        agent
            .wait_for_metric("tokentrail_nats_connections_total", &[], f64::from(round + 1))
            .unwrap();
        side_agent
            .wait_for_metric("tokentrail_nats_connections_total", &[], f64::from(round + 1))
            .unwrap();
    }
    // An operator brings both up to date with the same login.
    let done = set_up(&sandbox, &broker, "operator", "machine");
    assert!(done.success(), "{done:?}");
    let refused = broker.log().lines().filter(|it| it.contains("Violation")).count();
    assert_eq!(refused, 0, "{}", broker.log());
}

#[test]
fn what_a_login_may_not_do_is_said_in_one_sentence_before_anything_is_asked() {
    let sandbox = Sandbox::create().unwrap();
    let reached = "\"tokentrail.test.reached.*\"";
    let broker = broker(&sandbox);
    // As an operator has it who updates agents and forgets the permissions.
    let file = sandbox.folder().join("node-b.conf");
    let permissions = fs::read_to_string(&file).unwrap();
    assert!(permissions.contains(reached));
    fs::write(&file, permissions.replace(reached, "")).unwrap();
    broker.reload().unwrap();
    let node = asking(&sandbox, &broker);
    let agent = node.agent.spawn().unwrap();
    let says = format!(
        "NATS: this login lacks a permission on the NATS server: Permissions Violation for Subscription to {reached}; \
         docs/nats.md"
    );
    wait_until(PATIENCE, "the agent says what it may not hear", || {
        // It may not listen yet.
        Ok(agent.get("/readyz").is_ok_and(|it| it.body.contains(&says)).then_some(()))
    })
    .unwrap();
    let mut check = tokentrail();
    check.args(["check", "--no-kube", "--node-name", "node-b"]).args(broker.arguments());
    let found = sandbox.run(check.args(login(&sandbox, "node-b", ""))).unwrap();
    let line = found.output.lines().find(|it| it.contains("  NATS  ")).unwrap_or_default();
    assert!(line.contains(says.trim_start_matches("NATS: ")), "{found:?}");
}

#[test]
fn a_login_is_changed_under_a_running_agent() {
    let sandbox = Sandbox::create().unwrap();
    let broker = broker(&sandbox);
    let node = asking(&sandbox, &broker);
    let agent = node.agent.start().unwrap();
    agent.wait_for_metric("tokentrail_nats_connected", &[], 1.0).unwrap();
    // The old one is of no use any more before there is a new one.
    let old = format!("user: node-b, password: {PASSWORD}");
    broker.reconfigure(&old, "user: node-b, password: of-tomorrow").unwrap();
    wait_until(PATIENCE, "the agent is not let in", || {
        let reason = agent.get("/readyz")?.body;
        Ok(reason.contains("refuses this login").then_some(()))
    })
    .unwrap();
    fs::write(sandbox.folder().join("password"), "of-tomorrow").unwrap();
    agent.wait_for_metric("tokentrail_nats_connected", &[], 1.0).unwrap();
    agent.wait_for_metric("tokentrail_nats_connections_total", &[], 2.0).unwrap();
}

#[test]
fn streams_and_bucket_may_be_made_by_hand() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::bare(&sandbox, "").unwrap();
    let mut anybody = log_in(&broker, "", "x");
    let names = ["tokentrail_test", "KV_tokentrail_test", "ALERTS_tokentrail_test"];
    for (name, file) in names.into_iter().zip(["stream.json", "bucket.json", "alerts.json"]) {
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        let made = anybody.ask(&subject, "", shipped(file).as_bytes()).unwrap();
        assert!(at(&made, "/error").is_null(), "{made}");
    }
    let mut all = || {
        names.map(|name| {
            let info = anybody.ask(&format!("$JS.API.STREAM.INFO.{name}"), "", b"").unwrap();
            at(&info, "/config")
        })
    };
    let by_hand = all();
    broker.set_up().unwrap();
    assert_eq!(all(), by_hand, "`tokentrail nats setup` makes the same");
}

/// What somebody with the login of `node-b` tries in the name of `node-a`. Those marked `true` the login that
/// all nodes share may do.
const PUBLISHED: [(&str, &str, bool); 41] = [
    ("ask in another's name", "$KV.tokentrail_test.ask.node-a_east", true),
    ("pass for an audit side", "$KV.tokentrail_test.side.node-b", false),
    ("pass for an audit side", "tokentrail.test.reached.node-b", false),
    ("speak for an audit side", "tokentrail.test.reached.node-a_east", false),
    ("answer another", "tokentrail.test.request.node-a_east", false),
    ("answer itself", "tokentrail.test.request.node-b", false),
    ("tell alerts of another", "tokentrail.test.alert.node-a_east", true),
    ("tell alerts of nobody", "tokentrail.test.alert", false),
    ("read any alert", "$JS.API.STREAM.MSG.GET.ALERTS_tokentrail_test", false),
    ("collect alerts", "$JS.API.CONSUMER.CREATE.ALERTS_tokentrail_test", false),
    ("empty the alerts", "$JS.API.STREAM.PURGE.ALERTS_tokentrail_test", false),
    (
        "read what another asks",
        "$JS.API.DIRECT.GET.KV_tokentrail_test.$KV.tokentrail_test.ask.node-a_east",
        false,
    ),
    ("read any message of the bucket", "$JS.API.DIRECT.GET.KV_tokentrail_test", false),
    ("read any message of the bucket", "$JS.API.STREAM.MSG.GET.KV_tokentrail_test", false),
    ("read any answer", "$JS.API.DIRECT.GET.tokentrail_test", false),
    ("read any answer", "$JS.API.STREAM.MSG.GET.tokentrail_test", false),
    ("watch the bucket", "$JS.API.CONSUMER.CREATE.KV_tokentrail_test", false),
    (
        "watch what is asked",
        "$JS.API.CONSUMER.CREATE.KV_tokentrail_test.w.$KV.tokentrail_test.ask.*",
        false,
    ),
    (
        "take another's answers",
        "$JS.API.CONSUMER.CREATE.tokentrail_test.node-b.tokentrail.test.request.node-a_east",
        true,
    ),
    (
        "take all answers",
        "$JS.API.CONSUMER.CREATE.tokentrail_test.node-b.tokentrail.test.request.*",
        true,
    ),
    ("take all answers", "$JS.API.CONSUMER.CREATE.tokentrail_test.node-b", false),
    ("take all answers", "$JS.API.CONSUMER.DURABLE.CREATE.tokentrail_test.node-b", false),
    ("take all answers", "$JS.API.CONSUMER.CREATE.tokentrail_test", false),
    (
        "make another's consumer",
        "$JS.API.CONSUMER.CREATE.tokentrail_test.node-a_east.tokentrail.test.request.node-a_east",
        true,
    ),
    ("fetch another's answers", "$JS.API.CONSUMER.MSG.NEXT.tokentrail_test.node-a_east", true),
    ("count another's answers", "$JS.API.CONSUMER.INFO.tokentrail_test.node-a_east", true),
    ("acknowledge for another", "$JS.ACK.tokentrail_test.node-a_east.1.1.1.0.0", true),
    ("delete another's consumer", "$JS.API.CONSUMER.DELETE.tokentrail_test.node-a_east", false),
    ("delete its own", "$JS.API.CONSUMER.DELETE.tokentrail_test.node-b", false),
    ("list consumers", "$JS.API.CONSUMER.NAMES.tokentrail_test", false),
    ("list consumers", "$JS.API.CONSUMER.LIST.KV_tokentrail_test", false),
    ("make a stream", "$JS.API.STREAM.CREATE.other", false),
    ("change the stream", "$JS.API.STREAM.UPDATE.tokentrail_test", false),
    ("empty the stream", "$JS.API.STREAM.PURGE.tokentrail_test", false),
    ("empty the bucket", "$JS.API.STREAM.PURGE.KV_tokentrail_test", false),
    ("delete a message", "$JS.API.STREAM.MSG.DELETE.tokentrail_test", false),
    ("copy the stream", "$JS.API.STREAM.SNAPSHOT.tokentrail_test", false),
    ("put another in its place", "$JS.API.STREAM.RESTORE.tokentrail_test", false),
    ("list streams", "$JS.API.STREAM.NAMES", false),
    ("delete the bucket", "$JS.API.STREAM.DELETE.KV_tokentrail_test", false),
    ("delete the stream", "$JS.API.STREAM.DELETE.tokentrail_test", false),
];

/// What it tries to hear.
const HEARD: [(&str, bool); 12] = [
    (">", false),
    ("tokentrail.>", false),
    ("tokentrail.test.request.node-a_east", false),
    ("tokentrail.test.request.node-b", false),
    ("tokentrail.test.alert.node-a_east", false),
    ("tokentrail.test.alert.*", false),
    ("$KV.tokentrail_test.ask.node-a_east", false),
    ("$KV.tokentrail_test.>", false),
    ("$JS.>", false),
    ("_INBOX.>", false),
    ("_INBOX_tokentrail.>", false),
    ("_INBOX_tokentrail.test.node-a_east.>", true),
];

/// What is there, or nothing.
fn at(answer: &Value, pointer: &str) -> Value {
    answer.pointer(pointer).cloned().unwrap_or_default()
}

/// What is there of `node-a`: a question, a consumer, an answer that waits.
fn of_node_a(anybody: &mut Login) -> [Value; 3] {
    let mut ask =
        |subject: &str, payload: &str| anybody.ask(subject, "", payload.as_bytes()).unwrap();
    let question = r#"{"last_by_subj":"$KV.tokentrail_test.ask.node-a_east"}"#;
    let question = ask("$JS.API.STREAM.MSG.GET.KV_tokentrail_test", question);
    let consumer = ask("$JS.API.CONSUMER.INFO.tokentrail_test.node-a_east", "");
    let answers = ask("$JS.API.STREAM.INFO.tokentrail_test", "");
    [at(&question, "/message/data"), at(&consumer, "/num_pending"), at(&answers, "/state/messages")]
}

/// A broker on which that is there.
fn broker_with_node_a(sandbox: &Sandbox) -> (Broker<'_>, [Value; 3]) {
    let broker = broker(sandbox);
    let mut node_a = log_in(&broker, "node-a", NODE_A);
    let put = node_a.ask(&format!("$KV.tokentrail_test.ask.{NODE_A}"), "", b"x").unwrap();
    assert!(at(&put, "/seq").is_u64(), "{put}");
    let made = node_a.ask(&consumer(NODE_A), "", &consumer_of(NODE_A, NODE_A)).unwrap();
    assert!(at(&made, "/error").is_null(), "{made}");
    let mut audit = log_in(&broker, "audit", "audit");
    let published = audit.ask(&format!("tokentrail.test.request.{NODE_A}"), "", b"{}").unwrap();
    assert!(at(&published, "/seq").is_u64(), "{published}");
    let there = of_node_a(&mut log_in(&broker, "anybody", "x"));
    assert_eq!(there, [json!("eA=="), json!(1), json!(1)]);
    (broker, there)
}

/// The subject by which a consumer is made.
fn consumer(node: &str) -> String {
    format!("$JS.API.CONSUMER.CREATE.tokentrail_test.{node}.tokentrail.test.request.{node}")
}

/// A request for one that takes the answers of `of`.
fn consumer_of(name: &str, of: &str) -> Vec<u8> {
    let filter = format!("tokentrail.test.request.{of}");
    json!({"stream_name": "tokentrail_test", "config": {
        "durable_name": name, "filter_subject": filter, "ack_policy": "explicit",
    }})
    .to_string()
    .into_bytes()
}

#[test]
fn a_stolen_login_of_a_node_is_refused_whatever_is_anothers() {
    let sandbox = Sandbox::create().unwrap();
    let (broker, there) = broker_with_node_a(&sandbox);
    let mut thief = log_in(&broker, "node-b", "node-b");
    // It tells what it likes of its own node.
    let told = thief.ask("tokentrail.test.alert.node-b", "", b"{}").unwrap();
    assert_eq!(at(&told, "/stream"), "ALERTS_tokentrail_test", "{told}");
    for (what, subject, _) in PUBLISHED {
        let refused = thief.publish(subject, "", b"{}").unwrap().unwrap_or_default();
        assert!(refused.contains("Permissions Violation for Publish"), "{what}: {refused}");
    }
    for (subject, _) in HEARD {
        let refused = thief.subscribe(subject).unwrap().unwrap_or_default();
        assert!(refused.contains("Permissions Violation for Subscription"), "{subject}: {refused}");
    }
    // On subjects that are its own, for what is not.
    let filtered = thief.ask(&consumer("node-b"), "", &consumer_of("node-b", NODE_A)).unwrap();
    assert_eq!(at(&filtered, "/error/err_code"), 10_131, "{filtered}");
    let named = thief.ask(&consumer("node-b"), "", &consumer_of(NODE_A, "node-b")).unwrap();
    assert!(at(&named, "/error/code").is_u64(), "{named}");
    for headers in ["Nats-Rollup: all\r\n", "Nats-Rollup: sub\r\n"] {
        let rolled = thief.ask("$KV.tokentrail_test.ask.node-b", headers, b"{}").unwrap();
        assert!(at(&rolled, "/error/code").is_u64(), "{rolled}");
    }
    let long = vec![b' '; (256 << 10) + 1];
    let put = thief.ask("$KV.tokentrail_test.ask.node-b", "", &long).unwrap();
    assert!(at(&put, "/error/code").is_u64(), "{put}");
    let mut anybody = log_in(&broker, "anybody", "x");
    assert_eq!(of_node_a(&mut anybody), there);
    // None of it is refused for what it is: who may do anything may do this.
    for (what, subject, _) in PUBLISHED {
        assert_eq!(anybody.publish(subject, "", b"{}").unwrap(), None, "{what}");
    }
    for (subject, _) in HEARD {
        assert_eq!(anybody.subscribe(subject).unwrap(), None, "{subject}");
    }
}

#[test]
fn a_login_that_all_nodes_share_takes_and_asks_what_is_anothers_but_answers_nobody() {
    let sandbox = Sandbox::create().unwrap();
    let (broker, there) = broker_with_node_a(&sandbox);
    let mut thief = log_in(&broker, "shared", "node-b");
    for (what, subject, may) in PUBLISHED {
        let refused = thief.publish(subject, "", b"{}").unwrap();
        assert_eq!(refused.is_none(), may, "{what}: {refused:?}");
    }
    for (subject, may) in HEARD {
        let refused = thief.subscribe(subject).unwrap();
        assert_eq!(refused.is_none(), may, "{subject}: {refused:?}");
    }
    let left = of_node_a(&mut log_in(&broker, "anybody", "x"));
    assert_ne!(left, there, "node-a's question and answer");
}

#[test]
fn a_stolen_login_is_not_told_who_got_into_a_pod_of_another_node() {
    let sandbox = Sandbox::create().unwrap();
    let broker = broker(&sandbox);
    let mut node = asking(&sandbox, &broker);
    let victim = node.workload().unwrap();
    let api = api::serve(&sandbox, &[api::pod_on(&victim.pod, "node-b")]).unwrap();
    node.agent = node.agent.kubeconfig(&api);
    let side = side(&sandbox, &node, &broker).kubeconfig(api).start().unwrap();
    let agent = node.agent.start().unwrap();
    node.audit.append(&AuditLine::session(&victim.pod).unwrap()).unwrap();
    side.wait_for_metric("tokentrail_audit_lines_total", &[], 1.0).unwrap();
    // It knows the pod's name, and it may ask for whatever it likes.
    let after = |minutes| (Timestamp::now() + SignedDuration::from_mins(minutes)).to_string();
    let question = json!({"interests": [{
        "pod": "of-no-pod", "namespace": victim.pod.namespace, "name": victim.pod.name,
        "from": after(-1), "until": after(30),
    }]});
    let mut thief = log_in(&broker, "node-a", NODE_A);
    let asked = format!("$KV.tokentrail_test.ask.{NODE_A}");
    let put = thief.ask(&asked, "", question.to_string().as_bytes()).unwrap();
    assert!(at(&put, "/seq").is_u64(), "{put}");
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
    victim.attack().unwrap();
    side.wait_for_metric("tokentrail_nats_interests", &[], 2.0).unwrap();
    node.request_by(&victim.pod).unwrap();
    let alert = node.wait_for("alert", &victim.pod).unwrap();
    assert_eq!(alert["client"]["user"]["name"], "admin", "its own node is told: {alert:#}");
    // And of one who gets in while both ask.
    let told = agent.metric("tokentrail_nats_answers_total", &[]).unwrap();
    node.audit.append(&AuditLine::session(&victim.pod).unwrap()).unwrap();
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], told + 1.0).unwrap();
    let filter = format!(r#"{{"subjects_filter":"tokentrail.test.request.{NODE_A}"}}"#);
    let mut anybody = log_in(&broker, "anybody", "x");
    let stream = anybody.ask("$JS.API.STREAM.INFO.tokentrail_test", "", filter.as_bytes()).unwrap();
    assert_eq!(at(&stream, "/state/subjects"), Value::Null, "{stream:#}");
}

/// A login is not asked where replies to it go, so the broker's own words may land anywhere. They are
/// believed by nobody.
#[test]
fn what_the_broker_replies_to_a_thief_is_no_question_and_no_answer_of_another_node() {
    let sandbox = Sandbox::create().unwrap();
    let broker = broker(&sandbox);
    let node = asking(&sandbox, &broker);
    let side = side(&sandbox, &node, &broker).start().unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
    let mut thief = log_in(&broker, "node-a", NODE_A);
    let question = "$KV.tokentrail_test.ask.node-b";
    let answers = "tokentrail.test.request.node-b";
    let asked = format!("$KV.tokentrail_test.ask.{NODE_A}");
    let said =
        format!("$JS.API.DIRECT.GET.KV_tokentrail_test.$KV.tokentrail_test.side.{AUDIT_SIDE}");
    wait_until(PATIENCE, "the audit side has put how far it is", || {
        // Before that the server answers with nothing.
        Ok(thief.ask(&said, "", b"").is_ok_and(|word| word["side"] == AUDIT_SIDE).then_some(()))
    })
    .unwrap();
    for (words, payload) in [
        (&*asked, &br#"{"interests":[]}"#[..]),
        ("$JS.API.STREAM.INFO.tokentrail_test", b""),
        (&said, b""),
    ] {
        let sides = ["$KV.tokentrail_test.side.thief", "tokentrail.test.reached.thief"];
        for reply in [question, answers].into_iter().chain(sides) {
            assert_eq!(thief.publish(words, reply, payload).unwrap(), None);
        }
    }
    side.wait_for_metric("tokentrail_nats_refused_interests_total", &[r#"reason="shape""#], 1.0)
        .unwrap();
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], 3.0).unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    assert_eq!(agent.metric("tokentrail_nats_audit_sides", &[]).unwrap(), 1.0, "the thief is none");
}

/// Nor does what a thief chooses for status lines and headers, be it by the server's words to it, keep anybody from
/// work: what a client cannot read costs some connections.
#[test]
fn status_lines_and_odd_headers_of_a_thief_keep_nobody_from_asking_or_answering() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = broker(&sandbox);
    let node = asking(&sandbox, &broker);
    let side = side(&sandbox, &node, &broker).start().unwrap();
    let agent = node.agent.start().unwrap();
    let connected = |agent: &Agent, times| {
        agent.wait_for_metric("tokentrail_nats_connections_total", &[], times).unwrap();
        agent.wait_for_metric("tokentrail_nats_connected", &[], 1.0).unwrap();
    };
    connected(&side, 1.0);
    connected(&agent, 1.0);
    let mut thief = log_in(&broker, "node-a", NODE_A);
    let said =
        format!("$JS.API.DIRECT.GET.KV_tokentrail_test.$KV.tokentrail_test.side.{AUDIT_SIDE}");
    wait_until(PATIENCE, "the audit side has put how far it is", || {
        Ok(thief.ask(&said, "", b"").is_ok_and(|word| word["side"] == AUDIT_SIDE).then_some(()))
    })
    .unwrap();
    let made = thief.ask(&consumer(NODE_A), "", &consumer_of(NODE_A, NODE_A)).unwrap();
    assert!(at(&made, "/error").is_null(), "{made}");
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.tokentrail_test.{NODE_A}");
    // 404, and 408 after a millisecond. More than may wait for an acknowledgement.
    let fetches = [r#"{"batch":1,"no_wait":true}"#, r#"{"batch":1,"expires":1000000}"#];
    for fetch in fetches.iter().cycle().take(1_100) {
        let refused = thief.publish(&next, "tokentrail.test.request.node-b", fetch.as_bytes());
        assert_eq!(refused.unwrap(), None);
    }
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], 1_000.0).unwrap();
    for (number, fetch) in fetches.iter().enumerate() {
        for sides in ["$KV.tokentrail_test.side", "tokentrail.test.reached"] {
            let refused = thief.publish(&next, &format!("{sides}.x{number}"), fetch.as_bytes());
            assert_eq!(refused.unwrap(), None);
        }
    }
    agent.wait_for_metric("tokentrail_nats_refused_words_total", &[], 2.0).unwrap();
    // A question, with any headers.
    let asked = |headers: &[u8]| {
        let (size, nothing) = (headers.len(), br#"{"interests":[]}"#);
        let all = size + nothing.len();
        let line = format!("HPUB $KV.tokentrail_test.ask.{NODE_A} {size} {all}\r\n");
        [line.as_bytes(), headers, nothing, b"\r\n"].concat()
    };
    let heartbeat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Consumer-Stalled: not.allowed\r\n\r\n";
    assert_eq!(thief.say(&asked(heartbeat)).unwrap(), None);
    for (times, headers) in [
        (2.0, &b"XXXXXXX\r\n\r\n"[..]),
        (3.0, b"NATS/1.0 9x9 y\r\n\r\n"),
        (4.0, b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n"),
        (5.0, b"NATS/1.0\r\nno colon here\r\n\r\n"),
    ] {
        assert_eq!(thief.say(&asked(headers)).unwrap(), None);
        connected(&side, times);
    }
    // Where audit sides speak, headers that name a subject which is no text.
    let get = b"PUB $JS.API.DIRECT.GET.KV_tokentrail_test.$KV.tokentrail_test.side.";
    let key = b" $KV.tokentrail_test.side.";
    let word = [get, AUDIT_SIDE.as_bytes(), key, b"\xff 0\r\n\r\n"].concat();
    let copy = [&get[..], b"\xff", key, b"y 0\r\n\r\n"].concat();
    for words in [word, copy] {
        assert_eq!(thief.say(&words).unwrap(), None);
    }
    let of_copy = "$JS.API.DIRECT.GET.KV_tokentrail_test.$KV.tokentrail_test.side.y";
    wait_until(PATIENCE, "it lies there", || Ok(thief.ask(of_copy, "", b"").ok())).unwrap();
    // All of it lies there when they come back, too.
    broker.kill().unwrap();
    broker.start_again().unwrap();
    connected(&side, 6.0);
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
    node.request_by(&victim.pod).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    wait_until(PATIENCE, "all that lies among its answers is taken", || {
        let mut anybody = log_in(&broker, "anybody", "x");
        let info = anybody.ask("$JS.API.CONSUMER.INFO.tokentrail_test.node-b", "", b"")?;
        let left = ["/num_pending", "/num_ack_pending"].map(|it| info.pointer(it));
        Ok((left == [Some(&json!(0)); 2]).then_some(()))
    })
    .unwrap();
    for (agent, most) in [(&side, 7.5), (&agent, 9.5)] {
        let times = agent.metric("tokentrail_nats_connections_total", &[]).unwrap();
        assert!(times < most, "{times} connections");
    }
}

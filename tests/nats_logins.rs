//! Who an agent is to the NATS server: by certificate, by NKey, by the JWT of a decentralised set-up; and that
//! a login which ends or is renewed loses nothing, on a real server.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{fs, path::Path, time::Duration};

use tokentrail_tests::{
    Agent, AgentSetup, Authority, Broker, Node, Operator, PATIENCE, Sandbox, Workload, tokentrail,
    wait_until,
};

/// How long a login lasts that ends: an agent has long been let in by then.
const SHORT: Duration = Duration::from_secs(20);

/// A configuration file with this login.
fn configured(sandbox: &Sandbox, name: &str, login: &str) -> [String; 2] {
    let file = sandbox.folder().join(format!("{name}.yaml"));
    fs::write(&file, login).unwrap();
    ["--config".to_owned(), file.display().to_string()]
}

/// A node that asks over this broker, and an agent that follows its audit log for it, with their logins.
fn scene<'sandbox>(
    sandbox: &'sandbox Sandbox,
    broker: &Broker<'_>,
    [node_login, side_login]: [&str; 2],
) -> (Node<'sandbox>, AgentSetup<'sandbox>) {
    let mut node = Node::new(sandbox).unwrap();
    node.agent = node
        .agent
        .without_audit_log()
        .args(broker.arguments())
        .args(configured(sandbox, "node", node_login));
    let side = AgentSetup::new(sandbox, node.audit.path())
        .node_name("node-a")
        .state(sandbox.folder().join("state-side"))
        .alert_log(sandbox.folder().join("alerts-side.ndjson"))
        .args(["--no-sensor".to_owned()])
        .args(broker.arguments())
        .args(configured(sandbox, "side", side_login));
    (node, side)
}

fn set_up(sandbox: &Sandbox, broker: &Broker<'_>, login: &str) {
    let mut setup = tokentrail();
    setup.args(["nats", "setup"]).args(broker.arguments());
    let done = sandbox.run(setup.args(configured(sandbox, "operator", login))).unwrap();
    assert!(done.success(), "{done:?}");
}

/// A pod is attacked, its request is in the log that the audit side has read, and the node cannot ask.
fn attack_meanwhile(node: &Node<'_>, side: &Agent) -> Workload {
    let read = side.metric("tokentrail_audit_lines_total", &[]).unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.wait_until_seen(&victim).unwrap();
    node.request_by(&victim.pod).unwrap();
    side.wait_for_metric("tokentrail_audit_lines_total", &[], read + 1.0).unwrap();
    victim
}

fn wait_until_not_ready(agent: &Agent, says: &str) {
    wait_until(PATIENCE, &format!("the agent is not ready: {says}"), || {
        let ready = agent.get("/readyz")?;
        Ok((ready.status == 503 && ready.body.contains(says)).then_some(()))
    })
    .unwrap();
}

/// The subjects of a file in `deploy/nats` for this node.
fn shipped(file: &str, node: &str) -> [Vec<String>; 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats").join(file);
    let text = fs::read_to_string(path).unwrap().replace("CLUSTER", "test").replace("NODE", node);
    let (publish, subscribe) = text.split_once("\nsubscribe {").unwrap();
    [publish, subscribe].map(|block| {
        let subjects = block.lines().filter_map(|line| line.trim().strip_prefix('"'));
        subjects.map(|it| it.trim_end_matches('"').to_owned()).collect()
    })
}

/// A credentials file with the permissions of one in `deploy/nats`, and the key that names it.
fn credentials(
    sandbox: &Sandbox,
    operator: &Operator,
    name: &str,
    permissions: (&str, &str),
    valid: Option<Duration>,
) -> String {
    let [publish, subscribe] = shipped(permissions.0, permissions.1);
    let path = sandbox.folder().join(format!("{name}.creds"));
    let text = operator.credentials(name, &publish, &subscribe, valid).unwrap();
    // As a Secret's files are replaced: never half of one.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, &path).unwrap();
    format!("nats-credentials-file: {}\n", path.display())
}

/// A server that knows an operator alone, with stream and bucket; and the logins of a node and an audit side.
fn decentralised<'sandbox>(
    sandbox: &'sandbox Sandbox,
    operator: &Operator,
    valid: Option<Duration>,
) -> (Broker<'sandbox>, [String; 2]) {
    let broker = Broker::bare(sandbox, &operator.configuration().unwrap()).unwrap();
    let admin = credentials(sandbox, operator, "admin", ("admin.conf", "machine"), None);
    set_up(sandbox, &broker, &format!("{admin}node-name: machine\n"));
    let side = credentials(sandbox, operator, "side", ("audit-side.conf", "node-a"), None);
    let node = credentials(sandbox, operator, "node", ("node.conf", "node-b"), valid);
    (broker, [node, side])
}

/// An attack on the node alerts there, with the request that the audit side has read.
fn assert_an_attack_alerts(node: &Node<'_>, side: &Agent) {
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
    node.request_by(&victim.pod).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn with_jwts_of_an_operator_each_part_does_its_work_with_the_permissions_that_are_shipped() {
    let sandbox = Sandbox::create().unwrap();
    let operator = Operator::default();
    let (broker, logins) = decentralised(&sandbox, &operator, None);
    let (node, side) = scene(&sandbox, &broker, logins.each_ref().map(String::as_str));
    let (side, agent) = (side.start().unwrap(), node.agent.start().unwrap());
    assert_an_attack_alerts(&node, &side);
    agent.wait_for_metric("tokentrail_nats_audit_sides", &[], 1.0).unwrap();
    let refused = broker.log().lines().filter(|it| it.contains("Violation")).count();
    assert_eq!(refused, 0, "{}", broker.log());
}

#[test]
fn a_jwt_that_expires_under_a_running_agent_is_said_and_a_new_one_is_taken_and_nothing_is_lost() {
    let sandbox = Sandbox::create().unwrap();
    let operator = Operator::default();
    let (broker, logins) = decentralised(&sandbox, &operator, Some(SHORT));
    let (node, side) = scene(&sandbox, &broker, logins.each_ref().map(String::as_str));
    let side = side.start().unwrap();
    let agent = node.agent.start().unwrap();
    wait_until_not_ready(&agent, "NATS: the NATS server at");
    wait_until_not_ready(&agent, "refuses this login; check nats-credentials-file");
    assert!(agent.log().contains("Authentication Expired"), "{}", agent.log());
    let victim = attack_meanwhile(&node, &side);
    assert!(node.alerts_about(&victim.pod).unwrap().is_empty());
    credentials(&sandbox, &operator, "node", ("node.conf", "node-b"), None);
    agent.wait_for_metric("tokentrail_nats_connections_total", &[], 2.0).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn a_client_certificate_is_asked_for_and_a_renewed_one_is_taken_and_nothing_is_lost() {
    let sandbox = Sandbox::create().unwrap();
    let folder = sandbox.folder();
    let [first, second] =
        ["first authority", "second authority"].map(|name| Authority::new(name).unwrap());
    let server = first.server("server", &[], &[[127, 0, 0, 1].into()]).unwrap();
    server.write(folder, "server").unwrap();
    let certify = |authority: &Authority, name: &str| {
        authority.client(name, None).unwrap().write(folder, name).unwrap();
    };
    let trust = |name: &str, authorities: &[&Authority]| {
        let pem: String = authorities.iter().map(|it| it.pem()).collect();
        fs::write(folder.join(name), pem).unwrap();
    };
    trust("clients.pem", &[&first]);
    trust("servers.pem", &[&first]);
    let at = |name: &str| folder.join(name).display().to_string();
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        at("server.crt"),
        at("server.key"),
        at("clients.pem"),
    );
    let mut broker = Broker::bare(&sandbox, &tls).unwrap();
    let login = |name: &str| {
        format!(
            "nats-ca-file: {}\nnats-cert-file: {}\nnats-key-file: {}\n",
            at("servers.pem"),
            at(&format!("{name}.crt")),
            at(&format!("{name}.key")),
        )
    };
    for name in ["admin", "node", "side"] {
        certify(&first, name);
    }
    // Whoever has none is told what is missing.
    let mut check = tokentrail();
    check.args(["check", "--no-kube", "--no-sensor", "--audit-log", "/dev/null"]);
    check.args(broker.arguments());
    let without = format!("nats-ca-file: {}\n", at("servers.pem"));
    let found = sandbox.run(check.args(configured(&sandbox, "nobody", &without))).unwrap();
    let line = found.output.lines().find(|it| it.contains("  NATS  ")).unwrap_or_default();
    assert!(line.contains("no TLS with the NATS server"), "{found:?}");
    assert!(line.contains("nats-cert-file"), "{found:?}");

    set_up(&sandbox, &broker, &login("admin"));
    let logins = ["node", "side"].map(login);
    let (node, side) = scene(&sandbox, &broker, logins.each_ref().map(String::as_str));
    let (side, agent) = (side.start().unwrap(), node.agent.start().unwrap());
    assert_an_attack_alerts(&node, &side);

    // The server trusts another authority from now on; the audit side's certificate was renewed before.
    certify(&second, "side");
    trust("clients.pem", &[&second]);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    side.wait_for_metric("tokentrail_nats_connections_total", &[], 2.0).unwrap();
    wait_until_not_ready(&agent, "no TLS with the NATS server");
    let victim = attack_meanwhile(&node, &side);
    certify(&second, "node");
    agent.wait_for_metric("tokentrail_nats_connections_total", &[], 2.0).unwrap();
    node.wait_for("alert", &victim.pod).unwrap();
    node.settled_alert_about(&victim.pod).unwrap();
}

#[test]
fn a_login_by_certificate_and_nkey_is_one() {
    // The pair that NATS's own documentation shows.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let sandbox = Sandbox::create().unwrap();
    let at = |name: &str| sandbox.folder().join(name);
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(at("tls.crt"), certified.cert.pem()).unwrap();
    fs::write(at("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    fs::write(at("seed"), format!("{SEED}\n")).unwrap();
    let more = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\n\
         authorization {{ users: [ {{ nkey: {PUBLIC} }} ] }}",
        at("tls.crt"),
        at("tls.key"),
    );
    let broker = Broker::bare(&sandbox, &more).unwrap();
    let config = at("config.yaml");
    let check = |login: &str| {
        let text = format!(
            "nats: {}\ncluster-name: test\nnats-ca-file: {}\n{login}",
            broker.url(),
            at("tls.crt").display()
        );
        fs::write(&config, text).unwrap();
        let mut check = tokentrail();
        check.args(["check", "--no-kube", "--no-sensor", "--audit-log", "/dev/null", "--config"]);
        sandbox.run(check.arg(&config)).unwrap().output
    };
    assert!(check("").contains("refuses this login"));
    let login = format!("nats-nkey-file: {}\n", at("seed").display());
    assert!(check(&login).contains("tokentrail nats setup"), "{}", check(&login));
    let mut setup = tokentrail();
    let done = sandbox.run(setup.args(["nats", "setup", "--config"]).arg(&config)).unwrap();
    assert!(done.success(), "{done:?}");
    assert!(check(&login).contains("stream and bucket there"), "{}", check(&login));
}

//! Audit sides that API servers post to, for nodes elsewhere: two agents without a sensor take the posts, a node that
//! opens tokens asks over a real NATS server. What was answered with success is told, once, whatever is away.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Result;
use rustls::crypto::ring;
use serde_json::{Value, json};
use tokentrail_tests::{
    Agent, AgentSetup, AuditLine, Authority, Broker, Node, PATIENCE, Pod, Request, Sandbox, Stage,
    Workload, wait_until,
};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

const TOKEN: &str = "a-token-for-all-api-servers";
/// How long an API server waits for an answer, and one that has little time.
const PATIENT: Duration = Duration::from_secs(30);
const HASTY: Duration = Duration::from_secs(2);

/// Requests that nobody asks about in a post that is as long as those of busy API servers.
const OTHERS: u16 = 200;

/// What posts, as an API server does.
#[derive(Clone)]
struct ApiServer(ureq::Agent);

impl ApiServer {
    fn new(authority: &Authority) -> Self {
        let root = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        Self(config.tls_config(tls).build().new_agent())
    }

    /// Posts once; the status of the answer.
    fn try_post(&self, to: SocketAddr, body: &str, patience: Duration) -> Result<u16> {
        let post = self.0.post(format!("https://{to}/"));
        let post = post.config().timeout_global(Some(patience)).build();
        let answer = post.header("authorization", format!("Bearer {TOKEN}")).send(body)?;
        Ok(answer.status().as_u16())
    }

    /// Posts what is answered at once.
    fn post(&self, side: &Side<'_>, lines: &[&AuditLine]) {
        assert_eq!(self.try_post(side.address, &list(lines), PATIENT).unwrap(), 200);
    }

    /// Posts the same again and again until it is taken, and gives up waiting soon each time.
    fn post_until_taken(&self, to: SocketAddr, body: &str) {
        wait_until(PATIENCE, "the post is taken", || {
            Ok((self.try_post(to, body, HASTY).ok() == Some(200)).then_some(()))
        })
        .unwrap();
    }
}

/// An `EventList`, as an API server writes it.
fn list(lines: &[&AuditLine]) -> String {
    let items: Vec<&str> = lines.iter().map(|line| line.text()).collect();
    format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{}},"items":[{}]}}"#,
        items.join(",")
    )
}

/// One of the agents that are posted to.
struct Side<'sandbox> {
    setup: AgentSetup<'sandbox>,
    address: SocketAddr,
}

struct Scene<'sandbox> {
    node: Node<'sandbox>,
    sides: [Side<'sandbox>; 2],
    api_server: ApiServer,
}

impl<'sandbox> Scene<'sandbox> {
    fn new(sandbox: &'sandbox Sandbox, broker: &Broker<'sandbox>) -> Self {
        let folder = sandbox.folder();
        let authority = Authority::new("webhook authority").unwrap();
        let server = authority.server("webhook", &[], &[Ipv4Addr::LOCALHOST.into()]).unwrap();
        server.write(folder, "webhook").unwrap();
        fs::write(folder.join("tokens"), TOKEN).unwrap();
        let mut node = Node::without_audit_log(sandbox);
        node.agent = node.agent.without_audit_log().args(broker.arguments());
        let sides = ["hook-1", "hook-2"].map(|name| {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = free.local_addr().unwrap();
            let config = json!({
                "audit-webhook": address,
                "audit-webhook-cert-file": folder.join("webhook.crt"),
                "audit-webhook-key-file": folder.join("webhook.key"),
                "audit-webhook-token-file": folder.join("tokens"),
                "audit-webhook-lateness-seconds": 1,
            });
            let path = folder.join(format!("{name}.yaml"));
            fs::write(&path, config.to_string()).unwrap();
            let setup = broker.side(name, &node.audit).without_audit_log();
            Side { setup: setup.args(["--config".as_ref(), path.as_os_str()]), address }
        });
        Self { node, sides, api_server: ApiServer::new(&authority) }
    }

    /// Both of them, and the node.
    fn start(&self) -> ([Agent; 2], Agent) {
        let sides = self.sides.each_ref().map(|side| side.setup.start().unwrap());
        (sides, self.node.agent.start().unwrap())
    }

    /// A pod that was attacked and that both are asked about.
    fn asked(&self, sides: &[Agent; 2]) -> Workload {
        let victim = self.node.workload().unwrap();
        victim.attack().unwrap();
        for side in sides {
            side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
        }
        victim
    }

    /// The one alert about this pod, after all that was posted before has gone through both and the node.
    fn settled_alert_about(&self, pod: &Pod) -> Value {
        let witness = self.node.workload().unwrap();
        witness.attack().unwrap();
        self.node.wait_until_seen(&witness).unwrap();
        let told = [(Request::ListPods, "alert"), (Request::GetSecret, "escalation")];
        for (side, (request, kind)) in self.sides.iter().zip(told) {
            self.api_server.post(side, &[&request_by(&witness.pod, request)]);
            self.node.wait_for(kind, &witness.pod).unwrap();
        }
        self.node.the_alert_about(pod).unwrap()
    }
}

/// The answer to this request of a pod, as it was made now.
fn request_by(pod: &Pod, request: Request) -> AuditLine {
    AuditLine::recorded(request, Stage::ResponseComplete, pod).unwrap()
}

#[test]
fn requests_posted_to_either_of_two_and_some_to_both_are_one_incident() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let (sides, _agent) = scene.start();
    let victim = scene.asked(&sides);
    let requests = [Request::ListPods, Request::GetSecret, Request::GetVersion]
        .map(|request| request_by(&victim.pod, request));
    let [listed, read, version] = &requests;
    let [one, other] = &scene.sides;
    scene.api_server.post(one, &[listed]);
    scene.node.wait_for("alert", &victim.pod).unwrap();
    // As if the answer had been lost: the next attempt goes to whichever it may.
    scene.api_server.post(other, &[listed, read]);
    scene.node.wait_for("escalation", &victim.pod).unwrap();
    scene.api_server.post(one, &[read, version]);
    let alert = scene.settled_alert_about(&victim.pod);
    assert_eq!(alert["kubernetes"]["audit"]["auditID"], listed.audit_id(), "{alert:#}");
    for side in &scene.sides {
        assert_eq!(side.setup.alerts().all().unwrap(), Vec::<Value>::new(), "nothing is theirs");
    }
    let told =
        || Ok(scene.node.told("token-access-then-api-request", "incident", &victim.pod)?.pop());
    let summary = wait_until(PATIENCE * 2, "the incident is summed up", told).unwrap();
    assert_eq!(summary["tokentrail"]["incident"]["requests"], 3, "{summary:#}");
    let listed = summary["tokentrail"]["evidence"]["requests"].as_array().unwrap();
    let mut resources: Vec<_> = listed.iter().map(|it| it["resource"].as_str().unwrap()).collect();
    resources.sort_unstable();
    assert_eq!(resources, ["/version", "pods", "secrets"], "{summary:#}");
    assert_eq!(summary["tokentrail"]["incident"]["id"], alert["tokentrail"]["incident"]["id"]);
}

#[test]
fn what_was_posted_before_anybody_asked_is_told_when_somebody_does() {
    let sandbox = Sandbox::create().unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let (_sides, _agent) = scene.start();
    broker.kill().unwrap();
    let victim = scene.node.workload().unwrap();
    victim.attack().unwrap();
    scene.node.wait_until_seen(&victim).unwrap();
    let request = request_by(&victim.pod, Request::ListPods);
    scene.api_server.post(&scene.sides[0], &[&request]);
    broker.start_again().unwrap();
    scene.node.wait_for("alert", &victim.pod).unwrap();
    let alert = scene.settled_alert_about(&victim.pod);
    assert_eq!(alert["kubernetes"]["audit"]["auditID"], request.audit_id(), "{alert:#}");
}

#[test]
fn while_the_broker_is_away_a_post_that_a_node_waits_for_is_not_taken_and_others_are() {
    for is_killed in [false, true] {
        let sandbox = Sandbox::create().unwrap();
        let mut broker = Broker::start(&sandbox).unwrap();
        let scene = Scene::new(&sandbox, &broker);
        let (sides, _agent) = scene.start();
        let victim = scene.asked(&sides);
        let [taker, _idle] = sides;
        broker.kill().unwrap();
        // It reaches the agent in pieces, and only the first is about the victim.
        let request = request_by(&victim.pod, Request::ListPods);
        let bystander = request_by(&Pod::elsewhere("bystander"), Request::ListPods);
        let other = |number| bystander.clone().with_audit_id(&format!("other-{number}"));
        let others: Vec<_> = (0..OTHERS).map(other).collect();
        let lines: Vec<_> = [&request].into_iter().chain(&others).collect();
        let (body, api_server) = (list(&lines), scene.api_server.clone());
        assert!(body.len() > 128 << 10, "{} bytes", body.len());
        let address = scene.sides[0].address;
        let posting = thread::spawn(move || api_server.post_until_taken(address, &body));
        // Its API server gave up, and came again, twice.
        let repeated = f64::from(2 * (1 + OTHERS));
        taker.wait_for_metric("tokentrail_audit_webhook_duplicates_total", &[], repeated).unwrap();
        scene.api_server.post(&scene.sides[0], &[&bystander]);
        assert!(!posting.is_finished(), "it was taken, and nobody else has it");
        let taker = if is_killed {
            taker.kill().unwrap();
            broker.start_again().unwrap();
            scene.sides[0].setup.start().unwrap()
        } else {
            broker.start_again().unwrap();
            taker
        };
        posting.join().unwrap();
        scene.node.wait_for("alert", &victim.pod).unwrap();
        let alert = scene.settled_alert_about(&victim.pod);
        assert_eq!(alert["kubernetes"]["audit"]["auditID"], request.audit_id(), "{alert:#}");
        drop(taker);
    }
}

#[test]
fn what_needs_no_open_is_published_once_though_it_is_posted_to_both() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker);
    let (agents, _agent) = scene.start();
    let minted = AuditLine::mint("mallory", "shop", "cart").unwrap();
    let is_minted = |it: &Value| it["rule"]["id"] == "token-request-by-user";
    for (side, agent) in scene.sides.iter().zip(&agents) {
        scene.api_server.post(side, &[&minted]);
        side.setup.alerts().wait_for("the minted token is told", is_minted).unwrap();
        wait_until(PATIENCE, "it is published", || {
            let alerts = agent.status()?["nats"]["alerts"].clone();
            Ok((alerts["waiting"] == 0 && alerts["last_published"].is_string()).then_some(()))
        })
        .unwrap();
    }
    let told = scene.sides.each_ref().map(|side| side.setup.alerts().all().unwrap());
    assert_eq!(told[0].len(), 1, "{told:#?}");
    let published = broker.alerts().unwrap();
    let [(_, published)] = published.as_slice() else { panic!("{published:#?}") };
    for told in &told {
        assert_eq!(told[0]["event"]["id"], published["event"]["id"]);
    }
}

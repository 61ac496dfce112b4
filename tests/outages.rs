//! What becomes of the exchange over NATS while the broker has no space or a line is cut, each machine in a
//! network of its own. Nothing is lost while the audit log is there, each attack alerts once, and what is beyond
//! is counted.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs;

use tokentrail_tests::{
    Agent, AgentSetup, Broker, Line, Node, PATIENCE, Sandbox, Workload, fill, in_network,
    wait_until,
};

/// Rounds of the test that cuts at random.
const ROUNDS: usize = 8;
/// Answers that fill more than the pages that may be left.
const ANSWERS: u32 = 64;

/// The node whose agent has a sensor and no audit log, and one that follows the log for it.
struct Scene<'sandbox> {
    node: Node<'sandbox>,
    side: AgentSetup<'sandbox>,
}

impl<'sandbox> Scene<'sandbox> {
    /// With a broker that the node finds by these arguments.
    fn new(sandbox: &'sandbox Sandbox, broker: &Broker<'sandbox>, arguments: [String; 4]) -> Self {
        let mut node = Node::new(sandbox).unwrap();
        node.agent = node.agent.without_audit_log().args(arguments);
        let side = broker.side("node-a", &node.audit);
        Self { node, side }
    }

    /// A pod whose token is opened, which is in the journal from then on.
    fn opened(&self) -> Workload {
        let victim = self.node.workload().unwrap();
        victim.attack().unwrap();
        self.node.wait_until_seen(&victim).unwrap();
        victim
    }

    /// Each of them has one alert, after all that was done so far has gone through.
    fn assert_told_once(&self, victims: &[Workload]) {
        for victim in victims {
            self.node.wait_for("alert", &victim.pod).unwrap();
        }
        self.node.settle().unwrap();
        for victim in victims {
            self.node.the_alert_about(&victim.pod).unwrap();
        }
    }
}

/// Waits until readiness names the broker, and returns the sentence.
fn wait_until_it_says_so(agent: &Agent) -> String {
    wait_until(PATIENCE, "NATS makes it unready", || {
        let answer = agent.get("/readyz")?;
        Ok(answer.body.lines().find(|line| line.starts_with("NATS: ")).map(str::to_owned))
    })
    .unwrap()
}

#[test]
fn while_the_broker_has_no_space_questions_and_answers_wait() {
    let sandbox = Sandbox::create().unwrap();
    let disk = Broker::disk(&sandbox).unwrap();
    let mut broker = Broker::start(&sandbox).unwrap();
    let scene = Scene::new(&sandbox, &broker, broker.arguments());
    let mut side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    let asked = scene.opened();
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();
    // Nothing is taken away that would make space.
    agent.kill().unwrap();
    let ballast = fill(&disk).unwrap();
    for _ in 0..ANSWERS {
        scene.node.request_by(&asked.pod).unwrap();
    }
    println!("audit side: {}", wait_until_it_says_so(&side));
    let mut agent = scene.node.agent.spawn().unwrap();
    let unasked = scene.opened();
    scene.node.request_by(&unasked.pod).unwrap();
    let lines = f64::from(ANSWERS) + 1.0;
    side.wait_for_metric("tokentrail_audit_lines_total", &[], lines).unwrap();
    // A server of 2.9 may answer nothing any more by now, until it is killed and started anew.
    fs::remove_file(ballast).unwrap();
    broker.kill().unwrap();
    broker.start_again().unwrap();
    scene.assert_told_once(&[asked, unasked]);
    agent.wait_until_ready().unwrap();
    side.wait_until_ready().unwrap();
    let overflown = side.metric("tokentrail_nats_overflown_total", &[]).unwrap();
    assert!(overflown < 0.5, "{overflown} answers were given up");
}

#[test]
fn beyond_the_bound_of_all_nodes_answers_wait_and_beyond_a_nodes_own_they_are_counted_and_said() {
    let sandbox = Sandbox::create().unwrap();
    let broker = Broker::bare(&sandbox, "").unwrap();
    broker.set_up_with(&["--max-mib", "1"]).unwrap();
    let scene = Scene::new(&sandbox, &broker, broker.arguments());
    let mut side = scene.side.start().unwrap();
    let agent = scene.node.agent.start().unwrap();
    let victim = scene.opened();
    side.wait_for_metric("tokentrail_nats_interests", &[], 1.0).unwrap();

    // A node whose agent is away has it all, to the last bytes.
    let mut anybody = broker.log_in("", "", "_INBOX.test").unwrap();
    for size in [100_000, 10_000, 1_000, 100] {
        let answer = vec![b'x'; size];
        let mut send = || anybody.ask("tokentrail.test.request.node-z", "", &answer).unwrap();
        while send().get("error").is_none() {}
    }
    for _ in 0..3 {
        scene.node.request_by(&victim.pod).unwrap();
    }
    let sentence = wait_until_it_says_so(&side);
    assert!(sentence.contains("maximum bytes exceeded"), "{sentence}");
    assert_eq!(scene.node.alerts_about(&victim.pod).unwrap().len(), 0);
    let room = r#"{"filter":"tokentrail.test.request.node-z"}"#;
    let room = anybody.ask("$JS.API.STREAM.PURGE.tokentrail_test", "", room.as_bytes()).unwrap();
    assert_eq!(room["success"], true, "{room}");
    agent.wait_for_metric("tokentrail_nats_answers_total", &[], 3.0).unwrap();
    scene.node.wait_for("alert", &victim.pod).unwrap();
    let overflown = side.metric("tokentrail_nats_overflown_total", &[]).unwrap();
    assert!(overflown < 0.5, "{overflown} answers were given up");
    side.wait_until_ready().unwrap();

    broker.set_up_with(&["--answers-per-node", "1"]).unwrap();
    agent.kill().unwrap();
    for _ in 0..3 {
        scene.node.request_by(&victim.pod).unwrap();
    }
    side.wait_for_metric("tokentrail_nats_overflown_total", &[], 2.0).unwrap();
    let said = side.log().matches("answers are lost: NATS has no room for more").count();
    assert_eq!(said, 1, "{}", side.log());
    let _agent = scene.node.agent.start().unwrap();
    wait_until(PATIENCE, "the one that waited is taken, and there is room for another", || {
        let info = anybody.ask("$JS.API.STREAM.INFO.tokentrail_test", "", b"")?;
        Ok((info["state"]["messages"] == 0).then_some(()))
    })
    .unwrap();
    scene.assert_told_once(&[victim]);
}

#[test]
fn whichever_line_is_cut_and_however_long_each_attack_alerts_once() {
    let sandbox = Sandbox::create().unwrap();
    let (nodes, machine) = (sandbox.network("nodes").unwrap(), sandbox.network("broker").unwrap());
    in_network(&nodes, || {
        let lines = [0, 1].map(|number| Line::lay(&nodes, &machine, number).unwrap());
        let broker = Broker::behind(&sandbox, &lines[0], "").unwrap();
        broker.set_up().unwrap();
        let scene = Scene::new(&sandbox, &broker, broker.arguments_over(&lines[1]));
        let (mut side, mut agent) = (scene.side.start()?, scene.node.agent.start()?);
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut victims = Vec::new();
        for _ in 0..ROUNDS {
            let cut: Vec<&Line> = lines.iter().filter(|_| random.bool()).collect();
            let [before_open, before_request] = [random.bool(), random.bool()];
            let cut_them = || cut.iter().try_for_each(|line| line.cut());
            if before_open {
                cut_them()?;
            }
            let victim = scene.opened();
            if before_request {
                cut_them()?;
            }
            scene.node.request_by(&victim.pod)?;
            cut_them()?;
            victims.push(victim);
            lines.iter().try_for_each(Line::mend)?;
        }
        // And for so long that both give the connection up.
        lines.iter().try_for_each(Line::cut)?;
        let victim = scene.opened();
        scene.node.request_by(&victim.pod)?;
        victims.push(victim);
        for agent in [&side, &agent] {
            println!("{}", wait_until_it_says_so(agent));
        }
        lines.iter().try_for_each(Line::mend)?;
        scene.assert_told_once(&victims);
        side.wait_until_ready()?;
        agent.wait_until_ready()
    })
    .unwrap();
}

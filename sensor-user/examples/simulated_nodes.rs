//! Nodes without a kernel, for `cargo xtask bench fleet`, which runs it; nobody else does.
//!
//! `simulated_nodes SERVER CLUSTER NODES ASKING` keeps so many nodes connected to a NATS server, each by the
//! agent's own code, with a connection, a consumer and a name of its own: `sim-0`, `sim-1` and so on. It says
//! `connected` when all of them are. At each line that it reads the first `ASKING` of them ask about a pod, with
//! the node's name as its uid, from now on; of each request that one is told of, it prints that uid and when
//! it came, in nanoseconds of the monotonic clock. It ends with standard input.

use std::{
    env,
    io::{self, Write as _},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use tokentrail::{
    audit::{AuditBatch, AuditRecord, SourceStatus},
    nats::{
        Link, Login, NatsConfig, NatsMetrics, Status,
        asking::Asker,
        interest::{Interest, Round},
        names::Names,
    },
    time::Micros,
};
use tokio::{
    runtime::Builder,
    sync::{mpsc, watch},
    time,
};

/// Nodes that connect at once.
const AT_ONCE: usize = 100;
/// How often it is looked whether all have connected.
const LOOK: Duration = Duration::from_millis(50);
/// How long a pod is asked about.
const ASKED: Micros = Micros::from_secs(600);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [server, cluster, nodes, asking] = arguments.as_slice() else {
        bail!("run me as my first lines say");
    };
    let (nodes, asking) = (nodes.parse()?, asking.parse()?);
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(server, cluster, nodes, asking))
}

async fn run(server: &str, cluster: &str, nodes: usize, asking: usize) -> Result<()> {
    let (batches, mut heard) = mpsc::channel(AT_ONCE);
    let metrics = NatsMetrics::default();
    let mut fleet: Vec<Node> = Vec::new();
    for number in 0..nodes {
        if number >= AT_ONCE
            && let Some(before) = fleet.get_mut(number - AT_ONCE)
        {
            before.wait_until_connected().await?;
        }
        fleet.push(Node::start(server, cluster, number, batches.clone(), metrics.clone()));
    }
    // The first that a node asks is nothing; whatever it needs of the broker it has by then.
    while metrics.asked.get() < nodes as u64 {
        time::sleep(LOOK).await;
    }
    let mut output = io::stdout().lock();
    writeln!(output, "connected")?;
    let (command, mut commanded) = mpsc::channel(1);
    // A read of standard input cannot be cancelled.
    thread::spawn(move || {
        io::stdin().lines().map_while(Result::ok).try_for_each(|_| command.blocking_send(()))
    });
    loop {
        tokio::select! {
            word = commanded.recv() => {
                if word.is_none() {
                    return Ok(());
                }
                fleet.iter().take(asking).for_each(Node::ask);
            }
            Some(batch) = heard.recv() => {
                let now = clock_gettime(ClockId::Monotonic);
                for line in &batch.lines {
                    let record: AuditRecord = serde_json::from_slice(&line.line)?;
                    let pod = record.pod_uid().context("an answer is about no pod")?;
                    let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
                    writeln!(output, "{pod} {nanos}")?;
                }
                if let Some(acknowledge) = batch.acknowledge {
                    // Without a connection it comes again.
                    let _ = acknowledge.send(());
                }
            }
        }
    }
}

struct Node {
    name: String,
    round: watch::Sender<Round>,
    status: watch::Receiver<Status>,
    // What it would show of its source; the link ends without.
    _source: watch::Receiver<SourceStatus>,
}

impl Node {
    fn start(
        server: &str,
        cluster: &str,
        number: usize,
        batches: mpsc::Sender<AuditBatch>,
        metrics: NatsMetrics,
    ) -> Self {
        let name = format!("sim-{number}");
        let config = NatsConfig {
            servers: vec![server.to_owned()],
            names: Names::new(cluster, &name),
            login: Login::None,
            ca: None,
            certificate: None,
            patience: Duration::from_hours(1),
            look_back: 0,
            publish_alerts: false,
        };
        let (mut link, status) = Link::new(config, metrics.clone());
        let (round, asked) = watch::channel(Round::default());
        // No API server answers it: the question is as long as a real one.
        let canary = Some(format!("{number:032x}"));
        let (source_status, source) = watch::channel(SourceStatus::default());
        link.asker = Some(Asker::new(number, asked, canary, batches, source_status, metrics));
        tokio::spawn(link.run());
        Self { name, round, status, _source: source }
    }

    async fn wait_until_connected(&mut self) -> Result<()> {
        self.status.wait_for(|status| status.connected.is_some()).await?;
        Ok(())
    }

    fn ask(&self) {
        let now: Micros = SystemTime::now().into();
        let interests = vec![Interest {
            pod: self.name.clone(),
            from: now,
            until: now + ASKED,
            namespace: Some("shop".to_owned()),
            name: Some(self.name.clone()),
            account: Some("cart".to_owned()),
            addresses: vec!["10.0.0.1".to_owned()],
        }];
        self.round.send_replace(Round { number: 1, interests });
    }
}

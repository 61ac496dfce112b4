//! Many nodes behind one broker: thousands of simulated ones, each with a connection, a consumer and a question
//! of its own by the agent's own code; one real agent with a sensor and no audit log; and one agent that
//! follows a log of 50,000 lines a second for all of them. On one machine, over loopback.
//!
//! An answer that does not come or comes twice, and an alert that does not come, is an error of the measurement.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write as _},
    process::Stdio,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    time::{ClockId, Timespec, clock_gettime},
};
use tokentrail_tests::{AgentSetup, Broker, PATIENCE, Pod, Sandbox, api};

use super::{
    example,
    latency::AlertLines,
    report::{Row, quantile},
    rest::{cpu_seconds, peak_mb, resident_mb},
    tail::{Crowd, LASTS, Log, Planted, RATE, latencies, write},
};
use crate::shell::{announce, program};

/// Nodes that are simulated.
const NODES: usize = 5_000;
/// How many of them ask, each about a pod.
const ASKING: usize = 1_000;
/// After so many planted requests of theirs comes one of the real node.
const TO_ONE_REAL: usize = 4;
/// How long all are left alone, and then again while some ask: as long as it takes until an audit side has told
/// all nodes that it is there.
const REST: Duration = Duration::from_secs(60);
/// Open files of the broker and of the simulation: a connection each, and some.
const FILES: u64 = 4 * NODES as u64;

/// Measures.
///
/// # Errors
/// If something does not start, or what is asked is not answered exactly once.
pub(crate) fn measure() -> Result<Vec<Row>> {
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: Some(FILES) })?;
    let helper = example("simulated_nodes")?;
    let mut crowd = Crowd::generate()?;
    let sandbox = Sandbox::create()?;
    let planted = planted(&sandbox)?;
    let mut log = Log::create(sandbox.folder().join("audit.log"))?;
    let broker = Broker::start(&sandbox)?;
    let side = AgentSetup::new(&sandbox, log.path())
        .node_name("audit-side")
        .state(sandbox.folder().join("state-side"))
        .alert_log(sandbox.folder().join("alerts-side.ndjson"))
        .args(["--no-sensor".to_owned()])
        .args(broker.arguments())
        .start()?;
    // A stand-in for an API server audits the node's canary, from which it knows the clock of who writes the log.
    let api = api::serve_audited(&sandbox, &[], log.path())?;
    let node = AgentSetup::new(&sandbox, log.path())
        .without_audit_log()
        .kubeconfig(api)
        .args(broker.arguments());
    let alerts = node.alerts().path().to_owned();
    let node = node.start()?;

    announce(format_args!("fleet: {NODES} simulated nodes connect"));
    let began = Instant::now();
    let [server_option, server, _, cluster] = broker.arguments();
    ensure!(server_option == "--nats", "the broker is named otherwise");
    let mut command = program(helper);
    command.args([server, cluster, NODES.to_string(), ASKING.to_string()]);
    // It ends with its input, which ends with this process.
    let mut fleet = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = fleet.stdin.take().context("the simulation has no input")?;
    let mut output = BufReader::new(fleet.stdout.take().context("the simulation has no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line == "connected\n", "the simulated nodes said {line:?}");
    let connecting = began.elapsed();
    let arrivals = arrivals(output);

    let broker_pid = broker.pid().context("the broker is gone")?;
    let pids = [broker_pid, side.pid(), node.pid(), fleet.id()];
    announce(format_args!("fleet: left alone for {} s", REST.as_secs()));
    let before = Usage::of(pids)?;
    thread::sleep(REST);
    let rest = before.until_now(pids)?;
    let memory = resident_mb(broker_pid)?;

    announce(format_args!("fleet: {ASKING} of them ask, for {} s", REST.as_secs()));
    writeln!(input, "ask")?;
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    side.wait_for_metric("tokentrail_nats_interests", &[], ASKING as f64)?;

    let before = Usage::of(pids)?;
    thread::sleep(REST);
    let asked = before.until_now(pids)?;

    announce(format_args!(
        "fleet: {RATE} lines/s for {} s, {} alerts",
        LASTS.as_secs(),
        planted.len()
    ));
    let alerts = AlertLines::follow(&alerts)?.in_background();
    let before = Usage::of(pids)?;
    let written = write(&mut log, &mut crowd, &planted)?;
    let load = before.until_now(pids)?;
    let simulated = |uid: &str| uid.starts_with("sim-");
    let (theirs, own): (HashMap<_, _>, HashMap<_, _>) =
        written.into_iter().partition(|(uid, _)| simulated(uid));
    let alerted = latencies(own, &alerts)
        .with_context(|| format!("the agents wrote:\n{}\n{}", side.log(), node.log()))?;
    let answered = answers(theirs, &arrivals)?;
    let lines = f64::from(log.lines());
    side.wait_for_metric("tokentrail_audit_lines_total", &[], lines)?;
    let peaks = [peak_mb(broker_pid)?, peak_mb(side.pid())?, peak_mb(node.pid())?];
    node.terminate()?;
    side.terminate()?;
    drop(input);
    fleet.wait()?;
    drop(broker);
    sandbox.close()?;

    let rate = lines / load.seconds / 1e3;
    let [broker_peak, side_peak, node_peak] = peaks;
    let millis = |what: &str, value: f64| Row::new(what, format!("{value:.2} ms"));
    let percent = |what: &str, value: f64| Row::new(what, format!("{value:.2} %"));
    #[expect(clippy::cast_precision_loss, reason = "some thousand")]
    let a_node = rest.bytes / NODES as f64;
    Ok(vec![
        Row::new("all nodes connected within", format!("{:.1} s", connecting.as_secs_f64())),
        Row::new("at rest: bytes over loopback", format!("{:.0} kB/s", rest.bytes / 1e3)),
        Row::new("at rest: of that, for a node", format!("{a_node:.1} B/s")),
        percent("at rest: CPU of the broker", rest.cpu[0]),
        percent("at rest: CPU of the audit side", rest.cpu[1]),
        percent("at rest: CPU of a node", rest.cpu[2]),
        Row::new("at rest: memory of the broker", format!("{memory:.0} MB")),
        Row::new("some ask: bytes over loopback", format!("{:.0} kB/s", asked.bytes / 1e3)),
        percent("some ask: CPU of the broker", asked.cpu[0]),
        percent("some ask: CPU of the audit side", asked.cpu[1]),
        Row::new("written and read", format!("{rate:.1} k lines/s")).at_least(
            rate,
            f64::from(RATE) / 1e3 * 0.99,
            "thousand a second",
        ),
        Row::new("bytes of them", format!("{:.0} MB/s", log.megabytes() / load.seconds)),
        Row::new("bytes over loopback", format!("{:.0} kB/s", load.bytes / 1e3)),
        percent("CPU of the broker", load.cpu[0]),
        percent("CPU of the audit side", load.cpu[1]).at_most(load.cpu[1], 100.0, "% of one core"),
        percent("CPU of a node", load.cpu[2]),
        percent("CPU of the simulation", load.cpu[3]),
        Row::new("peak memory of the broker", format!("{broker_peak:.0} MB")),
        Row::new("peak memory of the audit side", format!("{side_peak:.1} MB"))
            .at_most(side_peak, 40.0, "MB"),
        Row::new("peak memory of a node", format!("{node_peak:.1} MB"))
            .at_most(node_peak, 40.0, "MB"),
        millis("50 % of answers arrive within", quantile(&answered, 0.5)),
        millis("99 % of answers arrive within", quantile(&answered, 0.99)),
        millis("50 % of alerts within", quantile(&alerted, 0.5)),
        millis("99 % of alerts within", quantile(&alerted, 0.99)).at_most(
            quantile(&alerted, 0.99),
            20.0,
            "ms",
        ),
    ])
}

/// Requests of all simulated nodes that ask, and of the real one between them.
fn planted(sandbox: &Sandbox) -> Result<Vec<Planted>> {
    let mut planted = Vec::new();
    for number in 0..ASKING {
        let name = format!("sim-{number}");
        planted.push(Planted { pod: Pod::elsewhere(&name), node: name, opened: false });
        if number % TO_ONE_REAL == 0 {
            planted.push(Planted::on_this_node(sandbox)?);
        }
    }
    Ok(planted)
}

/// What the simulated nodes are told: uids of pods, and when.
fn arrivals(output: impl BufRead + Send + 'static) -> Receiver<(String, Instant)> {
    let (sender, receiver) = mpsc::channel();
    let nanos = |time: Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    let (here, then) = (Instant::now(), nanos(clock_gettime(ClockId::Monotonic)));
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let Some((uid, at)) = line.split_once(' ') else { break };
            let since = at.parse::<i128>().ok().and_then(|at| u64::try_from(at - then).ok());
            let Some(since) = since else { break };
            if sender.send((uid.to_owned(), here + Duration::from_nanos(since))).is_err() {
                break;
            }
        }
    });
    receiver
}

/// From the write of each line to the arrival of its request at the node that asked, milliseconds.
fn answers(
    mut written: HashMap<&str, Instant>,
    arrivals: &Receiver<(String, Instant)>,
) -> Result<Vec<f64>> {
    let mut delays = Vec::new();
    while !written.is_empty() {
        let (uid, seen) = arrivals
            .recv_timeout(PATIENCE)
            .with_context(|| format!("{} of {ASKING} answers did not come", written.len()))?;
        let began = written.remove(uid.as_str());
        let began = began.with_context(|| format!("{uid} was told of twice, or never asked"))?;
        delays.push((seen - began).as_secs_f64() * 1e3);
    }
    Ok(delays)
}

/// What broker, audit side, node and simulation used of the CPU, in seconds or percent of a core; and what
/// went over loopback, in bytes or bytes a second, with the headers of TCP and IP.
struct Usage {
    cpu: [f64; 4],
    bytes: f64,
    at: Instant,
    seconds: f64,
}

impl Usage {
    fn of(pids: [u32; 4]) -> Result<Self> {
        let mut cpu = [0.0; 4];
        for (used, pid) in cpu.iter_mut().zip(pids) {
            *used = cpu_seconds(pid)?;
        }
        Ok(Self { cpu, bytes: loopback_bytes()?, at: Instant::now(), seconds: 0.0 })
    }

    fn until_now(&self, pids: [u32; 4]) -> Result<Self> {
        let now = Self::of(pids)?;
        let seconds = (now.at - self.at).as_secs_f64();
        let mut cpu = now.cpu;
        for (used, before) in cpu.iter_mut().zip(self.cpu) {
            *used = (*used - before) / seconds * 100.0;
        }
        Ok(Self { cpu, bytes: (now.bytes - self.bytes) / seconds, seconds, ..now })
    }
}

/// Bytes that the loopback device has received.
fn loopback_bytes() -> Result<f64> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let counters = devices.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let bytes = counters.and_then(|it| it.split_whitespace().next());
    Ok(bytes.context("there is no loopback device")?.parse()?)
}

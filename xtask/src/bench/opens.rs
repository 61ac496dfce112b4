//! What the sensor adds to opens that it has no interest in, against three yardsticks: nothing,
//! an empty program on the same hooks, and `opensnoop`.
//!
//! In each round every variant has one turn, in an order that rotates: attach, measure in a
//! process of its own that is pinned to one CPU, detach. What a variant adds is its time minus
//! that of the same round's turn without any, so that a machine that slows down meanwhile slows
//! all of them; of the rounds the median counts.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use serde_json::Value;
use tokentrail_tests::{
    Agent, AgentSetup, AuditLog, PATIENCE, Sandbox, machine::find_program, wait_until,
};

use crate::{
    bench::{
        example, flood, last_cpu,
        report::{Row, median, quantile},
    },
    shell::{announce, program, read},
};

/// Rounds that count: odd, so that the median is one round's own figure.
const ROUNDS: usize = 11;
/// Rounds in which somebody else's programs traced the kernel too are repeated, this often.
const REPEATS: usize = 11;
/// Opens whose way to user space is measured.
const ARRIVALS: usize = 1000;

/// Measures and compares.
///
/// # Errors
/// If a variant cannot be attached or the loop cannot run.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let helper = example("measure_opens")?;
    let sandbox = Sandbox::create()?;
    // Not in the folder of the audit log, which the agent watches.
    let folder = sandbox.folder().join("elsewhere");
    fs::create_dir(&folder)?;
    let file = folder.join("ordinary");
    fs::write(&file, "of no interest\n")?;
    // On every node somebody watches some folder of each disk (systemd, the kubelet, log shippers,
    // and the agent its audit log), which makes the kernel look for watches at each open there.
    let watch = init(CreateFlags::CLOEXEC)?;
    add_watch(&watch, sandbox.folder(), WatchFlags::MOVE_SELF)?;
    let bench = Bench {
        audit: AuditLog::create(sandbox.folder().join("audit.log"))?,
        route: route(&sandbox)?,
        helper,
        file,
        busybox: find_program("busybox").context("busybox is not installed")?,
        cpu: last_cpu()?,
    };
    announce(format_args!(
        "opens: {ROUNDS} rounds of {}, route {}, measured on CPU {}",
        Variant::ALL.map(Variant::name).join(", "),
        bench.route,
        bench.cpu
    ));
    let (mut rounds, mut disturbed) = (Vec::new(), Vec::new());
    while rounds.len() < ROUNDS && disturbed.len() < REPEATS {
        let (costs, alone) = bench.round(rounds.len() + disturbed.len(), &sandbox)?;
        if alone { rounds.push(costs) } else { disturbed.push(costs) }
    }
    sandbox.close()?;
    if rounds.len() < ROUNDS {
        announce(
            "other programs trace this kernel: what one more adds is less than it costs alone",
        );
        rounds.append(&mut disturbed);
    }
    let mut rows = rows(&rounds);
    rows.extend(arrivals(&bench.helper)?);
    rows.extend(flood::measure(&bench.helper, bench.cpu)?);
    Ok(rows)
}

/// What is attached while the loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Nothing,
    Empty,
    Agent,
    /// The same with `--compat-opens`, which only the exit route heeds.
    AgentCompat,
    Opensnoop,
}

impl Variant {
    const ALL: [Self; 5] =
        [Self::Nothing, Self::Empty, Self::Agent, Self::AgentCompat, Self::Opensnoop];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "empty program",
            Self::Agent => "tokentrail",
            Self::AgentCompat => "tokentrail --compat-opens",
            Self::Opensnoop => "opensnoop",
        }
    }
}

/// Nanoseconds of one call each: open+close of the ordinary file and of one on tmpfs, at which the
/// sensor has to look more closely, another system call, and processes, which it follows.
type Costs = [f64; CALLS.len()];

/// Costs with each variant, in the order of [`Variant::ALL`].
type Round = [Costs; Variant::ALL.len()];

const CALLS: [&str; 5] =
    ["open + close", "open + close on tmpfs", "getppid", "fork + exit", "fork + exec + exit"];
/// How many of them are system calls: the others have nothing to do with opens.
const SYSTEM_CALLS: usize = 3;

struct Bench {
    audit: AuditLog,
    route: String,
    helper: PathBuf,
    file: PathBuf,
    busybox: PathBuf,
    cpu: usize,
}

/// What keeps a variant attached; dropping it detaches.
enum Attached {
    Nothing,
    Agent(Agent),
    Other(Held),
}

impl Bench {
    /// One turn for each variant, and whether they had the kernel to themselves.
    fn round(&self, number: usize, sandbox: &Sandbox) -> Result<(Round, bool)> {
        let mut costs = Round::default();
        let mut alone = true;
        for turn in 0..costs.len() {
            let index = (number + turn) % costs.len();
            if let (Some(variant), Some(slot)) = (Variant::ALL.get(index), costs.get_mut(index)) {
                alone &= self.is_alone();
                *slot = self.turn(*variant, sandbox)?;
            }
        }
        Ok((costs, alone && self.is_alone()))
    }

    /// Whether nobody else's programs are loaded. Ours of the turn before may take a moment to go.
    fn is_alone(&self) -> bool {
        wait_until(Duration::from_secs(1), "no other program is loaded", || {
            Ok((read(program(&self.helper).arg("others"))? == "0").then_some(()))
        })
        .is_ok()
    }

    fn turn(&self, variant: Variant, sandbox: &Sandbox) -> Result<Costs> {
        let attached = match variant {
            Variant::Nothing => Attached::Nothing,
            Variant::Empty => Attached::Other(self.empty()?),
            Variant::Agent => Attached::Agent(AgentSetup::new(sandbox, self.audit.path()).start()?),
            Variant::AgentCompat => {
                let agent = AgentSetup::new(sandbox, self.audit.path()).args(["--compat-opens"]);
                Attached::Agent(agent.start()?)
            }
            Variant::Opensnoop => Attached::Other(opensnoop()?),
        };
        let costs = self
            .run_loop()
            .with_context(|| format!("could not measure with {} attached", variant.name()))?;
        match attached {
            Attached::Nothing => {}
            // It has files to put away.
            Attached::Agent(agent) => drop(agent.terminate()?),
            Attached::Other(held) => drop(held),
        }
        Ok(costs)
    }

    fn run_loop(&self) -> Result<Costs> {
        let mut command = program(&self.helper);
        let printed =
            read(command.arg("loop").arg(self.cpu.to_string()).args([&self.file, &self.busybox]))?;
        let costs: Vec<f64> = printed.lines().map(str::parse).collect::<Result<_, _>>()?;
        costs.try_into().ok().with_context(|| format!("the loop printed {printed:?}"))
    }

    fn empty(&self) -> Result<Held> {
        let mut command = program(&self.helper);
        command.args(["empty", &self.route]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut held = Held::start(&mut command)?;
        let output = held.child.stdout.take().context("the empty program has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() != "attached" {
            bail!("the empty program could not be attached to route {}", self.route);
        }
        Ok(held)
    }
}

/// A process that holds programs attached until it is dropped.
struct Held {
    child: Child,
    /// Its end ends the process, should this one be killed.
    _input: Option<ChildStdin>,
}

impl Held {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .spawn()
            .with_context(|| format!("could not start {:?}", command.get_program()))?;
        Ok(Self { _input: child.stdin.take(), child })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `opensnoop` without any filter, its output thrown away.
fn opensnoop() -> Result<Held> {
    let tool = find_program("opensnoop").context("opensnoop is not installed")?;
    let mut command = program(tool);
    // It ends by itself, should this process be killed.
    command.args(["--duration", "60"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut held = Held::start(&mut command)?;
    let descriptors = PathBuf::from(format!("/proc/{}/fd", held.child.id()));
    wait_until(PATIENCE, "opensnoop is attached", || {
        if let Some(status) = held.child.try_wait()? {
            bail!("opensnoop ended ({status})");
        }
        // It polls its buffers once everything is attached.
        Ok(polls(&descriptors).then_some(()))
    })?;
    Ok(held)
}

fn polls(descriptors: &Path) -> bool {
    let Ok(entries) = fs::read_dir(descriptors) else { return false };
    entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target == Path::new("anon_inode:[eventpoll]"))
}

/// The route that the agent takes on this kernel.
fn route(sandbox: &Sandbox) -> Result<String> {
    let audit = AuditLog::create(sandbox.folder().join("audit.log"))?;
    let agent = AgentSetup::new(sandbox, audit.path()).start()?;
    let status: Value = serde_json::from_str(&agent.get("/statusz")?.body)?;
    let route = status.get("route").and_then(Value::as_str);
    Ok(route.context("/statusz names no route")?.to_owned())
}

/// From a token's open to its record in user space.
fn arrivals(helper: &Path) -> Result<Vec<Row>> {
    announce(format_args!("arrivals: {ARRIVALS} opens of tokens"));
    let printed = read(program(helper).arg("arrive").arg(ARRIVALS.to_string()))?;
    let millis: Vec<f64> =
        printed.lines().map(|nanos| Ok(nanos.parse::<f64>()? / 1e6)).collect::<Result<_>>()?;
    let [p50, p99] = [0.5, 0.99].map(|share| quantile(&millis, share));
    let row = |name: &str, value: f64| Row::new(name, format!("{value:.3} ms"));
    Ok(vec![
        row("50 % of a token's opens arrive within", p50),
        row("99 % of a token's opens arrive within", p99).at_most(p99, 1.0, "ms"),
    ])
}

fn rows(rounds: &[Round]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (call, name) in CALLS.into_iter().enumerate() {
        let over_rounds = |cost: &dyn Fn(&Round) -> Option<f64>| {
            median(&rounds.iter().filter_map(cost).collect::<Vec<f64>>())
        };
        let of = |costs: &Round, variant: Variant| {
            let index = Variant::ALL.iter().position(|it| *it == variant)?;
            costs.get(index)?.get(call).copied()
        };
        let nothing = over_rounds(&|costs| of(costs, Variant::Nothing));
        let added = |variant| {
            over_rounds(&|costs| Some(of(costs, variant)? - of(costs, Variant::Nothing)?))
        };
        let variants = [Variant::Empty, Variant::Agent, Variant::AgentCompat, Variant::Opensnoop];
        let [empty, agent, compat, snoop] = variants.map(added);
        let plus = |nanos: f64| format!("+ {nanos:.0} ns");
        let times = agent / empty;
        let agent_row = Row::new(format!("{name}, tokentrail"), plus(agent));
        let snoop_row = Row::new(format!("{name}, opensnoop"), plus(snoop));
        rows.push(Row::new(format!("{name}, nothing attached"), format!("{nothing:.0} ns")));
        rows.push(Row::new(format!("{name}, empty program"), plus(empty)));
        // The bars are about ordinary files; the other rows show what else there is.
        if call == 0 {
            rows.push(agent_row.at_most(times, 1.6, "× empty program"));
            rows.push(snoop_row.at_least(snoop / agent, 30.0, "× tokentrail"));
        } else {
            rows.push(agent_row);
            if call >= SYSTEM_CALLS {
                continue;
            }
            rows.push(snoop_row);
        }
        let name = format!("{name}, {}", Variant::AgentCompat.name());
        rows.push(Row::new(name, plus(compat)));
    }
    rows
}

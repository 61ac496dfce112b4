//! How fast `tokentrail replay --semantics elastic` is, against what else could ask the same of an
//! audit log: `jq`, DuckDB, and a program that does no more than decode each line. How much either
//! semantics holds in memory.
//!
//! One thread each, on one CPU, in turns; the log is in the page cache for all. What counts is the
//! time on the CPU, since others may use it too, and of the rounds the fastest. That DuckDB finds as
//! many alerts is checked.

use std::{
    fs::{self, File},
    io::{Read as _, copy},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    bench::{
        example, last_cpu,
        replay::generate::{Opens, audit, opens},
        report::Row,
    },
    debian,
    shell::{announce, cache_dir, program, run, target_dir},
};

pub(super) mod generate;

/// Size of the audit log, bytes; `TOKENTRAIL_BENCH_MB` says otherwise.
const LOG: u64 = 1_000_000_000;
/// What `jq` gets of it: it would take minutes for all.
const SLICE: u64 = 30_000_000;
const SEED: u64 = 20_260_101;
const ROUNDS: usize = 3;
const DUCKDB: &str = "2.0.1";

/// Measures and compares.
///
/// # Errors
/// If something is missing or fails, or if DuckDB finds other alerts.
pub(crate) fn measure() -> Result<Vec<Row>> {
    debian::install(&[debian::JQ])?;
    let bench = Bench::prepare()?;
    let mut rows = Vec::new();
    let size = fs::metadata(&bench.log)?.len();
    rows.push(Row::new("audit log", format!("{:.0} MB", megabytes(size))));
    let jq = bench.jq()?;
    rows.push(Row::new("jq, a slice, rate extrapolated", rate(SLICE, jq.seconds)));
    for which in Opens::ALL {
        announce(format_args!(
            "{}: {ROUNDS} rounds of tokentrail, typed pass, DuckDB",
            which.name()
        ));
        let (mut ours, mut pass, mut duck) = (Turn::SLOWEST, Turn::SLOWEST, Turn::SLOWEST);
        for _ in 0..ROUNDS {
            ours = ours.better(bench.tokentrail(which, "elastic")?);
            pass = pass.better(bench.pass()?);
            duck = duck.better(bench.duckdb(which)?);
        }
        // `… in 0.4 s: 723 alerts and summaries`
        let said = ours.errors.split(" alerts and summaries").next();
        let alerts = said.and_then(|said| said.rsplit(' ').next()).unwrap_or_default().to_owned();
        let theirs = duck.output.trim();
        ensure!(theirs == alerts, "DuckDB finds {theirs} alerts, tokentrail {alerts}");
        let name = which.name();
        let row =
            |what: &str, turn: &Turn| Row::new(format!("{name}: {what}"), rate(size, turn.seconds));
        let (to_pass, to_duck) = (pass.seconds / ours.seconds, duck.seconds / ours.seconds);
        let alerts = format!("tokentrail, {alerts} alerts");
        match which {
            Opens::Rare => {
                rows.push(row(&alerts, &ours).at_least(to_duck, 8.0, "× DuckDB"));
                rows.push(row("typed serde_json pass", &pass).at_least(to_pass, 3.0, "× slower"));
                rows.push(row("DuckDB", &duck));
            }
            Opens::Frequent => {
                rows.push(row(&alerts, &ours).at_least(to_pass, 1.3, "× typed pass"));
                rows.push(row("typed serde_json pass", &pass));
                rows.push(row("DuckDB", &duck));
            }
        }
        // Nothing to compare it with; once is enough for how much it holds.
        let live = bench.tokentrail(which, "live")?;
        rows.push(row("tokentrail, live semantics", &live));
        for (what, turn) in [("", &ours), (", live semantics", &live)] {
            let memory = format!("{:.1} MB", turn.peak_mb);
            let row = Row::new(format!("{name}: peak memory{what}"), memory);
            rows.push(row.at_most(turn.peak_mb, 64.0, "MB"));
        }
    }
    Ok(rows)
}

struct Bench {
    folder: PathBuf,
    log: PathBuf,
    pass: PathBuf,
    python: PathBuf,
    cpu: String,
}

/// One run of a program.
struct Turn {
    seconds: f64,
    peak_mb: f64,
    output: String,
    errors: String,
}

impl Turn {
    const SLOWEST: Self =
        Self { seconds: f64::INFINITY, peak_mb: 0.0, output: String::new(), errors: String::new() };

    /// The faster one, with the greater memory.
    fn better(self, other: Self) -> Self {
        let peak_mb = self.peak_mb.max(other.peak_mb);
        let faster = if other.seconds < self.seconds { other } else { self };
        Self { peak_mb, ..faster }
    }
}

impl Bench {
    /// Makes the input, builds and installs what is compared.
    fn prepare() -> Result<Self> {
        let size = match std::env::var("TOKENTRAIL_BENCH_MB") {
            Ok(megabytes) => megabytes.parse::<u64>().context("TOKENTRAIL_BENCH_MB")? * 1_000_000,
            Err(_) => LOG,
        };
        let folder = target_dir().join("bench/replay");
        fs::create_dir_all(&folder)?;
        let log = folder.join(format!("audit-{SEED}-{size}.ndjson"));
        let lines = folder.join(format!("audit-{SEED}-{size}.lines"));
        if !lines.exists() {
            announce(format_args!("an audit log of {:.0} MB", megabytes(size)));
            fs::write(&lines, audit(&log, size, SEED)?.to_string())?;
        }
        let count = fs::read_to_string(&lines)?.trim().parse()?;
        for which in Opens::ALL {
            opens(&Self::opens_in(&folder, which), count, which, SEED)?;
        }
        let slice = folder.join("slice.ndjson");
        copy(&mut File::open(&log)?.take(SLICE), &mut File::create(slice)?)?;
        let pass = example("typed_pass")?;
        Ok(Self { folder, log, pass, python: python()?, cpu: last_cpu()?.to_string() })
    }

    fn opens_in(folder: &Path, which: Opens) -> PathBuf {
        folder.join(match which {
            Opens::Rare => "opens-rare.ndjson",
            Opens::Frequent => "opens-frequent.ndjson",
        })
    }

    /// A program on the one CPU that all use.
    fn pinned(&self, path: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = program("taskset");
        command.args(["--cpu-list", &self.cpu]).arg(path);
        command
    }

    fn tokentrail(&self, which: Opens, semantics: &str) -> Result<Turn> {
        let mut command = self.pinned(target_dir().join("release/tokentrail"));
        command.args(["replay", "--semantics", semantics, "--opens"]);
        command.arg(Self::opens_in(&self.folder, which)).arg("--audit").arg(&self.log);
        // Alerts are made and put into order; where they are kept is no part of what is compared.
        turn(command.args(["--output", "/dev/null"]))
    }

    fn pass(&self) -> Result<Turn> {
        turn(self.pinned(&self.pass).arg(&self.log))
    }

    fn duckdb(&self, which: Opens) -> Result<Turn> {
        let (opens, audit) = (Self::opens_in(&self.folder, which), &self.log);
        let query = include_str!("replay/query.sql")
            .replace("$OPENS", &opens.to_string_lossy())
            .replace("$AUDIT", &audit.to_string_lossy());
        let script = "import duckdb, sys; print(duckdb.sql(sys.argv[1]).fetchone()[0])";
        // All but the last statement have no result.
        let script = script.replace("duckdb.sql(", "duckdb.execute(");
        turn(self.pinned(&self.python).args(["-c", &script, &query]))
    }

    fn jq(&self) -> Result<Turn> {
        let filter = r#"fromjson? | select((.stage | IN("ResponseStarted", "ResponseComplete"))
            and .user.extra["authentication.kubernetes.io/pod-name"][0] == "nobody")"#;
        turn(self.pinned("jq").args(["-R", filter]).arg(self.folder.join("slice.ndjson")))
    }
}

/// DuckDB's Python package, in a folder of its own: the project's command-line program comes in no
/// registry.
fn python() -> Result<PathBuf> {
    let folder = cache_dir()?.join(format!("duckdb-{DUCKDB}"));
    let python = folder.join("bin/python");
    let has_it = |python: &Path| {
        let said = program(python).args(["-c", "import duckdb"]).stderr(Stdio::null()).status();
        said.is_ok_and(|status| status.success())
    };
    if !has_it(&python) {
        announce(format_args!("DuckDB {DUCKDB}"));
        run(program("python3").args(["-m", "venv"]).arg(&folder))?;
        let package = format!("duckdb=={DUCKDB}");
        run(program(&python).args(["-m", "pip", "install", "--quiet", &package]))?;
    }
    Ok(python)
}

/// Runs it and watches its memory and its time.
fn turn(command: &mut Command) -> Result<Turn> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let output = thread::spawn(move || read(stdout.as_mut()));
    let errors = thread::spawn(move || read(stderr.as_mut()));
    let (status, stat) =
        (format!("/proc/{}/status", child.id()), format!("/proc/{}/stat", child.id()));
    let (mut peak_mb, mut seconds): (f64, f64) = (0.0, 0.0);
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        peak_mb = peak_mb.max(peak(&status).unwrap_or_default());
        seconds = seconds.max(cpu(&stat).unwrap_or_default());
        thread::sleep(Duration::from_millis(2));
    };
    let (output, errors) = (output.join().unwrap_or_default(), errors.join().unwrap_or_default());
    if !ended.success() {
        bail!("{:?} failed ({ended}): {errors}", command.get_program());
    }
    Ok(Turn { seconds, peak_mb, output, errors })
}

fn read(pipe: Option<&mut impl std::io::Read>) -> String {
    let mut text = String::new();
    if let Some(pipe) = pipe {
        // What cannot be read is missed by whoever looks for it.
        let _ = pipe.read_to_string(&mut text);
    }
    text
}

/// What all threads of the process have used so far, those that ended too, to a hundredth.
fn cpu(stat: &str) -> Option<f64> {
    /// `USER_HZ`, the same on every machine that this runs on.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(stat).ok()?;
    // Behind the name, which may hold anything: state, then ten more; user and system time.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some((f64::from(ticks()?) + f64::from(ticks()?)) / TICKS)
}

/// The most memory that the process ever had, MB.
fn peak(status: &str) -> Option<f64> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u32 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(f64::from(kib) * 1024.0 / 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB/s", megabytes(bytes) / seconds)
}

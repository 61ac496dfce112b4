//! `tokentrail replay`: recorded opens and audit logs through the rules once more.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::SignedDuration;

use super::{Exit, rules::now, tell};
use crate::{
    agent::rulebook::RulesFile,
    alert::document::Origin,
    attribution::pods::PodIndex,
    correlation::Settings,
    replay::{
        self, Files,
        document::Writer,
        output::{Sorted, Target},
        semantics::{Semantics, elastic::ElasticSemantics, live::LiveSemantics},
        summary::{ReplayError, Summary, Tally},
    },
    rules::rulebook::Rulebook,
    time::Micros,
};

/// What is of later than so much from now is of no log's: clocks differ by less.
const AHEAD: Micros = Micros::from_secs(24 * 3_600);

/// Options of `tokentrail replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Opens as ECS documents, one a line, as `run --record` writes them; `-` is standard input,
    /// `.gz` and `.zst` are read as they are
    #[arg(long, value_name = "FILE", num_args = 1..)]
    opens: Vec<PathBuf>,
    /// Audit logs of kube-apiservers, in any number; read in the same ways
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    audit: Vec<PathBuf>,
    /// Whose evaluation of the rules
    #[arg(long, value_enum, default_value_t)]
    semantics: Choice,
    /// How far a line may be behind an earlier one, as `90s` or `5m`
    /// [default: 75s live, 5s elastic]
    #[arg(long, value_name = "DURATION", value_parser = span)]
    lateness: Option<Micros>,
    /// How long a workload is watched before a request of a kind that was not seen is new, as
    /// `learning-seconds` of `run`; not under `elastic`
    #[arg(long, value_name = "DURATION", value_parser = span, default_value = "10m")]
    learning: Micros,
    /// Where alerts go, one JSON document a line in order of time; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the cluster; part of alerts and of their ids
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// Exceptions to rules, exclusions and decoys (YAML); not under `elastic`
    #[arg(long, value_name = "FILE")]
    rules_file: Option<PathBuf>,
}

/// Values of `--semantics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// As `run` would have: by pod uid and received time, all rules
    #[default]
    Live,
    /// As Elasticsearch would have: by pod name and stage time, its two rules only
    Elastic,
}

impl Choice {
    fn lateness(self) -> Micros {
        Micros::from_secs(match self {
            Self::Live => 75,
            Self::Elastic => 5,
        })
    }
}

fn span(text: &str) -> Result<Micros, String> {
    // A week: nobody waits or learns for longer, and no sum of times overflows.
    const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);
    let duration = text.parse::<SignedDuration>().map_err(|error| error.to_string())?;
    if !(SignedDuration::ZERO..=LONGEST).contains(&duration) {
        return Err("it has to be between 0s and 7 days".to_owned());
    }
    i64::try_from(duration.as_micros()).map(Micros).map_err(|error| error.to_string())
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the alerts to {name}")]
struct WriteError {
    name: String,
    source: io::Error,
}

/// Replays.
pub fn execute(args: &ReplayArgs) -> Exit {
    let name = args.output.as_ref().map_or("standard output".into(), |path| path.to_string_lossy());
    let failed = |source| {
        tell(&WriteError { name: name.to_string(), source });
        Exit::Failed
    };
    let rulebook = match RulesFile::open(args.rules_file.as_deref()) {
        Ok(file) => Arc::clone(file.current()),
        Err(error) => {
            tell(&error);
            return Exit::Usage;
        }
    };
    let given = args.opens.iter().chain(&args.audit);
    if let Some(path) = &args.output
        && let Some(input) = given.into_iter().find(|input| is_same_file(input, path))
    {
        tell(&ReplayError::Overwrites { name: input.display().to_string() });
        return Exit::Usage;
    }
    let target = match Target::prepare(args.output.as_deref()) {
        Ok(target) => target,
        Err(error) => return failed(error),
    };
    let mut sorted = Sorted::new(target.folder());
    let lateness = args.lateness.unwrap_or_else(|| args.semantics.lateness());
    let latest = now() + AHEAD;
    let files = Files { opens: args.opens.clone(), audit: args.audit.clone(), lateness, latest };
    let (start, progress) = (Instant::now(), progress(files.size()));
    let summary = match replay(args, &files, rulebook, &mut sorted, &progress) {
        Ok(summary) => summary,
        Err(error) => {
            tell(&error);
            return if error.is_usage() { Exit::Usage } else { Exit::Failed };
        }
    };
    progress.finish_and_clear();
    let count = match target.write(sorted) {
        Ok(count) => count,
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Done,
        Err(error) => return failed(error),
    };
    report(&summary, count, start.elapsed().as_secs_f64());
    if summary.unread.is_empty() { Exit::Done } else { Exit::Failed }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some((file.dev(), file.ino()))
    };
    id(one).is_some_and(|file| Some(file) == id(other))
}

fn replay(
    args: &ReplayArgs,
    files: &Files,
    rulebook: Arc<Rulebook>,
    sorted: &mut Sorted,
    progress: &ProgressBar,
) -> Result<Summary, ReplayError> {
    let cluster = args.cluster_name.clone().unwrap_or_default();
    let writer = Writer {
        cluster: cluster.clone(),
        origin: Origin {
            cluster_name: args.cluster_name.clone(),
            node_name: String::new(),
            host_id: None,
            agent_id: "replay".to_owned(),
            route: "none".to_owned(),
            degraded: Vec::new(),
        },
        pods: PodIndex::default(),
        now: now(),
    };
    let mut semantics: Box<dyn Semantics> = match args.semantics {
        Choice::Live => {
            let pods = replay::pods_with_opens(files);
            let settings = Settings { learning: args.learning, ..Settings::new(cluster) };
            Box::new(LiveSemantics::new(files.lateness, settings, pods, rulebook, writer))
        }
        Choice::Elastic => Box::new(ElasticSemantics::new(writer)),
    };
    replay::run(files, &mut *semantics, sorted, progress)
}

/// Bytes, rate and, where the size is known, time left; on a terminal only.
fn progress(size: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match size {
        Some(_) => {
            "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
        }
        None => "{spinner} {binary_bytes}, {binary_bytes_per_sec}",
    };
    let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Says on standard error what was read and what could not be used.
fn report(summary: &Summary, count: u64, seconds: f64) {
    let mut text = format!(
        "read {} and {} in {seconds:.1} s: {count} alerts and summaries",
        told(&summary.opens, "documents of opens"),
        told(&summary.audit, "audit events"),
    );
    let mut warn = |line: String| {
        text.push_str("\n  ");
        text.push_str(&line);
    };
    if summary.late > 0 {
        warn(format!(
            "{} came later than --lateness allows; where they belong is uncertain",
            summary.late
        ));
    }
    for (exception, count) in &summary.excepted {
        warn(format!("{count} opens and requests are not told: exception {exception}"));
    }
    if summary.early > 0 {
        warn(format!("{} did not fit into memory until their turn", summary.early));
    }
    for (what, lost) in summary.losses.iter().filter(|(_, lost)| *lost > 0) {
        warn(format!("{lost} {what} were given up to stay within memory"));
    }
    for unread in &summary.unread {
        warn(format!("not read to its end: {unread}"));
    }
    // A reader that went away is no reason to fail.
    let _ = writeln!(io::stderr().lock(), "tokentrail: {text}");
}

fn told(tally: &Tally, what: &str) -> String {
    let list = |what: &str, counts: &BTreeMap<&str, u64>| {
        let counts: Vec<_> =
            counts.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
        if counts.is_empty() { String::new() } else { format!("; {what}: {}", counts.join(", ")) }
    };
    let (bad, in_part) = (list("unusable", &tally.bad), list("in part", &tally.in_part));
    format!("{} {what} ({} of use{bad}{in_part})", tally.lines, tally.kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_time_is_within_reason() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("90s", Some(90_000_000)),
            ("5m", Some(300_000_000)),
            ("1h 30m", Some(5_400_000_000)),
            ("1500ms", Some(1_500_000)),
            ("8d", None),
            ("200h", None),
            ("-1s", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(span(text).ok(), expected.map(Micros), "{text}");
        }
    }
}

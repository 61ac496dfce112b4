//! `tokentrail alerts`: the alert log as people read it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::PathBuf,
};

use clap::Args;

use super::{Exit, tell};
use crate::alert::text;

/// Options of `tokentrail alerts`.
#[derive(Args, Clone, Debug)]
pub struct AlertsArgs {
    /// The alert log; `-` is standard input
    #[arg(value_name = "FILE", default_value = "/var/log/tokentrail/alerts.ndjson")]
    file: PathBuf,
    /// Show only the last N
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the alert log {}", path.display())]
struct ReadError {
    path: PathBuf,
    source: io::Error,
}

/// Shows them.
pub fn execute(args: &AlertsArgs) -> Exit {
    match show(args) {
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(source) => {
            tell(&ReadError { path: args.file.clone(), source });
            Exit::Failed
        }
        Ok(()) => Exit::Done,
    }
}

fn show(args: &AlertsArgs) -> io::Result<()> {
    let input: Box<dyn BufRead> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(&args.file)?))
    };
    let keep = args.last.unwrap_or(usize::MAX);
    let mut output = io::stdout().lock();
    let mut last = std::collections::VecDeque::new();
    for line in input.split(b'\n') {
        let line = line?;
        let Ok(document) = serde_json::from_slice(&line) else { continue };
        let shown = text::render(&document);
        if args.last.is_none() {
            writeln!(output, "{shown}")?;
            continue;
        }
        last.push_back(shown);
        if last.len() > keep {
            last.pop_front();
        }
    }
    last.iter().try_for_each(|shown| writeln!(output, "{shown}"))
}

//! `tokentrail check`: whether `run` with the same options would work here. It changes nothing; a
//! warning is what `run` would go on without.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::{Exit, configure, tell};
use crate::{
    config::{Config, RunArgs},
    kernel::{self, Finding},
};

mod canary;

/// Prints one line a check.
pub fn execute(args: RunArgs) -> Exit {
    let config = match configure(args) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let kernel = if config.no_sensor { Vec::new() } else { kernel::preflight(&config.sensor()) };
    let files = files(&config);
    let canary::Proof { access, warnings } = canary::prove(&config);
    let others: Vec<Finding> = files.into_iter().chain(access).collect();
    let mut output = io::stdout().lock();
    let mut print = |findings: &[Finding], otherwise: &str| {
        findings.iter().try_for_each(|finding| {
            let mark = if finding.ok { "ok" } else { otherwise };
            writeln!(output, "{mark:<7}  {:<20}  {}", finding.what, finding.detail)
        })
    };
    if let Err(error) = print(&kernel, "MISSING")
        .and_then(|()| print(&others, "MISSING"))
        .and_then(|()| print(&warnings, "WARNING"))
    {
        tell(&error);
        return Exit::Failed;
    }
    if kernel.iter().any(|finding| !finding.ok) {
        Exit::Kernel
    } else if others.iter().any(|finding| !finding.ok) {
        Exit::Failed
    } else {
        Exit::Done
    }
}

fn files(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = config
        .audit_logs
        .iter()
        .map(|path| {
            // A directory opens, too: reading tells.
            let readable = File::open(path).and_then(|file| {
                if file.metadata()?.is_file() {
                    Ok(())
                } else {
                    Err(io::ErrorKind::IsADirectory.into())
                }
            });
            let why = |error: io::Error| {
                format!("{}: {error}; run would wait for it, not ready", path.display())
            };
            finding("audit log", readable.map(|()| path.display().to_string()).map_err(why))
        })
        .collect();
    if config.audit_logs.is_empty() {
        let detail = "none: opens are seen, but nothing to join them with (--audit-log)".to_owned();
        findings.push(finding("audit log", Ok(detail)));
    }
    findings.push(writable("state directory", &config.state_dir));
    if config.alert_log != Path::new("-") {
        let directory = config.alert_log.parent().unwrap_or(Path::new("/"));
        findings.push(writable("alert log", directory));
    }
    let kubelet = fs::metadata(config.kubelet_root.join("pods")).map_err(|error| {
        format!(
            "{}: {error}; tokens are then known by their mount points",
            config.kubelet_root.display()
        )
    });
    // A node without pods yet is no fault.
    let detail = kubelet.map_or_else(|why| why, |_| config.kubelet_root.display().to_string());
    findings.push(finding("kubelet directory", Ok(detail)));
    findings
}

fn writable(what: &'static str, directory: &Path) -> Finding {
    // The directory of a bare file name is the current one.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let result = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)
        .map(|()| directory.display().to_string())
        .map_err(|error| format!("{} cannot be written: {error}", existing.display()));
    finding(what, result)
}

fn finding(what: &'static str, result: Result<String, String>) -> Finding {
    match result {
        Ok(detail) => Finding { what, ok: true, detail },
        Err(detail) => Finding { what, ok: false, detail },
    }
}

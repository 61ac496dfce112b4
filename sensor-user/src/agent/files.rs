//! Whether the files of a configuration can be used: for `tokentrail check`, and for an agent that
//! stands by and must not be ready where it could not go on.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    path::Path,
};

use crate::{
    audit::{stdin, webhook::WebhookConfig},
    config::Config,
    kernel::Finding,
    time::Micros,
};

/// What `run` reads and writes with this configuration, one finding each. Changes nothing.
pub fn look(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = config
        .audit_logs
        .iter()
        .map(|path| {
            let why = |why| format!("{why}; run would wait for it, not ready");
            finding("audit log", readable(path).map(|()| newest(path)).map_err(why))
        })
        .collect();
    if config.audit_stdin {
        findings.push(finding("audit log", Ok(stdin::NAME.to_owned())));
    }
    if let Some(webhook) = &config.audit_webhook {
        findings.push(finding("audit webhook", listens(webhook)));
    } else if !config.has_audit_source() {
        let detail = if config.nats.is_some() {
            "none: requests come over NATS"
        } else {
            "none: opens are seen, but nothing to join them with (--audit-log, --audit-webhook, --nats)"
        };
        let detail = detail.to_owned();
        findings.push(finding("audit log", Ok(detail)));
    }
    findings.extend(written(config));
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

/// Certificates and tokens are of use, and the address is free and ours.
fn listens(webhook: &WebhookConfig) -> Result<String, String> {
    webhook.files.check().map_err(|error| error.to_string())?;
    let address = webhook.listen;
    TcpListener::bind(address)
        .map(|_| address.to_string())
        .map_err(|error| format!("{address}: {error}"))
}

/// Findings on what the configuration names to be written.
pub fn written(config: &Config) -> Vec<Finding> {
    let mut findings = vec![writable("state directory", &config.state_dir)];
    if config.alert_log != Path::new("-") {
        findings.push(appendable("alert log", &config.alert_log));
    }
    findings
}

/// The file, and when something was written to it last.
fn newest(path: &Path) -> String {
    let written = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let written = written.map(|time| format!(", newest line {}", Micros::from(time)));
    format!("{}{}", path.display(), written.unwrap_or_default())
}

/// Whether a file can be read, or a sentence that says why not.
pub fn readable(path: &Path) -> Result<(), String> {
    // A directory opens, too: reading tells.
    let readable = File::open(path).and_then(|file| {
        if file.metadata()?.is_file() { Ok(()) } else { Err(io::ErrorKind::IsADirectory.into()) }
    });
    readable.map_err(|error| format!("{}: {error}", path.display()))
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

fn appendable(what: &'static str, path: &Path) -> Finding {
    match File::options().append(true).open(path) {
        Ok(_) => finding(what, Ok(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            writable(what, path.parent().unwrap_or(Path::new("/")))
        }
        Err(error) => finding(what, Err(format!("{} cannot be written: {error}", path.display()))),
    }
}

fn finding(what: &'static str, result: Result<String, String>) -> Finding {
    match result {
        Ok(detail) => Finding { what, ok: true, detail },
        Err(detail) => Finding { what, ok: false, detail },
    }
}

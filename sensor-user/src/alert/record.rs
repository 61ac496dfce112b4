//! `--record`: every token open that was seen, as ECS documents, so that an incident can be
//! replayed later. Opens of the workload itself are in it too.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    attribution::{TokenOpen, pods::Pod},
    redact::redact,
};

/// The file.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: File,
    node_name: String,
    skew_us: i64,
}

impl Recorder {
    /// Opens or makes it; what it holds stays.
    pub fn open(path: &Path, node_name: String, skew_us: i64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, node_name, skew_us })
    }

    /// Adds an open, with its pod where that is known. A failure is told, and the open goes on
    /// without.
    pub fn add(&mut self, boot_id: &str, open: &TokenOpen, pod: Option<&Pod>) {
        let mut line = self.document(boot_id, open, pod).to_string().into_bytes();
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            tracing::error!(path = %self.path.display(), %error, "an open was not recorded");
        }
    }

    fn document(&self, boot_id: &str, open: &TokenOpen, pod: Option<&Pod>) -> serde_json::Value {
        let args: Vec<_> = open.args.iter().map(|arg| redact(arg)).collect();
        json!({
            "@timestamp": open.wall,
            "host": {"name": self.node_name, "os": {"type": "linux"}, "boot": {"id": boot_id}},
            "event": {
                "category": ["file"],
                "type": ["change"],
                "action": "open",
                "id": format!("{boot_id}-{}-{}", open.ktime_ns, open.pid),
            },
            "file": {"path": open.path, "inode": open.inode.to_string()},
            "process": {
                "interactive": open.interactive(),
                "pid": open.process.tgid,
                "name": open.leader_comm,
                "executable": open.executable,
                "args": args,
            },
            "container": open.reader.as_ref().map(|reader| json!({"id": reader.container_id})),
            "orchestrator": {
                "namespace": pod.map(|pod| &pod.namespace),
                "resource": {"type": "pod", "id": open.pod_uid, "name": pod.map(|pod| &pod.name)},
            },
            "tokentrail": {
                "grade": open.grade,
                "skew_us": self.skew_us,
                "open": open,
                "pod": pod,
            },
        })
    }
}

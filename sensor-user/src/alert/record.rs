//! `--record`: every token open that was seen, as ECS documents, so that an incident can be
//! replayed later. Opens of the workload itself are in it too.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{correlation::Open, redact::redact};

/// The file.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: File,
    node_name: String,
}

impl Recorder {
    /// Opens or makes it; what it holds stays.
    pub fn open(path: &Path, node_name: String) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, node_name })
    }

    /// Adds an open, with its pod where that is known. A failure is told, and the open goes on
    /// without.
    pub fn add(&mut self, open: &Open) {
        let mut line = self.document(open).to_string().into_bytes();
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            tracing::error!(path = %self.path.display(), %error, "an open was not recorded");
        }
    }

    /// The document of an open.
    pub(crate) fn document(
        &self,
        Open { boot_id, open, skew_us, pod, .. }: &Open,
    ) -> serde_json::Value {
        let pod = pod.as_deref();
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
            "tokentrail": {"grade": open.grade, "skew_us": skew_us, "open": open, "pod": pod},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attribution::TokenOpen, replay::opens, time::Micros};

    #[test]
    fn each_open_is_recorded_with_what_was_known_of_the_clocks_by_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("opens.ndjson");
        let mut recorder = Recorder::open(&path, "node".to_owned()).unwrap();
        let time = Micros::from_secs(1_800_000_000);
        let mut open = Open::new("boot", TokenOpen::example(time));
        for skew in [1_000_000, 2_500] {
            open.skew_us = skew;
            recorder.add(&open);
        }
        let lines = std::fs::read(&path).unwrap();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read: Vec<_> = lines.map(|line| opens::parse(line).unwrap().unwrap()).collect();
        let skews: Vec<_> = read.iter().map(|it| it.skew).collect();
        assert_eq!(skews, [Some(Micros(1_000_000)), Some(Micros(2_500))]);
        assert_eq!(read[0].open(), open.open);
    }
}

//! `--record`: every token open that was seen, as ECS documents, so that an incident can be
//! replayed later. Opens of the workload itself are in it too.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{correlation::Open, redact::redact};

/// What is read back of it, bytes: more than any line has.
const TAIL: u64 = 64 << 10;

/// The file.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: File,
    node_name: String,
    /// The last line of an earlier run: a kill may have come between it and what else is noted of the
    /// open, which is then told again.
    last: Vec<u8>,
}

impl Recorder {
    /// Opens or makes it; what it holds stays.
    pub fn open(path: &Path, node_name: String) -> io::Result<Self> {
        let mut file =
            File::options().read(true).append(true).create(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let last = tail.split_inclusive(|byte| *byte == b'\n').next_back().unwrap_or_default();
        let last = last.to_vec();
        Ok(Self { path: path.to_owned(), file, node_name, last })
    }

    /// Adds an open, with its pod where that is known, unless it is the last one that is there. A failure
    /// is told, and the open goes on without.
    pub fn add(&mut self, open: &Open) {
        let document = self.document(open);
        let mut line = document.to_string().into_bytes();
        line.push(b'\n');
        let last = std::mem::take(&mut self.last);
        let id = |document: &serde_json::Value| document.pointer("/event/id").cloned();
        let known = serde_json::from_slice(&last).is_ok_and(|last| id(&last) == id(&document));
        if known {
            return;
        }
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
        for (skew, ktime_ns) in [(1_000_000, 1), (2_500, 2)] {
            open.skew_us = skew;
            open.open.ktime_ns = ktime_ns;
            recorder.add(&open);
            recorder = Recorder::open(&path, "node".to_owned()).unwrap();
            // As after a kill.
            recorder.add(&open);
        }
        let lines = std::fs::read(&path).unwrap();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read: Vec<_> = lines.map(|line| opens::parse(line).unwrap().unwrap()).collect();
        let skews: Vec<_> = read.iter().map(|it| it.skew).collect();
        assert_eq!(skews, [Some(Micros(1_000_000)), Some(Micros(2_500))]);
        assert_eq!(read[1].open(), open.open);
    }
}

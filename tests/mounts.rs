//! The volume map on the kernel's own mounts, in a mount namespace of the test's.
#![expect(clippy::unwrap_used, reason = "a test that cannot start its shell has failed")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use tokentrail::{
    attribution::{AttributionMetrics, pods::PodIndex, volumes::VolumeMap},
    time::Micros,
};

const POD: &str = "0f4f9e0a-2f6b-4d0e-9a59-0a4a3d2d1c0b";
const NOW: Micros = Micros::from_secs(1_800_000_000);

/// A shell in a mount namespace of its own, which mounts when told to.
struct MountingShell {
    child: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
}

impl MountingShell {
    fn start() -> Self {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Self { child, output };
        assert!(shell.run("true"), "mounting takes root");
        shell
    }

    fn run(&mut self, command: &str) -> bool {
        let input = self.child.stdin.as_mut().unwrap();
        let mut line = String::new();
        writeln!(input, "{command} && echo done || echo failed").is_ok()
            && self.output.read_line(&mut line).is_ok()
            && line == "done\n"
    }
}

impl Drop for MountingShell {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn the_kernel_tells_of_changed_mounts() {
    let mut shell = MountingShell::start();
    let root = tempfile::TempDir::new().unwrap();
    let point = root.path().join(format!("pods/{POD}/volumes/kubernetes.io~projected/v"));
    fs::create_dir_all(&point).unwrap();
    let process = PathBuf::from(format!("/proc/{}", shell.child.id()));
    let metrics = AttributionMetrics::default();
    let pods = PodIndex::default();
    let mut map = VolumeMap::open(&process, vec![root.path().to_owned()], metrics).unwrap();

    let point = point.display();
    assert!(shell.run(&format!("mount -t tmpfs tokentrail-test {point} && touch {point}/token")));
    // Not told to refresh: a lookup finds out by itself, even of a device that it does not know.
    assert_eq!(map.devices(&pods).count(), 0);
    assert!(map.lookup(0, NOW, &pods).is_none());
    let device = map.devices(&pods).next().unwrap();
    assert_eq!(map.lookup(device, NOW, &pods).unwrap().pod_uid, POD);

    assert!(shell.run(&format!("umount {point}")));
    assert!(map.lookup(device, NOW, &pods).is_none(), "the number is free for another volume");

    assert!(shell.run(&format!("mount -t tmpfs tokentrail-test {point}")));
    map.keep_up().unwrap();
    assert_eq!(map.devices(&pods).count(), 0, "still empty");
    assert!(shell.run(&format!("touch {point}/token")));
    map.keep_up().unwrap();
    assert_eq!(map.devices(&pods).count(), 1, "filled after it was mounted");
}

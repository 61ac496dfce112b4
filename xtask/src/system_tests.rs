//! The whole-program tests, found by the feature that they require: a new one needs no line here.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    build::{self, Arch},
    shell::{cargo, line, read, say},
    tally::Tally,
};

/// The feature that whole-program tests require.
const FEATURE: &str = "system-tests";

/// Where a package names those of its tests that another kernel may change; without it, all are.
const OF_THE_KERNEL: &str = "/metadata/tokentrail/tests-of-the-kernel";

/// Where it names those of these that are run once for each route, named by `TOKENTRAIL_TEST_ROUTE`.
const OF_EACH_ROUTE: &str = "/metadata/tokentrail/tests-of-each-route";

/// Where a package names those of its tests that need a Kubernetes cluster.
const OF_A_CLUSTER: &str = "/metadata/tokentrail/tests-of-a-cluster";

/// Where it names those of which the longest test only waits: the others of the same go on beside it, one by one.
const THAT_WAIT: &str = "/metadata/tokentrail/tests-that-wait";

/// One package's whole-program tests.
pub(crate) struct Suite {
    package: String,
    tests: Vec<String>,
    of_the_kernel: Option<Vec<String>>,
    of_each_route: Vec<String>,
    of_a_cluster: Vec<String>,
    that_wait: Vec<String>,
}

/// All of them.
///
/// # Errors
/// If cargo cannot read the workspace.
pub(crate) fn suites() -> Result<Vec<Suite>> {
    let metadata = read(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = list(&metadata, "packages").iter().map(|package| Suite {
        package: text(package, "name"),
        tests: list(package, "targets")
            .iter()
            .filter(needs_system)
            .map(|it| text(it, "name"))
            .collect(),
        of_the_kernel: names(package, OF_THE_KERNEL),
        of_each_route: names(package, OF_EACH_ROUTE).unwrap_or_default(),
        of_a_cluster: names(package, OF_A_CLUSTER).unwrap_or_default(),
        that_wait: names(package, THAT_WAIT).unwrap_or_default(),
    });
    Ok(packages.filter(|suite| !suite.tests.is_empty()).collect())
}

impl Suite {
    /// Those that are worth the time on one more kernel.
    pub(crate) fn of_the_kernel(mut self) -> Self {
        if let Some(wanted) = self.of_the_kernel.take() {
            self.tests.retain(|test| wanted.contains(test));
        }
        self
    }

    /// Those whose names are wanted.
    pub(crate) fn with(mut self, wanted: impl Fn(&str) -> bool) -> Self {
        self.tests.retain(|test| wanted(test));
        self
    }

    /// Those that need a cluster, or the others.
    pub(crate) fn with_cluster(mut self, cluster: bool) -> Self {
        self.tests.retain(|test| self.of_a_cluster.contains(test) == cluster);
        self
    }

    /// Those of which the longest test only waits, or the others.
    pub(crate) fn with_waiting(mut self, waits: bool) -> Self {
        self.tests.retain(|test| self.that_wait.contains(test) == waits);
        self
    }

    /// Their names.
    pub(crate) fn tests(&self) -> &[String] {
        &self.tests
    }

    /// Whether a test is run once for each route.
    pub(crate) fn is_of_each_route(&self, test: &str) -> bool {
        self.of_each_route.iter().any(|it| it == test)
    }

    /// `cargo test` of these alone, against the agent and the BPF object that were built.
    pub(crate) fn cargo_test(&self) -> Command {
        let mut command = cargo();
        command.args(["test", "--package", &self.package]);
        self.finish(&mut command);
        command
    }

    fn finish(&self, command: &mut Command) {
        command
            .args(["--no-fail-fast", "--features", FEATURE])
            .args(self.tests.iter().flat_map(|test| ["--test", test]))
            .env("TOKENTRAIL_BIN", build::agent())
            .env("TOKENTRAIL_BPF_OBJECT", build::bpf_object_path());
    }

    /// Builds them for an architecture and returns the programs, by name. Those of this machine's own
    /// use its libraries, the others none.
    ///
    /// # Errors
    /// If they do not build.
    pub(crate) fn programs(&self, arch: Arch) -> Result<Vec<(String, PathBuf)>> {
        let mut build = if arch.is_this_machines() {
            self.cargo_test()
        } else {
            let mut build = build::static_cargo("test", &self.package, arch)?;
            self.finish(&mut build);
            build
        };
        build
            .args(["--no-run", "--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit());
        let messages = read(&mut build)?;
        let programs = messages.lines().filter_map(|message| {
            let message: Value = serde_json::from_str(message).ok()?;
            let program = message.get("executable")?.as_str()?.into();
            // A package's own programs are built beside its tests.
            let name = text(message.get("target")?, "name");
            self.tests.contains(&name).then_some((name, program))
        });
        Ok(programs.collect())
    }
}

/// Runs tests with their output on ours, and counts them.
///
/// # Errors
/// If they fail in a way that no `test result:` line tells: not built, killed.
pub(crate) fn stream(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for piece in BufReader::new(output).split(b'\n') {
            let piece = piece?;
            let piece = String::from_utf8_lossy(&piece);
            say(&piece);
            if let Some(more) = Tally::read(&piece) {
                tally += more;
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // Those that did run still count.
        say(format_args!("`{}` failed ({status})", line(command)));
        tally.failed += 1;
    }
    Ok(tally)
}

/// Names of tests that a package lists at this place of its manifest.
fn names(package: &Value, place: &str) -> Option<Vec<String>> {
    let names = package.pointer(place)?.as_array()?;
    Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn needs_system(target: &&Value) -> bool {
    list(target, "required-features").iter().any(|feature| feature == FEATURE)
}

fn list<'value>(value: &'value Value, key: &str) -> &'value [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

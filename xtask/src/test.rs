//! `cargo xtask test`: every check, in the order in which failures are cheapest to find.
//!
//! One failing step hides no other. The last line is the sum, and nothing else is on it.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;
use tokentrail_tests::machine::obstacle_to_containers;

use crate::{
    build::{self, Arch},
    chart, cluster, debian, image,
    shell::{self, cargo, complain, in_ci, program, say},
    system_tests::{self, stream},
    tally::Tally,
    tidy, toolchain, vm,
};

/// Runs all checks, on a few kernels or with `full` on all; the exit code tells whether any failed.
pub(crate) fn run(full: bool) -> ExitCode {
    let mut report = Report::default();
    report.check("format", || passes(cargo().args(["fmt", "--all", "--check"])));
    report.check("lints, host", host_lints);
    report.check("lints, BPF", || match build::bpf_cargo("clippy") {
        Ok(mut clippy) => passes(clippy.args(DENY)),
        Err(error) => Ok(Outcome::NotSetUp(format!("{error:#}"))),
    });
    report.check("dependencies: licences, bans, sources", dependencies);
    report.check("rules of this repository", || tidy::run().map(|()| Outcome::Passed));
    report.check("unit and property tests", || {
        counted(cargo().args(["test", "--workspace", "--no-fail-fast"]))
    });
    report.check("documentation", || {
        passes(
            cargo()
                .args(["doc", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "--deny warnings"),
        )
    });
    report.check("unit tests, arm64 under emulation", other_architecture);
    let built = report.check("build", || build::run().map(|_agent| Outcome::Passed));
    // An agent of an earlier build would pass or fail for what is no longer there.
    let after_build =
        |check: fn() -> Result<Outcome>| move || if built { check() } else { Ok(without_build()) };
    report.check("image: assembling it twice gives the same bytes", after_build(image_assembly));
    report.check("Helm chart and manifests", after_build(helm_chart));
    report.check("whole program, running kernel", after_build(whole_program));
    report.check("whole program, Kubernetes cluster", after_build(cluster));
    report.check("whole program, Debian's kernels in VMs", || {
        if built { virtual_machines(full) } else { Ok(without_build()) }
    });
    report.sum_up()
}

const DENY: [&str; 3] = ["--", "--deny", "warnings"];

/// How a check ended that did not fail.
enum Outcome {
    /// It is one check, and it passed.
    Passed,
    /// It ran tests and counted them.
    Counted(Tally),
    /// It cannot be done here, whatever one installs.
    Impossible(String),
    /// This machine could do it, but is not set up so.
    NotSetUp(String),
}

fn passes(command: &mut Command) -> Result<Outcome> {
    shell::run(command).map(|()| Outcome::Passed)
}

fn counted(command: &mut Command) -> Result<Outcome> {
    stream(command).map(Outcome::Counted)
}

fn host_lints() -> Result<Outcome> {
    // With all features the fuzz targets are among them, and with these libFuzzer.
    if let Err(error) = debian::install(&[debian::GXX]) {
        return Ok(Outcome::NotSetUp(format!("{error:#}")));
    }
    passes(cargo().args(["clippy", "--workspace", "--all-targets", "--all-features"]).args(DENY))
}

/// Advisories are left out: their database is on the network, and they change without a change
/// here.
fn dependencies() -> Result<Outcome> {
    let cargo_deny = match toolchain::cargo_deny() {
        Ok(cargo_deny) => cargo_deny,
        Err(error) => return Ok(Outcome::NotSetUp(format!("{error:#}"))),
    };
    say("  advisories are not looked up: `cargo deny check advisories` does that");
    passes(program(cargo_deny).args([
        "--all-features",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))
}

/// The library's own tests as the image for the other architecture holds it. Properties are
/// tried a few times only: emulated code is slow, and this machine's own tests try them all.
fn other_architecture() -> Result<Outcome> {
    let arch = Arch::Arm64;
    if arch.is_this_machines() {
        return Ok(Outcome::Impossible("this machine is one: its own tests are these".to_owned()));
    }
    let test = debian::install(&[debian::QEMU_USER])
        .and_then(|()| build::static_cargo("test", build::AGENT, arch))
        .map_err(|error| format!("{error:#}"));
    match test {
        Ok(mut test) => counted(test.args(["--lib", "--no-fail-fast"]).env("PROPTEST_CASES", "16")),
        Err(why) => Ok(Outcome::NotSetUp(why)),
    }
}

fn image_assembly() -> Result<Outcome> {
    say("  of one build; whether two builds agree, `cargo xtask image --verify` tells");
    image::assembles_the_same_twice().map(|()| Outcome::Passed)
}

fn helm_chart() -> Result<Outcome> {
    chart::check().map(Outcome::Counted)
}

fn whole_program() -> Result<Outcome> {
    let packages =
        [debian::RUNC, debian::BUSYBOX, debian::TMUX, debian::SCRIPT, debian::NATS_SERVER];
    if let Err(error) = debian::install(&packages) {
        return Ok(Outcome::NotSetUp(format!("{error:#}")));
    }
    if let Some(obstacle) = obstacle_to_containers() {
        return Ok(Outcome::NotSetUp(obstacle));
    }
    let mut tally = Tally::default();
    for (waits, threads) in [(false, "--test-threads=1"), (true, "--test-threads=2")] {
        for suite in system_tests::suites()?.into_iter().map(|suite| suite.with_cluster(false)) {
            let suite = suite.with_waiting(waits);
            if !suite.tests().is_empty() {
                tally += stream(suite.cargo_test().args(["--", threads]))?;
            }
        }
    }
    Ok(Outcome::Counted(tally))
}

fn cluster() -> Result<Outcome> {
    let prepared = debian::install(&[debian::NATS_SERVER]).and_then(|()| cluster::prepare());
    let programs = match prepared {
        Ok(programs) => programs,
        Err(error) => return Ok(Outcome::NotSetUp(format!("{error:#}"))),
    };
    let scene = cluster::Scene::set(programs, "test")?;
    let mut tally = Tally::default();
    for suite in system_tests::suites()?.into_iter().map(|suite| suite.with_cluster(true)) {
        if !suite.tests().is_empty() {
            let mut test = suite.cargo_test();
            scene.hand_to(&mut test);
            // As with those that wait.
            tally += stream(test.args(["--", "--test-threads=2"]))?;
        }
    }
    scene.clear()?;
    Ok(Outcome::Counted(tally))
}

fn virtual_machines(full: bool) -> Result<Outcome> {
    let boots = match vm::Boots::of_matrix(full) {
        Ok(boots) => boots,
        Err(vm::Obstacle::Impossible(why)) => return Ok(Outcome::Impossible(why)),
        Err(vm::Obstacle::NotSetUp(why)) => return Ok(Outcome::NotSetUp(why)),
    };
    boots.test().map(Outcome::Counted)
}

fn without_build() -> Outcome {
    Outcome::Impossible("the build failed".to_owned())
}

/// What all checks together came to.
#[derive(Default)]
struct Report {
    tally: Tally,
    failures: Vec<String>,
    skips: Vec<String>,
}

impl Report {
    /// Runs one check; tells whether it ran and nothing in it failed.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<Outcome>) -> bool {
        say(format_args!("\n━━ {name}"));
        let start = Instant::now();
        let before = self.tally;
        let outcome = match check() {
            // A pipeline in which a check quietly stopped running is worse than a red one.
            Ok(Outcome::NotSetUp(why)) if in_ci() => {
                Err(anyhow::anyhow!("{why}; with CI set, what this machine can do must run"))
            }
            outcome => outcome,
        };
        let verdict = match outcome {
            Ok(Outcome::Passed) => self.add(name, Tally { passed: 1, ..Tally::default() }),
            Ok(Outcome::Counted(tally)) => self.add(name, tally),
            Ok(Outcome::Impossible(why) | Outcome::NotSetUp(why)) => {
                self.skips.push(format!("{name}: skipped: {why}"));
                self.tally.skipped += 1;
                format!("skipped: {why}")
            }
            Err(error) => {
                complain(format_args!("error: {error:#}"));
                self.add(name, Tally { failed: 1, ..Tally::default() })
            }
        };
        say(format_args!("── {name}: {verdict} ({:.1} s)", start.elapsed().as_secs_f64()));
        (self.tally.failed, self.tally.skipped) == (before.failed, before.skipped)
    }

    fn add(&mut self, name: &str, tally: Tally) -> String {
        self.tally += tally;
        if tally.failed > 0 {
            self.failures.push(format!("{name}: failed"));
        }
        tally.to_string()
    }

    fn sum_up(&self) -> ExitCode {
        say("");
        self.skips.iter().chain(&self.failures).for_each(say);
        say(self.tally);
        if self.tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

//! `cargo xtask vm`: the tests of the kernel on Debian's kernels of all ages, booted under QEMU.
//!
//! Which kernels and which tests is `matrix`; `kernel` gets a kernel and `image` makes what it boots
//! into; `boot` boots and listens; `report` makes a table of what was found. No KVM is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow, bail};

use crate::{
    build::{self, Arch},
    debian,
    shell::{complain, say},
    system_tests::{self, Suite},
    tally::Tally,
};

mod boot;
mod image;
mod kernel;
mod matrix;
mod report;

use boot::Told;
use kernel::Kernel;
use matrix::{MATRIX, Machine, Tests};

/// All that machines have.
const ARCHES: [Arch; 2] = [Arch::Amd64, Arch::Arm64];
/// How many VMs run at once: their tests use one processor, and their kernels little of another.
const SIDE_BY_SIDE: usize = 2;

/// Why no VM can be booted.
pub(crate) enum Obstacle {
    /// Not on this machine.
    Impossible(String),
    /// Something is missing that could be there.
    NotSetUp(String),
}

/// Builds, boots the machines of these names (all, if there are none), and runs their tests, or of those
/// only some.
///
/// # Errors
/// If there is no such machine, a test fails, or a VM does not get that far.
pub(crate) fn run(names: &[String], only: &[String], write_readme: bool) -> Result<()> {
    let machines = matrix::chosen(names)?;
    build::run()?;
    let machines = machines.into_iter().map(|machine| (machine, machine.tests)).collect();
    let boots = Boots::prepare(machines).map_err(|obstacle| match obstacle {
        Obstacle::Impossible(why) | Obstacle::NotSetUp(why) => anyhow!(why),
    })?;
    let tally = Boots { only: only.to_vec(), ..boots }.test()?;
    say(tally);
    if tally.failed > 0 {
        bail!("{} tests failed in VMs", tally.failed);
    }
    if write_readme { report::write_readme() } else { Ok(()) }
}

/// Machines, and all that they need from elsewhere.
pub(crate) struct Boots {
    machines: Vec<(&'static Machine, Tests, Kernel)>,
    /// Of these names alone; of all, if there are none.
    only: Vec<String>,
}

impl Boots {
    /// Gets what is missing for the short matrix or the whole one: programs and kernels.
    pub(crate) fn of_matrix(full: bool) -> Result<Self, Obstacle> {
        let tests = |machine: &Machine| if full { Some(machine.tests) } else { machine.short };
        let chosen = MATRIX.iter().filter_map(|machine| Some((machine, tests(machine)?)));
        Self::prepare(chosen.collect())
    }

    fn prepare(machines: Vec<(&'static Machine, Tests)>) -> Result<Self, Obstacle> {
        if !Arch::Amd64.is_this_machines() {
            return Err(Obstacle::Impossible(format!(
                "VMs are booted on x86-64 machines, this one is {}",
                std::env::consts::ARCH
            )));
        }
        let not_set_up = |error| Obstacle::NotSetUp(format!("{error:#}"));
        for arch in ARCHES {
            if machines.iter().all(|(machine, _)| machine.arch != arch) {
                continue;
            }
            let packages: &[debian::Package] = match arch {
                Arch::Amd64 => &[
                    debian::QEMU_AMD64,
                    debian::BUSYBOX,
                    debian::RUNC,
                    debian::TMUX,
                    debian::SCRIPT,
                ],
                Arch::Arm64 => &[debian::QEMU_ARM64, debian::BUSYBOX],
            };
            debian::install(packages).map_err(not_set_up)?;
            if !arch.is_this_machines() {
                build::static_cargo("build", build::AGENT, arch).map_err(not_set_up)?;
            }
        }
        let machines = machines
            .into_iter()
            .map(|(machine, tests)| Ok((machine, tests, Kernel::of(machine)?)))
            .collect::<Result<_>>()
            .map_err(not_set_up)?;
        Ok(Self { machines, only: Vec::new() })
    }

    /// Boots with what was built before, and runs the tests in each; prints what was found.
    ///
    /// # Errors
    /// If the tests do not build. A VM that does not get to their end is a failed test.
    pub(crate) fn test(&self) -> Result<Tally> {
        let folder = tempfile::tempdir()?;
        let mut images = Vec::new();
        for arch in ARCHES {
            if self.machines.iter().any(|(machine, ..)| machine.arch == arch) {
                images.push((arch, self.image(folder.path(), arch)?));
            }
        }
        let waiting = Mutex::new(self.machines.iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let told = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..SIDE_BY_SIDE {
                scope.spawn(|| {
                    while let Some((machine, tests, kernel)) = next() {
                        let Some((_, (suites, image))) =
                            images.iter().find(|(arch, _)| *arch == machine.arch)
                        else {
                            continue;
                        };
                        let start = Instant::now();
                        let runs = runs(suites, |test| self.runs(*tests, test), machine);
                        let result = image::with_modules(image, &kernel.modules(), machine.name)
                            .and_then(|image| boot::run(machine, &kernel.image(), &image, &runs));
                        told.lock().unwrap_or_else(PoisonError::into_inner).push((
                            *machine,
                            result,
                            start.elapsed(),
                        ));
                    }
                });
            }
        });
        let mut told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
        told.sort_by_key(|(machine, ..)| MATRIX.iter().position(|it| it.name == machine.name));
        let mut tally = Tally::default();
        let mut ended: Vec<(&Machine, Told)> = Vec::new();
        for (machine, result, time) in told {
            match result {
                Ok(told) => {
                    let (name, seconds) = (machine.name, time.as_secs_f64());
                    say(format_args!("  {name}: {} ({seconds:.1} s)", told.tally));
                    tally += told.tally;
                    if told.tally.failed == 0 {
                        report::keep(machine, &told)?;
                    } else {
                        report::forget(machine)?;
                    }
                    ended.push((machine, told));
                }
                Err(error) => {
                    complain(format_args!("error: {}: {error:#}", machine.name));
                    report::forget(machine)?;
                    tally += Tally { failed: 1, ..Tally::default() };
                }
            }
        }
        say(report::table(&ended));
        Ok(tally)
    }

    /// Whether a machine that runs these tests runs this one now.
    fn runs(&self, tests: Tests, test: &str) -> bool {
        tests.hold(test) && (self.only.is_empty() || self.only.iter().any(|name| name == test))
    }

    /// Builds the tests that any of the machines of an architecture runs, and an image with them.
    fn image(&self, folder: &Path, arch: Arch) -> Result<(Vec<Suite>, PathBuf)> {
        let of_arch = || self.machines.iter().filter(|(machine, ..)| machine.arch == arch);
        let wanted = |test: &str| of_arch().any(|(_, tests, _)| self.runs(*tests, test));
        let suites: Vec<Suite> = system_tests::suites()?
            .into_iter()
            .map(|suite| suite.of_the_kernel().with(wanted))
            .filter(|suite| !suite.tests().is_empty())
            .collect();
        let mut programs = Vec::new();
        for suite in &suites {
            programs.extend(suite.programs(arch)?);
        }
        let folder = folder.join(arch.oci_name());
        fs::create_dir(&folder)?;
        let agent =
            if arch.is_this_machines() { build::agent() } else { build::static_agent(arch)? };
        let image = image::write(&folder, arch, &agent, &programs)?;
        Ok((suites, image))
    }
}

/// What a machine runs: names of tests, `test@route` where each of its routes is tried.
fn runs(suites: &[Suite], wanted: impl Fn(&str) -> bool, machine: &Machine) -> Vec<String> {
    let mut runs = Vec::new();
    for suite in suites {
        for test in suite.tests().iter().filter(|test| wanted(test)) {
            if suite.is_of_each_route(test) {
                runs.extend(machine.routes.iter().map(|route| format!("{test}@{route}")));
            } else {
                runs.push(test.clone());
            }
        }
    }
    runs
}

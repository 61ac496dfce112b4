//! The kernels that are booted: which, with what parameters, which routes must work there and which
//! tests they run. One table; nothing is decided by a kernel's name anywhere else.

use anyhow::{Result, bail};

use crate::build::Arch;

/// One kernel, booted in one manner.
pub(super) struct Machine {
    /// What it is called on the command line and in tables.
    pub(super) name: &'static str,
    pub(super) arch: Arch,
    /// Matches Debian's packages of it, of which the newest is taken that is whole. From 6.19 on the
    /// kernel is in `linux-binary-…`.
    pub(super) package: &'static str,
    /// Kernel parameters beyond those that every boot has.
    pub(super) parameters: &'static str,
    /// What these make of it, in the words of the README's table.
    pub(super) manner: &'static str,
    /// The routes that must work, best first; all others must not.
    pub(super) routes: &'static [&'static str],
    /// What `cargo xtask vm` and `cargo xtask test --full` run.
    pub(super) tests: Tests,
    /// What `cargo xtask test` runs, if anything.
    pub(super) short: Option<Tests>,
}

/// Some of the tests of the kernel.
#[derive(Clone, Copy)]
pub(super) enum Tests {
    All,
    /// Those of these names.
    Only(&'static [&'static str]),
}

impl Tests {
    /// Whether a test is among them.
    pub(super) fn hold(self, test: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(&test),
        }
    }
}

/// What tells of each route whether it works, at which cost and privilege.
const FACTS: Tests = Tests::Only(&["routes", "privileges"]);
/// Which routes work, every fact of a record on each, and whether containers are what tests think.
const RECORDS: Tests = Tests::Only(&["routes", "kernel", "containers"]);
/// All of these.
const BRIEF: Tests = Tests::Only(&["routes", "privileges", "kernel", "containers"]);

/// What shows what is read and how, where not all can be.
const LOCKED: Tests =
    Tests::Only(&["routes", "privileges", "kernel", "containers", "evasion", "pipeline", "grades"]);

const EVERY: &[&str] = &["fexit", "kprobe", "exit"];
/// Without direct calls (arm64 before 6.4) trampolines load and do not attach.
const NO_TRAMPOLINE: &[&str] = &["kprobe", "exit"];

const BULLSEYE: &str = r"^linux-image-5\.10\.0-[0-9]+-cloud-amd64$";
const BOOKWORM: &str = r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$";
const TRIXIE: &str = r"^linux-image-6\.12\.[0-9]+\+deb13-cloud-amd64$";

/// All of them, oldest first, then the same kernels in other manners. Debian has no 5.15, 6.6 or 6.8.
pub(super) const MATRIX: [Machine; 10] = [
    Machine {
        name: "5.10",
        arch: Arch::Amd64,
        package: BULLSEYE,
        parameters: "",
        manner: "",
        routes: EVERY,
        tests: Tests::All,
        short: Some(RECORDS),
    },
    Machine {
        name: "6.1",
        arch: Arch::Amd64,
        package: BOOKWORM,
        parameters: "",
        manner: "",
        routes: EVERY,
        tests: Tests::All,
        short: None,
    },
    Machine {
        name: "6.12",
        arch: Arch::Amd64,
        package: TRIXIE,
        parameters: "",
        manner: "",
        routes: EVERY,
        tests: Tests::All,
        short: Some(Tests::All),
    },
    Machine {
        name: "6.x",
        arch: Arch::Amd64,
        package: r"^linux-(image|binary)-6\.[0-9]+\.[0-9]+\+deb13-cloud-amd64$",
        parameters: "",
        manner: "",
        routes: EVERY,
        tests: Tests::All,
        short: None,
    },
    Machine {
        name: "7.x",
        arch: Arch::Amd64,
        package: r"^linux-binary-7\.[0-9]+\.[0-9]+\+deb13-cloud-amd64$",
        parameters: "",
        manner: "",
        routes: EVERY,
        tests: Tests::All,
        short: None,
    },
    Machine {
        name: "6.1-arm64",
        arch: Arch::Arm64,
        package: r"^linux-image-6\.1\.0-[0-9]+-cloud-arm64$",
        parameters: "",
        manner: "",
        routes: NO_TRAMPOLINE,
        tests: Tests::All,
        short: None,
    },
    Machine {
        name: "6.12-arm64",
        arch: Arch::Arm64,
        package: r"^linux-image-6\.12\.[0-9]+\+deb13-cloud-arm64$",
        parameters: "",
        manner: "",
        routes: EVERY,
        tests: Tests::All,
        short: Some(BRIEF),
    },
    // Where BPF security modules attach and never fire.
    Machine {
        name: "6.12-no-bpf-lsm",
        arch: Arch::Amd64,
        package: TRIXIE,
        parameters: "lsm=lockdown,yama,apparmor",
        manner: "`lsm=` without `bpf`",
        routes: EVERY,
        tests: FACTS,
        short: None,
    },
    // Where no program may read kernel memory through a helper, as all do but those by typed reads.
    Machine {
        name: "6.12-lockdown",
        arch: Arch::Amd64,
        package: TRIXIE,
        parameters: "lockdown=confidentiality",
        manner: "`lockdown=confidentiality`",
        routes: &["fexit"],
        tests: LOCKED,
        short: None,
    },
    // No Debian kernel for these architectures lacks type information: init mounts a tmpfs over it.
    Machine {
        name: "6.12-no-btf",
        arch: Arch::Amd64,
        package: TRIXIE,
        parameters: "tokentrail.btf=hidden",
        manner: "without BTF",
        routes: &[],
        tests: FACTS,
        short: None,
    },
];

/// The machines of these names; all if there are none.
///
/// # Errors
/// Names one that there is not, and those that there are.
pub(super) fn chosen(names: &[String]) -> Result<Vec<&'static Machine>> {
    if names.is_empty() {
        return Ok(MATRIX.iter().collect());
    }
    let find = |name: &String| match MATRIX.iter().find(|machine| machine.name == name) {
        Some(machine) => Ok(machine),
        None => {
            let known: Vec<&str> = MATRIX.iter().map(|machine| machine.name).collect();
            bail!("there is no kernel {name}; there are {}", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_unknown_ones_answered_with_those_there_are() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            chosen(&names).map(|found| found.iter().map(|it| it.name).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]).unwrap().len(), MATRIX.len());
        assert_eq!(of(&["6.12", "5.10"]).unwrap(), ["6.12", "5.10"]);
        let refused = of(&["4.19"]).unwrap_err().to_string();
        assert!(refused.contains("4.19") && refused.contains("6.12-arm64"), "{refused}");
    }
}

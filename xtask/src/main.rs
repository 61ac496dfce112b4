//! Every developer command of tokentrail: `cargo xtask` lists them.
//!
//! A table of contents: each command is one file with one function. What the commands share is in
//! `shell` (running programs), `toolchain` and `debian` (getting what a bare machine lacks).

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod chart;
mod cluster;
mod debian;
mod demo;
mod fixtures;
mod fuzz;
mod golang;
mod image;
mod shell;
mod system_tests;
mod tally;
mod test;
mod tidy;
mod toolchain;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of tokentrail")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the BPF object and the release agent, and first whatever tool for it is missing
    Build,
    /// Make the agent's image: an OCI archive of a static program, the same bytes each time
    Image {
        /// The architecture to build for; this machine's unless given
        #[arg(long, value_enum)]
        arch: Option<build::Arch>,
        /// Full name of the image, with registry and tag [default: localhost/tokentrail:VERSION]
        #[arg(long)]
        name: Option<String>,
        /// Build it all once more in another folder and compare the bytes
        #[arg(long)]
        verify: bool,
    },
    /// Check the Helm chart: lint, what it renders, the API's schemas, the plain manifests
    Chart,
    /// Render the plain manifests from the Helm chart
    Manifests,
    /// See it work: a real container, a token read by hand, an API request, the alert
    Demo {
        /// In a real cluster of two nodes, with the agent installed by its chart
        #[arg(long)]
        cluster: bool,
    },
    /// A real Kubernetes on this machine: up, down, status
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// `kubectl` for that cluster; all arguments are its own (TOKENTRAIL_CLUSTER names another)
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Record tests/fixtures/audit anew: what a real API server logs of each kind of request
    Fixtures {
        /// Only tests/fixtures/wrapped, which is made of what is there; needs no API server
        #[arg(long)]
        wrapped: bool,
    },
    /// Look for input that breaks a property: coverage-guided, against plain oracles
    Fuzz {
        /// Only this; all without it
        #[arg(value_enum)]
        target: Option<fuzz::Target>,
        /// How long to look, each
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Every check: format, lints, dependencies, tests, the running kernel and some in VMs
    Test {
        /// On all kernels of `cargo xtask vm`, not three of them
        #[arg(long)]
        full: bool,
    },
    /// The checks of this repository's own rules
    Tidy,
    /// Boot Debian's kernels of all ages under QEMU and run the tests of the kernel in each
    Vm {
        /// Only these, as `5.10` or `6.12-arm64`; all without any
        kernels: Vec<String>,
        /// Only this test (`--test routes --test privileges` find out what the README's table says)
        #[arg(long, value_name = "NAME")]
        test: Vec<String>,
        /// Then put the table of all kernels into the README; the others as they were last booted
        #[arg(long)]
        write_readme: bool,
    },
    /// Measure against the bars: cost of an open, latency of an alert, memory and CPU at rest
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        /// In a real cluster: answered request to alert, memory and CPU with few pods and with fifty
        #[arg(long)]
        cluster: bool,
        /// Only this; all without it
        #[command(subcommand)]
        part: Option<bench::Part>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Build => build::run().map(drop),
        Command::Image { arch, name, verify: true } => image::verify(arch, name.as_deref()),
        Command::Image { arch, name, verify: false } => image::run(arch, name.as_deref()).map(drop),
        Command::Chart => chart::run(),
        Command::Manifests => chart::write_manifests(),
        Command::Cluster { action } => cluster::run(action),
        Command::Kubectl { arguments } => cluster::kubectl(&arguments),
        Command::Fixtures { wrapped: false } => fixtures::run(),
        Command::Fixtures { wrapped: true } => fixtures::wrap(),
        Command::Fuzz { target, seconds } => fuzz::run(target, seconds),
        Command::Demo { cluster: false } => demo::run(),
        Command::Demo { cluster: true } => demo::cluster::run(),
        // Its last line is the sum of all checks; an error after it would hide that.
        Command::Test { full } => return test::run(full),
        Command::Tidy => tidy::run(),
        Command::Vm { kernels, test, write_readme } => vm::run(&kernels, &test, write_readme),
        Command::Bench { part, cluster } => bench::run(part, cluster),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::complain(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        super::Arguments::command().debug_assert();
    }
}

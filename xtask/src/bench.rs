//! `cargo xtask bench`: the figures of the README, measured on this machine.

use anyhow::{Result, bail};

use crate::{build, debian};

/// Builds what is measured and gets what it is compared with.
///
/// # Errors
/// Until there is something to measure, always.
pub(crate) fn run() -> Result<()> {
    debian::install(&[debian::RUNC, debian::BUSYBOX, debian::LIBBPF_TOOLS])?;
    build::run()?;
    bail!("nothing is measured yet")
}

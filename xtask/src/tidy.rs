//! to come
use anyhow::{Result, bail};

pub(crate) fn run() -> Result<()> {
    bail!("not yet written")
}

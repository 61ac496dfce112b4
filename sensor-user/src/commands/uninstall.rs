//! `tokentrail uninstall`: removes what agents have left in the kernel, whatever their version. Files
//! (state, alerts) are left alone.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;

use super::{Exit, tell};
use crate::kernel::pins::{self, DEFAULT_PIN_DIR};

/// Options of `tokentrail uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// The directory that agents were given as --pin-dir
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// Prints one line for what it removed. Nothing to remove is no error.
pub fn execute(args: &UninstallArgs) -> Exit {
    let removed = match pins::uninstall(&args.pin_dir) {
        Ok(removed) => removed,
        Err(error) => {
            tell(&error);
            return Exit::Failed;
        }
    };
    let mut output = io::stdout().lock();
    let mut printed =
        removed.iter().try_for_each(|path| writeln!(output, "removed {}", path.display()));
    if removed.is_empty() {
        printed = writeln!(output, "nothing is pinned in {}", args.pin_dir.display());
    }
    match printed {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell(&error);
            Exit::Failed
        }
    }
}

//! Disks without space.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Leaves no space in this folder's file system, and returns the file that takes it.
///
/// # Errors
/// If it is something else than space that is missing.
pub fn fill(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("ballast");
    let mut file = File::create(&path).with_context(|| format!("could not create {path:?}"))?;
    loop {
        match file.write(&[0; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(path),
            Err(error) => return Err(error).with_context(|| format!("could not write {path:?}")),
        }
    }
}

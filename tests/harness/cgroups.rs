//! Making sure that cgroups which a container needed are gone afterwards, in every hierarchy.
//!
//! runc makes the whole path and removes only its end. The parents that were there before (a
//! kubelet may run on this machine) stay; those that came with this program go with its last pod.

use std::{
    collections::BTreeSet,
    fs, io,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use anyhow::Result;

use crate::{machine::cgroup_hierarchies, sandbox::locked, wait::wait_until};

/// Parents, as folders in a hierarchy, that did not exist before this program made them.
static OWN_PARENTS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Held while a cgroup is made: its parents must not be removed under the maker's hands.
static MAKING: RwLock<()> = RwLock::new(());

/// To be called before the cgroup `path` (from a hierarchy's root) comes to be, and to be held
/// until it is there.
pub(crate) fn about_to_make(path: &Path) -> Result<RwLockReadGuard<'static, ()>> {
    let making = MAKING.read().unwrap_or_else(PoisonError::into_inner);
    let mut own = locked(&OWN_PARENTS);
    for hierarchy in cgroup_hierarchies()? {
        let parents = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        own.extend(parents.map(|parent| hierarchy.mount.join(parent)).filter(|it| !it.exists()));
    }
    Ok(making)
}

/// Removes the cgroup `path` from all hierarchies, and parents of ours that nobody uses any more.
///
/// # Errors
/// If it still has processes when `deadline` has passed.
pub(crate) fn remove(path: &Path, deadline: Duration) -> Result<()> {
    for hierarchy in cgroup_hierarchies()? {
        let folder = hierarchy.mount.join(path);
        // A process that was killed leaves its cgroup only after it was reaped.
        wait_until(deadline, &format!("cgroup {folder:?} is empty"), || {
            Ok(remove_with_children(&folder).is_ok().then_some(()))
        })?;
    }
    let _nobody_is_making = MAKING.write().unwrap_or_else(PoisonError::into_inner);
    // Deepest first: in this order a folder comes after the one that holds it.
    locked(&OWN_PARENTS).iter().rev().for_each(|parent| {
        // Another pod of this program may be in it; its end removes it.
        let _ = fs::remove_dir(parent);
    });
    Ok(())
}

/// Removes a cgroup and those below it, deepest first; its files go with it.
fn remove_with_children(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_with_children(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

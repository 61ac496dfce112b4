//! What this machine is: its cgroup hierarchies, and what keeps real containers from running on it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Whether it is the unified one (cgroup v2).
    pub unified: bool,
}

/// All cgroup hierarchies of this machine: one on v2, several on v1 and in hybrid set-ups.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn cgroup_hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .context("could not read /proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(hierarchy).collect())
}

/// One line of mountinfo: `id parent dev root mount-point options … - type source options`.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (place, kind) = line.split_once(" - ")?;
    let unified = match kind.split(' ').next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    Some(Hierarchy { mount: place.split(' ').nth(4)?.into(), unified })
}

/// Why no real container can be started here; `None` if one can.
pub fn obstacle_to_containers() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("containers, mounts and cgroups need root".to_owned());
    }
    for program in ["runc", "busybox"] {
        if find_program(program).is_none() {
            return Some(format!("{program} is not installed"));
        }
    }
    match cgroup_hierarchies() {
        Ok(found) if found.is_empty() => Some("no cgroup hierarchy is mounted".to_owned()),
        Ok(_) => None,
        Err(error) => Some(format!("{error:#}")),
    }
}

/// Finds a program on `PATH` or in the administrator's folders, which a user's `PATH` may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// 32 hexadecimal digits in the shape of a UUID, as the kernel draws them.
pub(crate) fn random_uuid() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/uuid");
    let uuid = fs::read_to_string(path).with_context(|| format!("could not read {path:?}"))?;
    Ok(uuid.trim().to_owned())
}

/// 64 hexadecimal digits, the shape of a container id.
pub(crate) fn random_container_id() -> Result<String> {
    Ok(format!("{}{}", random_uuid()?, random_uuid()?).replace('-', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_cgroup_mount_is_found_and_nothing_else() {
        let cases = [
            ("30 22 0:26 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw", Some(true)),
            ("40 31 0:37 / /sys/fs/cgroup rw,relatime - cgroup cgroup rw,memory", Some(false)),
            ("31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755", None),
            ("no mountinfo line", None),
        ];
        for (line, unified) in cases {
            let expected =
                unified.map(|unified| Hierarchy { mount: "/sys/fs/cgroup".into(), unified });
            assert_eq!(hierarchy(line), expected, "{line}");
        }
    }
}

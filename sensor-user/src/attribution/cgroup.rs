//! Cgroup paths to containers: a pure parser of what kubelets and runtimes write.
//!
//! Grammar: `[outer]/[cgroup root]/kubepods[/burstable|/besteffort]/pod<uid>/<container>[/nested]`,
//! with one slice name per level under the systemd driver (kubernetes `pkg/kubelet/cm`,
//! containerd `getCgroupsPath`, cri-o `cgmgr`). Names come from the kernel and may have been chosen
//! by whoever may create cgroups: nothing here trusts them, reads a file or fails.

use super::ContainerRef;

/// Hexadecimal digits of a container id, whatever the runtime.
const CONTAINER_ID_LEN: usize = 64;

/// A container and how many path components lead to its cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The container, or the pod if the process runs in the pod's own cgroup.
    pub container: ContainerRef,
    /// Components from the root to the container's cgroup (the pod's if there is no container).
    pub depth: usize,
}

/// Finds the container in path components, root first.
///
/// `root` is the kubelet's cgroup root if known. Below it the *outermost* pod counts: what lies
/// deeper was made inside that pod's containers, and a container that may create cgroups must not
/// be able to call itself another pod. Elsewhere the innermost counts, since this node may itself
/// run in a pod of another cluster.
pub fn locate(components: &[&str], root: Option<&[&str]>) -> Option<Located> {
    let below = root.filter(|root| components.starts_with(root)).map(<[_]>::len);
    let mut pods = components
        .iter()
        .enumerate()
        .skip(below.unwrap_or(0))
        .filter_map(|(index, name)| Some((index, pod(name)?)));
    let (index, (pod_uid, inline)) = if below.is_some() { pods.next() } else { pods.next_back() }?;
    let (named, depth) = match inline {
        Some(tail) => (driver_mismatch(tail), index + 1),
        None => (components.get(index + 1).and_then(|name| container(name)), index + 2),
    };
    Some(match named {
        Some((id, runtime)) => Located {
            container: ContainerRef {
                pod_uid,
                container_id: Some(id.to_owned()),
                runtime: runtime.map(str::to_owned),
            },
            depth,
        },
        None => Located {
            container: ContainerRef { pod_uid, container_id: None, runtime: None },
            depth: index + 1,
        },
    })
}

/// The components of a cgroup path, root first.
pub fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

/// Paths in the text of `/proc/<pid>/cgroup`, v1 (`4:pids:/…`) and v2 (`0::/…`).
pub fn proc_paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        // Paths hold colons where drivers mismatch: only the first two separate.
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(|path| path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// `pod<uid>`, or a slice of that name: the uid, and what follows `.slice` in the same component.
fn pod(name: &str) -> Option<(String, Option<&str>)> {
    match name.split_once(".slice") {
        None => uid(name.strip_prefix("pod")?).map(|uid| (uid, None)),
        Some((slice, tail)) => {
            // A systemd slice repeats its parents' names; dashes separate, so the uid has none.
            let escaped = slice.rsplit('-').next()?.strip_prefix("pod")?;
            let uid = uid(&escaped.replace('_', "-"))?;
            Some((uid, (!tail.is_empty()).then_some(tail)))
        }
    }
}

/// A pod uid: a UUID, or the 32 digits that stand for a static pod's manifest.
fn uid(text: &str) -> Option<String> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let shape = matches!(lengths.as_slice(), [32] | [8, 4, 4, 4, 12]);
    (shape && groups.iter().all(|group| is_hex(group))).then(|| text.to_owned())
}

/// A child of the pod's cgroup: container id and runtime, `None` if it is no container.
fn container(name: &str) -> Option<(&str, Option<&'static str>)> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    if is_container_id(name) {
        return Some((name, None));
    }
    let (prefix, id) = name.rsplit_once('-')?;
    // CRI-O keeps its monitor `conmon` beside the container, under the container's own id.
    (is_container_id(id) && !prefix.ends_with("conmon")).then(|| (id, runtime(prefix)))
}

/// `:cri-containerd:<id>`: an OCI `cgroupsPath` meant for systemd, taken as a directory name by a
/// runtime that uses the cgroupfs driver.
fn driver_mismatch(tail: &str) -> Option<(&str, Option<&'static str>)> {
    let (prefix, id) = tail.strip_prefix(':')?.split_once(':')?;
    is_container_id(id).then(|| (id, runtime(prefix)))
}

fn runtime(prefix: &str) -> Option<&'static str> {
    match prefix {
        "cri-containerd" => Some("containerd"),
        "crio" => Some("cri-o"),
        "docker" => Some("docker"),
        _ => None,
    }
}

fn is_container_id(text: &str) -> bool {
    text.len() == CONTAINER_ID_LEN && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;

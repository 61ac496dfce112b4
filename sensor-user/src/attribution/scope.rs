//! Which pods are this node's. Where several nodes share a kernel (kind, test clusters) each one's
//! agent sees the opens of all, and counts those below its own kubelet's cgroup root (`cgroupRoot` of
//! a kubelet's configuration: the group that it makes `kubepods` in). Pure. Called by
//! [`Attributor`](super::Attributor).

use super::cgroup;

/// The kubelet whose pods are this node's: the group that holds its `kubepods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// Names above the kubelet's `kubepods`, the nearest first.
    above: Vec<String>,
    /// Whether `above` reaches the root; the kernel side names six levels.
    complete: bool,
}

impl Scope {
    /// As an operator says it, `/node-a`.
    pub(super) fn below(path: &str) -> Self {
        Self::of(&cgroup::components(path), true)
    }

    /// From the agent's own cgroup; `None` if the agent runs in no pod.
    pub(super) fn beside(path: &str, complete: bool) -> Option<Self> {
        let components = cgroup::components(path);
        cgroup::locate(&components, None)?;
        // The innermost: this node may itself run in a pod of another cluster.
        let place = components.iter().rposition(|name| holds_pods(name))?;
        Some(Self::of(components.get(..place)?, complete))
    }

    fn of(above: &[&str], complete: bool) -> Self {
        Self { above: above.iter().rev().map(|name| (*name).to_owned()).collect(), complete }
    }

    /// The group from the root, if all of it is known.
    pub(super) fn root(&self) -> Option<Vec<&str>> {
        self.complete.then(|| self.above.iter().rev().map(String::as_str).collect())
    }

    /// Whether a pod's cgroup is certainly another node's. `path_complete`: it starts at the root.
    pub(super) fn excludes(&self, path: &str, path_complete: bool) -> bool {
        let components = cgroup::components(path);
        let mut places = components
            .iter()
            .enumerate()
            .filter(|(_, name)| holds_pods(name))
            .filter_map(|(place, _)| components.get(..place))
            .peekable();
        let agrees = |names: &[&str]| {
            let both_complete = self.complete && path_complete;
            (!both_complete || names.len() == self.above.len())
                && names.iter().rev().zip(&self.above).all(|(a, b)| a == b)
        };
        places.peek().is_some() && !places.any(agrees)
    }
}

/// Whether this is the group that a kubelet keeps all pods in (kubernetes `pkg/kubelet/cm`): a slice
/// repeats its parents' names.
fn holds_pods(name: &str) -> bool {
    match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit('-').next() == Some("kubepods"),
        None => name == "kubepods",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "podeb052b63-ea96-4728-ab4a-64ab3babccd7";
    const SLICE: &str = "kubelet-kubepods-podeb052b63_ea96_4728_ab4a_64ab3babccd7.slice";

    /// The scope of an agent whose own cgroup is below `node`, and whether another's is outside.
    #[track_caller]
    fn check(own: &str, own_complete: bool, cases: &[(&str, bool, bool)]) {
        let scope = Scope::beside(own, own_complete).unwrap();
        for (path, complete, excluded) in cases {
            assert_eq!(scope.excludes(path, *complete), *excluded, "{own}: {path} {complete}");
        }
    }

    #[test]
    fn pods_of_the_agents_own_kubelet_are_in_scope_others_are_not() {
        check(
            &format!("/node-a/kubepods/burstable/{POD}"),
            true,
            &[
                (&format!("/node-a/kubepods/besteffort/{POD}/x"), true, false),
                (&format!("/node-a/kubepods/{POD}"), true, false),
                (&format!("/node-b/kubepods/{POD}"), true, true),
                (&format!("/kubepods/{POD}"), true, true),
                // Cut at the top: what is known does not contradict.
                (&format!("/kubepods/burstable/{POD}"), false, false),
                // Nobody's that is known.
                ("/user.slice", true, false),
            ],
        );
        // A plain node: what runs in its containers is its own, a kind node beside it is not.
        check(
            &format!("/kubepods/{POD}"),
            true,
            &[
                (&format!("/kubepods/{POD}/inner/kubepods/{POD}"), true, false),
                (&format!("/docker/1234/kubelet/kubepods/{POD}"), true, true),
            ],
        );
    }

    #[test]
    fn kind_nodes_are_told_apart_although_the_top_of_their_paths_is_cut() {
        let own = format!("/docker-aa.scope/kubelet.slice/kubelet-kubepods.slice/{SLICE}");
        check(
            &own,
            false,
            &[
                (&own, false, false),
                (&format!("/kubelet.slice/kubelet-kubepods.slice/{SLICE}"), false, false),
                (
                    &format!("/docker-bb.scope/kubelet.slice/kubelet-kubepods.slice/{SLICE}"),
                    false,
                    true,
                ),
            ],
        );
    }

    #[test]
    fn a_group_set_by_hand_is_the_one_that_holds_kubepods() {
        let scope = Scope::below("/vm/node-a/");
        assert_eq!(scope.root(), Some(vec!["vm", "node-a"]));
        for (path, complete, excluded) in [
            ("/vm/node-a/kubepods", true, false),
            ("/vm/node-b/kubepods", true, true),
            ("/node-a/kubepods", true, true),
            // Cut at the top.
            ("/node-a/kubepods", false, false),
            ("/node-b/kubepods", false, true),
            ("/kubepods", false, false),
        ] {
            let path = format!("{path}/{POD}");
            assert_eq!(scope.excludes(&path, complete), excluded, "{path} {complete}");
        }
        // The root itself: a plain node that has kind nodes beside it.
        let scope = Scope::below("/");
        assert!(!scope.excludes(&format!("/kubepods/{POD}"), true));
        assert!(scope.excludes(&format!("/docker/1234/kubelet/kubepods/{POD}"), true));
    }

    #[test]
    fn an_agent_outside_pods_has_no_scope() {
        for path in ["", "/system.slice/tokentrail.service", "/kubepods"] {
            assert_eq!(Scope::beside(path, true), None, "{path}");
        }
    }
}

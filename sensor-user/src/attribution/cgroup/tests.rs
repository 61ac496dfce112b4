//! Every shape of cgroup path that is known from clusters, and the parser's totality.

use proptest::prelude::*;

use super::{ContainerRef, Located, components, locate, proc_paths};

const UID: &str = "eb052b63-ea96-4728-ab4a-64ab3babccd7";
const UID_: &str = "eb052b63_ea96_4728_ab4a_64ab3babccd7";
const STATIC: &str = "09a70ae9ccc491e651e5c773579b3490";
const ID: &str = "5694f82f44168cc048e014ae14d1b0c8ef673bec49f329dc169911ea638f63c2";
const OUTER: &str = "3350ade49ac5b2b8d1f4a7b6a0c3d2e1f0998877665544332211ffeeddccbbaa";

/// Fills the names of a pattern and parses it, without a known cgroup root.
fn parse(pattern: &str) -> Option<Located> {
    let path = pattern
        .replace("<uid_>", UID_)
        .replace("<uid>", UID)
        .replace("<static>", STATIC)
        .replace("<id>", ID)
        .replace("<outer>", OUTER);
    locate(&components(&path), None)
}

fn container(pod_uid: &str, runtime: Option<&str>) -> ContainerRef {
    ContainerRef {
        pod_uid: pod_uid.into(),
        container_id: Some(ID.into()),
        runtime: runtime.map(str::to_owned),
    }
}

#[test]
fn each_known_set_up_names_its_container() {
    let containerd = Some("containerd");
    let crio = Some("cri-o");
    let docker = Some("docker");
    let table = [
        // systemd driver, containerd: best effort, burstable, guaranteed
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/cri-containerd-<id>.scope",
            UID,
            containerd,
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<id>.scope",
            UID,
            containerd,
        ),
        ("/kubepods.slice/kubepods-pod<uid_>.slice/cri-containerd-<id>.scope", UID, containerd),
        // cgroupfs driver, containerd: best effort, guaranteed
        ("/kubepods/besteffort/pod<uid>/<id>", UID, None),
        ("/kubepods/pod<uid>/<id>", UID, None),
        // CRI-O: systemd, with crun's subgroup, cgroupfs
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/crio-<id>.scope",
            UID,
            crio,
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/crio-<id>.scope/container",
            UID,
            crio,
        ),
        ("/kubepods/besteffort/pod<uid>/crio-<id>", UID, crio),
        // cri-dockerd: systemd, cgroupfs
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/docker-<id>.scope",
            UID,
            docker,
        ),
        ("/kubepods/burstable/pod<uid>/<id>", UID, None),
        // kubelet systemd, runtime cgroupfs
        (
            "/system.slice/containerd.service/kubepods-burstable-pod<uid_>.slice:cri-containerd:<id>",
            UID,
            containerd,
        ),
        ("/kubepods-burstable-pod<uid_>.slice:cri-containerd:<id>", UID, containerd),
        // kind, seen from the host: since 1.24 with systemd, before with cgroupfs
        (
            "/system.slice/docker-<outer>.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod<uid_>.slice/cri-containerd-<id>.scope",
            UID,
            containerd,
        ),
        (
            "/docker/<outer>/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod<uid_>.slice/cri-containerd-<id>.scope",
            UID,
            containerd,
        ),
        (
            "/system.slice/docker-<outer>.scope/kubelet/kubepods/burstable/pod<static>/<id>",
            STATIC,
            None,
        ),
        // minikube with the docker driver
        (
            "/system.slice/docker-<outer>.scope/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/docker-<id>.scope",
            UID,
            docker,
        ),
        ("/system.slice/docker-<outer>.scope/kubepods/besteffort/pod<uid>/<id>", UID, None),
        // a cgroup root of the operator's choice
        ("/node-a/kubepods/besteffort/pod<uid>/<id>", UID, None),
        // static pods under the systemd driver
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<static>.slice/cri-containerd-<id>.scope",
            STATIC,
            containerd,
        ),
        // groups made inside a container: systemd, a nested docker
        (
            "/kubepods.slice/kubepods-pod<uid_>.slice/docker-<id>.scope/system.slice/ssh.service",
            UID,
            docker,
        ),
        ("/kubepods/burstable/pod<uid>/<id>/kube-proxy", UID, None),
        ("/kubepods/burstable/pod<uid>/<id>/docker/<outer>", UID, None),
        // a node that runs in another cluster's pod: the innermost pod is this node's
        ("/kubepods/pod<static>/<outer>/kubelet/kubepods/burstable/pod<uid>/<id>", UID, None),
    ];
    for (pattern, pod_uid, runtime) in table {
        let located = parse(pattern).map(|located| located.container);
        assert_eq!(located, Some(container(pod_uid, runtime)), "{pattern}");
    }
}

#[test]
fn what_runs_beside_a_pods_containers_is_in_the_pod_but_in_no_container() {
    for pattern in [
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice",
        "/kubepods/besteffort/pod<uid>",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/crio-conmon-<id>.scope",
        "/kubepods/besteffort/pod<uid>/crio-conmon-<id>",
        "/kubepods/besteffort/pod<uid>/kata_overhead",
        // The kernel's name was cut: part of an id is no id.
        "/kubepods-burstable-pod<uid_>.slice:cri-containerd:5694f82f44168cc",
    ] {
        let located = parse(pattern).unwrap();
        assert_eq!(located.container.pod_uid, UID, "{pattern}");
        assert_eq!(located.container.container_id, None, "{pattern}");
    }
}

#[test]
fn what_belongs_to_no_pod_is_the_hosts() {
    for pattern in [
        "",
        "/",
        "/init.scope",
        "/podruntime/kubelet",
        "/podruntime/runtime",
        "/system/apid",
        "/init",
        "/user.slice/user-0.slice/session-1.scope",
        "/kubepods.slice/kubepods-besteffort.slice",
        "/system.slice/docker-<outer>.scope",
        "/system.slice/docker-<outer>.scope/kubelet.slice/kubelet.service",
        "/docker/<outer>/system.slice/containerd.service",
        "/system.slice/docker-<outer>.scope/kube-proxy",
        // Near misses.
        "/kubepods/besteffort/podcast/<id>",
        "/kubepods/besteffort/pod<uid_>/<id>",
        "/kubepods/besteffort/pod<uid>0/<id>",
        "/kubepods.slice/kubepods-xpod<uid_>.slice/<id>",
        "/kubepods.slice/kubepods-podeb052b63ea964728_ab4a_64ab3babccd7.slice/<id>",
    ] {
        assert_eq!(parse(pattern), None, "{pattern}");
    }
}

#[test]
fn the_depth_leads_to_the_containers_own_cgroup() {
    for (pattern, depth) in [
        ("/kubepods/pod<uid>/<id>", 3),
        ("/kubepods/pod<uid>/<id>/docker/<outer>", 3),
        ("/kubepods/pod<uid>", 2),
        ("/kubepods/pod<uid>/crio-conmon-<id>", 2),
        ("/system.slice/containerd.service/kubepods-pod<uid_>.slice:cri-containerd:<id>/a", 3),
    ] {
        assert_eq!(parse(pattern).unwrap().depth, depth, "{pattern}");
    }
}

#[test]
fn below_a_known_root_a_container_cannot_name_itself_another_pod() {
    let path = format!("/node-a/kubepods/pod{UID}/{ID}/kubepods/pod{STATIC}/{OUTER}");
    let uid_below = |root: &[&str]| {
        locate(&components(&path), Some(root)).map(|located| located.container.pod_uid)
    };
    assert_eq!(uid_below(&["node-a"]).as_deref(), Some(UID));
    assert_eq!(uid_below(&["node-b"]).as_deref(), Some(STATIC), "not below it: innermost");
}

#[test]
fn proc_cgroup_lines_of_both_versions_yield_their_paths() {
    let text = "12:cpu,cpuacct:/kubepods/pod1\n4:pids:/kubepods/pod1\n1:name=systemd:/x (deleted)\n\
                0::/kubepods-pod1.slice:cri-containerd:abc\nnonsense\n";
    assert_eq!(
        proc_paths(text).collect::<Vec<_>>(),
        ["/kubepods/pod1", "/kubepods/pod1", "/x", "/kubepods-pod1.slice:cri-containerd:abc"]
    );
}

proptest! {
    #[test]
    fn no_path_makes_the_parser_panic(path in r"(/([a-f0-9_:.-]|pod|slice|scope|\PC){0,70}){0,9}") {
        if let Some(located) = locate(&components(&path), None) {
            prop_assert!(located.depth <= components(&path).len());
        }
        let _ = locate(&components(&path), Some(&[]));
        let _ = proc_paths(&path).count();
    }

    #[test]
    fn every_uid_and_id_survives_both_drivers(
        uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}",
        id in "[0-9a-f]{64}",
    ) {
        let escaped = uid.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{uid}/{id}"),
            format!("/kubepods.slice/kubepods-pod{escaped}.slice/cri-containerd-{id}.scope/init.scope"),
        ] {
            let located = locate(&components(&path), None).unwrap().container;
            prop_assert_eq!(&located.pod_uid, &uid);
            prop_assert_eq!(located.container_id.as_deref(), Some(id.as_str()));
        }
    }
}

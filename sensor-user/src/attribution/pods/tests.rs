//! Objects as the API writes them, the table that they make, and its bounds.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{object::PodObject, *};

const ID: &str = "5694f82f44168cc048e014ae14d1b0c8ef673bec49f329dc169911ea638f63c2";
const ID_BEFORE: &str = "0000f82f44168cc048e014ae14d1b0c8ef673bec49f329dc169911ea638f63c2";

fn decode(object: Value) -> Option<Pod> {
    let object: PodObject = serde_json::from_value(object).unwrap();
    object::pod(object, &BTreeSet::from(["app".to_owned()]))
}

/// A pod with one container of each kind, as a 1.34 API server writes it (other fields left out).
fn full() -> Value {
    let status = |name: &str, id: &str| {
        json!({"name": name, "containerID": format!("containerd://{id}"), "ready": true,
               "imageID": "registry.test/box@sha256:aa", "image": "registry.test/box:1",
               "state": {"running": {"startedAt": "2026-11-21T20:29:11Z"}}, "lastState": {}})
    };
    let mut restarted = status("main", ID);
    restarted["lastState"] =
        json!({"terminated": {"containerID": format!("containerd://{ID_BEFORE}"), "exitCode": 1}});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "uid": "u1", "namespace": "shop", "name": "cart-0", "resourceVersion": "7",
            "labels": {"app": "cart", "secret": "s"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Thing", "name": "t", "uid": "x"},
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "cart", "uid": "y", "controller": true},
            ],
        },
        "spec": {
            "serviceAccountName": "cart", "nodeName": "node-a",
            "containers": [{
                "name": "main", "image": "registry.test:5000/box:1",
                "livenessProbe": {"exec": {"command": ["cat", "/token"]}, "periodSeconds": 1},
                "readinessProbe": {"exec": {"command": ["cat", "/token"]}},
                "startupProbe": {"httpGet": {"path": "/", "port": 80}},
                "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "bye"]}}},
            }],
            "initContainers": [
                {"name": "first", "image": "box"},
                {"name": "mesh", "image": "mesh@sha256:bb", "restartPolicy": "Always"},
            ],
            "ephemeralContainers": [{"name": "debugger", "image": "box", "targetContainerName": "main"}],
            "volumes": [
                {"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt",
                                   "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                ]}},
                {"name": "tls", "secret": {"secretName": "web", "defaultMode": 420}},
            ],
        },
        "status": {
            "phase": "Running", "hostIP": "10.90.0.1", "hostIPs": [{"ip": "10.90.0.1"}],
            "podIP": "10.88.0.3", "podIPs": [{"ip": "10.88.0.3"}, {"ip": "fd00::3"}],
            "containerStatuses": [restarted],
            "initContainerStatuses": [status("first", "f0"), status("mesh", "e0")],
        },
    })
}

fn pod(uid: &str) -> PodChange {
    let pod = Pod { uid: uid.into(), name: uid.into(), ..Pod::default() };
    PodChange::Present(Box::new(pod))
}

fn gone(uid: &str) -> PodChange {
    PodChange::Gone { uid: uid.into() }
}

fn at(seconds: i64) -> Micros {
    Micros::from_secs(seconds)
}

#[test]
fn an_object_becomes_what_alerts_and_grades_need() {
    let pod = decode(full()).unwrap();
    assert_eq!((&*pod.uid, &*pod.namespace, &*pod.name), ("u1", "shop", "cart-0"));
    assert_eq!((&*pod.service_account, pod.host_network), ("cart", false));
    assert_eq!(pod.owner, Some(Owner { kind: "StatefulSet".into(), name: "cart".into() }));
    assert_eq!(pod.labels, BTreeMap::from([("app".into(), "cart".into())]));
    assert_eq!(pod.ips, ["10.88.0.3".into(), "fd00::3".into()]);
    assert_eq!(pod.host_ips, ["10.90.0.1".into()]);
    let kinds: Vec<_> = pod.containers.iter().map(|it| (&*it.name, it.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("main", ContainerKind::Main),
            ("first", ContainerKind::Init),
            ("mesh", ContainerKind::Sidecar),
            ("debugger", ContainerKind::Ephemeral),
        ]
    );
    let main = pod.container(ID).unwrap();
    assert_eq!(main.digest.as_deref(), Some("sha256:aa"));
    assert_eq!(main.hooks.len(), 2, "the same probe twice is one: {:?}", main.hooks);
    assert_eq!(pod.container(ID_BEFORE), Some(main), "before its restart");
    let volumes: Vec<_> = pod.projected.iter().map(|it| (&*it.name, it.files.len())).collect();
    assert_eq!(volumes, [("kube-api-access-x", 2)]);
}

#[test]
fn an_object_with_almost_nothing_in_it_is_still_a_pod_but_not_without_a_uid() {
    let bare = |metadata| json!({"metadata": metadata, "spec": {}});
    let names = json!({"uid": "u", "namespace": "n", "name": "p"});
    assert_eq!(&*decode(bare(names)).unwrap().uid, "u");
    for metadata in [
        json!({"namespace": "n", "name": "p"}),
        json!({"uid": "", "namespace": "n", "name": "p"}),
        json!({"uid": "u", "name": "p"}),
    ] {
        assert_eq!(decode(bare(metadata.clone())), None, "{metadata}");
    }
    let old = json!({"metadata": {"uid": "u", "namespace": "n", "name": "p"}, "spec": {},
                     "status": {"hostIP": "10.0.0.1"}});
    assert_eq!(decode(old).unwrap().host_ips, ["10.0.0.1".into()], "before 1.28");
}

#[test]
fn an_image_has_a_name_and_perhaps_a_tag() {
    for (image, name, tag) in [
        ("nginx", "nginx", None),
        ("nginx:1.27", "nginx", Some("1.27")),
        ("registry.test:5000/a/b", "registry.test:5000/a/b", None),
        ("registry.test:5000/a/b:2", "registry.test:5000/a/b", Some("2")),
        ("a/b:2@sha256:cc", "a/b", Some("2")),
        ("a/b@sha256:cc", "a/b", None),
    ] {
        let mut object = full();
        object["spec"]["containers"][0]["image"] = image.into();
        let pod = decode(object).unwrap();
        assert_eq!(pod.container(ID).unwrap().image_name_and_tag(), (name, tag), "{image}");
    }
}

#[test]
fn a_list_decides_at_its_end_who_is_gone_and_deleted_pods_stay_for_a_while() {
    let mut pods = PodIndex::default();
    for change in [PodChange::Listing, pod("a"), pod("b"), PodChange::Listed] {
        pods.apply(change, at(0));
    }
    // A new list begins: until its end everything is there.
    pods.apply(PodChange::Listing, at(10));
    pods.apply(pod("b"), at(10));
    pods.forget(at(10_000));
    assert!(pods.pod("a").is_some() && pods.pod("b").is_some());
    pods.apply(PodChange::Listed, at(10));
    pods.forget(at(10 + 15 * 60));
    assert!(pods.pod("a").is_some(), "still within the quarter of an hour");
    pods.forget(at(11 + 15 * 60));
    assert!(pods.pod("a").is_none() && pods.pod("b").is_some());
    // Deleted and seen again by a list that was older: it is there again.
    pods.apply(gone("b"), at(2_000));
    pods.apply(pod("b"), at(2_001));
    pods.forget(at(9_000));
    assert!(pods.pod("b").is_some());
    pods.apply(gone("never-seen"), at(9_000));
}

#[test]
fn a_static_pod_is_found_by_both_its_uids() {
    let hash = "09a70ae9ccc491e651e5c773579b3490";
    let mut object = full();
    object["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash});
    let mut pods = PodIndex::default();
    pods.apply(PodChange::Present(Box::new(decode(object).unwrap())), at(0));
    assert_eq!(pods.pod(hash).unwrap().name, pods.pod("u1").unwrap().name);
    pods.apply(gone("u1"), at(0));
    pods.forget(at(1_000));
    assert!(pods.pod(hash).is_none());
}

#[test]
fn nobody_passes_for_another_pod_by_an_annotation() {
    let annotated = |hash: &str| {
        let mut object = full();
        object["metadata"]["uid"] = "attacker".into();
        object["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash});
        PodChange::Present(Box::new(decode(object).unwrap()))
    };
    let mut pods = PodIndex::default();
    let hash = |number: u32| format!("{number:032x}");
    pods.apply(pod("u1"), at(0));
    pods.apply(pod(&hash(1)), at(0));
    for claimed in ["u1", &hash(1), "not-a-hash"] {
        pods.apply(annotated(claimed), at(0));
        assert!(pods.pod(claimed).is_none_or(|pod| *pod.uid == *claimed), "{claimed}");
    }
    // Whoever has it first keeps it, and however often one changes it, it has one.
    let mut first = full();
    first["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash(2)});
    pods.apply(PodChange::Present(Box::new(decode(first).unwrap())), at(0));
    for number in 2..100 {
        pods.apply(annotated(&hash(number)), at(0));
    }
    assert_eq!(&*pods.pod(&hash(2)).unwrap().uid, "u1");
    assert_eq!(pods.aliases.len(), 2);
}

#[test]
fn a_pod_that_is_made_to_be_large_takes_little_and_many_of_them_are_refused() {
    let long = "x".repeat(1 << 20);
    let mut object = full();
    let main = object["spec"]["containers"][0].clone();
    object["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["sh", long]}});
    object["spec"]["containers"][0]["image"] = long.as_str().into();
    for _ in 0..500 {
        object["spec"]["containers"].as_array_mut().unwrap().push(main.clone());
    }
    let token = json!({"serviceAccountToken": {"path": "x".repeat(500)}});
    let volume = json!({"name": "v", "projected": {"sources": vec![token; 3]}});
    object["spec"]["volumes"] = json!(vec![volume; 500]);
    let pod = decode(object).unwrap();
    assert!(pod.bytes() < 64 << 10, "{}", pod.bytes());
    assert_eq!(&*pod.containers[0].image, "x".repeat(512));
    let mut pods = PodIndex::default();
    for number in 0..2_000 {
        let uid = format!("{number}").into();
        pods.apply(PodChange::Present(Box::new(Pod { uid, ..pod.clone() })), at(0));
    }
    assert!(pods.pods.len() < 2_000 && pods.bytes <= MAX_BYTES, "{}", pods.bytes);
    for number in 0..2_000 {
        pods.apply(gone(&format!("{number}")), at(0));
    }
    pods.forget(at(10_000));
    assert_eq!((pods.pods.len(), pods.bytes), (0, 0));
}

#[test]
fn the_one_container_without_an_id_is_the_one_that_was_just_started() {
    let mut pods = PodIndex::default();
    let put = |pods: &mut PodIndex, object: Value| {
        pods.apply(PodChange::Present(Box::new(decode(object).unwrap())), at(0));
    };
    put(&mut pods, full());
    assert!(pods.is_ephemeral("u1", "0a"), "only the debugger has no id");
    assert_eq!(&*pods.pod("u1").unwrap().container("0a").unwrap().name, "debugger");
    assert!(!pods.is_ephemeral("u1", ID) && !pods.is_ephemeral("unknown", "0a"));
    let mut starting = full();
    starting["status"]["containerStatuses"] = json!([]);
    put(&mut pods, starting);
    assert!(!pods.is_ephemeral("u1", "0a"), "it may as well be the main one");
    let debugger =
        |name: &str| json!({"name": name, "image": "box", "targetContainerName": "main"});
    let mut two = full();
    two["spec"]["ephemeralContainers"] = json!([debugger("one"), debugger("two")]);
    put(&mut pods, two.clone());
    assert!(pods.is_ephemeral("u1", "0a"), "whichever of the two");
    assert_eq!(pods.pod("u1").unwrap().container("0a"), None);
    // Main restarts while a debugger waits for an image that does not come.
    let waiting = json!({"name": "debugger", "state": {"waiting": {"reason": "ImagePullBackOff"}}});
    let mut stuck = full();
    stuck["status"]["ephemeralContainerStatuses"] = json!([waiting]);
    put(&mut pods, stuck);
    assert!(!pods.is_ephemeral("u1", "0a"));
    let mut reported = full();
    reported["status"]["ephemeralContainerStatuses"] =
        json!([{"name": "debugger", "containerID": "containerd://0a"}]);
    put(&mut pods, reported);
    assert!(pods.is_ephemeral("u1", "0a") && !pods.is_ephemeral("u1", "0b"));
}

#[test]
fn the_kubelets_own_commands_are_known_by_container_where_that_is_known() {
    let mut pods = PodIndex::default();
    pods.apply(PodChange::Present(Box::new(decode(full()).unwrap())), at(0));
    let words = |text: &str| -> Vec<Vec<u8>> {
        text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
    };
    for (container, command, expected) in [
        (Some(ID), "cat /token", true),
        (Some(ID), "sh -c bye", true),
        (Some(ID), "cat", false),
        (Some(ID), "cat /token /other", false),
        (Some("f0"), "cat /token", false),
        // The kubelet has not reported this id yet: it can only be the debugger's.
        (Some("0a"), "cat /token", false),
        (None, "cat /token", true),
    ] {
        let found = pods.is_hook("u1", container, &words(command));
        assert_eq!(found, expected, "{container:?} {command}");
    }
    assert!(!pods.is_hook("u2", Some(ID), &words("cat /token")));
    // A script's process is its interpreter's.
    let mut scripted = full();
    scripted["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["/probe.sh", "--fast"]}});
    scripted["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["probe"]}});
    pods.apply(PodChange::Present(Box::new(decode(scripted).unwrap())), at(0));
    for (command, expected) in [
        ("/probe.sh --fast", true),
        ("/bin/sh /probe.sh --fast", true),
        ("/usr/bin/env bash /probe.sh --fast", true),
        ("/bin/sh /probe.sh", false),
        ("/bin/sh /tmp/probe.sh --fast", false),
        ("/bin/sh -c -x /probe.sh --fast", false),
        ("/bin/sh /usr/local/bin/probe", true),
        ("/bin/sh /usr/local/bin/otherprobe", false),
        ("/bin/sh", false),
    ] {
        assert_eq!(pods.is_hook("u1", Some(ID), &words(command)), expected, "{command}");
    }
    let mut variables = full();
    let main = &mut variables["spec"]["containers"][0];
    main["env"] = json!([{"name": "PORT", "value": "80"}, {"name": "FROM", "valueFrom": {}}]);
    main["livenessProbe"] =
        json!({"exec": {"command": ["p", "$(PORT)", "a$$(PORT)$(NO)$(FROM)$(", "$x$"]}});
    main["lifecycle"] = json!({"preStop": {"exec": {"command": ["p", "$(PORT)"]}}});
    pods.apply(PodChange::Present(Box::new(decode(variables).unwrap())), at(0));
    assert!(pods.is_hook("u1", Some(ID), &words("p 80 a$(PORT)$(NO)$( $x$")));
    assert!(pods.is_hook("u1", Some(ID), &words("p $(PORT)")), "hooks are run as they are");
    assert!(!pods.is_hook("u1", Some(ID), &words("p 80")));
    let mut starting = full();
    starting["status"] = json!({});
    pods.apply(PodChange::Present(Box::new(decode(starting).unwrap())), at(0));
    assert!(pods.is_hook("u1", Some(ID), &words("cat /token")), "a startup probe runs at once");
}

#[test]
fn the_table_is_bounded_and_deleted_pods_give_way_first() {
    let mut pods = PodIndex::default();
    for number in 0..MAX_PODS {
        pods.apply(pod(&number.to_string()), at(0));
    }
    pods.apply(pod("too-many"), at(0));
    assert!(pods.pod("too-many").is_none());
    pods.apply(gone("5"), at(2));
    pods.apply(gone("3"), at(1));
    pods.apply(pod("fits"), at(3));
    assert!(pods.pod("fits").is_some() && pods.pod("3").is_none() && pods.pod("5").is_some());
    assert_eq!(pods.pods.len(), MAX_PODS);
}

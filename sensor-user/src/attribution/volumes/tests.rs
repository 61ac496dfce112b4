//! Real mountinfo lines, and a volume map over a made-up node and over the kernel's own mounts.

use proptest::prelude::*;

use super::*;
use crate::attribution::{
    fixture::{Node, OTHER_POD, POD},
    pods::{Pod, PodChange, ProjectedFile},
};

const NOW: Micros = Micros(5_000_000);

fn parse(line: &str) -> Option<VolumeMount> {
    let roots = [PathBuf::from("/var/lib/kubelet"), PathBuf::from("/srv/my kubelet")];
    parse_mount(line.as_bytes(), &roots)
}

fn map(node: &Node) -> (VolumeMap, AttributionMetrics) {
    let metrics = AttributionMetrics::default();
    let roots = vec!["/var/lib/kubelet".into()];
    (VolumeMap::open(&node.path("proc/1"), roots, metrics.clone()).unwrap(), metrics)
}

fn pod_on(map: &mut VolumeMap, s_dev: u32) -> Option<String> {
    map.lookup(s_dev, NOW, &PodIndex::default()).map(|volume| volume.pod_uid.clone())
}

/// The changed devices in their order, where pods are as told.
fn changed(map: &mut VolumeMap, pods: &PodIndex) -> Option<Vec<u32>> {
    map.take_changed_devices(pods).map(|mut devices| {
        devices.sort_unstable();
        devices
    })
}

/// An index in which a pod's volume has this file.
fn index(pod: &str, volume: &str, path: &str, file: Option<TokenFile>) -> PodIndex {
    let files = vec![ProjectedFile { path: path.into(), file }];
    let projected = vec![Projected { name: volume.into(), files, has_secret: false }];
    let pod = Pod { uid: pod.into(), projected, ..Pod::default() };
    let mut pods = PodIndex::default();
    pods.apply(PodChange::Present(Box::new(pod)), NOW);
    pods
}

#[test]
fn tmpfs_volumes_of_the_kubelets_are_found_in_mountinfo() {
    let projected = "kubernetes.io~projected/kube-api-access-x2v9d";
    for (line, expected) in [
        (
            format!(
                "1531 27 0:217 / /var/lib/kubelet/pods/{POD}/volumes/{projected} rw,relatime shared:655 - tmpfs tmpfs rw,size=1k"
            ),
            Some((217, "kube-api-access-x2v9d", VolumeKind::Projected)),
        ),
        (
            format!(
                "1531 27 1:5 / /var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~secret/sa rw - tmpfs tmpfs rw"
            ),
            Some((1 << 20 | 5, "sa", VolumeKind::Secret)),
        ),
        (
            format!(
                "1531 27 0:217 / /srv/my\\040kubelet/pods/{POD}/volumes/{projected} rw shared:1 master:2 propagate_from:3 - tmpfs tmpfs rw"
            ),
            Some((217, "kube-api-access-x2v9d", VolumeKind::Projected)),
        ),
    ] {
        let mount = parse(&line).map(|mount| (mount.s_dev, mount.volume));
        let expected = expected.map(|(s_dev, name, kind)| {
            (s_dev, Volume { pod_uid: POD.to_owned(), name: name.to_owned(), kind })
        });
        assert_eq!(mount, expected, "{line}");
    }
}

#[test]
fn other_mounts_are_no_volumes() {
    for line in [
        "",
        "garbage",
        "22 27 0:21 / /proc rw,relatime - proc proc rw",
        "27 1 254:0 / / rw - ext4 /dev/vda rw",
        // Another plugin, a file system on disk, part of a volume, another root, no dash.
        &format!(
            "1 2 0:9 / /var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~empty-dir/x rw - tmpfs tmpfs rw"
        ),
        &format!(
            "1 2 0:9 / /var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/x rw - ext4 /dev/vda rw"
        ),
        &format!(
            "1 2 0:9 /..data /var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/x rw - tmpfs tmpfs rw"
        ),
        &format!("1 2 0:9 / /var/lib/kubelet/pods/{POD}/volume-subpaths/x/c/0 rw - tmpfs tmpfs rw"),
        &format!(
            "1 2 0:9 / /srv/kubelet/pods/{POD}/volumes/kubernetes.io~projected/x rw - tmpfs tmpfs rw"
        ),
        &format!(
            "1 2 0:9 / /var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/x rw tmpfs tmpfs rw"
        ),
        &format!(
            "1 2 0:x / /var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/x rw - tmpfs tmpfs rw"
        ),
    ] {
        assert_eq!(parse(line), None, "{line}");
    }
}

#[test]
fn octal_escapes_are_undone_and_other_backslashes_kept() {
    for (escaped, plain) in [
        (r"/a\040b\011c\134d\043", "/a b\tc\\d#"),
        (r"\9\04", r"\9\04"),
        (r"\777", r"\777"),
        (r"\", r"\"),
    ] {
        assert_eq!(unescape(escaped.as_bytes()), plain.as_bytes(), "{escaped}");
    }
}

#[test]
fn device_numbers_are_the_kernels() {
    assert_eq!(kernel_dev(136, 3), 0x0880_0003);
    assert_eq!(split_dev(0x0880_0003), (136, 3));
}

#[test]
fn volumes_count_by_the_names_in_them() {
    let node = Node::new();
    node.volume(POD, "projected/istio", 80, &["istio-token"]);
    node.volume(POD, "projected/unreadable", 81, &[]);
    node.volume(POD, "secret/sa", 82, &["token", "ca.crt", "namespace"]);
    node.volume(POD, "secret/tls", 83, &["token", "ca.crt"]);
    node.volume(POD, "secret/unreadable", 84, &[]);
    let (mut map, metrics) = map(&node);
    assert_eq!(changed(&mut map, &PodIndex::default()), Some(vec![77, 81, 82]));
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("tokentrail_attribution_volumes 3"), "{text}");
}

#[test]
fn a_volume_counts_by_its_pods_spec_once_that_is_known() {
    let node = Node::new();
    node.volume(POD, "projected/vault", 80, &["token"]);
    node.volume(OTHER_POD, "projected/custom", 81, &[]);
    let custom =
        format!("proc/1/root/var/lib/kubelet/pods/{OTHER_POD}/volumes/kubernetes.io~projected");
    node.write(&format!("{custom}/custom/key"), "");
    let (mut map, _) = map(&node);
    let none = PodIndex::default();
    assert_eq!(changed(&mut map, &none), Some(vec![77, 80]));
    assert!(!map.is_without_token(80, &none) && map.lookup(81, NOW, &none).is_none());
    // No mount has changed since.
    for (pods, expected) in [
        (index(OTHER_POD, "custom", "key", Some(TokenFile::Token)), Some(vec![77, 80, 81])),
        (index(POD, "vault", "token", None), Some(vec![77])),
        (index(POD, "elsewhere", "token", None), Some(vec![77, 80])),
        (none, None),
    ] {
        assert_eq!(changed(&mut map, &pods), None, "asked once a second");
        map.keep_up().unwrap();
        assert_eq!(changed(&mut map, &pods), expected);
    }
    let pods = index(POD, "vault", "token", None);
    assert!(map.lookup(80, NOW, &pods).is_none() && map.is_without_token(80, &pods));
    assert!(!map.is_without_token(77, &pods) && !map.is_without_token(4_000, &pods));
}

#[test]
fn a_volume_filled_after_its_mount_counts_from_then_on() {
    let node = Node::new();
    node.volume(OTHER_POD, "projected/late", 90, &["..2024"]);
    let (mut map, metrics) = map(&node);
    let none = PodIndex::default();
    assert_eq!(changed(&mut map, &none), Some(vec![77]), "all of them at first");
    assert_eq!(pod_on(&mut map, 90), None);
    assert_eq!(changed(&mut map, &none), None);
    let readings = metrics.refreshes(Refresh::Read);
    node.write(
        &format!("proc/1/root/var/lib/kubelet/pods/{OTHER_POD}/volumes/kubernetes.io~projected/late/token"),
        "",
    );
    assert_eq!(pod_on(&mut map, 90).as_deref(), Some(OTHER_POD));
    assert_eq!(changed(&mut map, &none), Some(vec![77, 90]));
    assert_eq!(metrics.refreshes(Refresh::Read), readings, "one directory was looked at, not all");
}

#[test]
fn a_miss_reads_the_mounts_again_but_a_flood_of_misses_does_not() {
    let node = Node::new();
    let (mut map, metrics) = map(&node);
    node.volume(OTHER_POD, "projected/new", 91, &["token"]);
    assert_eq!(pod_on(&mut map, 91).as_deref(), Some(OTHER_POD));
    let before = metrics.refreshes(Refresh::Read);
    for device in 1_000..2_000 {
        assert_eq!(pod_on(&mut map, device), None);
    }
    assert_eq!(metrics.refreshes(Refresh::Read) - before, u64::from(REFRESHES_PER_SECOND) - 1);
    assert_eq!(metrics.refreshes(Refresh::Limited), 1_001 - u64::from(REFRESHES_PER_SECOND));
    // The next second.
    node.volume(OTHER_POD, "projected/newer", 92, &["token"]);
    assert_eq!(pod_on(&mut map, 92), None);
    assert!(map.lookup(92, NOW + Micros::from_secs(1), &PodIndex::default()).is_some());
}

#[test]
fn mounts_that_cannot_be_read_are_one_clear_error() {
    let error = VolumeMap::open(Path::new("/nonexistent/1"), vec![], AttributionMetrics::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/1/mountinfo"), "{error}");
    assert!(error.contains("CAP_SYS_PTRACE"), "{error}");
}

proptest! {
    #[test]
    fn no_mountinfo_makes_the_parser_panic(
        text in prop::collection::vec(prop_oneof![any::<u8>(), Just(b' '), Just(b'\\'), Just(b'\n')], 0..300)
    ) {
        let _ = parse_mountinfo(&text, &[PathBuf::from("/")]);
        let _ = unescape(&text);
    }
}

#[test]
fn whose_volumes_are_mounted_is_known_unless_the_mounts_may_have_changed() {
    let node = Node::new();
    let (mut map, _) = map(&node);
    assert!(map.has_pod(POD) && !map.has_pod("another"));
    assert!(!map.knows_pods(NOW), "a copy of mountinfo does not tell of changes");
    map.watched = true;
    assert!(map.knows_pods(NOW));
    // More changes than there may be readings.
    map.limit = RateLimit { second: Some(5), used: REFRESHES_PER_SECOND };
    map.stale = true;
    assert!(!map.knows_pods(NOW));
    assert!(map.knows_pods(Micros(6_000_000)));
    map.pods.clear();
    assert!(!map.knows_pods(NOW), "no pod at all is rather a wrong directory");
}

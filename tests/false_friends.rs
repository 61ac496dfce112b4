//! Files that look like a service-account token's and are none, and what is done with a real one
//! without reading it: nothing of it is an open of a token.
//!
//! Silence is never waited for: an attack on another pod comes last, and once that has alerted, all
//! that came before has gone through the agent.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, CWD, Mode, OFlags, access, openat, stat},
    mount::MountFlags,
};
use serde_json::{Value, json};
use tokentrail_tests::{Container, Node, Pod, Sandbox, TOKEN_PATH, Workload, api};

/// Where the container finds the kubelet's directory.
const HOST: &str = "/host";

/// A pod with volumes, and what runs beside it.
struct Scene<'sandbox> {
    sandbox: &'sandbox Sandbox,
    node: Node<'sandbox>,
    pod: Pod,
}

impl<'sandbox> Scene<'sandbox> {
    fn new(sandbox: &'sandbox Sandbox) -> Self {
        let node = Node::new(sandbox).unwrap();
        Self { sandbox, node, pod: Pod::create(sandbox).unwrap() }
    }

    /// The pod's workload, which can look at all volumes that are mounted by now.
    fn workload(&self) -> Workload {
        let kubelet = self.sandbox.kubelet_root();
        let container = Container::start_with_host_path(self.sandbox, &self.pod, &kubelet);
        Workload { pod: self.pod.clone(), container: container.unwrap() }
    }

    /// A folder of the pod's, `<plugin>/<name>` as the kubelet calls it.
    fn volume(&self, volume: &str) -> PathBuf {
        let uid = &self.pod.uid;
        PathBuf::from(format!("kubelet/pods/{uid}/volumes/kubernetes.io~{volume}"))
    }

    /// A volume in memory, as Secrets, projected volumes and some emptyDirs are.
    fn in_memory(&self, volume: &str) -> PathBuf {
        self.sandbox
            .tmpfs(&self.volume(volume).to_string_lossy(), MountFlags::empty(), c"size=64k")
            .unwrap()
    }

    /// A volume on disk, as ConfigMaps and emptyDirs are.
    fn on_disk(&self, volume: &str) -> PathBuf {
        let folder = self.sandbox.folder().join(self.volume(volume));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// The workload reads a file of one of these folders.
    fn read(&self, workload: &Workload, file: &Path) {
        let below = file.strip_prefix(self.sandbox.kubelet_root()).unwrap();
        let command = format!("cat {HOST}/{}", below.display());
        let read = workload.container.workload(&command).unwrap();
        assert_eq!(read.output, "content", "{command}");
    }

    /// The opens of tokens so far.
    fn opens(&self) -> Vec<Value> {
        self.node.settle().unwrap();
        self.node.opens_of(&self.pod).unwrap()
    }
}

/// Writes files the way in which the kubelet does, behind links to a folder of that moment.
fn publish(folder: &Path, files: &[&str]) {
    let data = folder.join("..2026_11_21_10_00_00.1");
    fs::create_dir(&data).unwrap();
    symlink("..2026_11_21_10_00_00.1", folder.join("..data")).unwrap();
    for file in files {
        let path = data.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "content").unwrap();
        let top = Path::new(file).iter().next().unwrap();
        let _ = fs::remove_file(folder.join(top));
        symlink(Path::new("..data").join(top), folder.join(top)).unwrap();
    }
}

#[test]
fn files_of_these_names_in_other_volumes_images_and_memory_are_no_tokens() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::new(&sandbox);
    // Some are there before the agent, some come later.
    let published = [
        (scene.in_memory("secret/web-tls"), &["tls.crt", "tls.key", "ca.crt"][..]),
        (scene.in_memory("secret/registry"), &["token", "user"]),
        (scene.on_disk("configmap/kube-root-ca.crt"), &["ca.crt"]),
        (scene.on_disk("configmap/names"), &["token"]),
    ];
    for (folder, files) in &published {
        publish(folder, files);
    }
    let _agent = scene.node.agent.start().unwrap();
    let late = [
        (scene.in_memory("secret/late-tls"), &["ca.crt"][..]),
        // For another audience than the API server.
        (scene.in_memory("projected/vault"), &["vault-token", "ca.crt"]),
        // Somebody's own, in the kubelet's manner.
        (scene.in_memory("empty-dir/cache"), &["token", "ca.crt"]),
    ];
    for (folder, files) in &late {
        publish(folder, files);
    }
    let plain = [scene.on_disk("empty-dir/scratch"), scene.in_memory("empty-dir/memory")];
    let workload = scene.workload();
    for (folder, files) in published.iter().chain(&late) {
        files.iter().for_each(|file| scene.read(&workload, &folder.join(file)));
    }
    for folder in &plain {
        for file in ["token", "ca.crt"] {
            fs::write(folder.join(file), "content").unwrap();
            scene.read(&workload, &folder.join(file));
        }
    }
    let image = workload.container.workload("echo mine > /etc/token; cat /etc/token").unwrap();
    assert_eq!(image.output, "mine\n");
    assert_eq!(scene.opens(), Vec::<Value>::new());
}

#[test]
fn the_token_of_a_secret_of_its_type_is_one() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::new(&sandbox);
    let agent = scene.node.agent.start().unwrap();
    let folder = scene.in_memory("secret/robot");
    publish(&folder, &["token", "ca.crt", "namespace"]);
    // With the pod's own.
    agent.wait_for_metric("tokentrail_attribution_volumes", &[], 2.0).unwrap();
    let workload = scene.workload();
    scene.read(&workload, &folder.join("token"));
    let opens = scene.opens();
    assert_eq!(opens.len(), 1, "{opens:#?}");
    assert_eq!(opens[0]["tokentrail"]["open"]["volume"]["name"], "robot");
}

/// A token as a source of a projected volume; without an audience it is for the API server.
fn token(path: &str, audience: Option<&str>) -> Value {
    json!({"serviceAccountToken": {"path": path, "audience": audience.unwrap_or_default()}})
}

#[test]
fn tokens_for_others_than_the_api_server_are_none_and_those_for_it_are_by_any_path() {
    let sandbox = Sandbox::create().unwrap();
    let mut scene = Scene::new(&sandbox);
    let root_ca = json!({"configMap": {"name": "kube-root-ca.crt"}});
    let vault = token("token", Some("vault"));
    let others = token("sts/token", Some("sts.example"));
    let volumes = [
        ("vault", json!([vault, root_ca])),
        ("beside", json!([vault, token("key", None), root_ca])),
        (
            "nested",
            json!([others, token("kube/api/token", Some("https://kubernetes.default.svc"))]),
        ),
    ];
    let pod = api::pod_with_volumes(&scene.pod, &volumes);
    scene.node.agent = scene.node.agent.kubeconfig(api::serve(&sandbox, &[pod]).unwrap());
    let (early, beside) = (scene.in_memory("projected/vault"), scene.in_memory("projected/beside"));
    publish(&early, &["token", "ca.crt"]);
    publish(&beside, &["token", "key", "ca.crt"]);
    let agent = scene.node.agent.start().unwrap();
    let nested = scene.in_memory("projected/nested");
    publish(&nested, &["sts/token", "kube/api/token"]);
    // With the pod's own.
    agent.wait_for_metric("tokentrail_attribution_volumes", &[], 3.0).unwrap();
    let workload = scene.workload();
    for file in
        [early.join("token"), early.join("ca.crt"), beside.join("token"), nested.join("sts/token")]
    {
        scene.read(&workload, &file);
    }
    assert_eq!(scene.opens(), Vec::<Value>::new());
    for file in [beside.join("key"), beside.join("ca.crt"), nested.join("kube/api/token")] {
        scene.read(&workload, &file);
    }
    let opens = scene.opens();
    let told: Vec<_> = opens
        .iter()
        .map(|open| &open["tokentrail"]["open"])
        .map(|open| (open["volume"]["name"].as_str().unwrap(), open["file"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("beside", "token"), ("beside", "ca_cert"), ("nested", "token")]);
}

#[test]
fn who_looks_at_a_token_without_opening_it_has_not_read_it() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::new(&sandbox);
    let _agent = scene.node.agent.start().unwrap();
    let workload = scene.workload();
    let token = workload.pod.volume().join("token");
    stat(&token).unwrap();
    access(&token, Access::READ_OK).unwrap();
    let open = |path: &Path, flags| openat(CWD, path, flags, Mode::empty());
    open(&token, OFlags::PATH).unwrap();
    // Refused, each for another reason.
    open(&token, OFlags::DIRECTORY).unwrap_err();
    open(&token.join("below"), OFlags::RDONLY).unwrap_err();
    open(&token, OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL).unwrap_err();
    open(&token.with_file_name("absent"), OFlags::RDONLY).unwrap_err();
    let look = format!(
        "stat -L {TOKEN_PATH}; test -r {TOKEN_PATH}; ls -lL {TOKEN_PATH}; readlink -f {TOKEN_PATH}"
    );
    assert!(workload.container.exec(&["sh", "-c", &look]).unwrap().success());
    // The volume is mounted read-only: nothing can be opened for writing.
    let write = format!("echo other > {TOKEN_PATH}");
    assert!(!workload.container.exec(&["sh", "-c", &write]).unwrap().success());
    assert_eq!(scene.opens(), Vec::<Value>::new());
}

#[test]
fn a_runtime_that_sets_up_a_container_has_read_no_token() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let workload = node.workload().unwrap();
    // Sessions take a runtime, too.
    assert!(workload.container.exec(&["true"]).unwrap().success());
    assert!(workload.container.exec_tty(&["true"]).unwrap().success());
    node.wait_until_seen(&workload).unwrap();
    let opens = node.opens_of(&workload.pod).unwrap();
    assert_eq!(opens.len(), 1, "the workload's own read alone: {opens:#?}");
}

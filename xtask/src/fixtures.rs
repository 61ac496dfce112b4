//! `cargo xtask fixtures`: what a real API server logs, one file for each kind of request that the
//! product must know, recorded from a cluster of its own; what log services of clouds make of some of
//! these lines; and how it describes its objects.
//!
//! The lines are kept byte for byte. Names are always the same; uids, addresses of credentials and
//! times are those of the recording.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{
    PATIENCE,
    cluster::{BOX_IMAGE, Cluster},
    wait_until,
    wrapped::{Form, cloud_audit},
};

use crate::{
    chart::schemas,
    cluster,
    shell::{announce, root, say},
};

/// The cluster's name.
const NAME: &str = "fixtures";
/// The service account whose requests are recorded, and its namespace and pod.
const ACCOUNT: &str = "system:serviceaccount:shop:cart";
const NAMESPACE: &str = "shop";
const POD: &str = "cart-0";

/// Brings a cluster up, makes each kind of request in it and writes what was logged.
///
/// # Errors
/// If a request does not go as it must.
pub(crate) fn run() -> Result<()> {
    let programs = cluster::prepare()?;
    Cluster::take_down(NAME)?;
    announce(format_args!("cluster {NAME}: 2 nodes"));
    let cluster = Cluster::up(&programs.options(NAME))?;
    let recorder = Recorder { cluster, apicall: programs.apicall().to_owned() };
    recorder.set_up()?;
    recorder.sessions()?;
    recorder.requests_of_the_pod()?;
    recorder.tokens()?;
    recorder.others()?;
    let description = recorder.cluster.kubectl_ok(&["get", "--raw", "/openapi/v2"])?;
    schemas::write(&serde_json::from_str(&description)?)?;
    wrap()?;
    recorder.cluster.down()
}

/// Writes what log services of clouds make of some of the recorded lines.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn wrap() -> Result<()> {
    let folder = root().join("tests/fixtures");
    let read = |name: &str| {
        let path = folder.join("audit").join(name);
        fs::read_to_string(&path).with_context(|| format!("could not read {path:?}"))
    };
    let recorded = read("pod-allowed.ndjson")? + &read("token-request-user.ndjson")?;
    let lines: Vec<_> = recorded.lines().collect();
    let forms = Form::ALL.map(|form| (form.name(), form.wrap(&lines)));
    let google = lines.iter().map(|line| cloud_audit(line)).collect();
    for (name, text) in forms.into_iter().chain([("google-cloud-audit", google)]) {
        let path = folder.join("wrapped").join(name).with_extension("ndjson");
        fs::write(&path, text).with_context(|| format!("could not write {path:?}"))?;
    }
    Ok(())
}

struct Recorder {
    cluster: Cluster,
    apicall: PathBuf,
}

impl Recorder {
    fn set_up(&self) -> Result<()> {
        self.cluster.create_namespace(NAMESPACE)?;
        self.cluster.apply(&manifest().to_string())?;
        self.cluster.wait_for_pod(NAMESPACE, POD)?;
        // It was made by the kubelet before the pod could start.
        self.write("token-request-kubelet", 0, |event| {
            is(event, "/objectRef/subresource", "token")
                && is(event, "/user/username", "system:node:node-b")
                && is(event, "/objectRef/name", "cart")
        })
    }

    /// `kubectl exec` over both protocols, with and without a terminal; `kubectl debug`.
    fn sessions(&self) -> Result<()> {
        for (protocol, websockets) in [("websocket", "true"), ("spdy", "false")] {
            for (terminal, flag) in [("-tty", Some("-it")), ("", None)] {
                let start = self.length()?;
                let mut exec = self.cluster.kubectl_command()?;
                exec.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
                    .args(["exec", "--namespace", NAMESPACE, POD])
                    .args(flag)
                    .args(["--", "true"]);
                let done = match flag {
                    Some(_) => self.cluster.run_tty(&mut exec)?,
                    None => self.cluster.run(&mut exec)?,
                };
                ensure!(done.success(), "kubectl exec failed: {done:?}");
                self.write(&format!("exec-{protocol}{terminal}"), start, |event| {
                    is(event, "/objectRef/subresource", "exec")
                })?;
            }
        }
        let start = self.length()?;
        let image = format!("--image={BOX_IMAGE}");
        self.cluster.kubectl_ok(&[
            "debug",
            "--namespace",
            NAMESPACE,
            POD,
            &image,
            "--image-pull-policy=Never",
            "--target=main",
            "--container=helper",
            "--",
            "true",
        ])?;
        self.write("ephemeral-container", start, |event| {
            is(event, "/objectRef/subresource", "ephemeralcontainers")
        })
    }

    /// What the workload asks with its own token.
    fn requests_of_the_pod(&self) -> Result<()> {
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        for (kind, path, resource) in [
            ("pod-allowed", pods.clone(), "pods"),
            ("pod-watch", format!("{pods}?watch=true&timeoutSeconds=1"), "pods"),
            ("pod-denied", format!("/api/v1/namespaces/{NAMESPACE}/secrets/db"), "secrets"),
        ] {
            let start = self.length()?;
            let ask = ["exec", "--namespace", NAMESPACE, POD, "--", "apicall", &path];
            self.cluster.kubectl_ok(&ask)?;
            self.write(kind, start, |event| {
                is(event, "/user/username", ACCOUNT) && is(event, "/objectRef/resource", resource)
            })?;
        }
        Ok(())
    }

    /// How a token is had without reading a pod's file, and that it is used elsewhere.
    fn tokens(&self) -> Result<()> {
        let create = ["create", "token", "--namespace", NAMESPACE, "cart"];
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", POD];
        for (kind, more) in [("token-request-user", &[][..]), ("token-request-bound", &bound)] {
            let start = self.length()?;
            let token = self.cluster.kubectl_ok(&[&create, more].concat())?;
            self.use_token(token.trim())?;
            self.write(kind, start, |event| {
                is(event, "/objectRef/subresource", "token") && !of_a_node(event)
                    || is(event, "/userAgent", "fixtures")
            })?;
        }
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "cart-token", "namespace": NAMESPACE,
                "annotations": {"kubernetes.io/service-account.name": "cart"},
            },
            "type": "kubernetes.io/service-account-token",
        });
        self.cluster.apply(&secret.to_string())?;
        let token = wait_until(PATIENCE, "the secret holds a token", || {
            let template =
                "--output=go-template={{if .data.token}}{{.data.token | base64decode}}{{end}}";
            let get = ["get", "secret", "cart-token", "--namespace", NAMESPACE, template];
            Ok(Some(self.cluster.kubectl_ok(&get)?).filter(|token| !token.is_empty()))
        })?;
        let start = self.length()?;
        self.use_token(&token)?;
        self.write("legacy-token", start, |event| is(event, "/userAgent", "fixtures"))
    }

    fn others(&self) -> Result<()> {
        let start = self.length()?;
        let impersonate = format!("--as={ACCOUNT}");
        self.cluster.kubectl_ok(&["get", "pods", "--namespace", NAMESPACE, &impersonate])?;
        self.write("impersonation", start, |event| {
            is(event, "/impersonatedUser/username", ACCOUNT)
                && is(event, "/objectRef/resource", "pods")
        })?;
        let start = self.length()?;
        self.use_token("none")?;
        self.write("unauthorized", start, |event| is(event, "/userAgent", "fixtures"))
    }

    /// Lists pods from the first node itself with this token.
    fn use_token(&self, token: &str) -> Result<()> {
        let mut ask = self.cluster.command(&self.apicall)?;
        ask.args(["-user-agent", "fixtures", "-token", token])
            .arg(format!("-server={}", self.cluster.api_server()))
            .arg(format!("-ca-file={}", self.cluster.authority().display()))
            .arg(format!("/api/v1/namespaces/{NAMESPACE}/pods"));
        let done = self.cluster.run(&mut ask)?;
        ensure!(done.success(), "the API server did not answer: {}", done.errors);
        Ok(())
    }

    fn length(&self) -> Result<usize> {
        Ok(self.log()?.len())
    }

    fn log(&self) -> Result<String> {
        let path = self.cluster.audit_log();
        fs::read_to_string(&path).with_context(|| format!("could not read {path:?}"))
    }

    /// Writes the lines since `start` that belong to this kind, once the last of their requests is
    /// complete.
    fn write(&self, kind: &str, start: usize, belongs: impl Fn(&Value) -> bool) -> Result<()> {
        let lines = wait_until(PATIENCE, &format!("{kind} is in the audit log"), || {
            let log = self.log()?;
            let lines: Vec<(&str, Value)> = log
                .get(start..)
                .unwrap_or_default()
                .split_inclusive('\n')
                // The last one may be half written.
                .filter_map(|line| Some((line, serde_json::from_str(line).ok()?)))
                .collect();
            // Not every stage tells what the request turned out to be, but all have one id.
            let ids = |matters: &dyn Fn(&Value) -> bool| -> BTreeSet<&str> {
                let events = lines.iter().map(|(_, event)| event);
                events.filter(|event| matters(event)).map(id).collect()
            };
            let wanted = ids(&belongs);
            let complete = ids(&is_last_stage);
            let lines = lines.iter().filter(|(_, event)| wanted.contains(id(event)));
            Ok((!wanted.is_empty() && wanted.is_subset(&complete))
                .then(|| lines.map(|(line, _)| *line).collect::<String>()))
        })?;
        let file = folder().join(format!("{kind}.ndjson"));
        fs::write(&file, &lines).with_context(|| format!("could not write {file:?}"))?;
        say(format_args!("  {kind}: {} lines", lines.lines().count()));
        Ok(())
    }
}

fn folder() -> PathBuf {
    root().join(Path::new("tests/fixtures/audit"))
}

fn is(event: &Value, pointer: &str, text: &str) -> bool {
    event.pointer(pointer).and_then(Value::as_str) == Some(text)
}

fn id(event: &Value) -> &str {
    event.get("auditID").and_then(Value::as_str).unwrap_or_default()
}

/// Whether nothing more comes of this request. One by nobody is answered and no more.
fn is_last_stage(event: &Value) -> bool {
    is(event, "/stage", "ResponseComplete")
        || event.pointer("/responseStatus/code").and_then(Value::as_u64) == Some(401)
}

fn of_a_node(event: &Value) -> bool {
    let user = event.pointer("/user/username").and_then(Value::as_str);
    user.is_some_and(|user| user.starts_with("system:node:"))
}

/// A workload with an account that may look at its own pods.
fn manifest() -> Value {
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("cart")},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata("cart-reader"),
            "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata("cart-reader"),
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "cart-reader",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "cart", "namespace": NAMESPACE}],
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata(POD),
            "spec": {
                "nodeName": "node-b",
                "serviceAccountName": "cart",
                "terminationGracePeriodSeconds": 1,
                "containers": [
                    {"name": "main", "image": BOX_IMAGE, "imagePullPolicy": "Never"},
                ],
            },
        },
    ]})
}

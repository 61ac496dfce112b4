//! Makes an audit log and opens that fit it: the same bytes for the same seed.
//!
//! Lines have the fields, order, lengths and escapes of those in `tests/fixtures/audit`; who asks
//! for what is mixed as in a busy cluster: kubelets and controllers most of all, then workloads.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use jiff::{Timestamp, ToSpan as _};
use serde_json::json;

/// Lines a second of the cluster's time.
const LINES_PER_SECOND: u64 = 1_000;
/// Pods that talk to the API.
const PODS: u64 = 500;
/// All pods: most have a token and no use for it.
const ALL_PODS: u64 = 3_000;
/// Nodes.
const NODES: u64 = 100;

/// How many lines to a token open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opens {
    /// One in 50,000.
    Rare,
    /// One in 20.
    Frequent,
}

impl Opens {
    pub(super) const ALL: [Self; 2] = [Self::Rare, Self::Frequent];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rare => "opens rare",
            Self::Frequent => "5 % opens",
        }
    }

    fn lines_to_one(self) -> u64 {
        match self {
            Self::Rare => 50_000,
            Self::Frequent => 20,
        }
    }
}

/// Writes an audit log of at least this size.
///
/// # Errors
/// If the disk is full.
pub(in crate::bench) fn audit(path: &Path, bytes: u64, seed: u64) -> Result<u64> {
    // Another name until it is whole: a next run takes what is there.
    let unfinished = path.with_extension("part");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    let (mut dice, mut written, mut lines) = (Dice(seed), 0, 0);
    let mut line = String::new();
    while written < bytes {
        line.clear();
        write_line(&mut line, &mut dice, lines)?;
        file.write_all(line.as_bytes())?;
        written += line.len() as u64;
        lines += 1;
    }
    file.into_inner().context("the audit log was not written")?.sync_all()?;
    fs::rename(unfinished, path)?;
    Ok(lines)
}

/// Writes opens over the time that so many lines of audit log take.
///
/// # Errors
/// If the disk is full.
pub(super) fn opens(path: &Path, lines: u64, opens: Opens, seed: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut dice = Dice(seed);
    for number in (0..lines).step_by(usize::try_from(opens.lines_to_one())?) {
        let pod = dice.below(ALL_PODS);
        let document = json!({
            "@timestamp": time(number * 1_000_000 / LINES_PER_SECOND)?,
            "host": {"os": {"type": "linux"}},
            "event": {
                "category": ["file"], "type": ["change"], "action": "open",
                "id": format!("{:032x}", u128::from(dice.roll())),
            },
            "file": {"path": "/var/run/secrets/kubernetes.io/serviceaccount/token"},
            "process": {
                "interactive": true, "pid": 1_000 + dice.below(30_000), "name": "cat",
                "executable": "/usr/bin/cat",
                "args": ["cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"],
            },
            "container": {"id": format!("{:064x}", pod)},
            "orchestrator": {"namespace": "shop", "resource": {"name": pod_name(pod)}},
        });
        writeln!(file, "{document}")?;
    }
    file.flush()?;
    Ok(())
}

fn pod_name(pod: u64) -> String {
    format!("workload-{}-{:05x}", pod / 5, pod * 7_919)
}

fn time(micros: u64) -> Result<String> {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse()?;
    let time = start.checked_add(i64::try_from(micros)?.microseconds())?;
    Ok(format!("{time:.6}"))
}

/// Splitmix64: small, and no two machines disagree about it.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn uuid(&mut self) -> String {
        let (a, b) = (self.roll(), self.roll());
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            a >> 32,
            a >> 16 & 0xffff,
            a & 0xfff,
            b >> 48 & 0xfff,
            b & 0xffff_ffff_ffff
        )
    }
}

/// Who asks: user, with groups and extra, in the wire's own form; user agent; address.
struct Asker {
    user: String,
    agent: String,
    address: String,
}

/// What for: verb, URI, object.
struct Question {
    verb: &'static str,
    uri: String,
    object: String,
    stage: &'static str,
    code: u16,
}

fn write_line(line: &mut String, dice: &mut Dice, number: u64) -> Result<()> {
    let (asker, question, reason) = match dice.below(100) {
        0..33 => kubelet(dice),
        33..66 => controller(dice),
        66..70 => person(dice),
        _ => workload(dice),
    };
    let received = number * 1_000_000 / LINES_PER_SECOND;
    let took = 400 + dice.below(40_000);
    // Requests end in another order than they began.
    let (received, ended) = (time(received.saturating_sub(took))?, time(received)?);
    // Policies often omit receipts.
    let is_receipt = dice.below(5) == 0;
    let stage = if is_receipt { "RequestReceived" } else { question.stage };
    let Question { verb, uri, object, code, .. } = question;
    let Asker { user, agent, address } = asker;
    let id = dice.uuid();
    write!(
        line,
        concat!(
            r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","#,
            r#""auditID":"{}","stage":"{}","requestURI":"{}","verb":"{}","user":{},"#,
            r#""sourceIPs":["{}"],"userAgent":"{}","objectRef":{},"#
        ),
        id, stage, uri, verb, user, address, agent, object
    )?;
    if is_receipt {
        writeln!(line, r#""requestReceivedTimestamp":"{ended}","stageTimestamp":"{ended}"}}"#)?;
    } else {
        writeln!(
            line,
            concat!(
                r#""responseStatus":{{"metadata":{{}},"code":{}}},"requestReceivedTimestamp":"{}","#,
                r#""stageTimestamp":"{}","annotations":{{"authorization.k8s.io/decision":"allow","#,
                r#""authorization.k8s.io/reason":"{}"}}}}"#
            ),
            code, received, ended, reason
        )?;
    }
    Ok(())
}

type Told = (Asker, Question, String);

fn kubelet(dice: &mut Dice) -> Told {
    let node = dice.below(NODES);
    let asker = Asker {
        user: format!(
            r#"{{"username":"system:node:worker-{node}","groups":["system:nodes","system:authenticated"],"extra":{{"authentication.kubernetes.io/credential-id":["X509SHA256={:064x}"]}}}}"#,
            node * 104_729
        ),
        agent: "kubelet/v1.34.4 (linux/amd64) kubernetes/9e0a3b1".to_owned(),
        address: format!("10.89.{}.{}", node / 250, node % 250),
    };
    let pod = pod_name(dice.below(PODS));
    let question = match dice.below(10) {
        0..4 => get(
            "update",
            &format!(
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/worker-{node}?timeout=10s"
            ),
            &format!(
                r#"{{"resource":"leases","namespace":"kube-node-lease","name":"worker-{node}","uid":"{}","apiGroup":"coordination.k8s.io","apiVersion":"v1","resourceVersion":"{}"}}"#,
                dice.uuid(),
                dice.below(9_000_000)
            ),
        ),
        4..6 => get(
            "patch",
            &format!("/api/v1/namespaces/shop/pods/{pod}/status"),
            &format!(
                r#"{{"resource":"pods","namespace":"shop","name":"{pod}","apiVersion":"v1","subresource":"status"}}"#
            ),
        ),
        6..8 => watch(
            &format!(
                "/api/v1/namespaces/shop/configmaps?allowWatchBookmarks=true\\u0026fieldSelector=metadata.name%3Dkube-root-ca.crt\\u0026resourceVersion={}\\u0026timeout=7m6s\\u0026timeoutSeconds=426\\u0026watch=true",
                dice.below(9_000_000)
            ),
            r#"{"resource":"configmaps","namespace":"shop","name":"kube-root-ca.crt","apiVersion":"v1"}"#,
        ),
        8 => Question {
            code: 201,
            ..get(
                "create",
                "/api/v1/namespaces/shop/serviceaccounts/till/token",
                r#"{"resource":"serviceaccounts","namespace":"shop","name":"till","apiVersion":"v1","subresource":"token"}"#,
            )
        },
        _ => get(
            "get",
            &format!("/api/v1/nodes/worker-{node}?resourceVersion=0\\u0026timeout=10s"),
            &format!(r#"{{"resource":"nodes","name":"worker-{node}","apiVersion":"v1"}}"#),
        ),
    };
    (asker, question, String::new())
}

fn controller(dice: &mut Dice) -> Told {
    const NAMES: [&str; 6] = [
        "endpointslice-controller",
        "replicaset-controller",
        "generic-garbage-collector",
        "horizontal-pod-autoscaler",
        "job-controller",
        "namespace-controller",
    ];
    let index = dice.below(NAMES.len() as u64);
    let name = NAMES.get(usize::try_from(index).unwrap_or_default()).copied().unwrap_or_default();
    let asker = Asker {
        user: format!(
            r#"{{"username":"system:serviceaccount:kube-system:{name}","uid":"97c38343-571d-4f6c-bd2c-2f4669f5{index:04x}","groups":["system:serviceaccounts","system:serviceaccounts:kube-system","system:authenticated"],"extra":{{"authentication.kubernetes.io/credential-id":["JTI=93e8dc4a-5e17-43cd-89f5-ef2496599ea{index}"]}}}}"#
        ),
        agent: format!(
            "kube-controller-manager/v1.34.4 (linux/amd64) kubernetes/9e0a3b1/system:serviceaccount:kube-system:{name}"
        ),
        address: "10.89.0.2".to_owned(),
    };
    let set = dice.below(100);
    let question = match dice.below(10) {
        0..6 => get(
            "get",
            &format!("/apis/apps/v1/namespaces/shop/replicasets/workload-{set}"),
            &format!(
                r#"{{"resource":"replicasets","namespace":"shop","name":"workload-{set}","apiGroup":"apps","apiVersion":"v1"}}"#
            ),
        ),
        6..8 => get(
            "update",
            &format!("/apis/apps/v1/namespaces/shop/replicasets/workload-{set}/status"),
            &format!(
                r#"{{"resource":"replicasets","namespace":"shop","name":"workload-{set}","uid":"{}","apiGroup":"apps","apiVersion":"v1","resourceVersion":"{}","subresource":"status"}}"#,
                dice.uuid(),
                dice.below(9_000_000)
            ),
        ),
        _ => watch(
            &format!(
                "/apis/batch/v1/jobs?allowWatchBookmarks=true\\u0026resourceVersion={}\\u0026timeoutSeconds=592\\u0026watch=true",
                dice.below(9_000_000)
            ),
            r#"{"resource":"jobs","apiGroup":"batch","apiVersion":"v1"}"#,
        ),
    };
    let reason = format!(
        r#"RBAC: allowed by ClusterRoleBinding \"system:controller:{name}\" of ClusterRole \"system:controller:{name}\" to ServiceAccount \"{name}/kube-system\""#
    );
    (asker, question, reason)
}

fn person(dice: &mut Dice) -> Told {
    let asker = Asker {
        user: format!(
            r#"{{"username":"jane-{}","groups":["system:masters","system:authenticated"],"extra":{{"authentication.kubernetes.io/credential-id":["X509SHA256=598727644918ef6f55755922c5424cdf764174ebccd6197cc6762bf41d28f1cb"]}}}}"#,
            dice.below(9)
        ),
        agent: "kubectl/v1.34.4 (linux/amd64) kubernetes/9e0a3b1".to_owned(),
        address: format!("192.0.2.{}", dice.below(200)),
    };
    let pod = pod_name(dice.below(PODS));
    let question = match dice.below(50) {
        0 => Question {
            code: 201,
            ..get(
                "create",
                "/api/v1/namespaces/shop/serviceaccounts/till/token",
                r#"{"resource":"serviceaccounts","namespace":"shop","name":"till","apiVersion":"v1","subresource":"token"}"#,
            )
        },
        1..5 => Question {
            stage: "ResponseStarted",
            code: 101,
            ..get(
                "get",
                &format!(
                    "/api/v1/namespaces/shop/pods/{pod}/exec?command=sh\\u0026container=main\\u0026stdin=true\\u0026stdout=true\\u0026tty=true"
                ),
                &format!(
                    r#"{{"resource":"pods","namespace":"shop","name":"{pod}","apiVersion":"v1","subresource":"exec"}}"#
                ),
            )
        },
        _ => get(
            "list",
            "/api/v1/namespaces/shop/pods?limit=500",
            r#"{"resource":"pods","namespace":"shop","apiVersion":"v1"}"#,
        ),
    };
    (asker, question, String::new())
}

fn workload(dice: &mut Dice) -> Told {
    let pod = dice.below(PODS);
    let (name, node, set) = (pod_name(pod), pod % NODES, pod / 5);
    let asker = Asker {
        user: format!(
            concat!(
                r#"{{"username":"system:serviceaccount:shop:workload-{set}","uid":"4933e70e-c9fb-4f8c-8653-2c7ed519{set:04x}","#,
                r#""groups":["system:serviceaccounts","system:serviceaccounts:shop","system:authenticated"],"extra":{{"#,
                r#""authentication.kubernetes.io/credential-id":["JTI=9b524daa-9816-46e1-a4c3-ba0756f8{pod:04x}"],"#,
                r#""authentication.kubernetes.io/node-name":["worker-{node}"],"#,
                r#""authentication.kubernetes.io/node-uid":["d021e3d5-4626-4759-ab5d-69310eee{node:04x}"],"#,
                r#""authentication.kubernetes.io/pod-name":["{name}"],"#,
                r#""authentication.kubernetes.io/pod-uid":["1ea46c86-1147-4be1-87fb-a5cf75e8{pod:04x}"]}}}}"#
            ),
            set = set,
            pod = pod,
            node = node,
            name = name
        ),
        agent: "operator/v0.14.2 (linux/amd64) kubernetes/$Format".to_owned(),
        address: format!("10.244.{}.{}", pod / 200, pod % 200),
    };
    let question = match dice.below(10) {
        0..4 => watch(
            &format!(
                "/api/v1/namespaces/shop/pods?allowWatchBookmarks=true\\u0026resourceVersion={}\\u0026timeoutSeconds=592\\u0026watch=true",
                dice.below(9_000_000)
            ),
            r#"{"resource":"pods","namespace":"shop","apiVersion":"v1"}"#,
        ),
        4..8 => get(
            "get",
            &format!("/api/v1/namespaces/shop/configmaps/settings-{}", dice.below(50)),
            r#"{"resource":"configmaps","namespace":"shop","name":"settings","apiVersion":"v1"}"#,
        ),
        _ => get(
            "update",
            &format!("/apis/coordination.k8s.io/v1/namespaces/shop/leases/workload-{set}"),
            &format!(
                r#"{{"resource":"leases","namespace":"shop","name":"workload-{set}","uid":"{}","apiGroup":"coordination.k8s.io","apiVersion":"v1","resourceVersion":"{}"}}"#,
                dice.uuid(),
                dice.below(9_000_000)
            ),
        ),
    };
    let reason = format!(
        r#"RBAC: allowed by RoleBinding \"workload-{set}/shop\" of Role \"workload\" to ServiceAccount \"workload-{set}/shop\""#
    );
    (asker, question, reason)
}

fn get(verb: &'static str, uri: &str, object: &str) -> Question {
    let (uri, object) = (uri.to_owned(), object.to_owned());
    Question { verb, uri, object, stage: "ResponseComplete", code: 200 }
}

fn watch(uri: &str, object: &str) -> Question {
    Question { stage: "ResponseStarted", ..get("watch", uri, object) }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_are_audit_events_the_same_for_the_same_seed() {
        let lines = |seed| {
            let mut dice = Dice(seed);
            let mut text = String::new();
            (0..2_000).for_each(|number| write_line(&mut text, &mut dice, number).unwrap());
            text
        };
        let text = lines(7);
        assert_eq!(text, lines(7));
        assert_ne!(text, lines(8));
        let events: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let pods = events
            .iter()
            .filter(|it| it["user"]["extra"]["authentication.kubernetes.io/pod-name"].is_array());
        assert!((500..700).contains(&pods.count()));
        let mean = text.len() / events.len();
        assert!((800..1_200).contains(&mean), "{mean} bytes a line");
    }
}

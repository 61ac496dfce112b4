//! What the chart must render, as a table.

use super::case::{
    Case,
    Expected::Renders,
    Fact::{Absent, Is},
    case,
};

pub(super) const CASES: &[Case] = &[
    case(
        "by default a pod gets what the sensor needs and nothing else",
        "",
        Renders(&[
            ("DaemonSet spec template spec hostPID", Is("true")),
            ("DaemonSet spec template spec hostNetwork", Absent),
            ("DaemonSet spec template spec hostIPC", Absent),
            (
                "DaemonSet spec template spec containers agent securityContext capabilities",
                Is(r#"{"drop":["ALL"],"add":["BPF","PERFMON","SYS_PTRACE"]}"#),
            ),
            (
                "DaemonSet spec template spec containers agent securityContext privileged",
                Is("false"),
            ),
            (
                "DaemonSet spec template spec containers agent securityContext allowPrivilegeEscalation",
                Is("false"),
            ),
            (
                "DaemonSet spec template spec containers agent securityContext readOnlyRootFilesystem",
                Is("true"),
            ),
            (
                "DaemonSet spec template spec containers agent securityContext seccompProfile type",
                Is(r#""Unconfined""#),
            ),
            (
                "DaemonSet spec template spec containers agent securityContext appArmorProfile type",
                Is(r#""Unconfined""#),
            ),
            (
                "DaemonSet spec template metadata annotations container.apparmor.security.beta.kubernetes.io/agent",
                Absent,
            ),
        ]),
    ),
    case(
        "of the node it writes three folders and reads three",
        "",
        Renders(&[
            (
                "DaemonSet spec template spec containers agent volumeMounts",
                Is(r#"[
                {"name":"config","mountPath":"/etc/tokentrail","readOnly":true},
                {"name":"cgroup","mountPath":"/sys/fs/cgroup","readOnly":true,
                    "recursiveReadOnly":"IfPossible"},
                {"name":"tracefs","mountPath":"/sys/kernel/tracing","readOnly":true},
                {"name":"bpffs","mountPath":"/sys/fs/bpf"},
                {"name":"audit","mountPath":"/var/log/kubernetes/audit","readOnly":true},
                {"name":"alerts","mountPath":"/var/log/tokentrail"},
                {"name":"state","mountPath":"/var/lib/tokentrail"}]"#),
            ),
            (
                "DaemonSet spec template spec volumes",
                Is(r#"[
                {"name":"config","configMap":{"name":"tokentrail"}},
                {"name":"cgroup","hostPath":{"path":"/sys/fs/cgroup","type":"Directory"}},
                {"name":"tracefs","hostPath":{"path":"/sys/kernel/tracing","type":"Directory"}},
                {"name":"bpffs","hostPath":{"path":"/sys/fs/bpf","type":"Directory"}},
                {"name":"audit",
                    "hostPath":{"path":"/var/log/kubernetes/audit","type":"DirectoryOrCreate"}},
                {"name":"alerts",
                    "hostPath":{"path":"/var/log/tokentrail","type":"DirectoryOrCreate"}},
                {"name":"state",
                    "hostPath":{"path":"/var/lib/tokentrail","type":"DirectoryOrCreate"}}]"#),
            ),
        ]),
    ),
    case(
        "each privilege beyond BPF and PERFMON is a switch",
        "security: {capabilities: {sysPtrace: false, dacReadSearch: true, sysResource: true, \
         sysAdmin: true}}",
        Renders(&[(
            "DaemonSet spec template spec containers agent securityContext capabilities add",
            Is(r#"["BPF","PERFMON","DAC_READ_SEARCH","SYS_RESOURCE","SYS_ADMIN"]"#),
        )]),
    ),
    case(
        "it reads pods and nothing else of the API, as an account of its own",
        "",
        Renders(&[
            (
                "ClusterRole rules",
                Is(r#"[{"apiGroups":[""],"resources":["pods"],"verbs":["list","watch"]}]"#),
            ),
            ("ServiceAccount metadata name", Is(r#""tokentrail""#)),
            ("ServiceAccount automountServiceAccountToken", Is("false")),
            (
                "ClusterRoleBinding subjects",
                Is(r#"[{"kind":"ServiceAccount","name":"tokentrail","namespace":"tokentrail"}]"#),
            ),
            ("DaemonSet spec template spec automountServiceAccountToken", Is("true")),
            ("DaemonSet spec template spec serviceAccountName", Is(r#""tokentrail""#)),
        ]),
    ),
    case(
        "without the API it has neither a token nor a role",
        "kubeApi: {enabled: false}",
        Renders(&[
            ("ClusterRole", Absent),
            ("ClusterRoleBinding", Absent),
            ("DaemonSet spec template spec automountServiceAccountToken", Is("false")),
            ("ConfigMap data config.yaml no-kube", Is("true")),
        ]),
    ),
    case(
        "every node is covered, always, and the agent is evicted last",
        "",
        Renders(&[
            ("DaemonSet spec template spec tolerations", Is(r#"[{"operator":"Exists"}]"#)),
            ("DaemonSet spec template spec nodeSelector", Is(r#"{"kubernetes.io/os":"linux"}"#)),
            ("DaemonSet spec template spec priorityClassName", Is(r#""system-node-critical""#)),
            (
                "DaemonSet spec updateStrategy",
                Is(r#"{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}"#),
            ),
            ("ConfigMap data config.yaml take-over", Is("true")),
            ("DaemonSet spec template spec containers agent ports admin hostPort", Absent),
        ]),
    ),
    case(
        "kubelet and Prometheus reach the pod's own address",
        "",
        Renders(&[
            ("ConfigMap data config.yaml admin-listen", Is(r#""0.0.0.0:9464""#)),
            ("DaemonSet spec template spec containers agent ports admin containerPort", Is("9464")),
            (
                "DaemonSet spec template spec containers agent livenessProbe httpGet",
                Is(r#"{"path":"/livez","port":"admin"}"#),
            ),
            (
                "DaemonSet spec template spec containers agent readinessProbe httpGet",
                Is(r#"{"path":"/readyz","port":"admin"}"#),
            ),
            ("DaemonSet spec template metadata annotations prometheus.io/port", Is(r#""9464""#)),
            ("PodMonitor", Absent),
            ("NetworkPolicy", Absent),
        ]),
    ),
    case(
        "another port is another port everywhere",
        "{admin: {address: '::', port: 9000}, metrics: {podMonitor: {enabled: true}}, \
         networkPolicy: {enabled: true, from: [{podSelector: {}}]}}",
        Renders(&[
            ("ConfigMap data config.yaml admin-listen", Is(r#""[::]:9000""#)),
            ("DaemonSet spec template spec containers agent ports admin containerPort", Is("9000")),
            ("DaemonSet spec template metadata annotations prometheus.io/port", Is(r#""9000""#)),
            (
                "NetworkPolicy spec ingress",
                Is(r#"[{"ports":[{"protocol":"TCP","port":9000}],"from":[{"podSelector":{}}]}]"#),
            ),
            ("NetworkPolicy spec policyTypes", Is(r#"["Ingress"]"#)),
            (
                "PodMonitor spec podMetricsEndpoints",
                Is(r#"[{"port":"admin","path":"/metrics","interval":"30s"}]"#),
            ),
        ]),
    ),
    case(
        "the agent's file says what the values say",
        "{clusterName: prod, kubeletRoot: /var/lib/k0s/kubelet, kubeletCgroup: /node-a, \
         route: exit, stateDir: /data/state, alertLog: {file: /data/alerts/a.ndjson, maxMiB: 7, \
         keep: 2, podLabels: [app, team]}, config: {self-test-seconds: 60}}",
        Renders(&[
            (
                "ConfigMap data config.yaml audit-log",
                Is(r#"["/var/log/kubernetes/audit/audit.log"]"#),
            ),
            ("ConfigMap data config.yaml audit-log-optional", Is("true")),
            ("ConfigMap data config.yaml cluster-name", Is(r#""prod""#)),
            ("ConfigMap data config.yaml kubelet-root", Is(r#""/var/lib/k0s/kubelet""#)),
            ("ConfigMap data config.yaml kubelet-cgroup", Is(r#""/node-a""#)),
            ("ConfigMap data config.yaml state-dir", Is(r#""/data/state""#)),
            ("ConfigMap data config.yaml alert-log", Is(r#""/data/alerts/a.ndjson""#)),
            ("ConfigMap data config.yaml alert-log-max-mib", Is("7")),
            ("ConfigMap data config.yaml alert-log-keep", Is("2")),
            ("ConfigMap data config.yaml pod-labels", Is(r#"["app","team"]"#)),
            ("ConfigMap data config.yaml self-test-seconds", Is("60")),
            ("ConfigMap data config.yaml route", Is(r#""exit""#)),
            ("DaemonSet spec template spec volumes alerts hostPath path", Is(r#""/data/alerts""#)),
            ("DaemonSet spec template spec volumes state hostPath path", Is(r#""/data/state""#)),
        ]),
    ),
    case(
        "rules are a file of their own, there from the beginning: a change of them is no update",
        "rules: {decoys: [shop/backup-admin], exceptions: [{name: backup, rule: token-read, \
         namespace: shop, native: false, reason: looked at, until: 2027-05-31}]}",
        Renders(&[
            ("ConfigMap data rules.yaml exceptions backup until", Is(r#""2027-05-31""#)),
            ("ConfigMap data rules.yaml decoys", Is(r#"["shop/backup-admin"]"#)),
            ("ConfigMap data config.yaml rules-file", Is(r#""/etc/tokentrail/rules.yaml""#)),
        ]),
    ),
    case(
        "the node's name is the API's",
        "{extraArgs: [--audit-log=/a, --no-sensor], extraEnv: [{name: RUST_BACKTRACE, value: '1'}]}",
        Renders(&[
            (
                "DaemonSet spec template spec containers agent env NODE_NAME valueFrom fieldRef fieldPath",
                Is(r#""spec.nodeName""#),
            ),
            (
                "DaemonSet spec template spec containers agent env RUST_BACKTRACE value",
                Is(r#""1""#),
            ),
            (
                "DaemonSet spec template spec containers agent args",
                Is(
                    r#"["run","--config=/etc/tokentrail/config.yaml","--audit-log=/a","--no-sensor"]"#,
                ),
            ),
        ]),
    ),
    case(
        "without an audit log none is mounted or asked for",
        "audit: {logFile: ''}",
        Renders(&[
            ("DaemonSet spec template spec volumes audit", Absent),
            ("DaemonSet spec template spec containers agent volumeMounts audit", Absent),
            ("ConfigMap data config.yaml audit-log", Absent),
            ("ConfigMap data config.yaml audit-log-optional", Absent),
        ]),
    ),
    case(
        "an audit log may be required",
        "audit: {logFile: /var/log/audit/kube/kube-apiserver.log, optional: false}",
        Renders(&[
            (
                "DaemonSet spec template spec volumes audit hostPath path",
                Is(r#""/var/log/audit/kube""#),
            ),
            ("ConfigMap data config.yaml audit-log-optional", Is("false")),
        ]),
    ),
    case(
        "alerts may go to the pod's log, and tracefs may be left out",
        "{alertLog: {file: '-'}, tracefs: ''}",
        Renders(&[
            ("DaemonSet spec template spec volumes alerts", Absent),
            ("DaemonSet spec template spec volumes tracefs", Absent),
            ("DaemonSet spec template spec containers agent volumeMounts tracefs", Absent),
            ("ConfigMap data config.yaml alert-log", Is(r#""-""#)),
        ]),
    ),
    case(
        "what is attached outlives the agent where the node has a BPF file system",
        "",
        Renders(&[("ConfigMap data config.yaml pin-dir", Is(r#""/sys/fs/bpf/tokentrail""#))]),
    ),
    case(
        "without one it does not",
        "bpffs: ''",
        Renders(&[
            ("DaemonSet spec template spec volumes bpffs", Absent),
            ("DaemonSet spec template spec containers agent volumeMounts bpffs", Absent),
            ("ConfigMap data config.yaml pin-dir", Absent),
        ]),
    ),
    case(
        "an image is named by tag or by digest",
        "image: {repository: registry.example/tokentrail, tag: x, digest: 'sha256:\
         0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', pullPolicy: Never, \
         pullSecrets: [{name: key}]}",
        Renders(&[
            (
                "DaemonSet spec template spec containers agent image",
                Is(
                    r#""registry.example/tokentrail@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef""#,
                ),
            ),
            ("DaemonSet spec template spec containers agent imagePullPolicy", Is(r#""Never""#)),
            ("DaemonSet spec template spec imagePullSecrets", Is(r#"[{"name":"key"}]"#)),
        ]),
    ),
    case(
        "by default it is the image that `cargo xtask image` makes",
        "",
        Renders(&[(
            "DaemonSet spec template spec containers agent image",
            Is(concat!("\"localhost/tokentrail:", env!("CARGO_PKG_VERSION"), "\"")),
        )]),
    ),
    case(
        "an account, labels and annotations of one's own are taken",
        "{serviceAccount: {create: false, name: mine}, fullnameOverride: tt, \
         podLabels: {team: x}, podAnnotations: {note: here}, metrics: {annotations: false}}",
        Renders(&[
            ("ServiceAccount", Absent),
            ("DaemonSet metadata name", Is(r#""tt""#)),
            ("DaemonSet spec template spec serviceAccountName", Is(r#""mine""#)),
            ("DaemonSet spec template metadata labels team", Is(r#""x""#)),
            ("DaemonSet spec template metadata annotations note", Is(r#""here""#)),
            ("DaemonSet spec template metadata annotations prometheus.io/scrape", Absent),
        ]),
    ),
    Case {
        says: "before Kubernetes 1.30 the AppArmor profile is an annotation",
        values: "",
        release: None,
        kubernetes: Some("v1.29.3"),
        expected: Renders(&[
            (
                "DaemonSet spec template spec containers agent securityContext appArmorProfile",
                Absent,
            ),
            (
                "DaemonSet spec template metadata annotations container.apparmor.security.beta.kubernetes.io/agent",
                Is(r#""unconfined""#),
            ),
            (
                "DaemonSet spec template spec containers agent volumeMounts cgroup recursiveReadOnly",
                Absent,
            ),
        ]),
    },
    Case {
        says: "names and paths that look like numbers are text",
        values: "{fullnameOverride: '123', priorityClassName: '123', image: {tag: '1'}, \
                 stateDir: /1, serviceAccount: {name: '1e3'}}",
        release: Some("123"),
        kubernetes: None,
        expected: Renders(&[
            ("ConfigMap metadata name", Is(r#""123""#)),
            ("ClusterRole metadata name", Is(r#""123""#)),
            ("ClusterRoleBinding roleRef name", Is(r#""123""#)),
            ("ClusterRoleBinding subjects 1e3 name", Is(r#""1e3""#)),
            ("ServiceAccount metadata name", Is(r#""1e3""#)),
            ("DaemonSet metadata name", Is(r#""123""#)),
            (
                "DaemonSet spec selector matchLabels",
                Is(r#"{"app.kubernetes.io/name":"tokentrail","app.kubernetes.io/instance":"123"}"#),
            ),
            ("DaemonSet spec template metadata labels app.kubernetes.io/instance", Is(r#""123""#)),
            ("DaemonSet spec template spec serviceAccountName", Is(r#""1e3""#)),
            ("DaemonSet spec template spec priorityClassName", Is(r#""123""#)),
            (
                "DaemonSet spec template spec containers agent image",
                Is(r#""localhost/tokentrail:1""#),
            ),
            ("DaemonSet spec template spec volumes config configMap name", Is(r#""123""#)),
            ("DaemonSet spec template spec volumes state hostPath path", Is(r#""/1""#)),
        ]),
    },
    case(
        "a folder may be inside another's, but for the container's own",
        "{stateDir: /var/log/tokentrail/state, audit: {logFile: /var/log/audit.log}}",
        Renders(&[
            (
                "DaemonSet spec template spec containers agent volumeMounts state mountPath",
                Is(r#""/var/log/tokentrail/state""#),
            ),
            (
                "DaemonSet spec template spec containers agent volumeMounts audit mountPath",
                Is(r#""/var/log""#),
            ),
        ]),
    ),
    case(
        "without a priority class none is named",
        "priorityClassName: ''",
        Renders(&[("DaemonSet spec template spec priorityClassName", Absent)]),
    ),
    case(
        "the namespace's Pod Security level is not the chart's to set",
        "",
        Renders(&[("Namespace", Absent)]),
    ),
];

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
    case(
        "answers may come over NATS alone, with a login that all agents share",
        "{clusterName: prod, audit: {mode: nats}, nats: {url: 'tls://a:4222, tls://b:4222', \
         secretName: login, user: agents, passwordFile: password, caFile: ca.crt}}",
        Renders(&[
            ("ConfigMap data config.yaml nats", Is(r#""tls://a:4222, tls://b:4222""#)),
            ("ConfigMap data config.yaml nats-user", Is(r#""agents""#)),
            (
                "ConfigMap data config.yaml nats-password-file",
                Is(r#""/run/tokentrail/nats/password""#),
            ),
            ("ConfigMap data config.yaml nats-ca-file", Is(r#""/run/tokentrail/nats/ca.crt""#)),
            ("ConfigMap data config.yaml nats-nkey-file", Absent),
            ("ConfigMap data config.yaml audit-log", Absent),
            (
                "DaemonSet spec template spec volumes nats",
                Is(r#"{"name":"nats","secret":{"secretName":"login"}}"#),
            ),
            (
                "DaemonSet spec template spec containers agent volumeMounts nats",
                Is(r#"{"name":"nats","mountPath":"/run/tokentrail/nats","readOnly":true}"#),
            ),
            ("DaemonSet spec template spec volumes audit", Absent),
            ("Deployment", Absent),
            ("Service", Absent),
        ]),
    ),
    case(
        "or with each node's own, beside a log where there is one",
        "{clusterName: prod, nats: {url: 'nats://a', nodeFolder: /etc/nats, \
         credentialsFile: agent.creds}, config: {nats-publish-alerts: false}}",
        Renders(&[
            ("ConfigMap data config.yaml nats-publish-alerts", Is("false")),
            (
                "DaemonSet spec template spec volumes nats hostPath",
                Is(r#"{"path":"/etc/nats","type":"Directory"}"#),
            ),
            (
                "ConfigMap data config.yaml nats-credentials-file",
                Is(r#""/run/tokentrail/nats/agent.creds""#),
            ),
            ("ConfigMap data config.yaml audit-log-optional", Is("true")),
            ("DaemonSet spec template spec volumes audit name", Is(r#""audit""#)),
        ]),
    ),
    case(
        "API servers may post to the agents",
        "{audit: {mode: webhook, webhook: {secretName: tls, tokens: true, \
         service: {clusterIP: 10.96.0.99}}}, networkPolicy: {enabled: true}}",
        Renders(&[
            ("ConfigMap data config.yaml audit-log", Absent),
            ("ConfigMap data config.yaml audit-webhook", Is(r#""0.0.0.0:9643""#)),
            (
                "ConfigMap data config.yaml audit-webhook-client-ca-file",
                Is(r#""/run/tokentrail/webhook/ca.crt""#),
            ),
            (
                "ConfigMap data config.yaml audit-webhook-token-file",
                Is(r#""/run/tokentrail/webhook/tokens""#),
            ),
            (
                "DaemonSet spec template spec volumes webhook",
                Is(r#"{"name":"webhook","secret":{"secretName":"tls"}}"#),
            ),
            (
                "DaemonSet spec template spec containers agent ports webhook containerPort",
                Is("9643"),
            ),
            ("Service spec clusterIP", Is(r#""10.96.0.99""#)),
            (
                "Service spec selector",
                Is(
                    r#"{"app.kubernetes.io/name":"tokentrail","app.kubernetes.io/instance":"tokentrail"}"#,
                ),
            ),
            (
                "NetworkPolicy spec ingress",
                Is(r#"[{"ports":[{"protocol":"TCP","port":9464}]},
                    {"ports":[{"protocol":"TCP","port":9643}]}]"#),
            ),
            ("Deployment", Absent),
        ]),
    ),
    case(
        "an audit side has no privilege and nothing of its node",
        AUDIT_SIDE,
        Renders(&[
            ("Deployment spec template spec hostPID", Absent),
            ("Deployment spec template spec hostNetwork", Absent),
            ("Deployment spec template spec priorityClassName", Absent),
            (
                "Deployment spec template spec securityContext",
                Is(r#"{"runAsNonRoot":true,"runAsUser":65532,"runAsGroup":65532,"fsGroup":65532,
                    "seccompProfile":{"type":"RuntimeDefault"}}"#),
            ),
            (
                "Deployment spec template spec containers audit-side securityContext",
                Is(r#"{"privileged":false,"allowPrivilegeEscalation":false,
                    "readOnlyRootFilesystem":true,"capabilities":{"drop":["ALL"]}}"#),
            ),
            (
                "Deployment spec template spec volumes",
                Is(r#"[
                {"name":"config","configMap":{"name":"tokentrail"}},
                {"name":"state","emptyDir":{"sizeLimit":"256Mi"}},
                {"name":"webhook","secret":{"secretName":"tls","defaultMode":288}},
                {"name":"nats","secret":{"secretName":"audit-login","defaultMode":288}}]"#),
            ),
        ]),
    ),
    case(
        "it takes posts, answers over NATS, and is nobody's agent",
        AUDIT_SIDE,
        Renders(&[
            ("ConfigMap data audit-side.yaml no-sensor", Is("true")),
            ("ConfigMap data audit-side.yaml audit-webhook", Is(r#""0.0.0.0:9643""#)),
            ("ConfigMap data audit-side.yaml nats", Is(r#""nats://a:4222""#)),
            ("ConfigMap data audit-side.yaml cluster-name", Is(r#""prod""#)),
            ("ConfigMap data audit-side.yaml nats-look-back-mib", Is("64")),
            // In a file, or they would not be published; and no larger than half of the volume `state`.
            (
                "ConfigMap data audit-side.yaml alert-log",
                Is(r#""/var/lib/tokentrail/alerts.ndjson""#),
            ),
            ("ConfigMap data audit-side.yaml alert-log-max-mib", Is("32")),
            ("ConfigMap data audit-side.yaml alert-log-keep", Is("3")),
            ("ConfigMap data audit-side.yaml no-kube", Is("false")),
            ("ConfigMap data audit-side.yaml audit-canary-seconds", Is("0")),
            ("Deployment spec template spec automountServiceAccountToken", Is("true")),
            ("Deployment spec template spec serviceAccountName", Is(r#""tokentrail""#)),
            ("ConfigMap data config.yaml audit-webhook", Absent),
            (
                "Deployment spec template spec containers audit-side env NODE_NAME valueFrom fieldRef fieldPath",
                Is(r#""metadata.name""#),
            ),
            (
                "Deployment spec selector matchLabels",
                Is(
                    r#"{"app.kubernetes.io/name":"tokentrail-audit","app.kubernetes.io/instance":"tokentrail"}"#,
                ),
            ),
            (
                "Service spec selector",
                Is(
                    r#"{"app.kubernetes.io/name":"tokentrail-audit","app.kubernetes.io/instance":"tokentrail"}"#,
                ),
            ),
            ("Service metadata name", Is(r#""tokentrail-audit""#)),
            ("Service spec publishNotReadyAddresses", Is("true")),
        ]),
    ),
    case(
        "where its alerts are not published they are in its pods' logs",
        "{clusterName: prod, audit: {mode: nats, webhook: {secretName: tls}}, nats: {url: 'nats://a'}, \
         auditSide: {enabled: true, config: {nats-publish-alerts: false}}}",
        Renders(&[
            ("ConfigMap data audit-side.yaml alert-log", Is(r#""-""#)),
            ("ConfigMap data audit-side.yaml nats-publish-alerts", Is("false")),
        ]),
    ),
    case(
        "an audit side has no token where agents have none",
        "{clusterName: prod, audit: {mode: nats, webhook: {secretName: tls}}, nats: {url: 'nats://a'}, \
         auditSide: {enabled: true}, kubeApi: {enabled: false}}",
        Renders(&[
            ("ConfigMap data audit-side.yaml no-kube", Is("true")),
            ("Deployment spec template spec automountServiceAccountToken", Is("false")),
            ("Deployment spec template spec serviceAccountName", Absent),
        ]),
    ),
    case(
        "by default nobody may exec into anything, for no test",
        "",
        Renders(&[("Role", Absent), ("RoleBinding", Absent), ("Pod", Absent)]),
    ),
    case(
        "`helm test` has a victim on each node, and a role for as long as it runs",
        "test: {enabled: true, image: 'registry.example/kubectl:1'}",
        Renders(&[
            ("Pod metadata annotations helm.sh/hook", Is(r#""test""#)),
            ("Pod spec containers test image", Is(r#""registry.example/kubectl:1""#)),
            // What has the agents' name is the DaemonSet's to delete.
            ("Pod metadata labels app.kubernetes.io/name", Is(r#""tokentrail-test""#)),
            ("Role metadata annotations helm.sh/hook", Is(r#""test""#)),
            (
                "Role metadata annotations helm.sh/hook-delete-policy",
                Is(r#""before-hook-creation,hook-succeeded,hook-failed""#),
            ),
        ]),
    ),
];

/// An audit side for all nodes, with a login of its own.
const AUDIT_SIDE: &str = "{clusterName: prod, audit: {mode: nats, webhook: {secretName: tls}}, \
     nats: {url: 'nats://a:4222', nodeFolder: /etc/nats, nkeyFile: agent.nk}, \
     auditSide: {enabled: true, replicas: 2, natsSecretName: audit-login, \
     config: {nats-look-back-mib: 64}}, networkPolicy: {enabled: true}, \
     metrics: {podMonitor: {enabled: true}}}";

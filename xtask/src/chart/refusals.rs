//! Values that the chart must refuse, and the words by which one finds out what to set instead.

use super::case::{Case, Expected::Refused, case};

pub(super) const REFUSALS: &[Case] = &[
    Case {
        says: "a Kubernetes without maxSurge is refused",
        values: "",
        release: None,
        kubernetes: Some("v1.24.0"),
        expected: Refused("kubeVersion"),
    },
    case(
        "what the chart does not know is refused",
        "audit: {logfile: /var/log/audit.log}",
        Refused("logfile"),
    ),
    case("a route that does not exist is refused", "route: lsm", Refused("route")),
    case("a relative path is refused", "stateDir: here", Refused("stateDir")),
    case("a path that leads back is refused", "stateDir: /var/../etc", Refused("stateDir")),
    case("a folder of two names is refused", "stateDir: /var/lib/x/", Refused("stateDir")),
    case("a port is a number", "admin: {port: all}", Refused("port")),
    case(
        "state and alerts are not mounted at one path",
        "stateDir: /var/log/tokentrail",
        Refused(
            "stateDir and the folder of alertLog.file would both be mounted at \
             /var/log/tokentrail: give each a folder of its own",
        ),
    ),
    case(
        "audit log and alerts are not mounted at one path",
        "audit: {logFile: /var/log/tokentrail/audit.log}",
        Refused(
            "the folder of audit.logFile and the folder of alertLog.file would both be mounted",
        ),
    ),
    case(
        "audit log and state are not mounted at one path",
        "{audit: {logFile: /data/audit.log}, stateDir: /data}",
        Refused("stateDir and the folder of audit.logFile would both be mounted at /data"),
    ),
    case(
        "a further mount does not take the place of one of the chart's",
        "extraVolumeMounts: [{name: mine, mountPath: /sys/fs/cgroup/}]",
        Refused("the cgroup tree and a mount of extraVolumeMounts would both be mounted"),
    ),
    case(
        "a further volume does not take the name of one of the chart's",
        "extraVolumes: [{name: audit, emptyDir: {}}]",
        Refused("a volume of extraVolumes is named audit"),
    ),
    case(
        "state does not hide the configuration",
        "stateDir: /etc/tokentrail",
        Refused("stateDir is /etc/tokentrail, where the agent's container has files of its own"),
    ),
    case(
        "alerts do not go into the configuration",
        "alertLog: {file: /etc/tokentrail/alerts/a.ndjson}",
        Refused("the folder of alertLog.file is /etc/tokentrail/alerts, where"),
    ),
    case(
        "an audit log does not hide the kernel's file systems",
        "audit: {logFile: /proc/audit.log}",
        Refused("the folder of audit.logFile is /proc, where"),
    ),
    case(
        "a key that mounts follow is refused, and the value named",
        "config: {state-dir: /data}",
        Refused("config.state-dir is not taken: set stateDir"),
    ),
    case(
        "so it is for the alert log",
        "config: {alert-log: /data/a}",
        Refused("config.alert-log is not taken: set alertLog.file"),
    ),
    case(
        "so it is for what outlives the agent",
        "config: {pin-dir: /sys/fs/bpf/x}",
        Refused("config.pin-dir is not taken: set bpffs"),
    ),
    case(
        "so it is for its rotation",
        "config: {alert-log-keep: 9}",
        Refused("config.alert-log-keep is not taken: set alertLog.keep"),
    ),
    case(
        "so it is for the size of it",
        "config: {alert-log-max-mib: 9}",
        Refused("config.alert-log-max-mib is not taken: set alertLog.maxMiB"),
    ),
    case(
        "so it is for labels",
        "config: {pod-labels: [app]}",
        Refused("config.pod-labels is not taken: set alertLog.podLabels"),
    ),
    case(
        "so it is for the audit log",
        "config: {audit-log: [/data/a]}",
        Refused("config.audit-log is not taken: set audit.logFile"),
    ),
    case(
        "so it is for whether there must be one",
        "config: {audit-log-optional: false}",
        Refused("config.audit-log-optional is not taken: set audit.optional"),
    ),
    case(
        "so it is for the address that probes ask",
        "config: {admin-listen: '0.0.0.0:1'}",
        Refused("config.admin-listen is not taken: set admin.address and admin.port"),
    ),
    case(
        "so it is for the cluster's name",
        "config: {cluster-name: prod}",
        Refused("config.cluster-name is not taken: set clusterName"),
    ),
    case(
        "so it is for the kubelet's folder",
        "config: {kubelet-root: /data}",
        Refused("config.kubelet-root is not taken: set kubeletRoot"),
    ),
    case(
        "so it is for the kubelet's group",
        "config: {kubelet-cgroup: /kubelet}",
        Refused("config.kubelet-cgroup is not taken: set kubeletCgroup"),
    ),
    case(
        "so it is for the route",
        "config: {route: kprobe}",
        Refused("config.route is not taken: set route"),
    ),
    case(
        "so it is for the API",
        "config: {no-kube: true}",
        Refused("config.no-kube is not taken: set kubeApi.enabled"),
    ),
    case(
        "no name is every node's",
        "config: {node-name: a}",
        Refused("config.node-name is not taken: each pod is told its own node's"),
    ),
    case(
        "nor is it by way of the environment",
        "extraEnv: [{name: NODE_NAME, value: a}]",
        Refused("NODE_NAME in extraEnv is not taken"),
    ),
    case(
        "updates hand over, always",
        "config: {take-over: false}",
        Refused("config.take-over is not taken: it is always on"),
    ),
    case(
        "what is refused as a key is refused as an option",
        "extraArgs: ['--audit-log=/a', --state-dir, /data]",
        Refused("--state-dir in extraArgs is not taken: set stateDir"),
    ),
    case(
        "there is one configuration file",
        "extraArgs: ['--config=/data/c.yaml']",
        Refused("--config=/data/c.yaml in extraArgs is not taken: set config"),
    ),
    case(
        "a pod keeps the labels by which it is selected",
        "podLabels: {app.kubernetes.io/name: other}",
        Refused("podLabels may not have app.kubernetes.io/name, which the chart sets itself"),
    ),
    case(
        "so does a PodMonitor",
        "metrics: {podMonitor: {labels: {helm.sh/chart: other}}}",
        Refused("metrics.podMonitor.labels may not have helm.sh/chart"),
    ),
    case(
        "no annotation is there twice",
        "podAnnotations: {prometheus.io/port: '1'}",
        Refused("podAnnotations may not have prometheus.io/port"),
    ),
    case(
        "an image's name is one word",
        "image: {repository: 'a: b'}",
        Refused("/image/repository"),
    ),
    case(
        "a tag has a place of its own",
        "image: {repository: 'registry.example/tokentrail:1'}",
        Refused("/image/repository"),
    ),
    case("an object's name is one", "fullnameOverride: 'a: b'", Refused("/fullnameOverride")),
    case(
        "an address that the kubelet cannot reach is refused",
        "admin: {address: 127.0.0.1}",
        Refused(
            "admin.address is 127.0.0.1, where the kubelet's probes and Prometheus do not reach \
             the agent: set 0.0.0.0, or :: where pods have IPv6 addresses only",
        ),
    ),
    case("so it is in IPv6", "admin: {address: '::1'}", Refused("admin.address is ::1, where")),
    case(
        "answers over NATS take a server",
        "audit: {mode: nats}",
        Refused("audit.mode is nats, but there is no server: set nats.url"),
    ),
    case("there are three ways to audit events", "audit: {mode: stdin}", Refused("mode")),
    case(
        "on a server that clusters may share each has a name",
        "nats: {url: 'nats://a'}",
        Refused("set clusterName"),
    ),
    case(
        "no login is in an address",
        "{clusterName: c, nats: {url: 'nats://user:word@a'}}",
        Refused("/nats/url"),
    ),
    case(
        "files are somewhere",
        "{clusterName: c, nats: {url: 'nats://a', caFile: ca.crt}}",
        Refused("nats names files (ca.crt), but not where they are"),
    ),
    case(
        "a place has files",
        "{clusterName: c, nats: {url: 'nats://a', secretName: s}}",
        Refused("none of the files in s is named: set nats.credentialsFile"),
    ),
    case(
        "there is one place",
        "{clusterName: c, nats: {url: 'nats://a', secretName: s, nodeFolder: /n, nkeyFile: a.nk}}",
        Refused("nats.secretName and nats.nodeFolder are two places"),
    ),
    case(
        "there is one login",
        "{clusterName: c, nats: {url: 'nats://a', secretName: s, nkeyFile: a.nk, credentialsFile: c}}",
        Refused("nats has more than one login"),
    ),
    case(
        "a file of a Secret is no path",
        "{clusterName: c, nats: {url: 'nats://a', secretName: s, nkeyFile: ../n}}",
        Refused("/nats/nkeyFile"),
    ),
    case(
        "a login of each node is not one user's",
        "{clusterName: c, nats: {url: 'nats://a', nodeFolder: /n, user: u, passwordFile: p}}",
        Refused("nats.user is one for all nodes"),
    ),
    case(
        "a login is for a server",
        "nats: {secretName: s, nkeyFile: a.nk}",
        Refused("nats.url is empty, but"),
    ),
    case(
        "so it is for the server",
        "config: {nats: 'nats://a'}",
        Refused("config.nats is not taken: set nats.url"),
    ),
    case(
        "so it is for a login's file",
        "config: {nats-nkey-file: /n}",
        Refused("config.nats-nkey-file is not taken: set nats.nkeyFile"),
    ),
    case(
        "posts take a certificate",
        "audit: {mode: webhook}",
        Refused("audit.webhook.secretName is empty"),
    ),
    case(
        "not everybody posts",
        "audit: {mode: webhook, webhook: {secretName: s, clientCa: false}}",
        Refused("anybody could post audit events"),
    ),
    case(
        "posts go to one place",
        "{clusterName: c, audit: {mode: webhook, webhook: {secretName: s}}, \
         nats: {url: 'nats://a'}, auditSide: {enabled: true}}",
        Refused("would both take the API servers' posts"),
    ),
    case(
        "an audit side answers somebody",
        "{audit: {webhook: {secretName: s}}, auditSide: {enabled: true}}",
        Refused("auditSide.enabled, but there is nobody to answer: set nats.url"),
    ),
    case(
        "it has no node's login",
        "{clusterName: c, audit: {webhook: {secretName: s}}, nats: {url: 'nats://a', \
         nodeFolder: /n, nkeyFile: a.nk}, auditSide: {enabled: true}}",
        Refused("auditSide does not read nats.nodeFolder: set auditSide.natsSecretName"),
    ),
    case(
        "what it is cannot be configured away",
        "{clusterName: c, audit: {webhook: {secretName: s}}, nats: {url: 'nats://a'}, \
         auditSide: {enabled: true, config: {no-sensor: false}}}",
        Refused("auditSide.config.no-sensor is not taken"),
    ),
    case(
        "a test takes an image with a shell",
        "test: {enabled: true}",
        Refused("test.image is empty: name an image with sh, sleep and kubectl"),
    ),
];

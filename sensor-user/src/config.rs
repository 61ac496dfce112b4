//! Flags, environment and file become one validated [`Config`]. A flag wins over its environment
//! variable, that over the file, that over the default. Whatever is wrong is one error that names
//! the key.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    api::Access,
    audit::webhook::WebhookConfig,
    kernel::{RouteChoice, SensorConfig, pins},
    nats::NatsConfig,
};

mod nats;
mod webhook;

/// How late audit events may come at most. A node asks for an incident's requests as far back.
const LONGEST_LATENESS: Duration = Duration::from_hours(12);

/// Options of `tokentrail run` and `tokentrail check`.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Configuration file (YAML); its keys are the long names of these options and a few more
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Audit log of a kube-apiserver to follow, `-` is standard input; may be given several times
    #[arg(long, value_name = "FILE")]
    pub audit_log: Vec<PathBuf>,
    /// A node without the audit log is ready all the same: only control-plane nodes have one
    #[arg(long)]
    pub audit_log_optional: bool,
    /// Take audit events over HTTPS at this address, as kube-apiserver's
    /// `--audit-webhook-config-file` sends them; certificates are named in the configuration file
    #[arg(long, value_name = "ADDR")]
    pub audit_webhook: Option<SocketAddr>,
    /// Exchange questions and answers with other nodes over NATS JetStream at this URL, as
    /// nats://host:4222; several of one NATS cluster are separated by commas. What to log in with is
    /// named in the configuration file
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// Where alerts go, one JSON document a line; `-` is standard output
    /// [default: /var/log/tokentrail/alerts.ndjson]
    #[arg(long, value_name = "FILE")]
    pub alert_log: Option<PathBuf>,
    /// Where checkpoint and journal are kept [default: /var/lib/tokentrail]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address of /metrics, /livez, /readyz and /statusz [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// Name of this node in Kubernetes [default: the host's name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Name of the cluster; part of alerts and of their ids
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// How to reach the Kubernetes API [default: as a pod does, where KUBERNETES_SERVICE_HOST is set]
    #[arg(long, value_name = "FILE", conflicts_with = "no_kube")]
    pub kubeconfig: Option<PathBuf>,
    /// Never talk to the Kubernetes API
    #[arg(long)]
    pub no_kube: bool,
    /// The kubelet's directory [default: /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub kubelet_root: Option<PathBuf>,
    /// Cgroup below which this node's pods are, as `/kubelet`; matters only where several nodes
    /// share a kernel [default: where the agent's own pod is]
    #[arg(long, value_name = "PATH")]
    pub kubelet_cgroup: Option<String>,
    /// While another agent holds the state directory, stand by: be ready, and take over from it
    /// without a gap when it ends
    #[arg(long)]
    pub take_over: bool,
    /// Keep what is attached in this directory of a BPF file system, as /sys/fs/bpf/tokentrail, so that
    /// opens while no agent runs are read by the next one; `tokentrail uninstall` removes it
    /// [default: it ends with the agent]
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Hook route; `auto` takes the first that works [default: auto]
    #[arg(long, value_enum)]
    pub route: Option<RouteChoice>,
    /// Where the route is `exit`, see opens by 32-bit calls (`int 0x80`) too; each system call of the
    /// machine then takes longer
    #[arg(long)]
    pub compat_opens: bool,
    /// Also write every token open that is seen to this file, as ECS documents
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Exceptions to rules, exclusions and decoys (YAML); read anew when it changes
    #[arg(long, value_name = "FILE")]
    pub rules_file: Option<PathBuf>,
    /// Follow audit logs only; load nothing into the kernel
    #[arg(long)]
    pub no_sensor: bool,
    /// Log format on standard error [default: text]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Least severity that is logged [default: info]
    #[arg(long, value_enum, env = "TOKENTRAIL_LOG_LEVEL")]
    pub log_level: Option<LogLevel>,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

/// Values of `--log-level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Data was lost or somebody must act.
    Error,
    /// Recovered from.
    Warn,
    /// Starts, stops, changes of state.
    #[default]
    Info,
    /// A line an event.
    Debug,
    /// Everything.
    Trace,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct FileConfig {
    audit_log: Vec<PathBuf>,
    audit_log_optional: bool,
    audit_webhook: Option<SocketAddr>,
    audit_webhook_cert_file: Option<PathBuf>,
    audit_webhook_key_file: Option<PathBuf>,
    audit_webhook_client_ca_file: Option<PathBuf>,
    audit_webhook_token_file: Option<PathBuf>,
    audit_webhook_max_body_mib: Option<u32>,
    audit_webhook_lateness_seconds: Option<u32>,
    nats: Option<String>,
    nats_credentials_file: Option<PathBuf>,
    nats_nkey_file: Option<PathBuf>,
    nats_user: Option<String>,
    nats_password_file: Option<PathBuf>,
    nats_ca_file: Option<PathBuf>,
    nats_cert_file: Option<PathBuf>,
    nats_key_file: Option<PathBuf>,
    nats_patience_seconds: Option<u32>,
    nats_look_back_mib: Option<u32>,
    nats_publish_alerts: Option<bool>,
    alert_log: Option<PathBuf>,
    alert_log_max_mib: Option<u64>,
    alert_log_keep: Option<u32>,
    state_dir: Option<PathBuf>,
    admin_listen: Option<SocketAddr>,
    node_name: Option<String>,
    cluster_name: Option<String>,
    kubeconfig: Option<PathBuf>,
    no_kube: bool,
    kubelet_root: Option<PathBuf>,
    kubelet_cgroup: Option<String>,
    pod_labels: BTreeSet<String>,
    take_over: bool,
    pin_dir: Option<PathBuf>,
    route: Option<RouteChoice>,
    compat_opens: bool,
    record: Option<PathBuf>,
    rules_file: Option<PathBuf>,
    no_sensor: bool,
    log_format: Option<LogFormat>,
    log_level: Option<LogLevel>,
    audit_lateness_seconds: Option<u32>,
    audit_canary_seconds: Option<u32>,
    self_test_seconds: Option<u32>,
    learning_seconds: Option<u32>,
    canary_dir: Option<PathBuf>,
    btf: Option<PathBuf>,
}

/// Everything the agent needs to know, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Audit logs to follow.
    pub audit_logs: Vec<PathBuf>,
    /// Whether standard input is one.
    pub audit_stdin: bool,
    /// Whether this node need not have them.
    pub audit_log_optional: bool,
    /// Where and how to take audit events over HTTPS, if at all.
    pub audit_webhook: Option<WebhookConfig>,
    /// How to exchange questions and answers with other nodes, if at all.
    pub nats: Option<NatsConfig>,
    /// Alert log, `-` for standard output.
    pub alert_log: PathBuf,
    /// Size at which it is rotated, bytes.
    pub alert_log_max_bytes: u64,
    /// Rotated files that are kept.
    pub alert_log_keep: u32,
    /// State directory.
    pub state_dir: PathBuf,
    /// Admin address.
    pub admin_listen: SocketAddr,
    /// This node.
    pub node_name: String,
    /// The cluster, if named.
    pub cluster_name: Option<String>,
    /// How to reach the Kubernetes API; `None`: not at all.
    pub kube: Option<Access>,
    /// The kubelet's directory.
    pub kubelet_root: PathBuf,
    /// The group that holds this node's `kubepods`, if said.
    pub kubelet_cgroup: Option<String>,
    /// Labels of pods that alerts show.
    pub pod_labels: BTreeSet<String>,
    /// Whether to stand by while another agent holds the state directory.
    pub take_over: bool,
    /// Directory on a BPF file system in which what is attached outlives the agent, if it is to.
    pub pin_dir: Option<PathBuf>,
    /// Hook route.
    pub route: RouteChoice,
    /// Whether the exit route looks at 32-bit calls.
    pub compat_opens: bool,
    /// Where to record opens.
    pub record: Option<PathBuf>,
    /// Exceptions to rules, exclusions, decoys.
    pub rules_file: Option<PathBuf>,
    /// Audit side only.
    pub no_sensor: bool,
    /// Log format.
    pub log_format: LogFormat,
    /// Log level.
    pub log_level: LogLevel,
    /// How late an audit line may be written after its request was received.
    pub audit_lateness: Duration,
    /// Time between two requests of the audit canary; `None`: there is none.
    pub audit_canary_every: Option<Duration>,
    /// The same for the webhook: the API server gathers events, and tries again for minutes.
    pub audit_webhook_lateness: Duration,
    /// Time between two self-tests of the sensor.
    pub self_test_every: Duration,
    /// How long a workload is watched before what it was not seen to do counts as new.
    pub learning: Duration,
    /// Directory on tmpfs for the self-test's file.
    pub canary_dir: Option<PathBuf>,
    /// BTF of the kernel, where it is not at its usual place.
    pub btf: Option<PathBuf>,
}

/// The configuration is unusable. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has a key or value that is not understood.
    #[error("the configuration file {} is not valid: {reason}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// The parser's own words, with line and key.
        reason: String,
    },
    /// A value that cannot be.
    #[error("{key} is {value:?}, but {must}")]
    Value {
        /// Name of the option.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        must: &'static str,
    },
    /// The same file is both read and written, or read twice.
    #[error("{} is named twice: as {first} and as {second}", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
        /// One use.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
}

impl Config {
    /// Reads the file that the flags name, if any, and puts all together.
    pub fn resolve(args: RunArgs) -> Result<Self, ConfigError> {
        let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        Self::merge(args, file)
    }

    /// How the sensor is to start.
    pub fn sensor(&self) -> SensorConfig {
        SensorConfig {
            route: self.route,
            compat_opens: self.compat_opens,
            btf: self.btf.clone(),
            canary_dir: self.canary_dir.clone(),
            pin_dir: self.pin_dir.as_ref().map(|it| pins::of_node(it, &self.node_name)),
        }
    }

    /// Whether audit events come to this agent by itself, and not over the broker alone.
    pub fn has_audit_source(&self) -> bool {
        !self.audit_logs.is_empty() || self.audit_stdin || self.audit_webhook.is_some()
    }

    fn merge(args: RunArgs, mut file: FileConfig) -> Result<Self, ConfigError> {
        let audit_webhook = webhook::resolve(args.audit_webhook, &mut file)?;
        let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let node_name = args.node_name.or(file.node_name.take()).unwrap_or_else(host_name);
        let cluster_name = args.cluster_name.or(file.cluster_name.take());
        let nats = nats::resolve(args.nats, &node_name, cluster_name.as_deref(), &mut file)?;
        let kubeconfig = args.kubeconfig.or(file.kubeconfig);
        let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let kube = match kubeconfig {
            _ if args.no_kube || file.no_kube => None,
            Some(path) => Some(Access::Kubeconfig(path)),
            None => in_cluster.then_some(Access::InCluster),
        };
        let mut audit_logs =
            if args.audit_log.is_empty() { file.audit_log } else { args.audit_log };
        let logs = audit_logs.len();
        audit_logs.retain(|path| path != Path::new("-"));
        if logs - audit_logs.len() > 1 {
            let (first, second) = ("audit-log", "audit-log");
            return Err(ConfigError::SameFile { path: "-".into(), first, second });
        }
        let seconds =
            |value: Option<u32>, default| Duration::from_secs(value.unwrap_or(default).into());
        let config = Self {
            audit_stdin: audit_logs.len() < logs,
            audit_logs,
            audit_log_optional: args.audit_log_optional || file.audit_log_optional,
            audit_webhook,
            nats,
            alert_log: args
                .alert_log
                .or(file.alert_log)
                .unwrap_or_else(|| "/var/log/tokentrail/alerts.ndjson".into()),
            alert_log_max_bytes: file.alert_log_max_mib.unwrap_or(100).saturating_mul(1 << 20),
            alert_log_keep: file.alert_log_keep.unwrap_or(5),
            state_dir: args
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| "/var/lib/tokentrail".into()),
            admin_listen: args
                .admin_listen
                .or(file.admin_listen)
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9464))),
            node_name,
            cluster_name,
            kube,
            kubelet_root: args
                .kubelet_root
                .or(file.kubelet_root)
                .unwrap_or_else(|| "/var/lib/kubelet".into()),
            kubelet_cgroup: args.kubelet_cgroup.or(file.kubelet_cgroup),
            pod_labels: file.pod_labels,
            take_over: args.take_over || file.take_over,
            pin_dir: args.pin_dir.or(file.pin_dir),
            route: args.route.or(file.route).unwrap_or_default(),
            compat_opens: args.compat_opens || file.compat_opens,
            record: args.record.or(file.record),
            rules_file: args.rules_file.or(file.rules_file),
            no_sensor: args.no_sensor || file.no_sensor,
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            log_level: args.log_level.or(file.log_level).unwrap_or_default(),
            audit_lateness: seconds(file.audit_lateness_seconds, 75),
            audit_canary_every: Some(seconds(file.audit_canary_seconds, 300))
                .filter(|every| !every.is_zero()),
            audit_webhook_lateness: seconds(file.audit_webhook_lateness_seconds, 300),
            self_test_every: seconds(file.self_test_seconds, 300),
            learning: seconds(file.learning_seconds, 600),
            canary_dir: file.canary_dir,
            btf: file.btf,
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let bad = |key, value: &dyn ToString, must| {
            Err(ConfigError::Value { key, value: value.to_string(), must })
        };
        if self.node_name.is_empty() {
            return bad("node-name", &"", "it must name this node as Kubernetes does");
        }
        if self.cluster_name.as_deref() == Some("") {
            return bad("cluster-name", &"", "it must not be empty");
        }
        if self.alert_log_max_bytes == 0 {
            return bad("alert-log-max-mib", &0, "it must be at least 1");
        }
        if self.alert_log_keep == 0 {
            return bad(
                "alert-log-keep",
                &0,
                "it must be at least 1, or rotation would lose alerts",
            );
        }
        if self.self_test_every.is_zero() {
            return bad("self-test-seconds", &0, "it must be at least 1");
        }
        if let Some(cgroup) = &self.kubelet_cgroup
            && !cgroup.starts_with('/')
        {
            return bad("kubelet-cgroup", cgroup, "it must begin with a slash, as /kubelet");
        }
        if !self.kubelet_root.is_absolute() {
            let root = self.kubelet_root.display();
            return bad("kubelet-root", &root, "it must be an absolute path");
        }
        if let Some(directory) = self.pin_dir.as_ref().filter(|it| !it.is_absolute()) {
            return bad("pin-dir", &directory.display(), "it must be an absolute path");
        }
        if self.no_sensor && self.pin_dir.is_some() {
            return bad("pin-dir", &"set", "without the sensor there is nothing to keep attached");
        }
        if self.no_sensor && !self.has_audit_source() {
            return bad("no-sensor", &true, "without an audit source there is nothing left to do");
        }
        self.validate_lateness()?;
        if self.no_sensor && self.record.is_some() {
            return bad("record", &"set", "without the sensor there are no opens to record");
        }
        let mut named: Vec<(&Path, &'static str)> = Vec::new();
        let uses = self.audit_logs.iter().map(|path| (path.as_path(), "audit-log")).chain(
            [
                (Some(&self.alert_log), "alert-log"),
                (self.record.as_ref(), "record"),
                (self.rules_file.as_ref(), "rules-file"),
            ]
            .into_iter()
            .filter_map(|(path, key)| path.map(|path| (path.as_path(), key))),
        );
        for (path, second) in uses {
            if let Some((_, first)) = named.iter().find(|(other, _)| *other == path) {
                return Err(ConfigError::SameFile { path: path.to_owned(), first, second });
            }
            named.push((path, second));
        }
        Ok(())
    }

    /// What comes late must find that somebody waits for it, on other nodes too.
    fn validate_lateness(&self) -> Result<(), ConfigError> {
        let follows = !self.audit_logs.is_empty() || self.audit_stdin;
        let (followed, posted) = (self.audit_lateness, self.audit_webhook_lateness);
        let patience = self.nats.as_ref().map_or(Duration::MAX, |nats| nats.patience);
        for (is_used, key, lateness) in [
            (follows, "audit-lateness-seconds", followed),
            (self.audit_webhook.is_some(), "audit-webhook-lateness-seconds", posted),
        ] {
            let must = match lateness {
                _ if !is_used => continue,
                _ if lateness > LONGEST_LATENESS => "it must be at most 43200, half a day",
                _ if lateness >= patience => {
                    "it must be less than nats-patience-seconds, or nodes take what was opened to be \
                     over before its requests come"
                }
                _ => continue,
            };
            let value = lateness.as_secs().to_string();
            return Err(ConfigError::Value { key, value, must });
        }
        Ok(())
    }
}

fn read_file(path: &Path) -> Result<FileConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.trim().is_empty() {
        return Ok(FileConfig::default());
    }
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Parse { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, yaml).unwrap();
        Config::resolve(RunArgs { config: Some(path), ..RunArgs::default() })
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, "node-name: from-file\nstate-dir: /from-file\n").unwrap();
        let config = Config::resolve(RunArgs {
            config: Some(path),
            node_name: Some("from-flag".into()),
            ..RunArgs::default()
        })
        .unwrap();
        assert_eq!(config.node_name, "from-flag");
        assert_eq!(config.state_dir, Path::new("/from-file"));
        assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9464");
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        assert_eq!(parse("").unwrap().alert_log, Path::new("/var/log/tokentrail/alerts.ndjson"));
        assert_eq!(parse("# nothing\n").unwrap().audit_lateness, Duration::from_secs(75));
    }

    #[test]
    fn a_dash_is_standard_input_and_an_audit_source() {
        let config = parse("{no-sensor: true, audit-log: [/a, '-'], alert-log: '-'}").unwrap();
        assert!(config.audit_stdin && config.audit_logs == [Path::new("/a")]);
        let config = parse("{no-sensor: true, audit-log: ['-']}").unwrap();
        assert!(config.has_audit_source() && config.audit_logs.is_empty());
        assert!(!parse("").unwrap().has_audit_source());
    }

    #[test]
    fn audit_events_may_be_hours_late_where_nodes_wait_for_as_long() {
        let late = "{audit-log: [/a], audit-lateness-seconds: 7200, nats: 'nats://a', \
                    cluster-name: c, node-name: n, nats-patience-seconds: 10800}";
        assert_eq!(parse(late).unwrap().audit_lateness, Duration::from_hours(2));
    }

    #[test]
    fn the_audit_canary_can_be_turned_off() {
        let every = |yaml| parse(yaml).unwrap().audit_canary_every;
        assert_eq!(every(""), Some(Duration::from_secs(300)));
        assert_eq!(every("audit-canary-seconds: 0"), None);
    }

    #[test]
    fn what_is_wrong_is_one_error_that_names_the_key() {
        for (yaml, named) in [
            ("audit-lgo: [/a]", "audit-lgo"),
            ("route: uprobe", "route"),
            ("admin-listen: everywhere", "admin-listen"),
            ("alert-log-keep: 0", "alert-log-keep"),
            ("alert-log-max-mib: 0", "alert-log-max-mib"),
            ("node-name: ''", "node-name"),
            ("kubelet-cgroup: kubelet", "kubelet-cgroup"),
            ("kubelet-root: here", "kubelet-root"),
            ("pin-dir: bpf", "pin-dir"),
            ("{no-sensor: true, audit-log: [/a], pin-dir: /b}", "pin-dir"),
            ("no-sensor: true", "no-sensor"),
            ("{audit-log: [/a, /a]}", "audit-log"),
            ("{audit-log: ['-', '-']}", "audit-log"),
            ("{audit-log: [/a], audit-lateness-seconds: 43201}", "audit-lateness-seconds"),
            (
                "{audit-log: [/a], audit-lateness-seconds: 3600, nats: 'nats://a', cluster-name: c, \
                 node-name: n}",
                "nats-patience-seconds",
            ),
            ("{audit-log: [/a], alert-log: /a}", "alert-log"),
            ("{audit-log: [/a], rules-file: /a}", "rules-file"),
            ("- a list", "not valid"),
        ] {
            let error = parse(yaml).unwrap_err().to_string();
            assert!(error.contains(named), "{yaml}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let args = RunArgs { config: Some("/no/such".into()), ..RunArgs::default() };
        assert!(Config::resolve(args).unwrap_err().to_string().contains("/no/such"));
    }
}

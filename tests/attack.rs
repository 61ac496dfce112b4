//! Attacks in a real cluster of two nodes, with the agent installed by its chart from its image: what
//! the API server, the kubelet and containerd really do, and the alerts that must follow, on the
//! right node and there alone. `cargo xtask test` brings the cluster up and installs the agent.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{
    PATIENCE, TOKEN_PATH,
    cluster::{
        BOX_IMAGE, Cluster, ClusterNode, CutOff,
        deployment::{Deployment, Package},
        victim::Victim,
    },
    wait_until,
};

/// A request that the pods of these tests may make, and one that they may not.
const ALLOWED: &str = "pods";
const DENIED: &str = "secrets/db";
/// What a probe of these tests does, once a second.
const READ_AND_LIST: &str = "cat /var/run/secrets/kubernetes.io/serviceaccount/token > /dev/null; apicall /api/v1/nodes; true";

/// The cluster with its agents, and what tests do in it.
struct Scene<'cluster> {
    cluster: &'cluster Cluster,
    agents: Deployment<'cluster>,
}

/// Held by the test that may change the agents.
static AGENTS: Mutex<()> = Mutex::new(());

/// Runs a test that has the agents for itself, and that leaves them as they were installed.
fn with_scene(test: impl FnOnce(&Scene<'_>) -> Result<()>) {
    let _alone = AGENTS.lock().unwrap_or_else(PoisonError::into_inner);
    with_shared_scene(|scene| {
        let outcome = catch_unwind(AssertUnwindSafe(|| test(scene)));
        if !matches!(outcome, Ok(Ok(()))) {
            // What it left behind is not to fail the tests after it.
            scene.restore()?;
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    });
}

/// Runs a test while others change the agents.
#[expect(clippy::unwrap_used, reason = "a test fails by panicking, with the error and its causes")]
fn with_shared_scene(test: impl FnOnce(&Scene<'_>) -> Result<()>) {
    let run = || {
        let name = std::env::var("TOKENTRAIL_CLUSTER")
            .context("TOKENTRAIL_CLUSTER names no cluster; `cargo xtask test` brings one up")?;
        let cluster = Cluster::attach(&name)?;
        let agents = Deployment::attach(&cluster, Package::from_environment()?);
        test(&Scene { cluster: &cluster, agents })
    };
    run().unwrap();
}

impl<'cluster> Scene<'cluster> {
    fn node_a(&self) -> Result<&'cluster ClusterNode> {
        self.cluster.node("node-a")
    }

    fn node_b(&self) -> Result<&'cluster ClusterNode> {
        self.cluster.node("node-b")
    }

    /// The agents as they were installed.
    fn restore(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            self.agents.helm(node, &json!({}))?;
        }
        self.agents.wait_until_ready()
    }

    fn victim(&self, node: &'cluster ClusterNode) -> Result<Victim<'cluster>> {
        Victim::create(self.cluster, node, &json!({}))
    }

    /// The alert about this victim on its node, once it is there.
    fn alert(&self, victim: &Victim<'_>) -> Result<Value> {
        let alerts = self.agents.alerts(victim.node);
        let what = format!("{} alerts about {}", victim.node.name(), victim.namespace);
        alerts.wait_for(&what, |it| victim.is_of(it)).with_context(|| self.agents.said(victim.node))
    }

    /// All alerts about this victim, by node.
    fn alerts(&self, victim: &Victim<'_>) -> Result<Vec<(&'static str, Value)>> {
        let mut found = Vec::new();
        for node in self.cluster.nodes() {
            let alerts = self.agents.alerts(node).matching(|it| victim.is_of(it))?;
            found.extend(alerts.into_iter().map(|alert| (node.name(), alert)));
        }
        Ok(found)
    }

    /// Attacks a pod made for this on each node. All opens and audit lines of before have gone
    /// through the agents by then.
    fn settle(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            let witness = self.victim(node)?;
            witness.exec(&["-it"], &read_and_ask(&witness))?;
            self.alert(&witness)?;
        }
        Ok(())
    }

    /// The one alert about this victim, after everything of before has gone through.
    fn only_alert(&self, victim: &Victim<'_>) -> Result<Value> {
        self.alert(victim)?;
        self.settle()?;
        let mut alerts = self.alerts(victim)?;
        ensure!(alerts.len() == 1, "not one alert but {}: {alerts:#?}", alerts.len());
        let (node, alert) = alerts.remove(0);
        ensure!(node == victim.node.name(), "{node} alerted: {alert:#}");
        Ok(alert)
    }

    /// Attacks in one way, and returns the one alert that there is.
    fn alert_after(
        &self,
        options: &[&str],
        script: impl Fn(&Victim<'_>) -> String,
    ) -> Result<Value> {
        let victim = self.victim(self.node_a()?)?;
        let done = victim.exec(options, &script(&victim))?;
        self.only_alert(&victim).with_context(|| format!("{done:?}"))
    }
}

/// Shell: the program that asks reads the token itself.
/// A container whose liveness probe is this command.
fn probe_of(command: &[&str]) -> Value {
    json!({"livenessProbe": {
        "periodSeconds": 1, "timeoutSeconds": 5, "exec": {"command": command},
    }})
}

fn read_and_ask(victim: &Victim<'_>) -> String {
    format!("apicall {}", victim.uri(ALLOWED))
}

/// Shell: a token from elsewhere is used.
fn ask_with(token: &str, victim: &Victim<'_>) -> String {
    format!("apicall --insecure --token {} {}", token.trim(), victim.uri(ALLOWED))
}

fn text<'value>(value: &'value Value, pointer: &str) -> &'value str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn grade(alert: &Value) -> &str {
    text(alert, "/tokentrail/grade")
}

#[test]
fn a_token_read_at_a_terminal_and_used_is_one_alert_with_everything_in_it() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a()?)?;
        let (allowed, denied) = (victim.uri(ALLOWED), victim.uri(DENIED));
        let script = format!("cat {TOKEN_PATH} >/dev/null; apicall {allowed}; apicall {denied}");
        let done = victim.exec(&["-it"], &script)?;
        assert!(done.output.contains("200 ") && done.output.contains("403 "), "{done:?}");
        let alert = scene.only_alert(&victim)?;
        for (field, expected) in [
            ("/rule/name", "token-access-then-api-request"),
            ("/tokentrail/grade", "interactive"),
            ("/orchestrator/namespace", &*victim.namespace),
            ("/orchestrator/resource/name", "cart"),
            ("/orchestrator/resource/label/0", "app:cart"),
            ("/orchestrator/cluster/name", scene.cluster.name()),
            ("/tokentrail/pod/service_account", "cart"),
            ("/tokentrail/pod/container", "main"),
            ("/container/name", "main"),
            ("/container/image/name", "registry.test/box"),
            ("/container/image/tag/0", "1"),
            ("/host/name", "node-a"),
            ("/client/user/name", "kubernetes-admin"),
            ("/kubernetes/audit/verb", "list"),
            ("/kubernetes/audit/objectRef/resource", "pods"),
            ("/tokentrail/evidence/origin/address", "pod"),
            ("/event/outcome", "success"),
        ] {
            assert_eq!(text(&alert, field), expected, "{field} in {alert:#}");
        }
        let user = format!("system:serviceaccount:{}:cart", victim.namespace);
        assert_eq!(text(&alert, "/user/name"), user);
        assert!(text(&alert, "/container/image/hash/all/0").starts_with("sha256:"), "{alert:#}");
        assert_eq!(text(&alert, "/host/ip/0"), victim.node.ip().to_string());
        Ok(())
    });
}

#[test]
fn the_grade_tells_how_somebody_got_in() {
    with_scene(|scene| {
        let ask = |victim: &Victim<'_>| read_and_ask(victim);
        assert_eq!(grade(&scene.alert_after(&[], ask)?), "exec");
        // Without -i kubectl asks for no terminal, whatever -t says (kubectl `SetupTTY`).
        assert_eq!(grade(&scene.alert_after(&["-t"], ask)?), "exec");
        let silent = |victim: &Victim<'_>| format!("{} 2>/dev/null", ask(victim));
        assert_eq!(grade(&scene.alert_after(&["-it"], silent)?), "terminal");
        Ok(())
    });
}

#[test]
fn a_debug_container_that_reads_its_neighbours_token_is_named() {
    with_scene(|scene| {
        for (options, expected) in [(&["-it"][..], "interactive"), (&[], "exec")] {
            let victim = scene.victim(scene.node_a()?)?;
            let script = format!(
                "apicall --insecure --token-file /proc/1/root{TOKEN_PATH} {}",
                victim.uri(ALLOWED)
            );
            let place = ["debug", "--namespace", &victim.namespace, victim.pod];
            let how = ["--image", BOX_IMAGE, "--image-pull-policy=Never", "--target=main"];
            let command = ["--container=debugger", "--", "sh", "-c", &script];
            let args = [&place, options, &how, &command].concat();
            let done = if options.is_empty() {
                scene.cluster.kubectl(&args)?
            } else {
                scene.cluster.kubectl_tty(&args)?
            };
            let alert = scene.only_alert(&victim).with_context(|| format!("{done:?}"))?;
            assert_eq!(grade(&alert), expected, "{alert:#}");
            assert_eq!(text(&alert, "/container/name"), "debugger", "{alert:#}");
            assert_eq!(text(&alert, "/tokentrail/pod/container"), "ephemeral");
        }
        Ok(())
    });
}

#[test]
fn a_pod_of_the_same_name_elsewhere_explains_nothing() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a()?)?;
        let busy = json!({"command": ["apicall", "--every", "200ms", "/version"]});
        let namesake = Victim::create(scene.cluster, scene.node_a()?, &busy)?;
        victim.exec(&["-it"], &format!("cat {TOKEN_PATH}"))?;
        scene.settle()?;
        let none = (scene.alerts(&victim)?, scene.alerts(&namesake)?);
        assert!(none.0.is_empty() && none.1.is_empty(), "{none:#?}");
        victim.exec(&["-it"], &read_and_ask(&victim))?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!(text(&alert, "/orchestrator/namespace"), victim.namespace);
        assert!(scene.alerts(&namesake)?.is_empty());
        Ok(())
    });
}

#[test]
fn a_pod_that_is_deleted_at_once_is_still_told_of_by_name() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a()?)?;
        victim.exec(&["-it"], &read_and_ask(&victim))?;
        let args = ["delete", "pod", "cart", "--namespace", &victim.namespace];
        scene.cluster.kubectl_ok(&[&args[..], &["--force", "--grace-period=0"]].concat())?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!(text(&alert, "/orchestrator/resource/name"), "cart");
        assert_eq!(text(&alert, "/container/name"), "main", "{alert:#}");
        Ok(())
    });
}

#[test]
fn a_token_that_the_kubelet_renews_meanwhile_is_still_that_pods_and_the_kubelet_is_silent() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a()?)?;
        let folder = format!("{}/..data", TOKEN_PATH.trim_end_matches("/token"));
        // While the kubelet restarts there is no answer, which is no version.
        let version = || -> Result<Option<String>> {
            let done = victim.exec(&[], &format!("readlink {folder}"))?;
            Ok(Some(done.output).filter(|version| !version.is_empty()))
        };
        let before = version()?.context("the token has no version")?;
        victim.exec(&["-it"], &format!("cat {TOKEN_PATH} > /tmp/taken"))?;
        let seen = || -> Result<(f64, f64)> {
            let count = |name, label| scene.agents.metric(victim.node, name, &[label]);
            Ok((
                count("tokentrail_attribution_ignored_total", "reason=\"kubelet\"")?,
                count("tokentrail_attribution_opens_total", "grade=\"outside\"")?,
            ))
        };
        let earlier = seen()?;
        victim.node.restart_kubelet()?;
        wait_until(PATIENCE, "the kubelet has renewed the token", || {
            Ok(version()?.filter(|version| *version != before))
        })?;
        let ask = format!("apicall --token-file /tmp/taken {}", victim.uri(ALLOWED));
        victim.exec(&["-it"], &ask)?;
        assert_eq!(grade(&scene.only_alert(&victim)?), "interactive");
        // The kubelet wrote the new one and read the old one.
        let after = seen()?;
        assert!(after.0 > earlier.0 && after.1 <= earlier.1, "{earlier:?}, then {after:?}");
        Ok(())
    });
}

#[test]
fn a_token_used_from_a_pod_of_another_node_alerts_where_it_was_read() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a()?)?;
        let thief = scene.victim(scene.node_b()?)?;
        let stolen = victim.exec(&["-it"], &format!("cat {TOKEN_PATH}"))?.output;
        // Its own volume is not touched: only the victim's token is used.
        thief.exec(&[], &ask_with(&stolen, &victim))?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!(text(&alert, "/tokentrail/evidence/origin/address"), "neither", "{alert:#}");
        assert!(!alert.to_string().contains(stolen.trim()), "a token in an alert");
        Ok(())
    });
}

#[test]
fn an_agent_that_is_replaced_between_open_and_request_still_alerts() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a()?)?;
        victim.exec(&["-it"], &format!("cp {TOKEN_PATH} /tmp/taken"))?;
        scene.agents.restart(victim.node)?;
        let ask = format!("apicall --insecure --token-file /tmp/taken {}", victim.uri(ALLOWED));
        // Without a terminal and without a file of the volume: only the first open explains it.
        victim.exec(&[], &ask)?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!((grade(&alert), text(&alert, "/container/name")), ("interactive", "main"));
        Ok(())
    });
}

#[test]
fn an_update_leaves_no_moment_in_which_an_attack_goes_unseen() {
    with_scene(|scene| {
        let node = scene.node_a()?;
        let before = text(&scene.agents.pod(node)?, "/metadata/uid").to_owned();
        let victims: Vec<_> = (0..6).map(|_| scene.victim(node)).collect::<Result<_>>()?;
        let probed = Victim::create(scene.cluster, node, &probe_of(&["sh", "-c", READ_AND_LIST]))?;
        // Any change of the template is an update.
        scene.agents.helm(node, &json!({"podAnnotations": {"updated": "once"}}))?;
        for victim in &victims {
            victim.exec(&["-it"], &read_and_ask(victim))?;
        }
        scene.agents.wait_until_ready()?;
        assert_ne!(text(&scene.agents.pod(node)?, "/metadata/uid"), before);
        for victim in &victims {
            scene.alert(victim)?;
        }
        scene.settle()?;
        for victim in &victims {
            let alerts = scene.alerts(victim)?;
            assert_eq!(alerts.len(), 1, "{alerts:#?}");
        }
        // What the standing-by agent saw of a probe is still a probe's, though its process is gone.
        let alerts = scene.alerts(&probed)?;
        assert!(alerts.is_empty(), "{alerts:#?}");
        Ok(())
    });
}

#[test]
fn without_the_kubernetes_api_alerts_go_out_and_are_whole_again_afterwards() {
    with_scene(|scene| {
        let node = scene.node_b()?;
        let thief = scene.victim(scene.node_a()?)?;
        let cut = node.cut_off(CutOff::Pods)?;
        scene.agents.restart(node)?;
        scene.agents.wait_for_status(node, "the agent says that it lacks names", |status| {
            status["degraded"].to_string().contains("node's pods")
                || status["degraded"].to_string().contains("names of pods are missing")
        })?;
        // The pod's own way to the API server is cut as well: the token is used from elsewhere.
        let victim = scene.victim(node)?;
        let stolen = victim.exec(&["-it"], &format!("cat {TOKEN_PATH}"))?.output;
        thief.exec(&[], &ask_with(&stolen, &victim))?;
        let alert = scene.alert(&victim)?;
        assert_eq!(text(&alert, "/orchestrator/resource/id"), victim.uid);
        assert!(alert.pointer("/container/name").is_none(), "nobody told it: {alert:#}");
        assert!(alert["tokentrail"]["sensor"]["degraded"].to_string().contains("pods"));
        cut.mend()?;
        scene.agents.wait_for_status(node, "the agent has all names again", |status| {
            !status["degraded"].to_string().contains("pods")
        })?;
        let later = scene.victim(node)?;
        later.exec(&["-it"], &read_and_ask(&later))?;
        assert_eq!(text(&scene.only_alert(&later)?, "/container/name"), "main");
        Ok(())
    });
}

#[test]
fn an_agent_finds_its_own_requests_in_the_audit_log() {
    with_scene(|scene| {
        for node in scene.cluster.nodes() {
            scene.agents.wait_for_status(node, "its canary is heard", |status| {
                text(status, "/audit_canary/state") == "heard"
            })?;
        }
        Ok(())
    });
}

#[test]
fn without_permission_the_agent_says_which_one_it_lacks() {
    with_scene(|scene| {
        let node = scene.node_b()?;
        let binding = format!("tokentrail-{}", node.name());
        scene.cluster.kubectl_ok(&["delete", "clusterrolebinding", &binding])?;
        scene.agents.restart(node)?;
        scene.agents.wait_for_status(node, "the agent says what it lacks", |status| {
            status["degraded"].to_string().contains("may not list and watch pods")
        })?;
        let refused = "tokentrail_pods_api_errors_total";
        assert!(scene.agents.metric(node, refused, &["reason=\"forbidden\""])? >= 1.0);
        scene.agents.helm(node, &json!({}))?;
        scene.agents.wait_for_status(node, "the agent has its permission back", |status| {
            !status["degraded"].to_string().contains("pods")
        })?;
        scene.agents.wait_until_ready()
    });
}

/// Chart values: a capability is added, or not.
fn with(capability: &str, added: bool) -> Value {
    json!({"security": {"capabilities": {capability: added}}})
}

#[test]
fn without_sys_ptrace_the_kubelet_is_taken_for_an_intruder() {
    with_scene(|scene| {
        let node = scene.node_b()?;
        let opens = |labels: &[&str]| {
            scene.agents.metric(node, "tokentrail_attribution_opens_total", labels)
        };
        let _victim = scene.victim(node)?;
        // Without it the kubelet's executable cannot be looked at.
        scene.agents.helm(node, &with("sysPtrace", false))?;
        scene.agents.wait_until_ready()?;
        node.restart_kubelet()?;
        wait_until(PATIENCE, "without SYS_PTRACE the kubelet is taken for an intruder", || {
            Ok((opens(&["grade=\"outside\""]).unwrap_or_default() > 0.0).then_some(()))
        })?;
        scene.agents.helm(node, &json!({}))?;
        scene.agents.wait_until_ready()?;
        node.restart_kubelet()?;
        let ignored = "tokentrail_attribution_ignored_total";
        wait_until(PATIENCE, "with it the kubelet is known", || {
            let count = scene.agents.metric(node, ignored, &["reason=\"kubelet\""]);
            Ok((count.unwrap_or_default() > 0.0).then_some(()))
        })?;
        Ok(())
    });
}

#[test]
fn an_audit_log_that_is_not_roots_needs_dac_read_search() {
    with_scene(|scene| {
        let node = scene.node_b()?;
        // An agent that cannot read what it is told to does not replace one that can.
        let before = text(&scene.agents.pod(node)?, "/metadata/uid").to_owned();
        let folder = scene.cluster.folder().join("others");
        fs::create_dir_all(&folder)?;
        let log = folder.join("audit.log");
        fs::write(&log, "")?;
        chown(&log, Some(1_000), Some(1_000))?;
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600))?;
        let audit_log = |path: &Path| format!("--audit-log={}", path.display());
        for (granted, expected) in [(false, "Permission denied"), (true, "ok")] {
            let mut values = with("dacReadSearch", granted);
            values["extraArgs"] = json!([audit_log(&scene.cluster.audit_log()), audit_log(&log)]);
            values["extraVolumes"] = json!([{"name": "others", "hostPath": {"path": folder}}]);
            values["extraVolumeMounts"] =
                json!([{"name": "others", "mountPath": folder, "readOnly": true}]);
            values["audit"] = json!({"optional": false});
            scene.agents.helm(node, &values)?;
            let what = format!("with DAC_READ_SEARCH {granted} the other's log is {expected}");
            let name = format!("audit log {}", log.display());
            // Not ready, the new agent stands beside the old one: all of the node's are asked.
            wait_until(PATIENCE, &what, || {
                let statuses = scene.agents.statuses(node)?;
                let found = statuses.iter().any(|status| {
                    let state = status["conditions"][&name].as_str();
                    state.is_some_and(|why| why.contains(expected))
                });
                Ok(found.then_some(()))
            })?;
            if granted {
                scene.agents.wait_until_ready()?;
            }
            let uids = scene.agents.uids(node)?;
            assert_eq!(uids.contains(&before), !granted, "{granted}: {uids:?}");
        }
        scene.agents.helm(node, &json!({}))?;
        scene.agents.wait_until_ready()
    });
}

#[test]
fn a_workload_that_polls_and_a_probe_that_reads_the_token_never_alert() {
    // Beside the other tests: they change agents, but never keep node-a's from the pod index.
    with_shared_scene(|scene| {
        let node = scene.node_a()?;
        let create = |container: &Value| Victim::create(scene.cluster, node, container);
        let poller = create(&json!({"command": ["apicall", "--every", "5s", "/api/v1/nodes"]}))?;
        let probed = create(&probe_of(&["sh", "-c", READ_AND_LIST]))?;
        let mut script = probe_of(&["/probe.sh"]);
        script["command"] = json!([
            "sh",
            "-c",
            format!(
                "printf '#!/bin/sh\\n{READ_AND_LIST}\\n' > /probe.sh; chmod +x /probe.sh; exec sleep 9999"
            )
        ]);
        let scripted = create(&script)?;
        // A shell that becomes its last command is still the probe that it began as.
        let replaced = create(&probe_of(&["sh", "-c", "exec apicall /api/v1/nodes"]))?;
        let began = SystemTime::now();
        let two_minutes = Duration::from_secs(120);
        wait_until(two_minutes + PATIENCE, "they have gone on for two minutes", || {
            std::thread::park_timeout(Duration::from_secs(1));
            Ok((began.elapsed()? >= two_minutes).then_some(()))
        })?;
        // They are seen: silence is no blindness.
        let seen = || {
            let labels = ["grade=\"workload\""];
            scene.agents.metric(node, "tokentrail_attribution_opens_total", &labels).ok()
        };
        let mut before = None;
        wait_until(PATIENCE, "their reads are counted", || {
            // An agent that another test has just replaced counts anew.
            let now = seen();
            before = before.filter(|before| now >= Some(*before)).or(now);
            Ok((now > before.map(|before| before + 10.0)).then_some(()))
        })?;
        scene.settle()?;
        for victim in [&poller, &probed, &scripted, &replaced] {
            let alerts = scene.alerts(victim)?;
            assert!(alerts.is_empty(), "{alerts:#?}");
            let requests = fs::read_to_string(scene.cluster.audit_log())?;
            let count = requests.lines().filter(|line| line.contains(&victim.uid)).count();
            assert!(count >= 20, "only {count} requests of {}", victim.namespace);
        }
        Ok(())
    });
}

#[test]
fn the_plain_manifests_are_accepted_by_a_real_api_server() {
    with_scene(|scene| {
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests/tokentrail.yaml");
        let text = fs::read_to_string(manifests)?;
        // The namespace is there already: a dry run would not find one that it only pretends to make.
        let args = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let done = scene.cluster.kubectl_with_input(&args, &text)?;
        assert!(done.success(), "{done:?}");
        Ok(())
    });
}

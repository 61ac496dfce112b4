//! Attacks in a real cluster of two nodes, with the agent installed by its chart from its image: what
//! the API server, the kubelet and containerd really do, and the alerts that must follow, on the
//! right node and there alone. `cargo xtask test` brings the cluster up and installs the agent.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokentrail_tests::{
    Finished, PATIENCE, TOKEN_PATH,
    cluster::{
        BOX_IMAGE, Cluster, ClusterNode, CutOff,
        deployment::{Deployment, NAMESPACE, Package},
    },
    wait_until,
};

/// A request that the pods of these tests may make, and one that they may not.
const ALLOWED: &str = "/pods";
const DENIED: &str = "/secrets/db";

/// The cluster with its agents, and what tests do in it.
struct Scene<'cluster> {
    cluster: &'cluster Cluster,
    agents: Deployment<'cluster>,
}

/// A pod that is attacked.
struct Victim<'cluster> {
    node: &'cluster ClusterNode,
    namespace: String,
    pod: &'static str,
    uid: String,
}

fn with_scene(test: impl FnOnce(&Scene<'_>) -> Result<()>) {
    let run = || {
        let name = std::env::var("TOKENTRAIL_CLUSTER")
            .context("TOKENTRAIL_CLUSTER names no cluster; `cargo xtask test` brings one up")?;
        let cluster = Cluster::attach(&name)?;
        let agents = Deployment::attach(&cluster, Package::from_environment()?);
        test(&Scene { cluster: &cluster, agents })
    };
    if let Err(error) = run() {
        panic!("{error:?}");
    }
}

impl<'cluster> Scene<'cluster> {
    fn node_a(&self) -> &'cluster ClusterNode {
        &self.cluster.nodes()[0]
    }

    fn node_b(&self) -> &'cluster ClusterNode {
        &self.cluster.nodes()[1]
    }

    /// A pod in a namespace of its own, whose account may list pods there and nothing else.
    fn victim(&self, node: &'cluster ClusterNode) -> Result<Victim<'cluster>> {
        self.victim_with(node, &json!({}))
    }

    /// The same, with more in its container.
    fn victim_with(
        &self,
        node: &'cluster ClusterNode,
        container: &Value,
    ) -> Result<Victim<'cluster>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("shop-{}-{number}", std::process::id());
        self.cluster.create_namespace(&namespace)?;
        let mut main = json!({"name": "main", "image": BOX_IMAGE, "imagePullPolicy": "Never"});
        for (key, value) in container.as_object().into_iter().flatten() {
            main[key] = value.clone();
        }
        let name = json!({"name": "cart", "namespace": namespace});
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name,
             "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name,
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "cart"},
             "subjects": [{"kind": "ServiceAccount", "name": "cart", "namespace": namespace}]},
            {"apiVersion": "v1", "kind": "Pod",
             "metadata": {"name": "cart", "namespace": namespace, "labels": {"app": "cart"}},
             "spec": {"serviceAccountName": "cart", "nodeName": node.name(),
                      "terminationGracePeriodSeconds": 1, "containers": [main]}},
        ]});
        self.cluster.apply(&objects.to_string())?;
        self.cluster.wait_for_pod(&namespace, "cart")?;
        let pod = self.cluster.get(&["pod", "cart", "--namespace", &namespace])?;
        let uid = text(&pod, "/metadata/uid").to_owned();
        Ok(Victim { node, namespace, pod: "cart", uid })
    }

    /// `kubectl exec` with these options.
    fn exec(&self, victim: &Victim<'_>, options: &[&str], script: &str) -> Result<Finished> {
        let place = ["exec", "--namespace", &victim.namespace, victim.pod];
        let args = [&place, options, &["--", "sh", "-c", script]].concat();
        if options.contains(&"-it") || options.contains(&"-t") {
            self.cluster.kubectl_tty(&args)
        } else {
            self.cluster.kubectl(&args)
        }
    }

    /// The alert about this victim on its node, once it is there.
    fn alert(&self, victim: &Victim<'_>) -> Result<Value> {
        let alerts = self.agents.alerts(victim.node);
        let what = format!("{} alerts about {}", victim.node.name(), victim.namespace);
        alerts
            .wait_for(&what, |it| is_alert(it, victim))
            .with_context(|| self.agents.said(victim.node))
    }

    /// All alerts about this victim, by node.
    fn alerts(&self, victim: &Victim<'_>) -> Result<Vec<(&'static str, Value)>> {
        let mut found = Vec::new();
        for node in self.cluster.nodes() {
            let alerts = self.agents.alerts(node).matching(|it| is_alert(it, victim))?;
            found.extend(alerts.into_iter().map(|alert| (node.name(), alert)));
        }
        Ok(found)
    }

    /// Attacks a pod made for this on each node. All opens and audit lines of before have gone
    /// through the agents by then.
    fn settle(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            let witness = self.victim(node)?;
            self.exec(&witness, &["-it"], &read_and_ask(&witness, ALLOWED))?;
            self.alert(&witness)?;
            self.remove(&witness)?;
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

    fn remove(&self, victim: &Victim<'_>) -> Result<()> {
        let args = ["delete", "namespace", &victim.namespace, "--wait=false"];
        self.cluster.kubectl_ok(&args).map(drop)
    }

    /// Attacks in one way, and returns the one alert that there is.
    fn alert_after(
        &self,
        options: &[&str],
        script: impl Fn(&Victim<'_>) -> String,
    ) -> Result<Value> {
        let victim = self.victim(self.node_a())?;
        let done = self.exec(&victim, options, &script(&victim))?;
        let alert = self.only_alert(&victim).with_context(|| format!("{done:?}"))?;
        self.remove(&victim)?;
        Ok(alert)
    }
}

/// Shell: the program that asks reads the token itself.
fn read_and_ask(victim: &Victim<'_>, what: &str) -> String {
    format!("apicall {}", uri(victim, what))
}

fn uri(victim: &Victim<'_>, what: &str) -> String {
    format!("/api/v1/namespaces/{}{what}", victim.namespace)
}

fn is_alert(document: &Value, victim: &Victim<'_>) -> bool {
    text(document, "/tokentrail/kind") == "alert"
        && text(document, "/orchestrator/resource/id") == victim.uid
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
        let victim = scene.victim(scene.node_a())?;
        let (allowed, denied) = (uri(&victim, ALLOWED), uri(&victim, DENIED));
        let script = format!("cat {TOKEN_PATH} >/dev/null; apicall {allowed}; apicall {denied}");
        let done = scene.exec(&victim, &["-it"], &script)?;
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
        scene.remove(&victim)
    });
}

#[test]
fn the_grade_tells_how_somebody_got_in() {
    with_scene(|scene| {
        let ask = |victim: &Victim<'_>| read_and_ask(victim, ALLOWED);
        assert_eq!(grade(&scene.alert_after(&[], ask)?), "exec");
        assert_eq!(grade(&scene.alert_after(&["-t"], ask)?), "interactive", "-t without -i");
        let silent = |victim: &Victim<'_>| format!("{} 2>/dev/null", ask(victim));
        assert_eq!(grade(&scene.alert_after(&["-it"], silent)?), "terminal");
        Ok(())
    });
}

#[test]
fn a_debug_container_that_reads_its_neighbours_token_is_named() {
    with_scene(|scene| {
        for (options, expected) in [(&["-it"][..], "interactive"), (&[], "exec")] {
            let victim = scene.victim(scene.node_a())?;
            let script = format!(
                "apicall --insecure --token-file /proc/1/root{TOKEN_PATH} {}",
                uri(&victim, ALLOWED)
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
            scene.remove(&victim)?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_of_the_same_name_elsewhere_explains_nothing() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a())?;
        let busy = json!({"command": ["apicall", "--every", "200ms", "/version"]});
        let namesake = scene.victim_with(scene.node_a(), &busy)?;
        scene.exec(&victim, &["-it"], &format!("cat {TOKEN_PATH}"))?;
        scene.settle()?;
        let none = (scene.alerts(&victim)?, scene.alerts(&namesake)?);
        assert!(none.0.is_empty() && none.1.is_empty(), "{none:#?}");
        scene.exec(&victim, &["-it"], &read_and_ask(&victim, ALLOWED))?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!(text(&alert, "/orchestrator/namespace"), victim.namespace);
        assert!(scene.alerts(&namesake)?.is_empty());
        scene.remove(&victim)?;
        scene.remove(&namesake)
    });
}

#[test]
fn a_pod_that_is_deleted_at_once_is_still_told_of_by_name() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a())?;
        scene.exec(&victim, &["-it"], &read_and_ask(&victim, ALLOWED))?;
        let args = ["delete", "pod", "cart", "--namespace", &victim.namespace];
        scene.cluster.kubectl_ok(&[&args[..], &["--force", "--grace-period=0"]].concat())?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!(text(&alert, "/orchestrator/resource/name"), "cart");
        assert_eq!(text(&alert, "/container/name"), "main", "{alert:#}");
        scene.remove(&victim)
    });
}

#[test]
fn a_token_that_the_kubelet_renews_meanwhile_is_still_that_pods_and_the_kubelet_is_silent() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a())?;
        let folder = format!("{}/..data", TOKEN_PATH.trim_end_matches("/token"));
        let version = || -> Result<String> {
            Ok(scene.exec(&victim, &[], &format!("readlink {folder}"))?.output)
        };
        let before = version()?;
        scene.exec(&victim, &["-it"], &format!("cat {TOKEN_PATH} > /tmp/taken"))?;
        victim.node.restart_kubelet()?;
        wait_until(PATIENCE, "the kubelet has renewed the token", || {
            Ok((version()? != before).then_some(()))
        })?;
        let ask = format!("apicall --token-file /tmp/taken {}", uri(&victim, ALLOWED));
        scene.exec(&victim, &["-it"], &ask)?;
        assert_eq!(grade(&scene.only_alert(&victim)?), "interactive");
        for node in scene.cluster.nodes() {
            let outside = scene.agents.alerts(node).matching(|it| grade(it) == "outside")?;
            assert!(outside.is_empty(), "the kubelet reads and writes its volumes: {outside:#?}");
        }
        scene.remove(&victim)
    });
}

#[test]
fn a_token_used_from_a_pod_of_another_node_alerts_where_it_was_read() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a())?;
        let thief = scene.victim(scene.node_b())?;
        let stolen = scene.exec(&victim, &["-it"], &format!("cat {TOKEN_PATH}"))?.output;
        // Its own volume is not touched: only the victim's token is used.
        let ask = format!("apicall --insecure --token {} {}", stolen.trim(), uri(&victim, ALLOWED));
        scene.exec(&thief, &[], &ask)?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!(text(&alert, "/tokentrail/evidence/origin/address"), "neither", "{alert:#}");
        assert!(!alert.to_string().contains(stolen.trim()), "a token in an alert");
        scene.remove(&victim)?;
        scene.remove(&thief)
    });
}

#[test]
fn an_agent_that_is_replaced_between_open_and_request_still_alerts() {
    with_scene(|scene| {
        let victim = scene.victim(scene.node_a())?;
        scene.exec(&victim, &["-it"], &format!("cp {TOKEN_PATH} /tmp/taken"))?;
        scene.agents.restart(victim.node)?;
        let ask = format!("apicall --insecure --token-file /tmp/taken {}", uri(&victim, ALLOWED));
        // Without a terminal and without a file of the volume: only the first open explains it.
        scene.exec(&victim, &[], &ask)?;
        let alert = scene.only_alert(&victim)?;
        assert_eq!((grade(&alert), text(&alert, "/container/name")), ("interactive", "main"));
        scene.remove(&victim)
    });
}

#[test]
fn an_update_leaves_no_moment_in_which_an_attack_goes_unseen() {
    with_scene(|scene| {
        let node = scene.node_a();
        let before = text(&scene.agents.pod(node)?, "/metadata/uid").to_owned();
        let victims: Vec<_> = (0..6).map(|_| scene.victim(node)).collect::<Result<_>>()?;
        // Any change of the template is an update.
        scene.agents.helm(node, &json!({"podAnnotations": {"updated": "once"}}))?;
        for victim in &victims {
            scene.exec(victim, &["-it"], &read_and_ask(victim, ALLOWED))?;
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
            scene.remove(victim)?;
        }
        Ok(())
    });
}

#[test]
fn without_the_kubernetes_api_alerts_go_out_and_are_whole_again_afterwards() {
    with_scene(|scene| {
        let node = scene.node_b();
        let thief = scene.victim(scene.node_a())?;
        let cut = node.cut_off(CutOff::Pods)?;
        scene.agents.restart(node)?;
        scene.agents.wait_for_status(node, "the agent says that it lacks names", |status| {
            status["degraded"].to_string().contains("node's pods")
                || status["degraded"].to_string().contains("names of pods are missing")
        })?;
        // The pod's own way to the API server is cut as well: the token is used from elsewhere.
        let victim = scene.victim(node)?;
        let stolen = scene.exec(&victim, &["-it"], &format!("cat {TOKEN_PATH}"))?.output;
        let ask = format!("apicall --insecure --token {} {}", stolen.trim(), uri(&victim, ALLOWED));
        scene.exec(&thief, &[], &ask)?;
        let alert = scene.alert(&victim)?;
        assert_eq!(text(&alert, "/orchestrator/resource/id"), victim.uid);
        assert!(alert.pointer("/container/name").is_none(), "nobody told it: {alert:#}");
        assert!(alert["tokentrail"]["sensor"]["degraded"].to_string().contains("pods"));
        cut.mend()?;
        scene.agents.wait_for_status(node, "the agent has all names again", |status| {
            !status["degraded"].to_string().contains("pods")
        })?;
        let later = scene.victim(node)?;
        scene.exec(&later, &["-it"], &read_and_ask(&later, ALLOWED))?;
        assert_eq!(text(&scene.only_alert(&later)?, "/container/name"), "main");
        for victim in [&victim, &thief, &later] {
            scene.remove(victim)?;
        }
        Ok(())
    });
}

#[test]
fn without_permission_the_agent_says_which_one_it_lacks() {
    with_scene(|scene| {
        let node = scene.node_b();
        let binding = format!("tokentrail-{}", node.name());
        scene.cluster.kubectl_ok(&["delete", "clusterrolebinding", &binding])?;
        scene.agents.restart(node)?;
        scene.agents.wait_for_status(node, "the agent says what it lacks", |status| {
            status["degraded"].to_string().contains("may not get, list and watch pods")
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

#[test]
fn what_the_chart_grants_is_what_the_agent_needs() {
    with_scene(|scene| {
        let node = scene.node_b();
        let capability = |name: &str| json!({"security": {"capabilities": {name: false}}});
        // Without a look at other processes there are no mounts, hence no volumes: it says so. The
        // update stops there, and the agent of before goes on.
        scene.agents.helm(node, &capability("sysPtrace"))?;
        let selector = format!("app.kubernetes.io/instance=tokentrail-{}", node.name());
        let place = ["pods", "--namespace", NAMESPACE, "--selector", &selector];
        wait_until(PATIENCE, "the agent without SYS_PTRACE ends with code 3", || {
            let pods = scene.cluster.get(&place)?;
            let ended = |pod: &Value| {
                ["/status/containerStatuses/0/lastState", "/status/containerStatuses/0/state"]
                    .iter()
                    .any(|state| {
                        pod.pointer(&format!("{state}/terminated/exitCode")) == Some(&json!(3))
                    })
            };
            Ok(pods["items"].as_array().is_some_and(|pods| pods.iter().any(ended)).then_some(()))
        })?;
        let victim = scene.victim(node)?;
        scene.exec(&victim, &["-it"], &read_and_ask(&victim, ALLOWED))?;
        scene.alert(&victim)?;
        // Files that belong to root need no DAC_READ_SEARCH; an audit log of another user's does.
        let folder = scene.cluster.folder().join("others");
        fs::create_dir_all(&folder)?;
        let log = folder.join("audit.log");
        fs::write(&log, "")?;
        std::os::unix::fs::chown(&log, Some(1000), Some(1000))?;
        fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let mut values = capability("dacReadSearch");
        values["extraArgs"] = json!([
            format!("--audit-log={}", scene.cluster.audit_log().display()),
            format!("--audit-log={}", log.display())
        ]);
        values["extraVolumes"] = json!([{"name": "others", "hostPath": {"path": folder}}]);
        values["extraVolumeMounts"] =
            json!([{"name": "others", "mountPath": folder, "readOnly": true}]);
        scene.agents.helm(node, &values)?;
        let read = |status: &Value, log: &str| {
            let conditions = status["conditions"].as_object().cloned().unwrap_or_default();
            conditions.into_iter().find(|(name, _)| name.contains(log)).map(|(_, why)| why)
        };
        wait_until(PATIENCE, "an agent without DAC_READ_SEARCH reads root's log alone", || {
            let pods = scene.cluster.get(&place)?;
            for pod in pods["items"].as_array().into_iter().flatten() {
                let url = format!("http://{}:9464/statusz", text(pod, "/status/podIP"));
                let Ok(answer) = node.get(&url) else { continue };
                let status: Value = serde_json::from_str(&answer.body)?;
                let theirs = read(&status, "others");
                let ours = read(&status, "audit/audit.log");
                if theirs.is_some_and(|why| why.to_string().contains("no permission"))
                    && ours == Some(json!("ok"))
                {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })?;
        scene.agents.helm(node, &json!({}))?;
        scene.agents.wait_until_ready()?;
        scene.remove(&victim)
    });
}

#[test]
fn a_workload_that_polls_and_a_probe_that_reads_the_token_never_alert() {
    with_scene(|scene| {
        let poller = json!({"command": ["apicall", "--every", "5s", "/api/v1/nodes"]});
        let poller = scene.victim_with(scene.node_a(), &poller)?;
        let ask = "apicall /api/v1/nodes";
        let probe = json!({"livenessProbe": {"periodSeconds": 1, "timeoutSeconds": 5, "exec": {
            "command": ["sh", "-c", format!("cat {TOKEN_PATH} > /dev/null; {ask}; true")]}}});
        let probed = scene.victim_with(scene.node_b(), &probe)?;
        let began = SystemTime::now();
        let two_minutes = Duration::from_secs(120);
        wait_until(two_minutes + PATIENCE, "both have gone on for two minutes", || {
            std::thread::park_timeout(Duration::from_secs(1));
            Ok((began.elapsed()? >= two_minutes).then_some(()))
        })?;
        scene.settle()?;
        for (node, victim, least) in
            [(scene.node_a(), &poller, 20.0), (scene.node_b(), &probed, 60.0)]
        {
            let alerts = scene.alerts(victim)?;
            assert!(alerts.is_empty(), "{alerts:#?}");
            // It was seen all the while: silence is no blindness.
            let seen = scene.agents.metric(
                node,
                "tokentrail_attribution_opens_total",
                &["grade=\"workload\""],
            )?;
            assert!(seen >= least, "{}: only {seen} reads were seen", node.name());
            let requests = fs::read_to_string(scene.cluster.audit_log())?;
            let count = requests.lines().filter(|line| line.contains(&victim.uid)).count();
            assert!(count >= 20, "only {count} requests of {}", victim.namespace);
            scene.remove(victim)?;
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

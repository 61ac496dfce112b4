//! A pod to be attacked: in a namespace of its own, with an account that may list pods there and
//! nothing else.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{BOX_IMAGE, Cluster, ClusterNode};
use crate::{command::Finished, node::R1};

/// Name of each one and of its account: namespaces tell them apart.
const NAME: &str = "cart";

/// A running pod.
pub struct Victim<'cluster> {
    cluster: &'cluster Cluster,
    /// The node that it is on.
    pub node: &'cluster ClusterNode,
    /// Its namespace; the account is called as the pod is.
    pub namespace: String,
    /// Its name.
    pub pod: &'static str,
    /// Its uid.
    pub uid: String,
}

impl<'cluster> Victim<'cluster> {
    /// Starts one and waits until it is ready; `container` is laid over its only container.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn create(
        cluster: &'cluster Cluster,
        node: &'cluster ClusterNode,
        container: &Value,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("shop-{}-{number}", process::id());
        cluster.create_namespace(&namespace)?;
        let mut main = json!({"name": "main", "image": BOX_IMAGE, "imagePullPolicy": "Never"});
        if let (Some(main), Some(more)) = (main.as_object_mut(), container.as_object()) {
            main.extend(more.clone());
        }
        let name = json!({"name": NAME, "namespace": namespace});
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name,
             "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name,
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
             "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]},
            {"apiVersion": "v1", "kind": "Pod",
             "metadata": {"name": NAME, "namespace": namespace, "labels": {"app": NAME}},
             "spec": {"serviceAccountName": NAME, "nodeName": node.name(),
                      "terminationGracePeriodSeconds": 1, "containers": [main]}},
        ]});
        cluster.apply(&objects.to_string())?;
        cluster.wait_for_pod(&namespace, NAME)?;
        let pod = cluster.get(&["pod", NAME, "--namespace", &namespace])?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        Ok(Self { cluster, node, uid: uid.to_owned(), namespace, pod: NAME })
    }

    /// `kubectl exec` of a shell script, with these options.
    ///
    /// # Errors
    /// If kubectl does not start or end; not if the script fails.
    pub fn exec(&self, options: &[&str], script: &str) -> Result<Finished> {
        let place = ["exec", "--namespace", &self.namespace, self.pod];
        let args = [&place, options, &["--", "sh", "-c", script]].concat();
        if options.iter().any(|option| ["-it", "-t"].contains(option)) {
            self.cluster.kubectl_tty(&args)
        } else {
            self.cluster.kubectl(&args)
        }
    }

    /// Path at the API server below its namespace.
    pub fn uri(&self, what: &str) -> String {
        format!("/api/v1/namespaces/{}/{what}", self.namespace)
    }

    /// Whether a document of an alert log is an alert of R1 about its token.
    pub fn is_of(&self, document: &Value) -> bool {
        self.is_told("alert", document)
    }

    /// Whether it is what R1 tells of this kind about its token.
    pub fn is_told(&self, kind: &str, document: &Value) -> bool {
        let text = |pointer| document.pointer(pointer).and_then(Value::as_str);
        text("/tokentrail/kind") == Some(kind)
            && text("/rule/id") == Some(R1)
            && text("/orchestrator/resource/id") == Some(&self.uid)
    }
}

/// It goes with its namespace, also when a test fails: one that stayed would go on attacking.
impl Drop for Victim<'_> {
    fn drop(&mut self) {
        let args = ["delete", "namespace", &self.namespace, "--wait=false"];
        // The cluster goes at the end, whatever is left in it.
        let _: Result<Finished> = self.cluster.kubectl(&args);
    }
}

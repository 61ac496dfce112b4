//! Whose token an alert is about, from what its token, its request and the index say.

use crate::{
    attribution::pods::{Pod, PodIndex},
    audit::{self, AuditRecord},
    correlation::Finding,
};

/// Whose token it is about.
pub(super) struct Who<'a> {
    /// The pod's uid.
    pub(super) pod_uid: Option<&'a str>,
    /// What the index knows of it.
    pub(super) pod: Option<&'a Pod>,
    /// Namespace of the pod, or of the account that a token is minted for.
    pub(super) namespace: Option<&'a str>,
    /// The pod's name.
    pub(super) pod_name: Option<&'a str>,
}

impl<'a> Who<'a> {
    /// The token's own words first: they are there without the Kubernetes API, too. What a token is
    /// minted for comes before who mints.
    pub(super) fn of(finding: &'a Finding, pods: &'a PodIndex) -> Self {
        let open = finding.open.as_deref();
        let request = finding.request.as_ref().map(|request| &*request.record);
        let minted_for = request.and_then(AuditRecord::minted_for);
        let pod_uid = open
            .and_then(|open| open.open.pod_uid.as_deref())
            .or_else(|| request.and_then(AuditRecord::pod_uid));
        let pod = pod_uid
            .and_then(|uid| pods.pod(uid))
            .or(open.and_then(|open| open.pod.as_ref()))
            .map(AsRef::as_ref);
        let (named_in, named) = open
            .and_then(|open| open.named.as_ref())
            .map(|(namespace, name)| (&**namespace, &**name))
            .unzip();
        let account = minted_for.or_else(|| request.and_then(AuditRecord::service_account));
        let (namespace, _) = account.unzip();
        Self {
            pod_uid,
            pod,
            namespace: namespace.or(pod.map(|pod| &*pod.namespace)).or(named_in),
            pod_name: request
                .and_then(|request| request.extra(audit::POD_NAME))
                .or(pod.map(|pod| &*pod.name))
                .or(named),
        }
    }
}

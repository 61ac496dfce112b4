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
    /// The index first; without it the token's own words. Where nothing was opened, what a token is
    /// minted for comes before who mints.
    pub(super) fn of(finding: &'a Finding, pods: &'a PodIndex) -> Self {
        let open = finding.open.as_deref();
        let request = finding.request.as_ref().map(|request| &*request.record);
        let minted_for = request.filter(|_| open.is_none()).and_then(AuditRecord::minted_for);
        let pod_uid = open
            .and_then(|open| open.open.pod_uid.as_deref())
            .or_else(|| request.and_then(AuditRecord::pod_uid));
        let pod = pod_uid
            .and_then(|uid| pods.pod(uid))
            .or(open.and_then(|open| open.pod.as_ref()))
            .map(AsRef::as_ref);
        let known = |text: fn(&Pod) -> &str| pod.map(text).filter(|text| !text.is_empty());
        let account = request.and_then(AuditRecord::service_account);
        let (named_in, named) = open
            .and_then(|open| open.named.as_ref())
            .map(|(namespace, name)| (&**namespace, &**name))
            .unzip();
        Self {
            pod_uid,
            pod,
            namespace: minted_for
                .map(|(namespace, _)| namespace)
                .or(known(|pod| &pod.namespace))
                .or(account.map(|(namespace, _)| namespace))
                .or(named_in),
            pod_name: known(|pod| &pod.name)
                .or_else(|| request.and_then(|request| request.extra(audit::POD_NAME)))
                .or(named),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        alert::evidence::confidence,
        attribution::{TokenOpen, pods::PodChange},
        correlation::{Attached, Open, Request, ids::RequestId, story::Story},
        rules::{RequestKind, catalogue::RuleId},
        time::Micros,
    };

    /// A pod in `shop` opens its token and has one minted for an account in `kube-system`.
    fn finding(rule: RuleId, opened: bool) -> Finding {
        let time = Micros::from_secs(1_800_000_000);
        let record: AuditRecord = serde_json::from_value(json!({
            "auditID": "a", "stage": "ResponseComplete", "verb": "create", "requestURI": "/",
            "user": {"username": "system:serviceaccount:elsewhere:cart", "extra": {
                audit::POD_UID: ["u-1"], audit::POD_NAME: ["cart-1"], audit::NODE_NAME: ["worker"],
            }},
            "objectRef": {
                "resource": "serviceaccounts", "subresource": "token", "namespace": "kube-system",
                "name": "admin",
            },
            "requestReceivedTimestamp": time, "stageTimestamp": time,
        }))
        .unwrap();
        let open = TokenOpen { pod_uid: Some("u-1".into()), ..TokenOpen::example(time) };
        let open = opened.then(|| Arc::new(Open::new("boot", open)));
        let id = RequestId::of(&record);
        let request = Attached::new(id, &Request::new(time, record), RequestKind::New);
        Story::begin(rule, "i".into(), open, Some(request)).alert()
    }

    #[test]
    fn a_pod_is_called_what_the_index_calls_it_before_what_a_request_says() {
        let mut known = PodIndex::default();
        let pod = Pod {
            uid: "u-1".into(),
            namespace: "shop".into(),
            name: "cart-0".into(),
            ..Pod::default()
        };
        known.apply(PodChange::Present(Box::new(pod)), Micros::default());
        let unknown = PodIndex::default();
        let (joined, minted) = (RuleId::TokenAccessThenApiRequest, RuleId::TokenRequestByUser);
        for (rule, opened, pods, namespace, name) in [
            (joined, true, &known, "shop", "cart-0"),
            (joined, true, &unknown, "elsewhere", "cart-1"),
            (minted, false, &known, "kube-system", "cart-0"),
        ] {
            let finding = finding(rule, opened);
            let who = Who::of(&finding, pods);
            assert_eq!((who.namespace, who.pod_name), (Some(namespace), Some(name)));
        }
    }

    #[test]
    fn a_token_of_another_node_lowers_confidence() {
        let finding = finding(RuleId::TokenAccessThenApiRequest, true);
        assert_eq!(confidence(&finding, "worker"), "high");
        assert_eq!(confidence(&finding, "another"), "low");
    }
}

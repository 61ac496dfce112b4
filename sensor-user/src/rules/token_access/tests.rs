//! How bad requests are.

use serde_json::{Value, json};

use super::*;

/// A resource of another group than the core is written `group:resource`.
fn record(verb: &str, resource: &str, namespace: Option<&str>, more: &Value) -> AuditRecord {
    let (group, resource) = match resource.split_once(':') {
        Some((group, resource)) => (Some(group), resource),
        None => (None, resource),
    };
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource)),
        None => (resource, None),
    };
    let mut event = json!({
        "auditID": "a", "stage": "ResponseComplete", "verb": verb, "requestURI": "/",
        "user": {"username": "system:serviceaccount:shop:cart"},
        "objectRef": {
            "resource": resource, "subresource": subresource, "namespace": namespace,
            "apiGroup": group,
        },
        "responseStatus": {"code": 200},
        "annotations": {"authorization.k8s.io/decision": "allow"},
        "requestReceivedTimestamp": "2026-11-21T20:29:11.000000Z",
        "stageTimestamp": "2026-11-21T20:29:11.000000Z",
    });
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(event).unwrap()
}

#[test]
fn what_a_request_gives_its_maker_raises_the_risk() {
    use Band::{Critical, High, Medium};
    let shop = Some("shop");
    for (verb, resource, namespace, expected) in [
        ("list", "pods", shop, Medium),
        ("get", "secrets", shop, High),
        ("list", "secrets", shop, High),
        ("list", "secrets", None, Critical),
        ("watch", "secrets", None, Critical),
        ("delete", "secrets", shop, Medium),
        ("create", "pods", shop, High),
        ("delete", "pods", shop, Medium),
        ("create", "pods/exec", shop, High),
        ("get", "pods/exec", shop, High),
        ("get", "pods/log", shop, Medium),
        ("patch", "pods/ephemeralcontainers", shop, High),
        ("create", "rbac.authorization.k8s.io:rolebindings", shop, High),
        ("get", "rbac.authorization.k8s.io:rolebindings", shop, Medium),
        ("patch", "rbac.authorization.k8s.io:clusterroles", None, High),
        ("list", "vault.example.com:secrets", None, Medium),
        ("create", "metrics.example.com:pods", shop, Medium),
        ("create", "iam.example.com:serviceaccounts", shop, Medium),
        ("create", "iam.example.com:roles", shop, Medium),
        ("create", "serviceaccounts/token", shop, High),
        ("get", "nodes/proxy", None, High),
        ("create", "selfsubjectaccessreviews", None, Medium),
    ] {
        let found = record(verb, resource, namespace, &json!({}));
        let band = |kind| band(&found, kind, Address::Pod);
        assert_eq!(band(RequestKind::New), expected, "{verb} {resource} {namespace:?}");
        assert_eq!(band(RequestKind::Unknown), expected, "{verb} {resource} {namespace:?}");
        assert_eq!(band(RequestKind::Own), Medium, "what the workload does anyway: {resource}");
    }
}

#[test]
fn what_was_allowed_and_failed_in_the_api_server_may_have_been_done() {
    for (decision, code, expected) in [
        ("allow", json!(200), Band::Critical),
        ("allow", json!(504), Band::Critical),
        ("allow", Value::Null, Band::Critical),
        ("allow", json!(404), Band::Medium),
        ("forbid", json!(504), Band::Medium),
    ] {
        let more = json!({
            "responseStatus": {"code": code},
            "annotations": {"authorization.k8s.io/decision": decision},
        });
        let found = record("list", "secrets", None, &more);
        assert_eq!(band(&found, RequestKind::New, Address::Pod), expected, "{decision} {code}");
    }
}

#[test]
fn a_refusal_raises_nothing_but_a_strange_address_does() {
    let refused = json!({
        "responseStatus": {"code": 403},
        "annotations": {"authorization.k8s.io/decision": "forbid"},
    });
    let refused = record("list", "secrets", None, &refused);
    for (address, expected) in [
        (Address::Pod, Band::Medium),
        (Address::Node, Band::Medium),
        (Address::Unknown, Band::Medium),
        (Address::Neither, Band::High),
    ] {
        assert_eq!(band(&refused, RequestKind::New, address), expected, "{address:?}");
    }
}

#[test]
fn the_role_that_may_do_everything_and_acting_as_another_are_seen_whatever_the_resource() {
    let reason = |reason: &str| {
        let annotations = json!({
            "authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": reason,
        });
        let found = record("list", "pods", None, &json!({"annotations": annotations}));
        band(&found, RequestKind::New, Address::Pod)
    };
    let admin = r#"RBAC: allowed by ClusterRoleBinding "x" of ClusterRole "cluster-admin" to User"#;
    assert_eq!(reason(admin), Band::Critical);
    let named = r#"RBAC: allowed by RoleBinding "cluster-admin/x" of Role "viewer" to User"#;
    assert_eq!(reason(named), Band::Medium);
    let acting = record("list", "pods", None, &json!({"impersonatedUser": {"username": "root"}}));
    assert_eq!(band(&acting, RequestKind::New, Address::Pod), Band::High);
}

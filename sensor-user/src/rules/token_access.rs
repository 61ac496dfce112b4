//! R1: a token or CA certificate is opened in a way that a workload does not open it, and within
//! the window the API server answers a request made with that pod's identity.

use std::borrow::Cow;

use super::{Band, RequestKind, Rule, Tactic, Technique, address::Address};
use crate::{
    attribution::{Grade, TokenFile, TokenOpen},
    audit::{AuditRecord, Stage},
};

/// The rule as alerts name it.
pub static RULE: Rule = Rule {
    id: "token-access-then-api-request",
    description: "A service-account token or CA certificate was opened in a container, and the \
                  API server then answered a request made with that pod's identity.",
    reference: "https://attack.mitre.org/techniques/T1528/",
    version: "1",
    threat: &[
        Tactic {
            id: "TA0002",
            name: "Execution",
            techniques: &[Technique {
                id: "T1059",
                name: "Command and Scripting Interpreter",
                subtechnique: Some(("T1059.004", "Unix Shell")),
            }],
        },
        Tactic {
            id: "TA0006",
            name: "Credential Access",
            techniques: &[
                Technique {
                    id: "T1528",
                    name: "Steal Application Access Token",
                    subtechnique: None,
                },
                Technique {
                    id: "T1552",
                    name: "Unsecured Credentials",
                    subtechnique: Some(("T1552.001", "Credentials In Files")),
                },
            ],
        },
        Tactic {
            id: "TA0007",
            name: "Discovery",
            techniques: &[Technique {
                id: "T1613",
                name: "Container and Resource Discovery",
                subtechnique: None,
            }],
        },
        Tactic {
            id: "TA0008",
            name: "Lateral Movement",
            techniques: &[Technique {
                id: "T1550",
                name: "Use Alternate Authentication Material",
                subtechnique: Some(("T1550.001", "Application Access Token")),
            }],
        },
    ],
};

/// Risk of an incident that nothing has raised.
pub const BASE_BAND: Band = Band::Medium;

/// Whether an open starts or extends an exposure.
pub fn qualifies(open: &TokenOpen) -> bool {
    match open.grade {
        Grade::Outside | Grade::Interactive | Grade::Terminal | Grade::Exec | Grade::Foreign => {
            true
        }
        Grade::Workload => false,
    }
}

/// Whether an open explains only requests of a kind that is new for the pod: a program that was not
/// seen to read the token while the workload was learned may be one that it rarely runs.
pub fn needs_new_request(open: &TokenOpen) -> bool {
    open.grade == Grade::Foreign
}

/// Whether a stage shows that the API server answered. `RequestReceived` alone counts only when
/// nothing else came within the lateness bound.
pub fn answered(record: &AuditRecord) -> bool {
    match record.stage {
        Stage::ResponseStarted | Stage::ResponseComplete | Stage::Panic => true,
        Stage::RequestReceived => false,
    }
}

/// How bad a request is. Requests that the workload makes anyway raise nothing.
pub fn band(record: &AuditRecord, request: RequestKind, address: Address) -> Band {
    if request == RequestKind::Own {
        return BASE_BAND;
    }
    let done = record.may_be_done();
    if done && (is_cluster_admin(record) || lists_all_secrets(record)) {
        Band::Critical
    } else if address == Address::Neither || (done && is_powerful(record)) {
        Band::High
    } else {
        BASE_BAND
    }
}

/// Whether the authorizer's reason names the role that may do everything, as
/// `RBAC: allowed by ClusterRoleBinding "x" of ClusterRole "cluster-admin" to …`
/// (kubernetes `plugin/pkg/auth/authorizer/rbac`).
fn is_cluster_admin(record: &AuditRecord) -> bool {
    let reason = record.annotations.get("authorization.k8s.io/reason");
    reason.is_some_and(|reason| reason.contains("ClusterRole \"cluster-admin\""))
}

/// The API group of roles and their bindings.
const RBAC: &str = "rbac.authorization.k8s.io";

/// The API group that a request is about, empty for the core one, and the resource with its subresource:
/// whoever defines an API may call a resource of theirs as they like.
fn resource(record: &AuditRecord) -> (&str, Cow<'_, str>) {
    let object = record.object_ref.as_ref();
    let group = object.and_then(|object| object.api_group.as_deref());
    (group.unwrap_or_default(), record.resource())
}

fn lists_all_secrets(record: &AuditRecord) -> bool {
    let object = record.object_ref.as_ref();
    let (group, resource) = resource(record);
    matches!(record.verb.as_str(), "list" | "watch")
        && (group, &*resource) == ("", "secrets")
        && object.is_some_and(|object| object.namespace.as_deref().is_none_or(str::is_empty))
}

/// Whether a request that was allowed gives its maker secrets, a way into pods or nodes, or rights.
fn is_powerful(record: &AuditRecord) -> bool {
    if record.impersonated_user.is_some() {
        return true;
    }
    let changes = matches!(record.verb.as_str(), "create" | "update" | "patch");
    let (group, resource) = resource(record);
    match (group, &*resource) {
        ("", "secrets") => matches!(record.verb.as_str(), "get" | "list" | "watch"),
        ("", "pods") => record.verb == "create",
        // A session may be opened with GET as well: kubernetes authorizes that as `get`.
        ("", "pods/exec" | "pods/attach") => matches!(record.verb.as_str(), "create" | "get"),
        ("", "nodes/proxy") => true,
        ("", "pods/ephemeralcontainers" | "serviceaccounts" | "serviceaccounts/token")
        | (RBAC, "roles" | "rolebindings" | "clusterroles" | "clusterrolebindings") => changes,
        _ => false,
    }
}

/// R0: whether an open is worth telling where no request follows. `ca.crt` is public.
pub fn is_token_read(open: &TokenOpen) -> bool {
    qualifies(open) && !needs_new_request(open) && open.file == TokenFile::Token
}

#[cfg(test)]
mod tests;

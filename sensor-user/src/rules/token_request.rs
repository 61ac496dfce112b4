//! R2: a service-account token is minted through the TokenRequest API by an identity that is not
//! one of the system's. Here: how bad that is, and who the system's identities are.

use std::sync::LazyLock;

use super::{Band, glob::Glob};
use crate::audit::AuditRecord;

pub mod exclusions;

/// Identities that mint tokens in the course of a cluster's work, as patterns of `user.username`.
/// Under Elastic semantics this is the whole list; live, it is the default of
/// [`Exclusions`](exclusions::Exclusions).
pub const SYSTEM_IDENTITIES: &[&str] = &[
    "system:kube-controller-manager",
    "system:kube-scheduler",
    "system:node:*",
    "system:serviceaccount:kube-system:*",
    "eks:*",
    "aksService",
    "aks-service",
    "masterclient",
    "nodeclient",
    "system:serviceaccount:gke-managed-system:*",
    "system:serviceaccount:gke-connect:*",
    "system:serviceaccount:anthos-identity-service:*",
    "system:gke-controller-manager",
    "system:serviceaccount:tigera-operator:*",
    "system:serviceaccount:calico-system:*",
];

/// Whether a name is one of those: `*` is any run of characters, the whole string counts, so does
/// case.
pub fn is_systems(name: &str) -> bool {
    static PATTERNS: LazyLock<Vec<Glob>> =
        LazyLock::new(|| SYSTEM_IDENTITIES.iter().copied().map(Glob::compile).collect());
    PATTERNS.iter().any(|pattern| pattern.matches(name))
}

/// How bad a TokenRequest is by its answer; `None` where there is none yet, or where it failed for
/// another reason than that the user may not.
pub fn band(record: &AuditRecord) -> Option<Band> {
    match record.response_status.as_ref()?.code? {
        200..300 => Some(Band::Medium),
        403 => Some(Band::Low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::is_systems;

    #[test]
    fn the_systems_identities_are_known_by_whole_names() {
        for (name, expected) in [
            ("system:kube-controller-manager", true),
            ("system:kube-controller-manager2", false),
            ("system:node:worker-1", true),
            ("system:node", false),
            ("system:serviceaccount:kube-system:replicaset-controller", true),
            ("system:serviceaccount:kube-system", false),
            ("system:serviceaccount:kube-systematic:x", false),
            ("eks:node-manager", true),
            ("EKS:node-manager", false),
            ("aksService", true),
            ("aksservice", false),
            ("masterclient", true),
            ("system:serviceaccount:calico-system:calico-node", true),
            ("system:serviceaccount:cert-manager:cert-manager", false),
            ("admin", false),
            ("", false),
        ] {
            assert_eq!(is_systems(name), expected, "{name}");
        }
    }
}

//! Whose address a request came from. Pure; asked by correlation, shown by alerts.

use serde::{Deserialize, Serialize};

use crate::{attribution::pods::Pod, audit::AuditRecord};

/// Whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// The pod's own.
    Pod,
    /// Its node's.
    Node,
    /// Somebody else's.
    Neither,
    /// The pod's or the node's addresses are not known.
    Unknown,
}

impl Address {
    /// By the one address that a client cannot set. On the host's network the two are one: then it
    /// is the node's.
    pub fn of(request: &AuditRecord, pod: Option<&Pod>) -> Self {
        let (Some(ip), Some(pod)) = (request.source_ip(), pod) else { return Self::Unknown };
        let among = |list: &[Box<str>]| list.iter().any(|it| **it == *ip);
        match (among(&pod.host_ips), among(&pod.ips)) {
            (true, _) => Self::Node,
            (false, true) => Self::Pod,
            // A pod has no address before the kubelet reports one.
            (false, false) if pod.ips.is_empty() || pod.host_ips.is_empty() => Self::Unknown,
            (false, false) => Self::Neither,
        }
    }

    /// Its name in alerts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Neither => "neither",
            Self::Unknown => "unknown",
        }
    }
}

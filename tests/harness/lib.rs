//! What the whole-program tests, the demo, the benchmarks and the VM share: real containers with
//! token volumes laid out as the kubelet does, an agent to run beside them, an audit log to write
//! and an alert log to read.
//!
//! ```text
//! Sandbox ── folder, kubelet directory, and the list of everything to undo
//!   ├─ Pod ──────── uid, names, tmpfs token volume
//!   │    └─ Container ── runc, cgroup kubepods/burstable/pod<uid>/<id>, commands in it
//!   ├─ AuditLog ─── lines as kube-apiserver wrote them, with this pod's identity
//!   └─ AgentSetup ─ Agent ── the program under test, its HTTP side, its exit
//!        └─ Alerts ── what it wrote
//!
//! Broker ── a NATS server between agents, with its data in the sandbox
//!   └─ Line ── its own network, and the line to it, to be cut
//!
//! Node ── all of these together: what most tests begin with
//!   └─ Workload ── a pod with one container, to be attacked
//!
//! Cluster ── instead of all these: a real Kubernetes, with its own containers, tokens and log
//! ```
//!
//! Nothing here knows how tokentrail works inside; it is judged by what it writes and serves.
//! Everything waits for conditions with a deadline, never for a fixed time. With the feature
//! `system-tests`, every document that is read from an alert log is held against the JSON Schema
//! that is shipped.

mod agent;
mod alerts;
pub mod api;
mod audit;
mod certificates;
mod cgroups;
pub mod cluster;
mod command;
mod container;
mod disk;
mod line;
pub mod machine;
mod nats;
mod node;
mod pod;
mod sandbox;
#[cfg(feature = "system-tests")]
mod schema;
mod wait;
pub mod wrapped;

pub use agent::{Agent, AgentSetup, Answer, tokentrail};
pub use alerts::Alerts;
pub use audit::{AuditLine, AuditLog, Request, Stage, compress};
pub use certificates::{Authority, Identity};
pub use command::Finished;
pub use container::{Container, ContainerSetup, Processes};
pub use disk::fill;
pub use line::{Line, in_network};
pub use nats::{Broker, Login, Operator};
pub use node::{Node, Workload};
pub use pod::{Pod, SERVICE_ACCOUNT_FOLDER, TOKEN_PATH};
pub use sandbox::Sandbox;
pub use wait::{PATIENCE, wait_until};

/// The node that sandboxes pretend to be; the recorded audit lines are of its pods.
pub const NODE_NAME: &str = "node-b";

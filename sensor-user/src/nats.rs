//! More than one node: what nodes ask and what audit sides answer, over NATS JetStream.
//!
//! ```text
//!  node with a sensor                     broker                     agent with an audit source
//!   exposures ──► asking ──► bucket, key ask.<node>  ──────► answering ──► asked (who wants what)
//!                  ▲  ▲                                          │            ▲ lines, recent lines,
//!                  │  └───── bucket, key side.<node> ◄── covered ┤            │ or the file once more
//!                  │  └──── tokentrail.<cluster>.reached.<node> ◄─┤
//!   correlation ◄──┴── stream, tokentrail.<cluster>.request.<node> ◄─ records ┘
//!   alert log ──► telling ──► stream, tokentrail.<cluster>.alert.<node> ──────► whoever collects alerts
//! ```
//!
//! A node says what it wants to know: one document, replaced whenever it changes. Whoever reads an audit log
//! publishes the records that are wanted, and says how far it has come: once a minute to all by the bucket, more
//! often to those who ask something, by what nothing stores. To the node the answers are one
//! more audit source, whose batches are acknowledged when their alerts are durable. What either tells is published
//! once it is durable in the alert log.
//!
//! Nothing waits on disk here. What was not put or published when a connection ends is so again with the
//! next one: a node knows its exposures from its journal, an audit side the lines from its file.
//!
//! Only this room knows the broker. It holds no exposure, no line and no alert: the engine does, and spawns the
//! [`Link`].

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use crate::time::Micros;

pub mod answering;
mod answers;
pub mod asked;
pub mod asking;
mod bucket;
mod connection;
mod failure;
pub mod interest;
mod link;
mod looks;
mod metrics;
pub mod names;
pub mod progress;
pub mod recent;
pub mod setup;
mod sides;
pub mod telling;

pub use connection::{Look, look};
pub use failure::ConnectionError;
pub use link::Link;
pub use metrics::NatsMetrics;

use names::Names;
use progress::Side;

/// How to reach the broker, and what this agent is called there.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Servers of one cluster, as `nats://host:4222` or `tls://host:4222`.
    pub servers: Vec<String>,
    /// Names on the broker.
    pub names: Names,
    /// Who this agent is to it.
    pub login: Login,
    /// Authorities of the server's certificate; the machine's own where there is none.
    pub ca: Option<PathBuf>,
    /// Certificate and key of this agent.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How long an exposure waits for an audit side that is away.
    pub patience: Duration,
    /// Bytes of audit lines that are kept for those who ask later.
    pub look_back: usize,
    /// Whether alerts are published.
    pub publish_alerts: bool,
}

/// Who an agent is to the broker. Secrets are in files, and read at each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Nobody in particular, or whom its certificate names.
    None,
    /// A credentials file: JWT and seed.
    Credentials(PathBuf),
    /// A file with the seed of an NKey.
    Nkey(PathBuf),
    /// A user, and a file with the password.
    Password(String, PathBuf),
}

/// How the broker stands, for readiness and `/statusz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Why there is no connection, if there is none.
    pub failure: Option<String>,
    /// When the connection began.
    pub connected: Option<Micros>,
    /// When an answer came last.
    pub last_answer: Option<Micros>,
    /// The audit sides that this node has heard lately.
    pub audit_sides: BTreeMap<String, Side>,
    /// Since when no audit side says anything, on a node that asks.
    pub unanswered_since: Option<Micros>,
    /// How far this agent's alerts are published, if they are to be.
    pub alerts: Option<Alerts>,
}

/// How far alerts are published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Alerts {
    /// Alerts that NATS has taken since this agent started.
    pub published: u64,
    /// Alerts in the alert log that it has not taken yet.
    pub waiting: u64,
    /// When it took one last.
    pub last_published: Option<Micros>,
    /// Why it takes none, if so.
    pub failure: Option<String>,
}

impl Status {
    /// Before the first try.
    fn starting() -> Self {
        Self { failure: Some("not tried yet".to_owned()), ..Self::default() }
    }
}

/// The wall clock.
fn wall_clock() -> Micros {
    std::time::SystemTime::now().into()
}

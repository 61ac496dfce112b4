//! Why there is no connection to NATS, or none any more: sentences.

use std::{io, path::PathBuf};

use crate::errors::with_causes;

/// Why there is no connection. The texts are shown in readiness and `/statusz`.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A file with a secret cannot be read.
    #[error("cannot read {}: {source}; it holds what this agent logs in to NATS with", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file with a secret holds none.
    #[error("{} is of no use: {reason}; it must be what `nsc` or `nk` wrote", path.display())]
    Secret {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there.
    #[error("no NATS server at {servers}: {reason}")]
    Unreachable {
        /// Where.
        servers: String,
        /// What was tried.
        reason: String,
    },
    /// The server does not let us in.
    #[error(
        "the NATS server at {servers} refuses this login; check nats-credentials-file, nats-nkey-file, or nats-user and nats-password-file"
    )]
    Login {
        /// Where.
        servers: String,
    },
    /// No trust, either way.
    #[error(
        "no TLS with the NATS server at {servers}: {reason}; check nats-ca-file, nats-cert-file and nats-key-file"
    )]
    Tls {
        /// Where.
        servers: String,
        /// What is wrong.
        reason: String,
    },
    /// It lacks what is needed.
    #[error("the NATS server is of version {version}; 2.9 is the oldest that will do")]
    Old {
        /// Its version.
        version: String,
    },
    /// There is no persistence.
    #[error(
        "the NATS server has no JetStream for this login; turn it on with `jetstream` in its configuration"
    )]
    NoJetStream,
    /// The stream or the bucket is not there.
    #[error("NATS has no stream {name}; make it with `tokentrail nats setup`")]
    NoStream {
        /// Which.
        name: String,
    },
    /// The stream or the bucket is not as it must be.
    #[error("the NATS {thing} {fault}; {cure}")]
    Unfit {
        /// Which.
        thing: String,
        /// What is wrong with it.
        fault: String,
        /// What to do.
        cure: &'static str,
    },
    /// It ended.
    #[error("the connection to NATS ended: {0}")]
    Ended(String),
    /// The login may not do all that an agent does.
    #[error(
        "this login lacks a permission on the NATS server: {0}; docs/nats.md says which it needs"
    )]
    Forbidden(String),
    /// The revisions of before are of another bucket, or the answers of before were in another stream.
    #[error("the NATS bucket or the stream of answers was made anew, and is looked at anew")]
    Anew,
    /// Something was refused for another reason, or not answered.
    #[error("NATS: cannot {what}: {reason}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

impl ConnectionError {
    pub(super) fn ended(why: &str) -> Self {
        Self::Ended(why.to_owned())
    }

    /// Of something that was tried.
    pub(super) fn failed(what: &'static str, error: &dyn std::error::Error) -> Self {
        Self::Failed { what, reason: with_causes(error) }
    }
}

//! tokentrail: joins who opened a pod's service-account token with the Kubernetes API requests made
//! with it, on the node, within milliseconds.
//!
//! ```text
//!  tokentrail-ebpf ──ring──► kernel ──► attribution ──► correlation ──► alert ──► alert log
//!   (facts only)                         (which pod)        ▲
//!                                                           │      metrics and admin observe
//!                    audit log file, webhook, NATS ─► audit ─┘      every stage, feed none
//! ```
//!
//! Modules in the order in which data meets them:
//!
//! | module | owns |
//! |---|---|
//! | [`kernel`] | the BPF object: offsets, hooks, ring, clock, self-test; the only user of aya |
//! | [`api`] | how the Kubernetes API is reached; with the pods' watch the only user of kube |
//! | [`attribution`] | kernel record → whose token, which process, what grade |
//! | [`audit`] | audit log file or webhook → typed events; checkpoints |
//! | [`rules`] | what counts as an open, a request, an incident; pure |
//! | [`correlation`] | the join: exposures, incidents, ids, journal; pure but for the journal |
//! | [`alert`] | the alert document and where it is written |
//! | [`redact`], [`errors`], [`fingerprint`] | takes secrets out of text that is shown; errors with their causes; what a log file is known again by |
//! | [`metrics`], [`admin`] | what operators see |
//! | [`nats`] | more than one node: what is asked and answered over NATS JetStream; the only user of async-nats |
//! | [`config`], [`agent`], [`commands`] | options, wiring, subcommands |
pub mod admin;
pub mod agent;
pub mod alert;
pub mod api;
pub mod attribution;
pub mod audit;
pub mod commands;
pub mod config;
pub mod correlation;
pub mod errors;
pub mod fingerprint;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod kernel;
pub mod metrics;
pub mod nats;
pub mod object_name;
pub mod redact;
pub mod replay;
pub mod rules;
pub mod time;

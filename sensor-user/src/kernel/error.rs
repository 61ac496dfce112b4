//! Why there is no sensor, in words that say what would give one.

use std::io;

use thiserror::Error;

use super::{btf::BtfError, pins::PinError};

/// Why there is no sensor. All but [`Io`](Self::Io) need the operator: exit code 3.
#[derive(Debug, Error)]
pub enum SensorError {
    /// A build for tests.
    #[error("this binary was built without the BPF object; build it with `cargo xtask build`")]
    NoObject,
    /// Not root, or a container without the capabilities.
    #[error(
        "missing privilege: {0}; run as root, or grant CAP_BPF and CAP_PERFMON (kernels before \
         5.11 also need CAP_SYS_RESOURCE)"
    )]
    Privilege(String),
    /// No kernel type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A kernel before 5.8, or a policy that forbids `bpf`.
    #[error("this kernel offers no BPF ring buffer ({0}); it takes Linux 5.8 or newer")]
    NoRingBuffer(String),
    /// Nowhere to put the canary.
    #[error(
        "no directory for the self-test: {0}; name one on tmpfs (an emptyDir with `medium: \
         Memory` in a pod)"
    )]
    CanaryDirectory(String),
    /// The object itself was refused.
    #[error("the BPF object was refused: {0}")]
    Load(String),
    /// Every route was tried.
    #[error("no way to see opens on this kernel: {}", .tried.iter()
        .map(|(route, why)| format!("{route}: {why}"))
        .collect::<Vec<_>>().join("; "))]
    NoRoute {
        /// Each route and what refused it.
        tried: Vec<(String, String)>,
    },
    /// A self-test after start failed: the sensor no longer sees opens.
    #[error("the self-test's open was not reported: {0}")]
    Canary(String),
    /// A map operation failed.
    #[error("cannot {action}: {reason}")]
    Map {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// What was attached is not any more.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Waiting for the ring failed.
    #[error("cannot wait for records: {0}")]
    Io(#[from] io::Error),
}

//! Diagnostics that the BPF programs write with aya-log, handed on to `tracing`.
//!
//! Only for finding out why a self-test fails: whether the filter saw the canary at all. Off unless
//! `tracing` is enabled at debug for the target `tokentrail_ebpf`; off means that the verifier
//! drops the calls. Full rings lose lines silently, so nothing is ever decided by them.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tracing::{Level, debug, enabled, warn};

/// Level that the programs are loaded with: a global of theirs, 0 for none.
pub(super) fn level() -> u8 {
    if enabled!(target: "tokentrail_ebpf", Level::DEBUG) { aya_log::Level::Debug as u8 } else { 0 }
}

/// The reader of the programs' lines.
pub(super) struct KernelLog(EbpfLogger<ToTracing>);

impl KernelLog {
    /// `None` if the programs write nothing. To be called before they are loaded.
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        if level() == 0 {
            return None;
        }
        EbpfLogger::init_with_logger(ebpf, ToTracing)
            .inspect_err(|error| warn!(%error, "cannot read the log of the BPF programs"))
            .ok()
            .map(Self)
    }

    /// Hands on what was written since the last call.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        debug!(target: "tokentrail_ebpf", "{}", record.args());
    }

    fn flush(&self) {}
}

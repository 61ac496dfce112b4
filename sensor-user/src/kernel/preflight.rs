//! What the sensor needs of the machine, asked one by one: for `tokentrail check`, and for errors
//! that name what is missing instead of what failed first.

use aya::{maps::MapType, sys::is_map_supported};
use rustix::thread::{CapabilitySet, capabilities};

use super::{OBJECT, SensorConfig, attach, btf, canary::Canary};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What, as `kernel type information (BTF)`.
    pub what: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found, or what to do about it.
    pub detail: String,
}

/// Looks at everything the sensor needs; loads and attaches nothing.
pub fn preflight(config: &SensorConfig) -> Vec<Finding> {
    let finding = |what, result: Result<String, String>| {
        let ok = result.is_ok();
        Finding { what, ok, detail: result.unwrap_or_else(|why| why) }
    };
    vec![
        finding(
            "BPF object",
            match OBJECT.len() {
                0 => Err("not in this binary; build it with `cargo xtask build`".into()),
                length => Ok(format!("{length} bytes")),
            },
        ),
        finding("privilege", privilege()),
        finding(
            "kernel type information (BTF)",
            match btf::layout(config.btf()) {
                Ok(layout) if layout.absent.is_empty() => Ok("all members found".into()),
                Ok(layout) => Ok(format!("usable; without {}", layout.absent.join(", "))),
                Err(error) => Err(error.to_string()),
            },
        ),
        finding("BPF ring buffer", ring_buffer().map(|()| "supported".into())),
        finding(
            "system-call tracepoints",
            attach::tracefs().map(|path| format!("under {path}")).ok_or_else(|| {
                "tracefs is not mounted; only the exit route needs it, and mounts it if it may"
                    .into()
            }),
        ),
        finding(
            "directory for the self-test",
            Canary::new(config.canary_dir.as_deref())
                .map(|canary| canary.place().display().to_string()),
        ),
    ]
}

/// The capabilities that loading and attaching take.
/// <https://github.com/torvalds/linux/commit/a17b53c4a4b55ec322c132b6670743612229ee9c>
pub(super) fn privilege() -> Result<String, String> {
    let held = capabilities(None)
        .map_err(|error| format!("cannot read this process's capabilities: {error}"))?
        .effective;
    if held.contains(CapabilitySet::SYS_ADMIN) {
        return Ok("CAP_SYS_ADMIN".into());
    }
    let missing: Vec<&str> =
        [(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::PERFMON, "CAP_PERFMON")]
            .into_iter()
            .filter(|(capability, _)| !held.contains(*capability))
            .map(|(_, name)| name)
            .collect();
    if missing.is_empty() {
        Ok("CAP_BPF and CAP_PERFMON".into())
    } else {
        Err(missing.join(" and "))
    }
}

/// Whether a ring buffer can be created.
pub(super) fn ring_buffer() -> Result<(), String> {
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no such map type".into()),
        Err(error) => Err(attach::reason("probing", &error)),
    }
}

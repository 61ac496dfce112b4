//! For benchmarks and tests alone: the yardstick that does nothing on the same hooks, and who else is there.

use aya::programs::{LsmAttachType, ProgramType, loaded_programs};
use tokentrail_ebpf::Route;

use super::{OBJECT, SensorConfig, SensorError, attach, btf, route_name};

/// An attached empty program; dropping it detaches.
pub struct Empty {
    _links: Vec<attach::Link>,
}

/// Attaches programs that do nothing to a route's hooks and to where sessions are followed.
pub fn attach_empty(route: Route) -> Result<Empty, SensorError> {
    if OBJECT.is_empty() {
        return Err(SensorError::NoObject);
    }
    let layout = btf::layout(SensorConfig::default().btf())?;
    let mut ebpf = attach::load(OBJECT, &layout.offsets, 0, &[])
        .map_err(|error| SensorError::Load(attach::reason("load", &error)))?;
    let plan = attach::ROUTES.iter().find(|plan| plan.route == route);
    let attached = plan
        .ok_or_else(|| "not in the table".to_owned())
        .and_then(|plan| plan.attach_empty(&mut ebpf))
        .map_err(|why| SensorError::NoRoute { tried: vec![(route_name(route).to_owned(), why)] })?;
    let mut links = attached.links;
    for (name, tracepoint) in
        [("empty_session_exec", "sched_process_exec"), ("empty_session_fork", "sched_process_fork")]
    {
        let link = attach::raw_tracepoint(&mut ebpf, name, tracepoint);
        links.push(link.map_err(|why| SensorError::NoRoute {
            tried: vec![(route_name(route).to_owned(), why)],
        })?);
    }
    Ok(Empty { _links: links })
}

/// How many programs that trace this kernel are loaded, whoever did it: each slows down what is
/// measured. Programs that are gone by the time one looks do not count.
pub fn tracing_programs() -> usize {
    let kinds = [
        ProgramType::KProbe,
        ProgramType::TracePoint,
        ProgramType::RawTracePoint,
        ProgramType::RawTracePointWritable,
        ProgramType::Tracing,
        ProgramType::Lsm(LsmAttachType::Mac),
    ];
    loaded_programs()
        .flatten()
        .filter(|program| kinds.iter().any(|kind| program.program_type() == (*kind).into()))
        .count()
}

//! The ways into the kernel: one table of routes, and loading and attaching one of them.
//!
//! Nothing is decided by kernel version: a route is what loads, attaches and then reports the
//! canary. This file does the first two and says why not; `kernel` goes through the table.

use std::{
    cell::OnceCell,
    error::Error,
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, Endianness,
    maps::MapError,
    pin::PinError,
    programs::{
        BtfTracePoint, FExit, KProbe, Program, ProgramError, RawTracePoint, TracePoint,
        kprobe::KProbeLink, links::FdLink, trace_point::TracePointLink,
    },
};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};
use tokentrail_ebpf::{Offsets, Route, names};
use zerocopy::IntoBytes as _;

use super::btf::KERNEL_BTF;

/// One way to see opens.
pub(super) struct Plan {
    pub(super) route: Route,
    /// How it differs from another plan of the same route.
    pub(super) manner: &'static str,
    /// Program in the object.
    program: &'static str,
    /// Its yardstick on the same hook.
    #[cfg(feature = "bench")]
    empty: &'static str,
    hook: Hook,
    /// What else there is to see, by further programs: the route works without.
    beside: &'static [Beside],
}

/// A program of a route that sees what its main one cannot.
struct Beside {
    program: &'static str,
    hook: Hook,
    /// What is not seen without.
    missed: &'static str,
}

enum Hook {
    /// BTF trampoline at the return of a function.
    Fexit(&'static str),
    /// Breakpoint or ftrace call at the entry of a function.
    Kprobe(&'static str),
    /// Tracepoints: category, name, and what is not seen where it is missing.
    Tracepoints(&'static [(&'static str, &'static str, Option<&'static str>)]),
}

/// What `security_file_receive` tells.
const RECEIVED: &str = "descriptors received from other processes";

/// In the order of preference: cheapest and most complete first.
pub(super) const ROUTES: [Plan; 4] = [
    // Sees every open that succeeds, io_uring's and execve's as well, with its path. Kernel 5.5,
    // arm64 6.4 (older ones load it and refuse to attach, error 524).
    // <https://github.com/torvalds/linux/commit/fec56f5890d93fc2ed74166c397dc186b1c25951>
    Plan {
        route: Route::Fexit,
        manner: "",
        program: "open_fexit",
        #[cfg(feature = "bench")]
        empty: "empty_fexit",
        hook: Hook::Fexit("security_file_open"),
        beside: &[Beside {
            program: "receive_fexit",
            hook: Hook::Fexit("security_file_receive"),
            missed: RECEIVED,
        }],
    },
    // The same function where there are no trampolines; not under lockdown=confidentiality.
    // Through perf_event_open, kernel 4.17.
    // <https://github.com/torvalds/linux/commit/e12f03d7031a977356e3d7b75a68c2185ff8d155>
    Plan {
        route: Route::Kprobe,
        manner: "",
        program: "open_kprobe",
        #[cfg(feature = "bench")]
        empty: "empty_kprobe",
        hook: Hook::Kprobe("security_file_open"),
        beside: &[Beside {
            program: "open_kprobe",
            hook: Hook::Kprobe("security_file_receive"),
            missed: RECEIVED,
        }],
    },
    // Needs neither; what it does not see is in the README and in `tests/evasion`. Kernel 4.7 for
    // BPF on tracepoints, CONFIG_FTRACE_SYSCALLS for these.
    // <https://github.com/torvalds/linux/commit/98b5c2c65c2951772a8fc661f50d675e450e8bce>
    Plan {
        route: Route::Exit,
        manner: "",
        program: "open_exit",
        #[cfg(feature = "bench")]
        empty: "empty_exit",
        hook: Hook::Tracepoints(&[
            ("syscalls", "sys_exit_openat", Some("opens by openat")),
            // Kernel 5.6.
            ("syscalls", "sys_exit_openat2", Some("opens by openat2")),
            ("syscalls", "sys_exit_open_by_handle_at", Some("opens by file handle")),
            // Kernel 5.6.
            ("syscalls", "sys_exit_pidfd_getfd", Some("descriptors taken by pidfd_getfd")),
            // Architectures younger than openat, arm64 among them, have no such call.
            (
                "syscalls",
                "sys_exit_open",
                if cfg!(target_arch = "x86_64") { Some("opens by open") } else { None },
            ),
        ]),
        // Costs nothing where nobody uses io_uring. Where it is missing, nobody can.
        beside: &[Beside {
            program: "open_uring",
            hook: Hook::Tracepoints(&[("io_uring", "io_uring_complete", None)]),
            missed: "opens by io_uring",
        }],
    },
    // The first one again, where the kernel keeps its memory from programs (lockdown=confidentiality)
    // and so refuses all of these. Kernel 5.11 for facts about the opener: `bpf_get_current_task_btf`.
    // <https://github.com/torvalds/linux/commit/3ca1032ab7ab010eccb107aa515598788f7d93bb>
    Plan {
        route: Route::Fexit,
        manner: " by typed reads",
        program: "open_direct",
        #[cfg(feature = "bench")]
        empty: "empty_fexit",
        hook: Hook::Fexit("security_file_open"),
        beside: &[Beside {
            program: "receive_direct",
            hook: Hook::Fexit("security_file_receive"),
            missed: RECEIVED,
        }],
    },
];

/// What keeps a program attached: dropping it detaches, unless it was pinned.
pub(super) struct Link {
    /// The hook.
    hook: &'static str,
    /// `None` after a pin that failed.
    attachment: Option<Attachment>,
}

enum Attachment {
    Pinnable(FdLink),
    /// Through a perf event, which is no link before Linux 5.15.
    /// <https://github.com/torvalds/linux/commit/b89fbfbb854c9afc3047e8273cc3a694650b802e>
    Perf(#[expect(dead_code, reason = "held for its drop")] PerfLink),
}

enum PerfLink {
    Kprobe(#[expect(dead_code, reason = "held for its drop")] KProbeLink),
    Tracepoint(#[expect(dead_code, reason = "held for its drop")] TracePointLink),
}

impl Link {
    fn pinnable(hook: &'static str, link: FdLink) -> Self {
        Self { hook, attachment: Some(Attachment::Pinnable(link)) }
    }

    fn perf(hook: &'static str, link: PerfLink) -> Self {
        Self { hook, attachment: Some(Attachment::Perf(link)) }
    }

    /// The hook.
    pub(super) fn hook(&self) -> &'static str {
        self.hook
    }

    /// Keeps the program attached for as long as this path is there; `false` where the kernel cannot.
    /// After an error it is not attached any more.
    pub(super) fn pin(&mut self, path: &Path) -> Result<bool, PinError> {
        match self.attachment.take() {
            Some(Attachment::Pinnable(link)) => {
                let pinned = link.pin(path)?;
                self.attachment = Some(Attachment::Pinnable(pinned.into()));
                Ok(true)
            }
            other => {
                self.attachment = other;
                Ok(false)
            }
        }
    }
}

/// What the plan by typed reads leaves to user space.
pub(super) const UNREAD: &str = "names of cgroups and mount points, and whatever the kernel side \
    cannot read, come from /proc and from paths, or are missing where the process is gone";

/// An attached route.
pub(super) struct Attached {
    pub(super) links: Vec<Link>,
    /// What this route does not see here although it could.
    pub(super) blind: Vec<String>,
}

/// The kernel's types, by which typed programs name what they are attached to. Read when the first asks.
pub(super) struct Types {
    path: PathBuf,
    types: OnceCell<Btf>,
}

impl Types {
    /// Those at this path, if they are not at [`KERNEL_BTF`].
    pub(super) fn of(path: Option<&Path>) -> Self {
        Self { path: path.unwrap_or(Path::new(KERNEL_BTF)).to_owned(), types: OnceCell::new() }
    }

    fn get(&self) -> Result<&Btf, String> {
        if let Some(types) = self.types.get() {
            return Ok(types);
        }
        let types = Btf::parse_file(&self.path, Endianness::default())
            .map_err(|error| reason("reading BTF", &error))?;
        Ok(self.types.get_or_init(|| types))
    }
}

/// Parses the object, creates its maps, but for those that are pinned at these paths, and relocates its
/// programs; loads none of them.
pub(super) fn load(
    object: &[u8],
    offsets: &Offsets,
    log_level: u8,
    pinned: &[(&'static str, PathBuf)],
) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    for (name, path) in pinned {
        loader.map_pin_path(name, path.as_path());
    }
    loader
        // The object has no relocations against kernel types, and parsing them costs memory.
        .btf(None)
        .override_global(names::OFFSETS, offsets.as_bytes(), true)
        .override_global(aya_log::LEVEL, &log_level, true)
        .load(object)
}

/// Programs that follow sessions in containers, whatever the route: name in the object, the one that
/// takes its place where that is refused, tracepoint, and what is missed without.
const SESSIONS: [(&str, &str, &str, &str); 2] = [
    ("session_exec", "exec_direct", "sched_process_exec", "commands of sessions that end at once"),
    (
        "session_fork",
        "fork_direct",
        "sched_process_fork",
        "that a process whose parent has ended is of a session",
    ),
];

/// Loads and attaches them. BPF on raw tracepoints: kernel 4.17, and no tracefs.
/// <https://github.com/torvalds/linux/commit/c4f6699dfcb8558d138fe838f741b2c10f416cf9>
pub(super) fn sessions(ebpf: &mut Ebpf, types: &Types) -> Attached {
    let mut attached = Attached { links: Vec::new(), blind: Vec::new() };
    for (name, direct, tracepoint, missed) in SESSIONS {
        let link = raw_tracepoint(ebpf, name, tracepoint).or_else(|refused| {
            typed_tracepoint(ebpf, direct, tracepoint, types).map_err(|also| (refused, also))
        });
        match link {
            Ok(link) => attached.links.push(link),
            Err((refused, also)) => {
                attached
                    .blind
                    .push(format!("{missed} is not seen: {refused}; by typed reads: {also}"));
            }
        }
    }
    attached
}

/// Loads and attaches what sees the opens of 32-bit calls where the exit route is taken.
pub(super) fn compat(ebpf: &mut Ebpf) -> Attached {
    let link = if cfg!(target_arch = "x86_64") {
        raw_tracepoint(ebpf, "open_compat", "sys_exit")
    } else {
        Err("on x86-64 alone".to_owned())
    };
    match link {
        Ok(link) => Attached { links: vec![link], blind: Vec::new() },
        Err(why) => {
            let blind = vec![format!("opens by 32-bit calls are not seen: {why}")];
            Attached { links: Vec::new(), blind }
        }
    }
}

pub(super) fn raw_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    tracepoint: &'static str,
) -> Result<Link, String> {
    let program =
        ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    let program: &mut RawTracePoint =
        program.try_into().map_err(|error| refusal("load", &error))?;
    program.load().map_err(|error| refusal("load", &error))?;
    let link = program.attach(tracepoint).map_err(|error| refusal("attach", &error))?;
    let link = program.take_link(link).map_err(|error| refusal("attach", &error))?;
    Ok(Link::pinnable(tracepoint, link.into()))
}

fn typed_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    tracepoint: &'static str,
    types: &Types,
) -> Result<Link, String> {
    let program =
        ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    let program: &mut BtfTracePoint =
        program.try_into().map_err(|error| refusal("load", &error))?;
    program.load(tracepoint, types.get()?).map_err(|error| refusal("load", &error))?;
    let link = program.attach().map_err(|error| refusal("attach", &error))?;
    let link = program.take_link(link).map_err(|error| refusal("attach", &error))?;
    Ok(Link::pinnable(tracepoint, link.into()))
}

impl Plan {
    /// Loads and attaches the route's programs; `Err` says what refused the main one.
    pub(super) fn attach(&self, ebpf: &mut Ebpf, types: &Types) -> Result<Attached, String> {
        let mut attached = self.hook.attach(ebpf, self.program, types)?;
        for Beside { program, hook, missed } in self.beside {
            match hook.attach(ebpf, program, types) {
                Ok(more) => {
                    attached.links.extend(more.links);
                    attached.blind.extend(more.blind);
                }
                Err(why) => attached.blind.push(format!("{missed} are not seen: {why}")),
            }
        }
        Ok(attached)
    }

    /// The same for the program that does nothing.
    #[cfg(feature = "bench")]
    pub(super) fn attach_empty(&self, ebpf: &mut Ebpf) -> Result<Attached, String> {
        self.hook.attach(ebpf, self.empty, &Types::of(None))
    }
}

impl Hook {
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        program: &'static str,
        types: &Types,
    ) -> Result<Attached, String> {
        let program = ebpf
            .program_mut(program)
            .ok_or_else(|| format!("the object has no program {program}"))?;
        match self {
            Self::Fexit(function) => fexit(program, function, types),
            Self::Kprobe(function) => kprobe(program, function),
            Self::Tracepoints(tracepoints) => exits(program, tracepoints),
        }
    }
}

fn fexit(program: &mut Program, function: &'static str, types: &Types) -> Result<Attached, String> {
    let btf = types.get()?;
    let program: &mut FExit = program.try_into().map_err(|error| refusal("load", &error))?;
    program.load(function, btf).map_err(|error| refusal("load", &error))?;
    let link = program.attach().map_err(|error| refusal("attach", &error))?;
    let link = program.take_link(link).map_err(|error| refusal("attach", &error))?;
    Ok(Attached { links: vec![Link::pinnable(function, link.into())], blind: Vec::new() })
}

fn kprobe(program: &mut Program, function: &'static str) -> Result<Attached, String> {
    let program: &mut KProbe = program.try_into().map_err(|error| refusal("load", &error))?;
    load_once(program.load())?;
    let attach = || program.attach(function, 0).and_then(|link| program.take_link(link));
    let link = perf(function, attach, PerfLink::Kprobe);
    let link = link.map_err(|error| refusal("attach", &error))?;
    Ok(Attached { links: vec![link], blind: Vec::new() })
}

/// Attaches through a perf event. Asking a link whether it can be pinned uses up one that cannot, which
/// is then attached once more.
fn perf<L>(
    hook: &'static str,
    mut attach: impl FnMut() -> Result<L, ProgramError>,
    keep: impl Fn(L) -> PerfLink,
) -> Result<Link, ProgramError>
where
    FdLink: TryFrom<L>,
{
    match FdLink::try_from(attach()?) {
        Ok(link) => Ok(Link::pinnable(hook, link)),
        Err(_) => Ok(Link::perf(hook, keep(attach()?))),
    }
}

/// One program may have two hooks.
fn load_once(loaded: Result<(), ProgramError>) -> Result<(), String> {
    match loaded {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(refusal("load", &error)),
    }
}

fn exits(
    program: &mut Program,
    tracepoints: &[(&'static str, &'static str, Option<&str>)],
) -> Result<Attached, String> {
    ensure_tracefs()?;
    let program: &mut TracePoint = program.try_into().map_err(|error| refusal("load", &error))?;
    program.load().map_err(|error| refusal("load", &error))?;
    let mut attached = Attached { links: Vec::new(), blind: Vec::new() };
    for (category, name, missed) in tracepoints {
        let attach = || program.attach(category, name).and_then(|link| program.take_link(link));
        match (perf(name, attach, PerfLink::Tracepoint), missed) {
            (Ok(link), _) => attached.links.push(link),
            (Err(error), Some(missed)) => {
                attached
                    .blind
                    .push(format!("{missed} are not seen: {}", refusal("attach", &error)));
            }
            (Err(_), None) => {}
        }
    }
    if attached.links.is_empty() && !attached.blind.is_empty() {
        return Err(attached.blind.join("; "));
    }
    Ok(attached)
}

/// Where tracefs may be, in the order in which aya looks.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The mounted tracefs.
pub(super) fn tracefs() -> Option<&'static str> {
    TRACEFS.into_iter().find(|mount| Path::new(mount).join("events/syscalls").is_dir())
}

/// Tracepoint ids are read from tracefs, which minimal systems do not mount. Left mounted: it is
/// where every other tool expects it.
fn ensure_tracefs() -> Result<(), String> {
    if tracefs().is_some() {
        return Ok(());
    }
    let [target, _] = TRACEFS;
    match mount("tracefs", target, "tracefs", MountFlags::empty(), None) {
        // Mounted already, and nothing is in there.
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => {
            return Err(format!(
                "tracefs is not mounted and mounting it failed: {error}; run `mount -t tracefs tracefs {target}`"
            ));
        }
    }
    match tracefs() {
        Some(_) => Ok(()),
        None if locked_down() => Err(format!("no system-call tracepoints are shown{LOCKDOWN}")),
        None => Err("this kernel has no system-call tracepoints (CONFIG_FTRACE_SYSCALLS)".into()),
    }
}

/// What the distributions' `perf_event_paranoid=3` asks beyond CAP_PERFMON.
const PARANOID: &str = "; Debian and Ubuntu ask CAP_SYS_ADMIN for this route";

/// Why loading or attaching failed, with the end of the verifier's log.
fn refusal(step: &str, error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        // The last lines are statistics; the verdict is just above them.
        let tail = lines.get(lines.len().saturating_sub(VERIFIER_LINES)..).unwrap_or_default();
        let log = if tail.is_empty() { "no verifier log".into() } else { tail.join(" | ") };
        let hint = if locked_down() { LOCKDOWN } else { "" };
        return format!("{step}: {io_error}; {log}{hint}");
    }
    let text = reason(step, error);
    if let ProgramError::SyscallError(error) = error
        && error.io_error.kind() == std::io::ErrorKind::PermissionDenied
    {
        return text + PARANOID;
    }
    text
}

/// Why programs may not read kernel memory, and tracepoints are hidden, where all else is as it should be.
const LOCKDOWN: &str = "; this kernel runs with lockdown=confidentiality, which forbids that";

/// Whether secrets of the kernel are kept from root, too.
fn locked_down() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lockdown")
        .is_ok_and(|levels| levels.contains("[confidentiality]"))
}

/// What a map that is refused needs where memory of maps counts as locked: a memory cgroup's since 5.11.
const LOCKED_MEMORY: &str = "; kernels before 5.11 ask CAP_SYS_RESOURCE for it";

/// How many lines of the verifier's log an error keeps.
const VERIFIER_LINES: usize = 8;

/// An error with its causes on one line.
pub(super) fn reason(step: &str, error: &dyn Error) -> String {
    let mut text = format!("{step}: {error}");
    let mut hint = "";
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(MapError::CreateError { io_error, .. }) = cause.downcast_ref()
            && io_error.kind() == std::io::ErrorKind::PermissionDenied
        {
            hint = LOCKED_MEMORY;
        }
        let cause_text = match cause.downcast_ref::<std::io::Error>() {
            // Internal to the kernel, so the C library has no name for it.
            Some(io) if io.raw_os_error() == Some(ENOTSUPP) => {
                "the kernel does not support this attachment (error 524)".into()
            }
            _ => cause.to_string(),
        };
        // Transparent wrappers repeat themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text + hint
}

/// `ENOTSUPP` of `include/linux/errno.h`: arm64 kernels without direct calls answer it.
const ENOTSUPP: i32 = 524;

//! A record's bytes as text and verdict-free facts: terminal, paths, executable, arguments.
//!
//! Pure. Everything in a record is untrusted: names may hold any bytes, so text is lossy UTF-8.
//! Called by [`Attributor`](super::Attributor).

use tokentrail_ebpf::{
    Ancestor, COMM_LEN, FdFacts, Missing, OpenRecord, Route, SessionCommand, TEXT_LEN, until_nul,
};

use super::{Grade, ProcessKey, RelatedProcess, TokenFile, volumes::kernel_dev};
use crate::redact::redact_args;

/// Where pods find their token, whatever way it was reached.
const CANONICAL: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Name of the directory that the volume is mounted on.
const MOUNT_NAMES: [&str; 3] = ["serviceaccount", "kubernetes.io", "secrets"];
/// Start of the name that admission gives the volume, hence the kubelet its directory.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// `/dev/tty`: whatever the controlling terminal is.
const DEV_TTY: u32 = kernel_dev(5, 0);
/// `S_IFMT` and `S_IFCHR` of `i_mode`.
const FILE_TYPE: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Lossy text of a NUL-terminated field.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(until_nul(bytes)).into_owned()
}

/// Whether nothing can be read through the descriptor (`O_ACCMODE` is `O_WRONLY`).
pub(super) fn is_write_only(record: &OpenRecord) -> bool {
    record.open_flags & 0o3 == 0o1
}

/// The path that rules and people know the file by.
pub(super) fn canonical_path(file: TokenFile) -> String {
    format!("{CANONICAL}/{}", file.name())
}

/// Whether the file system is mounted where, or under the name that, token volumes are.
pub(super) fn mounted_as_token_volume(record: &OpenRecord) -> bool {
    let names = record.mount_names.each_ref().map(|name| until_nul(name));
    names == MOUNT_NAMES.map(str::as_bytes)
        || names.first().is_some_and(|name| name.starts_with(VOLUME_PREFIX.as_bytes()))
}

/// The path as the kernel saw it: `d_path`, or what the names of its last components make.
pub(super) fn raw_path(record: &OpenRecord) -> String {
    let path = text(&record.path);
    if !path.is_empty() {
        return path;
    }
    let [point, above, top] = &record.mount_names;
    join_upwards(
        [&record.file_name, &record.parent_name]
            .into_iter()
            .filter(|name| *until_nul(*name) != *b"/")
            .chain([point, above, top]),
    )
}

/// The executable's last three components, a full path if they reach the root.
pub(super) fn executable(record: &OpenRecord) -> String {
    join_upwards(&record.exe_names)
}

/// A path from names, last component first: from the root if it is among them, else behind `/…`.
fn join_upwards<'a>(
    names: impl IntoIterator<Item = &'a [u8; tokentrail_ebpf::NAME_LEN]>,
) -> String {
    let mut path = String::new();
    for name in names {
        match until_nul(name) {
            b"" => break,
            b"/" => return if path.is_empty() { "/".to_owned() } else { path },
            name => path = format!("/{}{path}", String::from_utf8_lossy(name)),
        }
    }
    if path.is_empty() { path } else { format!("/…{path}") }
}

/// The arguments, secrets redacted, and whether the record holds only the first of them.
pub(super) fn arguments(record: &OpenRecord) -> (Vec<String>, bool) {
    let (words, cut) = words(record);
    let texts = words.into_iter().map(|word| String::from_utf8_lossy(word).into_owned());
    (redact_args(texts.collect()), cut)
}

/// The command as it was given, for comparing; `None` if it was cut or not read.
pub(super) fn whole_command(record: &OpenRecord) -> Option<Vec<Vec<u8>>> {
    let (words, cut) = words(record);
    let usable = !cut && !words.is_empty() && record.missing & Missing::ARGV == 0;
    usable.then(|| words.into_iter().map(<[u8]>::to_vec).collect())
}

/// The command that a session began with, for comparing; `None` if it was cut or is not known.
pub(super) fn session_command(command: &SessionCommand) -> Option<Vec<Vec<u8>>> {
    let length = usize::try_from(command.length).ok()?;
    let words = split_words(command.text.get(..length)?);
    (!words.is_empty()).then(|| words.into_iter().map(<[u8]>::to_vec).collect())
}

/// Words of the command, and whether it filled its field, so that its end may be missing.
fn words(record: &OpenRecord) -> (Vec<&[u8]>, bool) {
    let length = usize::try_from(record.argv_len).unwrap_or(TEXT_LEN).min(TEXT_LEN);
    (split_words(record.argv.get(..length).unwrap_or_default()), length == TEXT_LEN)
}

/// Words of a command as the kernel keeps it: each ends with a NUL.
pub(super) fn split_words(command: &[u8]) -> Vec<&[u8]> {
    let whole = command.strip_suffix(b"\0").unwrap_or(command);
    if whole.is_empty() { Vec::new() } else { whole.split(|byte| *byte == 0).collect() }
}

/// The process that the opener's session in the container began with: the one that it was forked
/// from, whoever has become its parent since, else the topmost in its cgroup.
pub(super) fn entry(record: &OpenRecord) -> Ancestor {
    let topmost = record.entry_cgroup;
    let session = record.session;
    match u32::try_from(session.tgid) {
        Ok(tgid) if tgid != 0 && tgid != topmost.tgid => {
            let command = record.session_command.text.as_slice();
            let name = until_nul(command).rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let mut comm = [0; COMM_LEN];
            // The last byte stays NUL, as in the kernel.
            comm.iter_mut().take(COMM_LEN - 1).zip(name).for_each(|(to, from)| *to = *from);
            Ancestor { start_boottime_ns: session.start_boottime_ns, tgid, nspid: 0, comm }
        }
        _ => topmost,
    }
}

/// An ancestor, as a related process.
pub(super) fn related(ancestor: &Ancestor) -> RelatedProcess {
    RelatedProcess {
        key: ProcessKey { tgid: ancestor.tgid, start_boottime_ns: ancestor.start_boottime_ns },
        comm: text(&ancestor.comm),
    }
}

/// The grade that the terminal makes, if the opener has one.
pub(super) fn terminal_grade(record: &OpenRecord) -> Option<Grade> {
    if record.tty_dev == 0 || record.missing & Missing::TERMINAL != 0 {
        return None;
    }
    if record.missing & Missing::DESCRIPTORS != 0 {
        return Some(Grade::Terminal);
    }
    let [input, _, errors] = record.fds;
    let is_terminal = |fd: FdFacts| {
        fd.mode & FILE_TYPE == CHARACTER_DEVICE && [record.tty_dev, DEV_TTY].contains(&fd.rdev)
    };
    let interactive = is_terminal(input) && is_terminal(errors);
    Some(if interactive { Grade::Interactive } else { Grade::Terminal })
}

/// Name of the hook that saw the open.
pub(super) fn route(record: &OpenRecord) -> &'static str {
    match Route::try_from(record.route) {
        Ok(Route::Fexit) => "fexit",
        Ok(Route::Kprobe) => "kprobe",
        Ok(Route::Exit) => "exit",
        Err(_) => "unknown",
    }
}

/// Names of facts, as bits of [`Missing`].
pub(super) fn missing(bits: u32) -> Vec<String> {
    const NAMES: [(u32, &str); 10] = [
        (Missing::CGROUP, "cgroup"),
        (Missing::TERMINAL, "terminal"),
        (Missing::EXECUTABLE, "executable"),
        (Missing::ARGV, "args"),
        (Missing::MOUNT, "mount"),
        (Missing::NAMESPACES, "namespaces"),
        (Missing::ANCESTORS, "ancestors"),
        (Missing::USER, "user"),
        (Missing::DESCRIPTORS, "descriptors"),
        (Missing::FILE_NAME, "file_name"),
    ];
    NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests;

//! Opens as ECS documents, one a line: what `run --record` writes, and what others record.
//!
//! Fields may be nested or have dots in their names, and hold one value or a list. Our own
//! `tokentrail.open` is the open itself where it is there; otherwise one is made of the ECS fields,
//! graded by `tokentrail.grade`, else by `process.interactive`. Pure; called by the readers of `--opens`.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    attribution::{
        ContainerRef, Grade, ProcessKey, RelatedProcess, TokenFile, TokenOpen, pods::Pod,
    },
    audit::BadLine,
    redact::redact_args,
    time::Micros,
};

mod fields;

use fields::Fields;

/// Where pods have their token and CA certificate.
const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount/";

/// An open and what its document says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenDocument {
    /// `@timestamp`
    pub time: Micros,
    /// Values of `orchestrator.resource.name`.
    pub names: Vec<String>,
    /// `orchestrator.namespace`
    pub namespace: Option<String>,
    /// Whether the open is one that Elastic's rule looks for.
    pub is_elastic: bool,
    /// `host.boot.id`; empty if it is not there.
    pub boot_id: String,
    /// `host.name`
    pub host: Option<String>,
    /// `tokentrail.skew_us`
    pub skew: Option<Micros>,
    /// `orchestrator.resource.id`, or what our own record says.
    pub pod_uid: Option<String>,
    /// `tokentrail.pod`: the pod whose token it is, as the agent's index knew it.
    pub pod: Option<Box<Pod>>,
    /// Fields of ours that cannot be read: the ECS fields have to do.
    pub unread: Vec<&'static str>,
    told: Told,
}

/// What tells of the open itself.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    /// Our own record, with the document's time.
    Own(Box<TokenOpen>),
    /// ECS fields: of most opens nothing more is ever asked.
    Ecs(Fields),
}

impl OpenDocument {
    /// Whether two documents of one time are of the same open.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.told, &other.told) {
            (Told::Own(one), Told::Own(two)) => {
                let key = |it: &TokenOpen| (it.ktime_ns, it.pid, it.inode);
                self.boot_id == other.boot_id && key(one) == key(two)
            }
            (Told::Ecs(one), Told::Ecs(two)) if one.text("event.id").is_some() => {
                one.text("event.id") == two.text("event.id")
            }
            _ => self == other,
        }
    }

    /// The open; its times are the document's.
    pub fn open(&self) -> TokenOpen {
        match &self.told {
            Told::Own(open) => TokenOpen::clone(open),
            Told::Ecs(fields) => open_of(fields, self.time),
        }
    }
}

/// Reads one document; `None` if it is not about an open of a token.
///
/// # Errors
/// The line is no JSON object, has a key twice, or no believable `@timestamp`.
pub fn parse(line: &[u8]) -> Result<Option<OpenDocument>, BadLine> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Err(BadLine::Blank);
    }
    let text = String::from_utf8_lossy(line);
    let fault = |error: serde_json::Error| match error.is_data() {
        true => BadLine::WrongShape,
        false => BadLine::NotJson,
    };
    if !text.starts_with('{') {
        return Err(BadLine::NotJson);
    }
    let fields = Fields::read(&text).map_err(fault)?;
    let own = fields.all("tokentrail.open").find(|value| value.is_object());
    let is_open = token_path(&fields).is_some() && fields.has("event.action", "open");
    if own.is_none() && !is_open {
        return Ok(None);
    }
    let time = fields.text("@timestamp").and_then(Micros::parse_believable);
    let time = time.ok_or(BadLine::BadTime)?;
    let text = |field: &str| fields.text(field).map(str::to_owned);
    let mut unread = Vec::new();
    let own = match own.map(TokenOpen::deserialize) {
        Some(Err(_)) if !is_open => return Err(BadLine::WrongShape),
        own => own.and_then(|own| own.map_err(|_| unread.push("tokentrail.open")).ok()),
    };
    let own = own.map(|own| TokenOpen { time, wall: time, ..own });
    let pod = fields.all("tokentrail.pod").find(|value| value.is_object()).map(Box::deserialize);
    let pod = pod.and_then(|pod| pod.map_err(|_| unread.push("tokentrail.pod")).ok());
    if own.is_none() && fields.all("tokentrail.grade").next().is_some() && grade(&fields).is_none()
    {
        unread.push("tokentrail.grade");
    }
    Ok(Some(OpenDocument {
        time,
        names: fields.all("orchestrator.resource.name").filter_map(name).collect(),
        namespace: text("orchestrator.namespace"),
        is_elastic: is_elastic(&fields),
        boot_id: text("host.boot.id").unwrap_or_default(),
        host: text("host.name"),
        skew: fields.number("tokentrail.skew_us").and_then(|us| i64::try_from(us).ok()).map(Micros),
        pod_uid: match &own {
            Some(own) => own.pod_uid.clone(),
            None => text("orchestrator.resource.id"),
        },
        pod,
        unread,
        told: own.map_or_else(|| Told::Ecs(fields), |own| Told::Own(Box::new(own))),
    }))
}

/// A pod's name: one may be all digits, and written as a number.
fn name(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|name| name.to_string()))
}

/// `tokentrail.grade`, of those who record it without the rest.
fn grade(fields: &Fields) -> Option<Grade> {
    fields.all("tokentrail.grade").find_map(|value| Grade::deserialize(value).ok())
}

/// The path of the token file that was opened, and which of them it is.
fn token_path(fields: &Fields) -> Option<(&str, TokenFile)> {
    fields.texts("file.path").find_map(|path| Some((path, token_file(path)?)))
}

/// The conditions of Elastic's rule on a file event; each holds if any value of its field does.
fn is_elastic(fields: &Fields) -> bool {
    fields.has("host.os.type", "linux")
        && fields.has("event.category", "file")
        && fields.has("event.type", "change")
        && fields.has("event.action", "open")
        && fields.texts("file.path").any(|path| {
            path.strip_prefix(FOLDER).is_some_and(|name| matches!(name, "token" | "ca.crt"))
        })
        && is_interactive(fields)
        && fields.all("container.id").next().is_some()
}

fn is_interactive(fields: &Fields) -> bool {
    fields.all("process.interactive").any(|value| *value == Value::Bool(true))
}

/// Which file of a token volume the path names, by whatever way it leads there.
fn token_file(path: &str) -> Option<TokenFile> {
    // `/var/run` is a link to `/run`.
    let folder = FOLDER.strip_prefix("/var")?;
    let rest = path.strip_prefix("/var").unwrap_or(path).strip_prefix(folder)?;
    // The volume's files are links through `..data` into a folder named by a date.
    let (parent, name) = rest.rsplit_once('/').unwrap_or(("", rest));
    match name {
        "token" if parent.is_empty() || parent.starts_with("..") => Some(TokenFile::Token),
        "ca.crt" if parent.is_empty() || parent.starts_with("..") => Some(TokenFile::CaCert),
        _ => None,
    }
}

/// An open as ECS fields alone tell it.
fn open_of(fields: &Fields, time: Micros) -> TokenOpen {
    let (path, file) = token_path(fields).unwrap_or(("", TokenFile::Token));
    let interactive = is_interactive(fields);
    let nanos = |time: Micros| u64::try_from(time.0).unwrap_or_default().saturating_mul(1_000);
    // There is no boot clock: the wall clock takes its place.
    let ktime_ns = nanos(time);
    let key = |process: &str| {
        let started = fields.text(&format!("{process}.start")).and_then(Micros::parse_believable);
        let tgid = fields.number(&format!("{process}.pid"));
        ProcessKey {
            tgid: tgid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
            start_boottime_ns: started.map_or(ktime_ns, nanos),
        }
    };
    let text = |field: &str| fields.text(field).unwrap_or_default().to_owned();
    let id = |field: &str| {
        fields.number(field).and_then(|id| u32::try_from(id).ok()).unwrap_or_default()
    };
    let process = key("process");
    // The session that the process belongs to, as far as somebody recorded it.
    let entry = ["process.entry_leader", "process.session_leader"]
        .into_iter()
        .find(|leader| fields.number(&format!("{leader}.pid")).is_some())
        .map_or(RelatedProcess { key: process, comm: text("process.name") }, |leader| {
            RelatedProcess { key: key(leader), comm: text(&format!("{leader}.name")) }
        });
    let pod_uid = fields.text("orchestrator.resource.id").map(str::to_owned);
    TokenOpen {
        ktime_ns,
        time,
        wall: time,
        grade: grade(fields).unwrap_or(match interactive {
            true => Grade::Interactive,
            false => Grade::Workload,
        }),
        native: None,
        volume: None,
        reader: fields.text("container.id").map(|container| ContainerRef {
            pod_uid: pod_uid.clone().unwrap_or_default(),
            container_id: Some(container.to_owned()),
            runtime: fields.text("container.runtime").map(str::to_owned),
        }),
        pod_uid,
        file,
        path: format!("{FOLDER}{}", path.rsplit('/').next().unwrap_or_default()),
        raw_path: path.to_owned(),
        inode: fields.number("file.inode").unwrap_or_default(),
        process,
        pid: process.tgid,
        ppid: id("process.parent.pid"),
        comm: text("process.name"),
        leader_comm: text("process.name"),
        executable: text("process.executable"),
        executable_id: (0, 0),
        args: redact_args(fields.texts("process.args").map(str::to_owned).collect()),
        args_cut: false,
        uid: id("process.user.id"),
        euid: id("process.user.id"),
        tty: None,
        entry: entry.clone(),
        pidns_entry: entry,
        cgroup: String::new(),
        route: "record".to_owned(),
        degraded: Vec::new(),
        repeats: 0,
    }
}

#[cfg(test)]
mod tests;

//! An audit log as kube-apiserver writes it: recorded lines with another pod's identity and
//! another time filled in, and both ways in which such logs are rotated.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    NODE_NAME,
    alerts::text_at,
    machine::random_uuid,
    pod::Pod,
    wait::{PATIENCE, wait_until},
};

/// Lines that a kube-apiserver wrote about requests of pod `cart-0`.
const RECORDED: &str = include_str!("../fixtures/audit/pod-requests.ndjson");

/// The line that a kube-apiserver wrote when `kubectl exec -it` by `admin` began.
const EXEC: &str = include_str!("../fixtures/audit/exec-tty.ndjson");

/// The lines that it wrote when an administrator minted a token of `shop/cart`.
const MINT: &str = include_str!("../fixtures/audit/token-request-user.ndjson");

/// The lines that it wrote when somebody used the token of a Secret of `shop/cart`, which names no pod.
const SECRETS_TOKEN: &str = include_str!("../fixtures/audit/legacy-token.ndjson");

/// The lines that it wrote when an administrator acted as `shop/cart`.
const IMPERSONATION: &str = include_str!("../fixtures/audit/impersonation.ndjson");

/// A request of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Lists the pods of its own namespace: allowed. Recorded in its last stage only.
    ListPods,
    /// Reads a Secret: allowed.
    GetSecret,
    /// Lists the cluster's nodes: forbidden.
    ListNodes,
    /// Asks what it may do (`kubectl auth can-i --list`): allowed.
    ReviewOwnRights,
    /// Asks for the server's version: allowed, and about no resource.
    GetVersion,
    /// Watches the pods of its own namespace: allowed, the one with a `ResponseStarted`.
    WatchPods,
}

impl Request {
    /// Start of the URI that it was recorded with.
    fn uri(self) -> &'static str {
        match self {
            Self::ListPods => "/api/v1/namespaces/shop/pods?limit=500",
            Self::GetSecret => "/api/v1/namespaces/shop/secrets/db",
            Self::ListNodes => "/api/v1/nodes",
            Self::ReviewOwnRights => "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            Self::GetVersion => "/version",
            Self::WatchPods => "/api/v1/namespaces/shop/pods?resourceVersion",
        }
    }
}

/// A stage that a line is written at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the request is handled.
    RequestReceived,
    /// Headers are sent, the body is to come (watches).
    ResponseStarted,
    /// All is sent.
    ResponseComplete,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
        }
    }
}

/// One line of an audit log.
///
/// The recorded bytes stay as the API server wrote them (order of keys, `\u0026`): what is filled
/// in replaces text, nothing is parsed and written anew.
#[derive(Clone, Debug)]
pub struct AuditLine {
    text: String,
    audit_id: String,
    received: String,
    staged: String,
}

impl AuditLine {
    /// The recorded line of this request and stage, as if `pod` made the request now.
    ///
    /// # Errors
    /// If the recording has no such line.
    pub fn recorded(request: Request, stage: Stage, pod: &Pod) -> Result<Self> {
        let (text, event) = RECORDED
            .lines()
            .filter_map(|line| Some((line, serde_json::from_str::<Value>(line).ok()?)))
            .find(|(_, event)| {
                text_at(event, "/requestURI").starts_with(request.uri())
                    && text_at(event, "/stage") == stage.name()
            })
            .with_context(|| format!("{request:?} was not recorded at stage {stage:?}"))?;
        let recorded = |pointer: &str| text_at(&event, pointer).to_owned();
        let extra =
            |key: &str| recorded(&format!("/user/extra/authentication.kubernetes.io~1{key}/0"));
        Ok(Self::of(text.to_owned(), &event)
            .replacing(&extra("pod-uid"), &pod.uid)
            .replacing(&extra("pod-name"), &pod.name)
            .replacing(&extra("node-name"), NODE_NAME)
            .replacing("/namespaces/shop/", &format!("/namespaces/{}/", pod.namespace))
            .replacing(r#""namespace":"shop""#, &format!(r#""namespace":"{}""#, pod.namespace))
            .replacing("accounts:shop", &format!("accounts:{}", pod.namespace))
            .replacing(
                "serviceaccount:shop:cart",
                &format!("serviceaccount:{}:{}", pod.namespace, pod.service_account),
            )
            .of_now(&random_uuid()?))
    }

    /// The recorded beginning of a `kubectl exec -it … -- sh`, as if `admin` opened it in `pod` now.
    ///
    /// # Errors
    /// If the recording is not what it was.
    pub fn session(pod: &Pod) -> Result<Self> {
        let event: Value = serde_json::from_str(EXEC)?;
        let line = EXEC.trim_end();
        let (head, rest) = line.split_once("/exec?").context("the recording has no exec")?;
        let (_, tail) = rest.split_once(r"\u0026container").context("it names no container")?;
        let line = Self::of(format!(r"{head}/exec?command=sh\u0026container{tail}"), &event);
        Ok(line
            .replacing(
                "/namespaces/default/pods/shop/",
                &format!("/namespaces/{}/pods/{}/", pod.namespace, pod.name),
            )
            .replacing(
                r#""namespace":"default","name":"shop""#,
                &format!(r#""namespace":"{}","name":"{}""#, pod.namespace, pod.name),
            )
            .of_now(&random_uuid()?))
    }

    /// The recorded answer to `kubectl create token`, as if `user` had the token of this account
    /// minted now.
    ///
    /// # Errors
    /// If the recording is not what it was.
    pub fn mint(user: &str, namespace: &str, account: &str) -> Result<Self> {
        let line = Self::answer(MINT)?;
        let event: Value = serde_json::from_str(&line.text)?;
        Ok(line.replacing(text_at(&event, "/user/username"), user).replacing(
            r#""namespace":"shop","name":"cart""#,
            &format!(r#""namespace":"{namespace}","name":"{account}""#),
        ))
    }

    /// The recorded answer to a list of pods with the token of a Secret of `shop/cart`, as if it was asked for
    /// from this address now.
    ///
    /// # Errors
    /// If the recording is not what it was.
    pub fn of_secrets_token(address: &str) -> Result<Self> {
        let line = Self::answer(SECRETS_TOKEN)?;
        Ok(line.replacing(r#""sourceIPs":["10.90.0.1"]"#, &format!(r#""sourceIPs":["{address}"]"#)))
    }

    /// The recorded answer to an administrator who acted as `shop/cart`, as if it was now, and in the name of
    /// this pod.
    ///
    /// # Errors
    /// If the recording is not what it was.
    pub fn acting_as(pod: &Pod) -> Result<Self> {
        let extra = format!(r#"{{"authentication.kubernetes.io/pod-uid":["{}"]}}"#, pod.uid);
        let named = format!(r#""impersonatedUser":{{"extra":{extra},"#);
        Ok(Self::answer(IMPERSONATION)?.replacing(r#""impersonatedUser":{"#, &named))
    }

    /// The answered request of a recording, as if it was made now.
    fn answer(recording: &str) -> Result<Self> {
        let answered = |line: &&str| line.contains(r#""code":20"#);
        let text = recording.lines().find(answered).context("the recording has no answer")?;
        Ok(Self::of(text.to_owned(), &serde_json::from_str(text)?).of_now(&random_uuid()?))
    }

    /// With the times at which the request came and this stage was reached.
    #[must_use]
    pub fn at(self, received: Timestamp, staged: Timestamp) -> Self {
        self.stamped(&micros(received), &micros(staged))
    }

    /// With another audit id: all stages of one request share theirs.
    #[must_use]
    pub fn with_audit_id(mut self, id: &str) -> Self {
        self = self.clone().replacing(&self.audit_id, id);
        id.clone_into(&mut self.audit_id);
        self
    }

    /// With every `old` in its text replaced, for twists that no method has.
    #[must_use]
    pub fn replacing(mut self, old: &str, new: &str) -> Self {
        self.text = self.text.replace(old, new);
        self
    }

    /// The id that its request has in the log.
    pub fn audit_id(&self) -> &str {
        &self.audit_id
    }

    /// The line, without its end.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A recorded line; `event` is what it says.
    fn of(text: String, event: &Value) -> Self {
        let recorded = |pointer: &str| text_at(event, pointer).to_owned();
        Self {
            text,
            audit_id: recorded("/auditID"),
            received: recorded("/requestReceivedTimestamp"),
            staged: recorded("/stageTimestamp"),
        }
    }

    fn of_now(self, audit_id: &str) -> Self {
        let now = micros(Timestamp::now());
        self.with_audit_id(audit_id).stamped(&now, &now)
    }

    fn stamped(mut self, received: &str, staged: &str) -> Self {
        // Both may be the same text, so each is replaced together with its key.
        for (key, old, new) in [
            ("requestReceivedTimestamp", &mut self.received, received),
            ("stageTimestamp", &mut self.staged, staged),
        ] {
            let before = format!(r#""{key}":"{old}""#);
            self.text = self.text.replace(&before, &format!(r#""{key}":"{new}""#));
            new.clone_into(old);
        }
        self
    }
}

/// The file that kube-apiserver's `--audit-log-path` names.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    rotations: u32,
}

impl AuditLog {
    /// A log that the API server has not begun yet: the first line makes the file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rotations: 0 }
    }

    /// An empty log.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let log = Self::at(path);
        File::create(&log.path).with_context(|| format!("could not create {:?}", log.path))?;
        Ok(log)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line and its end in one write, and returns when that write began.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&self, line: &AuditLine) -> Result<Instant> {
        self.append_bytes(format!("{}\n", line.text()).as_bytes())
    }

    /// Appends any bytes in one write, and returns when that write began.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append_bytes(&self, bytes: &[u8]) -> Result<Instant> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)
            .with_context(|| format!("could not open {:?}", self.path))?;
        let start = Instant::now();
        file.write_all(bytes).with_context(|| format!("could not write {:?}", self.path))?;
        Ok(start)
    }

    /// Rotates as kube-apiserver does: the file gets another name, an empty one takes its place.
    /// Returns the new name.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn rotate_by_rename(&mut self) -> Result<PathBuf> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // Names tell milliseconds: kube-apiserver never rotates twice in one, tests may.
        let old = wait_until(PATIENCE, "a name for the old file is free", || {
            let time = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%3f");
            let old = self.path.with_file_name(format!("{stem}-{time}.log"));
            // It may have been compressed since.
            let taken = old.exists() || old.with_extension("log.gz").exists();
            Ok((!taken).then_some(old))
        })?;
        fs::rename(&self.path, &old)?;
        File::create(&self.path)?;
        Ok(old)
    }

    /// Rotates as logrotate's `copytruncate` does: the content is copied, the same file emptied.
    /// Returns the copy's name.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn rotate_by_copy_and_truncate(&mut self) -> Result<PathBuf> {
        self.rotations += 1;
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}", self.rotations));
        let copy = PathBuf::from(name);
        fs::copy(&self.path, &copy)?;
        OpenOptions::new().write(true).open(&self.path)?.set_len(0)?;
        Ok(copy)
    }
}

/// Compresses a rotated log as kube-apiserver does: into a new file of a later time, the old one
/// removed when that is whole.
///
/// # Errors
/// If the folder cannot be written.
pub fn compress(rotated: &Path) -> Result<()> {
    let mut encoder =
        GzEncoder::new(File::create(rotated.with_added_extension("gz"))?, Compression::fast());
    io::copy(&mut File::open(rotated)?, &mut encoder)?;
    encoder.finish()?;
    Ok(fs::remove_file(rotated)?)
}

/// RFC 3339 with six decimals, as `metav1.MicroTime` is written.
pub(crate) fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_line_carries_the_pod_and_the_time_it_is_given_and_keeps_its_bytes_otherwise() {
        let pod = Pod::for_tests();
        let line = AuditLine::recorded(Request::WatchPods, Stage::ResponseStarted, &pod).unwrap();
        let received: Timestamp = "2031-02-03T04:05:06.000007Z".parse().unwrap();
        let staged: Timestamp = "2031-02-03T04:05:06.5Z".parse().unwrap();
        let line = line.at(received, staged);
        let event: Value = serde_json::from_str(line.text()).unwrap();
        let extra = |key| {
            let pointer = format!("/user/extra/authentication.kubernetes.io~1{key}/0");
            text_at(&event, &pointer).to_owned()
        };
        assert_eq!(extra("pod-uid"), pod.uid);
        assert_eq!(extra("pod-name"), "till-0");
        assert_eq!(extra("node-name"), NODE_NAME);
        assert_eq!(text_at(&event, "/user/username"), "system:serviceaccount:bank:till");
        assert_eq!(text_at(&event, "/objectRef/namespace"), "bank");
        assert_eq!(text_at(&event, "/requestReceivedTimestamp"), "2031-02-03T04:05:06.000007Z");
        assert_eq!(text_at(&event, "/stageTimestamp"), "2031-02-03T04:05:06.500000Z");
        assert_eq!(text_at(&event, "/auditID"), line.audit_id());
        assert!(line.text().contains(r"\u0026watch=true"), "escapes stay as Go wrote them");
    }

    #[test]
    fn a_recorded_session_is_one_into_the_pod_it_is_given() {
        let pod = Pod::for_tests();
        let event: Value = serde_json::from_str(AuditLine::session(&pod).unwrap().text()).unwrap();
        assert_eq!(
            text_at(&event, "/requestURI"),
            "/api/v1/namespaces/bank/pods/till-0/exec?command=sh&container=main&stdin=true&stdout=true&tty=true"
        );
        assert_eq!(text_at(&event, "/objectRef/name"), "till-0");
        assert_eq!(text_at(&event, "/objectRef/namespace"), "bank");
    }

    #[test]
    fn a_pod_is_named_by_who_acts_as_it_and_not_by_the_token_of_a_secret() {
        let pod = Pod::for_tests();
        let read = |line: AuditLine| serde_json::from_str::<Value>(line.text()).unwrap();
        let forged = read(AuditLine::acting_as(&pod).unwrap());
        let uid = "/extra/authentication.kubernetes.io~1pod-uid/0";
        assert_eq!(text_at(&forged, &format!("/impersonatedUser{uid}")), pod.uid);
        assert_eq!(text_at(&forged, &format!("/user{uid}")), "");
        let legacy = read(AuditLine::of_secrets_token("192.0.2.7").unwrap());
        assert_eq!(text_at(&legacy, "/sourceIPs/0"), "192.0.2.7");
        assert_eq!(text_at(&legacy, "/user/username"), "system:serviceaccount:shop:cart");
        assert!(!legacy.to_string().contains("pod-uid"));
    }

    #[test]
    fn every_request_can_be_had_at_its_answer_under_an_id_of_its_own() {
        let pod = Pod::for_tests();
        let lines = [
            (Request::ListPods, Stage::ResponseComplete),
            (Request::GetSecret, Stage::ResponseComplete),
            (Request::ListNodes, Stage::ResponseComplete),
            (Request::ReviewOwnRights, Stage::ResponseComplete),
            (Request::GetVersion, Stage::ResponseComplete),
            (Request::WatchPods, Stage::ResponseStarted),
        ];
        let mut ids = lines.map(|(request, stage)| {
            AuditLine::recorded(request, stage, &pod).unwrap().audit_id().to_owned()
        });
        ids.sort();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
    }
}

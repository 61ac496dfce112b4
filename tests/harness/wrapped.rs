//! Audit lines as the log services of clouds deliver them. The frames are those that their documentation
//! shows; the events, and so all identities and times, are of the lines that are given. `cargo xtask
//! fixtures` makes `tests/fixtures/wrapped` with it, from `tests/fixtures/audit`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::alerts::text_at;

/// In what a line is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// AKS diagnostic settings, a record a line: a storage account, a workspace's export.
    AksRecord,
    /// The same as Event Hubs has it: many records in a message.
    AksRecords,
    /// What a CloudWatch Logs subscription sends, with the message that it begins with.
    CloudWatchSubscription,
    /// The answer of CloudWatch's `FilterLogEvents`.
    CloudWatchEvents,
    /// An event of such an answer a line.
    CloudWatchEvent,
    /// `aws logs tail`, which writes time and stream before each.
    AwsLogsTail,
    /// The same, `--format short`.
    AwsLogsTailShort,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::AksRecord,
        Self::AksRecords,
        Self::CloudWatchSubscription,
        Self::CloudWatchEvents,
        Self::CloudWatchEvent,
        Self::AwsLogsTail,
        Self::AwsLogsTailShort,
    ];

    /// Its fixture's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AksRecord => "aks-record",
            Self::AksRecords => "aks-records",
            Self::CloudWatchSubscription => "cloudwatch-subscription",
            Self::CloudWatchEvents => "cloudwatch-events",
            Self::CloudWatchEvent => "cloudwatch-event",
            Self::AwsLogsTail => "aws-logs-tail",
            Self::AwsLogsTailShort => "aws-logs-tail-short",
        }
    }

    /// These lines in it.
    pub fn wrap(self, lines: &[&str]) -> String {
        let each = |form: fn(&str) -> String| lines.iter().map(|line| form(line) + "\n").collect();
        match self {
            Self::AksRecord => each(|line| aks(line).to_string()),
            Self::AksRecords => {
                let records: Vec<_> = lines.iter().map(|line| aks(line)).collect();
                format!("{}\n", json!({"records": records}))
            }
            Self::CloudWatchSubscription => {
                let control = json!({"id": "", "timestamp": 0,
                    "message": "CWL CONTROL MESSAGE: Checking health of destination"});
                let events: Vec<_> = lines
                    .iter()
                    .map(|line| json!({"id": "0", "timestamp": millis(line), "message": line}))
                    .collect();
                let control = subscription("CONTROL_MESSAGE", &json!([control]));
                format!("{control}\n{}\n", subscription("DATA_MESSAGE", &json!(events)))
            }
            Self::CloudWatchEvents => {
                let events: Vec<_> = lines.iter().map(|line| filtered(line)).collect();
                format!("{}\n", json!({"events": events, "searchedLogStreams": []}))
            }
            Self::CloudWatchEvent => each(|line| filtered(line).to_string()),
            Self::AwsLogsTail => {
                each(|line| format!("{}+00:00 {STREAM} {line}", time(line).strftime("%FT%T.%6f")))
            }
            Self::AwsLogsTailShort => {
                each(|line| format!("{} {line}", time(line).strftime("%FT%T")))
            }
        }
    }
}

/// What Google Cloud logs of a request in place of an audit event: no pod, no stage, no audit id.
pub fn cloud_audit(line: &str) -> String {
    let event = event(line);
    let text = |pointer| text_at(&event, pointer);
    let entry = json!({
        "insertId": "0",
        "logName": "projects/p/logs/cloudaudit.googleapis.com%2Fdata_access",
        "protoPayload": {
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
            "authenticationInfo": {"principalEmail": text("/user/username")},
            "methodName": format!("io.k8s.core.v1.{}.{}", text("/objectRef/resource"), text("/verb")),
            "requestMetadata": {
                "callerIp": text("/sourceIPs/0"),
                "callerSuppliedUserAgent": text("/userAgent"),
            },
            "resourceName": text("/requestURI"),
            "serviceName": "k8s.io",
        },
        "resource": {"type": "k8s_cluster"},
        "timestamp": text("/stageTimestamp"),
    });
    format!("{entry}\n")
}

/// A log stream of EKS.
const STREAM: &str = "kube-apiserver-audit-0";

fn aks(line: &str) -> Value {
    json!({
        "category": "kube-audit",
        "operationName": "Microsoft.ContainerService/managedClusters/diagnosticLogs/Read",
        "properties": {"log": format!("{line}\n"), "pod": "kube-apiserver-0", "stream": "stdout"},
        "time": text_at(&event(line), "/stageTimestamp"),
    })
}

fn subscription(kind: &str, events: &Value) -> Value {
    json!({
        "messageType": kind, "owner": "000000000000", "logGroup": "/aws/eks/test/cluster",
        "logStream": STREAM, "subscriptionFilters": ["audit"], "logEvents": events,
    })
}

fn filtered(line: &str) -> Value {
    let at = millis(line);
    json!({
        "eventId": "0", "ingestionTime": at, "logStreamName": STREAM, "message": line,
        "timestamp": at,
    })
}

fn event(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_default()
}

fn time(line: &str) -> Timestamp {
    text_at(&event(line), "/stageTimestamp").parse().unwrap_or_default()
}

fn millis(line: &str) -> i64 {
    time(line).as_millisecond()
}

//! Makes the stream and the bucket on the broker, or brings them up to date. Called by
//! `tokentrail nats setup` alone: an agent makes neither, so its login need not be allowed to.

use std::time::Duration;

use async_nats::{
    Client,
    jetstream::{
        self, ErrorCode,
        context::CreateStreamErrorKind,
        stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
    },
};

use super::{
    NatsConfig,
    connection::{self, MADE_ANEW, unless_ended},
    failure::ConnectionError,
    interest,
};

/// How much the broker holds.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Copies of each message.
    pub replicas: usize,
    /// Answers that wait for one node; what is beyond is refused and costs no other node any.
    pub answers_per_node: i64,
    /// Bytes of all answers that wait.
    pub bytes: i64,
    /// How long an answer waits for its node.
    pub keep: Duration,
    /// Alerts of one node that are kept; the oldest go, and no other node's.
    pub alerts_per_node: i64,
    /// Bytes of all alerts.
    pub alert_bytes: i64,
    /// How long an alert is kept.
    pub keep_alerts: Duration,
}

/// Longest answer, bytes: what is kept of an audit line, and what JSON adds.
const ANSWER: i32 = 128 << 10;
/// Longest alert, bytes: the longest line of an alert log, and its headers.
const ALERT: i32 = (1 << 20) + (4 << 10);
/// How long the broker knows an alert again: an agent that restarts publishes some a second time.
const ALERT_KNOWN: Duration = Duration::from_hours(2);
/// How long the broker knows an answer again: an audit side that restarts publishes some a second time.
const KNOWN: Duration = Duration::from_mins(30);
/// How long what a node asks is kept. It is put again every five minutes.
const ASKED: Duration = Duration::from_mins(15);
/// Bytes of all that is asked: 4,096 of the longest questions, and most are a hundredth of that.
const BUCKET: i64 = 1 << 30;

/// Makes them.
///
/// # Errors
/// The broker cannot be reached or refuses.
pub async fn set_up(config: &NatsConfig, size: Size) -> Result<Vec<String>, ConnectionError> {
    let (client, mut ended) = connection::connect(config).await?;
    unless_ended(&mut ended, make(client, config, size)).await
}

async fn make(
    client: Client,
    config: &NatsConfig,
    size: Size,
) -> Result<Vec<String>, ConnectionError> {
    let context = jetstream::new(client);
    let names = &config.names;
    let answers = stream::Config {
        name: names.stream(),
        description: Some("tokentrail: audit records that nodes asked for".to_owned()),
        subjects: vec![names.requests()],
        // An answer goes when its node has taken it.
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: size.answers_per_node,
        max_bytes: size.bytes,
        max_age: size.keep,
        max_message_size: ANSWER,
        duplicate_window: KNOWN.min(size.keep),
        num_replicas: size.replicas,
        storage: StorageType::File,
        ..stream::Config::default()
    };
    put_stream(&context, answers).await?;
    let alerts = stream::Config {
        name: names.alert_stream(),
        description: Some("tokentrail: alerts of all nodes".to_owned()),
        subjects: vec![names.alerts_of("*")],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        // A flood of one node's evicts its own.
        max_messages_per_subject: size.alerts_per_node,
        max_bytes: size.alert_bytes,
        max_age: size.keep_alerts,
        max_message_size: ALERT,
        duplicate_window: ALERT_KNOWN.min(size.keep_alerts),
        num_replicas: size.replicas,
        storage: StorageType::File,
        ..stream::Config::default()
    };
    put_stream(&context, alerts).await?;
    // A bucket is a stream of this form (ADR-8 of NATS).
    let bucket = stream::Config {
        name: names.bucket_stream(),
        description: Some("tokentrail: what nodes ask, and how far audit sides are".to_owned()),
        subjects: vec![names.subject_of(">")],
        // One key a node: what one asks takes no room from what others do.
        max_messages_per_subject: 1,
        max_age: ASKED,
        max_bytes: BUCKET,
        max_message_size: i32::try_from(interest::MAX_BYTES).unwrap_or(i32::MAX),
        // Anybody may have replies put under any number of keys. What goes for them audit sides have heard, and it is
        // put again within five minutes; to refuse what is new would keep every node from asking for fifteen.
        discard: DiscardPolicy::Old,
        // With one message of that kind a node would erase what all others ask.
        allow_rollup: false,
        deny_delete: true,
        allow_direct: true,
        num_replicas: size.replicas,
        storage: StorageType::File,
        ..stream::Config::default()
    };
    put_stream(&context, bucket).await?;
    Ok(vec![
        format!("stream {} for subjects {}", names.stream(), names.requests()),
        format!("stream {} for subjects {}", names.alert_stream(), names.alerts_of("*")),
        format!("bucket {}", names.bucket()),
    ])
}

async fn put_stream(
    context: &jetstream::Context,
    config: stream::Config,
) -> Result<(), ConnectionError> {
    let name = config.name.clone();
    context.create_or_update_stream(config).await.map(drop).map_err(|error| {
        let CreateStreamErrorKind::JetStream(refusal) = error.kind() else {
            return if context.client().server_info().jetstream {
                ConnectionError::failed("make the stream", &error)
            } else {
                ConnectionError::NoJetStream
            };
        };
        match refusal.error_code() {
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                ConnectionError::NoJetStream
            }
            // Its retention, for one.
            ErrorCode::STREAM_INVALID_CONFIG => ConnectionError::Unfit {
                thing: format!("stream {name}"),
                fault: format!("cannot be made what it must be: {refusal}"),
                cure: MADE_ANEW,
            },
            _ => ConnectionError::failed("make the stream", &error),
        }
    })
}

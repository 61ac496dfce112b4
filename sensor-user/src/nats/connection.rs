//! One connection to the broker: login, TLS, and whether what the agent needs is there. Whatever is wrong is
//! one sentence. Files are read anew each time, so what was rotated is used with the next connection.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event,
    jetstream::{
        self, Context, ErrorCode,
        context::{GetStreamError, GetStreamErrorKind},
        stream::{self, DiscardPolicy, RetentionPolicy},
    },
};
use tokio::{sync::mpsc, time};

use super::{
    Login, NatsConfig, NatsMetrics,
    bucket::{Bucket, Found},
    failure::ConnectionError,
    interest,
    names::Names,
    progress::Covered,
    sides::Sides,
};
use crate::{errors::with_causes, time::Micros};

/// How long the broker may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long `check` waits for the server to say that something is not allowed.
const OBJECTION: Duration = Duration::from_millis(200);
/// Least time that the bucket must keep what was put: it is put again after a third of that.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// What helps against most that may be wrong with a stream.
const CHANGED: &str = "`tokentrail nats setup` puts that right";
/// What helps against what the server does not change. What waited is answered once more.
pub(super) const MADE_ANEW: &str = "delete it, and make it anew with `tokentrail nats setup`";

/// What comes of something over a connection, unless that ends meanwhile: to whom something is not allowed the
/// server says so, and answers nothing.
pub(super) async fn unless_ended<T>(
    ended: &mut mpsc::Receiver<ConnectionError>,
    work: impl Future<Output = Result<T, ConnectionError>>,
) -> Result<T, ConnectionError> {
    tokio::select! {
        done = work => done,
        why = ended.recv() => {
            Err(why.unwrap_or_else(|| ConnectionError::ended("it was closed")))
        }
    }
}

/// A connection, and all that is needed of it.
pub(super) struct Connection {
    pub(super) context: Context,
    pub(super) bucket: Bucket,
    /// When the stream of answers was made.
    pub(super) stream_made: Micros,
    /// What ends it.
    pub(super) ended: mpsc::Receiver<ConnectionError>,
}

/// Connects and logs in.
pub(super) async fn connect(
    config: &NatsConfig,
) -> Result<(Client, mpsc::Receiver<ConnectionError>), ConnectionError> {
    let (say, ended) = mpsc::channel(1);
    let alerts = format!("\"{}\"", config.names.alerts_of(config.names.node()));
    let options = log_in(&config.login)?
        .name(format!("tokentrail {}", config.names.node()))
        .custom_inbox_prefix(config.names.inbox())
        .request_timeout(Some(PATIENCE))
        .ping_interval(Duration::from_secs(20))
        // Each connection begins anew here: what it read and who it is may have changed.
        .max_reconnects(config.servers.len())
        .event_callback(move |event| {
            let why = match event {
                Event::Disconnected | Event::Closed => Some("the server is gone".to_owned()),
                // Not to be allowed to publish alerts is told by who publishes them, and keeps nobody from asking.
                Event::ServerError(error) => {
                    Some(error.to_string()).filter(|it| !it.contains(&alerts))
                }
                Event::ClientError(error) => Some(error.to_string()),
                Event::SlowConsumer(_) => {
                    Some("messages came faster than they were taken".to_owned())
                }
                Event::Connected | Event::LameDuckMode | Event::Draining => None,
            };
            if let Some(why) = why {
                let is_forbidden = why.to_lowercase().contains("permissions violation");
                let ended =
                    if is_forbidden { ConnectionError::Forbidden } else { ConnectionError::Ended };
                // The first one tells.
                let _ = say.try_send(ended(why.trim_start_matches("nats: ").to_owned()));
            }
            std::future::ready(())
        });
    let options = match &config.ca {
        Some(ca) => options.add_root_certificates(ca.clone()).require_tls(true),
        None => options,
    };
    let options = match &config.certificate {
        Some((certificate, key)) => {
            options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true)
        }
        None => options,
    };
    let servers = config.servers.join(", ");
    let client = options.connect(&config.servers[..]).await.map_err(|error| {
        let reason = with_causes(&error);
        let says = |word: &&str| reason.contains(*word);
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                ConnectionError::Login { servers: servers.clone() }
            }
            ConnectErrorKind::Tls => ConnectionError::Tls { servers: servers.clone(), reason },
            _ if ["certificate", "InvalidContentType", "fatal alert"].iter().any(says) => {
                ConnectionError::Tls { servers: servers.clone(), reason }
            }
            ConnectErrorKind::ServerParse
            | ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => {
                ConnectionError::Unreachable { servers: servers.clone(), reason }
            }
        }
    })?;
    if !client.is_server_compatible(2, 9, 0) {
        return Err(ConnectionError::Old { version: client.server_info().version });
    }
    Ok((client, ended))
}

/// Connects, and finds stream and bucket.
pub(super) async fn open(config: &NatsConfig) -> Result<Connection, ConnectionError> {
    let (client, mut ended) = connect(config).await?;
    let (context, bucket, stream_made) = unless_ended(&mut ended, find(client, config)).await?;
    Ok(Connection { context, bucket, stream_made, ended })
}

/// Looks when the stream of answers was made.
pub(super) async fn stream_made(
    context: &Context,
    names: &Names,
) -> Result<Micros, ConnectionError> {
    Ok(Found::of(&look_at(context, names.stream()).await?).made)
}

async fn find(
    client: Client,
    config: &NatsConfig,
) -> Result<(Context, Bucket, Micros), ConnectionError> {
    let mut context = jetstream::new(client);
    context.set_timeout(PATIENCE);
    let names = &config.names;
    let stream = look_at(&context, names.stream()).await?;
    let fault = fault_of_stream(&stream.config, &names.requests());
    fit(format!("stream {}", names.stream()), fault)?;
    let bucket = look_at(&context, names.bucket_stream()).await?;
    let fault = fault_of_bucket(&bucket.config).map(|fault| (fault, CHANGED));
    fit(format!("bucket {}", names.bucket()), fault)?;
    let (bucket, stream) = (Found::of(&bucket), Found::of(&stream));
    let bucket = Found { made: bucket.made.max(stream.made), ..bucket };
    Ok((context.clone(), Bucket::new(context, names.clone(), bucket), stream.made))
}

async fn look_at(context: &Context, name: String) -> Result<stream::Info, ConnectionError> {
    match context.get_stream(&name).await {
        Ok(found) => Ok(found.cached_info().clone()),
        Err(error) => Err(missing(&error, context, name)),
    }
}

/// What is wrong, and what to do.
type Fault = (&'static str, &'static str);

fn fit(thing: String, fault: Option<Fault>) -> Result<(), ConnectionError> {
    match fault {
        None => Ok(()),
        Some((fault, cure)) => Err(ConnectionError::Unfit { thing, fault: fault.to_owned(), cure }),
    }
}

/// Why answers would be lost in a stream like this, and nobody told.
fn fault_of_stream(found: &stream::Config, subjects: &str) -> Option<Fault> {
    if found.retention != RetentionPolicy::WorkQueue {
        return Some(("is no work queue, so answers that were taken stay", MADE_ANEW));
    }
    if !found.subjects.iter().any(|it| it == subjects) {
        return Some(("does not take the subjects of answers", CHANGED));
    }
    if found.discard != DiscardPolicy::New {
        return Some(("drops answers that wait when it is full", CHANGED));
    }
    if !found.discard_new_per_subject {
        return Some(("drops answers that wait when a node's share is used up", CHANGED));
    }
    None
}

/// Why a bucket like this is of no use.
fn fault_of_bucket(found: &stream::Config) -> Option<&'static str> {
    if !found.max_age.is_zero() && found.max_age < KEPT {
        return Some("forgets before it is told again");
    }
    if found.allow_rollup {
        return Some("allows roll-ups, by which one node erases what others ask");
    }
    if !found.allow_direct {
        return Some("does not allow direct reads");
    }
    let room = usize::try_from(found.max_message_size).unwrap_or(usize::MAX);
    (room < interest::MAX_BYTES).then_some("has no room for what a node may ask")
}

/// What `tokentrail check` says of the broker.
#[derive(Clone, Debug)]
pub struct Look {
    /// Where it is, and what is there.
    pub broker: String,
    /// What audit sides said last, by name; `None` for who does not ask them.
    pub sides: Option<BTreeMap<String, Covered>>,
}

/// Looks at the broker; as one that asks, at the audit sides as well.
///
/// # Errors
/// It cannot be used; a sentence why.
pub async fn look(config: &NatsConfig, asks: bool) -> Result<Look, ConnectionError> {
    let mut connection = open(config).await?;
    let version = connection.context.client().server_info().version;
    let broker =
        format!("{}, version {version}, stream and bucket there", config.servers.join(", "));
    let sides = if asks {
        let sides = async {
            let metrics = NatsMetrics::default();
            let sides = Sides::open(&connection.context, &config.names, metrics, true).await?;
            // Whether it may hear them the server says, if it may not.
            time::sleep(OBJECTION).await;
            Ok(sides.before())
        };
        Some(unless_ended(&mut connection.ended, sides).await?)
    } else {
        None
    };
    Ok(Look { broker, sides })
}

/// Why a stream is not to be had.
fn missing(error: &GetStreamError, context: &Context, name: String) -> ConnectionError {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => ConnectionError::NoStream { name },
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                ConnectionError::NoJetStream
            }
            _ => ConnectionError::failed("look at the stream", &error),
        },
        // Nobody listens to such requests then.
        GetStreamErrorKind::Request if !context.client().server_info().jetstream => {
            ConnectionError::NoJetStream
        }
        GetStreamErrorKind::Request
        | GetStreamErrorKind::EmptyName
        | GetStreamErrorKind::InvalidStreamName => {
            ConnectionError::failed("look at the stream", error)
        }
    }
}

fn log_in(login: &Login) -> Result<ConnectOptions, ConnectionError> {
    let read = |path: &PathBuf| {
        fs::read_to_string(path)
            .map_err(|source| ConnectionError::File { path: path.clone(), source })
    };
    let options = ConnectOptions::new();
    Ok(match login {
        Login::None => options,
        Login::Credentials(path) => options.credentials(&read(path)?).map_err(|error| {
            ConnectionError::Secret { path: path.clone(), reason: error.to_string() }
        })?,
        Login::Nkey(path) => {
            let seed = read(path)?.trim().to_owned();
            if !(seed.starts_with("SU") && seed.len() == 58) {
                let reason = "it is no seed of a user's NKey".to_owned();
                return Err(ConnectionError::Secret { path: path.clone(), reason });
            }
            options.nkey(seed)
        }
        Login::Password(user, path) => {
            let password = read(path)?;
            let password = password.strip_suffix('\n').unwrap_or(&password);
            options.user_and_password(user.clone(), password.to_owned())
        }
    })
}

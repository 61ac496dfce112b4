//! The task that keeps a connection: connects, serves all sides of it until it ends, and begins again.
//! Spawned by the engine; ends when that takes nothing any more.

use std::time::{Duration, Instant};

use tokio::{sync::watch, time};
use tracing::{info, warn};

use super::{
    NatsConfig, NatsMetrics, Status,
    answering::Answerer,
    asking::Asker,
    connection::{self, unless_ended},
    failure::ConnectionError,
    telling::Teller,
    wall_clock,
};

/// From the end of a connection to the next try; longer while tries fail.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A connection that lasted longer was of use.
const LASTING: Duration = Duration::from_secs(10);

/// What runs over one connection after the other.
pub struct Link {
    config: NatsConfig,
    metrics: NatsMetrics,
    status: watch::Sender<Status>,
    /// Asks for a node with a sensor.
    pub asker: Option<Asker>,
    /// Answers from audit sources.
    pub answerer: Option<Answerer>,
    /// Publishes alerts.
    pub teller: Option<Teller>,
}

impl Link {
    /// One that does nothing yet, and where it says how it stands.
    pub fn new(config: NatsConfig, metrics: NatsMetrics) -> (Self, watch::Receiver<Status>) {
        let (status, shown) = watch::channel(Status::starting());
        (Self { config, metrics, status, asker: None, answerer: None, teller: None }, shown)
    }

    /// Runs until nobody looks at it any more.
    pub async fn run(mut self) {
        let mut pause = PAUSES.0;
        while !self.status.is_closed() {
            let began = Instant::now();
            if let Some(teller) = &mut self.teller {
                teller.observe(&self.status);
            }
            let error = self.serve().await;
            self.metrics.connected.set(0);
            let why = error.to_string();
            self.status.send_if_modified(|status| {
                let is_news = status.failure.as_ref() != Some(&why);
                if is_news {
                    warn!(%why, "not connected to NATS");
                }
                status.failure = Some(why);
                status.connected = None;
                is_news
            });
            // One that ends at once is refused something, and will be again.
            if began.elapsed() > LASTING {
                pause = PAUSES.0;
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One connection, from its beginning to its end.
    async fn serve(&mut self) -> ConnectionError {
        let mut connection = match connection::open(&self.config).await {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        info!(servers = %self.config.servers.join(", "), "connected to NATS");
        self.metrics.connections.inc();
        self.metrics.connected.set(1);
        self.status.send_modify(|status| {
            status.failure = None;
            status.connected = Some(wall_clock());
        });
        let (context, bucket) = (&connection.context, &connection.bucket);
        let stream = connection.stream_made;
        let (names, status) = (&self.config.names, &self.status);
        let asks = async {
            match &mut self.asker {
                Some(asker) => asker.serve(context, bucket, names, status).await,
                None => std::future::pending().await,
            }
        };
        let answers = async {
            match &mut self.answerer {
                Some(answerer) => answerer.serve(context, bucket, names, stream).await,
                None => std::future::pending().await,
            }
        };
        let tells = async {
            match &mut self.teller {
                Some(teller) => teller.serve(context, names, status).await,
                None => std::future::pending().await,
            }
        };
        let all = async {
            tokio::select! {
                ended = asks => ended,
                ended = answers => ended,
                ended = tells => ended,
            }
        };
        let Err(error) = unless_ended(&mut connection.ended, all).await;
        error
    }
}

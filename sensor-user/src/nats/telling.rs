//! Publishes this agent's alerts for whoever collects them: what the alert log holds durably, one document after
//! the other, known to the broker by its `event.id`.
//!
//! The log is the queue, so nothing waits here, and nobody waits for this. What goes wrong with it is shown and
//! tried again; it ends no connection, on which others ask and answer.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self, Context, ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
};
use tokio::{sync::watch, task, time};
use tracing::warn;

use super::{Alerts, NatsMetrics, Status, failure::ConnectionError, names::Names, wall_clock};
use crate::{
    alert::{
        log::Durable,
        unpublished::{Next, Unpublished},
    },
    errors::with_causes,
};

/// From a failure to the next try; longer while tries fail.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How often is saved how far it has come, while there is more.
const SAVED: Duration = Duration::from_secs(1);
/// How often it is said that alerts are given up.
const GIVEN_UP: Duration = Duration::from_mins(1);

/// Why an alert is not published, and will not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GivenUp {
    /// The alert log was rotated before it could be.
    Rotated,
    /// The broker takes none that is so long.
    Size,
}

/// What publishes.
pub struct Teller {
    queue: Unpublished,
    durable: watch::Receiver<Durable>,
    /// How it stands.
    alerts: Alerts,
    /// When it was last said that the broker takes none that is so long.
    given_up: Option<Instant>,
    metrics: NatsMetrics,
}

/// Why a document was not taken.
enum Refused {
    /// However often it is tried.
    TooLong,
    /// For now, and why.
    Now(String),
}

impl Teller {
    /// One that publishes what of the queue is durable.
    pub fn new(
        queue: Unpublished,
        durable: watch::Receiver<Durable>,
        metrics: NatsMetrics,
    ) -> Self {
        Self { queue, durable, alerts: Alerts::default(), given_up: None, metrics }
    }

    /// Publishes until nobody writes alerts any more.
    pub(super) async fn serve(
        &mut self,
        context: &Context,
        names: &Names,
        status: &watch::Sender<Status>,
    ) -> Result<Infallible, ConnectionError> {
        let mut pause = PAUSES.0;
        let mut saved = Instant::now();
        loop {
            let durable = self.durable.borrow_and_update().clone();
            let failure = match self.queue.next(&durable) {
                Ok(Some(next)) => match publish(context, names, &next).await {
                    Ok(is_new) => {
                        self.queue.done();
                        self.metrics.alerts_published.inc_by(is_new.into());
                        self.alerts.last_published = Some(wall_clock());
                        None
                    }
                    Err(Refused::TooLong) => {
                        self.queue.done();
                        self.give_up(&next);
                        None
                    }
                    Err(Refused::Now(why)) => Some(why),
                },
                Ok(None) => {
                    self.save(&durable).await;
                    self.show(&durable, status);
                    let ended = || ConnectionError::ended("nobody writes alerts");
                    self.durable.changed().await.map_err(|_| ended())?;
                    continue;
                }
                Err(error) => Some(format!("the alert log cannot be read: {error}")),
            };
            let is_news = failure.is_some() && failure != self.alerts.failure;
            if let Some(why) = failure.as_ref().filter(|_| is_news) {
                warn!(%why, "alerts are not published and wait in the alert log");
            }
            self.alerts.failure = failure;
            self.show(&durable, status);
            if self.alerts.failure.is_some() {
                time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            } else {
                pause = PAUSES.0;
            }
            if saved.elapsed() > SAVED {
                self.save(&durable).await;
                saved = Instant::now();
            }
        }
    }

    /// The broker never takes this document: that is counted, and said once a minute.
    fn give_up(&mut self, next: &Next) {
        self.metrics.given_up(GivenUp::Size).inc();
        if self.given_up.is_none_or(|said| said.elapsed() >= GIVEN_UP) {
            self.given_up = Some(Instant::now());
            let (id, bytes) = (&next.id, next.line.len());
            warn!(
                id,
                bytes,
                "an alert is longer than NATS takes and is in the alert log alone; raise max_payload of the server"
            );
        }
    }

    /// Says how it stands, also while there is no connection.
    pub(super) fn observe(&mut self, status: &watch::Sender<Status>) {
        let durable = self.durable.borrow().clone();
        self.show(&durable, status);
    }

    fn show(&mut self, durable: &Durable, status: &watch::Sender<Status>) {
        self.alerts.waiting = self.queue.waiting(durable);
        self.alerts.published = self.metrics.alerts_published.get();
        let waiting = i64::try_from(self.alerts.waiting).unwrap_or(i64::MAX);
        self.metrics.alerts_waiting.set(waiting);
        self.metrics.given_up(GivenUp::Rotated).inc_by(self.queue.take_lost());
        let alerts = Some(self.alerts.clone());
        status.send_if_modified(|status| {
            let changed = status.alerts != alerts;
            status.alerts = alerts;
            changed
        });
    }

    /// Saves how far it has come. A disk that is busy keeps nobody else waiting.
    async fn save(&mut self, durable: &Durable) {
        let Some(save) = self.queue.save(durable) else { return };
        let written = task::spawn_blocking(move || save.write()).await;
        let why = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.queue.redo();
        warn!(
            why,
            "how far alerts were published cannot be saved; some are published once more after a restart"
        );
    }
}

/// Publishes a document. Whether the broker did not have it.
async fn publish(context: &Context, names: &Names, next: &Next) -> Result<bool, Refused> {
    let message = PublishMessage::build()
        .payload(next.line.clone().into())
        .message_id(&next.id)
        .expected_stream(names.alert_stream());
    let sent = context.send_publish(names.alerts_of(names.node()), message).await;
    let taken = match sent {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    taken.map(|ack| !ack.duplicate).map_err(|error| refused(&error, names))
}

fn refused(error: &PublishError, names: &Names) -> Refused {
    let refusal = std::error::Error::source(error).and_then(|it| it.downcast_ref());
    let is_long =
        |error: &jetstream::Error| error.error_code() == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM;
    if error.kind() == PublishErrorKind::MaxPayloadExceeded || refusal.is_some_and(is_long) {
        return Refused::TooLong;
    }
    Refused::Now(if error.kind() == PublishErrorKind::StreamNotFound {
        let stream = names.alert_stream();
        format!("NATS has no stream {stream} for alerts; make it with `tokentrail nats setup`")
    } else {
        let (subject, why) = (names.alerts_of(names.node()), with_causes(error));
        format!(
            "NATS does not take alerts on {subject}: {why}; check that this login may publish there"
        )
    })
}

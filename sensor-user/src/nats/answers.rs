//! The answers to a node, as its consumer on the broker hands them out: asks for some, again and again.
//!
//! Not the client's own stream of them: that takes a status line for the server's word wherever it lies, and
//! anybody may have the server's replies stored among a node's answers, where they would stay and keep the place
//! of answers. Here only what comes without the subject of an answer is of the server itself.

use std::time::Duration;

use async_nats::{
    StatusCode, Subscriber,
    jetstream::{Context, Message},
};
use futures_util::StreamExt as _;
use tokio::time::{self, Instant};

use super::{failure::ConnectionError, names::Names};

/// Answers that are asked for at once.
pub(super) const BATCH: usize = 64;
/// How long the server keeps such a request.
const EXPIRES: Duration = Duration::from_mins(2);
/// How often it says that it still does. After two of these without a word it is gone.
const BEAT: Duration = Duration::from_secs(30);
/// From one request to the next, if the server ends it.
const PAUSE: Duration = Duration::from_millis(250);

/// The answers to a node over one connection.
pub(super) struct Answers {
    context: Context,
    messages: Subscriber,
    inbox: String,
    /// Where they are asked for.
    next: String,
    /// The subject of an answer.
    subject: String,
    pull: Pull,
}

impl Answers {
    /// Of a consumer that is there.
    pub(super) async fn open(context: &Context, names: &Names) -> Result<Self, ConnectionError> {
        let context = context.clone();
        let inbox = context.client().new_inbox();
        let messages = context.client().subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| ConnectionError::failed(FETCH, &error))?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", names.stream(), names.node());
        let subject = names.requests_of(names.node());
        Ok(Self { context, messages, inbox, next, subject, pull: Pull::new(Instant::now()) })
    }

    /// The next one. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Result<Message, ConnectionError> {
        loop {
            if self.pull.is_due(Instant::now()) {
                self.ask().await?;
                self.pull.ask(Instant::now());
            }
            let message = time::timeout_at(self.pull.wakes(), self.messages.next()).await;
            let now = Instant::now();
            let Ok(message) = message else {
                if self.pull.is_silent(now) {
                    return Err(ConnectionError::ended("the server says nothing of answers"));
                }
                continue;
            };
            let message = message.ok_or_else(|| ConnectionError::ended("no more answers"))?;
            if *message.subject == *self.subject {
                self.pull.answer(now);
                return Ok(Message { message, context: self.context.clone() });
            }
            let description = message.description.unwrap_or_default();
            self.pull
                .control(message.status, &description, now)
                .map_err(|reason| ConnectionError::Failed { what: FETCH, reason })?;
        }
    }

    async fn ask(&self) -> Result<(), ConnectionError> {
        let request = serde_json::json!({
            "batch": BATCH,
            "expires": nanos(EXPIRES),
            "idle_heartbeat": nanos(BEAT),
        });
        let (client, next) = (self.context.client(), self.next.clone());
        let asked = client.publish_with_reply(next, self.inbox.clone(), request.to_string().into());
        asked.await.map_err(|error| ConnectionError::failed(FETCH, &error))
    }
}

/// What fails if answers do.
const FETCH: &str = "fetch answers";

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// When to ask for more. Pure: times are passed in.
#[derive(Debug)]
struct Pull {
    /// Answers that may come for what was asked.
    left: usize,
    /// When to ask, if not to wait.
    due: Option<Instant>,
    asked: Instant,
    /// When the server said something last.
    heard: Instant,
}

impl Pull {
    fn new(now: Instant) -> Self {
        Self { left: 0, due: Some(now), asked: now, heard: now }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    fn ask(&mut self, now: Instant) {
        *self = Self { left: BATCH, due: None, asked: now, heard: now };
    }

    /// An answer has come, or something else that lies among them.
    fn answer(&mut self, now: Instant) {
        self.heard = now;
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.due.get_or_insert(now);
        }
    }

    /// The server itself has said something.
    ///
    /// # Errors
    /// It will hand out no answers; what it said.
    fn control(
        &mut self,
        status: Option<StatusCode>,
        description: &str,
        now: Instant,
    ) -> Result<(), String> {
        self.heard = now;
        let status = status.map_or(0, u16::from);
        let ends = ["Leadership Change", "Batch Completed", "Server Shutdown"];
        match status {
            100 => Ok(()),
            404 | 408 => {
                self.left = 0;
                self.due = Some(now.max(self.asked + PAUSE));
                Ok(())
            }
            // At once nobody may be there to answer.
            _ if ends.iter().any(|it| description.contains(it)) => {
                self.left = 0;
                self.due = Some(now + PAUSE);
                Ok(())
            }
            _ => Err(format!("{status} {description}")),
        }
    }

    /// When to look again, should nothing come.
    fn wakes(&self) -> Instant {
        self.due.unwrap_or(self.heard + 2 * BEAT)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.due.is_none() && now >= self.heard + 2 * BEAT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_asked_for_when_what_was_asked_for_has_come_or_the_server_ends_it() {
        let start = Instant::now();
        let mut pull = Pull::new(start);
        assert!(pull.is_due(start));
        pull.ask(start);
        for _ in 1..BATCH {
            pull.answer(start);
        }
        assert!(!pull.is_due(start), "one may still come");
        pull.answer(start);
        assert!(pull.is_due(start), "at once");
        pull.answer(start);
        assert!(pull.is_due(start), "one that nobody asked for changes nothing");
        for (status, description) in [
            (404, "No Messages"),
            (408, "Request Timeout"),
            (409, "Leadership Change"),
            (409, "Server Shutdown"),
        ] {
            pull.ask(start);
            let end = start + Duration::from_millis(1);
            let status = StatusCode::try_from(status).unwrap();
            assert_eq!(pull.control(Some(status), description, end), Ok(()));
            assert!(!pull.is_due(end), "not in a busy loop");
            assert!(pull.is_due(end + PAUSE));
            assert!(!pull.is_silent(start + 3 * BEAT), "it is to be asked");
        }
    }

    #[test]
    fn a_server_that_refuses_or_says_nothing_for_two_beats_ends_it() {
        let start = Instant::now();
        let mut pull = Pull::new(start);
        pull.ask(start);
        let status = |status: u16| Some(StatusCode::try_from(status).unwrap());
        assert!(!pull.is_silent(start + BEAT));
        assert_eq!(pull.control(status(100), "Idle Heartbeat", start + BEAT), Ok(()));
        assert!(!pull.is_silent(start + 2 * BEAT));
        pull.answer(start + 2 * BEAT);
        assert_eq!(pull.wakes(), start + 4 * BEAT);
        assert!(pull.is_silent(start + 4 * BEAT));
        for (status, description, says) in [
            (status(409), "Consumer Deleted", "409 Consumer Deleted"),
            (status(503), "", "503 "),
            (None, "", "0 "),
        ] {
            let said = pull.control(status, description, start);
            assert_eq!(said, Err(says.to_owned()));
        }
    }
}

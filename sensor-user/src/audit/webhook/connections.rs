//! Connections: TLS, who waits how long, and who gives way when all places are taken.
//!
//! Whoever has not proven who it is costs one place for a few seconds at most and no more memory than
//! a handshake takes; it can neither keep others out nor send a body. Knows nothing of audit events.
//! Called by `webhook`.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::{
    credentials::Credentials,
    metrics::{Answer, Refusal, WebhookMetrics},
    post::Posts,
};

/// Connections at once. An API server has about ten posts under way when it is busy.
const PLACES: usize = 64;
/// For the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// From one request to the end of the next one's headers. API servers send every 30 s at the latest
/// while anything happens.
const IDLE: Duration = Duration::from_secs(60);
/// For the headers of a request, bytes: a token may be long.
const HEADERS: usize = 64 << 10;
/// After an error of the listener: there are no descriptors left, or no memory.
const PAUSE: Duration = Duration::from_millis(100);
/// In seconds. The API server's client tries again at once after that, ten times at most, and only
/// then counts the attempt as failed.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// What all connections share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) posts: Arc<Posts>,
    pub(super) credentials: watch::Receiver<Arc<Credentials>>,
    pub(super) metrics: WebhookMetrics,
}

/// Accepts for ever.
pub(super) async fn serve(listener: &TcpListener, shared: &Shared) {
    let mut places = Places { tasks: JoinSet::new(), unproven: VecDeque::new() };
    loop {
        tokio::select! {
            // Ended ones first: they hold places.
            biased;
            Some(_) = places.tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => places.give(stream, shared),
                Err(error) => {
                    warn!(%error, "the audit webhook cannot accept connections");
                    sleep(PAUSE).await;
                }
            }
        }
        shared.metrics.connections.set(i64::try_from(places.tasks.len()).unwrap_or(i64::MAX));
    }
}

struct Places {
    tasks: JoinSet<()>,
    /// In the order in which they came.
    unproven: VecDeque<Unproven>,
}

struct Unproven {
    task: AbortHandle,
    proven: Arc<AtomicBool>,
}

impl Places {
    fn give(&mut self, stream: TcpStream, shared: &Shared) {
        self.unproven.retain(|it| !it.task.is_finished() && !it.proven.load(Ordering::Relaxed));
        if self.tasks.len() >= PLACES {
            // The one that has had the longest time to prove who it is.
            let Some(oldest) = self.unproven.pop_front() else {
                shared.metrics.refused(Refusal::Full).inc();
                return;
            };
            oldest.task.abort();
            shared.metrics.refused(Refusal::Displaced).inc();
        }
        let proven = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(converse(stream, shared.clone(), Arc::clone(&proven)));
        self.unproven.push_back(Unproven { task, proven });
    }
}

/// One connection from its handshake to its end.
async fn converse(stream: TcpStream, mut shared: Shared, proven: Arc<AtomicBool>) {
    let credentials = Arc::clone(&shared.credentials.borrow_and_update());
    let acceptor = TlsAcceptor::from(Arc::clone(&credentials.tls));
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        shared.metrics.refused(Refusal::Handshake).inc();
        return;
    };
    if !credentials.ask_for_token() {
        proven.store(true, Ordering::Relaxed);
    }
    let answer = |request: Request<Incoming>| {
        let (shared, credentials, proven) = (&shared, &credentials, &proven);
        async move {
            let authorization = request.headers().get(header::AUTHORIZATION);
            let answer = if !credentials.admit(authorization) {
                Answer::Unauthenticated
            } else if request.method() != Method::POST {
                Answer::NotPost
            } else {
                proven.store(true, Ordering::Relaxed);
                shared.posts.take(request.map(Body::new)).await
            };
            shared.metrics.answers(answer).inc();
            Ok::<_, Infallible>(respond(answer))
        }
    };
    let mut changed = shared.credentials.clone();
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(HEADERS)
            .serve_connection(TokioIo::new(stream), service_fn(answer))
    );
    tokio::select! {
        // An end is an end, whoever caused it.
        _ = connection.as_mut() => return,
        _ = changed.changed() => {}
    }
    // Whoever was let in by what counts no more has to come again.
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

fn respond(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = match answer {
        Answer::Taken => StatusCode::OK,
        Answer::Busy => StatusCode::TOO_MANY_REQUESTS,
        Answer::Unauthenticated => StatusCode::UNAUTHORIZED,
        Answer::NotPost => StatusCode::METHOD_NOT_ALLOWED,
        // The API server repeats what ends with an internal error, and drops what a 408 was given to
        // (kubernetes/apiserver `pkg/util/webhook`, `DefaultShouldRetry`).
        Answer::TooSlow | Answer::Cut => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let headers = response.headers_mut();
    match answer {
        Answer::Busy => drop(headers.insert(header::RETRY_AFTER, RETRY_AFTER)),
        Answer::Taken => {}
        // What is left of the request is not read.
        Answer::Unauthenticated | Answer::NotPost | Answer::TooSlow | Answer::Cut => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

//! What operators ask over HTTP. It observes every stage and feeds none.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | OpenMetrics text |
//! | `/livez` | 200 while the engine's loop turns, else 500 |
//! | `/readyz` | 200 when every condition holds, else 503 and the ones that do not, a line each |
//! | `/statusz` | JSON: version, route, conditions (each source is one), audit sources, audit canary, exchange with other nodes, what is degraded, opens and losses, times not seen |

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::{
    audit::canary,
    correlation::Held,
    kernel::{Gap, KernelMetrics, Loss},
    metrics::Metrics,
    nats,
    time::Micros,
};

/// The engine's loop turns at least once a second; a disk may hold it up for a while.
const STALLED: Duration = Duration::from_secs(60);

/// What the engine publishes about itself, shared with the server.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Report>>);

/// The state of the agent as `/statusz` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// This node.
    pub node: String,
    /// The cluster, if named.
    pub cluster: Option<String>,
    /// Hook route in use; `none` without a sensor.
    pub route: String,
    /// What must hold to be ready: name → `ok`, or what is wrong.
    pub conditions: BTreeMap<String, Condition>,
    /// Where audit events come from.
    pub audit: String,
    /// Each of them by name.
    pub sources: BTreeMap<String, SourceReport>,
    /// Whether its own requests come back in the audit stream, the API server's clock and the
    /// stream's delay.
    pub audit_canary: canary::Status,
    /// How the exchange with other nodes stands; absent without one.
    pub nats: Option<nats::Status>,
    /// What this agent cannot see or do, and goes on without.
    pub degraded: Vec<String>,
    /// What the kernel side told; absent without a sensor.
    pub opens: Option<OpensReport>,
    /// Times of which opens may be missing, and why; the newest.
    pub gaps: Vec<Gap>,
    /// What correlation holds.
    pub correlation: HeldReport,
    #[serde(skip)]
    beat: Option<Instant>,
}

/// An audit source, for JSON.
#[derive(Clone, Debug, Serialize)]
pub struct SourceReport {
    /// Whether it can be read.
    pub connected: Condition,
    /// Time of the newest event that came from it. API server's clock.
    pub last_event: Option<Micros>,
    /// Its delay, and the API server's clock, by the newest audit canary that came from it.
    pub canary: Option<canary::Measured>,
}

/// Whether a condition holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Condition {
    /// It does.
    Holds,
    /// It does not, and why.
    Fails(String),
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Holds => "ok".to_owned(),
            Condition::Fails(why) => why,
        }
    }
}

impl From<Result<(), String>> for Condition {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::Fails, |()| Self::Holds)
    }
}

/// What [`KernelMetrics`] counted, for JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OpensReport {
    /// Opens of token-like files that got a record.
    pub records: u64,
    /// Opens that a process repeated within a second, told with a later record.
    pub repeats: u64,
    /// Opens that were lost, by reason.
    pub lost: BTreeMap<&'static str, u64>,
}

impl From<&KernelMetrics> for OpensReport {
    fn from(metrics: &KernelMetrics) -> Self {
        let lost = Loss::ALL.map(|reason| (reason.as_str(), metrics.lost_total(reason)));
        Self {
            records: metrics.records_total(),
            repeats: metrics.repeats_total(),
            lost: lost.into(),
        }
    }
}

/// [`Held`], for JSON.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct HeldReport {
    /// Exposures that a request would join.
    pub exposures: usize,
    /// Incidents that have not ended.
    pub incidents: usize,
}

impl From<Held> for HeldReport {
    fn from(held: Held) -> Self {
        Self { exposures: held.exposures, incidents: held.incidents }
    }
}

impl Health {
    /// Not ready until the engine says so.
    pub fn new(node: String, cluster: Option<String>) -> Self {
        let starting = Condition::Fails("the agent is starting".to_owned());
        Self(Arc::new(Mutex::new(Report {
            version: env!("CARGO_PKG_VERSION"),
            node,
            cluster,
            route: "none".to_owned(),
            conditions: BTreeMap::from([("engine".to_owned(), starting)]),
            audit: String::new(),
            sources: BTreeMap::new(),
            audit_canary: canary::Status::off("the agent is starting"),
            nats: None,
            degraded: Vec::new(),
            opens: None,
            gaps: Vec::new(),
            correlation: HeldReport::default(),
            beat: None,
        })))
    }

    /// Changes the report; called by the engine alone, at every turn of its clock.
    pub fn publish(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        report.beat = Some(Instant::now());
        change(&mut report);
    }

    fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Binds the address, so that a taken port is an error at start.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, metrics: Metrics, health: Health) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(encode_metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/statusz", get(statusz))
        .with_state((metrics, health));
    axum::serve(listener, router).await
}

type Shared = State<(Metrics, Health)>;

async fn encode_metrics(State((metrics, _)): Shared) -> Response {
    match metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn livez(State((_, health)): Shared) -> Response {
    match health.report().beat {
        Some(beat) if beat.elapsed() > STALLED => {
            let text = format!("the engine has not turned for {} s\n", beat.elapsed().as_secs());
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
        Some(_) | None => "ok\n".into_response(),
    }
}

async fn readyz(State((_, health)): Shared) -> Response {
    let report = health.report();
    let failing: String = report
        .conditions
        .iter()
        .filter_map(|(name, condition)| match condition {
            Condition::Holds => None,
            Condition::Fails(why) => Some(format!("{name}: {why}\n")),
        })
        .collect();
    if failing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, failing).into_response()
    }
}

async fn statusz(State((_, health)): Shared) -> Json<Report> {
    Json(health.report())
}

//! Follows this node's pods at the Kubernetes API and tells what changed. One list, then a watch with bookmarks; whatever breaks is tried again with
//! growing pauses, counted, and said in [`PodSource`]. It never ends by itself.
//!
//! The token of the agent's own service account is read again once a minute (`kube`'s token file
//! source), so its rotation needs nothing here. RBAC cannot narrow a watch to one node's pods: the
//! field selector saves traffic and memory, it is no permission.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures_util::TryStreamExt;
use http::{HeaderValue, Response, header};
use kube::{
    Api, Client,
    client::ClientBuilder,
    core::{ApiResource, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::{mpsc, watch};
use tower::util::MapResponseLayer;

use super::{
    PodChange, PodMetrics,
    metrics::ApiFailure,
    object::{self, PodObject},
};
use crate::{
    api::{Access, AccessError},
    errors::with_causes,
};

/// Pods in one page of a list: bounds what a list takes at once, as one pod may be 1.5 MB of text.
/// API servers from 1.31 on answer pages from memory, older ones from etcd.
const PAGE: u32 = 20;
/// Seconds after which a watch is renewed.
const WATCH_SECONDS: u32 = 60;
/// Silence after which a request has failed: longer than a watch may be without an event. A
/// connection that died without a word is noticed after so long; until then alerts lack the names
/// of pods that are younger.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);
/// Changes that may wait for the engine; the API holds back what is behind them.
const CHANGES: usize = 64;

/// What to follow.
#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// This node's name in Kubernetes.
    pub node_name: String,
    /// Keys of the labels to keep.
    pub labels: BTreeSet<String>,
}

/// Whether the index is what the API has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSource {
    /// Whether there was a complete list.
    pub listed: bool,
    /// Why the index is not, or only as of some time ago, what the API has; `None` while it is.
    pub failure: Option<String>,
}

impl PodSource {
    /// What is missing, as a sentence; `None` if nothing is.
    pub fn degraded(&self) -> Option<String> {
        match (&self.failure, self.listed) {
            (None, true) => None,
            (None, false) => Some("the Kubernetes API has not listed this node's pods yet".into()),
            (Some(why), true) => Some(format!("names of new pods are missing: {why}")),
            (Some(why), false) => Some(format!("names of pods are missing: {why}")),
        }
    }
}

/// The channel on which changes come.
pub fn channel() -> (mpsc::Sender<PodChange>, mpsc::Receiver<PodChange>) {
    mpsc::channel(CHANGES)
}

/// A way to the API that tells whether it answers.
pub struct Connection {
    client: Client,
    source: watch::Sender<PodSource>,
    metrics: PodMetrics,
}

impl Connection {
    /// Reads the credential; asks the server nothing.
    pub async fn open(access: &Access, metrics: PodMetrics) -> Result<Self, AccessError> {
        let mut config = access.config().await?;
        // So that the audit log tells who watches.
        let agent = HeaderValue::from_static(concat!("tokentrail/", env!("CARGO_PKG_VERSION")));
        config.headers.push((header::USER_AGENT, agent));
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        let source = watch::Sender::<PodSource>::default();
        let (answered, connected) = (source.clone(), metrics.clone());
        // A watch that is taken up again says nothing until a pod changes: its answer has to do. A
        // list has to come whole.
        let on_answer = move |response: Response<_>| {
            if response.status().is_success() && answered.borrow().listed {
                recovered(&answered, &connected);
            }
            response
        };
        let client = ClientBuilder::try_from(config)
            .map_err(|error| access.unusable(&error))?
            .with_layer(&MapResponseLayer::new(on_answer))
            .build();
        Ok(Self { client, source, metrics })
    }

    /// What is known of the API.
    pub fn source(&self) -> watch::Receiver<PodSource> {
        self.source.subscribe()
    }

    /// Follows until nobody takes the changes any more.
    pub async fn follow(self, config: WatchConfig, changes: mpsc::Sender<PodChange>) {
        let Self { client, source, metrics } = self;
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
        let pods: Api<PodObject> = Api::all_with(client, &kind);
        let wanted = watcher::Config::default()
            .fields(&format!("spec.nodeName={}", config.node_name))
            .page_size(PAGE)
            .timeout(WATCH_SECONDS);
        let mut events = pin!(watcher(pods, wanted).default_backoff());
        loop {
            let event = match events.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    let (failure, why) = explain(&error);
                    metrics.failed(failure);
                    // The server forgot what came since; the list that follows makes it good.
                    if failure != ApiFailure::Gone {
                        failed(&source, &metrics, why);
                    }
                    continue;
                }
            };
            let Some(change) = change(event, &config.labels) else {
                metrics.unusable();
                continue;
            };
            if change == PodChange::Listed {
                metrics.listed();
                source.send_modify(|source| source.listed = true);
                recovered(&source, &metrics);
            }
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

fn recovered(source: &watch::Sender<PodSource>, metrics: &PodMetrics) {
    let now = source.borrow().listed;
    metrics.connected(now);
    let changed = source.send_if_modified(|source| source.failure.take().is_some());
    if changed && now {
        tracing::info!("the Kubernetes API answers again");
    }
}

fn failed(source: &watch::Sender<PodSource>, metrics: &PodMetrics, why: String) {
    metrics.connected(false);
    let first = source.borrow().failure.is_none();
    if first {
        tracing::warn!(why, "the pod index is behind; alerts go out with uids alone");
    }
    source.send_modify(|source| source.failure = Some(why));
}

/// What an event changes; `None` if it is about a pod without a name.
fn change(event: Event<PodObject>, labels: &BTreeSet<String>) -> Option<PodChange> {
    Some(match event {
        Event::Init => PodChange::Listing,
        Event::InitDone => PodChange::Listed,
        Event::Apply(pod) | Event::InitApply(pod) => {
            PodChange::Present(Box::new(object::pod(pod, labels)?))
        }
        Event::Delete(pod) => PodChange::Gone { uid: pod.metadata.uid?.into() },
    })
}

/// The kind of a failure, and a sentence that says what to do about it.
fn explain(error: &watcher::Error) -> (ApiFailure, String) {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            explain_client(error)
        }
        WatchError(status) => explain_status(status.code, &status.message),
        NoResourceVersion => (ApiFailure::Other, error.to_string()),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what the client can fail by is open-ended")]
fn explain_client(error: &kube::Error) -> (ApiFailure, String) {
    match error {
        kube::Error::Api(status) => explain_status(status.code, &status.message),
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => (
            ApiFailure::Unreachable,
            format!("the Kubernetes API cannot be reached: {}", with_causes(error)),
        ),
        _ => (ApiFailure::Other, format!("the Kubernetes API: {}", with_causes(error))),
    }
}

fn explain_status(code: u16, message: &str) -> (ApiFailure, String) {
    let (failure, what) = match code {
        401 => (ApiFailure::Unauthorized, "the Kubernetes API does not know this credential"),
        403 => (ApiFailure::Forbidden, "this agent may not list and watch pods; grant it that"),
        410 => (ApiFailure::Gone, "the Kubernetes API has forgotten what came since"),
        429 | 500.. => (ApiFailure::Server, "the Kubernetes API is in trouble"),
        _ => (ApiFailure::Other, "the Kubernetes API refused"),
    };
    (failure, format!("{what}: {message} ({code})"))
}

#[cfg(test)]
mod tests;

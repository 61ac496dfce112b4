//! The pod index with what keeps it up to date, as the engine holds them. Without the Kubernetes API
//! the index stays empty.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::AgentError;
use crate::{
    attribution::pods::{
        PodChange, PodIndex, PodMetrics,
        watch::{Connection, PodSource, WatchConfig, channel},
    },
    config::Config,
    time::Micros,
};

/// How long a start waits for the first list, so that an alert right after it has its names.
const FIRST_LIST: Duration = Duration::from_secs(2);

/// The index and its source.
pub(super) struct PodFeed {
    /// The pods.
    pub(super) index: PodIndex,
    source: Option<Source>,
}

struct Source {
    changes: mpsc::Receiver<PodChange>,
    state: watch::Receiver<PodSource>,
}

impl PodFeed {
    /// Connects, where that is configured; an API that does not answer is no error.
    pub(super) async fn start(
        config: &Config,
        metrics: &PodMetrics,
        tasks: &mut JoinSet<AgentError>,
    ) -> Result<Self, AgentError> {
        let index = PodIndex::new(metrics.clone());
        let Some(access) = &config.kube else { return Ok(Self { index, source: None }) };
        let connection = Connection::open(access, metrics.clone()).await?;
        let (sender, changes) = channel();
        let state = connection.source();
        let watch =
            WatchConfig { node_name: config.node_name.clone(), labels: config.pod_labels.clone() };
        tasks.spawn(async move {
            connection.follow(watch, sender).await;
            AgentError::Ended {
                part: "the watch of this node's pods",
                why: "nobody takes its changes".to_owned(),
            }
        });
        Ok(Self { index, source: Some(Source { changes, state }) })
    }

    /// Waits for the first list, but not long: alerts need no names to go out.
    pub(super) async fn fill(&mut self, now: Micros) {
        if self.source.is_none() {
            return;
        }
        let list = async {
            while let Some(change) = self.changed().await {
                let listed = change == PodChange::Listed;
                self.index.apply(change, now);
                if listed {
                    return;
                }
            }
        };
        if timeout(FIRST_LIST, list).await.is_err() {
            tracing::warn!("starting without the names of this node's pods");
        }
    }

    /// The next change; never, if there is no source. Cancelling loses nothing.
    pub(super) async fn changed(&mut self) -> Option<PodChange> {
        match &mut self.source {
            Some(source) => source.changes.recv().await,
            None => std::future::pending().await,
        }
    }

    /// What alerts lack at the moment, as a sentence.
    pub(super) fn degraded(&self) -> Option<String> {
        match &self.source {
            Some(source) => source.state.borrow().degraded(),
            None => None,
        }
    }
}

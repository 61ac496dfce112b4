//! How the Kubernetes API is reached, and single requests to it. With `attribution/pods/watch` the
//! only user of the `kube` client; decides nothing about what it is told. Called by that watch,
//! by the audit canary, and by who answers other nodes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Request, header};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;

use crate::{errors::with_causes, time::Micros};

/// After so long a single request has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the service account of the pod that this runs in.
    InCluster,
    /// By this file.
    Kubeconfig(PathBuf),
}

/// The API cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file is unusable.
    #[error("the kubeconfig {} is not usable: {reason}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The pod has no credential.
    #[error(
        "this pod has no usable service-account credential: {0}; set automountServiceAccountToken, or use --no-kube"
    )]
    InCluster(String),
}

impl Access {
    /// Reads the credential; asks the server nothing.
    pub(crate) async fn config(&self) -> Result<Config, AccessError> {
        match self {
            Self::InCluster => {
                Config::incluster().map_err(|error| AccessError::InCluster(error.to_string()))
            }
            Self::Kubeconfig(path) => kubeconfig(path)
                .await
                .map_err(|reason| AccessError::Kubeconfig { path: path.clone(), reason }),
        }
    }

    /// What it means that no client can be made of it.
    pub(crate) fn unusable(&self, error: &kube::Error) -> AccessError {
        let reason = with_causes(error);
        match self {
            Self::InCluster => AccessError::InCluster(reason),
            Self::Kubeconfig(path) => AccessError::Kubeconfig { path: path.clone(), reason },
        }
    }
}

async fn kubeconfig(path: &Path) -> Result<Config, String> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| error.to_string())
}

/// Makes single requests.
pub struct ApiClient(Client);

/// Where the pod of a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its node; `None` before it has one.
    pub node: Option<String>,
    /// When it was created: API server's clock, whole seconds.
    pub since: Micros,
}

/// The few fields of a `PodList` that tell this.
#[derive(Deserialize)]
struct Pods {
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    creation_timestamp: Micros,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

impl ApiClient {
    /// Reads the credential; asks the server nothing.
    ///
    /// # Errors
    /// The credential is unusable.
    pub async fn open(access: &Access) -> Result<Self, AccessError> {
        let mut config = access.config().await?;
        // A request that was repeated behind our back would have no time of its own.
        config.default_retry = false;
        let client = ClientBuilder::try_from(config).map_err(|error| access.unusable(&error))?;
        Ok(Self(client.build()))
    }

    /// Makes one GET request as this user agent; the status of the answer, whatever it is.
    ///
    /// # Errors
    /// A sentence that says why there was no answer.
    pub async fn status(&self, uri: &str, user_agent: &str) -> Result<u16, String> {
        let response = in_time(self.0.send(get(uri, user_agent, Body::empty())?)).await?;
        Ok(response.status().as_u16())
    }

    /// Where the pod is that has this name now; `None` if none has. Asked for as a list, for which one needs no
    /// other right than for the pod index; by this field an API server looks for one key and no others.
    ///
    /// # Errors
    /// A sentence that says why this cannot be known.
    pub async fn place(&self, namespace: &str, name: &str) -> Result<Option<Place>, String> {
        if ![namespace, name].into_iter().all(is_name) {
            return Err("no pod can have this name".to_owned());
        }
        let uri = format!(
            "/api/v1/namespaces/{namespace}/pods?fieldSelector=metadata.name%3D{name}&limit=1"
        );
        let user_agent = concat!("tokentrail/", env!("CARGO_PKG_VERSION"));
        let pods: Pods = in_time(self.0.request(get(&uri, user_agent, Vec::new())?)).await?;
        let place = |pod: Pod| Place {
            node: pod.spec.node_name.filter(|it| !it.is_empty()),
            since: pod.metadata.creation_timestamp,
        };
        Ok(pods.items.into_iter().next().map(place))
    }
}

/// Whether this may stand in a request's path as it is: a DNS subdomain, as namespaces and pods are named.
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| !label.is_empty() && label.bytes().all(is_part))
}

/// A GET request. Its body is empty, in the form that the client wants it in.
fn get<B>(uri: &str, user_agent: &str, empty: B) -> Result<Request<B>, String> {
    let request = Request::get(uri).header(header::USER_AGENT, user_agent).body(empty);
    request.map_err(|error| format!("no request can be made: {error}"))
}

async fn in_time<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => {
            Err(format!("the Kubernetes API refused: {} ({})", status.message, status.code))
        }
        Ok(Err(error)) => {
            Err(format!("the Kubernetes API cannot be reached: {}", with_causes(&error)))
        }
        Err(_elapsed) => {
            Err(format!("the Kubernetes API did not answer within {} s", TIMEOUT.as_secs()))
        }
    }
}

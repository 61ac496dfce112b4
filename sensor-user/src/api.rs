//! How the Kubernetes API is reached, and single requests to it. With `attribution/pods/watch` the
//! only user of the `kube` client; decides nothing about what it is told. Called by that watch and
//! by the audit canary.

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

use crate::errors::with_causes;

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
        let request = Request::get(uri).header(header::USER_AGENT, user_agent).body(Body::empty());
        let request = request.map_err(|error| format!("no request can be made: {error}"))?;
        match tokio::time::timeout(TIMEOUT, self.0.send(request)).await {
            Ok(Ok(response)) => Ok(response.status().as_u16()),
            Ok(Err(error)) => {
                Err(format!("the Kubernetes API cannot be reached: {}", with_causes(&error)))
            }
            Err(_elapsed) => {
                Err(format!("the Kubernetes API did not answer within {} s", TIMEOUT.as_secs()))
            }
        }
    }
}

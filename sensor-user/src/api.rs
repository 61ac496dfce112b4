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

use crate::{errors::with_causes, object_name::is_object_name, time::Micros};

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
        if ![namespace, name].into_iter().all(is_object_name) {
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

#[cfg(test)]
impl Access {
    /// By a file in this folder, to a server that asks for no credential.
    pub(crate) fn example(folder: &tempfile::TempDir, server: &str) -> Self {
        let path = folder.path().join("kubeconfig");
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        Self::Kubeconfig(path)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::Path as Segments, http::Uri, routing};
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::net::TcpListener;

    use super::*;

    /// Answers as an API server does that has one pod, `cart-0`, and one that has no node yet, `new`.
    async fn answer(Segments(namespace): Segments<String>, uri: Uri) -> (http::StatusCode, String) {
        let since = "2026-11-29T10:00:00Z";
        let (status, body) = match (&*namespace, uri.query().unwrap_or_default()) {
            ("shop", "fieldSelector=metadata.name%3Dcart-0&limit=1") => (
                200,
                json!({"items": [
                {"metadata": {"name": "cart-0", "creationTimestamp": since},
                 "spec": {"nodeName": "node-b", "containers": []}}]}),
            ),
            ("shop", "fieldSelector=metadata.name%3Dnew&limit=1") => (
                200,
                json!({"items": [
                {"metadata": {"name": "new", "creationTimestamp": since}, "spec": {}}]}),
            ),
            ("shop", _) => (200, json!({"kind": "PodList", "metadata": {}, "items": []})),
            ("odd", _) => (200, Value::Null),
            (_, _) => (
                403,
                json!({"kind": "Status", "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "pods is forbidden"}),
            ),
        };
        (http::StatusCode::from_u16(status).unwrap(), body.to_string())
    }

    #[tokio::test]
    async fn a_pod_is_found_by_its_name_and_nothing_else_is_asked_for() {
        let folder = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let pods = Router::new().route("/api/v1/namespaces/{namespace}/pods", routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, pods).await });
        let client = ApiClient::open(&Access::example(&folder, &server)).await.unwrap();
        let since = Micros::parse("2026-11-29T10:00:00Z").unwrap();
        let place = |node: Option<&str>| Some(Place { node: node.map(str::to_owned), since });
        assert_eq!(client.place("shop", "cart-0").await, Ok(place(Some("node-b"))));
        assert_eq!(client.place("shop", "new").await, Ok(place(None)));
        assert_eq!(client.place("shop", "gone").await, Ok(None));
        let refused = client.place("others", "cart-0").await.unwrap_err();
        assert!(refused.contains("pods is forbidden (403)"), "{refused}");
        assert!(client.place("odd", "cart-0").await.is_err());
        for name in ["", "cart-0&watch=1", "../secrets", "cart 0", "a..b", "%2e", "Cart"] {
            let refused = client.place("shop", name).await;
            assert_eq!(refused, Err("no pod can have this name".to_owned()), "{name}");
            assert_eq!(client.place(name, "cart-0").await, refused, "{name}");
        }
    }
}

//! The webhook over real TLS, with a test in the engine's place.

use std::{fs, net::SocketAddr, pin::pin, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use self::{
    client::{Client, Reply},
    pki::{Authority, Identity},
};
use super::{CredentialFiles, Limits, Webhook, WebhookConfig, WebhookMetrics};
use crate::audit::{AuditBatch, AuditMetrics, POD_UID, SourceStatus};

mod admission;
mod bodies;
mod client;
pub(super) mod pki;
mod queue;

const DEADLINE: Duration = Duration::from_secs(120);
const TOKEN: &str = "a-token-that-is-long-enough";

/// What the webhook asks of clients.
#[derive(Clone, Copy)]
struct Asks {
    certificate: bool,
    token: bool,
}

const CERTIFICATE: Asks = Asks { certificate: true, token: false };

/// A webhook that serves, and what it is to be judged by.
struct Rig {
    dir: TempDir,
    authority: Authority,
    address: SocketAddr,
    batches: mpsc::Receiver<AuditBatch>,
    status: watch::Receiver<SourceStatus>,
    audit: AuditMetrics,
    metrics: WebhookMetrics,
    task: JoinHandle<()>,
}

impl Rig {
    async fn new(asks: Asks) -> Self {
        Self::with(asks, |_| {}).await
    }

    async fn with(asks: Asks, change: impl FnOnce(&mut Webhook)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("ours");
        let (cert, key) = authority.server();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let config = WebhookConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            files: CredentialFiles {
                cert: write("tls.crt", &cert),
                key: write("tls.key", &key),
                client_ca: asks.certificate.then(|| write("ca.crt", &authority.pem())),
                tokens: asks.token.then(|| write("tokens", TOKEN)),
            },
            max_body: 16 << 20,
        };
        let (audit, metrics) = (AuditMetrics::default(), WebhookMetrics::default());
        let mut webhook = Webhook::open(&config, metrics.clone()).unwrap();
        change(&mut webhook);
        let address = webhook.listener.local_addr().unwrap();
        let (sender, batches) = mpsc::channel(16);
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let task = tokio::spawn(webhook.serve(7, sender, status_sender, audit.clone()));
        Self { dir, authority, address, batches, status, audit, metrics, task }
    }

    /// One with other limits.
    async fn limited(change: impl FnOnce(&mut Limits)) -> Self {
        Self::with(CERTIFICATE, |webhook| change(&mut webhook.limits)).await
    }

    /// A client that has what this webhook asks for.
    async fn api_server(&self) -> Client {
        let identity = self.authority.client("kube-apiserver");
        self.connect(Some(&identity)).await.expect("the API server is let in")
    }

    async fn connect(&self, identity: Option<&Identity>) -> std::io::Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        Client::connect(stream, &self.authority, identity).await
    }

    /// The next batch, as the engine gets it.
    async fn batch(&mut self) -> AuditBatch {
        let batch = timeout(DEADLINE, self.batches.recv()).await.expect("no batch came");
        let batch = batch.expect("the webhook ended");
        assert_eq!((batch.source, batch.position.as_ref()), (7, None));
        batch
    }

    /// Plays the engine until a post is answered: with what, and which batches came until then.
    async fn play(&mut self, post: impl Future<Output = Reply>) -> (u16, Vec<AuditBatch>) {
        let (mut post, mut batches) = (pin!(post), Vec::new());
        loop {
            tokio::select! {
                reply = &mut post => return (reply.status, batches),
                mut batch = self.batch() => {
                    // A client that is gone does not wait for it.
                    let _ = batch.acknowledge.take().unwrap().send(());
                    batches.push(batch);
                }
            }
        }
    }

    /// Posts, and plays the engine meanwhile: the answer, and the audit ids of what is new.
    async fn post(&mut self, client: &mut Client, body: &[u8]) -> (u16, Vec<String>) {
        let (status, batches) = self.play(client.post(body)).await;
        let records = batches.into_iter().flat_map(|batch| batch.records);
        let new = records.filter(|read| !read.is_repeated);
        (status, new.map(|read| read.record.audit_id).collect())
    }
}

/// An item, as the API server writes it: without kind and version.
fn item(audit_id: &str) -> Value {
    json!({
        "level": "Metadata",
        "auditID": audit_id,
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/secrets?limit=500",
        "verb": "list",
        "user": {"username": "system:serviceaccount:shop:till", "extra": {POD_UID: ["u-1"]}},
        "sourceIPs": ["10.0.0.7"],
        "requestReceivedTimestamp": "2026-11-21T23:50:21.010116Z",
        "stageTimestamp": "2026-11-21T23:50:21.014096Z",
    })
}

/// In the API server's order of fields.
fn list(items: &[Value]) -> Vec<u8> {
    let items = Value::from(items);
    format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{}},"items":{items}}}"#
    )
    .into_bytes()
}

/// A list of events of these ids.
fn events(ids: &[&str]) -> Vec<u8> {
    list(&ids.iter().map(|id| item(id)).collect::<Vec<_>>())
}

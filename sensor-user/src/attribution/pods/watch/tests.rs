//! The watch against an API server that answers as scripted: what a real one does only in bad
//! moments. A real one is in the whole-program tests.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// What the server does with one request.
enum Answer {
    /// A complete list of these pods.
    List(&'static [&'static str]),
    /// These events, then silence.
    Watch(Vec<Value>),
    /// These events, then the end.
    ShortWatch(Vec<Value>),
    /// An error.
    Status(u16),
    /// Nothing that is JSON.
    Garbage,
    /// No answer, and no end of the connection.
    Never,
    /// The beginning of a list, and no more.
    HalfAList,
}

#[derive(Clone, Default)]
struct Script(Arc<Mutex<(VecDeque<Answer>, Vec<String>)>>);

impl Script {
    fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

fn object(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
           "metadata": {"uid": name, "namespace": "n", "name": name, "resourceVersion": "5"}})
}

fn event(kind: &str, name: &str) -> Value {
    json!({"type": kind, "object": object(name)})
}

fn gone_event() -> Value {
    json!({"type": "ERROR", "object": status(410)})
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": "as scripted", "reason": "Scripted", "code": code})
}

async fn answer(
    State(script): State<Script>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let next = {
        let mut script = script.0.lock().unwrap();
        let agent = headers.get("user-agent").and_then(|agent| agent.to_str().ok());
        script.1.push(format!("{} {}", query.unwrap_or_default(), agent.unwrap_or_default()));
        script.0.pop_front()
    };
    let lines = |events: Vec<Value>| {
        stream::iter(events).map(|event| Ok::<_, std::io::Error>(format!("{event}\n")))
    };
    match next {
        Some(Answer::List(names)) => {
            let items: Vec<Value> = names.iter().map(|name| object(name)).collect();
            let list = json!({"kind": "PodList", "apiVersion": "v1", "items": items,
                              "metadata": {"resourceVersion": "4"}});
            list.to_string().into_response()
        }
        Some(Answer::Watch(events)) => {
            Body::from_stream(lines(events).chain(stream::pending())).into_response()
        }
        Some(Answer::ShortWatch(events)) => Body::from_stream(lines(events)).into_response(),
        Some(Answer::Status(code)) => {
            (StatusCode::from_u16(code).unwrap(), status(code).to_string()).into_response()
        }
        Some(Answer::Garbage) => "certainly no JSON".into_response(),
        Some(Answer::Never) => std::future::pending().await,
        Some(Answer::HalfAList) => {
            let half = stream::iter([Ok::<_, std::io::Error>("{\"kind\": \"PodList\", ")]);
            Body::from_stream(half.chain(stream::pending())).into_response()
        }
        None => Body::from_stream(lines(Vec::new()).chain(stream::pending())).into_response(),
    }
}

struct Following {
    changes: mpsc::Receiver<PodChange>,
    source: watch::Receiver<PodSource>,
    metrics: PodMetrics,
    script: Script,
    _folder: TempDir,
}

/// Follows a server that gives these answers, one after the other.
async fn follow(answers: impl IntoIterator<Item = Answer>) -> Following {
    let script = Script::default();
    script.0.lock().unwrap().0.extend(answers);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/api/v1/pods", get(answer)).with_state(script.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("kubeconfig");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let metrics = PodMetrics::default();
    let connection = Connection::open(&Access::Kubeconfig(path), metrics.clone()).await.unwrap();
    let source = connection.source();
    let (sender, changes) = channel();
    let config = WatchConfig { node_name: "node-a".to_owned(), labels: BTreeSet::new() };
    tokio::spawn(connection.follow(config, sender));
    Following { changes, source, metrics, script, _folder: folder }
}

impl Following {
    /// The next changes: `*` a list begins, `.` it ends, `+name`, `-name`.
    async fn expect(&mut self, expected: &str) {
        for expected in expected.split(' ') {
            let change = timeout(DEADLINE, self.changes.recv()).await.expect(expected).unwrap();
            let found = match change {
                PodChange::Listing => "*".to_owned(),
                PodChange::Listed => ".".to_owned(),
                PodChange::Present(pod) => format!("+{}", pod.name),
                PodChange::Gone { uid } => format!("-{uid}"),
            };
            assert_eq!(found, expected);
        }
    }

    async fn until(&mut self, condition: impl Fn(&PodSource) -> bool) -> PodSource {
        let source = timeout(DEADLINE, self.source.wait_for(condition)).await;
        source.expect("the state did not come").unwrap().clone()
    }
}

#[tokio::test]
async fn a_list_and_the_changes_after_it_arrive_in_order() {
    let mut following = follow([
        Answer::List(&["a", "b"]),
        Answer::Watch(vec![event("ADDED", "c"), event("MODIFIED", "a"), event("DELETED", "b")]),
    ])
    .await;
    following.expect("* +a +b . +c +a -b").await;
    let source = following.until(|source| source.listed).await;
    assert_eq!(source.degraded(), None);
    let requests = following.script.requests();
    assert!(
        requests.iter().all(|it| it.contains("fieldSelector=spec.nodeName%3Dnode-a")
            && it.ends_with(concat!("tokentrail/", env!("CARGO_PKG_VERSION")))),
        "{requests:?}"
    );
    assert!(requests[1].contains("allowWatchBookmarks=true"), "{requests:?}");
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_at_the_last_bookmark() {
    let bookmark = json!({"type": "BOOKMARK", "object": {
        "kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "77"}}});
    let mut following = follow([
        Answer::List(&["a"]),
        Answer::ShortWatch(vec![bookmark]),
        Answer::Watch(vec![event("ADDED", "b")]),
    ])
    .await;
    following.expect("* +a . +b").await;
    assert!(following.script.requests()[2].contains("resourceVersion=77"));
}

#[tokio::test]
async fn what_the_server_forgot_is_listed_again() {
    let mut following =
        follow([Answer::List(&["a"]), Answer::Watch(vec![gone_event()]), Answer::List(&["b"])])
            .await;
    following.expect("* +a . * +b .").await;
    assert_eq!(following.metrics.failures(ApiFailure::Gone), 1);
    let source = following.source.borrow().clone();
    assert_eq!(source.degraded(), None, "nothing is missing for longer than a list takes");
}

#[tokio::test]
async fn a_refusal_is_a_state_with_a_remedy_and_ends_by_itself() {
    for (code, failure, remedy) in [
        (403, ApiFailure::Forbidden, "may not list and watch pods"),
        (401, ApiFailure::Unauthorized, "does not know this credential"),
        (500, ApiFailure::Server, "in trouble"),
    ] {
        let mut following = follow([Answer::Status(code), Answer::List(&["a"])]).await;
        let source = following.until(|source| source.failure.is_some()).await;
        let told = source.degraded().unwrap();
        assert!(told.contains(remedy) && told.contains("as scripted"), "{told}");
        following.expect("* * +a .").await;
        following.until(|source| source.degraded().is_none()).await;
        assert_eq!(following.metrics.failures(failure), 1, "{code}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_list_is_counted_and_asked_for_again() {
    let mut following = follow([Answer::Garbage, Answer::List(&["a"])]).await;
    following.expect("* * +a .").await;
    assert_eq!(following.metrics.failures(ApiFailure::Other), 1);
}

/// Time passes by itself here whenever nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_has_failed_and_is_asked_again() {
    for silence in [Answer::Never, Answer::HalfAList] {
        let mut following = follow([silence, Answer::List(&["a"])]).await;
        following.expect("*").await;
        let failed =
            timeout(READ_TIMEOUT * 2, following.source.wait_for(|it| it.failure.is_some()));
        let told = failed.await.expect("silence is no failure").unwrap().degraded().unwrap();
        assert!(told.contains("cannot be reached"), "{told}");
        assert_eq!(following.metrics.failures(ApiFailure::Unreachable), 1);
        following.expect("* +a .").await;
        following.until(|source| source.degraded().is_none()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_whose_connection_died_is_taken_up_again_and_nothing_is_missing() {
    let mut following = follow([
        Answer::List(&["a"]),
        Answer::Watch(vec![event("ADDED", "b")]),
        Answer::Watch(vec![event("ADDED", "c")]),
    ])
    .await;
    following.expect("* +a . +b").await;
    let change =
        timeout(READ_TIMEOUT * 2, following.changes.recv()).await.expect("no second watch");
    assert!(matches!(change, Some(PodChange::Present(pod)) if &*pod.name == "c"));
    assert!(following.script.requests()[2].contains("resourceVersion=5"));
}

#[tokio::test]
async fn a_watch_that_cannot_be_taken_up_again_is_said_until_it_can() {
    let mut following = follow([
        Answer::List(&["a"]),
        Answer::ShortWatch(Vec::new()),
        Answer::Status(500),
        Answer::Watch(Vec::new()),
    ])
    .await;
    following.expect("* +a .").await;
    let source = following.until(|source| source.failure.is_some()).await;
    assert!(source.degraded().unwrap().starts_with("names of new pods are missing"));
    // Nothing changes at the pods: that the server answers has to do.
    following.until(|source| source.failure.is_none()).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("kubeconfig");
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: x, clusters: [{{name: c, cluster: \
         {{server: \"http://{unused}\"}}}}], users: [{{name: u, user: {{}}}}], contexts: \
         [{{name: x, context: {{cluster: c, user: u}}}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    let metrics = PodMetrics::default();
    let connection = Connection::open(&Access::Kubeconfig(path), metrics.clone()).await.unwrap();
    let mut source = connection.source();
    let (sender, _changes) = channel();
    let config = WatchConfig { node_name: "node-a".to_owned(), labels: BTreeSet::new() };
    tokio::spawn(connection.follow(config, sender));
    let told = timeout(DEADLINE, source.wait_for(|source| source.failure.is_some())).await;
    let told = told.unwrap().unwrap().degraded().unwrap();
    assert!(told.contains("cannot be reached") && told.contains("refused"), "{told}");
    assert!(metrics.failures(ApiFailure::Unreachable) >= 1);
}

#[tokio::test]
async fn an_unusable_kubeconfig_is_one_error_that_names_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("kubeconfig");
    for text in [None, Some("certainly: [no"), Some("{apiVersion: v1, kind: Config}")] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let access = Access::Kubeconfig(path.clone());
        let opened = Connection::open(&access, PodMetrics::default()).await;
        let error = opened.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(&path.display().to_string()), "{text:?}: {error}");
    }
}

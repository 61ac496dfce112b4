//! Makes the canary's requests, numbered, and tells when. Judges nothing but which answers are audited. The
//! agent spawns it; `tokentrail check` asks once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{Asked, run::Run};
use crate::{
    api::{Access, AccessError, ApiClient},
    time::Micros,
};

/// A request that was not answered is tried again after so long.
const AGAIN: Duration = Duration::from_secs(15);

/// Makes requests that can be told from all others.
pub struct Probe {
    client: ApiClient,
    run: Run,
    number: u64,
}

impl Probe {
    /// Reads the credential; asks the server nothing. Its requests are of this run.
    ///
    /// # Errors
    /// The credential is unusable.
    pub async fn open(access: &Access, run: Run) -> Result<Self, AccessError> {
        Ok(Self { client: ApiClient::open(access).await?, run, number: 0 })
    }

    /// Makes one request.
    pub async fn ask(&mut self) -> Asked {
        self.number += 1;
        let number = self.number;
        let (uri, user_agent) = (self.run.uri(number), self.run.user_agent());
        let sent = wall_clock();
        let status = self.client.status(&uri, &user_agent).await;
        let answered = wall_clock();
        let answered = status.and_then(|code| match code {
            401 => Err("the Kubernetes API does not know this credential (401)".to_owned()),
            429 | 500.. => Err(format!("the Kubernetes API is in trouble ({code})")),
            _ => Ok(answered),
        });
        Asked { number, sent, answered }
    }
}

/// Asks `every` so often from when `go` says so, until nobody listens.
pub async fn repeat(
    access: Access,
    run: Run,
    every: Duration,
    go: oneshot::Receiver<()>,
    sender: mpsc::Sender<Asked>,
) {
    if go.await.is_err() {
        return;
    }
    let mut probe = None;
    loop {
        let asked = match &mut probe {
            Some(probe) => Probe::ask(probe).await,
            // A credential that was fine when the agent started.
            None => match Probe::open(&access, run.clone()).await {
                Ok(opened) => probe.insert(opened).ask().await,
                Err(error) => {
                    Asked { number: 0, sent: wall_clock(), answered: Err(error.to_string()) }
                }
            },
        };
        let pause = if asked.answered.is_ok() { every } else { every.min(AGAIN) };
        if sender.send(asked).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// This machine's wall clock.
pub fn wall_clock() -> Micros {
    Micros::from_duration(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{Router, extract::State, http::HeaderMap, routing::get};
    use http::{StatusCode, Uri};
    use tempfile::TempDir;
    use tokio::{net::TcpListener, sync::Mutex};

    use super::*;
    use crate::audit::canary::URI;

    type Seen = Arc<Mutex<(u16, Vec<String>)>>;

    async fn answer(State(seen): State<Seen>, uri: Uri, headers: HeaderMap) -> StatusCode {
        let mut seen = seen.lock().await;
        for agent in headers.get_all("user-agent") {
            seen.1.push(format!("{} {uri}", agent.to_str().unwrap()));
        }
        StatusCode::from_u16(seen.0).unwrap()
    }

    /// An API server that answers with the status that is set.
    async fn server() -> (Access, Seen, TempDir) {
        let seen = Seen::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let path = URI.split('?').next().unwrap();
        let router = Router::new().route(path, get(answer)).with_state(seen.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let folder = TempDir::new().unwrap();
        (Access::example(&folder, &server), seen, folder)
    }

    #[tokio::test]
    async fn each_request_bears_this_runs_user_agent_and_its_number_and_only_audited_answers_count()
    {
        let (access, seen, _folder) = server().await;
        let run = Run::begin();
        let mut probe = Probe::open(&access, run.clone()).await.unwrap();
        let cases =
            [(404, true), (200, true), (403, true), (401, false), (429, false), (503, false)];
        for (number, (code, audited)) in (1..).zip(cases) {
            seen.lock().await.0 = code;
            let asked = probe.ask().await;
            assert_eq!((asked.number, asked.answered.is_ok()), (number, audited), "{code}");
            match asked.answered {
                Ok(answered) => assert!(answered >= asked.sent),
                Err(why) => assert!(why.contains(&code.to_string()), "{why}"),
            }
            let request = seen.lock().await.1.pop().unwrap();
            assert_eq!(request, format!("{} {}", run.user_agent(), run.uri(number)));
            assert_eq!(seen.lock().await.1, [""; 0], "more than one user agent");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_reason_and_not_an_error() {
        let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let folder = TempDir::new().unwrap();
        let access = Access::example(&folder, &format!("http://{unused}"));
        let asked = Probe::open(&access, Run::begin()).await.unwrap().ask().await;
        let why = asked.answered.unwrap_err();
        assert!(why.contains("cannot be reached"), "{why}");
    }

    #[tokio::test]
    async fn nothing_is_asked_before_the_start_and_rounds_follow_each_other() {
        let (access, seen, _folder) = server().await;
        seen.lock().await.0 = 404;
        let (go, gone) = oneshot::channel();
        let (sender, mut asked) = mpsc::channel(1);
        let task =
            tokio::spawn(repeat(access, Run::begin(), Duration::from_millis(1), gone, sender));
        assert!(asked.try_recv().is_err());
        assert!(seen.lock().await.1.is_empty());
        go.send(()).unwrap();
        for number in 1..=3 {
            assert_eq!(asked.recv().await.unwrap().number, number);
        }
        drop(asked);
        task.await.unwrap();
    }
}

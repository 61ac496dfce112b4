//! Who is let in, and that others cannot keep those out.

use std::fs;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Asks, Authority, CERTIFICATE, Client, DEADLINE, Rig, TOKEN, events, pki::Identity};
use crate::audit::webhook::{Answer, Refusal};

/// Posts as somebody; the answer, or that there is none.
async fn try_post(rig: &mut Rig, identity: Option<&Identity>, token: Option<&str>) -> Option<u16> {
    // With TLS 1.3 a client learns only after its handshake that it is not wanted.
    let mut client = rig.connect(identity).await.ok()?;
    if let Some(token) = token {
        client.header = format!("Authorization: Bearer {token}\r\n");
    }
    let body = events(&["id"]);
    let attempt = async {
        client.send_head(body.len()).await;
        client.send(&body).await;
        client.reply().await
    };
    let mut attempt = std::pin::pin!(attempt);
    loop {
        tokio::select! {
            reply = attempt.as_mut() => return reply.ok().map(|reply| reply.status),
            batch = rig.batches.recv() => {
                batch.unwrap().acknowledge.map(|it| it.send(()));
            }
        }
    }
}

#[tokio::test]
async fn what_is_configured_is_asked_for() {
    let stranger = Authority::new("ours").client("kube-apiserver");
    for asks in [
        CERTIFICATE,
        Asks { certificate: false, token: true },
        Asks { certificate: true, token: true },
    ] {
        let mut rig = Rig::new(asks).await;
        let ours = rig.authority.client("kube-apiserver");
        for (identity, has_certificate) in
            [(None, false), (Some(&ours), true), (Some(&stranger), false)]
        {
            for (token, has_token) in
                [(None, false), (Some("wrong-token-wrong-token"), false), (Some(TOKEN), true)]
            {
                let expected = if asks.certificate && !has_certificate {
                    None
                } else if asks.token && !has_token {
                    Some(401)
                } else {
                    Some(200)
                };
                let answer = try_post(&mut rig, identity, token).await;
                let (with, asked) = (asks.certificate, asks.token);
                assert_eq!(
                    answer, expected,
                    "certificate: {has_certificate} of {with}, token: {token:?} of {asked}"
                );
            }
        }
        let strangers = rig.metrics.refused(Refusal::Handshake).get();
        assert_eq!(strangers, if asks.certificate { 6 } else { 0 });
    }
}

#[tokio::test]
async fn a_servers_certificate_makes_no_client() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let server = rig.authority.server();
    assert_eq!(try_post(&mut rig, Some(&server), None).await, None);
}

#[tokio::test]
async fn plain_http_is_not_answered() {
    let rig = Rig::new(CERTIFICATE).await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    let mut answer = Vec::new();
    // The server may reset the connection: it has not read all of it.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(!text.contains("HTTP/1.1"), "{text}");
}

#[tokio::test]
async fn only_posts_are_taken() {
    let rig = Rig::new(CERTIFICATE).await;
    let mut client = rig.api_server().await;
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(client.reply().await.unwrap().status, 405);
    assert_eq!(rig.metrics.answers(Answer::NotPost).get(), 1);
}

#[tokio::test]
async fn a_crowd_that_says_nothing_gives_way_to_an_api_server() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut client = rig.api_server().await;
    assert_eq!(rig.post(&mut client, &events(&["id"])).await, (200, vec!["id".to_owned()]));
    assert!(rig.metrics.refused(Refusal::Displaced).get() > 0);
    // More of them do not push out one that has proven who it is.
    for _ in 0..200 {
        crowd.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut another = rig.api_server().await;
    assert_eq!(rig.post(&mut another, &events(&["b"])).await.0, 200);
    assert_eq!(rig.post(&mut client, &events(&["a"])).await.0, 200);
}

#[tokio::test]
async fn clients_with_a_token_only_prove_themselves_by_showing_it() {
    let mut rig = Rig::new(Asks { certificate: false, token: true }).await;
    let mut crowd = Vec::new();
    for _ in 0..70 {
        crowd.push(rig.connect(None).await);
    }
    let mut client = rig.connect(None).await.unwrap();
    client.header = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(rig.post(&mut client, &events(&["id"])).await.0, 200);
    assert!(rig.metrics.refused(Refusal::Displaced).get() > 0);
}

#[tokio::test]
async fn new_certificates_and_tokens_count_at_once_and_for_those_who_are_connected() {
    let asks = Asks { certificate: true, token: true };
    let mut rig = Rig::with(asks, |webhook| {
        webhook.look = std::time::Duration::from_millis(5);
    })
    .await;
    let with_token = |mut client: Client, token: &str| {
        client.header = format!("Authorization: Bearer {token}\r\n");
        client
    };
    let ours = rig.authority.client("kube-apiserver");
    let mut client = with_token(rig.connect(Some(&ours)).await.unwrap(), TOKEN);
    assert_eq!(rig.post(&mut client, &events(&["a"])).await.0, 200);

    // What cannot be used changes nothing.
    fs::write(rig.dir.path().join("ca.crt"), "").unwrap();
    let failed = async {
        while rig.metrics.reload_failures.get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, failed).await.expect("nobody looked");
    assert_eq!(rig.post(&mut client, &events(&["b"])).await.0, 200);

    let next = Authority::new("next");
    let token = "another-token-that-is-long";
    fs::write(rig.dir.path().join("tokens"), token).unwrap();
    fs::write(rig.dir.path().join("ca.crt"), next.pem()).unwrap();
    assert!(client.is_ended().await);
    // The file of tokens may have been seen a moment before the other: until both are in use.
    let theirs = next.client("kube-apiserver");
    let admitted = async {
        loop {
            if try_post(&mut rig, Some(&theirs), Some(token)).await == Some(200) {
                return;
            }
        }
    };
    timeout(DEADLINE, admitted).await.expect("the new certificate is not let in");
    assert_eq!(try_post(&mut rig, Some(&ours), Some(token)).await, None);
    assert_eq!(try_post(&mut rig, Some(&theirs), Some(TOKEN)).await, Some(401));
}

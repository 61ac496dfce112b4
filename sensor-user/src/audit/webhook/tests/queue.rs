//! When a post is answered, and what happens to those that come too often, too slowly or not whole.

use std::time::Duration;

use super::{CERTIFICATE, Rig, events};
use crate::audit::{AuditBatch, webhook::Answer};

#[tokio::test]
async fn no_post_is_answered_with_200_before_the_engine_says_that_it_is_safe() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let mut client = rig.api_server().await;
    let body = events(&["a"]);
    let engine = async {
        let batch = rig.batch().await;
        assert_eq!(batch.records.len(), 1);
        // The engine ends without a word.
        drop(batch);
    };
    let (reply, ()) = tokio::join!(client.post(&body), engine);
    assert_eq!(reply.status, 429, "{reply:?}");
}

#[tokio::test]
async fn while_the_queue_is_full_posts_are_told_when_to_come_again_and_then_taken() {
    let mut rig = Rig::limited(|limits| limits.in_hand = 1).await;
    let (mut first, mut second) = (rig.api_server().await, rig.api_server().await);
    let body = events(&["a"]);
    let waiting = tokio::spawn(async move { first.post(&body).await.status });
    // It has its place, and the engine is busy with it.
    let batch = rig.batch().await;
    let reply = second.post(&events(&["b"])).await;
    assert_eq!(reply.status, 429);
    assert!(reply.head.to_ascii_lowercase().contains("\r\nretry-after: 2\r\n"), "{}", reply.head);
    assert_eq!(rig.metrics.answers(Answer::Busy).get(), 1);
    batch.acknowledge.unwrap().send(()).unwrap();
    assert_eq!(waiting.await.unwrap(), 200);
    // On the same connection: shedding does not end it.
    assert_eq!(rig.post(&mut second, &events(&["b"])).await, (200, vec!["b".to_owned()]));
}

#[tokio::test]
async fn an_engine_that_takes_too_long_is_a_full_queue() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let mut client = rig.api_server().await;
    let body = events(&["a"]);
    let engine = async {
        let batch = rig.batch().await;
        // From here on time flies whenever all wait.
        tokio::time::pause();
        batch
    };
    let (reply, batch) = tokio::join!(client.post(&body), engine);
    tokio::time::resume();
    assert_eq!(reply.status, 429);
    assert!(batch.acknowledge.unwrap().is_closed(), "nobody waits for this any more");
    // It has the event, so that it comes once.
    assert_eq!(rig.post(&mut client, &body).await, (200, Vec::new()));
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_taken_once() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let mut client = rig.api_server().await;
    let body = events(&["a", "b"]);
    assert_eq!(rig.post(&mut client, &body).await.1, ["a", "b"]);
    assert_eq!(rig.post(&mut client, &body).await, (200, Vec::new()));
    assert_eq!(rig.metrics.duplicates.get(), 2);
    // Another stage of the same request is another event.
    let later = String::from_utf8(body).unwrap().replace("ResponseComplete", "ResponseStarted");
    assert_eq!(rig.post(&mut client, later.as_bytes()).await.1, ["a", "b"]);
}

#[tokio::test]
async fn what_is_sent_again_while_the_first_is_not_safe_is_not_answered_before_it() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let body = events(&["a"]);
    let mut gone = rig.api_server().await;
    gone.send_head(body.len()).await;
    gone.send(&body).await;
    let first = rig.batch().await;
    // The API server has given up waiting, and sends it again.
    drop(gone);
    let mut again = rig.api_server().await;
    let engine = async {
        let second = rig.batch().await;
        assert!(second.records.iter().all(|read| read.is_repeated));
        // Both reach the engine, in this order: a word about the second speaks for the first.
        drop(first);
        second.acknowledge.unwrap().send(()).unwrap();
    };
    let (reply, ()) = tokio::join!(again.post(&body), engine);
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_long_post_is_answered_when_each_of_its_batches_is_safe() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let mut client = rig.api_server().await;
    let ids: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    let body = events(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let waiting = tokio::spawn(async move { client.post(&body).await.status });
    let mut batches = Vec::new();
    while batches.iter().map(|batch: &AuditBatch| batch.records.len()).sum::<usize>() < 400 {
        batches.push(rig.batch().await);
    }
    let first = batches.remove(0).acknowledge.unwrap();
    for batch in batches {
        batch.acknowledge.unwrap().send(()).unwrap();
    }
    drop(first);
    assert_eq!(waiting.await.unwrap(), 429, "the first batch is not safe");
}

#[tokio::test]
async fn slow_and_cut_bodies_end_alone_and_can_be_sent_again() {
    let rig = Rig::limited(|limits| limits.pause = Duration::from_millis(50)).await;
    let body = events(&["a"]);
    let (head, tail) = body.split_at(body.len() / 2);

    let mut slow = rig.api_server().await;
    slow.send_head(body.len()).await;
    slow.send(head).await;
    assert_eq!(slow.reply().await.unwrap().status, 500);
    assert!(slow.is_ended().await);

    let mut rig = Rig::new(CERTIFICATE).await;
    let mut cut = rig.api_server().await;
    cut.send_head(body.len()).await;
    cut.send(head).await;
    // While that body is under way, others are taken.
    let mut other = rig.api_server().await;
    assert_eq!(rig.post(&mut other, &events(&["b"])).await.1, ["b"]);
    drop(cut);
    let counted = async {
        while rig.metrics.answers(Answer::Cut).get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::DEADLINE, counted).await.expect("the cut is not noticed");
    assert_eq!(rig.post(&mut other, &[head, tail].concat()).await.1, ["a"]);
}

#[tokio::test]
async fn when_nobody_takes_batches_any_more_the_webhook_ends() {
    let rig = Rig::new(CERTIFICATE).await;
    drop(rig.batches);
    tokio::time::timeout(super::DEADLINE, rig.task).await.expect("it goes on").unwrap();
}

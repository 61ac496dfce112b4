//! What bodies may be, and that bad ones harm nobody.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::{CERTIFICATE, Client, Rig, events, item, list};
use crate::{
    audit::{
        BadLine, SourceState,
        scan::{Interest, Scan, classify},
        webhook::{Answer, BadBody},
    },
    time::Micros,
};

/// Lines that a kube-apiserver wrote.
const REAL: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/audit/kube-apiserver.ndjson"
));

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn packed(rig: &Rig, encoding: &str) -> Client {
    let mut client = rig.api_server().await;
    client.header = format!("Content-Encoding: {encoding}\r\n");
    client
}

#[tokio::test]
async fn events_of_a_real_api_server_are_the_records_that_its_log_file_gives() {
    let records =
        REAL.lines().filter_map(|line| match classify(line.as_bytes(), &Interest::LIVE) {
            Scan::Record(record) => Some(record),
            Scan::Skip | Scan::Bad(_) => None,
        });
    let records: Vec<_> = records.collect();
    let items: Vec<Value> = REAL
        .lines()
        .map(|line| {
            let mut item: Value = serde_json::from_str(line).unwrap();
            let fields = item.as_object_mut().unwrap();
            fields.remove("kind");
            fields.remove("apiVersion");
            item
        })
        .collect();
    let newest = records.iter().map(|it| it.stage_timestamp).max();
    for encoding in ["identity", "gzip", "GZIP", "x-gzip"] {
        let mut rig = Rig::new(CERTIFICATE).await;
        let mut client = packed(&rig, encoding).await;
        let body = if encoding == "identity" { list(&items) } else { gzip(&list(&items)) };
        let (status, batches) = rig.play(client.post(&body)).await;
        assert_eq!(status, 200);
        let newest_stage = batches.last().unwrap().newest_stage;
        let taken = batches.into_iter().flat_map(|batch| batch.records);
        let taken: Vec<_> = taken.map(|read| read.record).collect();
        assert_eq!(taken, records);
        assert!(newest_stage >= newest, "{newest_stage:?}");
        assert_eq!(rig.audit.lines.get(), REAL.lines().count() as u64);
        let status = rig.status.borrow().clone();
        assert_eq!((status.state, status.newest_stage), (SourceState::Open, newest_stage));
        assert!(status.complete_at_boot_ns.is_some());
    }
}

#[tokio::test]
async fn bad_content_is_counted_and_answered_with_200_and_the_next_post_counts() {
    let torn = events(&["a", "b"]);
    let torn = &torn[..torn.len() - 5];
    let cases: [(&str, &[u8], BadBody, &[&str]); 12] = [
        ("identity", b"", BadBody::Torn, &[]),
        ("identity", b"garbage", BadBody::NotJson, &[]),
        ("identity", b"\x00\xff\xfe", BadBody::NotJson, &[]),
        ("identity", b"[]", BadBody::NotJson, &[]),
        ("identity", b"{}", BadBody::NoItems, &[]),
        ("identity", br#"{"kind":"PodList","items":[{}]}"#, BadBody::WrongKind, &[]),
        ("identity", torn, BadBody::Torn, &["a"]),
        ("gzip", b"garbage garbage", BadBody::BadEncoding, &[]),
        ("gzip", &gzip(&events(&["c"]))[..60], BadBody::BadEncoding, &[]),
        ("gzip", &gzip(torn), BadBody::Torn, &["a"]),
        ("gzip", &[gzip(b"{}"), gzip(b"{}")].concat(), BadBody::BadEncoding, &[]),
        ("br", b"{}", BadBody::BadEncoding, &[]),
    ];
    for (encoding, body, reason, expected) in cases {
        let mut rig = Rig::new(CERTIFICATE).await;
        let mut client = packed(&rig, encoding).await;
        let (status, ids) = rig.post(&mut client, body).await;
        assert_eq!(status, 200, "{reason}");
        assert_eq!(ids, expected, "{reason}");
        assert_eq!(rig.metrics.bad_bodies(reason).get(), 1, "{reason}");
        client.header.clear();
        let (status, ids) = rig.post(&mut client, &events(&["next"])).await;
        assert_eq!((status, ids), (200, vec!["next".to_owned()]));
        assert_eq!(rig.metrics.answers(Answer::Taken).get(), 2);
    }
}

#[tokio::test]
async fn a_bad_item_spoils_none_of_its_neighbours() {
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep =
        item("deep").to_string().replacen('{', &format!(r#"{{"responseObject":{nested},"#), 1);
    let mut strange = item("strange");
    strange["verb"] = json!(7);
    let mut huge = item("huge");
    huge["requestObject"] = json!("x".repeat(3 << 20));
    let body = format!(
        r#"{{"kind":"EventList","items":[{},{deep},null,{},{strange},{},{huge}]}}"#,
        item("a"),
        json!({"kind": "Event", "note": "matters to nobody"}),
        item("b"),
    );
    let mut rig = Rig::new(CERTIFICATE).await;
    let mut client = rig.api_server().await;
    let (status, ids) = rig.post(&mut client, body.as_bytes()).await;
    assert_eq!(status, 200);
    assert_eq!(ids, ["a", "deep", "b", "huge"]);
    let bad = |reason| rig.audit.bad(reason).get();
    assert_eq!(bad(BadLine::WrongShape), 1);
    assert_eq!(bad(BadLine::NotJson), 1);
    assert_eq!((rig.audit.lines.get(), rig.audit.skipped.get()), (7, 1));
    let newest = rig.status.borrow().newest_stage;
    assert_eq!(newest, Micros::parse("2026-11-21T23:50:21.014096Z"));
}

#[tokio::test]
async fn of_a_body_beyond_the_bound_the_beginning_is_taken() {
    for encoding in ["identity", "gzip"] {
        let mut rig = Rig::limited(|limits| limits.body = 100_000).await;
        let ids: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
        let body = events(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let body = if encoding == "gzip" { gzip(&body) } else { body };
        let mut client = packed(&rig, encoding).await;
        let (status, taken) = rig.post(&mut client, &body).await;
        assert_eq!(status, 200);
        assert!((100..400).contains(&taken.len()), "{}", taken.len());
        assert_eq!(taken, ids[..taken.len()]);
        assert_eq!(rig.metrics.bad_bodies(BadBody::TooLarge).get(), 1);
    }
}

#[tokio::test]
async fn a_bomb_is_unpacked_to_the_bound_and_no_further() {
    let mut rig = Rig::new(CERTIFICATE).await;
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let mut client = packed(&rig, "gzip").await;
    assert_eq!(rig.post(&mut client, &bomb).await, (200, Vec::new()));
    assert_eq!(rig.metrics.bad_bodies(BadBody::TooLarge).get(), 1);
    // A bomb of good events reaches the engine in many small batches.
    let items: Vec<_> = (0..20_000).map(|number| item(&number.to_string())).collect();
    let body = gzip(&list(&items));
    let (status, batches) = rig.play(client.post(&body)).await;
    let lengths = batches.iter().map(|batch| batch.records.len());
    assert_eq!((status, lengths.clone().sum()), (200, items.len()));
    let largest = lengths.max().unwrap();
    let bytes = item("12345").to_string().len();
    assert!(largest * bytes < 64 * 1024 + 1_032 * 512, "{largest}");
}

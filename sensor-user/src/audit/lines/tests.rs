//! What the assembler hands on, whatever the chunks.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Fit, Lines, MAX_LINE};

/// Lines of an input fed in chunks of a size, with their ends.
fn lines(input: &[u8], chunk: usize) -> (Vec<(Vec<u8>, Fit, u64)>, Lines) {
    let mut lines = Lines::new(0);
    let mut found = Vec::new();
    for mut rest in input.chunks(chunk) {
        while let Some(line) = lines.next_line(&mut rest) {
            found.push((line.bytes.to_vec(), line.fit, line.end));
        }
    }
    (found, lines)
}

#[test]
fn lines_come_with_their_ends_however_they_are_cut_into_chunks() {
    for (input, expected, complete) in [
        ("", vec![], 0),
        ("one", vec![], 0),
        ("one\n", vec![("one", 4)], 4),
        ("one\ntwo", vec![("one", 4)], 4),
        ("one\ntwo\n", vec![("one", 4), ("two", 8)], 8),
        ("\n\n", vec![("", 1), ("", 2)], 2),
        // Holes: before a line, torn into a line, at the end.
        ("\0\0\0one\n", vec![("one", 7)], 7),
        ("one\n\0\0two\n", vec![("one", 4), ("two", 10)], 10),
        ("torn\0\0two\n", vec![("torn", 4), ("two", 10)], 10),
        ("one\n\0\0", vec![("one", 4)], 6),
        ("\0\0", vec![], 2),
    ] {
        for chunk in 1..=input.len().max(1) {
            let (found, lines) = lines(input.as_bytes(), chunk);
            let found: Vec<_> = found
                .iter()
                .map(|(line, fit, end)| {
                    assert_eq!(*fit, Fit::Whole);
                    (str::from_utf8(line).unwrap(), *end)
                })
                .collect();
            assert_eq!(found, expected, "{input:?} in chunks of {chunk}");
            assert_eq!(lines.complete(), complete, "{input:?} in chunks of {chunk}");
            assert_eq!(lines.offset(), input.len() as u64);
        }
    }
}

#[test]
fn nul_bytes_are_counted_once() {
    let (_, mut lines) = lines(b"\0\0\0one\n\0two\n", 2);
    assert_eq!(lines.take_nul_bytes(), 4);
    assert_eq!(lines.take_nul_bytes(), 0);
}

#[test]
fn an_unterminated_end_is_kept_back_until_nothing_can_follow() {
    let (found, mut lines) = lines(b"one\ntw", 4);
    assert_eq!(found.len(), 1);
    assert_eq!(lines.complete(), 4);
    assert_eq!(lines.finish().unwrap().bytes, b"tw");
    assert_eq!(lines.complete(), 6);
    assert_eq!(lines.finish(), None);
}

#[test]
fn a_line_of_64_kib_is_whole_and_one_more_byte_goes_through_the_shortener() {
    for (extra, fit) in [(0, Fit::Whole), (1, Fit::TooLong)] {
        let mut input = vec![b'x'; MAX_LINE + extra];
        input.push(b'\n');
        for chunk in [input.len(), 1000] {
            let (found, _) = lines(&input, chunk);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].1, fit);
            assert_eq!(found[0].0.len(), MAX_LINE);
        }
    }
}

#[test]
fn of_a_long_line_the_bodies_go_and_the_rest_stays() {
    let pad = "x".repeat(MAX_LINE);
    let escaped = format!("\\\"}},{{\\\\{}", "\\u0041".repeat(MAX_LINE / 6));
    for body in [
        format!("\"{pad}\""),
        format!("\"{escaped}\""),
        format!("[{}1]", "[],".repeat(MAX_LINE)),
        format!("{}{}", "[".repeat(MAX_LINE), "]".repeat(MAX_LINE)),
        format!("{{\"requestURI\":\"{pad}\",\"user\":{{}},\"a\":{{\"b\":[1,\"]}}\"]}}}}"),
        format!("{{\"stageTimestamp\" : \"{pad}\"}}"),
        "9".repeat(MAX_LINE),
    ] {
        for (key, gap) in [("requestObject", ""), ("responseObject", " ")] {
            let line = format!("{{\"a\":1,\"{key}\"{gap}:{gap}{body}{gap},\"b\":{{\"c\":[2]}}}}\n");
            let (found, _) = lines(line.as_bytes(), 777);
            let [(kept, Fit::Shortened, end)] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!(*end, line.len() as u64);
            let kept: Value = serde_json::from_slice(kept).unwrap();
            assert_eq!(kept, json!({"a": 1, key: null, "b": {"c": [2]}}));
        }
    }
}

#[test]
fn what_a_client_can_make_long_does_not_hide_the_request() {
    let long = "x".repeat(1 << 20);
    let addresses: Vec<_> = (0..100_000).map(|n| format!("10.{}.{}.1", n % 256, n / 256)).collect();
    let event = json!({
        "auditID": long,
        "requestURI": format!("/api/v1/secrets?x={long}"),
        "user": {"username": "u", "extra": {"k": ["v"]}},
        "impersonatedUser": {"extra": {"many": addresses}},
        "sourceIPs": addresses,
        "userAgent": long,
        "objectRef": {"resource": "secrets", "name": long, "namespace": long},
        "responseStatus": {"message": long, "code": 403},
        "annotations": {"a": long, "b": "c"},
        "requestObject": {"spec": long},
        "stageTimestamp": "2026-11-21T23:50:21.014096Z",
    });
    // serde_json sorts keys; kube-apiserver's order puts the long ones first.
    for line in [event.to_string(), reversed(&event)] {
        let (found, _) = lines(format!("{line}\n").as_bytes(), 64 << 10);
        let [(kept, Fit::Shortened, _)] = found.as_slice() else { panic!("not usable") };
        assert!(kept.len() <= MAX_LINE);
        let kept: Value = serde_json::from_slice(kept).unwrap();
        assert_eq!(kept["user"], event["user"]);
        assert_eq!(kept["stageTimestamp"], event["stageTimestamp"]);
        assert!(kept["requestURI"].as_str().unwrap().starts_with("/api/v1/secrets?x=xxx"));
        let kept_addresses = kept["sourceIPs"].as_array().unwrap();
        assert_eq!(kept_addresses.first().unwrap(), &addresses[0]);
        assert_eq!(kept_addresses.last().unwrap(), addresses.last().unwrap());
    }
}

#[test]
fn of_a_long_line_what_rules_ask_stays_whatever_its_user_and_annotations_hold() {
    let many = |name: &str, length: usize| -> serde_json::Map<String, Value> {
        (0..3_000).map(|n| (format!("{name}-{n:04}"), json!(["v".repeat(length)]))).collect()
    };
    let with = |mut object: serde_json::Map<String, Value>, key: &str, value: Value| {
        object.insert(key.to_owned(), value);
        Value::Object(object)
    };
    let patches: serde_json::Map<String, Value> =
        many("mutation", 90).into_iter().map(|(key, it)| (key, it[0].clone())).collect();
    let groups: Vec<_> = (0..3_000).map(|n| format!("group-{n:036}")).collect();
    let reason = "RBAC: allowed by ClusterRoleBinding \"x\" of ClusterRole \"cluster-admin\"";
    let event = json!({
        "auditID": "a", "stage": "ResponseComplete", "requestURI": "/".repeat(9_000), "verb": "create",
        "user": {
            "username": "jane", "groups": groups,
            "extra": with(many("a", 9), "authentication.kubernetes.io/pod-uid", json!(["u-1"])),
        },
        "impersonatedUser": {
            "username": "y".repeat(9_000), "groups": groups,
            "extra": many("authentication.kubernetes.io/x", 90),
        },
        "sourceIPs": groups,
        "userAgent": "z".repeat(9_000),
        "objectRef": {"resource": "serviceaccounts", "name": "x".repeat(9_000), "subresource": "token"},
        "responseStatus": {"message": "x".repeat(9_000), "details": many("d", 9), "code": 201},
        "stageTimestamp": "2026-11-21T23:50:21.014096Z",
        "annotations": with(patches, "authorization.k8s.io/reason", json!(reason)),
    });
    let space = |line: String| {
        line.replace(",\"responseStatus", " , \"responseStatus").replace("],\"a-", "] , \"a-")
    };
    // kube-apiserver's order, in which the user comes early and its groups before what is extra.
    let (user, Value::Object(fields)) = (event["user"].to_string(), event["user"].clone()) else {
        panic!("{event}")
    };
    let fields = ["username", "groups", "extra"].map(|key| format!("\"{key}\":{}", fields[key]));
    let in_order = |line: String| line.replace(&user, &format!("{{{}}}", fields.join(",")));
    let keys = "auditID stage requestURI verb user impersonatedUser sourceIPs userAgent objectRef \
                responseStatus stageTimestamp annotations";
    let members = keys.split_whitespace().map(|key| format!("\"{key}\":{}", event[key]));
    let real = in_order(format!("{{{}}}", members.collect::<Vec<_>>().join(",")));
    for line in [&event.to_string(), &reversed(&event), &space(real.clone()), &real] {
        let (found, _) = lines(format!("{line}\n").as_bytes(), 64 << 10);
        let [(kept, Fit::Shortened, _)] = found.as_slice() else { panic!("not usable") };
        assert!(kept.len() <= MAX_LINE);
        let kept: Value = serde_json::from_slice(kept).unwrap();
        for pointer in [
            "/verb",
            "/user/username",
            "/user/extra/authentication.kubernetes.io~1pod-uid",
            "/objectRef/resource",
            "/objectRef/subresource",
            "/responseStatus/code",
            "/stageTimestamp",
            "/annotations/authorization.k8s.io~1reason",
        ] {
            assert_eq!(kept.pointer(pointer), event.pointer(pointer), "{pointer}");
        }
        assert!(kept["impersonatedUser"].is_object());
        if *line == real {
            assert_eq!(kept["user"]["groups"].as_array().unwrap()[..50], groups[..50]);
        }
    }
}

fn reversed(object: &Value) -> String {
    let members: Vec<_> = object
        .as_object()
        .unwrap()
        .iter()
        .rev()
        .map(|(k, v)| format!("{}:{v}", json!(k)))
        .collect();
    format!("{{{}}}", members.join(","))
}

#[test]
fn a_cut_string_ends_in_no_half_escape() {
    for escape in ["\\n", "\\u0026", "\\ud83d\\ude00", "é", "\\\\", "\\\""] {
        for shift in 0..12 {
            let text = format!("{}{}", "x".repeat(shift), escape.repeat(20_000));
            let line =
                format!("{{\"requestURI\":\"{text}\",\"pad\":\"{}\"}}\n", "y".repeat(MAX_LINE));
            let (found, _) = lines(line.as_bytes(), 4096);
            assert_eq!(found[0].1, Fit::Shortened);
            let kept = String::from_utf8_lossy(&found[0].0);
            let kept: Value = serde_json::from_str(&kept).expect(escape);
            assert!(kept["requestURI"].as_str().unwrap().len() > 1000, "{escape}");
        }
    }
}

#[test]
fn so_many_bodies_that_their_nulls_fill_the_room_are_too_long_and_no_more_is_kept() {
    for shift in 0..30 {
        let pad = " ".repeat(shift);
        let line = format!("{{{pad}{}\n", "\"requestObject\":[],".repeat(5000));
        let (found, _) = lines(line.as_bytes(), 4096);
        assert_eq!(found[0].1, Fit::TooLong);
        assert!(found[0].0.len() <= MAX_LINE);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        "[ -~é\"\\\\\u{1}\u{1f600}]{0,40}".prop_map(Value::from),
        (0usize..20_000, "[a\"\\\\\u{1f600}]").prop_map(|(n, text)| Value::from(text.repeat(n))),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,8}", inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lines_and_ends_are_those_of_a_plain_split(input in "[a\n\0]{0,200}", chunk in 1usize..50) {
        let mut at = 0;
        let mut expected = Vec::new();
        for piece in input.split_inclusive(['\n', '\0']) {
            at += piece.len() as u64;
            match piece.strip_suffix('\n') {
                Some(line) => expected.push((line.as_bytes().to_vec(), Fit::Whole, at)),
                None => if let Some(line) = piece.strip_suffix('\0') && !line.is_empty() {
                    expected.push((line.as_bytes().to_vec(), Fit::Whole, at - 1));
                },
            }
        }
        prop_assert_eq!(lines(input.as_bytes(), chunk).0, expected);
    }

    #[test]
    fn what_is_kept_of_a_long_object_is_bounded_json_and_short_values_are_untouched(
        members in prop::collection::btree_map("[a-z]{1,8}", any_json(), 0..10),
        body in any_json(),
        chunk in 1usize..70_000,
    ) {
        let short: Vec<_> =
            members.iter().filter(|(_, value)| value.to_string().len() < 64).collect();
        let mut object: serde_json::Map<_, _> =
            members.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        object.insert("responseObject".into(), body);
        object.insert("the pad".into(), "z".repeat(MAX_LINE).into());
        let line = format!("{}\n", Value::Object(object));
        let (found, _) = lines(line.as_bytes(), chunk);
        prop_assert_eq!(found.len(), 1);
        let (kept, fit, _) = &found[0];
        prop_assert_eq!(*fit, Fit::Shortened);
        prop_assert!(kept.len() <= MAX_LINE);
        let kept: Value = serde_json::from_str(&String::from_utf8_lossy(kept)).unwrap();
        prop_assert_eq!(&kept["responseObject"], &Value::Null);
        for (key, value) in short {
            prop_assert!(&kept[key] == value, "{}", key);
        }
        prop_assert!(lines(line.as_bytes(), line.len()).0 == found, "it depends on the chunks");
    }

    #[test]
    fn garbage_of_any_kind_keeps_the_bound_and_the_offsets(
        pieces in prop::collection::vec(
            prop_oneof![
                Just("{\"a\":"), Just("[,"), Just("]}"), Just("\""), Just("\\"), Just("\\u12"),
                Just("\"requestObject\":{"), Just(":"), Just(","), Just("123"), Just("é"),
            ], 0..60),
        times in 1usize..1000,
        chunk in 1usize..70_000,
    ) {
        let line = format!("{}\n", pieces.concat().repeat(times));
        let (found, lines) = lines(line.as_bytes(), chunk);
        prop_assert_eq!(found.len(), 1);
        prop_assert!(found[0].0.len() <= MAX_LINE);
        prop_assert_eq!(lines.complete(), line.len() as u64);
    }
}

#[test]
fn a_line_to_be_kept_loses_its_bodies_and_nothing_that_alerts_need() {
    let line = json!({
        "requestObject": {"a": "x".repeat(9_000)},
        "user": {"username": "jane", "groups": vec!["a"; 9_000]},
        "impersonatedUser": {"username": "x".repeat(9_000)},
        "stageTimestamp": "2026-11-21T23:50:21.014096Z",
    });
    let kept: Value =
        serde_json::from_slice(&super::without_bodies(line.to_string().as_bytes())).unwrap();
    let mut expected = line;
    expected["requestObject"] = Value::Null;
    assert_eq!(kept, expected);
    assert_eq!(&*super::without_bodies(b"{}"), b"{}");
}

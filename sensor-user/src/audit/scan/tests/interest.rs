//! Lines that are looked for by pod name or as TokenRequests, as nasty as JSON allows, against a
//! full parse. `cargo xtask fuzz scan` is the longer look.

use proptest::prelude::*;
use serde_json::Value;

use super::{super::*, recorded, spelled};

/// Names that are looked for. The last two are none that Kubernetes allows.
const KNOWN: [&str; 4] = ["cart-0", "till-1", "", "caf\u{e9}"];

fn interest<T>(look: impl FnOnce(&Interest<'_>) -> T) -> T {
    let known = |name: &str| KNOWN.contains(&name);
    look(&Interest {
        pods: Pods::Named(&known),
        accounts: Users::None,
        sessions: false,
        token_requests: Users::Named(&|name| name != "kubelet"),
        canaries: false,
        received_may_lack: true,
    })
}

#[test]
fn of_real_lines_those_of_named_pods_and_token_requests_are_decoded_and_no_others() {
    for (lines, pod, token) in [
        (recorded!("pod-allowed"), true, false),
        (recorded!("pod-watch"), true, false),
        (recorded!("token-request-user"), false, true),
        (recorded!("token-request-kubelet"), false, true),
        (recorded!("impersonation"), false, false),
        (recorded!("exec-websocket"), false, false),
        (recorded!("unauthorized"), false, false),
    ] {
        for line in lines.lines() {
            let glance = interest(|interest| glance(line.as_bytes(), interest));
            // The request that follows with the minted token has neither.
            let wanted = pod || (token && line.contains("\"token\""));
            let expected = if wanted { Glance::Decode } else { Glance::Skip };
            assert_eq!(glance, expected, "{line}");
            let stage = serde_json::from_str::<Value>(line).unwrap()["stageTimestamp"].clone();
            assert_eq!(stage_timestamp(line.as_bytes()), stage.as_str().and_then(Micros::parse));
        }
    }
}

#[test]
fn the_words_elsewhere_do_not_make_a_line_of_interest() {
    let plain = r#""stageTimestamp":"2026-11-21T23:50:21.010116Z"}"#;
    for (front, expected) in [
        // A TokenReview's answer, a URI, an annotation, a name in a body.
        (
            r#"{"responseObject":{"extra":{"authentication.kubernetes.io/pod-name":["cart-9"]}},"#,
            Glance::Skip,
        ),
        (r#"{"requestURI":"/x?authentication.kubernetes.io/pod-name","#, Glance::Decode),
        (
            r#"{"annotations":{"a":"\"authentication.kubernetes.io/pod-name\":[\"cart-0\"]"},"#,
            Glance::Decode,
        ),
        (
            r#"{"user":{"username":"jane"},"objectRef":{"resource":"serviceaccounts","subresource":"token"},"#,
            Glance::Decode,
        ),
        (r#"{"objectRef":{"resource":"serviceaccounts","name":"token"},"#, Glance::Skip),
        (r#"{"userAgent":"subresource token","#, Glance::Skip),
        (
            r#"{"requestURI":"/a?b\u0026c","userAgent":"a\u003cb","annotations":{"r":"\"x\""},"#,
            Glance::Skip,
        ),
        (r#"{"userAgent":"\u0061","#, Glance::Decode),
    ] {
        let line = format!("{front}{plain}");
        assert_eq!(interest(|it| glance(line.as_bytes(), it)), expected, "{line}");
        // A decoded line of these is only ever of interest for its TokenRequest.
        let record =
            interest(|it| decode(line.replace("{\"", "{\"stage\":\"Panic\",\"").as_bytes(), it));
        assert_eq!(record.unwrap().is_some(), front.contains("subresource\":\"token"), "{line}");
    }
}

#[test]
fn a_stage_time_is_only_taken_where_it_is_the_only_one() {
    let at = Micros::parse("2026-11-21T23:50:21.014096Z");
    for (line, expected) in [
        (r#"{"stageTimestamp":"2026-11-21T23:50:21.014096Z"}"#, at),
        (r#"{"stageTimestamp" : "2026-11-21T23:50:21.014096Z"}"#, at),
        (
            r#"{"stageTimestamp":"2026-11-21T23:50:21.014096Z","responseObject":{"stageTimestamp":"2099-01-01T00:00:00.000000Z"}}"#,
            None,
        ),
        (
            r#"{"stageTimestam\u0070":"2026-11-21T23:50:21.014096Z","responseObject":{"stageTimestamp":"2099-01-01T00:00:00.000000Z"}}"#,
            None,
        ),
        (r#"{"stageTimestamp":null}"#, None),
        (r#"{"stageTimestamp":"0001-01-01T00:00:00.000000Z"}"#, None),
        ("{}", None),
    ] {
        assert_eq!(stage_timestamp(line.as_bytes()), expected, "{line}");
    }
}

#[test]
fn pods_are_looked_for_by_uid_too() {
    let uid = "1ea46c86-1147-4be1-87fb-a5cf75e8c8dd";
    for (wanted, glance_is) in [(uid, Glance::Decode), ("another", Glance::Skip)] {
        let known = |uid: &str| uid == wanted;
        let interest = Interest {
            pods: Pods::WithUid(&known),
            accounts: Users::None,
            sessions: false,
            token_requests: Users::None,
            canaries: false,
            received_may_lack: false,
        };
        for line in recorded!("pod-allowed").lines() {
            assert_eq!(glance(line.as_bytes(), &interest), glance_is);
            let record = decode(line.as_bytes(), &interest).unwrap();
            assert_eq!(record.is_some(), glance_is == Glance::Decode);
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        spelled("cart-0"),
        spelled("cart-9"),
        Just("till-1".to_owned()),
        Just(String::new()),
        Just("caf\u{e9}".to_owned()),
        Just("caf\\u00e9".to_owned()),
        Just("\\u00e9\\ud83d\\ude00".to_owned()),
        Just("a]\\\"".to_owned()),
    ]
}

fn names() -> impl Strategy<Value = String> {
    let quoted = name().prop_map(|name| format!("\"{name}\"")).boxed();
    let element = prop_oneof![8 => quoted.clone(), 1 => Just("null".to_owned())];
    prop_oneof![
        4 => quoted.clone().prop_map(|name| format!("[{name}]")),
        1 => quoted,
        1 => Just("null".to_owned()),
        2 => (prop::collection::vec(element, 0..4), spaces())
            .prop_map(|(names, space)| format!("[{space}{}{space}]", names.join(","))),
    ]
}

fn spaces() -> impl Strategy<Value = &'static str> {
    prop_oneof![6 => Just(""), 1 => Just(" "), 1 => Just("\t \r")]
}

/// `"key": value`, with the key and the space in any spelling.
fn member(
    key: &'static str,
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    (spelled(key), spaces(), spaces(), value)
        .prop_map(|(key, before, after, value)| format!("\"{key}\"{before}:{after}{value}"))
}

fn object(members: Vec<BoxedStrategy<String>>) -> impl Strategy<Value = String> {
    // Each there or not, in any order.
    let members: Vec<_> = members.into_iter().map(|it| prop::option::weighted(0.9, it)).collect();
    (members, any::<prop::sample::Index>()).prop_map(|(members, turn)| {
        let mut members: Vec<_> = members.into_iter().flatten().collect();
        if !members.is_empty() {
            let turn = turn.index(members.len());
            members.rotate_left(turn);
        }
        format!("{{{}}}", members.join(","))
    })
}

fn user() -> impl Strategy<Value = String> {
    let extra = object(vec![
        member(POD_NAME, names()).boxed(),
        member("authentication.kubernetes.io/pod-uid", Just("[\"u-1\"]".to_owned())).boxed(),
    ]);
    let name = prop_oneof![spelled("jane"), spelled("kubelet"), Just(String::new())]
        .prop_map(|name| format!("\"{name}\""));
    object(vec![member("username", name).boxed(), member("extra", extra).boxed()])
}

fn object_ref() -> impl Strategy<Value = String> {
    let text = |text: &'static str| spelled(text).prop_map(|text| format!("\"{text}\""));
    let resource = prop_oneof![text("serviceaccounts"), text("pods")];
    let sub = prop_oneof![text("token"), text("status"), Just("null".to_owned())];
    object(vec![member("resource", resource).boxed(), member("subresource", sub).boxed()])
}

fn time() -> impl Strategy<Value = String> {
    (10..60).prop_map(|second| format!("\"2026-11-21T23:50:{second}.010116Z\""))
}

fn line() -> impl Strategy<Value = String> {
    let decoy = object(vec![
        member("user", user()).boxed(),
        member("stageTimestamp", time()).boxed(),
        member("objectRef", object_ref()).boxed(),
    ])
    .boxed();
    let text = prop_oneof![
        Just("authentication.kubernetes.io/pod-name\\\":[\\\"cart-0\\\"]".to_owned()),
        Just("\\\"subresource\\\":\\\"token\\\"".to_owned()),
        Just("a\\u0026b\\u003c\\\\u0063".to_owned()),
        Just("{\\\"stageTimestamp\\\":\\\"2026-11-21T23:50:10.000000Z\\\"}".to_owned()),
    ]
    .prop_map(|text| format!("\"{text}\""))
    .boxed();
    object(vec![
        member("user", user()).boxed(),
        member("impersonatedUser", user()).boxed(),
        member("requestObject", decoy.clone()).boxed(),
        member("userAgent", text.clone()).boxed(),
        member("objectRef", object_ref()).boxed(),
        member("stageTimestamp", time()).boxed(),
        member("responseObject", decoy).boxed(),
        member("requestURI", text).boxed(),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_a_full_parse_finds_is_never_skipped(line in line()) {
        let whole = line.replacen('{', "{\"stage\":\"Panic\",", 1).replace(",}", "}");
        crate::fuzzing::scan(whole.as_bytes());
    }
}

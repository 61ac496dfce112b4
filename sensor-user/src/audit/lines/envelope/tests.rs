//! What is unwrapped of which line, however it is cut into chunks.

use std::{fs, path::Path};

use serde_json::json;

use crate::audit::{
    BadLine,
    lines::{Fit, Line, Lines, MAX_LINE},
};

/// What lines hand on, of an input in chunks of this size: text, or why there is none.
fn handed_on(input: &[u8], chunk: usize) -> Vec<Result<String, BadLine>> {
    let mut lines = Lines::new(0);
    let mut found = Vec::new();
    let text = |line: &Line<'_>| match line.fault() {
        Some(fault) => Err(fault),
        None => Ok(str::from_utf8(line.bytes).unwrap().trim_end().to_owned()),
    };
    for mut rest in input.chunks(chunk) {
        while let Some(line) = lines.next_line(&mut rest) {
            found.push(text(&line));
        }
    }
    found.extend(lines.finish().as_ref().map(text));
    assert_eq!(lines.finish(), None);
    assert_eq!(lines.complete(), input.len() as u64);
    found
}

fn fixture(path: &str) -> String {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
    fs::read_to_string(folder.join(path)).unwrap()
}

#[test]
fn what_a_cloud_delivers_is_handed_on_as_the_api_server_wrote_it() {
    let plain = fixture("audit/pod-allowed.ndjson") + &fixture("audit/token-request-user.ndjson");
    let expected: Vec<_> = plain.lines().map(|line| Ok(line.to_owned())).collect();
    for form in [
        "aks-record",
        "aks-records",
        "cloudwatch-events",
        "cloudwatch-event",
        "cloudwatch-subscription",
        "aws-logs-tail",
        "aws-logs-tail-short",
    ] {
        let wrapped = fixture(&format!("wrapped/{form}.ndjson"));
        for chunk in (1..40).chain([1_000, 4_096, wrapped.len()]) {
            let mut found = handed_on(wrapped.as_bytes(), chunk);
            // A subscription begins with a message that carries none: it is handed on as it is.
            let control = found
                .iter()
                .position(|line| line.as_ref().is_ok_and(|it| it.contains("CONTROL_MESSAGE")));
            assert_eq!(control, (form == "cloudwatch-subscription").then_some(0));
            if control.is_some() {
                drop(found.remove(0));
            }
            assert_eq!(found, expected, "{form} in chunks of {chunk}");
        }
    }
}

#[test]
fn entries_of_google_cloud_are_known_for_what_they_are() {
    let entries = fixture("wrapped/google-cloud-audit.ndjson");
    for chunk in [1, 7, entries.len()] {
        let found = handed_on(entries.as_bytes(), chunk);
        assert!(found.len() > 1 && found.iter().all(|it| *it == Err(BadLine::CloudAudit)));
    }
}

#[test]
fn what_is_handed_on_of_a_line() {
    let itself = |line: &str| vec![Ok(line.to_owned())];
    let events = |events: &[&str]| events.iter().map(|it| Ok((*it).to_owned())).collect();
    let torn = |whole: &[&str]| {
        let mut found: Vec<_> = events(whole);
        found.push(Err(BadLine::NotJson));
        found
    };
    for (line, expected) in [
        // No event in it.
        (r#"{"kind":"Event","message":"{}"}"#, itself(r#"{"kind":"Event","message":"{}"}"#)),
        (
            r#"{"level":"Metadata","kind":"Event"}"#,
            itself(r#"{"level":"Metadata","kind":"Event"}"#),
        ),
        (
            r#"{"message":"I1125 12:55:19 started"}"#,
            itself(r#"{"message":"I1125 12:55:19 started"}"#),
        ),
        (r#"{"message":{"a":"{}"}}"#, itself(r#"{"message":{"a":"{}"}}"#)),
        (r#"{"message":["{}"]}"#, itself(r#"{"message":["{}"]}"#)),
        (r#"{"annotations":{"message":"{}"}}"#, itself(r#"{"annotations":{"message":"{}"}}"#)),
        (r#"{"a":"message","b":"{}"}"#, itself(r#"{"a":"message","b":"{}"}"#)),
        (r#"{"items":[{"message":"{}"}]}"#, itself(r#"{"items":[{"message":"{}"}]}"#)),
        (r#"{"messages":"{}","log_":"{}"}"#, itself(r#"{"messages":"{}","log_":"{}"}"#)),
        (r#"{"message":"{}"#, itself(r#"{"message":"{}"#)),
        ("garbage", itself("garbage")),
        ("{", itself("{")),
        // One or more.
        (r#"{"message":"{}"}"#, events(&["{}"])),
        (r#"{"log":"  {\"a\":1}\n"}"#, events(&[r#"{"a":1}"#])),
        (r#"{"lo\u0067":"\u007b}"}"#, events(&["{}"])),
        (
            r#" { "x" : [ {"log":"{no}"} ] , "log" : "{}" } "#,
            itself(r#" { "x" : [ {"log":"{no}"} ] , "log" : "{}" }"#),
        ),
        (r#"{"x":[{"log":"{no}"}],"log":"{}"}"#, events(&["{}"])),
        (
            r#"{"properties":{"log":"{1}","x":{"log":"{no}"}},"message":"{2}"}"#,
            events(&["{1}", "{2}"]),
        ),
        (
            r#"{"records":[{"properties":{"log":"{1}"}},{"log":"text"},{"log":"{2}"}],"x":1}"#,
            events(&["{1}", "{2}"]),
        ),
        (r#"{"logEvents":[],"events":[{"message":"{1}"}]}"#, events(&["{1}"])),
        // Documents that nothing separates, as a delivery stream puts them together.
        (
            r#"{"logEvents":[{"message":"{1}"}]}{"logEvents":[{"message":"{2}"}]}"#,
            events(&["{1}", "{2}"]),
        ),
        // Escapes of all kinds.
        (
            r#"{"log":"{\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\u0041}"}"#,
            events(&["{\"\\/\u{8}\u{c}\n\r\té😀A}"]),
        ),
        (r#"{"log":"{\ud83d}"}"#, events(&["{\u{fffd}}"])),
        (r#"{"log":"{\ud83d\ud83d\ude00\ude00x}"}"#, events(&["{\u{fffd}😀\u{fffd}x}"])),
        // Not to its end.
        (r#"{"records":[{"log":"{1}"},{"log":"{2"#, torn(&["{1}"])),
        (r#"{"records":[{"log":"{1}"}]"#, torn(&["{1}"])),
        // What stands before an event.
        (r#"2026-11-25T12:55:19 {"kind":"Event"}"#, itself(r#"{"kind":"Event"}"#)),
        (
            r#"2026-11-25T12:55:19 {"message":"{}"}"#,
            itself(r#"2026-11-25T12:55:19 {"message":"{}"}"#),
        ),
        (r#"5Z"}{"kind":"Event"}"#, itself(r#"5Z"}{"kind":"Event"}"#)),
        (r#"5{"kind":"Event"}"#, itself(r#"5{"kind":"Event"}"#)),
    ] {
        for chunk in 1..=line.len() {
            assert_eq!(handed_on(line.as_bytes(), chunk), expected, "{line} in chunks of {chunk}");
            let ended = format!("{line}\n");
            assert_eq!(handed_on(ended.as_bytes(), chunk), expected, "{line} in chunks of {chunk}");
        }
    }
}

#[test]
fn of_a_long_document_each_event_is_handed_on_and_of_a_long_event_what_is_kept_of_a_long_line() {
    let event = |number: u32| format!(r#"{{"kind":"Event","auditID":"{number}"}}"#);
    let body = "x".repeat(MAX_LINE);
    let long = format!(r#"{{"kind":"Event","requestObject":"{body}","auditID":"long"}}"#);
    let too_long =
        format!(r#"{{"kind":"Event",{}"auditID":"long"}}"#, r#""a":1,"#.repeat(MAX_LINE));
    let mut events: Vec<_> = (0..5_000).map(event).collect();
    events.insert(17, long);
    events.insert(18, too_long);
    let records: Vec<_> = events.iter().map(|it| json!({"properties": {"log": it}})).collect();
    let document = json!({"records": records}).to_string() + "\n";
    for chunk in [997, 64 << 10, document.len()] {
        let mut found = handed_on(document.as_bytes(), chunk);
        assert_eq!(found.remove(18), Err(BadLine::TooLong));
        let shortened = r#"{"kind":"Event","requestObject":null,"auditID":"long"}"#;
        assert_eq!(found.remove(17).as_deref(), Ok(shortened));
        assert!(found.into_iter().eq((0..5_000).map(event).map(Ok)), "in chunks of {chunk}");
    }
}

#[test]
fn a_long_line_that_carries_nothing_is_what_it_was_before_there_were_envelopes() {
    let body = "x".repeat(MAX_LINE);
    let line = format!(r#"{{"kept":1,"log":"text","kind":"Event","responseObject":"{body}"}}"#);
    let lead = format!(r#"2026-11-25T12:55:19 {{"kind":"Event","responseObject":"{body}"}}"#);
    for chunk in [1_000, 64 << 10, 1 << 20] {
        let kept = r#"{"kept":1,"log":"text","kind":"Event","responseObject":null}"#;
        assert_eq!(handed_on(line.as_bytes(), chunk), [Ok(kept.to_owned())]);
        let kept = r#"{"kind":"Event","responseObject":null}"#;
        assert_eq!(handed_on(lead.as_bytes(), chunk), [Ok(kept.to_owned())]);
    }
}

#[test]
fn a_position_is_behind_whole_lines_alone_however_many_events_were_handed_on() {
    let first = r#"{"records":[{"log":"{1}"},"#;
    let rest = "{\"log\":\"{2}\"}]}\n{\"log\":\"{3}\"}\n";
    let mut lines = Lines::new(100);
    let mut chunk = first.as_bytes();
    let line = lines.next_line(&mut chunk).unwrap();
    assert_eq!((line.bytes, line.fit, line.carried), (&b"{1}"[..], Fit::Whole, true));
    assert_eq!(lines.next_line(&mut chunk), None);
    assert_eq!((lines.complete(), lines.offset()), (100, 100 + first.len() as u64));
    let mut chunk = rest.as_bytes();
    assert_eq!(lines.next_line(&mut chunk).unwrap().bytes, b"{2}");
    assert_eq!(lines.complete(), 100);
    assert_eq!(lines.next_line(&mut chunk).unwrap().bytes, b"{3}");
    assert_eq!(lines.next_line(&mut chunk), None);
    assert_eq!(lines.complete(), 100 + (first.len() + rest.len()) as u64);
}

//! Recorded opens and audit logs through `tokentrail replay`: from the fixtures, from what `run`
//! recorded, compressed, through a pipe, soiled, mixed up.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails as the test does; what a document lacks is null"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, read::GzEncoder};
use serde_json::Value;
use tokentrail_tests::{Alerts, Finished, Node, Sandbox, tokentrail};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");
const OPENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/opens/cart-0.ndjson");

fn audit(name: &str) -> String {
    format!("{FIXTURES}/audit/{name}.ndjson")
}

fn replay(sandbox: &Sandbox, args: &[&str]) -> Finished {
    sandbox.run(tokentrail().arg("replay").args(args)).unwrap()
}

/// What was written to the file; each document is held against the schema, each id is there once.
fn documents(path: &Path) -> Vec<Value> {
    let documents = Alerts::at(path).all().unwrap();
    let place = |it: &Value| format!("{}{}", it["@timestamp"], it["event"]["id"]);
    assert!(documents.is_sorted_by_key(place), "{documents:#?}");
    documents
}

fn told(documents: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let tell = |it: &Value| {
        let rule = text(&it["rule"]["id"]);
        format!("{} {rule} {}", text(&it["@timestamp"]), text(&it["tokentrail"]["kind"]))
    };
    documents.iter().map(tell).collect()
}

const R1: &str = "token-access-then-api-request";
const R2: &str = "token-request-by-user";

#[test]
fn recorded_files_give_the_alerts_of_either_semantics() {
    let sandbox = Sandbox::create().unwrap();
    let output = sandbox.folder().join("alerts.ndjson");
    let (pod, user) = (audit("pod-allowed"), audit("token-request-user"));
    for (semantics, expected) in [
        // By the stage; each stage of a TokenRequest by itself.
        (
            "elastic",
            vec![
                format!("2026-11-25T12:55:19.643960Z {R1} alert"),
                format!("2026-11-25T12:55:21.307428Z {R2} alert"),
                format!("2026-11-25T12:55:21.311085Z {R2} alert"),
            ],
        ),
        // By the receipt; one alert and one summary an incident.
        (
            "live",
            vec![
                format!("2026-11-25T12:55:19.640317Z {R1} alert"),
                format!("2026-11-25T12:55:19.640317Z {R1} incident"),
                format!("2026-11-25T12:55:21.307428Z {R2} alert"),
                format!("2026-11-25T12:55:21.307428Z {R2} incident"),
            ],
        ),
    ] {
        let path = output.to_str().unwrap();
        let args = ["--semantics", semantics, "--opens", OPENS, "--audit", &pod, &user, "-o", path];
        let finished = replay(&sandbox, &args);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(finished.output, "");
        let documents = documents(&output);
        let mut found = told(&documents);
        found.sort();
        assert_eq!(found, expected, "{semantics}");
        let sequence = documents.iter().find(|it| it["rule"]["id"] == R1).unwrap();
        assert_eq!(sequence["event"]["start"], "2026-11-25T12:55:19.112358Z");
        assert_eq!(sequence["event"]["end"], sequence["@timestamp"]);
        assert_eq!(sequence["orchestrator"]["resource"]["name"], "cart-0");
        assert_eq!(sequence["host"]["name"], "node-b");
        // Elasticsearch's rules look at one of the opens only.
        let of_use = if semantics == "elastic" { (1, 4) } else { (2, 4) };
        for text in [
            format!("3 documents of opens ({} of use)", of_use.0),
            format!("6 audit events ({} of use)", of_use.1),
        ] {
            assert!(finished.errors.contains(&text), "{text:?} is not in {finished:?}");
        }
        // To standard output the same, and nothing else.
        let args: Vec<&str> = args[..args.len() - 2].to_vec();
        let again = replay(&sandbox, &args);
        let without_created = |line: &str| {
            let mut document: Value = serde_json::from_str(line).unwrap();
            document["event"]["created"] = Value::Null;
            document
        };
        let text = fs::read_to_string(&output).unwrap();
        assert!(again.output.lines().map(without_created).eq(text.lines().map(without_created)));
        fs::remove_file(&output).unwrap();
    }
}

#[test]
fn what_run_recorded_replays_to_the_same_incidents() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    let alert = node.wait_for("alert", &victim.pod).unwrap();
    agent.terminate().unwrap();
    let output = sandbox.folder().join("replayed.ndjson");
    let mut command = tokentrail();
    command.arg("replay").arg("--opens").arg(sandbox.folder().join("opens.ndjson"));
    command.arg("--audit").arg(node.audit.path()).arg("-o").arg(&output);
    let finished = sandbox.run(&mut command).unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let replayed = documents(&output);
    let same = replayed.iter().find(|it| it["event"]["id"] == alert["event"]["id"]);
    let same = same.unwrap_or_else(|| panic!("{alert:#} is not among {replayed:#?}"));
    for field in
        ["@timestamp", "message", "rule", "process", "file", "kubernetes", "user", "container"]
    {
        assert_eq!(same[field], alert[field], "{field}");
    }
    assert_eq!(same["tokentrail"]["incident"]["id"], alert["tokentrail"]["incident"]["id"]);
    assert_eq!(same["tokentrail"]["grade"], "interactive");
}

#[test]
fn compressed_files_and_standard_input_are_read_as_they_are() {
    let sandbox = Sandbox::create().unwrap();
    let text = fs::read(audit("pod-allowed")).unwrap();
    // No suffix says what they are.
    let [gz, zst] = ["one", "two"].map(|name| sandbox.folder().join(name));
    let mut packed = Vec::new();
    std::io::copy(&mut GzEncoder::new(text.as_slice(), Compression::fast()), &mut packed).unwrap();
    fs::write(&gz, packed).unwrap();
    fs::write(&zst, zstd_frame(&text)).unwrap();
    let output = sandbox.folder().join("alerts.ndjson");
    let path = output.to_str().unwrap();
    for file in [&gz, &zst] {
        let file = file.to_str().unwrap();
        let args = ["--semantics", "elastic", "--opens", OPENS, "--audit", file, "-o", path];
        let finished = replay(&sandbox, &args);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(documents(&output).len(), 1, "{file}");
    }
    let mut piped = tokentrail();
    piped.args(["replay", "--semantics", "elastic", "--opens", OPENS, "--audit", "-"]);
    let finished = sandbox.run_with_input(&mut piped, &String::from_utf8(text).unwrap()).unwrap();
    assert_eq!((finished.code, finished.output.lines().count()), (Some(0), 1), "{finished:?}");
    // The opens, too, which else are read twice.
    for semantics in ["elastic", "live"] {
        let args = ["--semantics", semantics, "--audit", &audit("pod-allowed"), "--opens"];
        let expected = replay(&sandbox, &[&args[..], &[OPENS]].concat()).output.lines().count();
        let mut piped = tokentrail();
        piped.arg("replay").args(args).arg("-");
        let opens = fs::read_to_string(OPENS).unwrap();
        let finished = sandbox.run_with_input(&mut piped, &opens).unwrap();
        assert!(expected > 0);
        assert_eq!((finished.code, finished.output.lines().count()), (Some(0), expected));
    }
}

/// The bytes as one zstd frame of raw blocks: no compressor is needed for that.
fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    // Magic number; a single segment whose size takes four bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    // A block's head: its size, its kind (raw), and whether it is the last.
    let head = u32::try_from(bytes.len()).unwrap() << 3 | 1;
    frame.extend(&head.to_le_bytes()[..3]);
    frame.extend(bytes);
    frame
}

#[test]
fn a_progress_bar_is_for_terminals_only() {
    let sandbox = Sandbox::create().unwrap();
    let pod = audit("pod-allowed");
    let piped = replay(&sandbox, &["--opens", OPENS, "--audit", &pod]);
    assert!(!piped.errors.contains('\u{1b}') && !piped.errors.contains('\r'), "{piped:?}");
    let mut command = tokentrail();
    command.args(["replay", "--opens", OPENS, "--audit", &pod, "-o", "/dev/null"]);
    let shown = sandbox.run_with_terminal(&mut command).unwrap();
    assert!(shown.output.contains("\u{1b}["), "{shown:?}");
}

#[test]
fn dirt_is_counted_and_hides_nothing() {
    let sandbox = Sandbox::create().unwrap();
    let real = fs::read_to_string(audit("pod-allowed")).unwrap();
    let answer = real.lines().last().unwrap();
    let audit = sandbox.folder().join("audit.log");
    let mut dirt = Vec::new();
    for piece in [
        &b""[..],
        b"garbage",
        b"\x7fELF\x01\x02\xff\xfe",
        b"[1,2,3]",
        b"{\"kind\":\"Event\",\"authentication.kubernetes.io/pod-name\":[\"cart-0\"]",
        answer.replace("\"list\"", "7").as_bytes(),
        answer.replacen('{', "{\"user\":{},", 1).as_bytes(),
        answer.replace("2026-11-25T12:55:19.643960Z", "0001-01-01T00:00:00.000000Z").as_bytes(),
        answer.replace("2026-11-25T12:55:19", "2099-11-25T12:55:19").as_bytes(),
        answer.replace("\"Event\"", "\"Pod\"").as_bytes(),
        "[".repeat(200_000).as_bytes(),
        b"\0\0\0\0\0\0",
    ] {
        dirt.extend_from_slice(piece);
        dirt.push(b'\n');
    }
    dirt.extend_from_slice(answer.as_bytes());
    fs::write(&audit, &dirt).unwrap();
    let opens = sandbox.folder().join("opens");
    let good = fs::read_to_string(OPENS).unwrap();
    fs::write(&opens, format!("\n{{\n5\n\"a\"\n{good}{{\"event\":{{}},\"event\":{{}}}}\n"))
        .unwrap();
    for semantics in ["elastic", "live"] {
        let finished = replay(
            &sandbox,
            &[
                "--semantics",
                semantics,
                "--opens",
                opens.to_str().unwrap(),
                "--audit",
                audit.to_str().unwrap(),
            ],
        );
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let alerts =
            finished.output.lines().filter(|line| line.contains("\"kind\":\"alert\",\"module"));
        assert_eq!(alerts.filter(|line| line.contains(R1)).count(), 1, "{finished:?}");
        for reason in ["blank: ", "not_json: ", "wrong_shape: ", "bad_time: "] {
            assert!(finished.errors.contains(reason), "{reason} is not in {finished:?}");
        }
    }
}

#[test]
fn what_cannot_be_replayed_is_one_clear_error() {
    let sandbox = Sandbox::create().unwrap();
    let pod = audit("pod-allowed");
    let missing = sandbox.folder().join("no-such.ndjson");
    let missing = missing.to_str().unwrap();
    for (args, code, says) in [
        (vec!["--opens", &pod, "--audit", &pod], 2, "give it with --audit"),
        (vec!["--audit", OPENS], 2, "give it with --opens"),
        (vec!["--audit", &pod, "-o", &pod], 2, "give another file with --output"),
        (vec!["--opens", "-", "--audit", "-"], 2, "standard input can be given once"),
        (vec!["--opens", OPENS], 2, "--audit"),
        (vec!["--audit", &pod, "--lateness", "soon"], 2, "--lateness"),
        (vec!["--audit", &pod, "--semantics", "kibana"], 2, "elastic"),
        (vec!["--audit", missing], 1, "no-such.ndjson"),
        (vec!["--audit", &pod, "-o", "/no/such/folder/alerts"], 1, "/no/such/folder/alerts"),
    ] {
        let refused = replay(&sandbox, &args);
        assert_eq!(refused.code, Some(code), "{args:?}: {refused:?}");
        assert!(refused.errors.contains(says), "{says:?} is not in {refused:?}");
        assert_eq!(refused.output, "");
    }
    let left: Vec<PathBuf> =
        fs::read_dir(sandbox.folder()).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(left.len(), 1, "only the kubelet's directory: {left:?}");
}

#[test]
fn a_cut_archive_is_told_and_what_is_in_it_is_used() {
    let sandbox = Sandbox::create().unwrap();
    let real = fs::read_to_string(audit("pod-allowed")).unwrap();
    let mut packed = Vec::new();
    let text = real.clone() + &real.repeat(50);
    std::io::copy(&mut GzEncoder::new(text.as_bytes(), Compression::none()), &mut packed).unwrap();
    packed.truncate(packed.len() - 50);
    let cut = sandbox.folder().join("audit.log.gz");
    fs::write(&cut, packed).unwrap();
    let mut command: Command = tokentrail();
    command.args(["replay", "--semantics", "elastic", "--opens", OPENS, "--audit"]).arg(&cut);
    let finished = sandbox.run(&mut command).unwrap();
    assert_eq!((finished.code, finished.output.lines().count()), (Some(1), 1), "{finished:?}");
    assert!(finished.errors.contains("not read to its end"), "{finished:?}");
    assert!(finished.errors.contains("audit.log.gz"), "{finished:?}");
}

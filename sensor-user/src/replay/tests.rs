//! Whole replays of files under Elasticsearch's semantics: against a model, and what dirt does.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{document::Writer, output::Target, semantics::elastic::ElasticSemantics, *};
use crate::{alert::document::Origin, attribution::pods::PodIndex, audit::POD_NAME};

mod live;

const SECOND: i64 = 1_000_000;

fn at(text: &str) -> Micros {
    Micros::parse(text).unwrap()
}

fn time(at: i64) -> String {
    let start = self::at("2026-01-01T00:00:00Z");
    (start + Micros(at)).to_string()
}

fn open(at: i64, pod: &str) -> String {
    let document = json!({
        "@timestamp": time(at),
        "host": {"os": {"type": "linux"}},
        "event": {"category": ["file"], "type": ["change"], "action": "open"},
        "file": {"path": "/var/run/secrets/kubernetes.io/serviceaccount/token"},
        "process": {"interactive": true, "name": "cat"},
        "container": {"id": "c-1"},
        "orchestrator": {"namespace": "shop", "resource": {"name": pod}},
    });
    document.to_string()
}

fn answer(at: i64, pod: &str) -> String {
    let event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "auditID": format!("{at}-{pod}"),
        "stage": "ResponseComplete", "verb": "list", "requestURI": "/api/v1/pods",
        "user": {"username": "system:serviceaccount:shop:till", "extra": {POD_NAME: [pod]}},
        "requestReceivedTimestamp": time(at), "stageTimestamp": time(at),
    });
    event.to_string()
}

fn writer() -> Writer {
    Writer {
        cluster: String::new(),
        origin: Origin {
            cluster_name: None,
            node_name: String::new(),
            host_id: None,
            agent_id: "test".to_owned(),
            route: "none".to_owned(),
            degraded: Vec::new(),
        },
        pods: PodIndex::default(),
        now: Micros(0),
    }
}

fn semantics() -> ElasticSemantics {
    ElasticSemantics::new(writer())
}

/// The documents, and what became of the lines.
fn replay(chunk: usize, opens: &[&Path], audit: &[&Path]) -> (Vec<Value>, Summary) {
    replay_with(&mut semantics(), 5, chunk, opens, audit)
}

fn replay_with(
    semantics: &mut dyn Semantics,
    lateness: i64,
    chunk: usize,
    opens: &[&Path],
    audit: &[&Path],
) -> (Vec<Value>, Summary) {
    let paths = |paths: &[&Path]| paths.iter().map(|path| path.to_path_buf()).collect();
    let (lateness, latest) = (Micros::from_secs(lateness), at("2030-01-01T00:00:00Z"));
    let files = Files { opens: paths(opens), audit: paths(audit), lateness, latest };
    let mut sorted = Sorted::new(None);
    let progress = ProgressBar::hidden();
    let summary = run_in_chunks(chunk, &files, semantics, &mut sorted, &progress).unwrap();
    let mut written = Vec::new();
    sorted.write_to(&mut written).unwrap();
    let documents = written.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (documents.map(|line| serde_json::from_slice(line).unwrap()).collect(), summary)
}

/// Open and request of each document, and the pod.
fn joined(documents: &[Value]) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut joined: Vec<_> = documents
        .iter()
        .map(|it| {
            assert_eq!(it["@timestamp"], it["event"]["end"]);
            let pod = text(&it["kubernetes"]["audit"]["user"]["extra"][POD_NAME][0]);
            (text(&it["event"]["start"]), text(&it["@timestamp"]), pod)
        })
        .collect();
    let times: Vec<_> = documents.iter().map(|it| text(&it["@timestamp"])).collect();
    assert!(times.is_sorted(), "{times:?}");
    joined.sort();
    joined
}

/// What the whole of opens and answers, in order of time, implies.
fn model(opens: &[(i64, u8)], answers: &[(i64, u8)]) -> Vec<(String, String, String)> {
    let mut steps: Vec<_> = opens.iter().map(|(at, pod)| (*at, 0, *pod)).collect();
    steps.extend(answers.iter().map(|(at, pod)| (*at, 1, *pod)));
    steps.sort_unstable();
    let (mut pending, mut found) = (BTreeMap::new(), Vec::new());
    for (at, kind, pod) in steps {
        if kind == 0 {
            pending.insert(pod, at);
        } else if let Some(open) = pending.remove(&pod).filter(|open| at - open <= 60 * SECOND) {
            found.push((time(open), time(at), format!("pod-{pod}")));
        }
    }
    found.sort();
    found
}

/// Moved apart by at most five seconds, over some files, with dirt between them.
fn scatter(
    lines: &[(i64, String)],
    files: usize,
    salt: u64,
    folder: &Path,
    name: &str,
) -> Vec<PathBuf> {
    let mut lines: Vec<_> = (0u64..).zip(lines).collect();
    lines.sort_by_key(|(number, (at, _))| {
        at + i64::try_from((number + 1) * (salt | 1) % 5).unwrap() * SECOND
    });
    let paths: Vec<_> = (0..files).map(|file| folder.join(format!("{name}-{file}"))).collect();
    for (file, path) in paths.iter().enumerate() {
        let mut text = Vec::new();
        for (number, (_, line)) in &lines {
            if usize::try_from(number ^ salt).unwrap() % files == file {
                text.extend(line.as_bytes());
                text.push(b'\n');
                text.extend(match (number + salt) % 7 {
                    0 => &b"\n"[..],
                    1 => b"{\"torn\":\n",
                    2 => b"\x7fELF\xff\xfe\n",
                    3 => b"\0\0\0\0",
                    _ => b"",
                });
            }
        }
        let packed = (salt + file as u64) % 3;
        fs::write(
            path,
            match packed {
                0 => text,
                1 => {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                    encoder.write_all(&text).unwrap();
                    encoder.finish().unwrap()
                }
                _ => ruzstd::encoding::compress_to_vec(
                    text.as_slice(),
                    ruzstd::encoding::CompressionLevel::Fastest,
                ),
            },
        )
        .unwrap();
    }
    paths
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn alerts_are_those_of_the_whole_however_it_is_ordered_split_packed_and_soiled(
        opens in prop::collection::vec((0..2_000i64, 0..3u8), 0..40),
        answers in prop::collection::vec((0..2_000i64, 0..3u8), 0..60),
        files in (1..4usize, 1..4usize),
        chunk in 40..3_000usize,
        salt in any::<u32>(),
    ) {
        // Seconds, so that bounds are met exactly; a night lies in the middle. No two answers of a
        // pod at once: which of them counts is the order of input.
        let spread = |at: i64| at * SECOND + if at > 1_000 { 40_000 * SECOND } else { 0 };
        let opens: Vec<_> = opens.into_iter().map(|(at, pod)| (spread(at), pod)).collect();
        let mut answers: Vec<_> = answers.into_iter().map(|(at, pod)| (spread(at), pod)).collect();
        answers.sort_unstable();
        answers.dedup();
        let folder = tempfile::tempdir().unwrap();
        let lines = |list: &[(i64, u8)], line: fn(i64, &str) -> String| -> Vec<(i64, String)> {
            list.iter().map(|(at, pod)| (*at, line(*at, &format!("pod-{pod}")))).collect()
        };
        let salt = u64::from(salt);
        let open_files = scatter(&lines(&opens, open), files.0, salt, folder.path(), "opens");
        let audit_files = scatter(&lines(&answers, answer), files.1, salt / 3, folder.path(), "audit");
        let refs = |paths: &[PathBuf]| -> Vec<PathBuf> { paths.to_vec() };
        let (open_files, audit_files) = (refs(&open_files), refs(&audit_files));
        let (documents, summary) = replay(
            chunk,
            &open_files.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
            &audit_files.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
        );
        prop_assert_eq!(joined(&documents), model(&opens, &answers));
        prop_assert_eq!((summary.late, summary.early, summary.unread), (0, 0, vec![]));
    }
}

/// Replays these lines in one file each.
fn of_lines(opens: &[String], audit: &[String]) -> (Vec<Value>, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let [open_file, audit_file] = ["opens", "audit"].map(|name| folder.path().join(name));
    fs::write(&open_file, opens.join("\n")).unwrap();
    fs::write(&audit_file, audit.join("\n")).unwrap();
    replay(CHUNK, &[&open_file], &[&audit_file])
}

#[test]
fn a_line_with_an_absurd_time_spoils_nothing_before_or_after_it() {
    let at = |text: &str| answer(0, "till").replace(&time(0), text);
    for absurd in [
        at("0001-01-01T00:00:00.000000Z"),
        at("2150-01-01T00:00:00.000000Z"),
        at("9999-12-31T23:59:59.999999Z"),
        at("soon"),
        at("2015-01-01T00:00:00.000000Z"),
    ] {
        for place in 0..4 {
            let mut audit: Vec<_> = (0..3).map(|it| answer(it * 20 * SECOND, "cart")).collect();
            audit.push(answer(61 * SECOND, "till"));
            audit.insert(place, absurd.clone());
            let opens = [open(30 * SECOND, "cart"), open(50 * SECOND, "till")];
            let (documents, _) = of_lines(&opens, &audit);
            let pods: Vec<_> = joined(&documents).into_iter().map(|(_, _, pod)| pod).collect();
            assert_eq!(pods, ["cart", "till"], "{absurd} at {place}");
        }
        for place in 0..3 {
            let mut opens = vec![open(30 * SECOND, "cart"), open(50 * SECOND, "till")];
            let time_of = absurd.split('"').find(|it| it.ends_with('Z') || *it == "soon").unwrap();
            opens.insert(place, open(0, "other").replace(&time(0), time_of));
            let audit = [answer(40 * SECOND, "cart"), answer(61 * SECOND, "till")];
            let (documents, _) = of_lines(&opens, &audit);
            assert_eq!(documents.len(), 2, "{time_of} at {place}");
        }
    }
}

#[test]
fn what_waits_for_its_turn_is_judged_by_all_that_it_says() {
    let groups: Vec<_> = (0..400).map(|n| format!("group-{n:036}")).collect();
    let mut event: Value = serde_json::from_str(&answer(SECOND, "till")).unwrap();
    event["verb"] = json!("create");
    event["user"] = json!({"username": "jane", "groups": groups});
    event["objectRef"] = json!({"resource": "serviceaccounts", "subresource": "token"});
    event["requestObject"] = json!("x".repeat(9_000));
    let (documents, _) = of_lines(&[], &[event.to_string()]);
    let told = &documents[0]["kubernetes"]["audit"]["user"];
    assert_eq!(told["groups"].as_array().unwrap().len(), 400);
}

#[test]
fn times_that_no_line_can_have_yet_spoil_nothing_however_many_they_are() {
    let filler = |at: i64| (0..60).map(move |n| answer(at * SECOND + n, "other"));
    let audit: Vec<_> = (0..8)
        .flat_map(|n| filler(100 * n + 20).chain([answer((100 * n + 6) * SECOND, "till")]))
        .collect();
    let opens: Vec<_> = (0..8).map(|n| open((100 * n + 5) * SECOND, "till")).collect();
    let future =
        |line: &str, n: i64| line.replace(&time(0), &format!("2190-01-01T00:00:00.00000{n}Z"));
    let folder = tempfile::tempdir().unwrap();
    let [open_file, audit_file] = ["opens", "audit"].map(|name| folder.path().join(name));
    for place in [0, 200] {
        let (mut opens, mut audit) = (opens.clone(), audit.clone());
        for n in 0..9 {
            opens.insert(place.min(3), future(&open(0, "till"), n));
            audit.insert(place, future(&answer(0, "till"), n));
        }
        fs::write(&open_file, opens.join("\n")).unwrap();
        fs::write(&audit_file, audit.join("\n")).unwrap();
        let (documents, summary) = replay(3_000, &[&open_file], &[&audit_file]);
        assert_eq!((documents.len(), summary.late), (8, 0));
        assert_eq!(summary.opens.bad["bad_time"], 9);
        // Nobody asks for a line's time where no open of its pod is expected, or it is used up.
        assert!(place != 0 || summary.audit.bad.contains_key("bad_time"));
    }
}

#[test]
fn bad_lines_are_counted_by_reason_and_hide_nothing() {
    let bomb = format!("{{\"user\":{}", "[".repeat(100_000));
    let huge = answer(10 * SECOND, "till").replacen(
        '{',
        &format!("{{\"requestObject\":{{\"a\":\"{}\"}},", "x".repeat(3 << 20)),
        1,
    );
    let audit = [
        String::new(),
        "garbage".to_owned(),
        answer(1, "till").replace("\"list\"", "7"),
        answer(1, "till").replacen('{', "{\"user\":{},", 1),
        answer(1, "till").replace("Complete", "Done"),
        answer(1, "till").replace("\"Event\"", "\"Pod\""),
        bomb,
        huge,
    ];
    let opens = [
        "[1]".to_owned(),
        open(0, "till").replacen('{', "{\"event\":5,", 1),
        open(0, "till"),
        "{}".to_owned(),
    ];
    let (documents, summary) = of_lines(&opens, &audit);
    assert_eq!(joined(&documents), [(time(0), time(10 * SECOND), "till".to_owned())]);
    let counts = |tally: &Tally| -> Vec<(&'static str, u64)> {
        tally.bad.iter().map(|(reason, count)| (*reason, *count)).collect()
    };
    let expected = [("blank", 1), ("not_json", 2), ("wrong_kind", 1), ("wrong_shape", 3)];
    assert_eq!(counts(&summary.audit), expected);
    assert_eq!(counts(&summary.opens), [("not_json", 1), ("wrong_shape", 1)]);
    assert_eq!((summary.audit.lines, summary.opens.lines, summary.opens.kept), (8, 4, 1));
}

#[test]
fn what_is_later_than_allowed_is_counted_and_used() {
    let audit = [0, 30, 40, 10, 41, 50].map(|at| answer(at * SECOND, "till"));
    let (documents, summary) = of_lines(&[open(35 * SECOND, "till")], &audit);
    assert_eq!(joined(&documents), [(time(35 * SECOND), time(40 * SECOND), "till".to_owned())]);
    // One file is one chunk: nothing was handed out before the late line was read.
    assert_eq!(summary.late, 0);
    let folder = tempfile::tempdir().unwrap();
    let [opens, late] = ["opens", "audit"].map(|name| folder.path().join(name));
    fs::write(&opens, open(0, "till") + "\n" + &open(35 * SECOND, "till")).unwrap();
    fs::write(&late, audit.join("\n")).unwrap();
    let (documents, summary) = replay(300, &[&opens], &[&late]);
    assert_eq!((documents.len(), summary.late), (2, 1));
}

#[test]
fn a_pods_lines_are_kept_until_its_open_is_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let [opens, audit] = ["opens", "audit"].map(|name| folder.path().join(name));
    fs::write(&opens, open(0, "till")).unwrap();
    let answers = (1..50).map(|at| answer(at * SECOND, "till"));
    fs::write(&audit, answers.collect::<Vec<_>>().join("\n")).unwrap();
    let (documents, summary) = replay(300, &[&opens], &[&audit]);
    assert_eq!(joined(&documents), [(time(0), time(SECOND), "till".to_owned())]);
    // Those within the lateness of the one that used it up, which until then might have been it.
    assert!((6..12).contains(&summary.audit.kept), "{}", summary.audit.kept);
    assert_eq!((summary.audit.lines, summary.late), (49, 0));
}

#[test]
fn a_file_given_with_the_wrong_option_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let [opens, audit] = ["opens", "audit"].map(|name| folder.path().join(name));
    fs::write(&opens, format!("\ngarbage\n{}\n", open(0, "till"))).unwrap();
    fs::write(&audit, answer(0, "till")).unwrap();
    let refuse = |files: Files| {
        let mut sorted = Sorted::new(None);
        let refused = run(&files, &mut semantics(), &mut sorted, &ProgressBar::hidden());
        refused.unwrap_err()
    };
    let files = |opens: &Path, audit: &Path| Files {
        opens: vec![opens.to_owned()],
        audit: vec![audit.to_owned()],
        lateness: Micros(0),
        latest: Micros::MAX,
    };
    for (files, given) in [(files(&audit, &audit), "--opens"), (files(&opens, &opens), "--audit")] {
        let error = refuse(files);
        assert!(error.is_usage());
        assert!(
            error.to_string().contains(&format!("was given with {given} but holds")),
            "{error}"
        );
    }
    let posts = folder.path().join("posts");
    let long = "x".repeat(400_000);
    for padding in ["", &long] {
        let list = "{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"items\":[";
        fs::write(&posts, format!("{list}{},\"{padding}\"]}}\n", answer(0, "till").trim()))
            .unwrap();
        let error = refuse(files(&opens, &posts));
        assert!(error.is_usage() && error.to_string().contains("holds an EventList"), "{error}");
    }
    assert!(refuse(files(Path::new("-"), Path::new("-"))).is_usage());
    let missing = refuse(files(&opens, &folder.path().join("no-such")));
    assert!(!missing.is_usage() && missing.to_string().contains("no-such"), "{missing}");
}

#[test]
fn a_file_is_known_by_its_first_line_however_long_that_is_and_so_are_alerts() {
    let folder = tempfile::tempdir().unwrap();
    let [opens, audit, alerts] = ["opens", "audit", "alerts"].map(|name| folder.path().join(name));
    let line = open(0, "till");
    fs::write(&opens, &line).unwrap();
    let body = format!("\"requestObject\":{{\"a\":\"{}\"}},\"x\":1,", "x".repeat(400_000));
    let event = format!(
        "{{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"auditID\":\"a\",\"stage\":\"Panic\",{body}"
    );
    fs::write(&audit, event + "\"y\":1}\n").unwrap();
    let alert = line.replacen("\"event\":{", "\"event\":{\"dataset\":\"tokentrail.alerts\",", 1);
    fs::write(&alerts, &alert).unwrap();
    let given = |path: &Path| {
        let (opens, audit) = (vec![path.to_owned()], vec![]);
        let files = Files { opens, audit, lateness: Micros(0), latest: Micros::MAX };
        run(&files, &mut semantics(), &mut Sorted::new(None), &ProgressBar::hidden())
    };
    assert!(given(&audit).unwrap_err().to_string().contains("give it with --audit"));
    assert!(given(&alerts).unwrap_err().to_string().contains("holds alerts"));
    assert_eq!(given(&opens).unwrap().opens.kept, 1);
    // Among other documents of an index they are none of ours.
    fs::write(&alerts, format!("{alert}\n{line}")).unwrap();
    assert!(given(&alerts).is_ok());
}

#[test]
fn a_mark_before_a_file_hides_no_line() {
    let marked = |line: String| vec![format!("\u{feff}{line}")];
    let (documents, summary) = of_lines(&marked(open(0, "till")), &marked(answer(SECOND, "till")));
    assert_eq!((documents.len(), summary.audit.bad.len(), summary.opens.bad.len()), (1, 0, 0));
}

#[test]
fn an_open_that_is_no_pods_is_counted() {
    let nobodys = open(0, "till").replace("\"name\":\"till\"", "\"type\":\"pod\"");
    let (_, summary) = of_lines(&[nobodys], &[answer(SECOND, "till")]);
    assert_eq!((summary.opens.kept, summary.opens.in_part["no_pod"]), (0, 1));
}

#[test]
fn a_cut_archive_is_used_up_to_where_it_was_cut_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let [opens, audit, later] = ["opens", "audit", "later"].map(|name| folder.path().join(name));
    fs::write(&opens, [open(0, "till"), open(90_000 * SECOND, "cart")].join("\n")).unwrap();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    let filler = answer(2 * SECOND, "other") + "\n";
    write!(encoder, "{}\n{}", answer(SECOND, "till"), filler.repeat(5_000)).unwrap();
    let packed = encoder.finish().unwrap();
    fs::write(&audit, &packed[..packed.len() - 100]).unwrap();
    fs::write(&later, answer(90_001 * SECOND, "cart")).unwrap();
    let (documents, summary) = replay(CHUNK, &[&opens], &[&audit, &later]);
    assert_eq!(documents.len(), 2);
    assert!(matches!(summary.unread.as_slice(), [told] if told.contains("audit: ")));
}

#[test]
fn a_target_is_known_before_anything_is_read() {
    assert!(Target::prepare(Some(Path::new("/no/such/folder/alerts"))).is_err());
}

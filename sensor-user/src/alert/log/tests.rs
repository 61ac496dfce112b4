//! Files that crashes, full disks and others have left behind.

use super::*;

fn settings(directory: &Path) -> AlertLogSettings {
    AlertLogSettings { path: directory.join("alerts.ndjson"), max_bytes: 1 << 20, keep: 2 }
}

fn log(settings: &AlertLogSettings) -> AlertLog {
    AlertLog::open(settings.clone(), AlertLogMetrics::default()).unwrap()
}

fn line(id: &str) -> Vec<u8> {
    format!(r#"{{"event":{{"id":"{id}"}}}}"#).into_bytes()
}

impl AlertLog {
    /// One that takes no alert.
    pub(crate) fn on_full_disk() -> Self {
        let settings = AlertLogSettings { path: "/dev/full".into(), max_bytes: u64::MAX, keep: 1 };
        let file = File::options().append(true).open("/dev/full").unwrap();
        Self {
            target: Target::File { file: Arc::new(file), inode: 0, length: 0 },
            settings,
            known: LruCache::new(KNOWN_IDS),
            pending: VecDeque::new(),
            pending_bytes: 0,
            failure: None,
            unsynced: false,
            syncing: None,
            written: 0,
            durable: Durable::default(),
            metrics: AlertLogMetrics::default(),
        }
    }
}

#[test]
fn an_id_is_written_once_also_after_a_restart_and_a_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let settings = AlertLogSettings { max_bytes: 20, ..settings(directory.path()) };
    assert_eq!(log(&settings).append("a", line("a")), Appended::Written);
    assert!(rotated(&settings.path, 1).exists());
    let mut log = log(&settings);
    assert_eq!(log.append("a", line("a")), Appended::Known);
    assert_eq!(log.append("b", line("b")), Appended::Written);
    let older = fs::read(rotated(&settings.path, 2)).unwrap();
    assert_eq!(older, [line("a"), b"\n".to_vec()].concat());
}

#[test]
fn a_line_that_a_crash_cut_off_is_taken_back_and_told_again() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let whole = [line("b"), b"\n".to_vec()].concat();
    for torn in [r#"{"@timest"#, r#"{"@timestamp":"2026-11-22T00:00:00Z","event":{"id":"a"#] {
        fs::write(&settings.path, [&whole, torn.as_bytes()].concat()).unwrap();
        assert_eq!(log(&settings).append("a", line("a")), Appended::Written);
        let expected = [&*whole, &line("a"), b"\n"].concat();
        assert_eq!(fs::read(&settings.path).unwrap(), expected);
    }
}

#[test]
fn text_of_others_at_the_files_end_is_ended_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    fs::write(&settings.path, "precious").unwrap();
    assert_eq!(log(&settings).append("a", line("a")), Appended::Written);
    let expected = [b"precious\n", &*line("a"), b"\n"].concat();
    assert_eq!(fs::read(&settings.path).unwrap(), expected);
}

#[test]
fn a_link_in_place_of_the_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    std::os::unix::fs::symlink("/etc/passwd", &settings.path).unwrap();
    let error = AlertLog::open(settings, AlertLogMetrics::default()).unwrap_err();
    assert!(error.to_string().contains("not a link"), "{error}");
}

#[test]
fn the_file_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    log(&settings).append("a", line("a"));
    assert_eq!(fs::metadata(&settings.path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_full_disk_makes_alerts_wait_and_nothing_is_clear_until_they_are_written() {
    let mut log = AlertLog::on_full_disk();
    assert_eq!(log.append("a", line("a")), Appended::Pending);
    assert!(!log.is_clear() && log.failure().is_some() && log.has_room());
    let directory = tempfile::tempdir().unwrap();
    log.target = open_file(&directory.path().join("alerts.ndjson")).unwrap();
    log.write_pending();
    assert!(log.is_clear() && log.failure().is_none());
}

#[test]
fn how_far_it_is_durable_follows_the_disk_through_a_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let settings = AlertLogSettings { max_bytes: 50, ..settings(directory.path()) };
    let mut log = log(&settings);
    let inode = |name: &str| fs::metadata(directory.path().join(name)).unwrap().ino();
    let first = inode("alerts.ndjson");
    let durable = |inode, length, documents| Durable { inode, length, documents, _held: None };
    assert_eq!(log.durable(), durable(first, 0, 0));
    log.append("a", line("a"));
    let syncing = log.begin_sync();
    log.append("b", line("b"));
    assert_eq!((syncing.is_some(), log.durable().documents), (true, 0));
    log.end_sync(true);
    assert_eq!(log.durable(), durable(first, 21, 1));
    let _syncing = log.begin_sync();
    log.end_sync(false);
    assert_eq!(log.durable().documents, 1, "the disk refused");
    let _syncing = log.begin_sync();
    // Rotated while that goes on.
    log.append("c", line("c"));
    let rotated = durable(inode("alerts.ndjson"), 0, 3);
    assert_eq!(log.durable(), rotated);
    log.end_sync(true);
    assert_eq!(log.durable(), rotated, "that was of the old file");
}

#[test]
fn a_file_that_was_moved_away_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let mut log = log(&settings);
    log.append("a", line("a"));
    fs::rename(&settings.path, directory.path().join("elsewhere")).unwrap();
    log.maintain();
    log.append("b", line("b"));
    assert_eq!(fs::read(&settings.path).unwrap(), [line("b"), b"\n".to_vec()].concat());
}

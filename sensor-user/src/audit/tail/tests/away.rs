//! What becomes of files while the agent is down or in the middle of them: compressed, copied,
//! regrown, deleted.

use std::{io::Read as _, time::SystemTime};

use flate2::{Compression, read::GzEncoder};

use super::*;

/// Compresses a file as `gzip` does: another file, with the name and the time of the old one.
fn gzip(path: &Path) {
    let file = File::open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut compressed = Vec::new();
    GzEncoder::new(file, Compression::fast()).read_to_end(&mut compressed).unwrap();
    let to = path.with_added_extension("gz");
    fs::write(&to, compressed).unwrap();
    set_modified(&to, modified);
    fs::remove_file(path).unwrap();
}

fn set_modified(path: &Path, time: SystemTime) {
    OpenOptions::new().append(true).open(path).unwrap().set_modified(time).unwrap();
}

/// A tail that has read one line, to be restarted.
async fn after_one_line() -> Following {
    let mut tail = Following::start(|path| append(path, ""));
    tail.open().await;
    append(&tail.path, &line("seen"));
    tail.expect(&["seen"]).await;
    tail
}

#[tokio::test]
async fn a_file_that_was_compressed_while_down_is_known_by_its_first_line() {
    for name in [
        "audit-2026-11-21T20-29-11.123.log",
        "audit.log.1",
        "audit.log-20261121",
        "audit.log-20261121-1795292951",
    ] {
        let mut tail = after_one_line()
            .await
            .restart(|path| {
                append(path, &line("a"));
                let rotated = path.with_file_name(name);
                fs::rename(path, &rotated).unwrap();
                gzip(&rotated);
                append(path, &line("b"));
            })
            .await;
        tail.expect(&["a", "b"]).await;
        append(&tail.path, &line("c"));
        tail.expect(&["c"]).await;
        let metrics = &tail.metrics;
        assert_eq!((metrics.rotations.get(), metrics.lost_positions.get()), (1, 0), "{name}");
    }
}

#[tokio::test]
async fn a_file_that_was_empty_and_was_filled_and_rotated_while_down_is_read() {
    for compress in [false, true] {
        let mut tail = Following::start(|path| append(path, ""));
        tail.batch().await;
        let mut tail = tail
            .restart(|path| {
                append(path, &line("a"));
                set_modified(path, SystemTime::now() + Duration::from_secs(3_600));
                let rotated = path.with_file_name("audit.log.1");
                fs::rename(path, &rotated).unwrap();
                if compress {
                    gzip(&rotated);
                }
                append(path, &line("b"));
            })
            .await;
        tail.expect(&["a", "b"]).await;
        // Nothing was read of it by which it could be known in another form.
        assert_eq!(tail.metrics.lost_positions.get(), u64::from(compress));
    }
}

#[tokio::test]
async fn of_many_files_that_were_compressed_while_down_the_times_in_their_names_are_the_order() {
    let mut tail = after_one_line()
        .await
        .restart(|path| {
            for (hour, id) in [(1, "a"), (2, "b"), (3, "c")] {
                append(path, &line(id));
                let rotated =
                    path.with_file_name(format!("audit-1970-01-02T0{hour}-00-00.000.log"));
                fs::rename(path, &rotated).unwrap();
                gzip(&rotated);
                // Compressed in the wrong order: lumberjack's files have the time of that.
                let compressed = rotated.with_added_extension("gz");
                set_modified(&compressed, SystemTime::now() - Duration::from_secs(hour * 60));
            }
            append(path, &line("d"));
        })
        .await;
    tail.expect(&["a", "b", "c", "d"]).await;
    assert_eq!(tail.metrics.rotations.get(), 3);
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_compressed_file_goes_on_there() {
    let ids: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    let tail = after_one_line()
        .await
        .restart(|path| {
            append(path, &ids.iter().map(|id| line(id)).collect::<String>());
            rotate(path, 1);
            gzip(&path.with_file_name("audit-2026-11-21T20-29-01.123.log"));
            append(path, &line("live"));
        })
        .await;
    let mut tail = tail;
    let first = tail.batch().await;
    let first = if first.lines.is_empty() { tail.batch().await } else { first };
    let read = first.lines.len();
    assert!((1..600).contains(&read), "{read}");
    let mut tail = tail.restart(|_| ()).await;
    let mut expected: Vec<&str> = ids[read..].iter().map(String::as_str).collect();
    expected.push("live");
    tail.expect(&expected).await;
}

#[tokio::test]
async fn a_compressed_file_that_is_damaged_is_counted_and_the_next_one_is_read() {
    let mut tail = after_one_line()
        .await
        .restart(|path| {
            append(path, &line("a"));
            rotate(path, 1);
            let rotated = path.with_file_name("audit-2026-11-21T20-29-01.123.log");
            gzip(&rotated);
            let compressed = rotated.with_added_extension("gz");
            let length = fs::metadata(&compressed).unwrap().len();
            OpenOptions::new().write(true).open(compressed).unwrap().set_len(length - 9).unwrap();
            append(path, &line("b"));
        })
        .await;
    // What can be read of it comes.
    tail.expect(&["a", "b"]).await;
    assert_eq!(tail.metrics.lost_positions.get(), 1);
}

#[tokio::test]
async fn lines_of_the_same_length_as_before_are_not_taken_for_those_that_were_read() {
    let mut tail = after_one_line()
        .await
        .restart(|path| fs::write(path, line("aaaa") + &line("b")).unwrap())
        .await;
    tail.expect(&["aaaa", "b"]).await;
    assert_eq!(tail.metrics.truncations.get(), 1);
}

#[tokio::test]
async fn what_was_copied_and_truncated_away_while_down_is_read_from_the_copy() {
    let mut tail = after_one_line()
        .await
        .restart(|path| {
            append(path, &line("a"));
            fs::copy(path, path.with_added_extension("1")).unwrap();
            fs::write(path, line("b")).unwrap();
        })
        .await;
    tail.expect(&["a", "b"]).await;
    assert_eq!(tail.metrics.truncations.get(), 0);
}

#[tokio::test]
async fn the_live_file_under_another_number_is_gone_on_with() {
    let mut tail = after_one_line()
        .await
        .restart(|path| {
            let copy = path.with_extension("copy");
            fs::copy(path, &copy).unwrap();
            fs::rename(copy, path).unwrap();
            append(path, &line("a"));
        })
        .await;
    tail.expect(&["a"]).await;
    assert_eq!(tail.metrics.lost_positions.get(), 0);
}

#[tokio::test]
async fn if_the_file_read_last_was_deleted_all_that_was_written_later_is_read() {
    let mut tail = after_one_line()
        .await
        .restart(|path| {
            let old = path.with_extension("old");
            fs::rename(path, &old).unwrap();
            for (number, id) in [(1, "a"), (2, "b")] {
                append(path, &line(id));
                let hours = Duration::from_secs(3_600 * u64::from(number));
                set_modified(path, SystemTime::now() + hours);
                rotate(path, number);
            }
            append(path, &line("c"));
            fs::remove_file(old).unwrap();
        })
        .await;
    tail.expect(&["a", "b", "c"]).await;
    assert_eq!(tail.metrics.lost_positions.get(), 1);
}

#[tokio::test]
async fn a_directory_switched_by_its_symlink_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["one", "two"] {
        fs::create_dir(dir.path().join(version)).unwrap();
    }
    symlink("one", dir.path().join("current")).unwrap();
    append(&dir.path().join("one/audit.log"), "");
    append(&dir.path().join("two/audit.log"), &line("b"));
    let mut tail = Following::resume(dir, "current/audit.log", None);
    tail.open().await;
    append(&tail.path, &line("a"));
    tail.expect(&["a"]).await;
    let new = tail.dir.path().join("new");
    symlink("two", &new).unwrap();
    fs::rename(new, tail.dir.path().join("current")).unwrap();
    tail.expect(&["b"]).await;
    append(&tail.path, &line("c"));
    tail.expect(&["c"]).await;
}

#[tokio::test]
async fn what_was_written_behind_a_link_that_was_switched_while_down_is_read_first() {
    let mut tail = Following::start(|path| {
        for name in ["november", "december"] {
            fs::create_dir(path.with_file_name(name)).unwrap();
            append(&path.with_file_name(name).join("log"), "");
        }
        symlink("november/log", path).unwrap();
    });
    tail.open().await;
    append(&tail.path, &line("seen"));
    tail.expect(&["seen"]).await;
    let mut tail = tail
        .restart(|path| {
            append(path, &line("a"));
            fs::remove_file(path).unwrap();
            symlink("december/log", path).unwrap();
            append(path, &line("b"));
        })
        .await;
    tail.expect(&["a", "b"]).await;
    append(&tail.path, &line("c"));
    tail.expect(&["c"]).await;
    assert_eq!((tail.metrics.rotations.get(), tail.metrics.lost_positions.get()), (1, 0));
}

//! Reads a log and what was rotated beside it once more, for requests that nobody wanted when they were read.
//!
//! Blocking, for a thread of its own; reads files alone and keeps nothing. Called by the engine.

use std::{path::Path, time::SystemTime};

use super::{
    CHUNK,
    open::{Found, OpenFile},
    rotation::{self, OpenError},
};
use crate::{
    audit::{
        AuditRecord,
        lines::Lines,
        scan::{Interest, Scan, classify},
    },
    time::Micros,
};

/// Hands on the records of interest in all lines that were written at `from` (wall clock) or later, in
/// their order, until `take` returns `false`. It is asked with `None` in between.
///
/// # Errors
/// A file cannot be read; a sentence.
pub fn search(
    path: &Path,
    from: Micros,
    interest: &Interest<'_>,
    take: &mut dyn FnMut(Option<AuditRecord>) -> bool,
) -> Result<(), String> {
    for _ in 0..TRIES {
        match search_files(path, from, interest, take) {
            Ok(Searched::All) => return Ok(()),
            // What is read again is known by its ids.
            Ok(Searched::Moved) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(format!("files beside {} are renamed or compressed again and again", path.display()))
}

/// How often files are listed again that were renamed, compressed or removed meanwhile.
const TRIES: usize = 5;

enum Searched {
    /// All that there is, or all that is wanted.
    All,
    /// But for a file that is not there any more, at least by that name.
    Moved,
}

fn search_files(
    path: &Path,
    from: Micros,
    interest: &Interest<'_>,
    take: &mut dyn FnMut(Option<AuditRecord>) -> bool,
) -> Result<Searched, OpenError> {
    let mut moved = false;
    // Before the others are listed: one that is rotated meanwhile is read twice, but not passed over.
    let live = rotation::open(path);
    let written_since = |time: SystemTime| Micros::from(time) >= from;
    let mut failed = None;
    for sibling in rotation::siblings(path)?.iter().filter(|it| written_since(it.time)) {
        match sibling.open(0).and_then(|file| read(path, file, interest, take)) {
            Ok(true) => {}
            Ok(false) => return Ok(Searched::All),
            Err(OpenError::Missing(_)) => moved = true,
            // Others may have what is wanted.
            Err(error) => failed = Some(error),
        }
    }
    let (file, id) = live?;
    let goes_on = read(path, OpenFile::at(file, id, 0), interest, take)?;
    match failed {
        Some(error) => Err(error),
        None => Ok(if moved && goes_on { Searched::Moved } else { Searched::All }),
    }
}

/// Reads one file to its end; whether to go on.
fn read(
    path: &Path,
    mut file: OpenFile,
    interest: &Interest<'_>,
    take: &mut dyn FnMut(Option<AuditRecord>) -> bool,
) -> Result<bool, OpenError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let found = file.read(&mut buffer).map_err(|error| OpenError::new(path, error))?;
        let (chunk, more) = match found {
            Found::Bytes(chunk, more) => (chunk, more),
            Found::Damaged(error) => return Err(OpenError::new(path, error)),
            // Whoever follows it says so; what was in it is gone.
            Found::Truncated => return Ok(true),
        };
        if !judge(file.lines(), chunk, interest, take) {
            return Ok(false);
        }
        if !more {
            return Ok(true);
        }
    }
}

fn judge(
    lines: &mut Lines,
    chunk: &[u8],
    interest: &Interest<'_>,
    take: &mut dyn FnMut(Option<AuditRecord>) -> bool,
) -> bool {
    let mut rest = chunk;
    while let Some(line) = lines.next_line(&mut rest) {
        if line.fault().is_none()
            && let Scan::Record(record) = classify(line.bytes, interest)
            && !take(Some(record))
        {
            return false;
        }
    }
    take(None)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    fn line(number: u32, uid: &str) -> String {
        format!(
            "{{\"stage\":\"ResponseComplete\",\"auditID\":\"{number}\",\"user\":{{\"username\":\"system:serviceaccount:a:b\",\
             \"extra\":{{\"authentication.kubernetes.io/pod-uid\":[\"{uid}\"]}}}},\
             \"requestReceivedTimestamp\":\"2026-11-22T10:00:00.000000Z\",\
             \"stageTimestamp\":\"2026-11-22T10:00:00.000000Z\"}}\n"
        )
    }

    fn found(path: &Path, from: Micros) -> Vec<String> {
        let mut found = Vec::new();
        let interest = Interest {
            pods: crate::audit::scan::Pods::WithUid(&|uid| uid == "p"),
            ..Interest::LIVE
        };
        let interest = Interest { accounts: crate::audit::scan::Users::None, ..interest };
        let result = search(path, from, &interest, &mut |record| {
            found.extend(record.map(|it| it.audit_id));
            true
        });
        result.unwrap();
        found
    }

    #[test]
    fn what_was_rotated_since_is_read_before_the_live_file_and_what_is_older_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("audit.log");
        let write = |name: &str, content: String, age: u64| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        write("audit.log.3", line(1, "p"), 300);
        write("audit.log.2", line(2, "p") + &line(3, "q"), 200);
        write("audit.log.1", line(4, "p"), 100);
        write("audit.log", line(5, "q") + "torn\n" + &line(6, "p") + "{\"half\":", 0);
        assert_eq!(found(&live, Micros::from_secs(1_000_000 - 200)), ["2", "4", "6"]);
        assert_eq!(found(&live, Micros::from_secs(1_000_000)), ["6"]);
        assert_eq!(found(&live, Micros(0)), ["1", "2", "4", "6"]);
    }

    #[test]
    fn what_is_renamed_and_compressed_while_it_is_searched_is_found_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // As kube-apiserver names them.
        let [first, second, third] =
            ["08", "09", "10"].map(|hour| at(&format!("audit-2026-11-22T{hour}-00-00.000.log")));
        let live = at("audit.log");
        for (number, path) in [&first, &second, &live].into_iter().enumerate() {
            fs::write(path, line(u32::try_from(number).unwrap(), "p")).unwrap();
        }
        let compress = |path: &Path| {
            let to = fs::File::create(path.with_extension("log.gz")).unwrap();
            let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::fast());
            std::io::copy(&mut fs::File::open(path).unwrap(), &mut encoder).unwrap();
            encoder.finish().unwrap();
            fs::remove_file(path).unwrap();
        };
        let mut found = Vec::new();
        let interest = Interest {
            pods: crate::audit::scan::Pods::WithUid(&|uid| uid == "p"),
            ..Interest::LIVE
        };
        let result = search(&live, Micros(0), &interest, &mut |record| {
            let Some(record) = record else { return true };
            if found.is_empty() {
                // The first was listed as it was, the others are elsewhere by the time that they are opened.
                compress(&second);
                fs::rename(&live, &third).unwrap();
                fs::write(&live, line(3, "p")).unwrap();
            }
            found.push(record.audit_id);
            true
        });
        result.unwrap();
        found.sort();
        found.dedup();
        assert_eq!(found, ["0", "1", "2", "3"]);
    }

    #[test]
    fn a_log_that_is_not_there_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let error = search(&path, Micros(0), &Interest::LIVE, &mut |_| true).unwrap_err();
        assert!(error.contains("audit.log"), "{error}");
    }
}

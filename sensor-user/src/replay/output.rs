//! Puts alert documents into order and writes them, one a line: by `@timestamp`, then `event.id`,
//! each id once.
//!
//! Bounded memory for any number of them: what does not fit waits in sorted runs on disk. Called
//! by the replay loop.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, btree_map},
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{alert::ecs::Document, time::Micros};

/// Documents held in memory, bytes.
const HELD: usize = 8 << 20;

/// Where the order comes from.
type Key = (Micros, String);

/// Documents on their way out.
pub struct Sorted {
    folder: Option<PathBuf>,
    held: BTreeMap<Key, Vec<u8>>,
    bytes: usize,
    limit: usize,
    runs: Vec<File>,
}

impl Sorted {
    /// Runs go to this folder, or to that of temporary files.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, held: BTreeMap::new(), bytes: 0, limit: HELD, runs: Vec::new() }
    }

    /// Takes a document.
    ///
    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, document: &Document) -> io::Result<()> {
        let line = serde_json::to_vec(document)?;
        self.push_line((document.timestamp, document.event.id.clone()), line)
    }

    fn push_line(&mut self, key: Key, line: Vec<u8>) -> io::Result<()> {
        self.bytes += line.len();
        if let Some(replaced) = self.held.insert(key, line) {
            self.bytes -= replaced.len();
        }
        if self.bytes > self.limit {
            let file = match &self.folder {
                Some(folder) => tempfile::tempfile_in(folder)?,
                None => tempfile::tempfile()?,
            };
            let mut run = BufWriter::new(file);
            self.bytes = 0;
            for ((time, id), line) in std::mem::take(&mut self.held) {
                // An id is hexadecimal digits, a document has no newline.
                write!(run, "{} {id} ", time.0)?;
                run.write_all(&line)?;
                run.write_all(b"\n")?;
            }
            let mut file = run.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            self.runs.push(file);
        }
        Ok(())
    }

    /// Writes all, in order; how many that were.
    ///
    /// # Errors
    /// The output cannot be written, or a run not be read.
    pub fn write_to(self, output: &mut impl Write) -> io::Result<u64> {
        let on_disk = self.runs.into_iter().map(|file| Run::OnDisk(BufReader::new(file)));
        let mut runs: Vec<Run> = on_disk.chain([Run::InMemory(self.held.into_iter())]).collect();
        let mut next = BinaryHeap::new();
        for (index, run) in runs.iter_mut().enumerate() {
            next.extend(run.next()?.map(|(key, line)| Reverse((key, index, line))));
        }
        let (mut count, mut last) = (0, None);
        while let Some(Reverse((key, index, line))) = next.pop() {
            if let Some(run) = runs.get_mut(index) {
                next.extend(run.next()?.map(|(key, line)| Reverse((key, index, line))));
            }
            if last.as_ref() == Some(&key) {
                continue;
            }
            output.write_all(&line)?;
            output.write_all(b"\n")?;
            count += 1;
            last = Some(key);
        }
        output.flush()?;
        Ok(count)
    }
}

/// Documents in order.
enum Run {
    OnDisk(BufReader<File>),
    InMemory(btree_map::IntoIter<Key, Vec<u8>>),
}

impl Run {
    fn next(&mut self) -> io::Result<Option<(Key, Vec<u8>)>> {
        let reader = match self {
            Self::InMemory(held) => return Ok(held.next()),
            Self::OnDisk(reader) => reader,
        };
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let mut parts = line.trim_ascii_end().splitn(3, |byte| *byte == b' ');
        let mut part = || parts.next().unwrap_or_default();
        let (time, id, document) = (part(), part(), part());
        let time = str::from_utf8(time).ok().and_then(|time| time.parse().ok());
        let time = time.ok_or(io::ErrorKind::InvalidData)?;
        let key = (Micros(time), String::from_utf8_lossy(id).into_owned());
        Ok(Some((key, document.to_vec())))
    }
}

/// Where the lines go.
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file that appears, whole, when all is written.
    File(NamedTempFile, PathBuf),
    /// A device or pipe: nothing to put in its place.
    Device(File),
}

impl Target {
    /// Prepares writing; nothing is changed yet.
    ///
    /// # Errors
    /// The file's folder cannot be written.
    pub fn prepare(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            return Ok(Self::Stdout);
        };
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            return Ok(Self::Device(File::options().write(true).open(path)?));
        }
        Ok(Self::File(NamedTempFile::new_in(folder_of(path))?, path.to_owned()))
    }

    /// Where runs may go: beside the file.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Stdout | Self::Device(_) => None,
            Self::File(_, path) => Some(folder_of(path).to_owned()),
        }
    }

    /// Writes the documents; how many they were.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(self, sorted: Sorted) -> io::Result<u64> {
        match self {
            Self::Stdout => sorted.write_to(&mut BufWriter::new(io::stdout().lock())),
            Self::Device(file) => sorted.write_to(&mut BufWriter::new(file)),
            Self::File(mut file, path) => {
                let count = sorted.write_to(&mut BufWriter::new(&mut file))?;
                file.as_file().sync_all()?;
                file.persist(path)?;
                Ok(count)
            }
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_in_order_each_once_whether_they_fit_or_not(
            keys in prop::collection::vec((0..50i64, 0..4u8), 0..200),
            limit in 0..2_000usize,
        ) {
            let mut sorted = Sorted { limit, ..Sorted::new(None) };
            let line = |(time, id): &(i64, u8)| format!("{{\"t\":{time}, \"id\":{id}}}");
            for key in &keys {
                let place = (Micros(key.0), format!("{:x}", key.1));
                sorted.push_line(place, line(key).into_bytes()).unwrap();
            }
            let mut written = Vec::new();
            let count = sorted.write_to(&mut written).unwrap();
            let mut expected = keys;
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(count, expected.len() as u64);
            let expected: String = expected.iter().map(|key| line(key) + "\n").collect();
            prop_assert_eq!(String::from_utf8(written).unwrap(), expected);
        }
    }

    #[test]
    fn a_file_is_there_when_it_is_whole_and_keeps_what_it_had_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alerts.ndjson");
        std::fs::write(&path, "before").unwrap();
        let target = Target::prepare(Some(&path)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        let mut sorted = Sorted::new(target.folder());
        sorted.push_line((Micros(1), "a".into()), b"{}".to_vec()).unwrap();
        assert_eq!(target.write(sorted).unwrap(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(Target::prepare(Some(&folder.path().join("no/such.ndjson"))).is_err());
        assert!(Target::prepare(Some(folder.path())).is_err());
        let null = Path::new("/dev/null");
        assert!(matches!(Target::prepare(Some(null)).unwrap(), Target::Device(_)));
    }
}

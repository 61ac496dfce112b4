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

use serde::Deserialize;
use tempfile::NamedTempFile;

use crate::{
    alert::{ecs::Document, fit},
    time::Micros,
};

/// Documents held in memory, bytes.
const HELD: usize = 4 << 20;

/// Where the order comes from.
type Key = (Micros, String);

/// Documents on their way out. They come nearly in order, so that one run nearly always is all
/// there is: then it is the output already.
pub struct Sorted {
    folder: Option<PathBuf>,
    /// For the run that is being written.
    held: BTreeMap<Key, Vec<u8>>,
    /// What that run is beyond already: for the next.
    next: BTreeMap<Key, Vec<u8>>,
    /// Of both.
    bytes: usize,
    limit: usize,
    runs: Vec<Run>,
}

/// Lines in order, on disk.
struct Run {
    file: BufWriter<NamedTempFile>,
    last: Key,
    count: u64,
}

impl Sorted {
    /// Runs go to this folder, or to that of temporary files.
    pub fn new(folder: Option<PathBuf>) -> Self {
        let (held, next) = (BTreeMap::new(), BTreeMap::new());
        Self { folder, held, next, bytes: 0, limit: HELD, runs: Vec::new() }
    }

    /// Where temporary files go; `None` is where they go by themselves.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Takes a document.
    ///
    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, document: &Document) -> io::Result<()> {
        self.push_line((document.timestamp, document.event.id.clone()), fit::line(document)?)
    }

    fn push_line(&mut self, key: Key, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        line.shrink_to_fit();
        self.bytes += line.len();
        let is_passed = self.runs.last().is_some_and(|run| key < run.last);
        let place = if is_passed { &mut self.next } else { &mut self.held };
        if let Some(replaced) = place.insert(key, line) {
            self.bytes -= replaced.len();
        }
        while self.bytes > self.limit {
            let begins = self.held.is_empty() || self.runs.is_empty();
            if self.held.is_empty() {
                std::mem::swap(&mut self.held, &mut self.next);
            }
            let Some((key, line)) = self.held.pop_first() else { break };
            self.bytes -= line.len();
            match self.runs.last_mut().filter(|_| !begins) {
                // It is there already.
                Some(run) if key == run.last => {}
                Some(run) => run.add(key, &line)?,
                None => self.begin_run(key, &line)?,
            }
        }
        Ok(())
    }

    fn begin_run(&mut self, key: Key, line: &[u8]) -> io::Result<()> {
        let file = match &self.folder {
            Some(folder) => NamedTempFile::new_in(folder)?,
            None => NamedTempFile::new()?,
        };
        let mut run =
            Run { file: BufWriter::with_capacity(1 << 16, file), last: key.clone(), count: 0 };
        run.add(key, line)?;
        self.runs.push(run);
        Ok(())
    }

    /// The run that is all but what is held, which belongs behind it.
    fn take_only_run(&mut self) -> io::Result<Option<(NamedTempFile, u64)>> {
        let first = self.held.first_key_value().map(|(key, _)| key);
        let [run] = self.runs.as_slice() else { return Ok(None) };
        if !self.next.is_empty() || first.is_some_and(|first| *first <= run.last) {
            return Ok(None);
        }
        let Some(run) = self.runs.pop() else { return Ok(None) };
        Ok(Some((run.file.into_inner().map_err(io::IntoInnerError::into_error)?, run.count)))
    }

    /// Writes all, in order; how many that were.
    ///
    /// # Errors
    /// The output cannot be written, or a run not be read.
    pub fn write_to(mut self, output: &mut impl Write) -> io::Result<u64> {
        let mut count = 0;
        if let Some((mut file, lines)) = self.take_only_run()? {
            file.rewind()?;
            io::copy(&mut file, output)?;
            count = lines;
        }
        let on_disk = self.runs.into_iter().map(|run| Lines::on_disk(run.file));
        let mut lines = on_disk.collect::<io::Result<Vec<_>>>()?;
        lines.extend([self.held, self.next].map(|held| Lines::InMemory(held.into_iter())));
        let mut next = BinaryHeap::new();
        for (index, lines) in lines.iter_mut().enumerate() {
            next.extend(lines.next()?.map(|(key, line)| Reverse((key, index, line))));
        }
        let mut last = None;
        while let Some(Reverse((key, index, line))) = next.pop() {
            if let Some(lines) = lines.get_mut(index) {
                next.extend(lines.next()?.map(|(key, line)| Reverse((key, index, line))));
            }
            if last.as_ref() == Some(&key) {
                continue;
            }
            output.write_all(&line)?;
            count += 1;
            last = Some(key);
        }
        output.flush()?;
        Ok(count)
    }
}

impl Run {
    fn add(&mut self, key: Key, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)?;
        self.last = key;
        self.count += 1;
        Ok(())
    }
}

/// Lines in order, to be merged.
enum Lines {
    OnDisk(BufReader<NamedTempFile>),
    InMemory(btree_map::IntoIter<Key, Vec<u8>>),
}

impl Lines {
    fn on_disk(run: BufWriter<NamedTempFile>) -> io::Result<Self> {
        let mut file = run.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(Self::OnDisk(BufReader::new(file)))
    }

    fn next(&mut self) -> io::Result<Option<(Key, Vec<u8>)>> {
        /// Of a document.
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "@timestamp")]
            timestamp: Micros,
            event: Event,
        }
        #[derive(Deserialize)]
        struct Event {
            id: String,
        }
        let reader = match self {
            Self::InMemory(held) => return Ok(held.next()),
            Self::OnDisk(reader) => reader,
        };
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let head: Head = serde_json::from_slice(&line)?;
        Ok(Some(((head.timestamp, head.event.id), line)))
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
    pub fn write(self, mut sorted: Sorted) -> io::Result<u64> {
        match self {
            Self::Stdout => sorted.write_to(&mut BufWriter::new(io::stdout().lock())),
            Self::Device(file) => sorted.write_to(&mut BufWriter::new(file)),
            Self::File(file, path) => {
                let (mut file, before) = sorted.take_only_run()?.unwrap_or((file, 0));
                let count = before + sorted.write_to(&mut BufWriter::new(&mut file))?;
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
            let line = |(time, id): &(i64, u8)| {
                format!("{{\"@timestamp\":\"{}\",\"event\":{{\"id\":\"{id}\"}}}}", Micros(*time))
            };
            for key in &keys {
                let place = (Micros(key.0), format!("{:x}", key.1));
                sorted.push_line(place, line(key).into_bytes()).unwrap();
            }
            let mut written = Vec::new();
            // Few runs, however many lines come behind their turn.
            let bytes: usize = keys.iter().map(|key| line(key).len() + 1).sum();
            prop_assert!(sorted.runs.len() <= 1 + bytes / limit.max(50));
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

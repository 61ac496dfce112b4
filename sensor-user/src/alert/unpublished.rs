//! What of the alert log is yet to be published. The log itself is the queue: this reads its documents in their
//! order, from where the last agent came to, through files that were rotated meanwhile, and remembers how far.
//!
//! Reads only what is durable. What rotation took away unread is counted. It never writes to the log, and
//! publishes nothing: `nats::telling` does.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::log::{AlertLogSettings, BEGINNING, Durable, rotated};
use crate::fingerprint::first_line;

/// Version of the state file; another one is not read.
const VERSION: u32 = 1;
/// What is larger is no state of ours.
const MAX_BYTES: u64 = 64 << 10;
/// Bytes that are read at once: more than most documents have.
const CHUNK: usize = 32 << 10;

/// A document that is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// Its `event.id`.
    pub id: String,
    /// The document, without a newline.
    pub line: Vec<u8>,
}

/// The queue.
#[derive(Debug)]
pub struct Unpublished {
    log: AlertLogSettings,
    file: PathBuf,
    reader: Option<Reader>,
    /// Bytes of the document that is next.
    next: u64,
    /// Documents that were found at the start.
    found: u64,
    /// Documents that are behind us since, published or not.
    done: u64,
    /// Documents that rotation took away, and nobody has asked for yet.
    lost: u64,
    saved: Option<Saved>,
}

/// A file of the log, held open: its inode is no other's then.
#[derive(Debug)]
struct Reader {
    file: File,
    inode: u64,
    first_line: Option<u64>,
    offset: u64,
}

/// How far all is done, as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// What the file begins with; without it, the log was empty.
    first_line: Option<u64>,
    offset: u64,
    /// When it was written to last: files that were not since are of before.
    modified: SystemTime,
    /// Documents that were not done then.
    waiting: u64,
}

/// What is to be written to the disk, by a thread that may wait for it.
#[derive(Debug)]
pub struct Save {
    file: PathBuf,
    saved: Saved,
}

impl Unpublished {
    /// Begins where the last agent came to; the first one begins at the log's end.
    ///
    /// # Errors
    /// The log or the state cannot be read, or not be written.
    pub fn open(log: AlertLogSettings, state_dir: &Path, durable: &Durable) -> io::Result<Self> {
        let file = state_dir.join("published-alerts.json");
        let mut queue =
            Self { log, file, reader: None, next: 0, found: 0, done: 0, lost: 0, saved: None };
        match read(&queue.file)? {
            None => {
                queue.reader = Reader::open(&queue.log.path)?;
                if let Some(reader) = &mut queue.reader {
                    reader.offset = durable.length;
                }
            }
            Some(saved) => {
                queue.reader = queue.find(&saved, durable)?;
                queue.found = queue.count(durable)?;
                if queue.reader.as_ref().is_none_or(|it| it.first_line != saved.first_line) {
                    queue.lost = saved.waiting.saturating_sub(queue.found);
                }
                queue.saved = Some(saved);
            }
        }
        // From now on the end of the log is not where to begin.
        queue.save(durable).map_or(Ok(()), |save| save.write())?;
        Ok(queue)
    }

    /// The document that comes next, of all that is durable. The same again until it is done.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn next(&mut self, durable: &Durable) -> io::Result<Option<Next>> {
        loop {
            let Some(reader) = &mut self.reader else {
                self.reader = self.oldest(durable, |_| false)?;
                if self.reader.is_none() {
                    return Ok(None);
                }
                continue;
            };
            let is_current = reader.inode == durable.inode;
            let end = if is_current { durable.length } else { reader.file.metadata()?.len() };
            if let Some(line) = reader.line(end)? {
                self.next = line.len() as u64 + 1;
                match id(&line) {
                    Some(id) => return Ok(Some(Next { id, line })),
                    // Text of others.
                    None => reader.offset += self.next,
                }
            } else if is_current || !self.move_on(durable)? {
                // All is read that there is: what was written and not read is gone.
                let gone = if is_current { self.waiting(durable) } else { 0 };
                self.lost += gone;
                self.done += gone;
                return Ok(None);
            }
        }
    }

    /// The document that was next is done with.
    pub fn done(&mut self) {
        if let Some(reader) = &mut self.reader {
            reader.offset += std::mem::take(&mut self.next);
            self.done += 1;
        }
    }

    /// Documents that are not done with.
    pub fn waiting(&self, durable: &Durable) -> u64 {
        (self.found + durable.documents).saturating_sub(self.done)
    }

    /// Documents that rotation took away since this was asked last.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// What has to be written for the next start to go on here, if that is not on disk.
    pub fn save(&mut self, durable: &Durable) -> Option<Save> {
        let saved = Saved {
            version: VERSION,
            first_line: self.reader.as_mut().and_then(Reader::first_line),
            offset: self.reader.as_ref().map_or(0, |reader| reader.offset),
            modified: self.reader.as_ref().map_or(SystemTime::UNIX_EPOCH, Reader::modified),
            waiting: self.waiting(durable),
        };
        if self.saved.as_ref() == Some(&saved) {
            return None;
        }
        self.saved = Some(saved.clone());
        Some(Save { file: self.file.clone(), saved })
    }

    /// What was to be written is not.
    pub fn redo(&mut self) {
        self.saved = None;
    }

    /// The files of the log, the newest first.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let number = |number| match number {
            0 => self.log.path.clone(),
            _ => rotated(&self.log.path, number),
        };
        (0..=self.log.keep).map(number)
    }

    /// The oldest file of those after what `is_before` names. `None` also while the one that is told of as durable
    /// is not among them: it was rotated away since, and how far what is there now is durable is yet to be told.
    fn oldest(
        &self,
        durable: &Durable,
        is_before: impl Fn(&Reader) -> bool,
    ) -> io::Result<Option<Reader>> {
        let (mut oldest, mut is_told) = (None, false);
        // While they are renamed a file may be met twice, and none is missed.
        for path in self.files() {
            let Some(reader) = Reader::open(&path)? else { continue };
            if is_before(&reader) {
                break;
            }
            is_told |= reader.inode == durable.inode;
            oldest = Some(reader);
        }
        Ok(oldest.filter(|_| is_told))
    }

    /// The file that was read last and where; if it is gone, what was written after it.
    fn find(&self, saved: &Saved, durable: &Durable) -> io::Result<Option<Reader>> {
        for path in self.files() {
            let Some(mut reader) = Reader::open(&path)? else { continue };
            if reader.first_line.is_some() && reader.first_line == saved.first_line {
                reader.offset = saved.offset.min(reader.file.metadata()?.len());
                return Ok(Some(reader));
            }
        }
        self.oldest(durable, |reader| reader.modified() < saved.modified)
    }

    /// Documents from here on.
    fn count(&mut self, durable: &Durable) -> io::Result<u64> {
        let Some(reader) = &self.reader else { return Ok(0) };
        let start = (reader.inode, reader.offset);
        let mut count = 0;
        for path in self.files() {
            let Some(mut reader) = Reader::open(&path)? else { continue };
            let is_first = reader.inode == start.0;
            let is_current = reader.inode == durable.inode;
            let end = if is_current { durable.length } else { reader.file.metadata()?.len() };
            reader.offset = if is_first { start.1 } else { 0 };
            while let Some(line) = reader.line(end)? {
                reader.offset += line.len() as u64 + 1;
                count += u64::from(id(&line).is_some());
            }
            if is_first {
                break;
            }
        }
        Ok(count)
    }

    /// Goes on in the file that was begun after this one. Whether there is one.
    fn move_on(&mut self, durable: &Durable) -> io::Result<bool> {
        let Some(current) = &self.reader else { return Ok(false) };
        let (inode, modified) = (current.inode, current.modified());
        // Somebody may have moved this one elsewhere: then time tells which are of before.
        let is_before = |it: &Reader| it.inode == inode || it.modified() < modified;
        let newer = self.oldest(durable, is_before)?;
        let found = newer.is_some();
        if found {
            self.reader = newer;
        }
        Ok(found)
    }
}

impl Reader {
    /// Opens a file of the log at its beginning, if it is there.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let opened =
            OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let inode = file.metadata()?.ino();
        let mut reader = Self { file, inode, first_line: None, offset: 0 };
        reader.first_line();
        Ok(Some(reader))
    }

    /// When it was written to last.
    fn modified(&self) -> SystemTime {
        let modified = self.file.metadata().and_then(|it| it.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// What it begins with, once it begins with something.
    fn first_line(&mut self) -> Option<u64> {
        if self.first_line.is_none() {
            let from_start = self.file.rewind().and_then(|()| first_line(&self.file));
            self.first_line = from_start.ok().flatten();
        }
        self.first_line
    }

    /// The line here, without its newline, if all of it is before `end`.
    fn line(&mut self, end: u64) -> io::Result<Option<Vec<u8>>> {
        let left = end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut line = Vec::new();
        BufReader::with_capacity(CHUNK, (&self.file).take(left)).read_until(b'\n', &mut line)?;
        Ok((line.pop() == Some(b'\n')).then_some(line))
    }
}

impl Save {
    /// Writes it, durably.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn write(&self) -> io::Result<()> {
        let temporary = self.file.with_extension("json.tmp");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(&self.saved)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.file)
    }
}

/// The state; `None` if there never was one. One that is damaged means all that is there: what is told twice is
/// known by its id, what is not told is lost.
fn read(path: &Path) -> io::Result<Option<Saved>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let reason = match serde_json::from_slice::<Saved>(&bytes) {
        Ok(saved) if saved.version == VERSION => return Ok(Some(saved)),
        Ok(saved) => format!("version {} is not {VERSION}", saved.version),
        Err(error) => error.to_string(),
    };
    tracing::warn!(path = %path.display(), %reason, "how far alerts were published is not known; all that are in the log are published");
    let modified = SystemTime::UNIX_EPOCH;
    Ok(Some(Saved { version: VERSION, first_line: None, offset: 0, modified, waiting: 0 }))
}

/// The id of a document; `None` if this is none.
fn id(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        event: Event,
    }
    #[derive(Deserialize)]
    struct Event {
        id: String,
    }
    let line = line.starts_with(BEGINNING).then_some(line)?;
    serde_json::from_slice(line).ok().map(|Line { event }| event.id)
}

#[cfg(test)]
mod tests;

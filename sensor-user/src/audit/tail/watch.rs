//! Wakes the tailer when its file may have changed: by inotify at once, by a slow clock at least.
//!
//! inotify only makes it fast. Whatever it misses (no instances left, a network file system, a
//! directory swapped while it was being watched) the clock finds a quarter of a second later, so
//! nothing here is an error that anybody must handle.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::warn;

use super::rotation::FileId;

/// How late a change that inotify missed is found.
pub(super) const POLL: Duration = Duration::from_millis(250);

/// What woke the tailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The open file was written to.
    Data,
    /// Names may have changed, or time has passed: look at everything.
    Check,
}

/// Watches the open file, and the directory that holds its name or, if that does not exist yet,
/// the nearest one above it that does.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    events: Option<EventStream<[u8; 1024]>>,
    directory: Option<Watched>,
    file: Option<Watched>,
    next_check: Instant,
}

#[derive(Debug)]
struct Watched {
    id: FileId,
    /// `None`: could not be watched, the clock must do.
    descriptor: Option<WatchDescriptor>,
    /// The entry of a directory that matters.
    name: Option<OsString>,
}

impl Watch {
    /// Prepares to watch a path; nothing is watched before [`Self::arm`].
    pub(super) fn new(path: &Path) -> Self {
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 1024]));
        let events = events.inspect_err(|error| {
            warn!(path = %path.display(), %error, "no inotify (see fs.inotify.max_user_instances), audit lines are found up to {POLL:?} late");
        });
        Self {
            path: path.to_owned(),
            events: events.ok(),
            directory: None,
            file: None,
            next_check: Instant::now() + POLL,
        }
    }

    /// Watches what there is to watch now. To be called before the path is looked at, so that
    /// whatever happens after the look is an event.
    pub(super) fn arm(&mut self, open: Option<FileId>) {
        let path = self.path.clone();
        // Of the ancestors that exist, the nearest; what matters in it is the next part of the path.
        let nearest = path.ancestors().zip(path.ancestors().skip(1)).find_map(|(entry, dir)| {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            Some((entry.file_name()?, dir, FileId::from(&fs::metadata(dir).ok()?)))
        });
        if let Some((entry, dir, id)) = nearest {
            let mask = WatchMask::CREATE
                | WatchMask::MOVE
                | WatchMask::DELETE
                | WatchMask::ATTRIB
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF
                | WatchMask::ONLYDIR;
            let old = self.directory.take();
            self.directory = Some(self.watch(old, dir, id, mask, Some(entry.to_owned())));
        }
        if let Some(id) = open {
            // By name: if the name has moved on, the look that follows finds a new identity.
            let mask = WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::MOVE_SELF;
            let old = self.file.take();
            self.file = Some(self.watch(old, &path, id, mask, None));
        }
    }

    /// Whether this file was armed.
    pub(super) fn watches(&self, open: Option<FileId>) -> bool {
        open.is_none() || self.file.as_ref().map(|watched| watched.id) == open
    }

    /// Returns when something happened, at the next turn of the clock at the latest.
    pub(super) async fn changed(&mut self) -> Wake {
        // Steady writing must not keep the clock from being looked at.
        while Instant::now() < self.next_check {
            let Some(events) = &mut self.events else {
                sleep_until(self.next_check).await;
                break;
            };
            match timeout_at(self.next_check, events.next()).await {
                Err(_elapsed) => break,
                Ok(Some(Ok(event))) => {
                    if let Some(wake) = self.judge(&event) {
                        return wake;
                    }
                }
                Ok(failed) => {
                    let error = failed.and_then(Result::err);
                    warn!(path = %self.path.display(), ?error, "inotify failed, going on without it");
                    self.events = None;
                }
            }
        }
        self.next_check = Instant::now() + POLL;
        Wake::Check
    }

    fn watch(
        &mut self,
        old: Option<Watched>,
        path: &Path,
        id: FileId,
        mask: WatchMask,
        name: Option<OsString>,
    ) -> Watched {
        let Some(events) = &self.events else {
            return Watched { id, descriptor: None, name };
        };
        let mut watches = events.watches();
        if let Some(old) = old {
            if old.id == id && old.descriptor.is_some() {
                return Watched { name, ..old };
            }
            if let Some(descriptor) = old.descriptor {
                // It fails if the file is gone, and then there is nothing to remove.
                let _: io::Result<()> = watches.remove(descriptor);
            }
        }
        Watched { id, descriptor: watches.add(path, mask).ok(), name }
    }

    /// What an event is worth; `None` if it is about another file of the directory.
    fn judge(&self, event: &EventOwned) -> Option<Wake> {
        let from = |watched: &Option<Watched>| {
            watched.as_ref().is_some_and(|watched| watched.descriptor.as_ref() == Some(&event.wd))
        };
        if from(&self.file) && event.mask.contains(EventMask::MODIFY) {
            return Some(Wake::Data);
        }
        let of_interest = self.directory.as_ref().and_then(|watched| watched.name.as_ref());
        if from(&self.directory) && event.name.is_some() && event.name.as_ref() != of_interest {
            return None;
        }
        Some(Wake::Check)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use tokio::time::{Instant, timeout};

    use super::{Wake, Watch};
    use crate::audit::tail::rotation::identify;

    /// A watch whose clock does not strike: what wakes it is inotify.
    fn watch(path: &Path) -> Watch {
        let mut watch = Watch::new(path);
        watch.next_check = Instant::now() + Duration::from_secs(3600);
        watch.arm(identify(path).ok());
        watch
    }

    async fn wakes(watch: &mut Watch) -> Wake {
        timeout(Duration::from_secs(10), watch.changed()).await.expect("it was not woken")
    }

    #[tokio::test]
    async fn a_write_to_the_open_file_wakes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        fs::write(&path, "").unwrap();
        let mut watch = watch(&path);
        fs::write(dir.path().join("other.log"), "x").unwrap();
        fs::write(&path, "x").unwrap();
        assert_eq!(wakes(&mut watch).await, Wake::Data);
    }

    #[tokio::test]
    async fn the_coming_and_going_of_the_name_wakes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut watch = watch(&path);
        fs::write(&path, "").unwrap();
        assert_eq!(wakes(&mut watch).await, Wake::Check);
        watch.next_check = Instant::now() + Duration::from_secs(3600);
        fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
        assert_eq!(wakes(&mut watch).await, Wake::Check);
    }

    #[tokio::test]
    async fn a_directory_that_comes_on_the_way_to_the_file_wakes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubernetes/audit/audit.log");
        let mut watch = watch(&path);
        fs::create_dir(dir.path().join("kubernetes")).unwrap();
        assert_eq!(wakes(&mut watch).await, Wake::Check);
        watch.arm(None);
        watch.next_check = Instant::now() + Duration::from_secs(3600);
        fs::create_dir(dir.path().join("kubernetes/audit")).unwrap();
        assert_eq!(wakes(&mut watch).await, Wake::Check);
    }

    #[tokio::test]
    async fn without_any_event_the_clock_wakes() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(&dir.path().join("audit.log"));
        watch.arm(None);
        assert_eq!(wakes(&mut watch).await, Wake::Check);
        watch.events = None;
        assert_eq!(wakes(&mut watch).await, Wake::Check);
    }
}

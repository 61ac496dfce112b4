//! Where reading goes on after a restart or a truncation: the file that was read may have been rotated,
//! copied, compressed, truncated or deleted meanwhile. Asks the file system, keeps nothing.

use std::{fs::File, path::Path};

use super::{
    open::OpenFile,
    rotation::{self, FileId, OpenError, Sibling},
};
use crate::audit::checkpoint::Position;

/// What became of the content that was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there, under this or another name.
    Continued,
    /// Its file is there, with other content.
    Truncated,
    /// It is gone.
    Gone,
}

/// The file to go on with: the one of the position; else one with the same content, renumbered, copied
/// or compressed; else the oldest that was written later than the position is from, the live one at last.
pub(super) fn resume(path: &Path, start: &Position) -> Result<(OpenFile, Outcome), OpenError> {
    let id = FileId { device: start.device, inode: start.inode };
    let live = rotation::open(path);
    // Listed after the live file was opened: one rotated in between is in the list.
    let siblings = rotation::siblings(path)?;
    let later = |it: &&Sibling| {
        let same = it.id == id && Some(it.time) == start.modified;
        start.modified.is_some_and(|then| it.time > then) || same
    };
    let later = siblings.iter().find(later);
    let same = match &live {
        // Nothing was read of it, so nothing tells whether its inode number is another's by now.
        _ if start.offset == 0 && later.is_some() => None,
        Ok((file, live)) if *live == id => Some(at(path, file, id, start.offset)?),
        Ok(_) | Err(_) => {
            let sibling = siblings.iter().find(|sibling| sibling.id == id);
            let found = sibling.map(|sibling| sibling.open(start.offset)).transpose()?;
            found.or_else(|| behind_link(id, start))
        }
    };
    let outcome = if same.is_some() { Outcome::Truncated } else { Outcome::Gone };
    if let Some(mut open) = same
        && open.continues(start)
    {
        return Ok((open, Outcome::Continued));
    }
    // Another device number, as many file systems get at each boot, or a copy in its place.
    if let (Ok((file, live)), Some(_)) = (&live, start.first_line)
        && *live != id
    {
        let mut open = at(path, file, *live, start.offset)?;
        if open.continues(start) {
            return Ok((open, Outcome::Continued));
        }
    }
    if let Some(open) = twin(&siblings, start)? {
        return Ok((open, Outcome::Continued));
    }
    match later {
        Some(later) if start.offset == 0 && later.id == id => {
            Ok((later.open(0)?, Outcome::Continued))
        }
        Some(later) => Ok((later.open(0)?, outcome)),
        None => {
            let (file, id) = live?;
            Ok((OpenFile::at(file, id, 0), outcome))
        }
    }
}

/// The position's file where it was last, if it is there still: a link that led to it leads elsewhere by now.
fn behind_link(id: FileId, start: &Position) -> Option<OpenFile> {
    let (file, found) = rotation::open(Path::new(start.path.as_ref()?)).ok()?;
    (found == id).then(|| OpenFile::at(file, id, start.offset))
}

/// A rotated copy of the position's file, compressed or not, that has all that was read of it.
pub(super) fn copy(path: &Path, start: &Position) -> Result<Option<OpenFile>, OpenError> {
    twin(&rotation::siblings(path)?, start)
}

fn twin(siblings: &[Sibling], start: &Position) -> Result<Option<OpenFile>, OpenError> {
    let id = FileId { device: start.device, inode: start.inode };
    for sibling in siblings.iter().filter(|sibling| sibling.id != id) {
        if sibling.begins_with(start.first_line)? {
            let mut open = sibling.open(start.offset)?;
            if open.continues(start) {
                return Ok(Some(open));
            }
        }
    }
    Ok(None)
}

/// The live file from an offset on; its handle stays.
fn at(path: &Path, file: &File, id: FileId, offset: u64) -> Result<OpenFile, OpenError> {
    let file = file.try_clone().map_err(|error| OpenError::new(path, error))?;
    Ok(OpenFile::at(file, id, offset))
}

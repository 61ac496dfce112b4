//! Reads one body in bounded memory: unpacks it, cuts it into items, hands those to the scan.
//!
//! No I/O and no time. Called by `post` with one piece after the other.

use std::{
    io::{self, Write as _},
    sync::Mutex,
};

use flate2::write::GzDecoder;

use super::lock;
use crate::audit::{
    ReadRecord,
    lines::{Lines, MAX_LINE},
    sieve::Sieve,
    webhook::{items::Items, metrics::BadBody},
};

/// Packed bytes taken at once. Gzip makes at most 1,032 of one, so that this bounds the records in
/// memory.
const PACKED_PIECE: usize = 512;
/// Records are handed on when so many bytes of items were read for them.
const BATCH: usize = 64 << 10;

/// The state between two pieces.
pub(super) struct Reader {
    unpack: Unpack,
    /// Bytes that may still come, unpacked.
    room: u64,
    items: Items,
    lines: Lines,
    records: Vec<ReadRecord>,
    read: usize,
    fault: Option<BadBody>,
}

enum Unpack {
    Plain,
    Gzip(Box<GzDecoder<Vec<u8>>>),
}

impl Reader {
    /// For a body that is packed or not, or in a way that is not known.
    pub(super) fn new(gzip: Result<bool, BadBody>, max_bytes: u64) -> Self {
        let unpack = match gzip {
            Ok(true) => Unpack::Gzip(Box::new(GzDecoder::new(Vec::new()))),
            Ok(false) | Err(_) => Unpack::Plain,
        };
        Self {
            unpack,
            room: max_bytes,
            items: Items::default(),
            // An `EventList` is what the API server itself posts: nothing is wrapped in it.
            lines: Lines::with_longest(MAX_LINE),
            records: Vec::new(),
            read: 0,
            fault: gzip.err(),
        }
    }

    /// So many bytes are to be pushed at once, at most.
    pub(super) fn piece(&self) -> usize {
        match self.unpack {
            Unpack::Plain => BATCH,
            Unpack::Gzip(_) => PACKED_PIECE,
        }
    }

    /// Takes a piece; the records so far, once they are worth it. After a fault the rest of the
    /// body is passed over.
    pub(super) fn push(&mut self, piece: &[u8], sieve: &Mutex<Sieve>) -> Vec<ReadRecord> {
        if self.fault.is_none() {
            self.fault = self.try_push(piece, sieve).err();
        }
        if self.read < BATCH {
            return Vec::new();
        }
        self.read = 0;
        std::mem::take(&mut self.records)
    }

    /// The last records, and what was wrong with the body. An item without its end is none.
    pub(super) fn finish(mut self) -> (Vec<ReadRecord>, Option<BadBody>) {
        let unpacked = match &mut self.unpack {
            Unpack::Gzip(decoder) => decoder.try_finish().map_err(|_| BadBody::BadEncoding),
            Unpack::Plain => Ok(()),
        };
        let whole = unpacked.and_then(|()| self.items.finish());
        (self.records, self.fault.or(whole.err()))
    }

    fn try_push(&mut self, piece: &[u8], sieve: &Mutex<Sieve>) -> Result<(), BadBody> {
        let unpacked;
        let (bytes, broken) = match &mut self.unpack {
            Unpack::Plain => (piece, Ok(())),
            Unpack::Gzip(decoder) => {
                let broken = unpack(decoder, piece);
                unpacked = std::mem::take(decoder.get_mut());
                (unpacked.as_slice(), broken)
            }
        };
        let fits = usize::try_from(self.room).ok().and_then(|room| bytes.get(..room));
        let (bytes, fits) =
            fits.map_or((bytes, true), |fitting| (fitting, fitting.len() == bytes.len()));
        self.room = self.room.saturating_sub(bytes.len() as u64);
        let mut items = Vec::new();
        let pushed = self.items.push(bytes, &mut items);
        // What came before a fault is as good as ever.
        self.records.extend(lock(sieve).take_records(&mut self.lines, &items));
        self.read += bytes.len();
        pushed?;
        if !fits {
            return Err(BadBody::TooLarge);
        }
        broken.map_err(|_| BadBody::BadEncoding)
    }
}

fn unpack(decoder: &mut GzDecoder<Vec<u8>>, piece: &[u8]) -> io::Result<()> {
    decoder.write_all(piece)?;
    decoder.flush()
}

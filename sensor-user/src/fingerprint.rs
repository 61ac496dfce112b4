//! What a log file begins with, as a number: knows a file's content again after it was copied or
//! compressed, and tells when a file has other content than before. No two events or alerts are the same.
//!
//! Called where audit logs and alert logs are opened and positions in them taken. Blocking, a few kilobytes.

use std::io::{self, BufRead as _, BufReader, Read};

use memchr::memchr;
use sha2::{Digest as _, Sha256};

/// Bytes of a line that are looked at.
const ENOUGH: u64 = 4096;

/// The fingerprint of the first line; `None` while there is no complete one. Where it stands counts
/// as well: a file that was truncated under a writer that goes on at its old offset begins with a
/// hole.
pub fn first_line(content: impl Read) -> io::Result<Option<u64>> {
    let mut content = BufReader::new(content);
    let mut start = 0u64;
    loop {
        let chunk = content.fill_buf()?;
        let nuls = chunk.iter().take_while(|byte| **byte == 0).count();
        let only_nuls = nuls == chunk.len();
        if chunk.is_empty() {
            return Ok(None);
        }
        content.consume(nuls);
        start += nuls as u64;
        if !only_nuls {
            break;
        }
    }
    let mut line = Vec::new();
    content.take(ENOUGH).read_until(b'\n', &mut line)?;
    // A NUL ends a line as a newline does.
    let torn = memchr(0, &line);
    if torn.is_none() && !line.ends_with(b"\n") && (line.len() as u64) < ENOUGH {
        return Ok(None);
    }
    line.truncate(torn.unwrap_or(line.len()));
    let hash = Sha256::new().chain_update(start.to_be_bytes()).chain_update(&line).finalize();
    Ok(hash.first_chunk().copied().map(u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::first_line;

    fn print(content: &[u8]) -> Option<u64> {
        first_line(content).unwrap()
    }

    #[test]
    fn only_a_complete_first_line_counts_and_nothing_behind_it() {
        assert!(print(b"one\n").is_some());
        assert_eq!(print(b"one\n"), print(b"one\ntwo\nthree"));
        for (one, other) in [
            (&b"one\n"[..], &b"two\n"[..]),
            (b"one\n", b"one more\n"),
            (b"one\n", b"\none\n"),
            (b"one\n", b"\0one\n"),
            (b"\0one\n", b"\0\0one\n"),
        ] {
            assert_ne!(print(one), print(other));
        }
        for none in [&b""[..], b"one", b"\0\0\0", b"\0one"] {
            assert_eq!(print(none), None);
        }
    }

    #[test]
    fn of_a_long_line_or_a_long_hole_only_what_is_read_at_once_is_kept() {
        let long = vec![b'x'; 10_000];
        assert!(print(&long).is_some());
        assert_eq!(print(&long), print(&[&long[..], b"y\n"].concat()));
        let hole = vec![0; 100_000];
        assert_eq!(print(&hole), None);
        assert!(print(&[&hole[..], b"one\n"].concat()).is_some());
        assert_eq!(print(b"one\0\0\0two\n"), print(b"one\0"), "torn by a hole");
    }
}

//! Records of all shapes, as text and terminal facts.

use proptest::prelude::*;
use tokentrail_ebpf::{FdFacts, Missing, OpenRecord};
use zerocopy::FromBytes;

use super::*;
use crate::attribution::fixture::{PIPE, PTS, PTY, name, names, record};

#[test]
fn interactive_is_a_terminal_on_descriptors_0_and_2() {
    let dev_tty = FdFacts { rdev: 5 << 20, mode: 0o020_666 };
    let null = FdFacts { rdev: 1 << 20 | 3, mode: 0o020_666 };
    let other_pty = FdFacts { rdev: PTS + 1, ..PTY };
    let block = FdFacts { rdev: PTS, mode: 0o060_600 };
    let closed = FdFacts { rdev: 0, mode: 0 };
    for (tty_dev, fds, expected) in [
        (PTS, [PTY, PTY, PTY], Some(Grade::Interactive)),
        // `cat token | base64`: descriptor 1 plays no part.
        (PTS, [PTY, PIPE, PTY], Some(Grade::Interactive)),
        (PTS, [dev_tty, PTY, PTY], Some(Grade::Interactive)),
        (PTS, [dev_tty, PTY, dev_tty], Some(Grade::Interactive)),
        (PTS, [null, PTY, PTY], Some(Grade::Terminal)),
        (PTS, [PTY, PTY, null], Some(Grade::Terminal)),
        (PTS, [PTY, PTY, PIPE], Some(Grade::Terminal)),
        (PTS, [PTY, PTY, other_pty], Some(Grade::Terminal)),
        (PTS, [block, PTY, PTY], Some(Grade::Terminal)),
        (PTS, [closed, closed, closed], Some(Grade::Terminal)),
        (0, [PTY, PTY, PTY], None),
        (0, [closed, closed, closed], None),
        (0, [PIPE, PIPE, PIPE], None),
    ] {
        let record = OpenRecord { tty_dev, fds, ..record() };
        assert_eq!(terminal_grade(&record), expected, "{tty_dev:#x} {fds:?}");
    }
    let unread = OpenRecord { tty_dev: PTS, fds: [PTY; 3], missing: Missing::TERMINAL, ..record() };
    let unseen = OpenRecord { missing: Missing::DESCRIPTORS, ..unread };
    assert_eq!(terminal_grade(&unseen), Some(Grade::Terminal), "where it leads is not known");
    assert_eq!(terminal_grade(&unread), None);
}

#[test]
fn executables_are_full_paths_where_their_names_reach_the_root() {
    for (exe, expected) in [
        (["cat", "bin", "/"], "/bin/cat"),
        (["cat", "bin", "usr"], "/…/usr/bin/cat"),
        (["init", "/", "/"], "/init"),
        (["memfd:x (deleted)", "/", "/"], "/memfd:x (deleted)"),
        (["", "", ""], ""),
    ] {
        assert_eq!(executable(&OpenRecord { exe_names: names(exe), ..record() }), expected);
    }
}

#[test]
fn the_raw_path_is_d_path_or_made_of_names() {
    let seen = "/run/secrets/kubernetes.io/serviceaccount/..2024/token";
    assert_eq!(raw_path(&OpenRecord { path: name(seen), ..record() }), seen);
    assert_eq!(
        raw_path(&record()),
        "/…/secrets/kubernetes.io/serviceaccount/..2024_11_24_09_06_53.3676909075/token"
    );
    let direct =
        OpenRecord { parent_name: name("/"), mount_names: names(["t", "mnt", "/"]), ..record() };
    assert_eq!(raw_path(&direct), "/mnt/t/token");
}

#[test]
fn arguments_are_split_redacted_and_known_to_be_cut() {
    let with = |bytes: &[u8], length: usize| {
        let mut argv = [0; TEXT_LEN];
        argv[..bytes.len()].copy_from_slice(bytes);
        arguments(&OpenRecord { argv, argv_len: u32::try_from(length).unwrap(), ..record() })
    };
    let line = b"curl\0-H\0Authorization: Bearer abc\0\0--x\xff\0";
    let expected = ["curl", "-H", "Authorization: Bearer [redacted]", "", "--x\u{fffd}"];
    assert_eq!(with(line, line.len()), (expected.map(str::to_owned).to_vec(), false));
    assert_eq!(with(b"", 0), (vec![], false));
    assert_eq!(with(b"sh\0", 3), (vec!["sh".to_owned()], false));
    let (long, cut) = with(&[b'a'; TEXT_LEN], 100_000);
    assert_eq!((long[0].len(), cut), (TEXT_LEN, true));
}

#[test]
fn token_volumes_are_known_by_where_or_as_what_they_are_mounted() {
    for (mount, expected) in [
        (["serviceaccount", "kubernetes.io", "secrets"], true),
        (["kube-api-access-x2v9d", "kubernetes.io~projected", "volumes"], true),
        (["serviceaccount", "vault.hashicorp.com", "secrets"], false),
        (["certs", "etc", "/"], false),
        (["", "", ""], false),
    ] {
        let record = OpenRecord { mount_names: names(mount), ..record() };
        assert_eq!(mounted_as_token_volume(&record), expected, "{mount:?}");
    }
}

#[test]
fn each_missing_fact_has_a_name() {
    assert_eq!(missing(0), Vec::<String>::new());
    assert_eq!(missing(Missing::TERMINAL | Missing::USER), ["terminal", "user"]);
    assert_eq!(missing(u32::MAX).len(), 10);
}

proptest! {
    #[test]
    fn no_bytes_of_a_record_make_a_panic(
        bytes in prop::collection::vec(any::<u8>(), size_of::<OpenRecord>())
    ) {
        let record = OpenRecord::read_from_bytes(&bytes).unwrap();
        let _ = (raw_path(&record), executable(&record), arguments(&record), missing(record.missing));
        let _ = (terminal_grade(&record), mounted_as_token_volume(&record));
        let _ = (route(&record), related(&record.entry_cgroup));
    }
}

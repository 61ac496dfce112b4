//! Names in volumes, what specs say of them, and the file that a record is then about.

use zerocopy::FromZeros;

use super::*;
use crate::attribution::{fixture::name, pods::ProjectedFile};

const TOKEN: Option<TokenFile> = Some(TokenFile::Token);
const CA: Option<TokenFile> = Some(TokenFile::CaCert);
const DATED: &str = "..2026_11_21_10_00_00.1";

fn spec(files: &[(&str, Option<TokenFile>)]) -> Projected {
    let files =
        files.iter().map(|(path, file)| ProjectedFile { path: (*path).into(), file: *file });
    Projected { name: "v".into(), files: files.collect(), has_secret: false }
}

/// An open of a file by its last two names.
fn record(parent: &str, file: &str) -> OpenRecord {
    OpenRecord { file_name: name(file), parent_name: name(parent), ..OpenRecord::new_zeroed() }
}

#[test]
fn a_volume_holds_a_token_by_its_spec_or_else_by_its_names() {
    let names = |names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        Looks::of(folder.path())
    };
    let token = || names(&["token"]);
    let all = || names(&["token", "ca.crt", "namespace"]);
    let none = || names(&["vault-token", "tokens"]);
    let unreadable = || Looks::of(Path::new("/nonexistent"));
    let for_vault = spec(&[("token", None)]);
    let ours = spec(&[("key", TOKEN)]);
    let secret = Projected { has_secret: true, ..spec(&[]) };
    for (kind, spec, looks, expected) in [
        (VolumeKind::Projected, None, token(), true),
        (VolumeKind::Projected, None, none(), false),
        (VolumeKind::Projected, None, unreadable(), true),
        (VolumeKind::Secret, None, token(), false),
        (VolumeKind::Secret, None, all(), true),
        (VolumeKind::Secret, None, unreadable(), false),
        (VolumeKind::Projected, Some(&for_vault), all(), false),
        (VolumeKind::Projected, Some(&for_vault), unreadable(), false),
        (VolumeKind::Projected, Some(&ours), none(), true),
        (VolumeKind::Projected, Some(&secret), token(), false),
        (VolumeKind::Projected, Some(&secret), all(), true),
    ] {
        assert_eq!(holds_token(kind, spec, looks), expected, "{kind:?} {spec:?} {looks:?}");
    }
}

#[test]
fn the_last_names_tell_which_file_it_is() {
    let usual = spec(&[("token", TOKEN), ("ca.crt", CA)]);
    let custom = spec(&[("key", TOKEN), ("a/b/tok", TOKEN), ("token", None), ("tls/root.pem", CA)]);
    let without = spec(&[("token", None)]);
    for (spec, parent, file, expected) in [
        (None, DATED, "token", TOKEN),
        (None, DATED, "ca.crt", CA),
        (None, DATED, "namespace", None),
        (None, "vault", "token", None),
        (Some(&usual), DATED, "token", TOKEN),
        (Some(&usual), DATED, "tokens", None),
        (Some(&custom), DATED, "key", TOKEN),
        (Some(&custom), "b", "tok", TOKEN),
        (Some(&custom), "tls", "root.pem", CA),
        (Some(&custom), "c", "tok", None),
        (Some(&custom), DATED, "tok", None),
        (Some(&custom), DATED, "token", None),
        (Some(&custom), DATED, "ca.crt", None),
        // Only reached for a volume that counts by its names: those then tell.
        (Some(&without), DATED, "token", TOKEN),
    ] {
        assert_eq!(
            opened_file(&record(parent, file), spec, None),
            expected,
            "{parent}/{file} {spec:?}"
        );
    }
}

#[test]
fn the_inode_tells_of_hard_links_and_of_files_with_the_same_last_names() {
    let folder = tempfile::tempdir().unwrap();
    let inode = |path: &str| {
        let file = folder.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        fs::metadata(file).unwrap().ino()
    };
    let (ours, vaults) = (inode("kube/api/token"), inode("vault/api/token"));
    let spec = spec(&[("vault/api/token", None), ("kube/api/token", TOKEN)]);
    for (file, inode, expected) in [
        (record("api", "token"), ours, TOKEN),
        (record("api", "token"), vaults, None),
        (record("api", "token"), inode("other"), None),
        (record(DATED, "innocent"), ours, TOKEN),
        (record(DATED, "innocent"), vaults, None),
    ] {
        let record = OpenRecord { file_ino: inode, ..file };
        assert_eq!(opened_file(&record, Some(&spec), Some(folder.path())), expected);
    }
    let unreadable = OpenRecord { file_ino: ours, ..record("api", "token") };
    assert_eq!(opened_file(&unreadable, Some(&spec), None), None);
}

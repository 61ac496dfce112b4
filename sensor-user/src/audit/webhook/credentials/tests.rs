//! Which files are refused, and that changed ones are noticed.

use std::fs;

use http::HeaderValue;
use tempfile::TempDir;

use super::{CredentialFiles, Files};
use crate::audit::webhook::tests::pki::Authority;

const TOKEN: &str = "0123456789abcdef";

/// Files that are fine: certificate, key, client CA, tokens.
fn fine(dir: &TempDir) -> CredentialFiles {
    let authority = Authority::new("ours");
    let (cert, key) = authority.server();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    CredentialFiles {
        cert: write("tls.crt", &cert),
        key: write("tls.key", &key),
        client_ca: Some(write("ca.crt", &authority.pem())),
        tokens: Some(write("tokens", TOKEN)),
    }
}

#[test]
fn what_cannot_be_used_is_named_with_its_file() {
    let other_key = Authority::new("other").server().1;
    let cases: [(&str, Option<&str>, &str); 12] = [
        ("tls.crt", None, "cannot read"),
        ("tls.crt", Some(""), "holds no certificate"),
        ("tls.crt", Some("-----BEGIN CERTIFICATE-----\nAAAA\n"), "holds no certificate"),
        ("tls.key", None, "cannot read"),
        ("tls.key", Some("no key"), "holds no private key"),
        ("tls.key", Some(&other_key), "cannot use the certificate"),
        ("ca.crt", None, "cannot read"),
        ("ca.crt", Some("\n"), "holds no certificate"),
        (
            "ca.crt",
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "cannot verify",
        ),
        ("tokens", None, "cannot read"),
        ("tokens", Some("\n \n"), "at least one token"),
        ("tokens", Some("0123456789abcdef\nshort\n"), "none shorter than 16 bytes"),
    ];
    for (name, content, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let files = fine(&dir);
        let path = dir.path().join(name);
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = Files::open(files).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{name} {content:?}: {error}");
        assert!(!error.contains(TOKEN), "{error}");
    }
}

#[test]
fn there_is_no_webhook_that_knows_its_clients_by_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = CredentialFiles { client_ca: None, tokens: None, ..fine(&dir) };
    assert!(Files::open(files).unwrap_err().to_string().contains("client CA or a token file"));
}

#[test]
fn a_token_is_admitted_whole_and_as_a_bearers() {
    let dir = tempfile::tempdir().unwrap();
    let files = fine(&dir);
    fs::write(files.tokens.as_ref().unwrap(), "another-token-of-theirs\r\n\n 0123456789abcdef \n")
        .unwrap();
    let (_, credentials) = Files::open(files).unwrap();
    for (shown, admitted) in [
        (Some("Bearer 0123456789abcdef"), true),
        (Some("bearer  0123456789abcdef "), true),
        (Some("Bearer another-token-of-theirs"), true),
        (Some("Bearer 0123456789abcde"), false),
        (Some("Bearer 0123456789abcdefg"), false),
        (Some("Bearer "), false),
        (Some("Bearer"), false),
        (Some("Basic 0123456789abcdef"), false),
        (Some("0123456789abcdef"), false),
        (Some(""), false),
        (None, false),
    ] {
        let value = shown.map(|shown| HeaderValue::from_str(shown).unwrap());
        assert_eq!(credentials.admit(value.as_ref()), admitted, "{shown:?}");
    }
}

#[test]
fn a_change_is_noticed_once_and_what_is_wrong_with_it_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _) = Files::open(fine(&dir)).unwrap();
    assert!(files.changed().unwrap().is_none());
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, "fedcba9876543210").unwrap();
    let credentials = files.changed().unwrap().expect("a new token");
    let old = HeaderValue::from_str(&format!("Bearer {TOKEN}")).unwrap();
    let new = HeaderValue::from_static("Bearer fedcba9876543210");
    assert!(credentials.admit(Some(&new)) && !credentials.admit(Some(&old)));
    assert!(files.changed().unwrap().is_none());

    // Half of a new pair, as a reader between two writes sees it.
    let (cert, key) = Authority::new("next").server();
    fs::write(dir.path().join("tls.key"), key).unwrap();
    assert!(files.changed().is_err());
    assert!(files.changed().unwrap().is_none());
    fs::write(dir.path().join("tls.crt"), cert).unwrap();
    assert!(files.changed().unwrap().is_some());
}

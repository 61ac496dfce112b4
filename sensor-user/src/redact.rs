//! Takes secrets out of text that users wrote: arguments, request URIs, user agents.
//!
//! Recognises shapes, so it errs on the side of taking too much; it never sees token files. Called
//! where such text comes in, so that nothing behind can store it, and where it enters a document.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{memchr_iter, memchr2, memchr2_iter, memmem::Finder};
use regex_lite::{Captures, Regex};

/// What stands in a secret's place.
const REDACTED: &str = "[redacted]";

/// Names that a secret is given by, at the end of a longer one too (`access_token`).
const NAMES: &str = "token|password|passwd|secret|api[-_]?key|authorization";

/// A JWT begins with `eyJ`, the base64 of `{"`; one that was cut may lack its dots, so a long run suffices.
const JWT: &str = r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]* | eyJ[A-Za-z0-9_.-]{21,}";

#[expect(clippy::expect_used, reason = "constant patterns; each test compiles them")]
static JWTS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("(?x) {JWT}")).expect("a constant pattern compiles"));

#[expect(clippy::expect_used, reason = "constant patterns; each test compiles them")]
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    // Alternatives, in this order at each place; `keep` stays. Names are matched without what
    // precedes them, or a JWT there would be kept as part of the name.
    Regex::new(&format!(
        r#"(?x)
          {JWT}
        | (?P<keep>
            (?i: bearer (?: \s | \+ | %20 )+ )
          | (?i: (?: {NAMES} ) ["']? \s* (?: [=:] | %3d ) \s* ["']? (?: (?: bearer | basic ) (?: \s | \+ | %20 )+ )? )
          )
          [^\s"'&;,]+
        "#
    ))
    .expect("a constant pattern compiles")
});

#[expect(clippy::expect_used, reason = "constant patterns; each test compiles them")]
static FLAG: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(r"^(--?[\w-]*(?i:{NAMES}))(=|$)")).expect("a constant pattern compiles")
});

/// The text with everything that looks like a secret replaced by `[redacted]`: JWTs (cut ones
/// too), what follows `Bearer`, and values named like a secret, as in `token=…` or `password: …`.
pub fn redact(text: &str) -> Cow<'_, str> {
    if !may_hold_secret(text) {
        return Cow::Borrowed(text);
    }
    SECRETS.replace_all(text, |found: &Captures<'_>| {
        let kept = found.name("keep").map_or("", |kept| kept.as_str());
        format!("{kept}{REDACTED}")
    })
}

/// The name of a user or a group, with nothing but JWTs replaced: who it is must not be changed, and
/// `corp-token:alice` is somebody.
pub fn redact_name(name: &str) -> Cow<'_, str> {
    // Most have none.
    if !name.contains("eyJ") {
        return Cow::Borrowed(name);
    }
    JWTS.replace_all(name, REDACTED)
}

/// Whether that is in the text without which no pattern matches. Most text has none, and the
/// patterns take a thousand times as long.
fn may_hold_secret(text: &str) -> bool {
    static JWT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("eyJ"));
    let bytes = text.as_bytes();
    let begins = |at: usize, word: &str| {
        text.get(at..at + word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word))
    };
    // What stands between a name and its value.
    let is_given = || {
        memchr2(b'=', b':', bytes).is_some() || memchr_iter(b'%', bytes).any(|at| begins(at, "%3d"))
    };
    JWT.find(bytes).is_some()
        || memchr2_iter(b'b', b'B', bytes).any(|at| begins(at, "bearer"))
        || (is_given() && has_name(text))
}

/// Whether there is a name that secrets are given by.
fn has_name(text: &str) -> bool {
    static NAMES: LazyLock<[Finder<'static>; 5]> =
        LazyLock::new(|| ["token", "passw", "secret", "key", "authorization"].map(Finder::new));
    let text = text.to_ascii_lowercase();
    NAMES.iter().any(|name| name.find(text.as_bytes()).is_some())
}

/// A command's arguments, each redacted. The value of a flag such as `--token` goes as a whole,
/// whether it stands in the same argument or in the next.
pub fn redact_args(args: Vec<String>) -> Vec<String> {
    let mut is_value = false;
    args.into_iter()
        .map(|arg| {
            if std::mem::take(&mut is_value) {
                return REDACTED.to_owned();
            }
            let flag = FLAG.captures(&arg).and_then(|flag| Some((flag.get(1)?, flag.get(2)?)));
            match flag {
                Some((name, equals)) if !equals.is_empty() => {
                    format!("{}={REDACTED}", name.as_str())
                }
                Some(_) => {
                    is_value = true;
                    arg
                }
                None => redact(&arg).into_owned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{SECRETS, may_hold_secret, redact, redact_args};

    const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnLW5hdHVyZV8";

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        for (text, expected) in [
            ("<jwt>", "[redacted]"),
            ("a <jwt> b", "a [redacted] b"),
            ("'<jwt>'", "'[redacted]'"),
            ("eyJhbGciOiJSUzI1NiIsImtpZCI6", "[redacted]"),
            ("eyJhbGciOiJub25lIn0.eyJhIjoxfQ.", "[redacted]"),
            ("Authorization: Bearer <jwt>", "Authorization: Bearer [redacted]"),
            ("authorization: basic dXNlcjpwYXNz", "authorization: basic [redacted]"),
            ("Bearer abc.def next", "Bearer [redacted] next"),
            ("/api/v1/pods?token=s3cret&limit=5", "/api/v1/pods?token=[redacted]&limit=5"),
            ("/x?access_token=<jwt>#top", "/x?access_token=[redacted]"),
            ("/x?q=token%3Ds3cret", "/x?q=token%3D[redacted]"),
            ("--token=abc", "--token=[redacted]"),
            ("--from-literal=password=hunter2", "--from-literal=password=[redacted]"),
            ("AWS_SECRET=abc", "AWS_SECRET=[redacted]"),
            (r#"{"token": "abc", "n": 1}"#, r#"{"token": "[redacted]", "n": 1}"#),
            ("X-Api-Key:abc", "X-Api-Key:[redacted]"),
            ("token: Bearer abc", "token: Bearer [redacted]"),
            // A name must not carry a token along.
            ("x-<jwt>-token=abc", "x-[redacted]=abc"),
        ] {
            assert_eq!(redact(&text.replace("<jwt>", JWT)), expected, "{text}");
        }
    }

    #[test]
    fn ordinary_text_stays() {
        for text in [
            "",
            "kubectl/v1.34.4 (linux/amd64) kubernetes/9e0a3b1",
            "/api/v1/namespaces/cart/serviceaccounts/shop/token",
            "/api/v1/namespaces/kube-system/secrets?limit=500",
            "cat /var/run/secrets/kubernetes.io/serviceaccount/token",
            "a bearer of news",
            "eyJ is how they begin",
            "[redacted]",
        ] {
            let expected =
                if text.starts_with("a bearer") { "a bearer [redacted] news" } else { text };
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn the_value_of_a_secrets_flag_is_taken_out_whole() {
        for (line, expected) in [
            ("kubectl|--token|abc|get|pods", "kubectl|--token|[redacted]|get|pods"),
            ("x|--password=a b c|--user=me", "x|--password=[redacted]|--user=me"),
            ("curl|-H|Authorization: Bearer abc", "curl|-H|Authorization: Bearer [redacted]"),
            ("--db-password|--token|y|--token", "--db-password|[redacted]|y|--token"),
            ("cat|/run/secrets/token", "cat|/run/secrets/token"),
        ] {
            let args = line.split('|').map(str::to_owned).collect();
            assert_eq!(redact_args(args).join("|"), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_redacted_without_panic_and_once_is_enough(
            text in r#"(\PC|eyJ|token|secret|bearer|[=: "'&;,.]|%3D|\[redacted\]|[a-z]{0,25}){0,30}"#
        ) {
            let once = redact(&text).into_owned();
            prop_assert_eq!(redact(&once), once.as_str());
        }

        #[test]
        fn text_that_is_not_looked_at_closely_has_nothing_to_redact(
            text in r#"(\PC|(?i:eyJ|token|passwd|secret|api_?key|bearer)|[=: .-]|%3D|[a-z0-9]{0,25}){0,12}"#
        ) {
            prop_assert!(may_hold_secret(&text) || !SECRETS.is_match(&text));
        }

        #[test]
        fn no_token_survives(
            before in r#"(\PC|token|secret|bearer |[=: "'&;,.-]|[a-z]{0,5}){0,12}"#,
            jwt in "eyJ[A-Za-z0-9_-]{1,40}\\.eyJ[A-Za-z0-9_-]{1,40}\\.[A-Za-z0-9_-]{1,40}",
            after in r#"(\PC|[=: "'&;,.-]){0,12}"#,
        ) {
            let text = format!("{before}{jwt}{after}");
            let clean = redact(&text);
            prop_assert!(!clean.contains(&jwt), "{} -> {}", text, clean);
            // Nor its body.
            let body = jwt.split('.').nth(1).unwrap_or_default();
            prop_assert!(body.len() < 8 || !clean.contains(body), "{} -> {}", text, clean);
        }
    }
}

//! What a rules file says, valid: exceptions, exclusions of R2, decoys. Text in, [`Rulebook`] out;
//! `agent::rulebook` reads the file.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{
    decoys::{DecoyError, Decoys},
    exceptions::{Entry, ExceptionError, Exceptions},
    token_request::exclusions::{ExclusionError, Exclusions, Section},
};

/// What users decide about rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rulebook {
    /// False positives that were judged.
    pub exceptions: Exceptions,
    /// Who mints tokens without R2 taking note.
    pub exclusions: Exclusions,
    /// Service accounts that nothing legitimate uses.
    pub decoys: Decoys,
}

/// The file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    exceptions: Option<Vec<Spanned<Entry>>>,
    token_request_by_user: Option<Spanned<Section>>,
    decoys: Option<Vec<Spanned<String>>>,
}

/// Why a rules file is refused.
#[derive(Debug, thiserror::Error)]
pub enum RulebookError {
    /// No YAML, or keys and values that are not understood.
    #[error("{reason}")]
    Parse {
        /// The parser's own words, with line and key.
        reason: String,
    },
    /// An exception is refused.
    #[error("line {line}: exception {name}: {source}")]
    Exception {
        /// Where it begins.
        line: u64,
        /// Its name, or what stands for it.
        name: String,
        /// Why.
        source: ExceptionError,
    },
    /// The exclusions are refused.
    #[error("line {line}: token-request-by-user: {source}")]
    Exclusions {
        /// Where they begin.
        line: u64,
        /// Why.
        source: ExclusionError,
    },
    /// A decoy is refused.
    #[error("line {line}: {source}")]
    Decoy {
        /// Where it is.
        line: u64,
        /// Why.
        source: DecoyError,
    },
}

impl Rulebook {
    /// Reads the text of a rules file. An empty one is all defaults.
    ///
    /// # Errors
    /// Anything in it cannot be meant: then nothing of it counts.
    pub fn parse(text: &str) -> Result<Self, RulebookError> {
        // An empty document is no mapping.
        let file = if text.trim().is_empty() {
            File::default()
        } else {
            serde_saphyr::from_str::<Option<File>>(text)
                .map_err(|error| RulebookError::Parse {
                    // One line, for the log; it names the place.
                    reason: error.without_snippet().to_string(),
                })?
                .unwrap_or_default()
        };
        let mut rulebook = Self::default();
        for entry in file.exceptions.unwrap_or_default() {
            let (line, entry) = (entry.referenced.line(), entry.value);
            let name = entry.name().unwrap_or("without a name").to_owned();
            rulebook.exceptions.add(entry).map_err(|source| RulebookError::Exception {
                line,
                name,
                source,
            })?;
        }
        if let Some(section) = file.token_request_by_user {
            let line = section.referenced.line();
            let exclusions = section.value.try_into();
            rulebook.exclusions =
                exclusions.map_err(|source| RulebookError::Exclusions { line, source })?;
        }
        for decoy in file.decoys.unwrap_or_default() {
            let line = decoy.referenced.line();
            let added = rulebook.decoys.add(&decoy.value);
            added.map_err(|source| RulebookError::Decoy { line, source })?;
        }
        Ok(rulebook)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Rulebook;

    const WHOLE: &str = "
# What we have looked at.
exceptions:
  - name: backup
    rule: token-access-then-api-request
    namespace: velero
    service_account: velero
    source: 10.0.0.0/8
    grade: exec
    native: false
    request: own
    reason: the nightly backup runs its own kubectl
    until: 2026-12-31
token-request-by-user:
  extend: ['system:serviceaccount:cert-manager:*']
  masterclient: alert
decoys:
  - shop/backup-admin
";

    #[test]
    fn a_file_is_read_whole() {
        let rulebook = Rulebook::parse(WHOLE).unwrap();
        let exception = rulebook.exceptions.iter().next().unwrap();
        let expected = [
            ("namespace", "velero"),
            ("service_account", "velero"),
            ("source", "10.0.0.0/8"),
            ("grade", "exec"),
            ("native", "false"),
            ("request", "own"),
        ];
        let expected = expected.map(|(key, value)| (key, value.to_owned()));
        assert_eq!(exception.conditions().collect::<Vec<_>>(), expected);
        assert_eq!(exception.id.as_str(), "backup");
        assert_eq!(exception.until.unwrap().to_string(), "2026-12-31");
        assert!(rulebook.decoys.contains("shop", "backup-admin"));
        assert!(rulebook.exclusions.excludes("system:serviceaccount:cert-manager:x", &[]));
        assert!(!rulebook.exclusions.excludes("masterclient", &[]));
    }

    #[test]
    fn the_example_in_the_readme_is_a_rules_file() {
        let readme = include_str!("../../../README.md");
        let (_, rest) = readme.split_once("```yaml\nexceptions:").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let rulebook = Rulebook::parse(&format!("exceptions:{example}")).unwrap();
        assert_eq!(rulebook.exceptions.iter().count(), 2);
        assert!(!rulebook.exclusions.excludes("masterclient", &[]));
        assert!(rulebook.decoys.contains("shop", "backup-admin"));
    }

    #[test]
    fn an_empty_file_and_empty_sections_are_all_defaults() {
        for text in [
            "",
            "\n",
            "# nothing\n",
            "{}",
            "---\n",
            "exceptions:\ndecoys:\ntoken-request-by-user:\n",
        ] {
            assert_eq!(Rulebook::parse(text).unwrap(), Rulebook::default(), "{text:?}");
        }
    }

    #[test]
    fn a_file_that_would_grow_or_nest_without_end_is_refused() {
        let laugh = |(line, of): (u32, &str)| format!("- &{line} [{}]\n", [of; 9].join(", "));
        let lines = [(1, "shop/a"), (2, "*1"), (3, "*2"), (4, "*3"), (5, "*4"), (6, "*5")];
        let laughs: String = lines.into_iter().chain([(7, "*6"), (8, "*7")]).map(laugh).collect();
        for text in [format!("decoys:\n{laughs}"), "[".repeat(100_000), "{a: ".repeat(50_000)] {
            let error = Rulebook::parse(&text).unwrap_err().to_string();
            assert!(error.len() < 1_000, "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "exceptions:", "decoys:", "token-request-by-user:", "name: a",
                    "rule: token-read", "reason: b", "until: ", "2026-12-31", "grade: exec",
                    "- ", "\n", "\n  ", "{", "}", "[", "]", ", ", ": ", "*", "&a ", "*a",
                    "!!binary ", "'", "\"", "\u{0}", "\u{feff}", "|", ">", "#", "---", "<<: ",
                    "~", "\u{e9}",
                ]),
                0..40,
            )
        ) {
            let _ = Rulebook::parse(&words.concat());
        }
    }

    #[test]
    fn what_cannot_be_meant_is_one_error_that_names_entry_and_line() {
        let exception = |rest: &str| format!("exceptions:\n  - name: it\n    {rest}\n");
        let rule = "rule: token-read, namespace: shop, reason: tested";
        for (text, says) in [
            ("exception: []\n".to_owned(), ["unknown field `exception`", "line 1"]),
            ("- a list\n".to_owned(), ["line 1", "mapping"]),
            ("exceptions: [\n".to_owned(), ["line", ""]),
            (exception("rule: token-raed"), ["token-raed", "line 3"]),
            (exception("rule: token-read\n    namspace: shop"), ["namspace", "line 4"]),
            (exception("namespace: shop"), ["missing field `rule`", "line"]),
            (
                exception("rule: token-read\n    namespace: shop"),
                ["line 2: exception it", "no reason"],
            ),
            (exception("rule: token-read\n    reason: ' '"), ["line 2: exception it", "no reason"]),
            (
                exception("rule: token-read\n    reason: x\n    until: 2026-02-30"),
                ["exception it", "2026-02-30"],
            ),
            (
                exception("rule: token-read\n    reason: x\n    until: 2026-12-31T10:00:00Z"),
                ["exception it", "is no date"],
            ),
            (exception("rule: token-read\n    reason: x\n    grade: outsid"), ["outsid", "line 5"]),
            (
                exception("rule: token-read\n    reason: x\n    source: all"),
                ["exception it", "\"all\""],
            ),
            (
                exception("rule: token-read\n    reason: x\n    pod: ''"),
                ["exception it", "pod: an empty pattern"],
            ),
            (
                exception("rule: token-read\n    reason: x\n    command: kubectl*"),
                ["exception it", "attacker"],
            ),
            (
                format!("exceptions:\n- {{{rule}}}\n"),
                ["line 2: exception without a name", "no name"],
            ),
            (format!("exceptions:\n- {{name: a b, {rule}}}\n"), ["line 2", "\"a b\" is no name"]),
            (
                format!("exceptions:\n- {{name: a, {rule}}}\n- {{name: a, {rule}}}\n"),
                ["line 3: exception a", "different"],
            ),
            ("token-request-by-user:\n  extend: ['*']\n".to_owned(), ["line 2", "everybody"]),
            ("token-request-by-user: {masterclient: maybe}\n".to_owned(), ["maybe", "line 1"]),
            ("decoys:\n  - shop/a\n  - shop\n".to_owned(), ["line 3", "namespace/name"]),
            ("decoys: []\ndecoys: []\n".to_owned(), ["decoys", "duplicate"]),
        ] {
            let error = Rulebook::parse(&text).unwrap_err().to_string();
            for says in says {
                assert!(error.contains(says), "{text}: {says:?} is not in {error}");
            }
        }
    }
}

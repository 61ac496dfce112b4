//! Patterns in rules: `*` stands for any run of characters, an empty one and slashes included;
//! everything else stands for itself. The whole string must match, case counts.
//!
//! Called by exclusions and exceptions.

use wildmatch::WildMatchPattern;

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct Glob(WildMatchPattern<'*', NO_SINGLE>);

/// Stands where the library wants a wildcard for one character; patterns with it are refused.
const NO_SINGLE: char = '\0';

/// A pattern that cannot be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It matches the empty string alone.
    #[error("an empty pattern matches nothing; leave it out")]
    Empty,
    /// It holds a control character: no name has one.
    #[error("a pattern holds a control character; remove it")]
    Control,
}

impl Glob {
    /// Compiles a pattern that somebody wrote.
    ///
    /// # Errors
    /// It is empty or holds control characters.
    pub fn parse(pattern: &str) -> Result<Self, GlobError> {
        if pattern.is_empty() {
            return Err(GlobError::Empty);
        }
        if pattern.contains(char::is_control) {
            return Err(GlobError::Control);
        }
        Ok(Self::compile(pattern))
    }

    /// Compiles a pattern of this program.
    pub(super) fn compile(pattern: &str) -> Self {
        Self(WildMatchPattern::new(pattern))
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
    }

    /// Whether every text matches.
    pub fn matches_all(&self) -> bool {
        self.0.pattern_chars() == ['*']
    }
}

impl std::fmt::Display for Glob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Glob, GlobError};

    #[test]
    fn only_a_star_is_special_and_the_whole_string_counts() {
        for (pattern, text, expected) in [
            ("masterclient", "masterclient", true),
            ("masterclient", "Masterclient", false),
            ("masterclient", "masterclient2", false),
            ("masterclient", "a-masterclient", false),
            ("system:node:*", "system:node:a", true),
            ("system:node:*", "system:node:", true),
            ("system:node:*", "system:node", false),
            ("*/kubectl", "/usr/bin/kubectl", true),
            ("a*b*c", "a//b\nc", true),
            ("a*b*c", "acb", false),
            ("a**b", "ab", true),
            ("*", "", true),
            ("?", "x", false),
            ("?", "?", true),
            ("[ab]{c}\\", "[ab]{c}\\", true),
            ("caf\u{e9}*", "caf\u{e9} au lait", true),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_what_matches_all_is_known() {
        assert_eq!(Glob::parse(""), Err(GlobError::Empty));
        assert_eq!(Glob::parse("a\0b"), Err(GlobError::Control));
        for (pattern, all) in [("*", true), ("***", true), ("**a", false), ("a", false)] {
            assert_eq!(Glob::parse(pattern).unwrap().matches_all(), all, "{pattern}");
        }
    }

    /// Every way to spend the text on the pattern.
    fn brute(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|spent| brute(rest, &text[spent..])),
            Some((first, rest)) => {
                text.split_first().is_some_and(|(it, more)| it == first && brute(rest, more))
            }
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_trying_every_way_matches(
            pattern in "[ab?*]{1,8}", text in "[ab?*]{0,10}"
        ) {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let expected = brute(&chars(&pattern), &chars(&text));
            prop_assert_eq!(Glob::parse(&pattern).unwrap().matches(&text), expected);
        }
    }
}

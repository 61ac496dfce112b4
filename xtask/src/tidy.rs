//! `cargo xtask tidy`: the rules of this repository that a program can check and clippy does not.
//!
//! Each rule looks at one file at a time and names the line. What the rules are for is in
//! ARCHITECTURE.md, under "Invariants".

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::shell::{root, say};

/// Runs all rules over the working copy.
///
/// # Errors
/// If a rule is broken.
pub(crate) fn run() -> Result<()> {
    let root = root();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    let mut breaches = Vec::new();
    for path in &files {
        // Pictures and the like have no lines.
        if let Ok(text) = fs::read_to_string(path) {
            let path = path.strip_prefix(&root).unwrap_or(path);
            let file = SourceFile { path: &path.to_string_lossy(), text: &text };
            breaches.extend(RULES.iter().flat_map(|rule| rule(&file)));
            if file.is_rust() && text.lines().count() > LONG {
                say(format_args!(
                    "{}: {} lines, more than {LONG}; can it be two files?",
                    file.path,
                    text.lines().count()
                ));
            }
        }
    }
    for breach in &breaches {
        say(breach);
    }
    match breaches.len() {
        0 => Ok(()),
        count => bail!("{count} breaches of this repository's rules"),
    }
}

/// Lines above which a file is named, without being refused.
const LONG: usize = 600;

const RULES: [fn(&SourceFile<'_>) -> Vec<Breach>; 4] =
    [starts_with_its_charter, is_no_mod_rs, uses_only_what_its_room_may, names_no_machine];

/// A file of the repository, by its path from the root.
struct SourceFile<'text> {
    path: &'text str,
    text: &'text str,
}

impl SourceFile<'_> {
    fn is_rust(&self) -> bool {
        Path::new(self.path).extension().is_some_and(|extension| extension == "rs")
    }

    /// Whether it belongs to this room: `<room>.rs` or a file below `<room>/`.
    fn is_in(&self, room: &str) -> bool {
        self.path.strip_prefix(room).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    /// A breach at each line, comments left out, that holds one of these.
    fn code_with(&self, words: &[&str], why: &str) -> Vec<Breach> {
        let code = self.text.lines().enumerate().filter(|(_, line)| !is_comment(line));
        code.filter_map(|(index, line)| {
            let word = words.iter().find(|word| holds(line, word))?;
            Some(self.breach(index + 1, format!("`{word}`: {why}")))
        })
        .collect()
    }

    fn breach(&self, line: usize, what: impl Into<String>) -> Breach {
        Breach { path: self.path.to_owned(), line, what: what.into() }
    }
}

/// A rule broken at a place.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

fn starts_with_its_charter(file: &SourceFile<'_>) -> Vec<Breach> {
    if !file.is_rust() || file.text.starts_with("//!") {
        return Vec::new();
    }
    vec![file.breach(1, "a file opens with `//!`: what it owns, what it never does, who calls it")]
}

fn is_no_mod_rs(file: &SourceFile<'_>) -> Vec<Breach> {
    if file.path.ends_with("/mod.rs") {
        return vec![file.breach(1, "`foo.rs` beside `foo/`, never `foo/mod.rs`")];
    }
    Vec::new()
}

/// Which rooms may use what. The agent's stages only: tools and tests may do as they need.
fn uses_only_what_its_room_may(file: &SourceFile<'_>) -> Vec<Breach> {
    const AGENT: &str = "sensor-user/src";
    if !file.is_rust() || !file.is_in(AGENT) {
        return Vec::new();
    }
    let in_room = |room: &str| file.is_in(&format!("{AGENT}/{room}"));
    let mut breaches = Vec::new();
    if !in_room("kernel") {
        let why = "only `kernel` talks to the kernel";
        breaches.extend(file.code_with(&["aya::", "aya_obj::", "aya_log::"], why));
    }
    if !in_room("api") && !in_room("attribution/pods") {
        let why = "only `api` and `attribution/pods` ask the Kubernetes API";
        breaches.extend(file.code_with(&["kube::"], why));
    }
    if in_room("correlation") || in_room("rules") {
        let words = ["tokio::", "SystemTime", "Instant", "Timestamp::now", "Zoned::now"];
        let why = "correlation and rules are functions of their input and the times passed in";
        breaches.extend(file.code_with(&words, why));
    }
    breaches
}

/// Paths of somebody's machine make a file true in one place only.
fn names_no_machine(file: &SourceFile<'_>) -> Vec<Breach> {
    // Put together here, or this file would break its own rule.
    let folders = ["root", "work", "home"].map(|name| format!("/{name}/"));
    let lines = file.text.lines().enumerate();
    lines
        .filter(|(_, line)| folders.iter().any(|folder| names_path(line, folder)))
        .map(|(index, _)| file.breach(index + 1, "names a path of one machine"))
        .collect()
}

/// Whether `folder` stands in the line as the start of an absolute path.
fn names_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        before.is_none_or(|it| !it.is_alphanumeric() && !"/.}>_-*".contains(it))
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Whether the word stands in the line as a path segment or name of its own, outside of text.
fn holds(line: &str, word: &str) -> bool {
    let in_name = |it: char| it.is_alphanumeric() || it == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line.get(..start).unwrap_or_default();
        let after = line.get(start + word.len()..).unwrap_or_default();
        // An odd number of quotes before it: it is inside of a text.
        before.matches('"').count() % 2 == 0
            && !before.ends_with(in_name)
            && (word.ends_with(':') || !after.starts_with(in_name))
    })
}

/// All files below a folder, but for what git and cargo keep there.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not list {folder:?}"))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        if name == ".git" || name == "target" {
            continue;
        }
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() {
            collect(&entry.path(), files)?;
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_breach_and_lets_the_rest_pass() {
        let machine = format!("see /{}/notes", "root");
        let elsewhere = format!("https://example.org/{0}/ and ./{0}/ and /{0}load/", "work");
        let cases = [
            ("xtask/src/a.rs", "//! Charter.\n", None),
            ("xtask/src/a.rs", "fn main() {}\n", Some(1)),
            ("README.md", "no charter needed\n", None),
            ("sensor-user/src/audit/mod.rs", "//! Charter.\n", Some(1)),
            ("sensor-user/src/kernel.rs", "//! C.\nuse aya::Ebpf;\n", None),
            ("sensor-user/src/kernel/ring.rs", "//! C.\nuse aya::maps::RingBuf;\n", None),
            ("sensor-user/src/agent.rs", "//! C.\n\nuse aya::Ebpf;\n", Some(3)),
            ("sensor-user/src/agent.rs", "//! aya.\n// aya::\nlet playa = \"aya::\";\n", None),
            ("sensor-user/src/config.rs", "//! C.\npub kube: bool,\n", None),
            ("sensor-user/src/attribution/pods.rs", "//! C.\nuse kube::Api;\n", None),
            ("sensor-user/src/attribution.rs", "//! C.\nuse kube::Api;\n", Some(2)),
            ("sensor-user/src/api.rs", "//! C.\nuse kube::Client;\n", None),
            ("sensor-user/src/audit/canary.rs", "//! C.\nuse kube::Client;\n", Some(2)),
            ("sensor-user/src/correlation/window.rs", "//! C.\nInstant::now();\n", Some(2)),
            ("sensor-user/src/rules.rs", "//! C.\nuse std::time::SystemTime;\n", Some(2)),
            ("sensor-user/src/rules.rs", "//! C.\nuse std::time::Duration;\n", None),
            ("sensor-user/src/admin.rs", "//! C.\nuse std::time::Instant;\n", None),
            ("README.md", machine.as_str(), Some(1)),
            ("README.md", elsewhere.as_str(), None),
        ];
        for (path, text, line) in cases {
            let file = SourceFile { path, text };
            let found: Vec<Breach> = RULES.iter().flat_map(|rule| rule(&file)).collect();
            assert_eq!(found.first().map(|breach| breach.line), line, "{path}: {found:?}");
        }
    }
}

//! What the boots told, as a table: printed after them, and kept so that the README's can be made of
//! all kernels, whenever each was booted.
//!
//! The README's table is what stands between two markers; nobody edits it by hand.

use std::{fmt::Write as _, fs, io::ErrorKind, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    boot::Told,
    matrix::{MATRIX, Machine},
};
use crate::{
    build,
    image::sha256,
    shell::{root, say, target_dir},
};

const BEGIN: &str = "<!-- made by `cargo xtask vm --write-readme` -->\n";
const END: &str = "<!-- end -->\n";

const ROUTES: [&str; 3] = ["fexit", "kprobe", "exit"];

/// Remembers what a boot told in which no test failed. What it did not look at, because it ran only some of
/// the tests, is of an earlier boot with the same BPF object, if there was one.
///
/// # Errors
/// If it cannot be written.
pub(super) fn keep(machine: &Machine, told: &Told) -> Result<()> {
    let object = object()?;
    let before = kept(machine, &object).map(|before| before.facts).unwrap_or_default();
    let kept = json!({
        "object": object, "release": told.release, "facts": merged(&told.facts, before),
    });
    let path = kept_at(machine);
    fs::write(&path, kept.to_string()).with_context(|| format!("could not write {path:?}"))
}

/// Forgets what a machine told: it failed since.
///
/// # Errors
/// If the file cannot be removed.
pub(super) fn forget(machine: &Machine) -> Result<()> {
    let path = kept_at(machine);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {path:?}"))
        }
        _ => Ok(()),
    }
}

/// New facts, and of the earlier ones those of another kind or route.
fn merged(new: &[Value], before: Vec<Value>) -> Vec<Value> {
    let kind = |fact: &Value| {
        let keys = fact.as_object().into_iter().flat_map(|it| it.keys().cloned());
        (fact.get("route").cloned(), keys.collect::<Vec<_>>())
    };
    let is_new = |fact: &Value| new.iter().any(|it| kind(it) == kind(fact));
    let before = before.into_iter().filter(|fact| !is_new(fact));
    new.iter().cloned().chain(before).collect()
}

/// What a machine told when it was last booted with the BPF object of now.
fn kept(machine: &Machine, object: &str) -> Result<Told> {
    let path = kept_at(machine);
    let again = format!("boot it with `cargo xtask vm {}`", machine.name);
    let text = fs::read_to_string(&path).with_context(|| format!("no {path:?}: {again}"))?;
    let kept: Value = serde_json::from_str(&text).with_context(|| format!("{path:?}: {again}"))?;
    let text = |key: &str| kept.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure!(text("object") == object, "{path:?} is of another BPF object: {again}");
    Ok(Told {
        release: text("release").to_owned(),
        facts: kept.get("facts").and_then(Value::as_array).cloned().unwrap_or_default(),
        ..Told::default()
    })
}

fn kept_at(machine: &Machine) -> PathBuf {
    target_dir().join("vm").join(format!("{}.json", machine.name))
}

fn object() -> Result<String> {
    let path = build::bpf_object_path();
    Ok(sha256(&fs::read(&path).with_context(|| format!("could not read {path:?}"))?))
}

/// Puts the table of all kernels into the README.
///
/// # Errors
/// Names a kernel that was not booted with the BPF object of now, or in which a test failed then.
pub(super) fn write_readme() -> Result<()> {
    let object = object()?;
    let told = MATRIX
        .iter()
        .map(|machine| {
            let told = kept(machine, &object)?;
            for route in ROUTES {
                let is_known = fact(&told, route, "works").is_some();
                let is_tried = !machine.routes.contains(&route)
                    || fact(&told, route, "capabilities").is_some();
                ensure!(
                    is_known && is_tried,
                    "{} did not tell all of {route}; boot it with `cargo xtask vm {} --test routes \
                     --test privileges`",
                    machine.name,
                    machine.name
                );
            }
            Ok((machine, told))
        })
        .collect::<Result<Vec<_>>>()?;
    let path = root().join("README.md");
    let readme = fs::read_to_string(&path).with_context(|| format!("could not read {path:?}"))?;
    let readme = replaced(&readme, &table(&told))?;
    fs::write(&path, readme).with_context(|| format!("could not write {path:?}"))?;
    say(format_args!("wrote the table of {} kernels into {}", told.len(), path.display()));
    Ok(())
}

/// The text with another table between the markers.
fn replaced(text: &str, table: &str) -> Result<String> {
    let (before, rest) =
        text.split_once(BEGIN).with_context(|| format!("the README has no line {BEGIN:?}"))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("the README has no line {END:?}"))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// A row for each kernel: what each route needs there, or that it does not work; instructions of
/// the best one: of an ordinary open, of the longest path of one that is no token's, of all; and how long
/// an ordinary open takes in each, in empty programs.
pub(super) fn table(told: &[(&Machine, Told)]) -> String {
    let mut table = String::from(
        "| kernel | `fexit` | `kprobe` | `exit` | instructions of `fexit` | time of each |\n\
         |---|---|---|---|---|---|\n",
    );
    for (machine, told) in told {
        let separator = if machine.manner.is_empty() { "" } else { ", " };
        let cells = ROUTES.map(|route| needs(told, route)).join(" | ");
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {}{separator}{} | {cells} | {} | {} |",
            told.release,
            machine.manner,
            instructions(told),
            ROUTES.map(|route| times(told, route)).concat().trim_end_matches(" / "),
        );
    }
    table
}

/// The first thing that was found out about a route under this key.
fn fact<'told>(told: &'told Told, route: &str, key: &str) -> Option<&'told Value> {
    let of_route = |fact: &&Value| fact.get("route").and_then(Value::as_str) == Some(route);
    told.facts.iter().filter(of_route).find_map(|fact| fact.get(key))
}

/// The least capabilities with which a route works, without their prefix.
fn needs(told: &Told, route: &str) -> String {
    match fact(told, route, "capabilities").and_then(Value::as_array) {
        Some(names) => {
            let names = names.iter().filter_map(Value::as_str);
            names.map(|name| name.trim_start_matches("CAP_")).collect::<Vec<_>>().join(" ")
        }
        None if fact(told, route, "works") == Some(&Value::Bool(true)) => "works".to_owned(),
        None => "no".to_owned(),
    }
}

fn instructions(told: &Told) -> String {
    let count = |key| fact(told, "fexit", key).and_then(Value::as_u64);
    match (count("ordinary"), count("longest"), count("whole")) {
        (Some(ordinary), Some(longest), Some(whole)) => format!("{ordinary} / {longest} / {whole}"),
        _ => String::new(),
    }
}

/// How many times as long as an empty program an ordinary open takes on a route, as far as it works.
fn times(told: &Told, route: &str) -> String {
    let nanos = |key| fact(told, route, key).and_then(Value::as_f64).filter(|nanos| *nanos > 0.0);
    match (nanos("run_ns"), nanos("empty_ns")) {
        (Some(ours), Some(empty)) => format!("{:.1} / ", ours / empty),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_a_place_for_the_table() {
        let readme = fs::read_to_string(root().join("README.md")).unwrap();
        let with = replaced(&readme, "| new |\n").unwrap();
        assert!(with.contains(&format!("{BEGIN}| new |\n{END}")), "{with}");
        assert!(replaced("no markers", "").is_err());
    }

    #[test]
    fn facts_of_tests_that_did_not_run_again_are_kept() {
        let capabilities = json!({"route": "exit", "capabilities": ["CAP_BPF"]});
        let works = |works: bool| json!({"route": "exit", "works": works});
        let of_fexit = json!({"route": "fexit", "works": true});
        let before = vec![works(true), capabilities.clone(), of_fexit.clone()];
        let told = merged(&[works(false)], before);
        assert_eq!(told, [works(false), capabilities, of_fexit]);
    }

    #[test]
    fn a_row_says_what_each_route_needs() {
        let told = Told {
            release: "6.1.0".to_owned(),
            facts: vec![
                json!({"route": "fexit", "works": true}),
                json!({"route": "fexit", "ordinary": 5, "longest": 40, "whole": 900}),
                json!({"route": "fexit", "capabilities": ["CAP_BPF", "CAP_PERFMON"]}),
                json!({"route": "kprobe", "works": false, "refused": "no"}),
                json!({"route": "exit", "works": true}),
                json!({"route": "fexit", "run_ns": 90, "empty_ns": 50}),
                json!({"route": "exit", "run_ns": 100, "empty_ns": 40}),
            ],
            ..Told::default()
        };
        let machine = MATRIX.iter().find(|it| it.manner == "without BTF").unwrap();
        let table = table(&[(machine, told)]);
        let row = table.lines().nth(2).unwrap();
        assert_eq!(
            row,
            "| 6.1.0, without BTF | BPF PERFMON | no | works | 5 / 40 / 900 | 1.8 / 2.5 |"
        );
    }
}

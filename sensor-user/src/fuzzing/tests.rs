//! The properties on inputs that are kept: seeds, and what once broke one.

use std::{fs, path::Path};

use super::{PROPERTIES, envelopes, opens, scan};

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn tests() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests"))
}

#[test]
fn what_was_kept_of_fuzzing_holds() {
    for (name, property) in PROPERTIES {
        let seeds = files(&tests().join("fuzz/seeds").join(name));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let found = files(&tests().join("fuzz/found").join(name));
        seeds.iter().chain(&found).for_each(|input| property(input));
    }
}

#[test]
fn real_lines_are_scanned_and_read_as_a_full_parse_reads_them() {
    for (folder, property) in
        [("audit", scan as super::Property), ("opens", opens), ("wrapped", envelopes)]
    {
        for file in files(&tests().join("fixtures").join(folder)) {
            assert!(!file.is_empty());
            file.split(|byte| *byte == b'\n').for_each(property);
        }
    }
}

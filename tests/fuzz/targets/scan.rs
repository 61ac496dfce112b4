//! Audit lines: the scan against a full parse.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokentrail::fuzzing::scan(input));

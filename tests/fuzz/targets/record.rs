//! Kernel records through attribution.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokentrail::fuzzing::record(input));

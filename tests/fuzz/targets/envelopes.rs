//! Audit events that log services have wrapped in lines of their own.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokentrail::fuzzing::envelopes(input));

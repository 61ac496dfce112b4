//! Bytes to lines, in any chunks, and long lines made short.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokentrail::fuzzing::lines(input));

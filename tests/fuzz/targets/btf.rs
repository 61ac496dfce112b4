//! Kernel type information, corrupt or truncated.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokentrail::fuzzing::btf(input));

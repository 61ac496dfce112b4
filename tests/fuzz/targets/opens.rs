//! ECS documents of opens, as replays read them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokentrail::fuzzing::opens(input));

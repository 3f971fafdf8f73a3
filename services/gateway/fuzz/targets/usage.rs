//! The usage scanner: any answer, of every wire, cut anywhere.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzzing::usage(data));

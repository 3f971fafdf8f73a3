//! The reader of a replica's HTTP/1.1: any bytes, cut anywhere.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzzing::answer(data));

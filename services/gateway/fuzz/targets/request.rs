//! The request parser: any body, at every endpoint.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzzing::request(data));

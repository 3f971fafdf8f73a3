//! The cutter of event streams: any bytes, cut anywhere.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzzing::events(data));

//! The simulated vLLM against captures of the real one, its faults, and its oracle.

// The lints know tests by their attribute; everything here is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod counting;
mod endpoints;
mod failing;
mod normal;
mod pooling;
mod replay;

//! The promises, end to end, on real components, with faults: what the tests in `tests/` are written with.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect; its tools are part of it"
)]

pub mod arguments;
pub mod client;
pub mod figures;
pub mod host;
pub mod network;
pub mod oracle;
pub mod process;
pub mod redis;
mod role;
mod servers;
pub mod shop;
pub mod system;
pub mod tenants;
pub mod traffic;
pub mod wait;

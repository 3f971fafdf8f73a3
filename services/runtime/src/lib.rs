//! What every role shares: configuration, telemetry, metrics, clock, HTTP for health, task supervision, shutdown.
//!
//! A role's `main` reads as one sentence with these: [`config::load`] → [`telemetry::init`] → build →
//! [`Tasks::run`] until a signal → drain. This crate knows nothing of tokens or money and imports none of our crates.

pub mod clock;
pub mod config;
pub mod exposition;
pub mod http;
pub mod metrics;
mod readiness;
mod shutdown;
mod tasks;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod workers;

pub use clock::{Clock, ManualClock, SystemClock};
pub use metrics::Metrics;
pub use readiness::{Condition, Readiness};
pub use shutdown::Shutdown;
pub use tasks::{TaskError, Tasks};
pub use workers::Workers;

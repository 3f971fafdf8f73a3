//! Spool, recovery, shipping, and the step functions that turn a log into outcomes.

/// Whether a simulation works without this rule of the protocol. Never, in a real process.
macro_rules! left_out {
    ($rule:ident) => {{
        #[cfg(any(test, feature = "simulation"))]
        let left_out = $crate::simulation::left_out($crate::simulation::Rule::$rule);
        #[cfg(not(any(test, feature = "simulation")))]
        let left_out = false;
        left_out
    }};
}

pub mod balances;
pub mod chain;
pub mod consume;
pub mod control;
pub mod cut;
mod follow;
pub mod group;
pub mod inflight;
pub mod kafka;
pub mod line;
pub mod partition;
pub mod quiet;
pub mod replay;
pub mod ship;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod snapshot;
pub mod spend;
pub mod spool;
pub mod topics;

//! The log folded into ClickHouse, and balances out of memory.
//!
//! One line per topic and partition: decode → outcome → balance → cut → insert → read back. What is decided is in the
//! driver, which does no I/O; a line gives it records and ClickHouse's answers, and does what it says. ClickHouse alone says
//! how far a line is, so a fold keeps no state of its own: it may be killed at any moment, run twice, or find its database
//! dropped, and each offset is folded once all the same.

/// Whether a simulation works without this rule of the protocol. Never, in a real process.
macro_rules! left_out {
    ($rule:ident) => {{
        #[cfg(test)]
        let left_out = stream::simulation::left_out(stream::simulation::Rule::$rule);
        #[cfg(not(test))]
        let left_out = false;
        left_out
    }};
}

pub mod archive;
mod ask;
pub mod audit;
mod balances;
mod call;
mod chunk;
mod control;
mod driver;
mod event;
mod health;
mod line;
mod lines;
mod looks;
mod meters;
mod publish;
pub mod rebuild;
pub mod reconcile;
mod run;
pub mod seal;
mod settings;
#[cfg(test)]
mod simulation;
mod store;

pub use run::{Error, RunSettings, run};
pub use settings::{Partitions, Settings};

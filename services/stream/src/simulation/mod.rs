//! What simulations of the protocol are made of: a disk, a log and gateways in memory, and rules that can be left out.
//!
//! Only tests and the feature `simulation` have it. The gateways run the real spool, recovery and shipping; `fold` adds its
//! lines and a ClickHouse.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a simulation fails by panicking")]

pub mod disk;
mod gateway;
mod hooks;
mod log;
mod oracle;

pub use gateway::{Death, FOREVER, Gateway, Live, PARTITIONS, START, admission, finish, open, settings};
pub use hooks::{Rule, die_after_stores, leave_out, left_out, number_ids_from};
pub(crate) use hooks::{next_id, stores_on};
pub use log::{Chance, LogState, Partition, Place, SimConnect, SimLog};
pub use oracle::{Counted, Truth, Wrong, check};

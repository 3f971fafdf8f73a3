//! The pure core: ids, token classes, money, time slots, price book and rating, invoices, quotas and rate limits, the state of control. No clock, no chance, no I/O.

pub mod control;
pub mod ids;
pub mod invoice;
pub mod money;
pub mod price;
pub mod quota;
pub mod rate_limit;
pub mod time;
pub mod tokens;

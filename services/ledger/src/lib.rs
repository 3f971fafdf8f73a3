//! The pure core: ids, token classes, money, time slots, price book and rating. No clock, no chance, no I/O.

pub mod ids;
pub mod money;
pub mod price;
pub mod time;
pub mod tokens;

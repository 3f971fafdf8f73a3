//! The pure core: ids, token classes, money, time slots, price book and rating, quota arithmetic. No clock, no chance, no I/O.

pub mod control;
pub mod ids;
pub mod money;
pub mod price;
pub mod quota;
pub mod time;
pub mod tokens;

//! `tollgate dev`: everything on one machine, as supervised children.

#![expect(dead_code, reason = "the roles that these modules start are not built yet")]

mod child;
mod children;
mod lock;
mod logs;
mod ports;
mod terminal;

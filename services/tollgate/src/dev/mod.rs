//! `tollgate dev`: everything on one machine, as supervised children.

mod child;
mod lock;
mod logs;
mod ports;
mod terminal;

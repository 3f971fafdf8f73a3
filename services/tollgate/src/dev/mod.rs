//! `tollgate dev`: everything on one machine, as supervised children.

mod child;
mod children;
mod lock;
mod logs;
mod ports;
mod terminal;

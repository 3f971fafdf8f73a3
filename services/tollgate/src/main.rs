//! The one binary: a subcommand per role.
mod cli;
mod dev;
mod web;
fn main() {}

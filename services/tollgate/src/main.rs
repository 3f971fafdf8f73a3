//! The one binary: a subcommand per role.
mod cli;
mod dev;
mod doctor;
mod web;
fn main() {}

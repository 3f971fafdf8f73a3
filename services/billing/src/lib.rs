//! Control API, usage, costs, balances, invoice preview and the console.
//!
//! A request is authenticated, its question is taken apart, and a function of `figures` or `control` answers it: from the
//! state of control and the balances in memory, and from ClickHouse. The console's page asks the same functions.

mod api;
mod app;
mod auth;
mod console;
mod control;
pub mod dead_letters;
mod extract;
mod figures;
mod metrics;
mod problem;
mod run;
mod server;
mod settings;

pub use run::{Error, RunSettings, run};
pub use settings::Settings;

/// The description of the API, as `/api/v1/openapi.json` serves it.
pub fn openapi() -> String {
    api::json(&api::openapi())
}

#[cfg(test)]
mod tests;

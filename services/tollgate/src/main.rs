//! The one binary: a subcommand per role that stands, and what surrounds them.

mod archive;
mod audit;
mod canary;
mod cli;
mod dead_letters;
mod dev;
mod doctor;
mod embedded_servers;
mod memory;
mod migrate;
mod over_log;
mod rebuild;
mod reconcile;
mod roles;
mod schema_registry;
mod seal;
mod settings;
mod web;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;
use runtime::{Shutdown, telemetry};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::Fold(_) | Command::Rebuild(_)) {
        memory::keep_what_is_freed();
    }
    // dev binds its children to the thread that starts them, so it has only the main thread.
    let mut builder = match command {
        Command::Dev(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let ended = builder.enable_all().build().map_err(Into::into).and_then(|runtime| runtime.block_on(start(command)));
    ended.unwrap_or_else(|error| {
        eprintln!("tollgate: {error}");
        ExitCode::FAILURE
    })
}

async fn start(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Dev(options) => Ok(dev::run(options).await),
        Command::Gateway(role) => roles::gateway(role).await,
        Command::Fold(role) => roles::fold(role).await,
        Command::Billing(role) => roles::billing(role).await,
        Command::Canary(options) => roles::canary(options).await,
        Command::Migrate(options) => roles::migrate(options).await,
        Command::Doctor(options) => Ok(doctor::run(options).await),
        Command::DeadLetters(options) => dead_letters::run(options.command).await,
        Command::Archive(options) => archive::run(options).await,
        Command::Audit(options) => audit::run(options).await,
        Command::Rebuild(options) => rebuild::run(options).await,
        Command::Seal(options) => seal::run(options).await,
        Command::Reconcile(options) => Ok(reconcile::run(options).await),
        Command::Schemas(options) => Ok(schema_registry::run(options.command).await),
        Command::EmbeddedVllm(options) => serve(|shutdown| embedded_servers::vllm(options, shutdown)).await,
        Command::EmbeddedClickhouse(options) => serve(|shutdown| embedded_servers::clickhouse(options, shutdown)).await,
        Command::EmbeddedRegistry(options) => serve(|shutdown| embedded_servers::registry(options, shutdown)).await,
    }
}

/// Logs, and serves until a signal.
async fn serve<F>(server: impl FnOnce(Shutdown) -> F) -> Result<ExitCode, Box<dyn Error>>
where
    F: Future<Output = Result<(), Box<dyn Error>>>,
{
    telemetry::init(&telemetry::Settings::default())?;
    server(Shutdown::from_signals()?).await?;
    Ok(ExitCode::SUCCESS)
}

//! The one binary: a subcommand per role. Today it serves the simulated vLLM; the other subcommands are planned.

mod cli;
mod dev;
mod doctor;
mod web;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;
use embedded::vllm::{SimulatorError, SimulatorSettings, serve};
use runtime::{Shutdown, telemetry};
use tokio::net::TcpListener;

use crate::cli::{Cli, Command, EmbeddedVllm};

#[tokio::main]
async fn main() -> ExitCode {
    match start(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn start(command: Command) -> Result<(), Box<dyn Error>> {
    let Command::EmbeddedVllm(args) = command else {
        return Err("this subcommand is not built yet".into());
    };
    embedded_vllm(args).await
}

/// Serves until SIGTERM or SIGINT; then running requests end with `abort`, as vLLM ends them.
async fn embedded_vllm(args: EmbeddedVllm) -> Result<(), Box<dyn Error>> {
    telemetry::init(&telemetry::Settings::default())?;
    let shutdown = Shutdown::from_signals()?;
    let failed = |source| SimulatorError::Listen { addr: args.listen, source };
    let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    tracing::info!(%addr, models = ?args.models, "the simulated vLLM serves");
    let settings = SimulatorSettings { listen: addr, models: args.models, ..SimulatorSettings::default() };
    Ok(serve(settings, listener, shutdown.cancelled_owned()).await?)
}

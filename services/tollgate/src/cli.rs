//! The command line: one subcommand per role, and what surrounds them.
//!
//! A variant with `#[command(skip)]` is planned: nobody can type it until the role that it starts is built.

#![expect(dead_code, reason = "the roles that these modules start are not built yet")]

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const ABOUT: &str = "Meters, limits and bills self-hosted LLM serving.";

const LONG_ABOUT: &str = "\
Tollgate meters, limits and bills self-hosted LLM serving.

The gateway, the fold and billing are not built yet, so there is no system to start. What runs today is the simulated vLLM:

  tollgate embedded-vllm --listen 127.0.0.1:8000 --model llama-3.1-8b";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about = ABOUT, long_about = LONG_ABOUT)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the process is to be.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serves OpenAI's API in front of vLLM replicas; meters and limits every request
    #[command(skip)]
    Gateway(Role),
    /// Folds the log into ClickHouse and publishes balances
    #[command(skip)]
    Fold(Role),
    /// Serves the control API, usage, costs, balances, invoice previews and the console
    #[command(skip)]
    Billing(Role),
    /// Runs everything on this machine: no Docker, no outside server
    #[command(skip)]
    Dev(Dev),
    /// Creates or updates the tables in ClickHouse, and the topics in Kafka; safe to run again
    #[command(skip)]
    Migrate(Migrate),
    /// The Avro schemas of the topics
    #[command(skip)]
    Schemas(Schemas),
    /// Says in plain words what is wrong with settings and connections
    #[command(skip)]
    Doctor(Doctor),
    #[command(skip)]
    EmbeddedClickhouse(EmbeddedClickhouse),
    /// A simulated vLLM 0.32.0: its answers byte for byte, exact token counts, faults on demand
    EmbeddedVllm(EmbeddedVllm),
    #[command(skip)]
    EmbeddedRegistry(EmbeddedRegistry),
}

/// What every role takes.
#[derive(Debug, Args)]
pub(crate) struct Role {
    #[command(flatten)]
    pub(crate) settings: SettingsFile,
    /// Check the settings, say everything that is wrong with them, and exit
    #[arg(long)]
    pub(crate) validate: bool,
}

/// Where settings are.
#[derive(Debug, Args)]
pub(crate) struct SettingsFile {
    /// The settings, a TOML file; without it, defaults and TOLLGATE__SECTION__KEY variables
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// `tollgate migrate`.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    pub(crate) role: Role,
    /// Only the tables in ClickHouse, not the topics in Kafka
    #[arg(long)]
    pub(crate) tables_only: bool,
}

/// `tollgate schemas`.
#[derive(Debug, Args)]
pub(crate) struct Schemas {
    #[command(subcommand)]
    pub(crate) command: SchemasCommand,
}

/// What to do with the schemas.
#[derive(Debug, Subcommand)]
pub(crate) enum SchemasCommand {
    /// Prove that every version reads every other and every golden byte form
    Check,
    /// Import the schemas with their ids into a Confluent-compatible registry
    Register {
        /// The registry's address, e.g. http://localhost:8085
        #[arg(value_name = "URL")]
        registry: String,
    },
    /// Show topics, schema ids and versions
    List,
}

/// `tollgate doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) settings: SettingsFile,
}

/// `tollgate dev`.
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Where everything is kept between starts
    #[arg(long, value_name = "DIR", default_value = ".tollgate")]
    pub(crate) data_dir: PathBuf,
    /// Where deploy/local/*.sh put Kafka and the ClickHouse engine
    #[arg(long, value_name = "DIR", env = "TOLLGATE_TOOLS", default_value = ".tools")]
    pub(crate) tools_dir: PathBuf,
    #[command(flatten)]
    pub(crate) ports: Ports,
}

/// The ports of `tollgate dev`, all on this machine's loopback address.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ports (on 127.0.0.1)")]
pub(crate) struct Ports {
    /// OpenAI's API
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) gateway_port: u16,
    /// Control API and console
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    pub(crate) billing_port: u16,
    /// The fold's health and metrics
    #[arg(long, value_name = "PORT", default_value_t = 8082)]
    pub(crate) fold_port: u16,
    /// Kafka
    #[arg(long, value_name = "PORT", default_value_t = 9092)]
    pub(crate) kafka_port: u16,
    /// ClickHouse's HTTP interface
    #[arg(long, value_name = "PORT", default_value_t = 8123)]
    pub(crate) clickhouse_port: u16,
    /// The schema registry's read API
    #[arg(long, value_name = "PORT", default_value_t = 8085)]
    pub(crate) registry_port: u16,
    /// The simulated vLLM that serves llama-3.1-8b
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub(crate) llama_port: u16,
    /// The simulated vLLM that serves mistral-7b
    #[arg(long, value_name = "PORT", default_value_t = 8001)]
    pub(crate) mistral_port: u16,
}

/// The ClickHouse engine behind its HTTP interface, as a child of `dev`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedClickhouse {
    #[arg(long)]
    pub(crate) library: PathBuf,
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    #[arg(long)]
    pub(crate) listen: SocketAddr,
}

/// A simulated vLLM, alone or as a child of `dev`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedVllm {
    /// Where it serves; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// The name of the model it serves; given again, an alias of the first
    #[arg(long = "model", value_name = "NAME", required = true)]
    pub(crate) models: Vec<String>,
}

/// The registry's read API, as a child of `dev`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedRegistry {
    #[arg(long)]
    pub(crate) listen: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

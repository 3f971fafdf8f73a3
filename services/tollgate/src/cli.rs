//! The command line: a subcommand per role, and what surrounds them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};

const ABOUT: &str = "Meters, limits and bills self-hosted LLM serving.";

const SETTINGS: &str = "\
Settings: one TOML file (--config, or the variable TOLLGATE_CONFIG), and variables TOLLGATE__SECTION__KEY, which win.
Sections: [kafka] [clickhouse] [gateway] [spool] [fold] [billing] [canary] [log] [dev]; one file can serve every role.";

const EXAMPLES: &str = "\
Examples:
  tollgate dev                               everything on this machine, no Docker, no outside server
  tollgate gateway --config tollgate.toml    one role, as in production
  tollgate doctor --config tollgate.toml     what is wrong with settings and connections";

const DEV_EXAMPLES: &str = "\
Examples:
  tollgate dev
  tollgate dev --gateway-port 9080           when 8080 is taken
  tollgate dev --ports-from 9500             all of them, from 9500 on
  tollgate dev --data-dir /tmp/second --ports-from 9600
  tollgate dev --simulator-time-per-output-token 20ms

Everything is kept in the data directory: stop with Ctrl-C, start again, and go on. To begin anew, delete it.";

const GATEWAY_EXAMPLES: &str = "\
Examples:
  tollgate gateway --config tollgate.toml
  tollgate gateway --validate                only check the settings
  TOLLGATE__SPOOL__DIR=/var/lib/tollgate/spool tollgate gateway

Sections: [kafka] [spool] [gateway] [log]. Serves /v1, /healthz, /readyz and /metrics on [gateway] listen, port 8080. What
it meters goes to [spool] dir first, a directory on a disk of this host that outlives the process. After its first start it
needs Kafka neither to start nor to serve, as long as the spool has room.";

const FOLD_EXAMPLES: &str = "\
Examples:
  tollgate fold --config tollgate.toml
  tollgate fold --validate                   only check the settings
  TOLLGATE__FOLD__LISTEN=0.0.0.0:8082 tollgate fold

Sections: [kafka] [clickhouse] [fold] [log]. Serves /healthz, /readyz and /metrics on [fold] listen, port 8082. Waits for
servers that do not answer, and says on /readyz what it waits for. Start as many as you like, up to one for each partition: a
consumer group divides the partitions among them (fold.name: its name in it, the same after a restart; by default the host's
name and the port).";

const BILLING_EXAMPLES: &str = "\
Examples:
  tollgate billing --config tollgate.toml
  tollgate billing --validate                only check the settings
  TOLLGATE__BILLING__ADMIN_KEY_SHA256=$(printf %s tg_my_key | sha256sum | cut -d' ' -f1) tollgate billing

Sections: [kafka] [clickhouse] [billing] [log]. Serves the API under /api/v1 (OpenAPI at /api/v1/openapi.json), the console at
/, /healthz, /readyz and /metrics on [billing] listen, port 8081.";

const CANARY_EXAMPLES: &str = "\
Examples:
  tollgate canary --config tollgate.toml
  tollgate canary --once                     one round, for a script or a timer
  tollgate canary --once --json | jq .outcome
  TOLLGATE__CANARY__KEY=tg_... TOLLGATE__CANARY__MODEL=llama-3.1-8b tollgate canary --once

Sections: [canary] [log]. Sends a tiny chat through the gateway now and then, and asks the usage API until exactly that is there:
late, more than was used, refused by the gateway and not answered by billing are failures, in the log, in metrics and on /readyz. It
needs a key of a tenant of its own, which is never billed (docs/canary.md). Serves /healthz, /readyz and /metrics on [canary] listen,
port 8083. Once, it ends with 0 when all was billed as it was answered, with 1 when not, with 2 when it could not look.";

const MIGRATE_EXAMPLES: &str = "\
Examples:
  tollgate migrate --config tollgate.toml
  tollgate migrate --tables-only             after ClickHouse was replaced; fold then fills it from the log
  tollgate migrate --validate                only check [kafka] and [clickhouse]

Waits up to a minute for servers that do not answer yet. Topics that are there with settings that exact counting cannot
rest on are refused, and named.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  tollgate doctor --config tollgate.toml
  tollgate doctor --config .tollgate/config.toml    a running tollgate dev
  tollgate doctor --json | jq '.findings[] | select(.level == \"fail\")'

Ends with 0 when nothing is wrong, with 1 otherwise.";

const ARCHIVE_EXAMPLES: &str = "\
Examples:
  tollgate archive /srv/tollgate-archive            what Kafka holds and the archive does not; each night, say
  tollgate archive /srv/tollgate-archive --check    reads every file, and whether each goes on where the one before ends
  tollgate rebuild --archive /srv/tollgate-archive  folds from it what Kafka no longer has; audit has the same option

Writes the records of the tokens and requests topics into DIR/TOPIC/PARTITION/FIRST-END.parquet, FIRST and END being offsets, with a
.json beside each: its SHA-256, its count, and where the chain stands at both ends. ClickHouse writes and reads the format; each file is
read back before it gets its name. Killed at any moment, it leaves no half file and goes on when it is run again; a file that was
removed is written anew while Kafka still has its records. Nothing in DIR is ever changed or removed. Set kafka.archived, and the two
topics may be given a retention: longer than the time between two runs, and than the fold may ever be behind. Ends with 0 when all is
archived (or whole), with 1 when --check finds a fault, with 2 when something was not archived.";

const AUDIT_EXAMPLES: &str = "\
Examples:
  tollgate audit --config tollgate.toml          every partition, from its first record on
  tollgate audit acme 2026-11                    what acme used that month by the log, and that its partition is whole
  tollgate audit --partition 3 --json | jq '.lines[].differences'
  tollgate audit --archive /srv/tollgate-archive    what Kafka no longer has is read from the archive

Reads the log from its beginning and changes nothing; the fold may go on meanwhile. Each chunk is cut as it was cut, and every row,
outcome, chain and sum that ClickHouse holds is held to it. Ends with 0 when all is as the log says, with 1 when something differs,
with 2 when it cannot be said (Kafka or ClickHouse was not read).";

const REBUILD_EXAMPLES: &str = "\
Examples:
  tollgate rebuild --config tollgate.toml                   into tollgate_rebuild, beside the database tollgate
  tollgate rebuild --into tollgate_2 --json
  tollgate rebuild --archive /srv/tollgate-archive          what Kafka no longer has is folded from the archive
  TOLLGATE__CLICKHOUSE__DATABASE=tollgate_rebuild tollgate audit    holds the new one to the log, row by row

Folds the log from its beginning into a database beside the one of the settings, as far as that one has come. At the end of each
chunk of the old one the chains are compared, at the end the sums. Changes nothing in the old one; fold and billing may go on.
Killed, it goes on from what is there when it is run again. Then set clickhouse.database to the new name, for the folds and billing,
and start them anew: the fold goes on where the rebuild stopped, so nothing is lost and nothing counted twice. Drop the old one when
nothing uses it any more. Ends with 0 when the old one was as the log says, with 1 when it differs, with 2 when it stopped before
its end.";

const RECONCILE_EXAMPLES: &str = "\
Examples:
  tollgate reconcile --config tollgate.toml
  tollgate reconcile --config .tollgate/config.toml    a running tollgate dev
  tollgate reconcile --from 2026-11-01T00:00:00Z --to 2026-11-02T00:00:00Z
  tollgate reconcile --json | jq '.differences[] | {check, partition, hour, by, request_ids}'

Compares, per partition and hour of the log: the log's offsets with what is folded, chunks with one another and with their
rows, sums with rows, the counts of each request with its running count and its end, balances with the rows up to their
offset, bills with the rows, and what each vLLM counted itself with its requests. What is merely under way is said, and is no
difference. Ends with 0 when nothing differs, with 1 when something does, with 2 when it could not look.";

const SCHEMAS_EXAMPLES: &str = "\
Examples:
  tollgate schemas list
  tollgate schemas check
  tollgate schemas register --registry http://localhost:8085";

const VLLM_EXAMPLES: &str = "\
Examples:
  tollgate embedded-vllm --listen 127.0.0.1:8000 --model llama-3.1-8b
  tollgate embedded-vllm --listen 127.0.0.1:0 --model m --time-to-first-token 200ms --time-per-output-token 20ms";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about = ABOUT, after_help = SETTINGS, after_long_help = format!("{EXAMPLES}\n\n{SETTINGS}"))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the process is to be.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs everything on this machine: Kafka, ClickHouse, simulated vLLM and every role; no Docker, no outside server
    #[command(after_help = DEV_EXAMPLES)]
    Dev(Dev),
    /// Serves OpenAI's API in front of vLLM replicas; meters and limits every request
    #[command(after_help = GATEWAY_EXAMPLES)]
    Gateway(Role),
    /// Folds the log into ClickHouse and publishes balances
    #[command(after_help = FOLD_EXAMPLES)]
    Fold(Role),
    /// Serves the control API, usage, costs, balances, invoice previews and the console
    #[command(after_help = BILLING_EXAMPLES)]
    Billing(Role),
    /// Sends tiny requests as a tenant of its own, and holds the usage API to what their answers told
    #[command(after_help = CANARY_EXAMPLES)]
    Canary(Canary),
    /// Makes the topics in Kafka and the tables in ClickHouse; safe to run again, and from two places at once
    #[command(after_help = MIGRATE_EXAMPLES)]
    Migrate(Migrate),
    /// Says in plain words what is wrong with settings and connections
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(Doctor),
    /// What could not count: listed, shown, corrected and written anew
    #[command(after_help = crate::dead_letters::args::EXAMPLES)]
    DeadLetters(crate::dead_letters::args::DeadLetters),
    /// Replays the log and says whether ClickHouse holds what it says, to the last row
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(Audit),
    /// Keeps the log in Parquet files, so that audit and rebuild outlive Kafka's retention
    #[command(after_help = ARCHIVE_EXAMPLES)]
    Archive(Archive),
    /// Folds the log anew into a database beside the old one, and compares both
    #[command(after_help = REBUILD_EXAMPLES)]
    Rebuild(Rebuild),
    /// Replaces the rows of months that are over by few that have the same sums, once the log says the same
    #[command(after_help = crate::seal::args::EXAMPLES)]
    Seal(crate::seal::args::Seal),
    /// Compares log, rows, sums, balances and bills, and names each difference with its requests
    #[command(after_help = RECONCILE_EXAMPLES)]
    Reconcile(Reconcile),
    /// The Avro schemas of the topics
    #[command(after_help = SCHEMAS_EXAMPLES)]
    Schemas(Schemas),
    /// A simulated vLLM 0.32.0: its answers byte for byte, exact token counts, faults on demand
    #[command(after_help = VLLM_EXAMPLES)]
    EmbeddedVllm(EmbeddedVllm),
    /// The ClickHouse engine behind ClickHouse's HTTP interface
    #[command(
        after_help = "Example:\n  tollgate embedded-clickhouse --library .tools/chdb/libchdb.so --data-dir /tmp/clickhouse --listen 127.0.0.1:8123"
    )]
    EmbeddedClickhouse(EmbeddedClickhouse),
    /// The schema registry's read API
    #[command(after_help = "Example:\n  tollgate embedded-registry --listen 127.0.0.1:8085")]
    EmbeddedRegistry(EmbeddedRegistry),
}

/// Where settings are.
#[derive(Debug, Args)]
pub(crate) struct SettingsFile {
    /// The settings, a TOML file; without it, defaults and TOLLGATE__SECTION__KEY variables
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// `tollgate dev`. What is absent here comes from the settings' section `[dev]`.
#[derive(Debug, Args)]
pub(crate) struct Dev {
    #[command(flatten)]
    pub(crate) role: Role,
    /// Where everything is kept between starts [default: .tollgate]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where make setup put Kafka and the ClickHouse engine [default: .tools]
    #[arg(long, value_name = "DIR", env = "TOLLGATE_TOOLS")]
    pub(crate) tools_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ports: Ports,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// The ports of `tollgate dev`, all on this machine's loopback address.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Ports (on 127.0.0.1; 0 takes any free one)")]
pub(crate) struct Ports {
    /// Gives every part a port from this one on, in the order of this list; 0 gives each any free one
    #[arg(long, value_name = "BASE")]
    pub(crate) ports_from: Option<u16>,
    /// The gateway: OpenAI's API [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(crate) gateway_port: Option<u16>,
    /// Billing: control API, usage, invoices, console [default: 8081]
    #[arg(long, value_name = "PORT")]
    pub(crate) billing_port: Option<u16>,
    /// The fold: health and metrics [default: 8082]
    #[arg(long, value_name = "PORT")]
    pub(crate) fold_port: Option<u16>,
    /// Kafka [default: 9092]
    #[arg(long, value_name = "PORT")]
    pub(crate) kafka_port: Option<u16>,
    /// ClickHouse's HTTP interface [default: 8123]
    #[arg(long, value_name = "PORT")]
    pub(crate) clickhouse_port: Option<u16>,
    /// The schema registry's read API [default: 8085]
    #[arg(long, value_name = "PORT")]
    pub(crate) registry_port: Option<u16>,
    /// The simulated vLLM that serves llama-3.1-8b [default: 8000]
    #[arg(long, value_name = "PORT")]
    pub(crate) llama_port: Option<u16>,
    /// The simulated vLLM that serves mistral-7b [default: 8001]
    #[arg(long, value_name = "PORT")]
    pub(crate) mistral_port: Option<u16>,
    /// The canary: health and metrics [default: 8083]
    #[arg(long, value_name = "PORT")]
    pub(crate) canary_port: Option<u16>,
}

/// How fast the simulated vLLM of `tollgate dev` are.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Simulated vLLM")]
pub(crate) struct Pace {
    /// Time to the first token, e.g. 200ms [default: 50ms]
    #[arg(long, value_name = "TIME", value_parser = runtime::config::duration::parse)]
    pub(crate) simulator_time_to_first_token: Option<Duration>,
    /// Time between two tokens, e.g. 20ms [default: 5ms]
    #[arg(long, value_name = "TIME", value_parser = runtime::config::duration::parse)]
    pub(crate) simulator_time_per_output_token: Option<Duration>,
    /// Tokens after which its answers end by themselves [default: 120]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) simulator_output_tokens: Option<u32>,
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

/// `tollgate canary`.
#[derive(Debug, Args)]
pub(crate) struct Canary {
    #[command(flatten)]
    pub(crate) role: Role,
    /// One round, with a request that is not streamed and one that is; prints what it saw
    #[arg(long)]
    pub(crate) once: bool,
    /// Answer in JSON, for programs
    #[arg(long, requires = "once")]
    pub(crate) json: bool,
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

/// `tollgate doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) settings: SettingsFile,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tollgate archive`.
#[derive(Debug, Args)]
pub(crate) struct Archive {
    #[command(flatten)]
    pub(crate) role: Role,
    /// The directory; made if absent
    #[arg(value_name = "DIR", env = "TOLLGATE_ARCHIVE")]
    pub(crate) dir: PathBuf,
    /// Write nothing: read every file, and say what is wrong
    #[arg(long)]
    pub(crate) check: bool,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// The archive of whoever replays the log.
#[derive(Debug, Args)]
pub(crate) struct ArchiveToRead {
    /// Read what Kafka no longer has from what tollgate archive wrote here
    #[arg(long = "archive", value_name = "DIR", env = "TOLLGATE_ARCHIVE")]
    pub(crate) dir: Option<PathBuf>,
}

/// `tollgate audit`.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[command(flatten)]
    pub(crate) role: Role,
    /// Only the partition that this tenant's records are in
    #[arg(value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// And what the tenant used in this month of its time zone, e.g. 2026-11
    #[arg(value_name = "PERIOD", requires = "tenant")]
    pub(crate) period: Option<String>,
    /// Only these partitions
    #[arg(long, value_name = "NUMBER", conflicts_with = "tenant")]
    pub(crate) partition: Vec<i32>,
    #[command(flatten)]
    pub(crate) archive: ArchiveToRead,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tollgate rebuild`.
#[derive(Debug, Args)]
pub(crate) struct Rebuild {
    #[command(flatten)]
    pub(crate) role: Role,
    /// The new database [default: the one of the settings with _rebuild behind its name]
    #[arg(long, value_name = "DATABASE")]
    pub(crate) into: Option<String>,
    #[command(flatten)]
    pub(crate) archive: ArchiveToRead,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tollgate reconcile`.
#[derive(Debug, Args)]
pub(crate) struct Reconcile {
    #[command(flatten)]
    pub(crate) settings: SettingsFile,
    /// The first hour of the log, as a time in it [default: 24 hours ago]
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<DateTime<Utc>>,
    /// The first hour that is not looked at, as a time in it [default: none]
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<DateTime<Utc>>,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
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
    /// Show ids, subjects, versions and records
    List,
    /// Prove that every version of a subject reads what every other wrote, and every byte form ever written
    Check,
    /// Import the schemas with their ids into a Confluent-compatible registry; refuses when an id is taken
    #[command(after_help = "Example:\n  tollgate schemas register --registry http://localhost:8085")]
    Register {
        /// The registry's address
        #[arg(long, value_name = "URL")]
        registry: String,
    },
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
    /// Time to the first token, e.g. 200ms
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = runtime::config::duration::parse)]
    pub(crate) time_to_first_token: Duration,
    /// Time between two tokens, e.g. 20ms
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = runtime::config::duration::parse)]
    pub(crate) time_per_output_token: Duration,
    /// Tokens after which its answers end by themselves; without it, only limits end them
    #[arg(long, value_name = "TOKENS")]
    pub(crate) output_tokens: Option<u32>,
    /// The model only reads: it serves embeddings, scores and ranks, and no text
    #[arg(long)]
    pub(crate) pooling: bool,
}

/// The ClickHouse engine behind its HTTP interface, alone or as a child of `dev`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedClickhouse {
    /// The engine, libchdb.so
    #[arg(long, value_name = "FILE")]
    pub(crate) library: PathBuf,
    /// Where it keeps its data
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where it serves
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
}

/// The registry's read API, alone or as a child of `dev`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedRegistry {
    /// Where it serves
    #[arg(long, value_name = "ADDRESS:PORT")]
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

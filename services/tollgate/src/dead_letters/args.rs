//! The command line of `tollgate dead-letters`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use stream::replay::{NoPlace, Place, topic_named};

use crate::cli::SettingsFile;

pub(crate) const EXAMPLES: &str = "\
Examples:
  tollgate dead-letters list --config tollgate.toml --since 24h
  tollgate dead-letters show tokens/3/1742
  tollgate dead-letters fix tokens/3/1742 --set output=12 --set output_cumulative=12 --reason 'sign was wrong, ticket 311'
  tollgate dead-letters replay tokens/3/1742 --reason 'the key was wrong, the event is sound'

A dead letter is a record that could not count. It keeps its place and its outcome for ever; what is replayed is a new record at
a new offset, and counts once, however often the same is sent.";

const FIX_EXAMPLES: &str = "\
Examples:
  tollgate dead-letters fix tokens/3/1742 --set output=12 --set output_cumulative=12 --reason 'sign was wrong, ticket 311'
  tollgate dead-letters fix tokens/3/1742 --record corrected.json --reason 'torn by a foreign writer' --dry-run

What is not set stays as it was. Of bytes that are no event nothing stays: --record is then the whole event, in the form of
show --json. event_id, source and seq are derived.";

const REPLAY_EXAMPLES: &str = "\
Example:
  tollgate dead-letters replay tokens/3/1742 --reason 'the key was wrong, the event is sound'

Look at a seq_conflict first: as a rule another event has counted the same tokens already.";

/// `tollgate dead-letters`.
#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    pub(crate) command: DeadLettersCommand,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// Show what could not count, why, and what of it was replayed
    #[command(
        after_help = "Example:\n  tollgate dead-letters list --topic tokens --reason out_of_bounds --since 24h --json"
    )]
    List(List),
    /// Show one in full: what it says as far as it can be read, and its bytes
    #[command(after_help = "Example:\n  tollgate dead-letters show tokens/3/1742 --json | jq .record > corrected.json")]
    Show(Show),
    /// Write one anew as it is
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(Again),
    /// Write one anew, corrected
    #[command(after_help = FIX_EXAMPLES)]
    Fix(Fix),
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) settings: SettingsFile,
    /// Of one topic alone: tokens or requests
    #[arg(long, value_parser = topic)]
    pub(crate) topic: Option<&'static str>,
    /// Of one partition alone
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) partition: Option<i32>,
    /// With this reason alone
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(billing::dead_letters::REASONS))]
    pub(crate) reason: Option<String>,
    /// That Kafka took no longer ago than this, e.g. 90s, 15m, 24h
    #[arg(long, value_name = "TIME", value_parser = runtime::config::duration::parse)]
    pub(crate) since: Option<Duration>,
    /// From this one on: where a list before ended
    #[arg(long, value_name = "TOPIC/PARTITION/OFFSET", value_parser = place)]
    pub(crate) from: Option<Place>,
    /// No more than so many of each topic
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) limit: u64,
    /// Answer in JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which dead letter.
#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) settings: SettingsFile,
    /// Where it stands
    #[arg(value_name = "TOPIC/PARTITION/OFFSET", value_parser = place)]
    pub(crate) place: Place,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which dead letter is written anew, and why.
#[derive(Debug, Args)]
pub(crate) struct Again {
    #[command(flatten)]
    pub(crate) which: Show,
    /// Why: kept beside the new record
    #[arg(long, value_name = "TEXT", value_parser = said)]
    pub(crate) reason: String,
    /// Who: kept beside the new record
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown", value_parser = said)]
    pub(crate) by: String,
    /// Only show what would be written
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long to wait for the fold to say what became of it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = runtime::config::duration::parse)]
    pub(crate) wait: Duration,
}

/// What is corrected.
#[derive(Debug, Args)]
pub(crate) struct Fix {
    #[command(flatten)]
    pub(crate) again: Again,
    /// A field and its value; given again, another one
    #[arg(long = "set", value_name = "FIELD=VALUE", value_parser = field, required_unless_present = "record")]
    pub(crate) set: Vec<(String, String)>,
    /// A file with the whole event as JSON, to begin with instead of what the bytes say
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

fn place(text: &str) -> Result<Place, NoPlace> {
    text.parse()
}

fn topic(text: &str) -> Result<&'static str, String> {
    topic_named(text).ok_or_else(|| "use tokens or requests".to_owned())
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write FIELD=VALUE")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

fn said(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.len() <= 1_000;
    if fits { Ok(text.to_owned()) } else { Err("say it in 1 to 1000 bytes".to_owned()) }
}

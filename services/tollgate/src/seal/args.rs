//! The command line of `tollgate seal`.

use clap::Args;

use crate::cli::{ArchiveToRead, Role};

pub(crate) const EXAMPLES: &str = "\
Examples:
  tollgate seal --config tollgate.toml --dry-run                  what would be sealed, and what it takes now
  tollgate seal --archive /srv/tollgate-archive                   each month, after tollgate archive
  tollgate seal --archive /srv/tollgate-archive --older-than 400  keep the rows of thirteen months
  tollgate seal --json | jq '.months[] | {topic, partition, month, outcome, bytes, bytes_before}'

Replaces the rows of each month of the log that is over by rows that stand for many. Usage, costs, bills, late usage, tokens per replica
and balances stay the same to the last digit; single requests and their counts are no rows any more. Dead letters stay, and so does the
proof that every offset was folded once. Each month is replayed from the log before, and compared row by row: one that is not as the log
says is not sealed. Raw rows can be had again by tollgate rebuild, as long as Kafka or the archive has the log. The fold, billing and traffic
may go on; killed at any moment, a month is sealed or as it was, and the next run goes on. Ends with 0 when all that is old enough is
sealed, with 1 when a month differs from the log, with 2 when it stopped before its end.";

/// `tollgate seal`.
#[derive(Debug, Args)]
pub(crate) struct Seal {
    #[command(flatten)]
    pub(crate) role: Role,
    /// Days that a month must have been over, in the time zone UTC
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) older_than: u32,
    /// Change nothing: say what would be sealed
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) archive: ArchiveToRead,
    /// Seal without the log: nobody can ever say again whether the rows were right
    #[arg(long = "trust-rows-that-no-log-can-prove", conflicts_with = "dir")]
    pub(crate) without_log: bool,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

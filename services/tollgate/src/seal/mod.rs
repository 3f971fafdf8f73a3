//! `tollgate seal`: replaces the raw rows of months that are over by rows that stand for many.

pub(crate) mod args;

use std::error::Error;
use std::process::ExitCode;

use fold::audit::{Difference, TOLD};
use fold::seal::{Outcome, Rules, Sealed};
use serde_json::{Value, json};

use crate::audit::text;
use crate::over_log::{ended, read, settings};
use crate::roles::say;

/// Runs it; the exit code says what came of it.
pub(crate) async fn run(options: args::Seal) -> Result<ExitCode, Box<dyn Error>> {
    Ok(ended(&seal(options).await))
}

async fn seal(options: args::Seal) -> Result<bool, Box<dyn Error>> {
    let Some(settings) = settings("seal", &options.role)? else { return Ok(true) };
    let (kafka, clickhouse) = (settings.kafka, settings.clickhouse);
    let partitions: Vec<i32> = (0..kafka.partitions).collect();
    let args::Seal { older_than: older_than_days, dry_run, without_log, .. } = options;
    let rules = Rules { older_than_days, dry_run, without_log };
    let months = read(&kafka, &options.archive, &clickhouse, async |log, told| {
        fold::seal::run(log, &clickhouse, &partitions, rules, |progress| told.tell(progress)).await
    });
    let stays = "what was sealed before stays, and the next run goes on";
    let months = months.await.map_err(|error| format!("{error}; {stays}"))?;
    let refused = months.iter().any(|month| matches!(month.outcome, Outcome::Refused(_)));
    if options.json {
        let months: Vec<Value> = months.iter().map(month_json).collect();
        say(&format!("{:#}", json!({"as_the_log_says": !refused, "months": months})));
        return Ok(!refused);
    }
    months.iter().for_each(month_text);
    if months.is_empty() {
        say("Nothing is folded yet.");
    }
    Ok(!refused)
}

/// `2026-11`.
fn named(month: u32) -> String {
    format!("{:04}-{:02}", month / 100, month % 100)
}

fn month_text(of: &Sealed) {
    let Sealed { topic, partition, month, size, outcome } = of;
    let place = format!("{topic}/{partition}, {}", named(month.month));
    let offsets = format!("offsets {} to {} in {} chunks", month.first, month.end - 1, month.chunks);
    match outcome {
        Outcome::Already => say(&format!("OK   {place}: was sealed before ({} rows)", size.rows)),
        Outcome::Sealed(now) => say(&format!(
            "OK   {place}: sealed: {} rows of {} bytes are {} of {} ({offsets})",
            size.rows, size.bytes, now.rows, now.bytes
        )),
        Outcome::Would => {
            say(&format!("OK   {place}: would be sealed: {} rows of {} bytes ({offsets})", size.rows, size.bytes));
        }
        Outcome::Young => say(&format!("--   {place}: not over for long enough ({} rows)", size.rows)),
        Outcome::Refused(differences) => {
            say(&format!("FAIL {place}: not sealed, since it is not as the log says:"));
            told(differences).for_each(|difference| say(&format!("       {difference}")));
        }
    }
}

fn told(differences: &[Difference]) -> impl Iterator<Item = String> {
    differences.iter().take(TOLD).map(text)
}

fn month_json(of: &Sealed) -> Value {
    let Sealed { topic, partition, month, size, outcome } = of;
    let (word, now, differences) = match outcome {
        Outcome::Already => ("already_sealed", Some(size), Vec::new()),
        Outcome::Sealed(now) => ("sealed", Some(now), Vec::new()),
        Outcome::Would => ("would_be_sealed", None, Vec::new()),
        Outcome::Young => ("too_young", None, Vec::new()),
        Outcome::Refused(differences) => ("refused", None, told(differences).collect()),
    };
    json!({
        "topic": topic, "partition": partition, "month": named(month.month), "outcome": word,
        "first": month.first, "end": month.end, "chunks": month.chunks,
        "rows_before": size.rows, "bytes_before": size.bytes,
        "rows": now.map(|now| now.rows), "bytes": now.map(|now| now.bytes), "differences": differences,
    })
}

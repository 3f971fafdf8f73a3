//! `tollgate rebuild`: folds the log anew into a database beside the old one.

use std::error::Error;
use std::process::ExitCode;

use fold::rebuild::{BLOCK_OFFSETS, Rebuilt};
use serde_json::{Value, json};

use crate::cli;
use crate::over_log::{ended, read, settings};
use crate::roles::say;

/// Runs it; the exit code says what came of it.
pub(crate) async fn run(options: cli::Rebuild) -> Result<ExitCode, Box<dyn Error>> {
    Ok(ended(&rebuild(options).await))
}

async fn rebuild(options: cli::Rebuild) -> Result<bool, Box<dyn Error>> {
    let Some(settings) = settings("rebuild", &options.role)? else { return Ok(true) };
    let (kafka, old) = (settings.kafka, settings.clickhouse);
    let mut new = old.clone();
    new.database = options.into.unwrap_or_else(|| format!("{}_rebuild", old.database));
    let wrong = new.validate();
    if !wrong.is_empty() {
        return Err(format!("--into: {}", wrong.join("; ")).into());
    }
    if new.database == old.database {
        return Err("--into must be another database than the one that is read".into());
    }
    let partitions: Vec<i32> = (0..kafka.partitions).collect();
    let lines = read(&kafka, &options.archive, &new, async |log, told| {
        fold::rebuild::run(log, &old, &new, &partitions, BLOCK_OFFSETS, |progress| told.tell(progress)).await
    });
    let lines = lines.await.map_err(|error| format!("{error}; run it again, and it goes on from what is there"))?;
    let same = lines.iter().all(|line| line.differences.is_empty());
    if options.json {
        let lines: Vec<Value> = lines.iter().map(line_json).collect();
        say(&format!("{:#}", json!({"database": new.database, "identical": same, "lines": lines})));
    } else {
        lines.iter().for_each(line_text);
        say(&format!("\nThe database {} is folded from the log. To use it, set clickhouse.database.", new.database));
    }
    Ok(same)
}

fn line_text(line: &Rebuilt) {
    let Rebuilt { topic, partition, from, offsets, compared, summed, differences } = line;
    let word = if differences.is_empty() { "OK  " } else { "FAIL" };
    say(&format!(
        "{word} {topic}/{partition}: folded from offset {from} to {offsets}, compared at {compared} chunk ends"
    ));
    if !summed {
        say(
            "       sums were not compared, since the old database is at another offset: if its fold goes on, run it again",
        );
    }
    differences.iter().for_each(|difference| say(&format!("       {difference}")));
}

fn line_json(line: &Rebuilt) -> Value {
    json!({
        "topic": line.topic, "partition": line.partition, "from": line.from, "offsets": line.offsets,
        "compared": line.compared, "sums_compared": line.summed, "differences": line.differences,
    })
}

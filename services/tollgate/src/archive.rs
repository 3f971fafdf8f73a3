//! `tollgate archive`: keeps the log in Parquet files, and says whether they are whole.

use std::error::Error;
use std::process::ExitCode;

use fold::archive::{Archive, Archived, Checked, FileSize};
use serde_json::{Value, json};

use crate::cli;
use crate::over_log::{Told, close, ended, settings};
use crate::roles::say;

/// Runs it; the exit code says what came of it.
pub(crate) async fn run(options: cli::Archive) -> Result<ExitCode, Box<dyn Error>> {
    Ok(ended(&archive(options).await))
}

async fn archive(options: cli::Archive) -> Result<bool, Box<dyn Error>> {
    let Some(settings) = settings("archive", &options.role)? else { return Ok(true) };
    let partitions: Vec<i32> = (0..settings.kafka.partitions).collect();
    let archive = Archive::new(&options.dir, &settings.clickhouse);
    let mut told = Told::default();
    if options.check {
        let lines = archive.check(&partitions, |progress| told.tell(progress)).await;
        told.end();
        close(archive).await;
        return Ok(say_checked(&lines?, options.json));
    }
    let lines = archive.write(&settings.kafka, &partitions, FileSize::default(), |progress| told.tell(progress)).await;
    told.end();
    close(archive).await;
    say_archived(&lines?, options.json)
}

fn say_archived(lines: &[Archived], as_json: bool) -> Result<bool, Box<dyn Error>> {
    if as_json {
        let whole = lines.iter().all(|line| line.failed.is_none());
        let lines: Vec<Value> = lines.iter().map(archived_json).collect();
        say(&format!("{:#}", json!({"archived": whole, "lines": lines})));
    }
    for Archived { topic, partition, files, records, end, failed } in lines.iter().filter(|_| !as_json) {
        match failed {
            None => say(&format!(
                "OK   {topic}/{partition}: {records} records in {files} new files; all before offset {end} is archived"
            )),
            Some(why) => say(&format!("FAIL {topic}/{partition}: {records} records in {files} new files, then: {why}")),
        }
    }
    match lines.iter().filter(|line| line.failed.is_some()).count() {
        0 => Ok(true),
        failed => Err(format!("{failed} of {} lines of the log were not archived to their end", lines.len()).into()),
    }
}

fn archived_json(line: &Archived) -> Value {
    let Archived { topic, partition, files, records, end, failed } = line;
    let (end, failed) = match failed {
        None => (Some(end), None),
        Some(why) => (None, Some(why.to_string())),
    };
    json!({
        "topic": topic, "partition": partition, "new_files": files, "new_records": records, "end": end, "failed": failed,
    })
}

fn say_checked(lines: &[Checked], as_json: bool) -> bool {
    let whole = lines.iter().all(|line| line.faults.is_empty());
    if as_json {
        let lines = lines.iter().map(|Checked { topic, partition, files, end, faults }| {
            json!({"topic": topic, "partition": partition, "files": files, "end": end, "faults": faults})
        });
        say(&format!("{:#}", json!({"whole": whole, "lines": lines.collect::<Vec<_>>()})));
        return whole;
    }
    for Checked { topic, partition, files, end, faults } in lines {
        let word = if faults.is_empty() { "OK  " } else { "FAIL" };
        say(&format!("{word} {topic}/{partition}: {files} files up to offset {end}"));
        faults.iter().for_each(|fault| say(&format!("       {fault}")));
    }
    whole
}

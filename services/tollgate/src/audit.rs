//! `tollgate audit`: replays the log, and says whether ClickHouse holds what it says.

use std::error::Error;
use std::process::ExitCode;

use fold::audit::{Audited, Difference, Sums, TOLD};
use ledger::control::{Document, Kind};
use ledger::ids::TenantId;
use ledger::time::Period;
use ledger::tokens::TokenCounts;
use serde_json::{Value, json};
use sql::RowFault;
use stream::kafka::KafkaSettings;
use stream::partition::partition_of;

use crate::cli;
use crate::doctor::control;
use crate::over_log::{ended, read, settings};
use crate::roles::say;

/// Runs it; the exit code says what came of it.
pub(crate) async fn run(options: cli::Audit) -> Result<ExitCode, Box<dyn Error>> {
    Ok(ended(&audit(options).await))
}

async fn audit(options: cli::Audit) -> Result<bool, Box<dyn Error>> {
    let Some(settings) = settings("audit", &options.role)? else { return Ok(true) };
    let all = 0..settings.kafka.partitions;
    let asked = match &options.tenant {
        Some(tenant) => Some(asked(&settings.kafka, tenant, options.period.as_deref()).await?),
        None => None,
    };
    let partitions: Vec<i32> = match &asked {
        Some((tenant, _)) => vec![partition_of(tenant.as_str().as_bytes(), settings.kafka.partitions)],
        None if options.partition.is_empty() => all.clone().collect(),
        None => options.partition,
    };
    if let Some(none) = partitions.iter().find(|partition| !all.contains(partition)) {
        return Err(format!("there is no partition {none}: they are 0 to {}", all.end - 1).into());
    }
    let lines = read(&settings.kafka, &options.archive, &settings.clickhouse, async |log, told| {
        fold::audit::run(log, &settings.clickhouse, &partitions, |progress| told.tell(progress)).await
    });
    let lines = lines.await?;
    let whole = lines.iter().all(|line| line.differences.is_empty());
    let used = asked.map(|(tenant, period)| Used::of(&lines, tenant, period));
    if options.json {
        let lines: Vec<Value> = lines.iter().map(line_json).collect();
        say(&format!("{:#}", json!({"identical": whole, "lines": lines, "usage": used.map(|used| used.json())})));
    } else {
        lines.iter().for_each(line_text);
        used.iter().for_each(Used::say);
    }
    Ok(whole)
}

/// The tenant, and the period that is meant.
async fn asked(
    kafka: &KafkaSettings,
    tenant: &str,
    period: Option<&str>,
) -> Result<(TenantId, Option<Period>), Box<dyn Error>> {
    let id: TenantId = tenant.parse()?;
    let Some(period) = period else { return Ok((id, None)) };
    let state = control::read(kafka).await?;
    let Some(Document::Tenant(known)) = state.get(Kind::Tenant, tenant) else {
        return Err(
            format!("control knows no tenant {tenant}, so it is not known in which time zone its months are").into()
        );
    };
    Ok((id, Some(Period::month(period, known.time_zone)?)))
}

fn line_text(line: &Audited) {
    let Audited { topic, partition, offsets, chunks, counts, chain, differences, .. } = line;
    if differences.is_empty() {
        say(&format!(
            "OK   {topic}/{partition}: {offsets} offsets in {chunks} chunks are as the log says ({} folded, {} duplicates, {} dead, {} marks; chain {})",
            counts.folded,
            counts.duplicates,
            counts.dead,
            counts.marks,
            hex(chain)
        ));
        return;
    }
    say(&format!("FAIL {topic}/{partition}: up to offset {offsets}, this differs from the log:"));
    differences.iter().take(TOLD).for_each(|difference| say(&format!("       {}", text(difference))));
    if differences.len() > TOLD {
        say("       and more");
    }
    say("     To have it as the log says: run tollgate rebuild, which writes a database anew beside it.");
}

/// A difference in words.
pub(crate) fn text(difference: &Difference) -> String {
    match difference {
        Difference::Row(row) => {
            let kind = format!("{:?}", row.kind).to_lowercase();
            let request = row.request.map(|id| format!(", request {}", id.0)).unwrap_or_default();
            let fault = match &row.fault {
                RowFault::Missing => "is missing".to_owned(),
                RowFault::Added => "is there and should not be, or is there twice".to_owned(),
                RowFault::Changed(field) => {
                    format!("has {} = {}, the log says {}", field.name, field.found, field.wanted)
                }
            };
            format!("the {kind} row of offset {}{request} {fault}", row.offset)
        }
        Difference::Table(why) => why.clone(),
        Difference::Log { offset, why } => format!("the log at offset {offset}: {why}"),
        Difference::Sum { tenant, model, slot, wanted, found } => format!(
            "the aggregates of {tenant}, {model}, slot {} hold {}, the log says {}",
            slot.0,
            sum(*found),
            sum(*wanted)
        ),
    }
}

fn sum((tokens, requests): (TokenCounts, u64)) -> String {
    let TokenCounts { input, cached_input, output, reasoning } = tokens;
    format!("input {input}, cached input {cached_input}, output {output}, reasoning {reasoning}, requests {requests}")
}

fn line_json(line: &Audited) -> Value {
    let differences: Vec<String> = line.differences.iter().take(TOLD).map(text).collect();
    json!({
        "topic": line.topic, "partition": line.partition, "offsets": line.offsets, "chunks": line.chunks,
        "folded": line.counts.folded, "duplicates": line.counts.duplicates, "dead": line.counts.dead,
        "marks": line.counts.marks, "chain": hex(&line.chain), "differences": differences,
        "more": line.differences.len() > TOLD,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a tenant used, by the log.
struct Used {
    tenant: TenantId,
    period: Option<Period>,
    models: std::collections::BTreeMap<String, (TokenCounts, u64)>,
}

impl Used {
    fn of(lines: &[Audited], tenant: TenantId, period: Option<Period>) -> Self {
        let sums: Sums = lines.iter().flat_map(|line| line.sums.clone()).collect();
        let mut models = std::collections::BTreeMap::<String, (TokenCounts, u64)>::new();
        let inside = |slot| period.is_none_or(|period| period.from <= slot && slot < period.to);
        for ((_, model, _), (tokens, requests)) in
            sums.into_iter().filter(|((whose, _, slot), _)| *whose == tenant && inside(*slot))
        {
            let (all, count) = models.entry(model.to_string()).or_default();
            // The replay has added the same counts up before.
            *all = all.checked_add(tokens).unwrap_or(*all);
            *count = count.saturating_add(requests);
        }
        Self { tenant, period, models }
    }

    fn say(&self) {
        let when = self.period.map(|period| format!(" from {} to {}", utc(period.from), utc(period.to)));
        say(&format!("\n{}{}, by the log:", self.tenant, when.unwrap_or_default()));
        self.models.iter().for_each(|(model, used)| say(&format!("  {model}: {}", sum(*used))));
        if self.models.is_empty() {
            say("  nothing");
        }
    }

    fn json(&self) -> Value {
        let models = self.models.iter().map(|(model, (tokens, requests))| {
            json!({
                "model": model, "input": tokens.input, "cached_input": tokens.cached_input,
                "output": tokens.output, "reasoning": tokens.reasoning, "requests": requests,
            })
        });
        let bound = |at: fn(&Period) -> ledger::time::Slot| self.period.map(|period| utc(at(&period)));
        json!({
            "tenant": self.tenant.as_str(), "from": bound(|p| p.from), "to": bound(|p| p.to),
            "models": models.collect::<Vec<_>>(),
        })
    }
}

fn utc(slot: ledger::time::Slot) -> String {
    slot.start().to_utc().map_or_else(|_| slot.0.to_string(), |time| time.format("%Y-%m-%dT%H:%MZ").to_string())
}

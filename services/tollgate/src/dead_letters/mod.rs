//! `tollgate dead-letters`: what could not count, listed, shown, corrected and written anew.

pub(crate) mod args;
mod text;

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use billing::dead_letters::{DeadLetterWhole, ReplayShown, letter, letters, table};
use ledger::control::Kind;
use runtime::{Clock as _, Shutdown, SystemClock};
use serde_json::{Value, json};
use sql::{ClickHouse, DeadLetterQuery, Table};
use stream::replay::{self, Note, Place, Replay};
use stream::topics;

use crate::cli::SettingsFile;
use crate::doctor::control;
use crate::settings::{For, Section, Settings, Uses};
use args::{Again, DeadLettersCommand, Fix, List, Show};

type Done<T> = Result<T, Box<dyn Error>>;

/// How often it is looked what became of a replay.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

struct OfDeadLetters;

impl Uses for OfDeadLetters {
    const SECTIONS: &'static [Section] = &[Section::Kafka, Section::ClickHouse];
}

pub(crate) async fn run(command: DeadLettersCommand) -> Done<ExitCode> {
    match command {
        DeadLettersCommand::List(asked) => list(&asked).await,
        DeadLettersCommand::Show(asked) => show(&asked).await,
        DeadLettersCommand::Replay(asked) => {
            let letter = found(&asked.which).await?;
            let record = letter.record.clone().ok_or(
                "its bytes are no event of this topic, so it would be dead again: give the whole event to dead-letters fix --record",
            )?;
            again(&asked, &letter, record).await
        }
        DeadLettersCommand::Fix(asked) => fix(&asked).await,
    }
}

fn settings(file: &SettingsFile) -> Done<Settings> {
    Ok(runtime::config::load::<For<OfDeadLetters>>(file.config.as_deref())?.all)
}

/// A line on standard output. That nobody reads on is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

async fn list(asked: &List) -> Done<ExitCode> {
    let clickhouse = ClickHouse::new(&settings(&asked.settings)?.clickhouse);
    let since = asked.since.map(|since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let since_ms = since.map_or(i64::MIN, |since| (SystemClock.now() / 1_000).saturating_sub(since));
    let topic = asked.topic.or(asked.from.map(|from| from.topic));
    let mut shown = 0;
    for table in Table::ALL.into_iter().filter(|table| topic.is_none_or(|topic| topic == table.topic())) {
        let from = asked.from.filter(|from| from.topic == table.topic());
        let query = DeadLetterQuery {
            partition: asked.partition,
            from: from.map_or((0, 0), |from| (from.partition, from.offset)),
            reason: asked.reason.clone(),
            since_ms,
            // One more than is shown says whether there is more.
            limit: asked.limit + 1,
            ..DeadLetterQuery::of(table)
        };
        let mut letters = letters(&clickhouse, &query).await?;
        let more = if letters.len() as u64 > asked.limit { letters.pop() } else { None };
        for letter in &letters {
            say(&if asked.json { serde_json::to_string(letter)? } else { text::line(&letter.letter) });
        }
        shown += letters.len();
        if let Some(next) = more {
            eprintln!("there are more of {table}: go on with --from {}", next.letter.place);
        }
    }
    if shown == 0 && !asked.json {
        say("no dead letters");
    }
    Ok(ExitCode::SUCCESS)
}

/// The one that was asked for.
async fn found(asked: &Show) -> Done<DeadLetterWhole> {
    let settings = settings(&asked.settings)?;
    let found = letter(&ClickHouse::new(&settings.clickhouse), &settings.kafka, asked.place).await?;
    found.ok_or_else(|| {
        format!("there is no dead letter at {}: see tollgate dead-letters list; one that was read just now is there when its chunk is written", asked.place).into()
    })
}

async fn show(asked: &Show) -> Done<ExitCode> {
    let letter = found(asked).await?;
    say(if asked.json { serde_json::to_string_pretty(&letter)? } else { text::whole(&letter) }.trim_end());
    Ok(ExitCode::SUCCESS)
}

async fn fix(asked: &Fix) -> Done<ExitCode> {
    let letter = found(&asked.again.which).await?;
    let mut record = match &asked.record {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => letter.record.clone().ok_or(
            "its bytes are no event of this topic, so there is nothing to set: give the whole event with --record",
        )?,
    };
    for (name, value) in &asked.set {
        replay::set(&mut record, name, value)?;
    }
    again(&asked.again, &letter, record).await
}

/// Writes a record anew, unless its letter was replayed already, and waits for what becomes of it.
async fn again(asked: &Again, found: &DeadLetterWhole, record: Value) -> Done<ExitCode> {
    let (letter, settings) = (&found.letter, settings(&asked.which.settings)?);
    if letter.replay != ReplayShown::None {
        return Err(format!("{} is {}: correct what counts by an adjustment", letter.place, letter.replay).into());
    }
    topics::verify(&settings.kafka).await?;
    let replay = Replay::of(letter.place, &record, settings.kafka.partitions)?;
    is_known(&settings, &replay).await?;
    if asked.dry_run {
        say(&told(asked, &replay, "nothing was written", None));
        return Ok(ExitCode::SUCCESS);
    }
    let note = Note { by: asked.by.clone(), reason: asked.reason.clone() };
    let offset = replay::send(&settings.kafka, &replay, &note).await?;
    let written = Place { partition: replay.partition, offset, ..letter.place };
    let clickhouse = ClickHouse::new(&settings.clickhouse);
    let outcome = outcome(&clickhouse, asked, &replay).await?;
    let said = match &outcome {
        ReplayShown::None => format!("written at {written}; the fold has not read it yet: see dead-letters show"),
        ReplayShown::Folded { at } => format!("it counts at {at}"),
        ReplayShown::Dead { at } => format!("it is dead again at {at}: see dead-letters show"),
    };
    say(&told(asked, &replay, &said, Some(&outcome)));
    Ok(if matches!(outcome, ReplayShown::Dead { .. }) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A tenant that nobody knows would have usage that nobody is billed.
async fn is_known(settings: &Settings, replay: &Replay) -> Done<()> {
    let state = control::read(&settings.kafka).await.map_err(|error| format!("control cannot be read: {error}"))?;
    let field = |name: &str| replay.record[name].as_str().unwrap_or_default().to_owned();
    for (kind, name) in [(Kind::Tenant, "tenant_id"), (Kind::Model, "model")] {
        let id = field(name);
        if state.revision(kind, &id) == 0 {
            return Err(
                format!("control knows no {kind} {id:?}: correct it with dead-letters fix --set {name}=…").into()
            );
        }
    }
    Ok(())
}

async fn outcome(clickhouse: &ClickHouse, asked: &Again, replay: &Replay) -> Done<ReplayShown> {
    let (began, shutdown) = (Instant::now(), Shutdown::new());
    loop {
        let found = clickhouse.replays(table(replay.of.topic), &[replay.source]).await?;
        let outcome = ReplayShown::of(&replay.of, found.first());
        if outcome != ReplayShown::None || began.elapsed() >= asked.wait || !shutdown.sleep(LOOK).await {
            return Ok(outcome);
        }
    }
}

fn told(asked: &Again, replay: &Replay, said: &str, outcome: Option<&ReplayShown>) -> String {
    if asked.which.json {
        let (of, partition) = (replay.of.to_string(), replay.partition);
        let whole = json!({"of": of, "partition": partition, "record": replay.record, "replay": outcome, "said": said});
        return whole.to_string();
    }
    let record = serde_json::to_string_pretty(&replay.record).unwrap_or_default();
    if asked.dry_run { format!("{record}\n{said}") } else { format!("{}: {said}", replay.of) }
}

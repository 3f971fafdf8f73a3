//! One dead letter as it is shown: to people as text, to programs as JSON.

use std::fmt::Write as _;

use ledger::time::Micros;
use schemas::codec;
use schemas::registry::SCHEMAS;
use serde::Serialize;
use serde_json::Value;
use sql::{DeadLetter, Replayed};
use stream::replay::{self, Place};

/// A dead letter.
#[derive(Debug, Serialize)]
pub(crate) struct Letter {
    #[serde(serialize_with = "text")]
    pub(crate) place: Place,
    /// When Kafka took it.
    taken_at: String,
    reason: String,
    detail: String,
    key: Option<String>,
    /// The schema that its value names.
    schema: Option<String>,
    /// What it says; absent if its bytes are no event.
    pub(crate) record: Option<Value>,
    /// Its value in hex.
    value: Option<String>,
    bytes: Option<usize>,
    pub(crate) replay: Outcome,
}

/// What became of its replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// None is folded. One may be on its way.
    None,
    /// It counts.
    Folded { at: String },
    /// It is a dead letter itself.
    Dead { at: String },
}

impl Outcome {
    pub(crate) fn of(place: &Place, replayed: Option<&Replayed>) -> Self {
        let Some(replayed) = replayed else { return Self::None };
        let at = Place { partition: replayed.partition, offset: replayed.offset, ..*place }.to_string();
        if replayed.folded { Self::Folded { at } } else { Self::Dead { at } }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("not replayed"),
            Self::Folded { at } => write!(f, "replayed, counts at {at}"),
            Self::Dead { at } => write!(f, "replayed, dead again at {at}"),
        }
    }
}

fn text<S: serde::Serializer>(place: &Place, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(place)
}

impl Letter {
    pub(crate) fn of(topic: &'static str, dead: DeadLetter, replays: &[Replayed]) -> Self {
        let place = Place { topic, partition: dead.partition, offset: dead.row.offset };
        let row = dead.row;
        let source = place.source();
        let value = row.value.as_deref();
        Self {
            place,
            taken_at: Micros(row.log_time_ms.saturating_mul(1_000)).to_string(),
            reason: row.reason,
            detail: row.detail,
            key: row.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()),
            schema: value.and_then(schema),
            record: value.and_then(|value| replay::read(topic, value).ok()),
            value: value.map(hex),
            bytes: value.map(<[u8]>::len),
            replay: Outcome::of(&place, replays.iter().find(|replayed| replayed.source == source)),
        }
    }

    /// One line of a list.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:<34} {:<24} {:<14} {}; {}",
            self.place.to_string(),
            self.taken_at,
            self.reason,
            self.detail,
            self.replay
        )
    }

    /// All of it.
    pub(crate) fn whole(&self) -> String {
        let mut said = format!("{}\n", self.place);
        let mut row = |name: &str, value: &str| _ = writeln!(said, "  {name:<10} {value}");
        row("reason", &self.reason);
        row("detail", &self.detail);
        row("taken at", &self.taken_at);
        row("key", self.key.as_deref().unwrap_or("none"));
        row("replay", &self.replay.to_string());
        row("schema", self.schema.as_deref().unwrap_or("none that is known"));
        if let Some(record) = &self.record {
            row("record", &serde_json::to_string_pretty(record).unwrap_or_default().replace('\n', "\n             "));
        }
        match (&self.value, self.bytes) {
            (Some(value), Some(bytes)) => row("value", &format!("{bytes} bytes: {value}")),
            _ => row("value", "none: a mark"),
        }
        said
    }
}

fn schema(value: &[u8]) -> Option<String> {
    let id = codec::schema_id(value).ok()?;
    let known = SCHEMAS.iter().find(|known| known.id == id)?;
    Some(format!("{} version {} (id {id})", known.name, known.version))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

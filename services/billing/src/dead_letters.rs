//! Dead letters as they are shown: the API, the console and `tollgate dead-letters` say the same of them.

use std::fmt::{self, Write as _};

use ledger::ids::SourceId;
use ledger::time::Micros;
use schemas::codec;
use schemas::registry::SCHEMAS;
use serde::Serialize;
use serde_json::Value;
use sql::{ClickHouse, DeadLetter, DeadLetterQuery, QueryError, Replayed, Table};
use stream::kafka::KafkaSettings;
use stream::replay::{self, Place};
use utoipa::ToSchema;

/// Why a record cannot count: the codes that rows, metrics and figures have.
pub const REASONS: [&str; 5] = ["undecodable", "unknown_mark", "out_of_bounds", "key_mismatch", "seq_conflict"];

/// A record that could not count, without its bytes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeadLetterShown {
    /// Where it stands in the log: `topic/partition/offset`.
    #[serde(serialize_with = "text")]
    #[schema(value_type = String, example = "tollgate.tokens.v1/3/1742")]
    pub place: Place,
    /// The topic.
    pub topic: &'static str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// When Kafka took it.
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    pub taken_at: String,
    /// Why it cannot count: `undecodable`, `unknown_mark`, `out_of_bounds`, `key_mismatch` or `seq_conflict`.
    pub reason: String,
    /// The same in words.
    pub detail: String,
    /// How long its value is; absent for a mark, which has none.
    pub bytes: Option<u64>,
    /// What became of its replay.
    pub replay: ReplayShown,
}

/// What became of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReplayShown {
    /// None is folded. One may be on its way.
    None,
    /// It counts.
    Folded {
        /// Where it stands.
        at: String,
    },
    /// It is a dead letter itself.
    Dead {
        /// Where it stands.
        at: String,
    },
}

/// A dead letter with all that is known of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeadLetterWhole {
    /// Where it stands, and why.
    #[serde(flatten)]
    pub letter: DeadLetterShown,
    /// Its key, as text.
    pub key: Option<String>,
    /// The schema that its value names.
    pub schema: Option<String>,
    /// What it says; absent if its bytes are no event.
    pub record: Option<Value>,
    /// Its value in hex.
    pub value: Option<String>,
    /// Who wrote it anew; absent if nobody did, or if the log does not hold it any more, or does not answer.
    pub replayed_by: Option<String>,
    /// Why it was written anew.
    pub replay_reason: Option<String>,
}

impl ReplayShown {
    /// What became of the replay of a letter that stands there.
    pub fn of(place: &Place, replayed: Option<&Replayed>) -> Self {
        let Some(replayed) = replayed else { return Self::None };
        let at = Place { partition: replayed.partition, offset: replayed.offset, ..*place }.to_string();
        if replayed.folded { Self::Folded { at } } else { Self::Dead { at } }
    }

    /// Where it stands.
    pub fn at(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Folded { at } | Self::Dead { at } => Some(at),
        }
    }
}

impl fmt::Display for ReplayShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// The table that holds a topic.
pub fn table(topic: &str) -> Table {
    if topic == Table::Requests.topic() { Table::Requests } else { Table::Tokens }
}

/// Dead letters in the order of the log, with what became of their replays.
///
/// # Errors
/// ClickHouse does not answer.
pub async fn letters(clickhouse: &ClickHouse, asked: &DeadLetterQuery) -> Result<Vec<DeadLetterWhole>, QueryError> {
    let topic = asked.table.topic();
    let dead = clickhouse.dead_letters(asked).await?;
    let places = dead.iter().map(|dead| Place { topic, partition: dead.partition, offset: dead.row.offset });
    let sources: Vec<SourceId> = places.map(|place| place.source()).collect();
    let replays = clickhouse.replays(asked.table, &sources).await?;
    Ok(dead.into_iter().map(|dead| whole(topic, dead, &replays)).collect())
}

/// The dead letter that stands there, with who wrote it anew and why, if anybody did.
///
/// # Errors
/// ClickHouse does not answer. Kafka need not.
pub async fn letter(
    clickhouse: &ClickHouse,
    kafka: &KafkaSettings,
    place: Place,
) -> Result<Option<DeadLetterWhole>, QueryError> {
    let (partition, from) = (Some(place.partition), (place.partition, place.offset));
    let query = DeadLetterQuery { partition, from, limit: 1, ..DeadLetterQuery::of(table(place.topic)) };
    let found = letters(clickhouse, &query).await?.into_iter().find(|whole| whole.letter.place == place);
    let Some(mut found) = found else { return Ok(None) };
    if let Some(at) = found.letter.replay.at().and_then(|at| at.parse().ok()) {
        match replay::note(kafka, &at).await {
            Ok(note) => (found.replayed_by, found.replay_reason) = note.map(|note| (note.by, note.reason)).unzip(),
            Err(error) => tracing::warn!(%at, %error, "who replayed a dead letter cannot be read"),
        }
    }
    Ok(Some(found))
}

fn whole(topic: &'static str, dead: DeadLetter, replays: &[Replayed]) -> DeadLetterWhole {
    let DeadLetter { partition, bytes, row } = dead;
    let place = Place { topic, partition, offset: row.offset };
    let source = place.source();
    let value = row.value.as_deref();
    DeadLetterWhole {
        key: row.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()),
        schema: value.and_then(schema),
        record: value.and_then(|value| replay::read(topic, value).ok()),
        value: value.map(hex),
        replayed_by: None,
        replay_reason: None,
        letter: DeadLetterShown {
            place,
            topic,
            partition,
            offset: row.offset,
            taken_at: Micros(row.log_time_ms.saturating_mul(1_000)).to_string(),
            detail: beyond(&row.reason, row.detail),
            reason: row.reason,
            bytes,
            replay: ReplayShown::of(&place, replays.iter().find(|replayed| replayed.source == source)),
        },
    }
}

/// What a detail says beyond its reason, with which the fold lets some begin.
fn beyond(reason: &str, detail: String) -> String {
    let said = detail.strip_prefix(&reason.replace('_', " ")).and_then(|rest| rest.strip_prefix(": "));
    said.map(str::to_owned).unwrap_or(detail)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once() {
        for (reason, detail, said) in [
            ("undecodable", "undecodable: no schema", "no schema"),
            ("unknown_mark", "unknown mark: no header", "no header"),
            ("seq_conflict", "source x has number 7", "source x has number 7"),
            ("undecodable", "undecodable", "undecodable"),
        ] {
            assert_eq!(beyond(reason, detail.to_owned()), said);
        }
    }
}

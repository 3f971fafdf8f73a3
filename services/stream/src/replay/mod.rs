//! A dead letter written anew, as it is or corrected: the one record of a source of its own.
//!
//! The dead letter keeps its offset and its outcome. The replay is a new record at a new offset, and its source is derived
//! from the place of the letter: sent again, or by two people at once, it is a duplicate by the rule that all resends are
//! known by. Its event's id is derived from what it says, so that a second replay that says something else is a dead letter
//! `seq_conflict`, not silence. After the record comes the mark that the source has ended: no period waits for it.

mod note;
mod send;

use std::fmt;
use std::str::FromStr;

use ledger::ids::{EventId, SourceId, SpoolId};
use schemas::codec::{self, CodecError};
use schemas::event::{CountOutOfBounds, Event, RequestFinished, TokensCounted};
use schemas::mark::Mark;
use schemas::topic;
use serde_json::{Map, Value};
use thiserror::Error;
use uuid::Uuid;

pub use note::{NoteError, note};
pub use send::{Note, SendError, send};

use crate::partition::partition_of;

/// The spool that all replays name. No directory stands behind it, and it is in no registry.
pub const SPOOL: SpoolId = SpoolId(Uuid::from_u128(0x746f_6c6c_6761_7465_8000_7265_706c_6179));
/// What a replay cannot be told: it is derived.
const DERIVED: [&str; 3] = ["event_id", "source", "seq"];

/// Where a record of a data topic stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The topic.
    pub topic: &'static str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// A text that is no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no place in the log: write topic/partition/offset, for example tokens/3/1742")]
pub struct NoPlace(pub String);

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let parts: Vec<_> = text.split('/').collect();
        let place = || match *parts.as_slice() {
            [topic, partition, offset] => Some(Self {
                topic: topic_named(topic)?,
                partition: partition.parse().ok().filter(|&partition: &i32| partition >= 0)?,
                offset: offset.parse().ok().filter(|&offset: &i64| offset >= 0)?,
            }),
            _ => None,
        };
        place().ok_or_else(|| NoPlace(text.to_owned()))
    }
}

/// A data topic by its name, or in short: `tokens`, `requests`.
pub fn topic_named(name: &str) -> Option<&'static str> {
    match name {
        topic::TOKENS | "tokens" => Some(topic::TOKENS),
        topic::REQUESTS | "requests" => Some(topic::REQUESTS),
        _ => None,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl Place {
    /// The source of its replay.
    pub fn source(&self) -> SourceId {
        SourceId(Uuid::new_v5(&SPOOL.0, self.to_string().as_bytes()))
    }
}

/// Why a record cannot be written anew.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The bytes are no event.
    #[error("its bytes are no event of this topic ({0}): give the whole record as it should have been")]
    Unreadable(#[source] CodecError),
    /// A field that the event does not have.
    #[error("the event has no field {name:?}; it has {known}")]
    NoField {
        /// What was named.
        name: String,
        /// What there is.
        known: String,
    },
    /// A field that no replay can be told.
    #[error("{0} is derived from the place of the dead letter, so that a replay counts once: it cannot be set")]
    Derived(&'static str),
    /// The JSON is no event of this topic.
    #[error("this is no event of the topic: {0}")]
    NoEvent(String),
    /// It would be a dead letter again.
    #[error("it would be a dead letter again: {0}")]
    OutOfBounds(#[from] CountOutOfBounds),
    /// A time that no calendar has.
    #[error("it would be a dead letter again: {0}")]
    Time(#[from] ledger::time::TimeError),
    /// It cannot be written.
    #[error("the record cannot be written: {0}")]
    Codec(#[from] CodecError),
}

/// A record as it is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The dead letter that it stands for.
    pub of: Place,
    /// Its source.
    pub source: SourceId,
    /// Where it goes: where all records of its key go.
    pub partition: i32,
    /// Its key: the tenant that it names.
    pub key: String,
    /// What it says, as JSON.
    pub record: Value,
    /// What it says, as bytes.
    pub value: Vec<u8>,
}

/// What the bytes of a record say, as JSON.
///
/// # Errors
/// Bytes that are no event of the topic.
pub fn read(topic: &str, value: &[u8]) -> Result<Value, CodecError> {
    fn json<E: Event>(value: &[u8]) -> Result<Value, CodecError> {
        // An event is a struct of plain fields: its JSON cannot fail.
        codec::decode::<E>(value).map(|event| serde_json::to_value(event).unwrap_or_default())
    }
    if topic == topic::REQUESTS { json::<RequestFinished>(value) } else { json::<TokensCounted>(value) }
}

/// Sets a field of a record. What is no JSON is taken as text.
///
/// # Errors
/// A field that is not there, or is derived.
pub fn set(record: &mut Value, name: &str, text: &str) -> Result<(), ReplayError> {
    if let Some(derived) = DERIVED.into_iter().find(|derived| *derived == name) {
        return Err(ReplayError::Derived(derived));
    }
    let mut none = Map::new();
    let fields = record.as_object_mut().unwrap_or(&mut none);
    let known = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let Some(field) = fields.get_mut(name) else { return Err(ReplayError::NoField { name: name.to_owned(), known }) };
    let as_text = || Value::String(text.to_owned());
    *field = match field {
        Value::String(_) => as_text(),
        _ => serde_json::from_str(text).unwrap_or_else(|_| as_text()),
    };
    Ok(())
}

impl Replay {
    /// The replay of a dead letter, which says this. Event id, source and number are derived, whatever the record has.
    ///
    /// # Errors
    /// A record that would be a dead letter again.
    pub fn of(place: Place, record: &Value, partitions: i32) -> Result<Self, ReplayError> {
        match place.topic {
            topic::REQUESTS => Self::made::<RequestFinished>(place, record, partitions),
            _ => Self::made::<TokensCounted>(place, record, partitions),
        }
    }

    fn made<E: Event>(of: Place, record: &Value, partitions: i32) -> Result<Self, ReplayError> {
        let source = of.source();
        let fields = record.as_object().ok_or_else(|| ReplayError::NoEvent("it is no object".to_owned()))?;
        let numbered = |event_id: EventId| -> Result<E, ReplayError> {
            let mut fields = fields.clone();
            fields.insert("event_id".to_owned(), event_id.to_string().into());
            fields.insert("source".to_owned(), source.to_string().into());
            fields.insert("seq".to_owned(), 1.into());
            serde_json::from_value(Value::Object(fields)).map_err(|error| ReplayError::NoEvent(error.to_string()))
        };
        let said = codec::encode(&numbered(EventId(Uuid::nil()))?)?;
        let event = numbered(EventId(Uuid::new_v5(&source.0, &said)))?;
        let whole = serde_json::to_value(&event).map_err(|error| ReplayError::NoEvent(error.to_string()))?;
        let known = whole.as_object().map(|known| known.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(name) = fields.keys().find(|name| !known.contains(name)) {
            return Err(ReplayError::NoField { name: name.clone(), known: known.join(", ") });
        }
        event.check()?;
        event.envelope().occurred_at.to_utc()?;
        let key = event.envelope().key.to_owned();
        let partition = partition_of(key.as_bytes(), partitions);
        Ok(Self { of, source, partition, key, record: whole, value: codec::encode(&event)? })
    }

    /// The mark that ends its source.
    pub const fn end(&self) -> Mark {
        Mark::SpoolDrained { spool: SPOOL, source: self.source, seq: 2 }
    }
}

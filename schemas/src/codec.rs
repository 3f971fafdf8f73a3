//! The Confluent wire format: a zero byte, the schema's id in 4 bytes, then the record in Avro's binary form.

use std::collections::HashMap;
use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use thiserror::Error;

use crate::binary;
use crate::event::Record;
use crate::registry::{FAMILY, SCHEMAS, SchemaVersion};

/// Bytes in front of the record.
pub const HEADER: usize = 5;

/// Why a record cannot be written or read.
#[derive(Debug, Error)]
pub enum CodecError {
    /// Shorter than the header, or another first byte than zero.
    #[error("the value is not in the Confluent wire format: it begins with a zero byte and 4 bytes of schema id")]
    NotConfluent,
    /// An id that is none of ours, and never will be.
    #[error("no schema of Tollgate's has the id {0}")]
    UnknownSchema(u32),
    /// A later version of the record than this build knows.
    #[error("the record is of schema {found}, and {newest} is the newest that this Tollgate knows: upgrade it")]
    NewerSchema {
        /// What stands there.
        found: u32,
        /// The newest of this build.
        newest: u32,
    },
    /// The id of another record than the one that was asked for.
    #[error("the schema id {found} is not that of the record asked for ({wanted})")]
    OtherRecord {
        /// What stands there.
        found: u32,
        /// Today's id of what was asked for.
        wanted: u32,
    },
    /// Bytes after the record's end.
    #[error("{0} bytes follow the record's end")]
    TrailingBytes(usize),
    /// The bytes end before the record does.
    #[error("the value ends before the record does")]
    CutShort,
    /// The bytes do not fit the schema.
    #[error("the record does not fit its schema: {0}")]
    Avro(#[source] Box<apache_avro::Error>),
}

impl From<apache_avro::Error> for CodecError {
    fn from(error: apache_avro::Error) -> Self {
        Self::Avro(Box::new(error))
    }
}

/// Every version of every schema, parsed once; and what writes and reads each, made once: resolving a schema costs more than
/// reading a record.
struct Known {
    versions: HashMap<u32, SchemaVersion>,
    writers: HashMap<u32, GenericDatumWriter<'static>>,
    readers: HashMap<u32, GenericDatumReader<'static>>,
    /// The schema that is wanted, by what was written and what is wanted, for other versions of the same subject.
    resolving: HashMap<(u32, u32), &'static Schema>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| Known::new(SCHEMAS));

impl Known {
    /// A schema that does not parse is absent, which `compatibility::check` excludes.
    fn new(schemas: &'static [SchemaVersion]) -> Self {
        // They live as long as the process.
        let parsed: Vec<(&SchemaVersion, &'static Schema)> = schemas
            .iter()
            .filter_map(|version| Some((version, &*Box::leak(Box::new(Schema::parse_str(version.text).ok()?)))))
            .collect();
        let writer = |schema| GenericDatumWriter::builder(schema).human_readable(true).build().ok();
        let reader = |schema| GenericDatumReader::builder(schema).human_readable(true).build().ok();
        let others = |written: &SchemaVersion| {
            let (id, subject) = (written.id, written.subject);
            let others = parsed.iter().filter(move |(other, _)| other.subject == subject && other.id != id);
            others.map(move |(wanted, schema)| ((id, wanted.id), *schema))
        };
        Self {
            versions: schemas.iter().map(|version| (version.id, *version)).collect(),
            writers: parsed.iter().filter_map(|(version, schema)| Some((version.id, writer(schema)?))).collect(),
            readers: parsed.iter().filter_map(|(version, schema)| Some((version.id, reader(schema)?))).collect(),
            resolving: parsed.iter().flat_map(|(version, _)| others(version)).collect(),
        }
    }

    fn decode<R: Record>(&self, value: &[u8]) -> Result<R, CodecError> {
        let (found, wanted) = (schema_id(value)?, R::SCHEMA_ID);
        let mut rest = value.get(HEADER..).ok_or(CodecError::NotConfluent)?;
        let record = if found == wanted {
            let reader = self.readers.get(&found).ok_or(CodecError::UnknownSchema(found))?;
            if let Some(record) = binary::read(rest) {
                return Ok(record);
            }
            reader.read_deser(&mut rest)?
        } else if let Some(schema) = self.resolving.get(&(found, wanted)) {
            apache_avro::from_value(&self.whole(found, &mut rest)?.resolve(schema)?)?
        } else {
            return Err(self.foreign(found, wanted));
        };
        if rest.is_empty() { Ok(record) } else { Err(CodecError::TrailingBytes(rest.len())) }
    }

    /// A record as its own version has it. Where bytes end early the library takes an absent union for null, so what was read is
    /// held to the bytes that it would be written in.
    fn whole(&self, id: u32, rest: &mut &[u8]) -> Result<Value, CodecError> {
        let unknown = CodecError::UnknownSchema(id);
        let (Some(reader), Some(writer)) = (self.readers.get(&id), self.writers.get(&id)) else { return Err(unknown) };
        let bytes = *rest;
        let value = reader.read_value(rest)?;
        let mut written = Vec::with_capacity(bytes.len());
        writer.write_value_ref(&mut written, &value)?;
        if bytes.starts_with(&written) { Ok(value) } else { Err(CodecError::CutShort) }
    }

    /// Why a record with this id is none of the wanted ones.
    fn foreign(&self, found: u32, wanted: u32) -> CodecError {
        if self.versions.contains_key(&found) {
            return CodecError::OtherRecord { found, wanted };
        }
        let family = || self.versions.values().filter(|version| version.id / FAMILY == wanted / FAMILY);
        match family().map(|version| version.id).max() {
            Some(newest) if found > newest && found / FAMILY == wanted / FAMILY => {
                CodecError::NewerSchema { found, newest }
            }
            _ => CodecError::UnknownSchema(found),
        }
    }
}

/// Writes a record with today's schema.
pub fn encode<R: Record>(record: &R) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(512);
    bytes.push(0);
    bytes.extend_from_slice(&R::SCHEMA_ID.to_be_bytes());
    binary::write(record, &mut bytes)?;
    Ok(bytes)
}

/// The schema id that a value names.
pub fn schema_id(value: &[u8]) -> Result<u32, CodecError> {
    match value {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(CodecError::NotConfluent),
    }
}

/// Reads a record that was written with today's schema or an earlier version of it, as today's. Bytes after its end are refused.
///
/// # Errors
/// [`CodecError::NewerSchema`] for what only a newer Tollgate can read; the others are for ever.
pub fn decode<R: Record>(value: &[u8]) -> Result<R, CodecError> {
    KNOWN.decode(value)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use uuid::Uuid;

    use super::*;

    const fn version(id: u32, version: u32, text: &'static str) -> SchemaVersion {
        SchemaVersion { id, subject: "a-value", version, name: "A", text }
    }

    /// Each adds a field with a default, takes one away that has one, or changes their order.
    static EVOLVED: [SchemaVersion; 3] = [
        version(
            9_001,
            1,
            r#"{"type": "record", "name": "A", "fields": [
                {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
                {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                {"name": "note", "type": ["null", "string"], "default": null}]}"#,
        ),
        version(
            9_002,
            2,
            r#"{"type": "record", "name": "A", "fields": [
                {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
                {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                {"name": "note", "type": ["null", "string"], "default": null},
                {"name": "audio", "type": "long", "default": 0}]}"#,
        ),
        version(
            9_003,
            3,
            r#"{"type": "record", "name": "A", "fields": [
                {"name": "audio", "type": "long", "default": 0},
                {"name": "region", "type": "string", "default": "here"},
                {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                {"name": "id", "type": {"type": "string", "logicalType": "uuid"}}]}"#,
        ),
    ];

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename = "A")]
    struct First {
        id: Uuid,
        at: i64,
        note: Option<String>,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename = "A")]
    struct Second {
        id: Uuid,
        at: i64,
        note: Option<String>,
        audio: i64,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename = "A")]
    struct Third {
        audio: i64,
        region: String,
        at: i64,
        id: Uuid,
    }

    impl Record for First {
        const SCHEMA_ID: u32 = 9_001;
    }
    impl Record for Second {
        const SCHEMA_ID: u32 = 9_002;
    }
    impl Record for Third {
        const SCHEMA_ID: u32 = 9_003;
    }

    #[test]
    fn each_version_reads_what_every_other_wrote() {
        let known = Known::new(&EVOLVED);
        let (id, at) = (Uuid::from_u128(5), 1_772_323_200_000_000);
        let first = First { id, at, note: Some("n".into()) };
        let second = Second { id, at, note: Some("n".into()), audio: 7 };
        let third = Third { audio: 7, region: "there".into(), at, id };
        let [one, two, three] = [encode(&first), encode(&second), encode(&third)].map(Result::unwrap);
        let read = |bytes: &[u8]| {
            let (a, b, c): (First, Second, Third) =
                (known.decode(bytes).unwrap(), known.decode(bytes).unwrap(), known.decode(bytes).unwrap());
            (a, b, c)
        };
        let none = |region: &str| Third { region: region.into(), ..third.clone() };
        assert_eq!(
            read(&one),
            (first.clone(), Second { audio: 0, ..second.clone() }, Third { audio: 0, ..none("here") })
        );
        assert_eq!(read(&two), (first.clone(), second.clone(), none("here")));
        assert_eq!(read(&three), (First { note: None, ..first }, Second { note: None, ..second }, third.clone()));
        let longer = [one.as_slice(), b"x"].concat();
        assert!(matches!(known.decode::<Third>(&longer), Err(CodecError::TrailingBytes(1))));
        for cut in HEADER..one.len() {
            assert!(known.decode::<Third>(&one[..cut]).is_err(), "{cut} of {} bytes were taken", one.len());
        }
    }

    #[test]
    fn only_what_a_newer_build_wrote_may_be_readable_one_day() {
        let older = Known::new(&EVOLVED[..1]);
        let bytes = encode(&Second { id: Uuid::nil(), at: 0, note: None, audio: 0 }).unwrap();
        let error = older.decode::<First>(&bytes).unwrap_err();
        assert!(matches!(error, CodecError::NewerSchema { found: 9_002, newest: 9_001 }), "{error}");
        for id in [0, 1, 8_999, 9_000, 9_100, u32::MAX] {
            let foreign = [&[0], id.to_be_bytes().as_slice(), &[0; 30]].concat();
            let error = older.decode::<First>(&foreign).unwrap_err();
            assert!(matches!(error, CodecError::UnknownSchema(_)), "{id}: {error}");
        }
    }
}

//! The Confluent wire format: a zero byte, the schema's id in 4 bytes, then the record in Avro's binary form.

use std::collections::HashMap;
use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use thiserror::Error;

use crate::event::Record;
use crate::registry::SCHEMAS;

/// Bytes in front of the record.
pub const HEADER: usize = 5;

/// Why a record cannot be written or read.
#[derive(Debug, Error)]
pub enum CodecError {
    /// Shorter than the header, or another first byte than zero.
    #[error("the value is not in the Confluent wire format: it begins with a zero byte and 4 bytes of schema id")]
    NotConfluent,
    /// An id that is none of ours.
    #[error("no schema has the id {0}: was it written by a newer Tollgate?")]
    UnknownSchema(u32),
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
    /// The bytes do not fit the schema.
    #[error("the record does not fit its schema: {0}")]
    Avro(#[source] Box<apache_avro::Error>),
}

impl From<apache_avro::Error> for CodecError {
    fn from(error: apache_avro::Error) -> Self {
        Self::Avro(Box::new(error))
    }
}

/// Parsed once. A schema that does not parse is absent, which a test excludes.
static PARSED: LazyLock<HashMap<u32, Schema>> = LazyLock::new(|| {
    SCHEMAS.iter().filter_map(|known| Schema::parse_str(known.text).ok().map(|schema| (known.id, schema))).collect()
});

/// Made once: resolving a schema costs more than writing a record.
static WRITERS: LazyLock<HashMap<u32, GenericDatumWriter<'static>>> = LazyLock::new(|| {
    let writer = |schema| GenericDatumWriter::builder(schema).human_readable(true).build().ok();
    PARSED.iter().filter_map(|(id, schema)| Some((*id, writer(schema)?))).collect()
});

static READERS: LazyLock<HashMap<u32, GenericDatumReader<'static>>> = LazyLock::new(|| {
    let reader = |schema| GenericDatumReader::builder(schema).human_readable(true).build().ok();
    PARSED.iter().filter_map(|(id, schema)| Some((*id, reader(schema)?))).collect()
});

/// Writes a record with today's schema.
pub fn encode<R: Record>(record: &R) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(512);
    bytes.push(0);
    bytes.extend_from_slice(&R::SCHEMA_ID.to_be_bytes());
    WRITERS.get(&R::SCHEMA_ID).ok_or(CodecError::UnknownSchema(R::SCHEMA_ID))?.write_ser(&mut bytes, record)?;
    Ok(bytes)
}

/// The schema id that a value names.
pub fn schema_id(value: &[u8]) -> Result<u32, CodecError> {
    match value {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(CodecError::NotConfluent),
    }
}

/// Reads a record that was written with today's schema. Bytes after its end are refused.
pub fn decode<R: Record>(value: &[u8]) -> Result<R, CodecError> {
    let found = schema_id(value)?;
    let reader = READERS.get(&found).ok_or(CodecError::UnknownSchema(found))?;
    if found != R::SCHEMA_ID {
        return Err(CodecError::OtherRecord { found, wanted: R::SCHEMA_ID });
    }
    let mut rest = value.get(HEADER..).ok_or(CodecError::NotConfluent)?;
    let record = reader.read_deser(&mut rest)?;
    if rest.is_empty() { Ok(record) } else { Err(CodecError::TrailingBytes(rest.len())) }
}

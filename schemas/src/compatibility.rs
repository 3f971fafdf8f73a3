//! The promise of the wire, checked: every version of a subject reads what every other wrote, and every byte form ever written
//! is still read.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use thiserror::Error;

use crate::codec::{self, CodecError, HEADER};
use crate::event::{BalanceUpdated, ControlChanged, DeadLettered, GpuSampled, Record, RequestFinished, TokensCounted};
use crate::registry::{
    BALANCE_UPDATED_V1, CONTROL_CHANGED_V1, DEAD_LETTERED_V1, GPU_SAMPLED_V1, REQUEST_FINISHED_V1, SchemaVersion,
    TOKENS_COUNTED_V1,
};

/// What was once written with a schema: an example for people, and its bytes of the first day.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// The schema.
    pub id: u32,
    /// The example, as JSON.
    pub example: &'static str,
    /// The same record as it was written: header and all.
    pub golden: &'static [u8],
    /// Reads both as today's type, and says why if they are not the same.
    typed: fn(&Self) -> Result<(), String>,
}

macro_rules! evidence {
    ($($id:ident: $record:ty = $name:literal,)+) => {
        /// One per schema.
        pub const EVIDENCE: &[Evidence] = &[$(Evidence {
            id: $id,
            example: include_str!(concat!("../examples/", $name, ".json")),
            golden: include_bytes!(concat!("../golden/", $name, ".bin")),
            typed: as_today::<$record>,
        },)+];
    };
}

evidence! {
    TOKENS_COUNTED_V1: TokensCounted = "tokens_counted.v1",
    REQUEST_FINISHED_V1: RequestFinished = "request_finished.v1",
    CONTROL_CHANGED_V1: ControlChanged = "control_changed.v1",
    BALANCE_UPDATED_V1: BalanceUpdated = "balance_updated.v1",
    DEAD_LETTERED_V1: DeadLettered = "dead_lettered.v1",
    GPU_SAMPLED_V1: GpuSampled = "gpu_sampled.v1",
}

/// One way in which the promise is broken.
#[derive(Debug, Error)]
pub enum Broken {
    /// The schema is none.
    #[error("{schema}: {reason}")]
    NoSchema {
        /// Which.
        schema: String,
        /// What the parser said.
        reason: String,
    },
    /// Its record has another name than the list says.
    #[error(
        "{schema}: its record is {found}, the list says {wanted}; the name is part of the wire, so neither may change"
    )]
    OtherName {
        /// Which.
        schema: String,
        /// In the schema.
        found: String,
        /// In the list.
        wanted: &'static str,
    },
    /// Two schemas with one id.
    #[error("{0}: its id is given twice; ids are for ever, so the newer one needs another")]
    IdTwice(String),
    /// Two schemas are the same version of a subject, or one is missing in between.
    #[error("{0}: versions of a subject count from 1, without holes")]
    Versions(String),
    /// A version cannot read another.
    #[error(
        "{reader} cannot read what {writer} wrote: {reason}; add fields only with defaults, remove only those that have one"
    )]
    Incompatible {
        /// Who reads.
        reader: String,
        /// Who wrote.
        writer: String,
        /// What is wrong.
        reason: String,
    },
    /// There are no bytes to hold a schema to.
    #[error("{0}: it has no example and no golden bytes")]
    NoEvidence(String),
    /// What was written once is no longer read.
    #[error("the golden bytes of {schema}: {reason}")]
    Evidence {
        /// Which.
        schema: String,
        /// What is wrong.
        reason: String,
    },
}

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Schemas.
    pub schemas: usize,
    /// Pairs of versions of a subject, each way.
    pub pairs: usize,
    /// Byte forms that were read again.
    pub golden: usize,
}

/// Checks every schema, every pair of versions both ways, and every byte form.
///
/// # Errors
/// All that is broken, at once.
pub fn check(known: &[SchemaVersion], evidence: &[Evidence]) -> Result<Checked, Vec<Broken>> {
    let mut broken = Vec::new();
    let mut parsed = Vec::new();
    for version in known {
        match Schema::parse_str(version.text) {
            Ok(schema) => {
                broken.extend(other_name(version, &schema));
                parsed.push((version, schema));
            }
            Err(error) => broken.push(Broken::NoSchema { schema: shown(version), reason: error.to_string() }),
        }
    }
    broken.extend(numbers(known));
    let mut pairs = 0;
    for (writer, written) in &parsed {
        let others = parsed.iter().filter(|(other, _)| other.subject == writer.subject && other.id != writer.id);
        for (reader, read) in others {
            pairs += 1;
            broken.extend(unread(reader, read, writer, written));
        }
    }
    for (version, schema) in &parsed {
        let of_it: Vec<_> = evidence.iter().filter(|evidence| evidence.id == version.id).collect();
        if of_it.is_empty() {
            broken.push(Broken::NoEvidence(shown(version)));
        }
        let readers: Vec<_> = parsed.iter().filter(|(other, _)| other.subject == version.subject).collect();
        for evidence in of_it {
            let reasons = readers.iter().filter_map(|(reader, read)| {
                let failed = read_again(evidence, schema, read).err()?;
                Some(format!("as version {}: {failed}", reader.version))
            });
            let reasons = reasons.chain((evidence.typed)(evidence).err());
            broken.extend(reasons.map(|reason| Broken::Evidence { schema: shown(version), reason }));
        }
    }
    let checked = Checked { schemas: known.len(), pairs, golden: evidence.len() };
    if broken.is_empty() { Ok(checked) } else { Err(broken) }
}

fn other_name(version: &SchemaVersion, schema: &Schema) -> Option<Broken> {
    let found = schema.name().map(|name| name.fullname(None).to_string()).unwrap_or_default();
    (found != version.name).then(|| Broken::OtherName { schema: shown(version), found, wanted: version.name })
}

/// Ids once, versions of a subject from 1 without holes.
fn numbers(known: &[SchemaVersion]) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (at, version) in known.iter().enumerate() {
        if known.iter().take(at).any(|earlier| earlier.id == version.id) {
            broken.push(Broken::IdTwice(shown(version)));
        }
        let below = known.iter().filter(|v| v.subject == version.subject && v.version < version.version).count();
        if usize::try_from(version.version).is_ok_and(|number| number != below + 1) {
            broken.push(Broken::Versions(shown(version)));
        }
    }
    broken
}

fn unread(reader: &SchemaVersion, read: &Schema, writer: &SchemaVersion, written: &Schema) -> Option<Broken> {
    let reason = match SchemaCompatibility::can_read(written, read) {
        Ok(Compatibility::Full) => return None,
        Ok(Compatibility::Partial) => "only some of its values can be read".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(Broken::Incompatible { reader: shown(reader), writer: shown(writer), reason })
}

/// Reads golden bytes with the schema they were written with, as another version wants them: the newer ones, whose readers find
/// them in the log, and the older ones, whose readers have the newer schema from a registry.
fn read_again(evidence: &Evidence, schema: &Schema, wanted: &Schema) -> Result<(), String> {
    let named = codec::schema_id(evidence.golden).map_err(|error| error.to_string())?;
    if named != evidence.id {
        return Err(format!("they name the id {named}"));
    }
    let reader = GenericDatumReader::builder(schema)
        .reader_schema(wanted)
        .human_readable(true)
        .build()
        .map_err(|error| error.to_string())?;
    let mut rest = evidence.golden.get(HEADER..).unwrap_or_default();
    reader.read_value(&mut rest).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err(CodecError::TrailingBytes(rest.len()).to_string());
    }
    Ok(())
}

/// Bytes of an earlier version need only be read; today's are also written the same.
fn as_today<R: Record>(evidence: &Evidence) -> Result<(), String> {
    let golden: R = codec::decode(evidence.golden).map_err(|error| error.to_string())?;
    if evidence.id != R::SCHEMA_ID {
        return Ok(());
    }
    let example: R = serde_json::from_str(evidence.example).map_err(|error| format!("the example: {error}"))?;
    let written = [&example, &golden].map(|record| codec::encode(record).map_err(|error| error.to_string()));
    if written.iter().all(|bytes| bytes.as_deref() == Ok(evidence.golden)) {
        return Ok(());
    }
    Err("the example and the bytes are not the same record, or it is written in other bytes today".to_owned())
}

fn shown(schema: &SchemaVersion) -> String {
    format!("{} version {} (id {})", schema.subject, schema.version, schema.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SCHEMAS;

    const BEFORE: SchemaVersion = SchemaVersion {
        id: 1,
        subject: "a-value",
        version: 1,
        name: "A",
        text: r#"{"type": "record", "name": "A", "fields": [{"name": "x", "type": "long"}]}"#,
    };
    const WITH_DEFAULT: SchemaVersion = SchemaVersion {
        id: 2,
        version: 2,
        text: r#"{"type": "record", "name": "A", "fields": [{"name": "x", "type": "long"}, {"name": "y", "type": "long", "default": 0}]}"#,
        ..BEFORE
    };
    /// `x` = 1.
    const WRITTEN: Evidence = Evidence { id: 1, example: "", golden: &[0, 0, 0, 0, 1, 2], typed: |_| Ok(()) };
    const WRITTEN_LATER: Evidence = Evidence { id: 2, golden: &[0, 0, 0, 0, 2, 2, 4], ..WRITTEN };

    fn said(known: &[SchemaVersion], evidence: &[Evidence]) -> String {
        let broken = check(known, evidence).unwrap_err();
        broken.iter().map(|broken| format!("{broken}\n")).collect()
    }

    #[test]
    fn the_schemas_of_this_build_keep_the_promise() {
        let checked = check(SCHEMAS, EVIDENCE).unwrap();
        assert_eq!((checked.schemas, checked.golden), (SCHEMAS.len(), SCHEMAS.len()));
    }

    #[test]
    fn a_field_may_come_with_a_default_and_not_without() {
        let evidence = [WRITTEN, WRITTEN_LATER];
        assert_eq!(check(&[BEFORE, WITH_DEFAULT], &evidence).unwrap().pairs, 2);
        let text = r#"{"type": "record", "name": "A", "fields": [{"name": "x", "type": "long"}, {"name": "y", "type": "long"}]}"#;
        let without = SchemaVersion { text, ..WITH_DEFAULT };
        let said = said(&[BEFORE, without], &evidence);
        assert!(said.contains("version 2 (id 2) cannot read what a-value version 1 (id 1) wrote"), "{said}");
        assert!(said.contains("the golden bytes of a-value version 1"), "{said}");
    }

    #[test]
    fn a_type_that_reads_only_some_values_is_refused() {
        let narrower = SchemaVersion {
            text: r#"{"type": "record", "name": "A", "fields": [{"name": "x", "type": ["null", "long"]}]}"#,
            ..WITH_DEFAULT
        };
        let said = said(&[BEFORE, narrower], &[WRITTEN, Evidence { golden: &[0, 0, 0, 0, 2, 2, 2], ..WRITTEN_LATER }]);
        assert!(said.contains("version 1 (id 1) cannot read what a-value version 2"), "{said}");
    }

    /// What people do to a schema, and may not.
    #[test]
    fn each_incompatible_change_is_named() {
        let fields = |fields: &str| -> &'static str {
            Box::leak(format!(r#"{{"type": "record", "name": "A", "fields": [{fields}]}}"#).into_boxed_str())
        };
        let symbols = |symbols: &str| {
            let kind = format!(r#"{{"type": "enum", "name": "K", "symbols": [{symbols}]}}"#);
            fields(&format!(r#"{{"name": "x", "type": {kind}}}"#))
        };
        let x = r#"{"name": "x", "type": "long"}"#;
        let changes = [
            (
                "a field taken away that has no default",
                fields(&format!(r#"{x}, {{"name": "y", "type": "long"}}"#)),
                fields(x),
            ),
            ("another type", fields(x), fields(r#"{"name": "x", "type": "string"}"#)),
            ("a wider type, which the older cannot read", fields(x), fields(r#"{"name": "x", "type": "double"}"#)),
            ("a field renamed", fields(x), fields(r#"{"name": "z", "type": "long"}"#)),
            ("a symbol taken away", symbols(r#""a", "b""#), symbols(r#""a""#)),
            ("a symbol added", symbols(r#""a""#), symbols(r#""a", "b""#)),
        ];
        for (change, before, after) in changes {
            let before = SchemaVersion { text: before, ..BEFORE };
            let after = SchemaVersion { text: after, ..WITH_DEFAULT };
            let broken = check(&[before, after], &[]).unwrap_err();
            let incompatible = broken.iter().any(|broken| matches!(broken, Broken::Incompatible { .. }));
            assert!(incompatible, "{change}: {broken:?}");
        }
    }

    #[test]
    fn golden_bytes_are_read_by_older_and_newer_versions_and_must_be_whole() {
        let cut = Evidence { golden: &[0, 0, 0, 0, 2, 2], ..WRITTEN_LATER };
        let said = said(&[BEFORE, WITH_DEFAULT], &[WRITTEN, cut]);
        for wanted in ["the golden bytes of a-value version 2 (id 2): as version 1", "(id 2): as version 2"] {
            assert!(said.contains(wanted), "{wanted} in {said}");
        }
    }

    #[test]
    fn all_that_is_broken_is_said_at_once() {
        let renamed = SchemaVersion { name: "B", ..BEFORE };
        let skipped = SchemaVersion { version: 3, ..WITH_DEFAULT };
        let torn = SchemaVersion { id: 3, subject: "b-value", text: "{", ..BEFORE };
        let said = said(&[renamed, skipped, torn, torn], &[Evidence { golden: &[0, 0, 0, 0, 1, 2, 9], ..WRITTEN }]);
        for wanted in [
            "the list says B",
            "without holes",
            "id is given twice",
            "b-value version 1",
            "no golden bytes",
            "follow the record's end",
        ] {
            assert!(said.contains(wanted), "{wanted} in {said}");
        }
    }
}

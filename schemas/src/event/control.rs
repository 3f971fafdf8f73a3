//! A write to the control log, as it stands there.

use ledger::control::{Document, Kind, Write};
use ledger::time::Micros;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::Record;
use crate::registry::CONTROL_CHANGED_V1;

/// A write to the control log: a whole document, or none to delete it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/control_changed.v1.avsc")]
pub struct ControlChanged {
    pub write_id: Uuid,
    pub written_at: Micros,
    pub actor: String,
    pub kind: String,
    pub id: String,
    pub expected_revision: i64,
    pub document: Option<String>,
}

impl Record for ControlChanged {
    const SCHEMA_ID: u32 = CONTROL_CHANGED_V1;
}

/// Why a record of the control log is no write.
#[derive(Debug, Error)]
pub enum NotAWrite {
    /// Written by a newer Tollgate, perhaps.
    #[error("{0:?} is no kind of document that is known here")]
    Kind(String),
    /// Below zero.
    #[error("the revision {0} is below zero")]
    Revision(i64),
    /// The document is no JSON of its kind.
    #[error("the document of the {0:?} {1:?} cannot be read or written: {2}")]
    Document(String, String, #[source] serde_json::Error),
}

impl ControlChanged {
    /// A write, as it is put into the log.
    pub fn of(write: &Write, write_id: Uuid, written_at: Micros, actor: &str) -> Result<Self, NotAWrite> {
        let document = write.document.as_ref().map(serde_json::to_string).transpose();
        Ok(Self {
            write_id,
            written_at,
            actor: actor.to_owned(),
            kind: write.kind.as_str().to_owned(),
            id: write.id.clone(),
            expected_revision: i64::try_from(write.expected_revision).unwrap_or(i64::MAX),
            document: document
                .map_err(|error| NotAWrite::Document(write.kind.as_str().to_owned(), write.id.clone(), error))?,
        })
    }

    /// The write that it is.
    pub fn to_write(&self) -> Result<Write, NotAWrite> {
        let parsed = self.document.as_deref().map(serde_json::from_str::<Document>).transpose();
        Ok(Write {
            kind: Kind::named(&self.kind).ok_or_else(|| NotAWrite::Kind(self.kind.clone()))?,
            id: self.id.clone(),
            expected_revision: u64::try_from(self.expected_revision)
                .map_err(|_| NotAWrite::Revision(self.expected_revision))?,
            document: parsed.map_err(|error| NotAWrite::Document(self.kind.clone(), self.id.clone(), error))?,
        })
    }

    /// The key of the record: `kind/id`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.kind, self.id)
    }
}

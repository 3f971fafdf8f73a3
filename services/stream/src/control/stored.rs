//! The durable snapshot of the control log's state: what is in the file, and how it is read back.

use ledger::control::{ControlState, Document, Kind};
use serde::{Deserialize, Serialize};

use super::view::ControlSnapshot;
use crate::chain::Chain;

/// The file's first words: kind and version.
pub(super) const FORMAT: &str = "tollgate-control 1";

/// A state with its place in the log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    offset: i64,
    last: Option<[u8; 32]>,
    fresh_at: i64,
    /// Whether the log has records before the offset that only a newer build can read: the state lacks what they say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unread: bool,
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    kind: Kind,
    id: String,
    revision: u64,
    document: Option<Document>,
}

impl Stored {
    pub(super) fn of(snapshot: &ControlSnapshot, last: Option<Chain>, unread: bool) -> Self {
        let entry = |(kind, id, revision, document): (Kind, &str, u64, Option<&Document>)| Entry {
            kind,
            id: id.to_owned(),
            revision,
            document: document.cloned(),
        };
        let entries = snapshot.state.entries().map(entry).collect();
        let last = last.map(|hash| hash.0);
        Self { offset: snapshot.offset, last, fresh_at: snapshot.fresh_at, unread, entries }
    }

    /// The state, and the hash of the last record in it.
    pub(super) fn into_parts(self) -> (ControlSnapshot, Option<Chain>) {
        let entries = self.entries.into_iter().map(|e| (e.kind, e.id, e.revision, e.document));
        let state = ControlState::restore(entries);
        (ControlSnapshot { state, offset: self.offset, fresh_at: self.fresh_at }, self.last.map(Chain))
    }
}

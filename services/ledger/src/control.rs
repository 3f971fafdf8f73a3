//! The state that the control log adds up to: documents with revisions, and the one pure function that applies a write.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ApiKeyId, ModelId, ModelVersion, PlanId, ProjectId, ReplicaId, SlugError, TenantId};
use crate::money::Currency;
use crate::price::{PriceBook, PriceError, PriceKey};
use crate::time::{Micros, Slot, TimeError};

/// Who is billed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// A name for people.
    pub name: String,
    /// Its plan.
    pub plan: PlanId,
    /// What it is charged in.
    pub currency: Currency,
    /// The time zone of its periods.
    pub time_zone: Tz,
}

/// A key of a tenant. Holds a hash, never the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Whose.
    pub tenant: TenantId,
    /// The project that its usage belongs to.
    pub project: ProjectId,
    /// SHA-256 of the key, in hex.
    pub sha256: String,
    /// From when on it is refused.
    pub expires_at: Option<Micros>,
    /// Whether it is refused now.
    pub revoked: bool,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("tenant", &self.tenant).field("project", &self.project).finish_non_exhaustive()
    }
}

/// Limits that tenants share. An absent limit does not limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// A name for people.
    pub name: String,
    /// Requests per minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Tokens per period, a hard limit.
    pub tokens_per_period: Option<u64>,
    /// Models that it may use; absent for all.
    pub models: Option<Vec<ModelId>>,
    /// What becomes of its requests while a gateway's spool is full.
    #[serde(default)]
    pub when_spool_full: WhenSpoolFull,
}

/// What becomes of a request whose usage could not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenSpoolFull {
    /// It is refused: nothing is served that could not be billed.
    #[default]
    Refuse,
    /// It is served, and its loss is counted and alarmed: the answer is worth more than the bill.
    Serve,
}

/// A price per million tokens, from a slot on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// What it is for.
    pub key: PriceKey,
    /// Its first moment: the start of a slot.
    pub from: Micros,
    /// Per million tokens.
    pub per_million: Decimal,
}

/// A model that clients can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The version that is served.
    pub version: ModelVersion,
    /// What replicas know it as.
    pub served_name: String,
}

/// A server that answers for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// What it serves.
    pub model: ModelId,
    /// Where, without a path.
    pub url: String,
}

/// A spool directory, registered at its first start ever. A period closes only when every spool that is not retired has
/// told that it is past it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spool {
    /// The role that writes it.
    pub role: String,
    /// A name for people, the host's for one.
    pub name: String,
    /// Why it will never come back, and what bound of loss that means; absent while it lives. An operator's word.
    pub retired: Option<String>,
}

/// Any document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is its document")]
pub enum Document {
    Tenant(Tenant),
    ApiKey(ApiKey),
    Plan(Plan),
    Price(Price),
    Model(Model),
    Replica(Replica),
    Spool(Spool),
}

/// What kind a document is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is its document's")]
pub enum Kind {
    Tenant,
    ApiKey,
    Plan,
    Price,
    Model,
    Replica,
    Spool,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Tenant, Self::ApiKey, Self::Plan, Self::Price, Self::Model, Self::Replica, Self::Spool];

    /// The name in documents, keys of records and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::ApiKey => "api_key",
            Self::Plan => "plan",
            Self::Price => "price",
            Self::Model => "model",
            Self::Replica => "replica",
            Self::Spool => "spool",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl std::fmt::Display for Kind {
    /// As people write it: `API key`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::ApiKey { "API key" } else { self.as_str() })
    }
}

impl Document {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Tenant(_) => Kind::Tenant,
            Self::ApiKey(_) => Kind::ApiKey,
            Self::Plan(_) => Kind::Plan,
            Self::Price(_) => Kind::Price,
            Self::Model(_) => Kind::Model,
            Self::Replica(_) => Kind::Replica,
            Self::Spool(_) => Kind::Spool,
        }
    }
}

/// A write to the control log: the whole document, or none to delete it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// What kind.
    pub kind: Kind,
    /// Which one.
    pub id: String,
    /// The revision that the writer saw; 0 for one that is not there.
    pub expected_revision: u64,
    /// What it becomes; absent to delete it.
    pub document: Option<Document>,
}

/// Why a write has no effect. Every reader of the log comes to the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Rejected {
    /// Another write came first.
    #[error("revision {expected} was expected, but it is at {found}: read it again, then write")]
    Conflict {
        /// What the writer saw.
        expected: u64,
        /// What it is at.
        found: u64,
    },
    /// The document is of another kind than the write says.
    #[error("the write says {0}, its document is another kind")]
    OtherKind(Kind),
    /// The id is none of this kind.
    #[error("the id is refused: {0}")]
    Id(#[from] SlugError),
    /// The id of an API key or a spool is no UUID.
    #[error("the id of an API key or a spool is a UUID, {0:?} is none")]
    NoUuid(String),
    /// It names something that is not there.
    #[error("it names the {0} {1:?}, which is not there: write that first")]
    Missing(Kind, String),
    /// Something there names it.
    #[error("the {0} {1:?} names it: change that first")]
    InUse(Kind, String),
    /// Another document says the same of the same thing: two prices of one moment, or two keys with one secret.
    #[error("the {0} {1:?} stands for the same already: change that one")]
    Taken(Kind, String),
    /// The price is out of bounds.
    #[error(transparent)]
    Price(#[from] PriceError),
    /// The price begins within a slot.
    #[error(transparent)]
    Time(#[from] TimeError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Versioned {
    revision: u64,
    document: Option<Document>,
}

/// All documents, with their revisions. A deleted one keeps its revision, so that an old write cannot bring it back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlState {
    documents: BTreeMap<(Kind, String), Versioned>,
    /// Who claims what: see [`Claim`].
    claims: BTreeMap<Claim, String>,
}

/// What only one document of a kind can stand for: it would be unclear which of two holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// A key's hash.
    Secret(String),
    /// A price from a moment on.
    Price(PriceKey, Micros),
}

impl Claim {
    fn of(document: &Document) -> Option<Self> {
        match document {
            Document::Price(price) => Some(Self::Price(price.key.clone(), price.from)),
            Document::ApiKey(key) => Some(Self::Secret(key.sha256.clone())),
            _ => None,
        }
    }
}

impl ControlState {
    /// A document, if it is there.
    pub fn get(&self, kind: Kind, id: &str) -> Option<&Document> {
        self.documents.get(&(kind, id.to_owned()))?.document.as_ref()
    }

    /// How many writes a document has taken; 0 for one that never was.
    pub fn revision(&self, kind: Kind, id: &str) -> u64 {
        self.documents.get(&(kind, id.to_owned())).map_or(0, |versioned| versioned.revision)
    }

    /// All documents that are there, by kind and id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Document)> {
        self.documents.iter().filter_map(|((_, id), versioned)| Some((id.as_str(), versioned.document.as_ref()?)))
    }

    /// Every document with its kind, id and revision, those deleted (absent) too: all that a state is, to be stored.
    pub fn entries(&self) -> impl Iterator<Item = (Kind, &str, u64, Option<&Document>)> {
        self.documents.iter().map(|((kind, id), v)| (*kind, id.as_str(), v.revision, v.document.as_ref()))
    }

    /// The state that these [`ControlState::entries`] were stored from.
    pub fn restore(entries: impl IntoIterator<Item = (Kind, String, u64, Option<Document>)>) -> Self {
        let mut state = Self::default();
        for (kind, id, revision, document) in entries {
            state.put(kind, id, Versioned { revision, document });
        }
        state
    }

    /// The revision that a write would lead to, or why it would be rejected. Changes nothing.
    pub fn check(&self, write: &Write) -> Result<u64, Rejected> {
        let found = self.revision(write.kind, &write.id);
        if write.expected_revision != found {
            return Err(Rejected::Conflict { expected: write.expected_revision, found });
        }
        match &write.document {
            Some(document) => self.check_document(write, document)?,
            None => self.check_unused(write)?,
        }
        Ok(found + 1)
    }

    /// Applies a write, and gives the revision after it. What is rejected changes nothing.
    pub fn apply(&mut self, write: &Write) -> Result<u64, Rejected> {
        let revision = self.check(write)?;
        self.put(write.kind, write.id.clone(), Versioned { revision, document: write.document.clone() });
        Ok(revision)
    }

    fn put(&mut self, kind: Kind, id: String, versioned: Versioned) {
        if let Some(claim) = self.get(kind, &id).and_then(Claim::of) {
            self.claims.remove(&claim);
        }
        if let Some(claim) = versioned.document.as_ref().and_then(Claim::of) {
            self.claims.insert(claim, id.clone());
        }
        self.documents.insert((kind, id), versioned);
    }

    /// The price book of all prices that are there.
    pub fn price_book(&self) -> Result<PriceBook, Rejected> {
        let mut book = PriceBook::default();
        for (_, document) in self.iter() {
            if let Document::Price(price) = document {
                book.set(price.key.clone(), Slot::starting_at(price.from)?, price.per_million)?;
            }
        }
        Ok(book)
    }

    fn check_document(&self, write: &Write, document: &Document) -> Result<(), Rejected> {
        if document.kind() != write.kind {
            return Err(Rejected::OtherKind(write.kind));
        }
        check_id(write)?;
        if let Document::Price(price) = document {
            PriceBook::default().set(price.key.clone(), Slot::starting_at(price.from)?, price.per_million)?;
        }
        let claimed = Claim::of(document).and_then(|claim| self.claims.get(&claim));
        if let Some(id) = claimed.filter(|id| **id != write.id) {
            return Err(Rejected::Taken(write.kind, id.clone()));
        }
        match references(document).into_iter().find(|(kind, id)| self.get(*kind, id).is_none()) {
            Some((kind, id)) => Err(Rejected::Missing(kind, id.to_owned())),
            None => Ok(()),
        }
    }

    fn check_unused(&self, write: &Write) -> Result<(), Rejected> {
        let names = |document: &Document| references(document).contains(&(write.kind, write.id.as_str()));
        match self.iter().find(|(_, document)| names(document)) {
            Some((id, document)) => Err(Rejected::InUse(document.kind(), id.to_owned())),
            None => Ok(()),
        }
    }
}

fn check_id(write: &Write) -> Result<(), Rejected> {
    let id = write.id.as_str();
    match write.kind {
        Kind::ApiKey | Kind::Spool => id.parse::<ApiKeyId>().map(drop).map_err(|_| Rejected::NoUuid(id.to_owned())),
        // All slugs follow one rule.
        _ => ReplicaId::new(id).map(drop).map_err(Rejected::from),
    }
}

/// What a document names, and so needs.
fn references(document: &Document) -> Vec<(Kind, &str)> {
    match document {
        Document::Tenant(tenant) => vec![(Kind::Plan, tenant.plan.as_str())],
        Document::ApiKey(key) => vec![(Kind::Tenant, key.tenant.as_str())],
        Document::Plan(plan) => plan.models.iter().flatten().map(|model| (Kind::Model, model.as_str())).collect(),
        Document::Price(price) => vec![(Kind::Model, price.key.model.as_str())],
        Document::Model(_) | Document::Spool(_) => vec![],
        Document::Replica(replica) => vec![(Kind::Model, replica.model.as_str())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(limit: u64) -> Document {
        let name = "Free".to_owned();
        let (requests_per_minute, tokens_per_minute) = (None, None);
        Document::Plan(Plan {
            name,
            requests_per_minute,
            tokens_per_minute,
            tokens_per_period: Some(limit),
            models: None,
            when_spool_full: WhenSpoolFull::Refuse,
        })
    }

    fn tenant() -> Document {
        let (currency, time_zone) = ("USD".parse().unwrap(), chrono_tz::UTC);
        Document::Tenant(Tenant { name: "Acme".into(), plan: "free".parse().unwrap(), currency, time_zone })
    }

    fn write(id: &str, expected_revision: u64, document: Document) -> Write {
        Write { kind: document.kind(), id: id.into(), expected_revision, document: Some(document) }
    }

    #[test]
    fn the_first_of_two_writers_wins() {
        let mut state = ControlState::default();
        assert_eq!(state.apply(&write("free", 0, plan(1))), Ok(1));
        assert_eq!(state.apply(&write("free", 0, plan(2))), Err(Rejected::Conflict { expected: 0, found: 1 }));
        assert_eq!(state.get(Kind::Plan, "free"), Some(&plan(1)));
        assert_eq!(state.apply(&write("free", 1, plan(3))), Ok(2));
    }

    #[test]
    fn what_is_named_is_there_and_stays() {
        let mut state = ControlState::default();
        assert_eq!(state.apply(&write("acme", 0, tenant())), Err(Rejected::Missing(Kind::Plan, "free".into())));
        state.apply(&write("free", 0, plan(1))).unwrap();
        state.apply(&write("acme", 0, tenant())).unwrap();
        let mut delete = Write { kind: Kind::Plan, id: "free".into(), expected_revision: 1, document: None };
        assert_eq!(state.apply(&delete), Err(Rejected::InUse(Kind::Tenant, "acme".into())));
        let gone = Write { kind: Kind::Tenant, id: "acme".into(), expected_revision: 1, document: None };
        assert_eq!(state.apply(&gone), Ok(2));
        assert_eq!(state.apply(&delete), Ok(2));
        delete.document = Some(plan(1));
        assert_eq!(
            state.apply(&delete),
            Err(Rejected::Conflict { expected: 1, found: 2 }),
            "an old write brings nothing back"
        );
    }

    #[test]
    fn prices_are_checked_before_they_are_kept() {
        let mut state = ControlState::default();
        let model = Document::Model(Model { version: "v1".parse().unwrap(), served_name: "llama".into() });
        state.apply(&write("llama", 0, model)).unwrap();
        let key = PriceKey {
            model: "llama".parse().unwrap(),
            class: crate::tokens::TokenClass::Input,
            currency: "USD".parse().unwrap(),
        };
        let price = |from, per_million: &str| {
            let per_million = per_million.parse().unwrap();
            write("p1", 0, Document::Price(Price { key: key.clone(), from: Micros(from), per_million }))
        };
        assert!(matches!(state.apply(&price(1, "1")), Err(Rejected::Time(_))));
        assert!(matches!(state.apply(&price(0, "-1")), Err(Rejected::Price(_))));
        state.apply(&price(0, "0.25")).unwrap();
        let again = Write { id: "p2".into(), ..price(0, "0.5") };
        assert_eq!(state.apply(&again), Err(Rejected::Taken(Kind::Price, "p1".into())), "which of the two would hold?");
        let restored = ControlState::restore(
            state.entries().map(|(kind, id, revision, document)| (kind, id.to_owned(), revision, document.cloned())),
        );
        assert_eq!(restored, state);
        let later = Write { expected_revision: 1, ..price(crate::time::SLOT_MICROS, "0.25") };
        state.apply(&later).unwrap();
        assert_eq!(state.apply(&again), Ok(1), "the first one has moved away");
        let price_in = |slot| state.price_book().unwrap().price(&key, Slot(slot)).map(|price| price.to_string());
        assert_eq!([price_in(0), price_in(5)], [Some("0.5".into()), Some("0.25".into())]);
    }

    #[test]
    fn a_key_shows_no_hash_and_has_a_uuid() {
        let mut state = ControlState::default();
        let (tenant, project) = ("acme".parse().unwrap(), "search".parse().unwrap());
        let key = ApiKey { tenant, project, sha256: "5ec7e7".into(), expires_at: None, revoked: false };
        assert!(!format!("{key:?}").contains("5ec7e7"));
        assert_eq!(state.apply(&write("mine", 0, Document::ApiKey(key))), Err(Rejected::NoUuid("mine".into())));
    }

    proptest! {
        #[test]
        fn what_is_rejected_changes_nothing(steps in prop::collection::vec((0u64..4, 0u64..9, any::<bool>()), 0..40)) {
            let mut state = ControlState::default();
            let mut taken = 0;
            for (expected_revision, limit, delete) in steps {
                let before = state.clone();
                let document = (!delete).then(|| plan(limit));
                match state.apply(&Write { kind: Kind::Plan, id: "free".into(), expected_revision, document }) {
                    Ok(revision) => { taken += 1; prop_assert_eq!(revision, taken); }
                    Err(_) => prop_assert_eq!(&state, &before),
                }
                let entries = state.entries().map(|(kind, id, revision, d)| (kind, id.to_owned(), revision, d.cloned()));
                prop_assert_eq!(&ControlState::restore(entries), &state);
            }
        }
    }
}

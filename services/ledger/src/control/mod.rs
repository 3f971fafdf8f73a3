//! The state that the control log adds up to: documents with revisions, and the one pure function that applies a write.

mod adjustment;
mod documents;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use adjustment::{AdjustmentError, Corrected, Deltas, REASON_MAX, UsageAdjustment};
pub use documents::{
    ApiKey, Canary, Limits, Model, Plan, Pool, Price, Replica, ReplicaKind, Scope, ServiceTier, Spool, Tenant,
    WhenPeriodUsed, WhenSpoolFull,
};

use crate::ids::{ApiKeyId, ModelId, ReplicaId, SlugError};
use crate::price::{PriceBook, PriceError, PriceKey};
use crate::time::{Micros, Slot, TimeError};

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
    Pool(Pool),
    Replica(Replica),
    Spool(Spool),
    UsageAdjustment(UsageAdjustment),
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
    Pool,
    UsageAdjustment,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Tenant,
        Self::ApiKey,
        Self::Plan,
        Self::Price,
        Self::Model,
        Self::Replica,
        Self::Spool,
        Self::Pool,
        Self::UsageAdjustment,
    ];

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
            Self::Pool => "pool",
            Self::UsageAdjustment => "usage_adjustment",
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
        f.write_str(match self {
            Self::ApiKey => "API key",
            Self::UsageAdjustment => "usage adjustment",
            _ => self.as_str(),
        })
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
            Self::Pool(_) => Kind::Pool,
            Self::UsageAdjustment(_) => Kind::UsageAdjustment,
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
    /// The id of an API key, a spool or a usage adjustment is no UUID.
    #[error("the id of an API key, a spool or a usage adjustment is a UUID, {0:?} is none")]
    NoUuid(String),
    /// It names something that is not there.
    #[error("it names the {0} {1:?}, which is not there: write that first")]
    Missing(Kind, String),
    /// Something there names it.
    #[error("the {0} {1:?} names it: change that first")]
    InUse(Kind, String),
    /// Another document says the same of the same thing: two prices of one moment, two keys with one secret, two models
    /// with one name.
    #[error("the {0} {1:?} stands for the same already: change that one")]
    Taken(Kind, String),
    /// The shares of a model's canaries add up to more than all.
    #[error("the canaries get {0} of 100 requests: together they get at most 100")]
    Canaries(u32),
    /// A model is an adapter of itself, or of another adapter.
    #[error("{0:?} is an adapter itself: `base` names the model that it adapts")]
    Base(ModelId),
    /// A weight of nothing would never be served.
    #[error("a weight is at least 1; leave it out for 1")]
    Weight,
    /// A correction stays as it was made.
    #[error("a usage adjustment is never changed and never deleted: make another one that reverses it")]
    Final,
    /// Another correction of the same came first: together they might take away more than there is.
    #[error(
        "it was checked beside {expected} other corrections of the same usage, and there are {found}: check it again"
    )]
    Overtaken {
        /// How many it was checked beside.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// The correction cannot be kept.
    #[error(transparent)]
    Adjustment(#[from] AdjustmentError),
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
    /// The ids of the corrections of the same.
    corrections: BTreeMap<Corrected, BTreeSet<String>>,
}

/// What only one document of a kind can stand for: it would be unclear which of two holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// A key's hash.
    Secret(String),
    /// A price from a moment on.
    Price(PriceKey, Micros),
    /// A name by which clients know a model.
    Model(ModelId),
}

impl Claim {
    fn of(id: &str, document: &Document) -> Vec<Self> {
        match document {
            Document::Price(price) => vec![Self::Price(price.key.clone(), price.from)],
            Document::ApiKey(key) => vec![Self::Secret(key.sha256.clone())],
            Document::Model(model) => {
                let own = ModelId::new(id).into_iter();
                own.chain(model.aliases.iter().cloned()).map(Self::Model).collect()
            }
            _ => vec![],
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

    /// All corrections of usage, with their ids, sorted by those.
    pub fn adjustments(&self) -> impl Iterator<Item = (&str, &UsageAdjustment)> {
        let from = (Kind::UsageAdjustment, String::new());
        self.documents.range(from..).filter_map(|((_, id), versioned)| match &versioned.document {
            Some(Document::UsageAdjustment(adjustment)) => Some((id.as_str(), adjustment)),
            _ => None,
        })
    }

    /// All corrections of this.
    pub fn corrections_of(&self, corrected: &Corrected) -> impl Iterator<Item = &UsageAdjustment> {
        self.corrections.get(corrected).into_iter().flatten().filter_map(|id| {
            match self.get(Kind::UsageAdjustment, id) {
                Some(Document::UsageAdjustment(made)) => Some(made),
                _ => None,
            }
        })
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
            _ if write.kind == Kind::UsageAdjustment && (found > 0 || write.document.is_none()) => {
                return Err(Rejected::Final);
            }
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
        let of = |document: Option<&Document>| document.map(|document| Claim::of(&id, document)).unwrap_or_default();
        for claim in of(self.get(kind, &id)) {
            self.claims.remove(&claim);
        }
        for claim in of(versioned.document.as_ref()) {
            self.claims.insert(claim, id.clone());
        }
        if let Some(Document::UsageAdjustment(made)) = &versioned.document {
            self.corrections.entry(made.corrected()).or_default().insert(id.clone());
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
        match document {
            Document::Price(price) => {
                PriceBook::default().set(price.key.clone(), Slot::starting_at(price.from)?, price.per_million)?;
            }
            Document::Model(model) => self.check_model(&write.id, model)?,
            Document::Plan(plan) if plan.weight == Some(0) => return Err(Rejected::Weight),
            Document::UsageAdjustment(adjustment) => self.check_adjustment(adjustment)?,
            _ => {}
        }
        let mut claimed = Claim::of(&write.id, document).into_iter().filter_map(|claim| self.claims.get(&claim));
        if let Some(id) = claimed.find(|id| **id != write.id) {
            return Err(Rejected::Taken(write.kind, id.clone()));
        }
        match references(document).into_iter().find(|(kind, id)| self.get(*kind, id).is_none()) {
            Some((kind, id)) => Err(Rejected::Missing(kind, id.to_owned())),
            None => Ok(()),
        }
    }

    /// Tenant and model must be there now, and may go later: corrections hold nobody back.
    fn check_adjustment(&self, adjustment: &UsageAdjustment) -> Result<(), Rejected> {
        adjustment.check()?;
        let named = [(Kind::Tenant, adjustment.tenant.as_str()), (Kind::Model, adjustment.model.as_str())];
        if let Some((kind, id)) = named.into_iter().find(|(kind, id)| self.get(*kind, id).is_none()) {
            return Err(Rejected::Missing(kind, id.to_owned()));
        }
        let found = self.corrections.get(&adjustment.corrected()).map_or(0, |ids| ids.len() as u64);
        match adjustment.after {
            Some(expected) if expected != found => Err(Rejected::Overtaken { expected, found }),
            _ => Ok(()),
        }
    }

    fn check_model(&self, id: &str, model: &Model) -> Result<(), Rejected> {
        let percent = model.canaries.iter().map(|canary| u32::from(canary.percent)).sum();
        if percent > 100 {
            return Err(Rejected::Canaries(percent));
        }
        let Some(base) = &model.base else { return Ok(()) };
        match self.get(Kind::Model, base.as_str()) {
            _ if base.as_str() == id => Err(Rejected::Base(base.clone())),
            Some(Document::Model(Model { base: Some(_), .. })) => Err(Rejected::Base(base.clone())),
            _ => Ok(()),
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
        Kind::ApiKey | Kind::Spool | Kind::UsageAdjustment => {
            id.parse::<ApiKeyId>().map(drop).map_err(|_| Rejected::NoUuid(id.to_owned()))
        }
        // All slugs follow one rule.
        _ => ReplicaId::new(id).map(drop).map_err(Rejected::from),
    }
}

/// What a document names, and so needs.
fn references(document: &Document) -> Vec<(Kind, &str)> {
    match document {
        Document::Tenant(tenant) => vec![(Kind::Plan, tenant.plan.as_str())],
        Document::ApiKey(key) => vec![(Kind::Tenant, key.tenant.as_str())],
        Document::Plan(plan) => {
            let models = plan.models.iter().flatten().map(|model| (Kind::Model, model.as_str()));
            models.chain(plan.pools.iter().flatten().map(|pool| (Kind::Pool, pool.as_str()))).collect()
        }
        Document::Price(price) => vec![(Kind::Model, price.key.model.as_str())],
        Document::Model(model) => model.base.iter().map(|base| (Kind::Model, base.as_str())).collect(),
        // The plans that a pool or a model is kept for are not needed: a plan names both, and one of the two comes first.
        Document::Pool(_) | Document::Spool(_) | Document::UsageAdjustment(_) => vec![],
        Document::Replica(replica) => {
            let pool = replica.pool.iter().map(|pool| (Kind::Pool, pool.as_str()));
            pool.chain([(Kind::Model, replica.model.as_str())]).collect()
        }
    }
}

#[cfg(test)]
mod tests;

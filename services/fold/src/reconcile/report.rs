//! What a reconciliation says: what was compared, what differs, and what cannot be compared yet.

use std::collections::BTreeMap;
use std::fmt;

use ledger::ids::{ModelId, RequestId, TenantId};
use serde::Serialize;
use sql::{LogHour, LogHours};

/// Two sides that must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The offsets of the log, and those that are folded.
    Log,
    /// The chunks of a line, and one another: they follow each other from offset 0 on.
    Chunks,
    /// What chunks say that they hold, and their rows.
    Rows,
    /// Sums out of the projections, and out of the rows.
    Aggregates,
    /// The counts of a request, and its running count.
    Counts,
    /// The last counts of requests, and their ends in the other topic.
    Ends,
    /// Published balances, and the rows up to their offset.
    Balances,
    /// Bills as they are reckoned for people, and out of the rows.
    Invoices,
    /// The replicas' own counters, and what their requests are counted as.
    Replicas,
}

impl Check {
    /// All of them, in the order in which they are made.
    pub const ALL: [Self; 9] = [
        Self::Log,
        Self::Chunks,
        Self::Rows,
        Self::Aggregates,
        Self::Counts,
        Self::Ends,
        Self::Balances,
        Self::Invoices,
        Self::Replicas,
    ];

    /// Its name in interfaces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Chunks => "chunks",
            Self::Rows => "rows",
            Self::Aggregates => "aggregates",
            Self::Counts => "counts",
            Self::Ends => "ends",
            Self::Balances => "balances",
            Self::Invoices => "invoices",
            Self::Replicas => "replicas",
        }
    }
}

impl Check {
    /// What must agree, for people.
    pub const fn said(self) -> &'static str {
        match self {
            Self::Log => "the log's offsets, and what is folded",
            Self::Chunks => "chunks follow each other from offset 0 on",
            Self::Rows => "what chunks say that they hold, and their rows",
            Self::Aggregates => "sums out of projections, and out of rows",
            Self::Counts => "the counts of each request, and its running count",
            Self::Ends => "last counts of requests, and their ends",
            Self::Balances => "published balances, and the rows up to their offset",
            Self::Invoices => "bills, and the rows of their periods",
            Self::Replicas => "the engines' own counters, and their requests",
        }
    }
}

/// Where a difference lies, as far as it can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<&'static str>,
    /// Its partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// The beginning of the log hour, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<String>,
    /// Whose figure it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// Of which model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// The replicas that one engine is, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
}

impl Place {
    /// A partition of a topic.
    pub fn line(topic: &'static str, partition: i32) -> Self {
        Self { topic: Some(topic), partition: Some(partition), ..Self::default() }
    }

    /// An engine, by the replicas that it is.
    pub fn replica(replicas: &[String]) -> Self {
        Self { replica: Some(replicas.join(", ")), ..Self::default() }
    }

    /// The same in one hour of the log.
    pub fn at(self, hour: LogHour) -> Self {
        Self { hour: Some(hour.start().to_string()), ..self }
    }

    /// The same for one tenant.
    pub fn of(self, tenant: &TenantId) -> Self {
        Self { tenant: Some(tenant.clone()), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match (self.topic, self.partition) {
            (Some(topic), Some(partition)) => Some(format!("{topic}/{partition}")),
            _ => None,
        };
        let hour = self.hour.as_ref().map(|hour| format!("hour {hour}"));
        let tenant = self.tenant.as_ref().map(|tenant| format!("tenant {tenant}"));
        let model = self.model.as_ref().map(|model| format!("model {model}"));
        let replica = self.replica.as_ref().map(|replica| format!("replica {replica}"));
        let parts: Vec<_> = [line, hour, tenant, model, replica].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

/// One side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Whose figure.
    pub of: &'static str,
    /// The figure.
    pub is: i64,
}

/// Two figures that must be the same, and are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Of what.
    pub check: Check,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What is counted: a token class, `requests`, `rows`, `offsets`, `chunks`, `prompt tokens`, `generated tokens`.
    pub figure: &'static str,
    /// What it should be, by one side.
    pub one: Side,
    /// What the other has.
    pub other: Side,
    /// `other` − `one`.
    pub by: i64,
    /// In words, where figures do not say it all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// The requests that it touches, as far as they can be named.
    pub request_ids: Vec<RequestId>,
}

impl Difference {
    /// One between two figures.
    pub fn between(check: Check, place: Place, figure: &'static str, one: Side, other: Side) -> Self {
        let by = other.is.saturating_sub(one.is);
        Self { check, place, figure, one, other, by, said: String::new(), request_ids: Vec::new() }
    }

    /// With words of its own.
    pub fn saying(self, said: String) -> Self {
        Self { said, ..self }
    }

    /// With the requests that it touches.
    pub fn naming(self, mut request_ids: Vec<RequestId>) -> Self {
        request_ids.sort_unstable();
        request_ids.dedup();
        Self { request_ids, ..self }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, place, figure, one, other, by, said, request_ids } = self;
        write!(f, "{}: {place}: {figure}: {} {}, {} {} ({by:+})", check.as_str(), one.of, one.is, other.of, other.is)?;
        if !said.is_empty() {
            write!(f, "; {said}")?;
        }
        let mut ids = request_ids.iter();
        if let Some(first) = ids.next() {
            write!(f, "; requests {first}")?;
            ids.try_for_each(|id| write!(f, ", {id}"))?;
        }
        Ok(())
    }
}

/// What is under way, and therefore no difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// What cannot be compared yet.
    pub check: Check,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Why not.
    pub said: String,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.check.as_str(), self.place, self.said)
    }
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When it began, RFC 3339.
    pub at: String,
    /// The first log hour that was looked at.
    pub from: String,
    /// The first one after those.
    pub before: String,
    /// How many figures were compared, by check.
    pub compared: BTreeMap<Check, u64>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// What is not comparable yet.
    pub pending: Vec<Pending>,
}

impl Report {
    /// One that begins now.
    pub fn begin(at: ledger::time::Micros, hours: LogHours) -> Self {
        Self {
            at: at.to_string(),
            from: hours.from.start().to_string(),
            before: hours.before.start().to_string(),
            compared: Check::ALL.into_iter().map(|check| (check, 0)).collect(),
            differences: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// A part of it that finds something by itself.
    pub(crate) fn part(&self) -> Self {
        let Self { at, from, before, .. } = self;
        let [at, from, before] = [at, from, before].map(Clone::clone);
        Self { at, from, before, compared: BTreeMap::new(), differences: Vec::new(), pending: Vec::new() }
    }

    /// Takes in what a part has found.
    pub(crate) fn add(&mut self, part: Self) {
        for (check, figures) in part.compared {
            *self.compared.entry(check).or_default() += figures;
        }
        self.differences.extend(part.differences);
        self.pending.extend(part.pending);
    }

    /// Whether nothing differs.
    pub fn agrees(&self) -> bool {
        self.differences.is_empty()
    }

    /// How many differences a check found.
    pub fn count(&self, check: Check) -> usize {
        self.differences.iter().filter(|difference| difference.check == check).count()
    }

    pub(crate) fn compared(&mut self, check: Check, figures: usize) {
        *self.compared.entry(check).or_default() += figures as u64;
    }

    pub(crate) fn differs(&mut self, difference: Difference) {
        self.differences.push(difference);
    }

    pub(crate) fn pending(&mut self, check: Check, place: Place, said: String) {
        self.pending.push(Pending { check, place, said });
    }

    /// Compares two figures.
    pub(crate) fn same(&mut self, check: Check, place: &Place, figure: &'static str, one: Side, other: Side) {
        self.compared(check, 1);
        if one.is != other.is {
            self.differs(Difference::between(check, place.clone(), figure, one, other));
        }
    }
}

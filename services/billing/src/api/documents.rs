//! The documents of the control API as clients write them, and their way into the ledger's documents and back.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use ledger::control::{
    Canary, Document, Kind, Limits, Model, Plan, Pool, Price, Replica, ReplicaKind, ServiceTier, Tenant,
    WhenPeriodUsed, WhenSpoolFull,
};
use ledger::ids::{GpuClass, ModelId, ModelVersion, PlanId, PoolId, ProjectId};
use ledger::money::Currency;
use ledger::price::PriceKey;
use ledger::time::Micros;
use ledger::tokens::TokenClass;
use rust_decimal::Decimal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::strict;
use crate::problem::Problem;

/// The longest name for people, in characters.
const NAME_MAX: usize = 200;
/// The most things that one document names of a kind.
const NAMED_MAX: usize = 1_000;
/// The longest URL, in bytes.
const URL_MAX: usize = 2_000;

/// A kind of document that the API reads and writes.
pub(crate) trait Resource: Serialize + DeserializeOwned + ToSchema + Send {
    const KIND: Kind;

    /// What the control log keeps of it.
    fn into_document(self) -> Result<Document, Problem>;

    /// What clients see of a document, if it is of this kind.
    fn of(document: &Document) -> Option<Self>;
}

/// A tenant: who is billed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantBody {
    /// A name for people.
    #[schema(example = "Acme", max_length = 200)]
    name: String,
    /// The id of its plan.
    #[schema(value_type = String, example = "standard")]
    plan: PlanId,
    /// What it is charged in: an ISO 4217 code.
    #[schema(value_type = String, example = "EUR")]
    currency: Currency,
    /// The time zone of its periods: a name of the IANA database.
    #[schema(value_type = String, example = "Europe/Berlin")]
    time_zone: Tz,
    /// Limits of single projects, below those of the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, LimitsBody>)]
    projects: BTreeMap<ProjectId, LimitsBody>,
}

/// Limits that hold at every moment. One that is absent does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsBody {
    /// Requests per minute.
    requests_per_minute: Option<u64>,
    /// Tokens per minute.
    tokens_per_minute: Option<u64>,
    /// Requests that are open at once.
    concurrent_requests: Option<u64>,
}

impl From<LimitsBody> for Limits {
    fn from(body: LimitsBody) -> Self {
        let LimitsBody { requests_per_minute, tokens_per_minute, concurrent_requests } = body;
        Self { requests_per_minute, tokens_per_minute, concurrent_requests }
    }
}

impl From<Limits> for LimitsBody {
    fn from(limits: Limits) -> Self {
        let Limits { requests_per_minute, tokens_per_minute, concurrent_requests } = limits;
        Self { requests_per_minute, tokens_per_minute, concurrent_requests }
    }
}

/// Limits that tenants share. A limit that is absent does not limit.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanBody {
    /// A name for people.
    #[schema(example = "Standard", max_length = 200)]
    name: String,
    /// Requests per minute.
    requests_per_minute: Option<u64>,
    /// Tokens per minute.
    tokens_per_minute: Option<u64>,
    /// Requests that are open at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrent_requests: Option<u64>,
    /// Tokens per period (a month in the tenant's time zone).
    tokens_per_period: Option<u64>,
    /// What becomes of requests once `tokens_per_period` are used: `refuse` (by default: a hard limit), or `serve` (a
    /// soft one).
    #[serde(default)]
    #[schema(value_type = String, example = "refuse")]
    when_period_used: WhenPeriodUsed,
    /// The models that may be used; all of them if absent.
    #[schema(value_type = Option<Vec<String>>)]
    models: Option<Vec<ModelId>>,
    /// What becomes of requests while a gateway's spool is full: `refuse` (by default), or `serve` unbilled.
    #[serde(default)]
    #[schema(value_type = String, example = "refuse")]
    when_spool_full: WhenSpoolFull,
    /// The band in which requests wait for a replica: `priority`, `default` or `flex`.
    #[serde(default)]
    #[schema(value_type = String, example = "default")]
    service_tier: ServiceTier,
    /// The share of its tenants in what their band gets; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    weight: Option<u32>,
    /// Pools that its requests go to, in this order: the next one when the one before has no room. Those that
    /// are kept for it, then all that are shared, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pools: Option<Vec<PoolId>>,
}

/// A price per million tokens, from the start of a quarter of an hour on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PriceBody {
    /// The model.
    #[schema(value_type = String, example = "llama-3.1-8b")]
    model: ModelId,
    /// `input`, `cached_input`, `output` or `reasoning`.
    #[schema(value_type = String, example = "output")]
    class: TokenClass,
    /// An ISO 4217 code.
    #[schema(value_type = String, example = "EUR")]
    currency: Currency,
    /// Its first moment, on a whole quarter of an hour.
    #[serde(deserialize_with = "strict::instant")]
    from: DateTime<Utc>,
    /// Per million tokens: a decimal as text, at most 6 places.
    #[serde(deserialize_with = "strict::decimal")]
    #[schema(value_type = String, example = "0.25")]
    per_million: Decimal,
}

/// A model that clients can name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelBody {
    /// The version that is served.
    #[schema(value_type = String, example = "v1")]
    version: ModelVersion,
    /// What replicas know it as.
    #[schema(example = "meta-llama/Llama-3.1-8B-Instruct", max_length = 200)]
    served_name: String,
    /// Versions that are tried with a share of the requests. `version` gets the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    canaries: Vec<CanaryBody>,
    /// Other names that clients may use. Usage is booked under the model's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    aliases: Vec<ModelId>,
    /// The model that this is an adapter (LoRA) of: its replicas answer, asked for this one's `served_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    base: Option<ModelId>,
    /// The class of GPU that it needs: only replicas in pools of this class get its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "h100")]
    gpu_class: Option<GpuClass>,
    /// Plans that may use it; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    plans: Option<Vec<PlanId>>,
}

/// A version of a model that is tried with a share of its requests.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CanaryBody {
    /// The version.
    #[schema(value_type = String, example = "v2")]
    version: ModelVersion,
    /// What replicas know it as.
    #[schema(max_length = 200)]
    served_name: String,
    /// Of 100 requests, so many.
    #[schema(maximum = 100)]
    percent: u8,
}

/// A server that answers for a model.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplicaBody {
    /// The model that it serves.
    #[schema(value_type = String, example = "llama-3.1-8b")]
    model: ModelId,
    /// Where it is: `http://host:port` or `https://host:port`, without a path.
    #[schema(example = "http://10.0.0.5:8000")]
    url: String,
    /// Which engine it is: `vllm` (by default), `sglang`, `tgi` or `openai_compatible`.
    #[serde(default)]
    #[schema(value_type = String, example = "vllm")]
    kind: ReplicaKind,
    /// The version of the model that it serves; every version if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    version: Option<ModelVersion>,
    /// The pool that it is in; shared and of no class of GPU if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pool: Option<PoolId>,
    /// Requests that it works on well at once; what the gateway's settings say if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    max_concurrent_requests: Option<u32>,
    /// Whether it gets no more requests, while those that are open there go on to their end.
    #[serde(default)]
    draining: bool,
}

/// Replicas of one class of GPU, shared or kept for some plans.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolBody {
    /// The class of its GPUs.
    #[schema(value_type = String, example = "h100")]
    gpu_class: GpuClass,
    /// Plans that it is kept for; shared by all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    plans: Option<Vec<PlanId>>,
}

/// Whether a character is none to be seen, but ends a line or turns the text around it: a name could pass for another.
fn moves_text(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text for people: something, not too long, on one line.
fn named(field: &str, text: String) -> Result<String, Problem> {
    let fits = !text.trim().is_empty() && text.chars().count() <= NAME_MAX && !text.chars().any(moves_text);
    let refused = || {
        let words = format!("`{field}` must have 1 to {NAME_MAX} characters, on one line, none of which moves others");
        Problem::value(words)
    };
    if fits { Ok(text) } else { Err(refused()) }
}

fn few(field: &str, count: usize) -> Result<(), Problem> {
    if count > NAMED_MAX {
        return Err(Problem::value(format!("`{field}` has at most {NAMED_MAX} entries, {count} were given")));
    }
    Ok(())
}

impl Resource for TenantBody {
    const KIND: Kind = Kind::Tenant;

    fn into_document(self) -> Result<Document, Problem> {
        let Self { name, plan, currency, time_zone, projects } = self;
        few("projects", projects.len())?;
        let projects = projects.into_iter().map(|(project, limits)| (project, limits.into())).collect();
        Ok(Document::Tenant(Tenant { name: named("name", name)?, plan, currency, time_zone, projects }))
    }

    fn of(document: &Document) -> Option<Self> {
        let Document::Tenant(Tenant { name, plan, currency, time_zone, projects }) = document.clone() else {
            return None;
        };
        let projects = projects.into_iter().map(|(project, limits)| (project, limits.into())).collect();
        Some(Self { name, plan, currency, time_zone, projects })
    }
}

impl Resource for PlanBody {
    const KIND: Kind = Kind::Plan;

    fn into_document(self) -> Result<Document, Problem> {
        few("models", self.models.as_ref().map_or(0, Vec::len))?;
        few("pools", self.pools.as_ref().map_or(0, Vec::len))?;
        Ok(Document::Plan(Plan {
            name: named("name", self.name)?,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent_requests: self.concurrent_requests,
            tokens_per_period: self.tokens_per_period,
            when_period_used: self.when_period_used,
            models: self.models,
            when_spool_full: self.when_spool_full,
            service_tier: self.service_tier,
            weight: self.weight,
            pools: self.pools,
        }))
    }

    fn of(document: &Document) -> Option<Self> {
        let Document::Plan(plan) = document.clone() else { return None };
        Some(Self {
            name: plan.name,
            requests_per_minute: plan.requests_per_minute,
            tokens_per_minute: plan.tokens_per_minute,
            concurrent_requests: plan.concurrent_requests,
            tokens_per_period: plan.tokens_per_period,
            when_period_used: plan.when_period_used,
            models: plan.models,
            when_spool_full: plan.when_spool_full,
            service_tier: plan.service_tier,
            weight: plan.weight,
            pools: plan.pools,
        })
    }
}

impl Resource for PriceBody {
    const KIND: Kind = Kind::Price;

    fn into_document(self) -> Result<Document, Problem> {
        let Self { model, class, currency, from, per_million } = self;
        let key = PriceKey { model, class, currency };
        Ok(Document::Price(Price { key, from: from.into(), per_million }))
    }

    fn of(document: &Document) -> Option<Self> {
        let Document::Price(Price { key, from, per_million }) = document.clone() else { return None };
        let PriceKey { model, class, currency } = key;
        Some(Self { model, class, currency, from: instant(from)?, per_million })
    }
}

impl Resource for ModelBody {
    const KIND: Kind = Kind::Model;

    fn into_document(self) -> Result<Document, Problem> {
        few("canaries", self.canaries.len())?;
        few("aliases", self.aliases.len())?;
        few("plans", self.plans.as_ref().map_or(0, Vec::len))?;
        let canary = |canary: CanaryBody| {
            let CanaryBody { version, served_name, percent } = canary;
            Ok(Canary { version, served_name: named("canaries.served_name", served_name)?, percent })
        };
        Ok(Document::Model(Model {
            version: self.version,
            served_name: named("served_name", self.served_name)?,
            canaries: self.canaries.into_iter().map(canary).collect::<Result<_, Problem>>()?,
            aliases: self.aliases,
            base: self.base,
            gpu_class: self.gpu_class,
            plans: self.plans,
        }))
    }

    fn of(document: &Document) -> Option<Self> {
        let Document::Model(model) = document.clone() else { return None };
        let Model { version, served_name, canaries, aliases, base, gpu_class, plans } = model;
        let canary = |Canary { version, served_name, percent }| CanaryBody { version, served_name, percent };
        let canaries = canaries.into_iter().map(canary).collect();
        Some(Self { version, served_name, canaries, aliases, base, gpu_class, plans })
    }
}

impl Resource for ReplicaBody {
    const KIND: Kind = Kind::Replica;

    fn into_document(self) -> Result<Document, Problem> {
        let url: Option<axum::http::Uri> = self.url.parse().ok().filter(|_| self.url.len() <= URL_MAX);
        let usable = |url: &axum::http::Uri| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.authority().is_some_and(reachable)
                && matches!(url.path(), "" | "/")
                && url.query().is_none()
        };
        if !url.as_ref().is_some_and(usable) || self.url.contains('#') {
            return Err(Problem::value("`url` must be http://host:port or https://host:port, without a path"));
        }
        let url = self.url.trim_end_matches('/').to_owned();
        if self.max_concurrent_requests == Some(0) {
            return Err(Problem::value(
                "`max_concurrent_requests` must be at least 1; `draining` gives it no requests",
            ));
        }
        let Self { model, kind, version, pool, max_concurrent_requests, draining, .. } = self;
        Ok(Document::Replica(Replica { model, url, kind, version, pool, max_concurrent_requests, draining }))
    }

    fn of(document: &Document) -> Option<Self> {
        let Document::Replica(replica) = document.clone() else { return None };
        let Replica { model, url, kind, version, pool, max_concurrent_requests, draining } = replica;
        Some(Self { model, url, kind, version, pool, max_concurrent_requests, draining })
    }
}

impl Resource for PoolBody {
    const KIND: Kind = Kind::Pool;

    fn into_document(self) -> Result<Document, Problem> {
        few("plans", self.plans.as_ref().map_or(0, Vec::len))?;
        let Self { gpu_class, plans } = self;
        Ok(Document::Pool(Pool { gpu_class, plans }))
    }

    fn of(document: &Document) -> Option<Self> {
        let Document::Pool(Pool { gpu_class, plans }) = document.clone() else { return None };
        Some(Self { gpu_class, plans })
    }
}

/// A host, and a port that there is.
fn reachable(at: &axum::http::uri::Authority) -> bool {
    let port = at.as_str().strip_prefix(at.host());
    let port =
        port.and_then(|port| if port.is_empty() { Some(80) } else { port.strip_prefix(':')?.parse::<u16>().ok() });
    !at.host().is_empty() && port.is_some_and(|port| port > 0)
}

/// As a calendar time; none outside of the calendar.
pub(crate) fn instant(time: Micros) -> Option<DateTime<Utc>> {
    time.to_utc().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replica(url: &str) -> Result<Document, Problem> {
        serde_json::from_value::<ReplicaBody>(json!({"model": "llama", "url": url})).unwrap().into_document()
    }

    #[test]
    fn a_replica_is_a_host_and_a_port() {
        assert!(
            matches!(replica("http://10.0.0.5:8000/"), Ok(Document::Replica(r)) if r.url == "http://10.0.0.5:8000")
        );
        for good in ["http://[::1]:8000", "http://vllm", "https://vllm.example.com", "https://10.0.0.5:8443/"] {
            assert!(replica(good).is_ok(), "{good}");
        }
        for wrong in [
            "",
            "10.0.0.5:8000",
            "ftp://a:1",
            "http://a:1/v1",
            "http://a:1?x=1",
            "http://u:p@a:1",
            "http://a:1#f",
            "http://",
            "http://a:",
            "http://a:0",
            "http://a:99999",
        ] {
            assert!(replica(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn money_is_text_and_never_a_number() {
        let price = |per_million: serde_json::Value| {
            serde_json::from_value::<PriceBody>(json!({
                "model": "m", "class": "input", "currency": "EUR", "from": "2026-01-01T00:00:00Z", "per_million": per_million,
            }))
        };
        assert!(price(json!("0.25")).is_ok());
        assert!(price(json!(0.25)).is_err());
        let shown = serde_json::to_value(price(json!("0.25")).unwrap()).unwrap();
        assert_eq!((&shown["per_million"], &shown["from"]), (&json!("0.25"), &json!("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn names_are_for_people() {
        for wrong in ["", "  ", "a\nb", "a\u{2028}b", "evil\u{202e}emca", &"x".repeat(201)] {
            assert!(named("name", wrong.to_owned()).is_err(), "{wrong:?}");
        }
        assert!(named("name", "Ä & <b>".to_owned()).is_ok());
    }
}

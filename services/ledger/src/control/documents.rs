//! The documents of the control log: what people decide of tenants, keys, plans, prices, models, replicas and pools.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::ids::{GpuClass, ModelId, ModelVersion, PlanId, PoolId, ProjectId, TenantId};
use crate::money::Currency;
use crate::price::PriceKey;
use crate::time::Micros;

/// Whether a value is what it is when it is left out: such values are not written, so that documents stay as they were.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

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
    /// Limits of single projects, below those of the plan.
    #[serde(default, skip_serializing_if = "is_default")]
    pub projects: BTreeMap<ProjectId, Limits>,
}

impl Tenant {
    /// A tenant without projects that have limits of their own.
    pub fn new(name: impl Into<String>, plan: PlanId, currency: Currency, time_zone: Tz) -> Self {
        Self { name: name.into(), plan, currency, time_zone, projects: BTreeMap::new() }
    }
}

/// Limits that hold at every moment. An absent limit does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests per minute.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tokens_per_minute: Option<u64>,
    /// Requests that are open at once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub concurrent_requests: Option<u64>,
}

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Generate: chat, completions, responses, messages.
    Generate,
    /// Embeddings, rerank and score.
    Embed,
    /// List models, and count tokens.
    Models,
    /// Read the tenant's own usage, costs and balances.
    Usage,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Generate, Self::Embed, Self::Models, Self::Usage];

    /// The name in documents, in claims of tokens and in errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Embed => "embed",
            Self::Models => "models",
            Self::Usage => "usage",
        }
    }

    /// The scope of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
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
    /// What it may be used for; absent for everything.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scopes: Option<Vec<Scope>>,
    /// Limits of this key, below those of its project and plan.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
}

impl ApiKey {
    /// A key that opens everything and never expires.
    pub fn new(tenant: TenantId, project: ProjectId, sha256: String) -> Self {
        let (expires_at, revoked, scopes) = (None, false, None);
        Self { tenant, project, sha256, expires_at, revoked, scopes, limits: Limits::default() }
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("tenant", &self.tenant).field("project", &self.project).finish_non_exhaustive()
    }
}

/// Limits and service that tenants share. An absent limit does not limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// A name for people.
    pub name: String,
    /// Requests per minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests that are open at once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub concurrent_requests: Option<u64>,
    /// Tokens per period.
    pub tokens_per_period: Option<u64>,
    /// Whether requests are refused once `tokens_per_period` are used, or served and shown as over it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_period_used: WhenPeriodUsed,
    /// Models that it may use; absent for all.
    pub models: Option<Vec<ModelId>>,
    /// What becomes of its requests while a gateway's spool is full.
    #[serde(default)]
    pub when_spool_full: WhenSpoolFull,
    /// The band in which its requests wait for a replica.
    #[serde(default, skip_serializing_if = "is_default")]
    pub service_tier: ServiceTier,
    /// Its tenants' share of what their band gets, against tenants of other plans in it; absent for 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weight: Option<u32>,
    /// Pools that its requests go to, the first that has room; absent for those that are kept for it, then all shared ones.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pools: Option<Vec<PoolId>>,
}

/// What becomes of requests of a tenant that has used what its plan gives for a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenPeriodUsed {
    /// They are refused: a hard limit.
    #[default]
    Refuse,
    /// They are served and billed: a soft limit.
    Serve,
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

/// A band of the queue, by OpenAI's names. A higher one goes first, but each has a floor that higher ones cannot take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceTier {
    /// Before all others.
    Priority,
    /// As most.
    #[default]
    Default,
    /// After all others: batches, evaluations.
    Flex,
}

impl ServiceTier {
    /// All of them, the first served first.
    pub const ALL: [Self; 3] = [Self::Priority, Self::Default, Self::Flex];

    /// The name in documents and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Priority => "priority",
            Self::Default => "default",
            Self::Flex => "flex",
        }
    }
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
    /// Versions that get a share of the requests, to be tried; `version` gets the rest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub canaries: Vec<Canary>,
    /// Other names that clients may use. Usage is booked under the model's own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub aliases: Vec<ModelId>,
    /// The model that this one is an adapter (LoRA) of: the replicas of that one's `version` answer, under this one's
    /// `served_name`. They have it loaded already: nothing here loads it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub base: Option<ModelId>,
    /// The class of GPU that it needs: only replicas in pools of this class get its requests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gpu_class: Option<GpuClass>,
    /// Plans that may use it; absent for all (that name it, or name none).
    #[serde(default, skip_serializing_if = "is_default")]
    pub plans: Option<Vec<PlanId>>,
}

impl Model {
    /// A model that all may use, with one version.
    pub fn new(version: ModelVersion, served_name: impl Into<String>) -> Self {
        let (served_name, canaries, aliases) = (served_name.into(), Vec::new(), Vec::new());
        Self { version, served_name, canaries, aliases, base: None, gpu_class: None, plans: None }
    }
}

/// A version of a model that is tried with a share of its requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// The version.
    pub version: ModelVersion,
    /// What replicas know it as.
    pub served_name: String,
    /// Of 100 requests for the model, so many. All of a model's canaries together: at most 100.
    pub percent: u8,
}

/// A server that answers for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// What it serves.
    pub model: ModelId,
    /// Where, without a path.
    pub url: String,
    /// Which engine it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: ReplicaKind,
    /// The version that it serves; absent for all versions of the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub version: Option<ModelVersion>,
    /// The pool that it is in; absent for one that is shared and of no class.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: Option<PoolId>,
    /// Requests that it works on well at once; more wait at the gateway. Absent for what the gateway's settings say.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_concurrent_requests: Option<u32>,
    /// Whether it gets no more requests, while those that are open there go on to their end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub draining: bool,
}

impl Replica {
    /// A vLLM, shared by all.
    pub fn new(model: ModelId, url: impl Into<String>) -> Self {
        let (url, kind, version, pool) = (url.into(), ReplicaKind::default(), None, None);
        Self { model, url, kind, version, pool, max_concurrent_requests: None, draining: false }
    }
}

/// Which engine a replica is: how it tells usage, what its metrics are called, where its health is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaKind {
    /// vLLM, with either front end.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// Hugging Face's Text Generation Inference.
    Tgi,
    /// Any other server that speaks OpenAI's protocol.
    OpenaiCompatible,
}

impl ReplicaKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vllm, Self::Sglang, Self::Tgi, Self::OpenaiCompatible];

    /// The name in documents and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Tgi => "tgi",
            Self::OpenaiCompatible => "openai_compatible",
        }
    }
}

/// Replicas of one class of GPU, shared or kept for some plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// The class of its GPUs: `h100`, `l40s`.
    pub gpu_class: GpuClass,
    /// Plans that it is kept for; absent if all may use it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub plans: Option<Vec<PlanId>>,
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

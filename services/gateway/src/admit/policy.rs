//! What the control log adds up to, as the path of a request needs it: one immutable snapshot, found by hashes and names.

use std::collections::BTreeMap;

use std::sync::Arc;

use chrono_tz::Tz;
use hashbrown::HashMap;
use ledger::control::{ControlState, Document, Limits, Plan};
use ledger::ids::{ModelId, ModelVersion, PlanId, ProjectId, TenantId};
use ledger::money::Currency;
use ledger::price::{PriceBook, PriceKey};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenClass;

use super::auth::KeyHash;
use super::caller::{Caller, Scopes};

/// A tenant and its plan.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub id: TenantId,
    pub plan_id: PlanId,
    pub plan: Plan,
    pub currency: Currency,
    pub time_zone: Tz,
    /// Limits of single projects.
    pub projects: BTreeMap<ProjectId, Limits>,
}

impl Tenant {
    /// Whether the plan allows this model, and the model this plan.
    pub(crate) fn may_use(&self, model: &Model) -> bool {
        self.plan.models.as_ref().is_none_or(|models| models.contains(&model.id))
            && model.plans.as_ref().is_none_or(|plans| plans.contains(&self.plan_id))
    }
}

/// An API key.
#[derive(Debug)]
pub(crate) struct Key {
    pub caller: Arc<Caller>,
    expires_at: Option<Micros>,
    revoked: bool,
}

impl Key {
    /// Whether it opens anything now.
    pub(crate) fn holds(&self, now: Micros) -> bool {
        !self.revoked && self.expires_at.is_none_or(|end| now < end)
    }
}

/// A model. Who answers for it, and in which version, is the pool's affair.
#[derive(Debug)]
pub(crate) struct Model {
    pub id: ModelId,
    pub version: ModelVersion,
    /// The model whose replicas answer, if this one is an adapter of it.
    pub base: Option<ModelId>,
    /// Plans that may use it; none for all.
    plans: Option<Vec<PlanId>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    tenants: HashMap<TenantId, Arc<Tenant>>,
    keys: HashMap<KeyHash, Key>,
    models: BTreeMap<String, Arc<Model>>,
    prices: PriceBook,
}

impl Policy {
    /// What `state` says.
    pub(crate) fn of(state: &ControlState) -> Self {
        let mut plans = HashMap::new();
        let mut policy = Self::default();
        for (id, document) in state.iter() {
            match document {
                Document::Plan(plan) => {
                    plans.insert(id, plan);
                }
                Document::Model(model) => {
                    let Ok(id) = ModelId::new(id) else { continue };
                    let (version, plans) = (model.version.clone(), model.plans.clone());
                    let names = std::iter::once(&id).chain(&model.aliases).map(|name| name.as_str().to_owned());
                    let names: Vec<_> = names.collect();
                    let model = Arc::new(Model { id, version, base: model.base.clone(), plans });
                    policy.models.extend(names.into_iter().map(|name| (name, Arc::clone(&model))));
                }
                _ => {}
            }
        }
        policy.tenants = tenants_of(state, &plans);
        policy.keys = keys_of(state, &policy.tenants);
        match state.price_book() {
            Ok(prices) => policy.prices = prices,
            Err(error) => tracing::error!(%error, "the price book cannot be read: every request counts as unpriced"),
        }
        policy
    }

    /// The key with this hash, whether it holds or not.
    pub(crate) fn key(&self, hash: &KeyHash) -> Option<&Key> {
        self.keys.get(hash)
    }

    /// The tenant with this id.
    pub(crate) fn tenant(&self, id: &TenantId) -> Option<&Arc<Tenant>> {
        self.tenants.get(id)
    }

    /// The model with this public name, which may be an alias.
    pub(crate) fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.models.get(name)
    }

    /// All models by all their names.
    pub(crate) fn models(&self) -> impl Iterator<Item = (&str, &Arc<Model>)> {
        self.models.iter().map(|(name, model)| (name.as_str(), model))
    }

    /// Whether input and output of this model have a price now.
    pub(crate) fn has_price(&self, model: &ModelId, currency: Currency, now: Micros) -> bool {
        let priced =
            |class| self.prices.price(&PriceKey { model: model.clone(), class, currency }, Slot::of(now)).is_some();
        priced(TokenClass::Input) && priced(TokenClass::Output)
    }
}

fn tenants_of(state: &ControlState, plans: &HashMap<&str, &Plan>) -> HashMap<TenantId, Arc<Tenant>> {
    let of = |(id, document): (&str, &Document)| {
        let Document::Tenant(tenant) = document else { return None };
        let id = TenantId::new(id).ok()?;
        // A tenant's plan is there as long as the tenant is: the control log refuses to delete it.
        let plan = (*plans.get(tenant.plan.as_str())?).clone();
        let (plan_id, projects) = (tenant.plan.clone(), tenant.projects.clone());
        let (currency, time_zone) = (tenant.currency, tenant.time_zone);
        Some((id.clone(), Arc::new(Tenant { id, plan_id, plan, currency, time_zone, projects })))
    };
    state.iter().filter_map(of).collect()
}

fn keys_of(state: &ControlState, tenants: &HashMap<TenantId, Arc<Tenant>>) -> HashMap<KeyHash, Key> {
    let of = |(id, document): (&str, &Document)| {
        let Document::ApiKey(key) = document else { return None };
        let Some(hash) = from_hex(&key.sha256) else {
            tracing::warn!(api_key = id, "the key's hash is not 64 hex digits: it opens nothing");
            return None;
        };
        let (tenant, project) = (tenants.get(&key.tenant)?.clone(), key.project.clone());
        let scopes = key.scopes.as_ref().map_or(Scopes::all(), |scopes| scopes.iter().copied().collect());
        let caller = Caller { key_limits: key.limits, ..Caller::new(tenant, project, id.parse().ok()?, scopes) };
        let (expires_at, revoked) = (key.expires_at, key.revoked);
        Some((hash, Key { caller: Arc::new(caller), expires_at, revoked }))
    };
    state.iter().filter_map(of).collect()
}

fn from_hex(text: &str) -> Option<KeyHash> {
    let digits = text.as_bytes();
    let mut hash = KeyHash::default();
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::auth::hash_of;

    #[test]
    fn a_hash_in_hex_is_the_hash_of_the_key() {
        let hex: String = hash_of(b"tg_demo").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(from_hex(&hex), Some(hash_of(b"tg_demo")));
        assert_eq!(from_hex(&hex.to_uppercase()), Some(hash_of(b"tg_demo")));
        assert_eq!(from_hex(&hex[..62]), None);
        assert_eq!(from_hex(&hex.replace('a', "x").replace('b', "y").replace('c', "z")), None);
    }
}

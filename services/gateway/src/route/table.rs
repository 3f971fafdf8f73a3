//! Who answers for which model, in which version and for which plan: one immutable snapshot of what control says.

use std::sync::Arc;

use hashbrown::HashMap;
use ledger::control::{ControlState, Document, Model, Plan, Pool, Replica as ReplicaDocument};
use ledger::ids::{ModelId, ModelVersion, PlanId, PoolId, ReplicaId, RequestId};

use super::replica::Replica;

/// A replica as control describes it now.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub replica: Arc<Replica>,
    /// Requests that it works on well at once.
    pub limit: u32,
}

/// Replicas by preference: one of a later tier is asked when none of those before has room.
pub(super) type Tiers = Vec<Vec<Member>>;

/// A version of a model.
#[derive(Debug)]
pub(super) struct Version {
    pub version: ModelVersion,
    /// What replicas know it as.
    pub served_name: String,
    /// Of 100 requests, so many; for the model's own version all that others leave.
    percent: u8,
    /// For plans that are not in `by_plan`.
    shared: Tiers,
    by_plan: HashMap<PlanId, Tiers>,
}

impl Version {
    /// Who answers to requests of this plan.
    pub(super) fn tiers(&self, plan: &PlanId) -> &Tiers {
        // Most have none of their own.
        if self.by_plan.is_empty() { &self.shared } else { self.by_plan.get(plan).unwrap_or(&self.shared) }
    }
}

/// A model's versions, and all replicas that answer for any of them.
#[derive(Debug)]
pub(super) struct Routes {
    /// The model's own first, then its canaries.
    versions: Vec<Version>,
    pub replicas: Vec<Arc<Replica>>,
    /// Whether it is an adapter, which a replica may be without and yet serve the model that is adapted.
    pub is_adapter: bool,
}

impl Routes {
    /// The place of the version that a request is for: the same one for the same request, wherever it is asked.
    pub(super) fn place_for(&self, request: RequestId) -> usize {
        // The last bits of a UUIDv7 are chance.
        let mut ticket = u8::try_from(request.0.as_u128() as u64 % 100).unwrap_or(0);
        for (place, canary) in self.versions.iter().enumerate().skip(1) {
            match ticket.checked_sub(canary.percent) {
                Some(left) => ticket = left,
                None => return place,
            }
        }
        0
    }

    /// The version at a place.
    pub(super) fn version(&self, place: usize) -> &Version {
        // There is always the model's own.
        self.versions.get(place).unwrap_or(&self.versions[0])
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    models: HashMap<ModelId, Arc<Routes>>,
}

impl Table {
    /// What `state` says, with the replicas that `find` gives (none: it cannot be used).
    pub(super) fn of(
        state: &ControlState,
        default_limit: u32,
        find: impl FnMut(&ReplicaId, &ReplicaDocument) -> Option<Arc<Replica>>,
    ) -> Self {
        let registry = Registry::of(state, default_limit, find);
        let mut models = HashMap::new();
        for (id, document) in state.iter() {
            if let (Document::Model(model), Ok(id)) = (document, ModelId::new(id)) {
                let routes = registry.routes(&id, model);
                models.insert(id, Arc::new(routes));
            }
        }
        Self { models }
    }

    /// Who answers for a model.
    pub(super) fn routes(&self, model: &ModelId) -> Option<&Arc<Routes>> {
        self.models.get(model)
    }
}

/// A replica with all that decides who may use it.
struct Known<'a> {
    member: Member,
    document: &'a ReplicaDocument,
    pool: Option<(&'a str, &'a Pool)>,
}

/// The documents that matter, found once.
struct Registry<'a> {
    replicas: Vec<Known<'a>>,
    models: HashMap<&'a str, &'a Model>,
    pools: HashMap<&'a str, &'a Pool>,
    /// Plans for which it matters which one it is.
    plans: Vec<(PlanId, &'a Plan)>,
}

impl<'a> Registry<'a> {
    fn of(
        state: &'a ControlState,
        default_limit: u32,
        mut find: impl FnMut(&ReplicaId, &ReplicaDocument) -> Option<Arc<Replica>>,
    ) -> Self {
        let mut registry = Self { replicas: vec![], models: HashMap::new(), pools: HashMap::new(), plans: vec![] };
        let (mut plans, mut replicas) = (vec![], vec![]);
        for (id, document) in state.iter() {
            match document {
                Document::Model(model) => _ = registry.models.insert(id, model),
                Document::Pool(pool) => _ = registry.pools.insert(id, pool),
                Document::Plan(plan) => plans.extend(PlanId::new(id).ok().map(|id| (id, plan))),
                Document::Replica(replica) => replicas.extend(ReplicaId::new(id).ok().map(|id| (id, replica))),
                _ => {}
            }
        }
        for (id, document) in replicas {
            let Some(replica) = find(&id, document) else { continue };
            let pool = document.pool.as_ref().map(PoolId::as_str);
            let pool = pool.and_then(|id| Some((id, *registry.pools.get(id)?)));
            let limit = document.max_concurrent_requests.unwrap_or(default_limit).max(1);
            registry.replicas.push(Known { member: Member { replica, limit }, document, pool });
        }
        let kept = |plan: &PlanId| registry.pools.values().any(|pool| is_kept_for(pool, plan));
        plans.retain(|(id, plan)| plan.pools.is_some() || kept(id));
        registry.plans = plans;
        registry
    }

    fn routes(&self, id: &ModelId, model: &Model) -> Routes {
        let base = model.base.as_ref().and_then(|base| Some((base, *self.models.get(base.as_str())?)));
        let class = model.gpu_class.as_ref().or_else(|| base?.1.gpu_class.as_ref());
        let answers = |known: &&Known<'_>, version: &ModelVersion| {
            let ReplicaDocument { model, version: only, .. } = known.document;
            let serves = |version: &ModelVersion| only.as_ref().is_none_or(|only| only == version);
            // An adapter was made for the version of its base that most requests get.
            let adapts = || base.is_some_and(|(base, document)| model == base && serves(&document.version));
            let fits = class.is_none_or(|class| known.pool.is_some_and(|(_, pool)| pool.gpu_class == *class));
            fits && ((model == id && serves(version)) || adapts())
        };
        let version = |version: &ModelVersion, served_name: &str, percent: u8| {
            let able: Vec<_> = self.replicas.iter().filter(|known| answers(known, version)).collect();
            let open: Vec<_> = able.iter().copied().filter(|known| !known.document.draining).collect();
            let by_plan = self.plans.iter().map(|(id, plan)| (id.clone(), tiers(&open, &self.pools, id, plan)));
            let shared = vec![members(&open, |pool| pool.is_none_or(|(_, pool)| pool.plans.is_none()))];
            Version {
                version: version.clone(),
                served_name: served_name.to_owned(),
                percent,
                shared,
                by_plan: by_plan.collect(),
            }
        };
        let own = version(&model.version, &model.served_name, 0);
        let canaries =
            model.canaries.iter().map(|canary| version(&canary.version, &canary.served_name, canary.percent));
        let answers_for = |model: &ModelId| model == id || base.is_some_and(|(base, _)| model == base);
        let replicas = self.replicas.iter().filter(|known| answers_for(&known.document.model));
        let replicas = replicas.map(|known| Arc::clone(&known.member.replica)).collect();
        Routes { versions: std::iter::once(own).chain(canaries).collect(), replicas, is_adapter: base.is_some() }
    }
}

fn is_kept_for(pool: &Pool, plan: &PlanId) -> bool {
    pool.plans.as_ref().is_some_and(|plans| plans.contains(plan))
}

fn members(among: &[&Known<'_>], fits: impl Fn(Option<(&str, &Pool)>) -> bool) -> Vec<Member> {
    among.iter().filter(|known| fits(known.pool)).map(|known| known.member.clone()).collect()
}

/// The pools that a plan names, in its order, as far as they are open to it; else those kept for it, then the shared ones.
fn tiers(among: &[&Known<'_>], pools: &HashMap<&str, &Pool>, plan_id: &PlanId, plan: &Plan) -> Tiers {
    let mut tiers: Tiers = match &plan.pools {
        Some(named) => {
            let open = |id: &&PoolId| {
                let pool = pools.get(id.as_str());
                pool.is_some_and(|pool| pool.plans.is_none() || is_kept_for(pool, plan_id))
            };
            let of = |id: &PoolId| members(among, |pool| pool.is_some_and(|(at, _)| at == id.as_str()));
            named.iter().filter(open).map(of).collect()
        }
        None => vec![
            members(among, |pool| pool.is_some_and(|(_, pool)| is_kept_for(pool, plan_id))),
            members(among, |pool| pool.is_none_or(|(_, pool)| pool.plans.is_none())),
        ],
    };
    tiers.retain(|tier| !tier.is_empty());
    tiers
}

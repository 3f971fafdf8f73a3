//! Which replica answers: by pools and versions, and among those that are well and have room by what they have to do.

mod budget;
mod choose;
mod guard;
pub(crate) mod health;
mod lease;
pub(crate) mod metrics;
mod outlier;
mod prefix;
mod replica;
pub(crate) mod scrape;
mod table;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use ledger::control::{ControlState, Replica as ReplicaDocument};
use ledger::ids::{ModelId, ModelVersion, PlanId, ReplicaId, RequestId};
use tokio::sync::Notify;

use crate::settings::{Routing, RoutingPolicy};
pub(crate) use budget::Budget;
use choose::{Candidate, Reason, choose};
pub(crate) use lease::Lease;
use metrics::RouteMetrics;
pub(crate) use prefix::Prefix;
use prefix::{Memory, Number};
pub(crate) use replica::{Address, Replica};
use replica::{Shared, Standing};
use table::{Member, Routes, Table, Tiers};

/// What a request needs of a replica. It names what control knows, so that one that has waited gets what is true then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    pub model: &'a ModelId,
    /// The plan of its tenant: which pools are open to it.
    pub plan: &'a PlanId,
    /// Chooses among the versions of the model.
    pub request: RequestId,
    /// What is to be read.
    pub prefix: &'a Prefix,
    /// Whether its first token will be seen.
    pub stream: bool,
}

/// What a pick came to.
#[derive(Debug)]
pub(crate) enum Picked {
    /// This one is to answer.
    Lease(Lease),
    /// Some could answer, but all of them have enough to do: try again when [`Pool::changed`] says so.
    Saturated,
    /// None could answer: none is there, or none is up, or all were tried.
    NoReplica,
}

/// All replicas that control names. They outlive the snapshots that name them, with what is open there and how they do.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    metrics: RouteMetrics,
    replicas: Mutex<HashMap<ReplicaId, Arc<Replica>>>,
    table: ArcSwap<Table>,
    memory: Memory,
    budget: Budget,
    turn: AtomicU64,
    created: AtomicU64,
    renewed: Notify,
}

impl Pool {
    /// No replicas yet.
    pub(crate) fn new(settings: Routing, metrics: RouteMetrics) -> Self {
        let memory = Memory::new(usize::try_from(settings.remembered_prefixes).unwrap_or(usize::MAX));
        Self {
            metrics,
            memory,
            budget: Budget::new(settings.retry_percent),
            shared: Arc::new(Shared::new(settings)),
            replicas: Mutex::default(),
            table: ArcSwap::default(),
            turn: AtomicU64::new(0),
            created: AtomicU64::new(0),
            renewed: Notify::new(),
        }
    }

    /// Takes what control says now. Replicas that it names still keep what is known of them; all others are forgotten, and
    /// what is open there comes to its end.
    pub(crate) fn take(&self, state: &ControlState) {
        let mut known = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        let table = Table::of(state, self.shared.settings.max_concurrent_requests, |id, document| {
            let same = known.get(id).filter(|replica| replica.is(document)).cloned();
            let replica = same.or_else(|| self.create(id, document))?;
            now.insert(id.clone(), Arc::clone(&replica));
            Some(replica)
        });
        known.keys().filter(|id| !now.contains_key(*id)).for_each(|gone| self.metrics.forget(gone.as_str()));
        *known = now;
        self.table.store(Arc::new(table));
        self.renewed.notify_one();
        self.shared.changed.notify_one();
    }

    fn create(&self, id: &ReplicaId, document: &ReplicaDocument) -> Option<Arc<Replica>> {
        let number = self.created.fetch_add(1, Ordering::Relaxed) % u64::from(Number::MAX);
        let number = Number::try_from(number).unwrap_or(0) + 1;
        let gauges = self.metrics.of(id.as_str());
        let created = Replica::new(id, document, number, gauges, Arc::clone(&self.shared));
        if created.is_none() {
            self.metrics.forget(id.as_str());
            tracing::error!(replica = %id, "its address is not http://host:port: it gets no requests");
        }
        created.map(Arc::new)
    }

    /// All of them, to be asked how they do.
    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Control names others than before.
    pub(crate) async fn renewed(&self) {
        self.renewed.notified().await;
    }

    /// All were asked for their metrics.
    pub(crate) fn told(&self) {
        let now = self.shared.now();
        self.all().iter().for_each(|replica| replica.show(now));
        // One has room now perhaps, or is back, or its words have become old.
        self.shared.changed.notify_one();
    }

    /// Fires when there may be room again: a request has ended, a replica is up, control has changed. It is meant for one
    /// who waits: each firing wakes one, or is kept for the next that waits.
    pub(crate) fn changed(&self) -> &Notify {
        &self.shared.changed
    }

    /// Retries that may be made.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// A retry is not made, since too many are.
    pub(crate) fn retry_refused(&self) {
        self.metrics.retries_refused.inc();
    }

    /// The version that a request is for. The one that serves it in the end is its lease's: another one may, if nobody is
    /// there for a canary.
    pub(crate) fn version(&self, model: &ModelId, request: RequestId) -> Option<ModelVersion> {
        let table = self.table.load();
        let routes = table.routes(model)?;
        Some(routes.version(routes.place_for(request)).version.clone())
    }

    /// The one to ask next.
    pub(crate) fn pick(&self, want: &Want<'_>, tried: &[ReplicaId]) -> Picked {
        self.pick_if(want, tried, true)
    }

    /// The one to ask next, whether it has room or not: for a request that had its turn and failed.
    pub(crate) fn pick_anyway(&self, want: &Want<'_>, tried: &[ReplicaId]) -> Option<Lease> {
        let picked = [true, false].map(|with_room| move || self.pick_if(want, tried, with_room));
        picked.into_iter().find_map(|pick| match pick() {
            Picked::Lease(lease) => Some(lease),
            Picked::Saturated | Picked::NoReplica => None,
        })
    }

    fn pick_if(&self, want: &Want<'_>, tried: &[ReplicaId], with_room: bool) -> Picked {
        let table = self.table.load();
        let Some(routes) = table.routes(want.model) else { return Picked::NoReplica };
        let place = routes.place_for(want.request);
        let pick = Pick { pool: self, want, tried, with_room, now: self.shared.now(), routes };
        match pick.of_version(place) {
            // A canary that nobody serves costs nobody an answer.
            Picked::NoReplica if place != 0 => pick.of_version(0),
            picked => picked,
        }
    }
}

/// One pick, with what it rests on.
struct Pick<'a> {
    pool: &'a Pool,
    want: &'a Want<'a>,
    tried: &'a [ReplicaId],
    with_room: bool,
    now: u64,
    routes: &'a Arc<Routes>,
}

impl Pick<'_> {
    fn of_version(&self, place: usize) -> Picked {
        let tiers = self.routes.version(place).tiers(self.want.plan);
        match self.among(tiers, place, |standing| matches!(standing, Standing::Fit(_))) {
            Picked::NoReplica => self.among(tiers, place, |standing| standing == Standing::Doubtful),
            picked => picked,
        }
    }

    /// The first tier that has room.
    fn among(&self, tiers: &Tiers, place: usize, fits: impl Fn(Standing) -> bool) -> Picked {
        let mut able = false;
        for (at, tier) in tiers.iter().enumerate() {
            let fits =
                |member: &&Member| fits(member.replica.standing(self.now)) && !self.tried.contains(&member.replica.id);
            able |= tier.iter().any(|member| fits(&member));
            if let Some((lease, reason)) = self.in_tier(tier, place, fits) {
                let metrics = &self.pool.metrics;
                match (at, reason) {
                    (0, Reason::Sticky) => metrics.sticky.inc(),
                    (0, Reason::Least) => metrics.least.inc(),
                    _ => metrics.spilled.inc(),
                }
                return Picked::Lease(lease);
            }
        }
        if able { Picked::Saturated } else { Picked::NoReplica }
    }

    fn in_tier(&self, tier: &[Member], place: usize, fits: impl Fn(&&Member) -> bool) -> Option<(Lease, Reason)> {
        let Pool { shared, memory, .. } = self.pool;
        let settings = &shared.settings;
        let prefix = self.want.prefix;
        // With one there is no choice.
        let remembers = settings.policy == RoutingPolicy::PrefixSticky && tier.len() > 1;
        let warmth = if remembers { memory.read(prefix) } else { prefix::Warmth::default() };
        let uncached = |member: &Member| prefix.tokens_beyond(warmth.of(member.replica.number));
        let turn = self.pool.turn.fetch_add(1, Ordering::Relaxed);
        // Evenly spread over 0 to 1, in whatever order.
        let dice = (turn as f64 * 0.618_033_988_749_895).fract();
        // Beginning at another one each time shares the load where all are equal.
        let first = usize::try_from(turn % tier.len().max(1) as u64).unwrap_or(0);
        // As often as another thread was faster, and no more.
        for _ in 0..=tier.len() {
            let (before, after) = tier.split_at(first);
            let able = after.iter().chain(before).filter(&fits);
            let able = able.filter(|member| !self.with_room || !member.replica.is_busy(member.limit, self.now));
            let candidates = able.map(|member| {
                let (unread, rate) = member.replica.prefill(self.now);
                let candidate = Candidate {
                    unread,
                    rate,
                    uncached: uncached(member),
                    warm: warmth.is_warm(member.replica.number, settings.warm_percent),
                    active: member.replica.active(self.now),
                    limit: member.limit,
                    reluctant: matches!(member.replica.standing(self.now), Standing::Fit(share) if dice >= share),
                };
                (member, candidate)
            });
            let (member, reason) = choose(settings, candidates)?;
            let limit = if self.with_room { member.limit } else { u32::MAX };
            let reads = (uncached(member), self.want.stream);
            if let Some(lease) = Lease::open(&member.replica, limit, self.routes, place, reads, &settings.ejection) {
                if remembers {
                    memory.note(prefix, member.replica.number);
                }
                return Some((lease, reason));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;

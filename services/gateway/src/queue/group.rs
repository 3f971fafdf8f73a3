//! Requests that want the replicas of one model: who waits there, and the lease that goes to the next of them.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use hashbrown::HashMap;
use ledger::control::ServiceTier;
use ledger::ids::{ModelId, ModelVersion, PlanId, RequestId, TenantId};
use prometheus::IntGauge;
use runtime::metrics::Histogram;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::counter::{Counter, Level};
use super::fairness::Fairness;
use super::floors::{BANDS, Floors, band_of};
use super::metrics::QueueMetrics;
use super::schedule::{Arrival, Place, Schedule};
use super::{NoTurn, Turn};
use crate::admit::policy::Tenant;
use crate::labels::OTHER;
use crate::route::{Picked, Pool, Prefix, Want};

/// Requests that may go to the same replicas: what one of them finds full, all of them do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    model: ModelId,
    version: Option<ModelVersion>,
    plan: PlanId,
}

impl Lane {
    /// That of this request.
    pub(super) fn of(want: &Want<'_>, pool: &Pool) -> Self {
        let version = pool.version(want.model, want.request);
        Self { model: want.model.clone(), version, plan: want.plan.clone() }
    }
}

/// What is known of a tenant here.
#[derive(Debug)]
pub(super) struct Seat {
    pub counter: Arc<Counter>,
    plan: PlanId,
    /// The time until a turn, of this plan.
    pub seconds: Histogram,
    /// Requests that wait, of this tier and plan.
    pub length: IntGauge,
}

/// Whoever waits.
#[derive(Debug)]
pub(super) struct Waiter {
    request: RequestId,
    prefix: Prefix,
    stream: bool,
    hand: oneshot::Sender<Result<Turn, NoTurn>>,
}

impl Waiter {
    /// Who wants this, and where the turn is handed over.
    pub(super) fn new(want: &Want<'_>, hand: oneshot::Sender<Result<Turn, NoTurn>>) -> Self {
        Self { request: want.request, prefix: want.prefix.clone(), stream: want.stream, hand }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Group {
    model: ModelId,
    levels: [Arc<Level>; BANDS],
    seats: [RwLock<HashMap<TenantId, Arc<Seat>>>; BANDS],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    schedule: Schedule<Lane, Waiter>,
    /// What the last look at each lane in which somebody waits came to.
    lanes: Vec<(Lane, Standing)>,
    fairness: [Fairness; BANDS],
    closed: bool,
}

/// How a lane stands, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its replicas have enough to do.
    Full(Instant),
    /// It has none that could answer.
    Absent(Instant),
}

impl State {
    fn saw(&mut self, lane: &Lane, absent: bool, now: Instant) {
        let standing = if absent { Standing::Absent(now) } else { Standing::Full(now) };
        match self.lanes.iter_mut().find(|(known, _)| known == lane) {
            Some((_, Standing::Absent(_))) if absent => {}
            Some((_, Standing::Full(_))) if !absent => {}
            Some((_, known)) => *known = standing,
            None => self.lanes.push((lane.clone(), standing)),
        }
    }
}

impl Group {
    /// Nobody waits.
    pub(super) fn new(model: ModelId, floor_percent: [u64; BANDS]) -> Self {
        let levels: [Arc<Level>; BANDS] = Default::default();
        let schedule = Schedule::new(levels.clone(), Floors::new(floor_percent));
        let state = State { schedule, lanes: Vec::new(), fairness: Default::default(), closed: false };
        Self { model, levels, seats: Default::default(), state: Mutex::new(state) }
    }

    /// No step under the lock can leave what it guards half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody waits.
    pub(super) fn has_waiting(&self) -> bool {
        self.levels.iter().any(|level| level.waiting.load(Relaxed) > 0)
    }

    /// What is known of a tenant.
    pub(super) fn seat(&self, tenant: &Tenant, metrics: &QueueMetrics) -> Arc<Seat> {
        let (tier, plan) = (tenant.plan.service_tier, &tenant.plan_id);
        let band = band_of(tier);
        let seats = &self.seats[band];
        let known = seats.read().unwrap_or_else(PoisonError::into_inner).get(&tenant.id).cloned();
        if let Some(seat) = known.filter(|seat| seat.plan == *plan) {
            return seat;
        }
        let mut seats = seats.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Counter::new(Arc::clone(&self.levels[band])));
        // What it was served stays, whatever its plan is called.
        let counter = seats.get(&tenant.id).map_or_else(new, |seat| Arc::clone(&seat.counter));
        let label = metrics.labels.plan(plan);
        let seconds = metrics.seconds.with_label_values(&[label]);
        let length = metrics.length.with_label_values(&[tier.as_str(), label]);
        let seat = Arc::new(Seat { counter, plan: plan.clone(), seconds, length });
        seats.insert(tenant.id.clone(), Arc::clone(&seat));
        seat
    }

    /// Takes a request in. None once the group is closed.
    pub(super) fn push(&self, arrival: Arrival<Lane, Waiter>, seat: &Seat) -> Option<Place<Lane>> {
        let mut state = self.lock();
        if state.closed { None } else { Some(state.schedule.push(arrival, &seat.counter)) }
    }

    /// Takes out a request that gives up. False if its turn has come, or it was sent away.
    pub(super) fn cancel(&self, place: &Place<Lane>) -> bool {
        let mut state = self.lock();
        let found = state.schedule.cancel(place).is_some();
        if state.schedule.is_empty() {
            state.lanes.clear();
        }
        found
    }

    /// How a lane in which somebody waits stood at the last look.
    pub(super) fn standing(&self, lane: &Lane) -> Option<Standing> {
        let state = self.lock();
        state.lanes.iter().find(|(known, _)| known == lane).map(|(_, standing)| *standing)
    }

    /// Looks whether there is room for a request that has just come, and gives it to those who are next.
    pub(super) fn look(&self, pool: &Pool, want: &Want<'_>, lane: &Lane, now: Instant) {
        let absent = match pool.pick(want, &[]) {
            Picked::Lease(lease) => {
                drop(lease);
                return self.pump(pool, now);
            }
            Picked::Saturated => false,
            Picked::NoReplica => true,
        };
        self.lock().saw(lane, absent, now);
    }

    /// Gives what room there is to those who are next.
    pub(super) fn pump(&self, pool: &Pool, now: Instant) {
        let mut state = self.lock();
        let mut full: Vec<Lane> = Vec::new();
        while let Some((place, waiter)) = state.schedule.next(&full) {
            if waiter.hand.is_closed() {
                // It has gone, and would only let the lease fall.
                state.schedule.cancel(&place);
                continue;
            }
            let Waiter { request, prefix, stream, .. } = waiter;
            let Lane { model, plan, .. } = &place.lane;
            let want = Want { model, plan, request: *request, prefix, stream: *stream };
            match pool.pick(&want, &[]) {
                Picked::Lease(lease) => {
                    let Some(gone) = state.schedule.take(&place, &full) else { continue };
                    // If it has gone this very moment, lease and charge are dropped: there is room again, and the next is asked.
                    let _ = gone.item.hand.send(Ok(Turn { lease, charge: gone.charge, waited: Duration::ZERO }));
                }
                Picked::Saturated => {
                    state.saw(&place.lane, false, now);
                    full.push(place.lane);
                }
                Picked::NoReplica => {
                    state.saw(&place.lane, true, now);
                    full.push(place.lane);
                }
            }
        }
        if state.schedule.is_empty() {
            state.lanes.clear();
        }
    }

    /// Sends all that wait away, and all that come.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for waiter in state.schedule.clear() {
            let _ = waiter.hand.send(Err(NoTurn::Draining));
        }
    }

    /// A second has passed: measures how fairly those that wait are served, and forgets tenants that left nothing behind.
    pub(super) fn tick(&self, metrics: &QueueMetrics) {
        let mut state = self.lock();
        let State { schedule, fairness, .. } = &mut *state;
        for (band, fairness) in fairness.iter_mut().enumerate() {
            let of_band = schedule.tenants().filter(|(at, ..)| *at == band);
            fairness.tick(of_band.map(|(_, tenant, counter)| (tenant.clone(), counter.service())));
            let tier = ServiceTier::ALL[band].as_str();
            // Those of several models are not one figure.
            let model = metrics.labels.model(&self.model);
            if model != OTHER {
                metrics.fairness.with_label_values(&[model, tier]).set(fairness.index());
            }
        }
        drop(state);
        for seats in &self.seats {
            let mut seats = seats.write().unwrap_or_else(PoisonError::into_inner);
            seats.retain(|_, seat| Arc::strong_count(seat) > 1 || !seat.counter.is_idle());
        }
    }
}

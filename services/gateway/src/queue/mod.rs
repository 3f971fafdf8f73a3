//! A request's turn at a replica: at once while there is room and nobody waits, else in a fair order.
//!
//! Requests for one model and its adapters wait together, in bands by the tier of their plan ([`floors`]), inside a band by what their tenant
//! was served by its weight ([`counter`]), and of one tenant as they came ([`schedule`]: all of this is pure). This is the
//! shell: it bounds what waits, hands leases over so that none is ever lost ([`group`]), and knows when to give up.

mod budget;
mod counter;
mod fairness;
mod floors;
mod group;
#[cfg(test)]
mod hand_over;
mod metrics;
#[cfg(test)]
mod properties;
mod schedule;
#[cfg(test)]
mod simulation;

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hashbrown::HashMap;
use ledger::ids::ModelId;
use runtime::{Metrics, Shutdown};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::admit::policy::Tenant;
use crate::labels::Labels;
use crate::route::{Lease, Picked, Pool, Want};
use crate::settings::{FloorPercent, Overload, QueueSettings};
pub(crate) use budget::{Budget, Held, Over};
pub(crate) use counter::Charge;
use floors::band_of;
use group::{Group, Lane, Seat, Standing, Waiter};
use metrics::QueueMetrics;
use schedule::{Arrival, Place};

/// Fairness is sampled this often, and room looked for that nobody told of.
const TICK: Duration = Duration::from_secs(1);

/// What a request asks of the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'a> {
    pub tenant: &'a Tenant,
    /// The model whose replicas answer: that of an adapter, or the model itself.
    pub base: &'a ModelId,
    pub want: Want<'a>,
    /// What it is expected to use: charged when it goes, corrected as it is known.
    pub tokens: u64,
    /// Of its body, held while it waits.
    pub bytes: u64,
    /// Its own end.
    pub total: Instant,
}

/// A turn: a replica that has room, and what the tenant is charged.
#[derive(Debug)]
pub(crate) struct Turn {
    pub lease: Lease,
    pub charge: Charge,
    /// How long it was waited for.
    pub waited: Duration,
}

/// A request that came in: it goes at once, or there is a place for it to wait.
#[derive(Debug)]
pub(crate) struct Entry {
    group: Arc<Group>,
    seat: Arc<Seat>,
    turn: Result<Turn, [Held; 2]>,
}

/// Why a request gets no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// It has waited long enough.
    Expired,
    /// No replica could answer, for long enough.
    NoReplica,
    /// The request's own time is over.
    Deadline,
    /// The gateway is about to stop.
    Draining,
}

impl NoTurn {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "timeout",
            Self::NoReplica => "no_replica",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    settings: QueueSettings,
    pool: Arc<Pool>,
    groups: RwLock<HashMap<ModelId, Arc<Group>>>,
    requests: Arc<Budget>,
    bytes: Arc<Budget>,
    bodies: Arc<Budget>,
    metrics: QueueMetrics,
    /// Somebody begins to wait.
    begun: Notify,
    closed: Shutdown,
    stopped: Shutdown,
}

impl Queue {
    /// Nobody waits.
    ///
    /// # Errors
    /// When the metrics hold a queue's already.
    pub(crate) fn new(
        settings: QueueSettings,
        overload: &Overload,
        pool: Arc<Pool>,
        metrics: &Metrics,
        labels: Arc<Labels>,
    ) -> Result<Self, runtime::metrics::Error> {
        Ok(Self {
            pool,
            groups: RwLock::default(),
            requests: Budget::new(settings.max_waiting, settings.max_waiting_per_tenant),
            bytes: Budget::new(settings.max_bytes, settings.max_bytes_per_tenant),
            bodies: Budget::new(overload.max_body_bytes_in_flight, overload.tenant_bytes()),
            metrics: QueueMetrics::new(metrics, labels)?,
            settings,
            begun: Notify::new(),
            closed: Shutdown::new(),
            stopped: Shutdown::new(),
        })
    }

    /// What bodies that are in memory may hold together.
    pub(crate) fn bodies(&self) -> &Arc<Budget> {
        &self.bodies
    }

    /// Takes a request in: with its turn, if there is room and nobody waits, else with a place to wait.
    ///
    /// # Errors
    /// Whose bound it would pass if it waited.
    pub(crate) fn enter(&self, need: &Need<'_>) -> Result<Entry, Over> {
        let tenant = need.tenant;
        let group = self.group(need.base);
        let seat = group.seat(tenant, &self.metrics);
        if !group.has_waiting()
            && let Picked::Lease(lease) = self.pool.pick(&need.want, &[])
        {
            seat.seconds.observe(0.0);
            let charge = seat.counter.charge(need.tokens, weight_of(tenant));
            return Ok(Entry { group, seat, turn: Ok(Turn { lease, charge, waited: Duration::ZERO }) });
        }
        let place = || Ok([self.requests.take(&tenant.id, 1)?, self.bytes.take(&tenant.id, need.bytes)?]);
        let place = place().inspect_err(|_| self.metrics.left.with_label_values(&["full"]).inc())?;
        Ok(Entry { group, seat, turn: Err(place) })
    }

    /// Waits for a turn, if it must. Dropped at any moment, the request leaves the queue, and a lease that was just handed to
    /// it goes to the next.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn turn(&self, need: &Need<'_>, entry: Entry) -> Result<Turn, NoTurn> {
        let Entry { group, seat, turn } = entry;
        let _place = match turn {
            Ok(turn) => return Ok(turn),
            Err(place) => place,
        };
        let begun = Instant::now();
        let mut turn = self.wait(need, &group, &seat, begun).await;
        match &mut turn {
            Ok(turn) => {
                turn.waited = begun.elapsed();
                seat.seconds.observe(turn.waited.as_secs_f64());
            }
            Err(no) => self.metrics.left.with_label_values(&[no.as_str()]).inc(),
        }
        turn
    }

    async fn wait(&self, need: &Need<'_>, group: &Group, seat: &Seat, begun: Instant) -> Result<Turn, NoTurn> {
        let tenant = need.tenant;
        let (hand, mut handed) = oneshot::channel();
        let lane = Lane::of(&need.want, &self.pool);
        let arrival = Arrival {
            band: band_of(tenant.plan.service_tier),
            tenant: tenant.id.clone(),
            weight: weight_of(tenant),
            lane: lane.clone(),
            tokens: need.tokens,
            item: Waiter::new(&need.want, hand),
        };
        let place = group.push(arrival, seat).ok_or(NoTurn::Draining)?;
        let waiting = Waiting::new(self, group, seat, place);
        self.begun.notify_one();
        // Room may have come after it was looked for and before this request could be told of it.
        group.look(&self.pool, &need.want, &lane, begun);
        let mut until = begun;
        loop {
            match timeout_at(until, &mut handed).await {
                Ok(Ok(turn)) => return waiting.over(turn),
                // Nobody drops the other end without a word.
                Ok(Err(_)) => return waiting.over(Err(NoTurn::Draining)),
                Err(_) => match self.patience(group, &lane, begun, need.total) {
                    Ok(later) => until = later,
                    // If it is not there any more, its turn came this very moment.
                    Err(no) if group.cancel(&waiting.place) => return waiting.over(Err(no)),
                    Err(_) => {}
                },
            }
        }
    }

    /// Until when a request may wait, as its lane stands. An error when that is past.
    fn patience(&self, group: &Group, lane: &Lane, begun: Instant, total: Instant) -> Result<Instant, NoTurn> {
        let QueueSettings { max_wait, no_replica_wait, .. } = self.settings;
        let now = Instant::now();
        let (until, no) = match group.standing(lane) {
            Some(Standing::Absent(since)) => (begun.max(since) + no_replica_wait, NoTurn::NoReplica),
            Some(Standing::Full(since)) => (begun.max(since) + max_wait, NoTurn::Expired),
            None => (now + TICK, NoTurn::Expired),
        };
        // However often replicas come and go.
        let until = until.min(begun + max_wait + no_replica_wait);
        if now >= total {
            return Err(NoTurn::Deadline);
        }
        if now >= until {
            return Err(no);
        }
        // A lane that loses its last replica does not tell.
        Ok(until.min(total).min(now + no_replica_wait.max(TICK)))
    }

    fn group(&self, model: &ModelId) -> Arc<Group> {
        let known = self.groups.read().unwrap_or_else(PoisonError::into_inner).get(model).cloned();
        known.unwrap_or_else(|| {
            let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
            let FloorPercent { default, flex } = self.settings.floor_percent;
            let new = || {
                let group = Group::new(model.clone(), [0, default.into(), flex.into()]);
                if self.closed.is_cancelled() {
                    group.close();
                }
                Arc::new(group)
            };
            Arc::clone(groups.entry(model.clone()).or_insert_with(new))
        })
    }

    fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Gives room to those who wait as it appears, until [`Queue::stop`].
    pub(crate) async fn run(self: Arc<Self>) -> Result<(), Infallible> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waits = self.requests.held() > 0;
            tokio::select! {
                () = self.stopped.cancelled() => return Ok(()),
                // While nobody waits, nobody needs to be told of room.
                () = self.pool.changed().notified(), if waits => {}
                () = self.begun.notified(), if !waits => {}
                _ = ticks.tick() => {
                    self.metrics.body_bytes.set(i64::try_from(self.bodies.held()).unwrap_or(i64::MAX));
                    self.groups().iter().for_each(|group| group.tick(&self.metrics));
                }
            }
            if self.requests.held() > 0 {
                let now = Instant::now();
                self.groups().iter().filter(|group| group.has_waiting()).for_each(|group| group.pump(&self.pool, now));
            }
        }
    }

    /// Sends all that wait away, and all that would have to: another gateway can serve them sooner than this one, which is
    /// about to stop.
    pub(crate) fn close(&self) {
        self.closed.trigger();
        self.groups().iter().for_each(|group| group.close());
    }

    /// Ends [`Queue::run`].
    pub(crate) fn stop(&self) {
        self.close();
        self.stopped.trigger();
    }
}

fn weight_of(tenant: &Tenant) -> u32 {
    tenant.plan.weight.unwrap_or(1)
}

/// A request that waits; dropped, it leaves.
struct Waiting<'a> {
    queue: &'a Queue,
    group: &'a Group,
    seat: &'a Seat,
    place: Place<Lane>,
    over: bool,
}

impl<'a> Waiting<'a> {
    fn new(queue: &'a Queue, group: &'a Group, seat: &'a Seat, place: Place<Lane>) -> Self {
        seat.length.inc();
        Self { queue, group, seat, place, over: false }
    }

    /// Its waiting has come to this.
    fn over(mut self, turn: Result<Turn, NoTurn>) -> Result<Turn, NoTurn> {
        self.over = true;
        if turn.is_ok() {
            self.queue.metrics.left.with_label_values(&["served"]).inc();
        }
        turn
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.seat.length.dec();
        if !self.over {
            // Whether it is still there or its lease is on the way: the lease is dropped with this request's end of the hand-over.
            self.group.cancel(&self.place);
            self.queue.metrics.left.with_label_values(&["cancelled"]).inc();
        }
    }
}

//! Who is next: bands by their tier, inside a band the tenant that was served least by its weight, and of a tenant the request
//! that came first. Pure: no clock, no chance, no I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ledger::ids::TenantId;

use super::counter::{Charge, Counter, Level, Mark, compare};
use super::floors::{BANDS, Floors};

/// A request that begins to wait.
#[derive(Debug)]
pub(crate) struct Arrival<L, T> {
    /// Its band's place.
    pub band: usize,
    pub tenant: TenantId,
    pub weight: u32,
    /// Requests of one lane find room at the same replicas.
    pub lane: L,
    /// The tokens that it is charged when it goes.
    pub tokens: u64,
    /// Whoever waits.
    pub item: T,
}

/// Where a request waits, until it goes or gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place<L> {
    pub band: usize,
    pub tenant: TenantId,
    pub lane: L,
    /// In the order of arrival.
    ticket: u64,
}

/// A request whose turn it is.
#[derive(Debug)]
pub(crate) struct Gone<T> {
    pub item: T,
    pub charge: Charge,
}

/// See the module. `L` names a lane, `T` is whoever waits.
#[derive(Debug)]
pub(crate) struct Schedule<L, T> {
    bands: [Band<L, T>; BANDS],
    floors: Floors,
    tickets: u64,
}

#[derive(Debug)]
struct Band<L, T> {
    level: Arc<Level>,
    tenants: BTreeMap<TenantId, Line<L, T>>,
}

/// What waits of one tenant.
#[derive(Debug)]
struct Line<L, T> {
    counter: Arc<Counter>,
    lanes: Vec<(L, BTreeMap<u64, Waiting<T>>)>,
}

#[derive(Debug)]
struct Waiting<T> {
    weight: u32,
    tokens: u64,
    item: T,
}

impl<L: Eq + Clone, T> Schedule<L, T> {
    /// Nobody waits. `levels`: those of the bands, shared with the counters.
    pub(crate) fn new(levels: [Arc<Level>; BANDS], floors: Floors) -> Self {
        let bands = levels.map(|level| Band { level, tenants: BTreeMap::new() });
        Self { bands, floors, tickets: 0 }
    }

    /// Takes a request in. `counter`: its tenant's.
    pub(crate) fn push(&mut self, arrival: Arrival<L, T>, counter: &Arc<Counter>) -> Place<L> {
        let Arrival { band: at, tenant, weight, lane, tokens, item } = arrival;
        let band = &mut self.bands[at];
        if !band.tenants.contains_key(&tenant) {
            counter.lift(band.lowest());
        }
        self.tickets += 1;
        let ticket = self.tickets;
        let line = band.tenants.entry(tenant.clone());
        let line = line.or_insert_with(|| Line { counter: Arc::clone(counter), lanes: Vec::new() });
        let waiting = Waiting { weight, tokens, item };
        match line.lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, requests)) => {
                requests.insert(ticket, waiting);
            }
            None => line.lanes.push((lane.clone(), BTreeMap::from([(ticket, waiting)]))),
        }
        band.level.waiting.fetch_add(1, Relaxed);
        Place { band: at, tenant, lane, ticket }
    }

    /// The request to go next among those whose lane is not in `full`, and who waits there.
    pub(crate) fn next(&self, full: &[L]) -> Option<(Place<L>, &T)> {
        let at = self.floors.next(self.could(full))?;
        self.bands[at].next(at, full)
    }

    /// Lets a request go, charged. `full`: the lanes that were passed over when it was chosen. None if it is not there any more.
    pub(crate) fn take(&mut self, place: &Place<L>, full: &[L]) -> Option<Gone<T>> {
        let could = self.could(full);
        let counter = Arc::clone(&self.bands[place.band].tenants.get(&place.tenant)?.counter);
        let Waiting { weight, tokens, item } = self.remove(place)?;
        self.floors.went(place.band, tokens, could);
        self.forget_debts(place.band);
        Some(Gone { item, charge: counter.charge(tokens, weight) })
    }

    /// Takes out a request that gives up. None if it is not there any more.
    pub(crate) fn cancel(&mut self, place: &Place<L>) -> Option<T> {
        let Waiting { item, .. } = self.remove(place)?;
        self.forget_debts(place.band);
        Some(item)
    }

    /// Takes out all that wait.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        let mut all = Vec::new();
        for band in &mut self.bands {
            let lines = std::mem::take(&mut band.tenants).into_values();
            let requests = lines.flat_map(|line| line.lanes).flat_map(|(_, requests)| requests.into_values());
            all.extend(requests.map(|waiting| waiting.item));
            band.level.waiting.store(0, Relaxed);
        }
        all
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.bands.iter().all(|band| band.tenants.is_empty())
    }

    /// The tenants that wait, by band.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = (usize, &TenantId, &Arc<Counter>)> {
        let of = |(at, band)| {
            let band: &Band<L, T> = band;
            band.tenants.iter().map(move |(tenant, line)| (at, tenant, &line.counter))
        };
        self.bands.iter().enumerate().flat_map(of)
    }

    fn could(&self, full: &[L]) -> [bool; BANDS] {
        std::array::from_fn(|at| self.bands[at].tenants.values().any(|line| line.first(full).is_some()))
    }

    fn forget_debts(&mut self, band: usize) {
        if self.bands[band].tenants.is_empty() {
            self.floors.empty(band);
        }
    }

    fn remove(&mut self, place: &Place<L>) -> Option<Waiting<T>> {
        let band = &mut self.bands[place.band];
        let line = band.tenants.get_mut(&place.tenant)?;
        let at = line.lanes.iter().position(|(lane, _)| *lane == place.lane)?;
        let requests = &mut line.lanes[at].1;
        let waiting = requests.remove(&place.ticket)?;
        if requests.is_empty() {
            line.lanes.swap_remove(at);
        }
        if line.lanes.is_empty() {
            band.tenants.remove(&place.tenant);
        }
        band.level.waiting.fetch_sub(1, Relaxed);
        Some(waiting)
    }
}

impl<L: Eq + Clone, T> Band<L, T> {
    /// Where a tenant that begins to wait must stand at least: with the last of those that wait.
    fn lowest(&self) -> Mark {
        let marks = self.tenants.values().map(|line| line.counter.served());
        marks.min_by(|one, other| compare(*one, *other)).unwrap_or_else(|| self.level.mark())
    }

    fn next(&self, at: usize, full: &[L]) -> Option<(Place<L>, &T)> {
        let heads = self.tenants.iter().filter_map(|(tenant, line)| {
            let (lane, ticket, waiting) = line.first(full)?;
            Some((line.counter.charged(), ticket, tenant, lane, waiting))
        });
        let (_, ticket, tenant, lane, waiting) =
            heads.min_by(|one, other| compare(one.0, other.0).then(one.1.cmp(&other.1)))?;
        Some((Place { band: at, tenant: tenant.clone(), lane: lane.clone(), ticket }, &waiting.item))
    }
}

impl<L: Eq, T> Line<L, T> {
    /// The first that came of those whose lane is not full.
    fn first(&self, full: &[L]) -> Option<(&L, u64, &Waiting<T>)> {
        let open = self.lanes.iter().filter(|(lane, _)| !full.contains(lane));
        let heads = open.filter_map(|(lane, requests)| {
            let (ticket, waiting) = requests.first_key_value()?;
            Some((lane, *ticket, waiting))
        });
        heads.min_by_key(|(_, ticket, _)| *ticket)
    }
}

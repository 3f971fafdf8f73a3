//! This gateway's own spend that is not yet in a tenant's balance: quotas add it to what the topic says.
//!
//! A count is added when it is appended to the spool, gets its offset when Kafka acknowledges it, and goes when a balance
//! is seen whose `as_of` lies above that offset. Between, it may be merged with its neighbours under the higher offset, so
//! that memory stays small however long Kafka or the fold are away: then it stays a little longer than it had to, but
//! never less is counted than was spent.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;
use ledger::ids::{ModelId, TenantId};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenCounts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Acknowledged counts of a cell are merged beyond so many.
const DELIVERED_MAX: usize = 32;
/// Periods of a tenant whose last balance is remembered.
const SEEN_MAX: usize = 4;

/// One count as it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// Who.
    pub tenant: TenantId,
    /// For which model.
    pub model: ModelId,
    /// When.
    pub occurred_at: Micros,
    /// Partition of the tokens topic.
    pub partition: i32,
    /// The source.
    pub source: Uuid,
    /// Its number in the partition.
    pub seq: u64,
    /// Tokens.
    pub counts: TokenCounts,
    /// Requests.
    pub requests: u64,
}

/// Tokens and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Tokens per class.
    pub counts: TokenCounts,
    /// Requests.
    pub requests: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.merge(other, u64::saturating_add);
    }

    fn take(&mut self, other: Self) {
        self.merge(other, u64::saturating_sub);
    }

    /// Bounded inputs never reach the ends; if they did, the sum stays at the end instead of wrapping.
    fn merge(&mut self, other: Self, with: fn(u64, u64) -> u64) {
        let (a, b) = (self.counts, other.counts);
        self.counts = TokenCounts {
            input: with(a.input, b.input),
            cached_input: with(a.cached_input, b.cached_input),
            output: with(a.output, b.output),
            reasoning: with(a.reasoning, b.reasoning),
        };
        self.requests = with(self.requests, other.requests);
    }
}

/// Spend whose offset is known to be at most `offset`: what is kept when a segment goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSpend {
    /// Who.
    pub tenant: TenantId,
    /// When.
    pub slot: Slot,
    /// For which model.
    pub model: ModelId,
    /// No offset of it is higher.
    pub offset: i64,
    /// How much.
    pub amount: Amount,
}

type Place = (Slot, ModelId);
/// By tenant, slot, model and partition.
type Sums = HashMap<(TenantId, Slot, ModelId, i32), Amount>;

#[derive(Debug, Default)]
struct Cell {
    /// All of it: delivered or not.
    total: Amount,
    /// By the highest offset of each part, rising.
    delivered: VecDeque<(i64, Amount)>,
}

impl Cell {
    fn deliver(&mut self, offset: i64, amount: Amount) {
        match self.delivered.back_mut() {
            // Resends and restarts can acknowledge out of order: under the higher offset it only stays longer.
            Some((last, sum)) if *last >= offset => sum.add(amount),
            _ => self.delivered.push_back((offset, amount)),
        }
        if self.delivered.len() > DELIVERED_MAX {
            // Every two neighbours become one.
            let merged = self.delivered.make_contiguous().chunks(2).map(|pair| {
                let mut sum = Amount::default();
                pair.iter().for_each(|(_, amount)| sum.add(*amount));
                (pair.last().map_or(0, |(offset, _)| *offset), sum)
            });
            self.delivered = merged.collect();
        }
    }
}

/// Counts of one partition that follow each other and are not yet acknowledged.
#[derive(Debug)]
struct Waiting {
    /// Order of the source, then number, of the last of them.
    last: (u64, u64),
    records: u64,
    parts: BTreeMap<(TenantId, Slot, ModelId), Amount>,
}

/// See the module. Pure: told what happens, in order.
#[derive(Debug, Default)]
pub struct OwnSpend {
    cells: HashMap<TenantId, BTreeMap<Place, Cell>>,
    waiting: HashMap<i32, VecDeque<Waiting>>,
    sources: Vec<Uuid>,
    backlog: u64,
    /// Sums of the segments that are there.
    by_segment: BTreeMap<u64, Sums>,
    /// Sums of segments that are gone.
    kept: Vec<KeptSpend>,
    /// The last balances seen per tenant: from, to, as of.
    seen: HashMap<TenantId, VecDeque<(Slot, Slot, i64)>>,
}

impl OwnSpend {
    fn order_of(&mut self, source: Uuid) -> u64 {
        let known = self.sources.iter().rposition(|known| *known == source);
        known.unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        }) as u64
    }

    fn cell(&mut self, tenant: &TenantId, place: Place) -> &mut Cell {
        if !self.cells.contains_key(tenant) {
            self.cells.insert(tenant.clone(), BTreeMap::new());
        }
        self.cells.entry(tenant.clone()).or_default().entry(place).or_default()
    }

    /// A count that is spent but could not be appended yet: counted until [`OwnSpend::withdrawn`].
    pub fn promised(&mut self, tenant: &TenantId, model: &ModelId, at: Micros, amount: Amount) {
        self.cell(tenant, (Slot::of(at), model.clone())).total.add(amount);
    }

    /// Takes back a promise, when what was promised is appended.
    pub fn withdrawn(&mut self, tenant: &TenantId, model: &ModelId, at: Micros, amount: Amount) {
        self.cell(tenant, (Slot::of(at), model.clone())).total.take(amount);
    }

    /// A count was appended to `segment`. Per partition in the order of the spool.
    pub fn appended(&mut self, spent: &Spent, segment: u64) {
        let amount = Amount { counts: spent.counts, requests: spent.requests };
        let slot = Slot::of(spent.occurred_at);
        let place = (spent.tenant.clone(), slot, spent.model.clone(), spent.partition);
        self.by_segment.entry(segment).or_default().entry(place).or_default().add(amount);
        self.cell(&spent.tenant, (slot, spent.model.clone())).total.add(amount);
        let last = (self.order_of(spent.source), spent.seq);
        self.backlog += 1;
        // With a long backlog one entry stands for many records; it is acknowledged with the last of them.
        let most = 1 + self.backlog / 256;
        let queue = self.waiting.entry(spent.partition).or_default();
        let joins = queue.back().is_some_and(|batch| batch.records < most);
        if !joins {
            queue.push_back(Waiting { last, records: 0, parts: BTreeMap::new() });
        }
        if let Some(batch) = queue.back_mut() {
            (batch.last, batch.records) = (last, batch.records + 1);
            batch.parts.entry((spent.tenant.clone(), slot, spent.model.clone())).or_default().add(amount);
        }
    }

    /// The record with this number was acknowledged at `offset`, and with it all before it in its partition.
    pub fn acknowledged(&mut self, source: Uuid, partition: i32, seq: u64, offset: i64) {
        let up_to = (self.order_of(source), seq);
        let Some(queue) = self.waiting.get_mut(&partition) else { return };
        let mut done = Vec::new();
        while queue.front().is_some_and(|batch| batch.last <= up_to) {
            done.extend(queue.pop_front());
        }
        for batch in done {
            self.backlog = self.backlog.saturating_sub(batch.records);
            for ((tenant, slot, model), amount) in batch.parts {
                // The fold may be faster than the delivery report: then the balance is here already.
                let is_shown = shown(&self.seen, &tenant, slot, offset);
                let cell = self.cell(&tenant, (slot, model));
                if is_shown {
                    cell.total.take(amount);
                    self.tidy(&tenant);
                } else {
                    cell.deliver(offset, amount);
                }
            }
        }
    }

    /// Spend of an earlier process, with a bound of its offsets.
    pub fn kept(&mut self, kept: &KeptSpend) {
        let cell = self.cell(&kept.tenant, (kept.slot, kept.model.clone()));
        cell.total.add(kept.amount);
        cell.deliver(kept.offset, kept.amount);
        self.kept.push(kept.clone());
    }

    /// A balance of `tenant` over `[from, to)` holds everything below the offset `as_of` of the tenant's partition: what
    /// of ours is in it goes.
    pub fn balance_seen(&mut self, tenant: &TenantId, from: Slot, to: Slot, as_of: i64) {
        let seen = self.seen.entry(tenant.clone()).or_default();
        match seen.iter_mut().find(|(f, t, _)| (*f, *t) == (from, to)) {
            Some((_, _, highest)) => *highest = as_of.max(*highest),
            None => seen.push_back((from, to, as_of)),
        }
        if seen.len() > SEEN_MAX {
            seen.pop_front();
        }
        let Some(cells) = self.cells.get_mut(tenant) else { return };
        for ((slot, _), cell) in cells.iter_mut() {
            if *slot < from || *slot >= to {
                continue;
            }
            while let Some((offset, amount)) = cell.delivered.front().copied() {
                if offset >= as_of {
                    break;
                }
                cell.delivered.pop_front();
                cell.total.take(amount);
            }
        }
        self.tidy(tenant);
    }

    /// Forgets what stands for nothing.
    fn tidy(&mut self, tenant: &TenantId) {
        let Some(cells) = self.cells.get_mut(tenant) else { return };
        cells.retain(|_, cell| cell.total != Amount::default() || !cell.delivered.is_empty());
        if cells.is_empty() {
            self.cells.remove(tenant);
        }
    }

    /// What `tenant` spent here over `[from, to)` that no balance has shown, per model.
    pub fn spend(&self, tenant: &TenantId, from: Slot, to: Slot) -> BTreeMap<ModelId, Amount> {
        let mut sums = BTreeMap::<ModelId, Amount>::new();
        for ((_, model), cell) in self.places(tenant, from, to) {
            match sums.get_mut(model) {
                Some(sum) => sum.add(cell.total),
                None => drop(sums.insert(model.clone(), cell.total)),
            }
        }
        sums
    }

    /// The same over all models.
    pub fn total(&self, tenant: &TenantId, from: Slot, to: Slot) -> Amount {
        let mut sum = Amount::default();
        self.places(tenant, from, to).for_each(|(_, cell)| sum.add(cell.total));
        sum
    }

    fn places(&self, tenant: &TenantId, from: Slot, to: Slot) -> impl Iterator<Item = (&Place, &Cell)> {
        let cells = self.cells.get(tenant).into_iter().flatten();
        cells.filter(move |((slot, _), _)| from <= *slot && *slot < to)
    }

    /// What has to be kept when all segments up to `through` go: their counts that no balance has shown, and what was kept
    /// before. `offset_of` gives an offset of a partition that none of them lies above.
    pub fn keep(&mut self, through: u64, offset_of: impl Fn(i32) -> i64) -> Vec<KeptSpend> {
        let later = self.by_segment.split_off(&(through + 1));
        for ((tenant, slot, model, partition), amount) in
            std::mem::replace(&mut self.by_segment, later).into_values().flatten()
        {
            self.kept.push(KeptSpend { tenant, slot, model, offset: offset_of(partition), amount });
        }
        let seen = &self.seen;
        self.kept.retain(|kept| !shown(seen, &kept.tenant, kept.slot, kept.offset));
        // However many segments go while no balance comes, there is one sum per tenant, slot and model.
        self.kept.sort_by(|a, b| (&a.tenant, a.slot, &a.model).cmp(&(&b.tenant, b.slot, &b.model)));
        self.kept.dedup_by(|next, first| {
            let same = (&next.tenant, next.slot, &next.model) == (&first.tenant, first.slot, &first.model);
            if same {
                first.amount.add(next.amount);
                first.offset = first.offset.max(next.offset);
            }
            same
        });
        self.kept.clone()
    }
}

/// True if a balance was seen that holds what was spent at `slot` up to `offset`.
fn shown(seen: &HashMap<TenantId, VecDeque<(Slot, Slot, i64)>>, tenant: &TenantId, slot: Slot, offset: i64) -> bool {
    seen.get(tenant).into_iter().flatten().any(|(from, to, as_of)| (*from..*to).contains(&slot) && offset < *as_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Uuid = Uuid::from_u128(1);
    const FROM: Slot = Slot(0);
    const TO: Slot = Slot(1_000_000_000);

    fn tenant() -> TenantId {
        "acme".parse().unwrap()
    }

    fn spent(seq: u64, output: u64) -> Spent {
        Spent {
            tenant: tenant(),
            model: "llama".parse().unwrap(),
            occurred_at: Micros(1_700_000_000_000_000 + seq as i64 * 60_000_000),
            partition: 3,
            source: SOURCE,
            seq,
            counts: TokenCounts { output, ..TokenCounts::default() },
            requests: 1,
        }
    }

    fn output(spend: &OwnSpend) -> u64 {
        spend.total(&tenant(), FROM, TO).counts.output
    }

    #[test]
    fn a_count_goes_when_a_balance_passes_its_offset_and_not_before() {
        let mut spend = OwnSpend::default();
        (1..=3).for_each(|seq| spend.appended(&spent(seq, 10), 1));
        spend.balance_seen(&tenant(), FROM, TO, 1000);
        assert_eq!(output(&spend), 30, "nothing is delivered yet");
        spend.acknowledged(SOURCE, 3, 1, 1000);
        assert_eq!(output(&spend), 30, "offset 1000 is not below as_of 1000");
        spend.balance_seen(&tenant(), FROM, TO, 1001);
        assert_eq!(output(&spend), 20);
        spend.acknowledged(SOURCE, 3, 3, 1002);
        spend.balance_seen(&tenant(), FROM, TO, 900);
        assert_eq!(output(&spend), 20, "an older balance changes nothing");
        spend.balance_seen(&tenant(), FROM, TO, 1003);
        assert_eq!(output(&spend), 0);
        assert!(spend.cells.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_balance_that_comes_before_the_delivery_report_is_not_waited_for_again() {
        let mut spend = OwnSpend::default();
        spend.appended(&spent(1, 10), 1);
        spend.balance_seen(&tenant(), FROM, TO, 51);
        spend.acknowledged(SOURCE, 3, 1, 50);
        assert_eq!(output(&spend), 0);
    }

    #[test]
    fn however_long_kafka_and_the_fold_are_away_the_sum_is_exact_and_the_memory_small() {
        let mut spend = OwnSpend::default();
        (1..=20_000).for_each(|seq| spend.appended(&Spent { occurred_at: Micros(0), ..spent(seq, 1) }, 1));
        assert!(spend.waiting[&3].len() < 6_000, "{}", spend.waiting[&3].len());
        (1..=20_000).for_each(|seq| spend.acknowledged(SOURCE, 3, seq, seq as i64));
        assert_eq!(output(&spend), 20_000);
        let cells: usize = spend.cells[&tenant()].values().map(|cell| cell.delivered.len()).sum();
        assert!(cells <= DELIVERED_MAX, "{cells}");
        spend.balance_seen(&tenant(), FROM, TO, 10_000);
        assert!(output(&spend) >= 10_001, "never less than what no balance shows: {}", output(&spend));
        spend.balance_seen(&tenant(), FROM, TO, 20_001);
        assert_eq!(output(&spend), 0);
    }

    #[test]
    fn sums_of_segments_that_go_are_one_per_slot_and_come_back() {
        let mut spend = OwnSpend::default();
        for seq in 1..=6 {
            spend.appended(&Spent { occurred_at: Micros(0), ..spent(seq, 10) }, seq);
            spend.acknowledged(SOURCE, 3, seq, seq as i64);
        }
        spend.keep(2, |_| 2);
        let kept = spend.keep(4, |_| 4);
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].offset, kept[0].amount.counts.output, kept[0].amount.requests), (4, 40, 4));
        let mut again = OwnSpend::default();
        again.kept(&kept[0]);
        assert_eq!(output(&again), 40);
        again.balance_seen(&tenant(), FROM, TO, 4);
        assert_eq!(output(&again), 40);
        again.balance_seen(&tenant(), FROM, TO, 5);
        assert_eq!(output(&again), 0);
        assert!(again.keep(9, |_| 0).is_empty());
    }
}

//! Balances: what each tenant has used in its periods, in one partition, up to an offset. From memory, ahead of the chunks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono_tz::Tz;
use ledger::control::{Deltas, UsageAdjustment};
use ledger::ids::{ModelId, TenantId};
use ledger::time::{Micros, Period, SLOT_MICROS, Slot};
use schemas::event::{BalanceUpdated, ModelUsage};
use sql::PartitionTotal;

use crate::event::Use;

/// Periods that began longer ago have no balance: no quota asks for them. Slots.
const KEPT_SLOTS: i64 = 70 * 24 * 4;
/// A period that ended longer ago is published only when something is added to it. Microseconds.
const FRESH_MICROS: i64 = 24 * 3600 * 1_000_000;

/// The time zones of tenants. A tenant that is not known has none.
pub(crate) trait Zones {
    fn zone(&self, tenant: &TenantId) -> Option<Tz>;
}

/// Corrections by what they correct.
type Corrections = BTreeMap<Key, BTreeMap<ModelId, Sums>>;

/// A tenant and one of its periods.
type Key = (TenantId, Period);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    input: i64,
    cached_input: i64,
    output: i64,
    reasoning: i64,
    requests: i64,
}

/// What is published of a sum. A correction that takes away more than is folded yet (a fold that begins anew, two that were made at
/// once) leaves nothing, until the rest of the usage is there.
fn shown(sum: i64, correction: i64) -> i64 {
    sum.saturating_add(correction).max(0)
}

impl Sums {
    fn correct(&mut self, deltas: &Deltas) {
        let add = |sum: &mut i64, n: i64| *sum = sum.saturating_add(n);
        add(&mut self.input, deltas.input);
        add(&mut self.cached_input, deltas.cached_input);
        add(&mut self.output, deltas.output);
        add(&mut self.reasoning, deltas.reasoning);
        add(&mut self.requests, deltas.requests);
    }

    /// Adds what was used. At the end of what 64 bits hold it stays there: a quota that fails shut, not one that wraps.
    fn add(&mut self, used: &Use<'_>) {
        let add = |sum: &mut i64, n: u64| *sum = sum.saturating_add(i64::try_from(n).unwrap_or(i64::MAX));
        add(&mut self.input, used.tokens.input);
        add(&mut self.cached_input, used.tokens.cached_input);
        add(&mut self.output, used.tokens.output);
        add(&mut self.reasoning, used.tokens.reasoning);
        add(&mut self.requests, used.requests);
    }
}

/// What is kept of a tenant: few periods, found in one look, as there may be many tenants.
#[derive(Debug)]
struct Tenant {
    /// The zone that its periods were computed in.
    zone: Option<Tz>,
    /// What it used in each. A calendar costs more than the sums: it is asked where none of them holds a time.
    periods: Vec<Summed>,
}

impl Tenant {
    /// The sums of the period that holds a time. A time outside of the calendar has none, and no quota; neither has a period that
    /// began before the horizon.
    fn at(&mut self, time: Micros, horizon: Slot) -> Option<&mut Summed> {
        let zone = self.zone.unwrap_or(Tz::UTC);
        let period = match self.periods.iter().find(|summed| summed.period.contains(time)) {
            Some(summed) => summed.period,
            None => Period::month_of(time, zone).ok().filter(|period| period.from >= horizon)?,
        };
        self.of(period)
    }

    /// The sums of a period, which begin with nothing.
    fn of(&mut self, period: Period) -> Option<&mut Summed> {
        let at = self.periods.iter().position(|summed| summed.period == period).unwrap_or(self.periods.len());
        if at == self.periods.len() {
            self.periods.push(Summed { period, models: BTreeMap::new(), is_dirty: false });
        }
        self.periods.get_mut(at)
    }
}

/// What was used in a period.
#[derive(Debug)]
struct Summed {
    period: Period,
    /// Empty where there are only corrections.
    models: BTreeMap<ModelId, Sums>,
    /// Whether it is among what is to be published.
    is_dirty: bool,
}

impl Summed {
    /// It is to be published.
    fn mark(&mut self, tenant: &TenantId, dirty: &mut Vec<Key>) {
        if !std::mem::replace(&mut self.is_dirty, true) {
            dirty.push((tenant.clone(), self.period));
        }
    }
}

/// The balances of one partition of the tokens topic.
#[derive(Debug)]
pub(crate) struct Balances {
    partition: i32,
    /// The next offset that is not in them.
    offset: i64,
    /// Periods that began before have no balance.
    horizon: Slot,
    tenants: HashMap<TenantId, Tenant>,
    /// Of the tenants whose usage is in this partition.
    corrections: Corrections,
    dirty: Vec<Key>,
    /// Tenants that control did not know, since this was asked last.
    unknown: u64,
}

/// The first slot that balances at `now` may need.
pub(crate) fn horizon(now: Micros) -> Slot {
    Slot(Slot::of(now).0.saturating_sub(KEPT_SLOTS))
}

impl Balances {
    /// Begins with what ClickHouse holds up to `offset`, from the horizon on. All of it is to be published.
    pub(crate) fn load(
        partition: i32,
        offset: i64,
        horizon: Slot,
        totals: &[PartitionTotal],
        zones: &impl Zones,
    ) -> Self {
        let (tenants, corrections, dirty) = (HashMap::new(), Corrections::new(), Vec::new());
        let mut balances = Self { partition, offset, horizon, tenants, corrections, dirty, unknown: 0 };
        for total in totals {
            balances.add(
                &Use {
                    tenant: &total.tenant,
                    model: &total.model,
                    occurred_at: total.slot.start(),
                    tokens: total.tokens,
                    requests: total.requests,
                },
                zones,
            );
        }
        balances
    }

    /// Takes the record at `offset`, with what it adds. Each offset is taken once: what is read again adds nothing.
    pub(crate) fn take(&mut self, offset: i64, used: Option<&Use<'_>>, zones: &impl Zones) {
        if offset < self.offset && !left_out!(BalanceOnce) {
            return;
        }
        self.offset = offset.saturating_add(1);
        if let Some(used) = used {
            self.add(used, zones);
        }
    }

    fn add(&mut self, used: &Use<'_>, zones: &impl Zones) {
        let known = match self.tenants.get_mut(used.tenant) {
            Some(known) => known,
            None => {
                let zone = zones.zone(used.tenant);
                self.unknown += u64::from(zone.is_none());
                self.tenants.entry(used.tenant.clone()).or_insert(Tenant { zone, periods: Vec::new() })
            }
        };
        let Some(summed) = known.at(used.occurred_at, self.horizon) else { return };
        match summed.models.get_mut(used.model) {
            Some(sums) => sums.add(used),
            None => summed.models.entry(used.model.clone()).or_default().add(used),
        }
        summed.mark(used.tenant, &mut self.dirty);
    }

    /// Takes the corrections that control holds now, of the tenants that belong here. Those that were not there before are to be
    /// published; so is one that is alone in its period.
    pub(crate) fn correct<'a>(
        &mut self,
        made: impl Iterator<Item = &'a UsageAdjustment>,
        belongs: impl Fn(&TenantId) -> bool,
        zones: &impl Zones,
    ) {
        let mut corrections = Corrections::new();
        for one in made.filter(|one| belongs(&one.tenant)) {
            let zone = zones.zone(&one.tenant).unwrap_or(Tz::UTC);
            let Ok(period) = Period::month_of(one.slot, zone) else { continue };
            if period.from < self.horizon {
                continue;
            }
            let models = corrections.entry((one.tenant.clone(), period)).or_default();
            models.entry(one.model.clone()).or_default().correct(&one.deltas);
        }
        let changed = |key: &&Key| corrections.get(*key) != self.corrections.get(*key);
        for (tenant, period) in corrections.keys().chain(self.corrections.keys()).filter(changed) {
            let zone = zones.zone(tenant);
            let known = self.tenants.entry(tenant.clone()).or_insert(Tenant { zone, periods: Vec::new() });
            known.of(*period).into_iter().for_each(|summed| summed.mark(tenant, &mut self.dirty));
        }
        self.corrections = corrections;
    }

    /// Whether a tenant's periods are other ones now.
    pub(crate) fn is_outdated(&self, zones: &impl Zones) -> bool {
        let other = |tenant, zone: Option<Tz>| zones.zone(tenant).unwrap_or(Tz::UTC) != zone.unwrap_or(Tz::UTC);
        self.tenants.iter().any(|(tenant, known)| other(tenant, known.zone))
    }

    /// How many tenants were met that control did not know, since this was asked last.
    pub(crate) fn take_unknown(&mut self) -> u64 {
        std::mem::take(&mut self.unknown)
    }

    /// Everything that a quota may ask for is to be published again; what is too old is dropped.
    pub(crate) fn refresh(&mut self, now: Micros) {
        self.horizon = self.horizon.max(horizon(now));
        let horizon = self.horizon;
        self.corrections.retain(|(_, period), _| period.from >= horizon);
        let recent = |period: &Period| period.to.start().0.saturating_add(FRESH_MICROS) > now.0;
        for (id, tenant) in &mut self.tenants {
            tenant.periods.retain(|summed| summed.period.from >= horizon);
            let recent = tenant.periods.iter_mut().filter(|summed| recent(&summed.period));
            recent.for_each(|summed| summed.mark(id, &mut self.dirty));
        }
    }

    /// Whether something is to be published.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What is to be published; it then counts as published.
    pub(crate) fn take_dirty(&mut self, control_offset: i64, now: Micros) -> Vec<BalanceUpdated> {
        let (dirty, tenants) = (std::mem::take(&mut self.dirty), &mut self.tenants);
        let updated = |key: Key| {
            let summed = tenants.get_mut(&key.0)?.periods.iter_mut().find(|summed| summed.period == key.1)?;
            summed.is_dirty = false;
            let usage = usage(&summed.models, self.corrections.get(&key));
            (!usage.is_empty()).then_some(BalanceUpdated {
                tenant_id: key.0,
                period_from: key.1.from.start(),
                period_to: key.1.to.start(),
                partition: self.partition,
                as_of: self.offset,
                control_offset,
                published_at: now,
                usage,
            })
        };
        dirty.into_iter().filter_map(updated).collect()
    }

    /// These were not published after all.
    pub(crate) fn unpublished(&mut self, updates: &[BalanceUpdated]) {
        let slot = |micros: Micros| Slot(micros.0.div_euclid(SLOT_MICROS));
        for update in updates {
            let period = Period { from: slot(update.period_from), to: slot(update.period_to) };
            let Some(known) = self.tenants.get_mut(&update.tenant_id) else { continue };
            let found = known.periods.iter_mut().find(|summed| summed.period == period);
            found.into_iter().for_each(|summed| summed.mark(&update.tenant_id, &mut self.dirty));
        }
    }
}

/// What is published of a period, by model. Nothing where there is neither usage nor a correction.
fn usage(sums: &BTreeMap<ModelId, Sums>, corrections: Option<&BTreeMap<ModelId, Sums>>) -> Vec<ModelUsage> {
    let (none, zero) = (BTreeMap::new(), Sums::default());
    let corrections = corrections.unwrap_or(&none);
    let models: BTreeSet<&ModelId> = sums.keys().chain(corrections.keys()).collect();
    let usage = models.into_iter().map(|model| {
        let (sum, more) = (sums.get(model).unwrap_or(&zero), corrections.get(model).unwrap_or(&zero));
        ModelUsage {
            model: model.clone(),
            input: shown(sum.input, more.input),
            cached_input: shown(sum.cached_input, more.cached_input),
            output: shown(sum.output, more.output),
            reasoning: shown(sum.reasoning, more.reasoning),
            requests: shown(sum.requests, more.requests),
        }
    });
    usage.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::control::Corrected;
    use ledger::tokens::TokenCounts;
    use proptest::prelude::*;

    struct Known(HashMap<TenantId, Tz>);

    impl Zones for Known {
        fn zone(&self, tenant: &TenantId) -> Option<Tz> {
            self.0.get(tenant).copied()
        }
    }

    fn at(text: &str) -> Micros {
        text.parse::<chrono::DateTime<chrono::Utc>>().unwrap().into()
    }

    fn id(text: &str) -> TenantId {
        text.parse().unwrap()
    }

    /// By tenant and period.
    fn sorted(mut published: Vec<BalanceUpdated>) -> Vec<BalanceUpdated> {
        published.sort_by_key(|balance| (balance.tenant_id.clone(), balance.period_from));
        published
    }

    const NOW: &str = "2026-04-10T00:00:00Z";

    fn empty() -> Balances {
        Balances::load(2, 0, horizon(at(NOW)), &[], &Known(HashMap::new()))
    }

    fn put(balances: &mut Balances, offset: i64, tenant: &TenantId, time: &str, output: u64, zones: &Known) {
        let tokens = TokenCounts { output, ..TokenCounts::default() };
        let model = "llama".parse().unwrap();
        let used = Use { tenant, model: &model, occurred_at: at(time), tokens, requests: 1 };
        balances.take(offset, Some(&used), zones);
    }

    #[test]
    fn a_record_counts_once_however_often_it_is_read() {
        let (zones, acme) = (Known(HashMap::new()), id("acme"));
        let mut balances = empty();
        for offset in [0, 1, 0, 1, 2] {
            put(&mut balances, offset, &acme, NOW, 10, &zones);
        }
        balances.take(3, None, &zones);
        let published = balances.take_dirty(7, at(NOW));
        assert_eq!(published.len(), 1);
        let update = &published[0];
        assert_eq!((update.usage[0].output, update.usage[0].requests), (30, 3));
        assert_eq!((update.as_of, update.control_offset, update.partition), (4, 7, 2));
        assert!(!balances.is_dirty());
        balances.unpublished(&published);
        assert_eq!(balances.take_dirty(7, at(NOW)), published, "what was not published is published again");
    }

    #[test]
    fn periods_are_the_tenants_own_and_a_new_zone_is_seen() {
        let (acme, ghost) = (id("acme"), id("ghost"));
        let mut zones = Known(HashMap::from([(acme.clone(), chrono_tz::Europe::Berlin)]));
        let mut balances = empty();
        // 22:30 UTC on March 31 is April in Berlin.
        put(&mut balances, 0, &acme, "2026-03-31T22:30:00Z", 1, &zones);
        put(&mut balances, 1, &ghost, "2026-03-31T22:30:00Z", 1, &zones);
        let published = sorted(balances.take_dirty(0, at(NOW)));
        assert_eq!(published[0].period_from, at("2026-03-31T22:00:00Z"));
        assert_eq!(published[1].period_from, at("2026-03-01T00:00:00Z"));
        assert_eq!((balances.take_unknown(), balances.take_unknown()), (1, 0));
        zones.0.insert(ghost.clone(), Tz::UTC);
        assert!(!balances.is_outdated(&zones), "the same periods as before");
        zones.0.insert(ghost, chrono_tz::Asia::Tokyo);
        assert!(balances.is_outdated(&zones));
    }

    #[test]
    fn a_period_that_is_not_whole_has_no_balance() {
        let (zones, acme) = (Known(HashMap::new()), id("acme"));
        let mut balances = empty();
        put(&mut balances, 0, &acme, "2025-12-31T00:00:00Z", 1, &zones);
        assert!(!balances.is_dirty());
        put(&mut balances, 1, &acme, "2026-03-02T00:00:00Z", 1, &zones);
        assert_eq!(balances.take_dirty(0, at(NOW)).len(), 1);
        balances.refresh(at("2026-04-01T12:00:00Z"));
        assert_eq!(balances.take_dirty(0, at(NOW)).len(), 1, "ended half a day ago");
        balances.refresh(at("2026-04-03T00:00:00Z"));
        assert!(!balances.is_dirty(), "ended days ago, and nothing was added");
        balances.refresh(at("2026-08-01T00:00:00Z"));
        put(&mut balances, 2, &acme, "2026-03-03T00:00:00Z", 1, &zones);
        assert!(!balances.is_dirty(), "what was dropped is not begun again from nothing");
    }

    fn made(tenant: &str, time: &str, output: i64) -> UsageAdjustment {
        let of = Corrected {
            tenant: id(tenant),
            project: "default".parse().unwrap(),
            model: "llama".parse().unwrap(),
            slot: Slot::of(at(time)),
        };
        let deltas = Deltas { output, requests: output.signum(), ..Deltas::default() };
        UsageAdjustment::new(of, deltas, "counted twice")
    }

    #[test]
    fn corrections_are_in_the_balances_of_their_period_and_never_below_nothing() {
        let (zones, acme) = (Known(HashMap::new()), id("acme"));
        let mut balances = empty();
        put(&mut balances, 0, &acme, NOW, 100, &zones);
        balances.take_dirty(0, at(NOW));
        let less = [made("acme", NOW, -30), made("acme", "2026-03-02T00:00:00Z", 5), made("elsewhere", NOW, 9)];
        balances.correct(less.iter(), |tenant| *tenant == acme, &zones);
        let output = |balances: &mut Balances| {
            let published = sorted(balances.take_dirty(8, at(NOW)));
            published.iter().map(|update| (update.usage[0].output, update.usage[0].requests)).collect::<Vec<_>>()
        };
        assert_eq!(output(&mut balances), [(5, 1), (70, 0)], "March and April, and of nobody else");
        balances.correct(less.iter(), |tenant| *tenant == acme, &zones);
        assert!(!balances.is_dirty(), "nothing new");
        let more = [made("acme", NOW, -30), made("acme", NOW, -80)];
        balances.correct(more.iter(), |_| true, &zones);
        assert_eq!(output(&mut balances), [(0, 0)], "what is alone in a period and gone is not published");
        put(&mut balances, 1, &acme, NOW, 15, &zones);
        assert_eq!(output(&mut balances), [(5, 0)], "it comes right when the usage is there");
    }

    proptest! {
        /// Wherever the process is started anew, from the sums up to there: the balances are the sums of all.
        #[test]
        fn balances_are_the_sums_however_often_they_begin_anew(
            uses in prop::collection::vec((0usize..3, 0i64..86_400 * 40, 0u64..1000), 1..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let tenants = [id("a"), id("b"), id("c")];
            let zones = Known(HashMap::from([(id("a"), chrono_tz::Asia::Kathmandu), (id("b"), chrono_tz::America::New_York)]));
            let model: ModelId = "m".parse().unwrap();
            let used = |&(tenant, second, output): &(usize, i64, u64)| {
                let occurred_at = Micros(at("2026-03-01T12:00:00Z").0 + second * 1_000_000);
                (tenants[tenant].clone(), occurred_at, TokenCounts { output, ..TokenCounts::default() })
            };
            let run = |balances: &mut Balances, from: usize| {
                for (offset, one) in uses.iter().enumerate().skip(from) {
                    let (tenant, occurred_at, tokens) = used(one);
                    let one = Use { tenant: &tenant, model: &model, occurred_at, tokens, requests: 1 };
                    balances.take(offset as i64, Some(&one), &zones);
                }
                balances.refresh(at(NOW));
                sorted(balances.take_dirty(0, at(NOW)))
            };
            let cut = cut.index(uses.len());
            let totals: Vec<_> = uses[..cut].iter().map(|one| {
                let (tenant, occurred_at, tokens) = used(one);
                PartitionTotal { tenant, model: model.clone(), slot: Slot::of(occurred_at), tokens, requests: 1 }
            }).collect();
            let mut whole = empty();
            let mut anew = Balances::load(2, cut as i64, horizon(at(NOW)), &totals, &zones);
            let (whole, anew) = (run(&mut whole, 0), run(&mut anew, cut.saturating_sub(3)));
            let sum: i64 = whole.iter().flat_map(|update| &update.usage).map(|usage| usage.output).sum();
            prop_assert_eq!(sum, uses.iter().map(|one| one.2 as i64).sum::<i64>());
            prop_assert_eq!(whole, anew);
        }
    }
}

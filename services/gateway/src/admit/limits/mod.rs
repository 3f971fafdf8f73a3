//! The accounts of all tenants, and reservations: what a request holds of them until it is settled.

mod account;
mod allowance;
mod levels;
pub(crate) mod told;
mod usual;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ledger::ids::{ModelId, TenantId};
use ledger::time::{Micros, Period};
use ledger::tokens::TokenCounts;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use runtime::Metrics;
use runtime::metrics::{Error as MetricsError, Name};
use stream::spool::Spool;

use self::account::{Account, Balance, hard_quota};
use self::levels::{Caps, Hold, Standing};
use self::usual::{Habit, Size};
use super::caller::Caller;
use super::request::Ask;
use crate::endpoint::Wire;
use crate::error::Refusal;
use crate::settings::Settings;

/// With less than this left, a request that names no `max_tokens` is refused rather than cut short at once.
const LEAST_DEFAULT: u64 = 16;
/// More is not held where nothing is refused for it, so that sums stay far from 64 bits.
const MOST: u64 = 1 << 40;

/// See the module.
#[derive(Debug)]
pub(crate) struct Limits {
    accounts: Mutex<HashMap<TenantId, Arc<Mutex<Account>>>>,
    spool: Spool,
    metrics: LimitMetrics,
}

/// What limits show of themselves.
#[derive(Debug)]
struct LimitMetrics {
    reserved: IntGauge,
    limited: IntCounterVec,
    over_quota: IntCounter,
}

/// What a request holds. Dropped without [`Reservation::settle`], all of it is given back.
#[derive(Debug)]
pub(crate) struct Reservation {
    account: Arc<Mutex<Account>>,
    spool: Spool,
    gauge: IntGauge,
    /// Still held of the period.
    held: u64,
    /// What it took of the levels; gone once it is given back.
    hold: Option<Hold>,
    /// Used so far, as checkpoints told.
    used: u64,
    habit: Option<(Habit, Size)>,
    sent: bool,
}

/// What was found out at admission.
#[derive(Debug)]
pub(crate) struct Room {
    pub reservation: Reservation,
    /// `max_tokens` to send in the client's place.
    pub max_tokens: Option<u64>,
}

/// No lock here guards anything that a panic elsewhere could leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Limits {
    /// No accounts yet.
    pub(crate) fn new(spool: Spool, metrics: &Metrics) -> Result<Self, MetricsError> {
        let metrics = LimitMetrics {
            reserved: metrics.gauge(Name::GatewayReservedTokens)?,
            limited: metrics.counters(Name::GatewayLimited, &["limit"])?,
            over_quota: metrics.counter(Name::GatewayOverQuota)?,
        };
        Ok(Self { accounts: Mutex::default(), spool, metrics })
    }

    fn account(&self, tenant: &TenantId) -> Arc<Mutex<Account>> {
        let mut accounts = lock(&self.accounts);
        if let Some(account) = accounts.get(tenant) {
            return Arc::clone(account);
        }
        Arc::clone(accounts.entry(tenant.clone()).or_default())
    }

    /// A balance of the topic. What of our own spend is in it stops being counted beside it, in the same step.
    pub(crate) fn balance(&self, tenant: &TenantId, period: Period, as_of: i64, tokens: u64) {
        let account = self.account(tenant);
        let mut account = lock(&account);
        if account.balance(Balance { period, as_of, tokens }) {
            self.spool.balance_seen(tenant, period.from, period.to, as_of);
        }
    }

    /// Holds room for a request, in one step over all limits of the caller.
    pub(crate) fn reserve(
        &self,
        caller: &Caller,
        model: &ModelId,
        ask: &Ask,
        settings: &Settings,
        now: Micros,
    ) -> (Standing, Result<Room, Refusal>) {
        let shared = self.account(&caller.tenant.id);
        let mut account = lock(&shared);
        let caps = caps(caller);
        let taken = self.take(&mut account, caller, &Asked { model, ask, settings }, now);
        let mut standing = account.levels.standing(&caps, now);
        drop(account);
        match taken {
            Ok(Taken { want, held, hold, over_quota }) => {
                standing.over_quota = over_quota;
                self.metrics.over_quota.inc_by(u64::from(over_quota));
                self.metrics.reserved.add(gauge(held));
                let Want { max_tokens, habit, .. } = want;
                let (spool, gauge) = (self.spool.clone(), self.metrics.reserved.clone());
                let (hold, used, sent) = (Some(hold), 0, false);
                let reservation = Reservation { account: shared, spool, gauge, held, hold, used, habit, sent };
                (standing, Ok(Room { reservation, max_tokens }))
            }
            Err(refusal) => {
                self.metrics.limited.with_label_values(&[refusal.limit().unwrap_or_default()]).inc();
                (standing, Err(refusal))
            }
        }
    }

    fn take(&self, account: &mut Account, caller: &Caller, asked: &Asked<'_>, now: Micros) -> Result<Taken, Refusal> {
        let plan = &caller.tenant.plan;
        let period = account.period(caller.tenant.time_zone, now).filter(|_| plan.tokens_per_period.is_some());
        let own = period.map_or(0, |period| self.spent(&caller.tenant.id, period));
        let want = asked.want(account, caller, account.left(plan, period, own));
        let held = if hard_quota(plan).is_some() { want.bound } else { want.estimate };
        let over_quota = account.hold(plan, period, own, held).map_err(told::quota)?;
        match account.levels.take(&caps(caller), want.estimate, now) {
            Ok(hold) => Ok(Taken { want, held, hold, over_quota }),
            Err(limited) => {
                account.release(held);
                Err(told::limited(limited))
            }
        }
    }

    fn spent(&self, tenant: &TenantId, period: Period) -> u64 {
        let amount = self.spool.total_spend(tenant, period.from, period.to);
        amount.counts.total().unwrap_or(u64::MAX)
    }
}

fn caps(caller: &Caller) -> Caps<'_> {
    Caps {
        plan: ledger::control::Limits {
            requests_per_minute: caller.tenant.plan.requests_per_minute,
            tokens_per_minute: caller.tenant.plan.tokens_per_minute,
            concurrent_requests: caller.tenant.plan.concurrent_requests,
        },
        project: (&caller.project, caller.project_limits),
        key: (caller.key, caller.key_limits),
    }
}

/// A request that asks for room.
struct Asked<'a> {
    model: &'a ModelId,
    ask: &'a Ask,
    settings: &'a Settings,
}

/// What it got.
struct Taken {
    want: Want,
    held: u64,
    hold: Hold,
    over_quota: bool,
}

/// What a request may use, and what such requests usually do.
struct Want {
    /// The most: what a hard quota must have room for.
    bound: u64,
    /// What limits that bend are asked for.
    estimate: u64,
    max_tokens: Option<u64>,
    /// Where the request learns, if it is worth knowing.
    habit: Option<(Habit, Size)>,
}

impl Asked<'_> {
    /// `left`: what a hard quota still gives.
    fn want(&self, account: &mut Account, caller: &Caller, left: u64) -> Want {
        let Self { model, ask, settings } = self;
        let per_minute = caps(caller).tokens_per_minute();
        let input_bound = ask.input_bound(settings);
        let answers = ask.output_bound(1);
        let size = Size { input_bound, answers };
        let limited = per_minute.is_some() || caller.tenant.plan.tokens_per_period.is_some();
        // What costs nothing teaches nothing of what costs.
        if !limited || ask.endpoint.wire == Wire::Free {
            let most = ask.output_bound(ask.max_tokens.unwrap_or(settings.default_max_tokens));
            let bound = input_bound.saturating_add(most);
            return Want { bound, estimate: bound.min(MOST), max_tokens: None, habit: None };
        }
        let habit = account.usual.habit(caller.key, model);
        let limits = &settings.limits;
        let usual = account.usual.estimate(habit, size).map(|(input, output)| limits.with_margin(input, output));
        let first = (input_bound, limits.first_estimate_tokens.saturating_mul(answers));
        let (input, output) = usual.unwrap_or(first);
        let input = input.min(input_bound);
        let max_tokens = ask.max_tokens.is_none().then(|| {
            let wanted = ask.default_max_tokens(settings.default_max_tokens);
            let room =
                per_minute.map_or(u64::MAX, |limit| limit.saturating_sub(input)).min(left.saturating_sub(input_bound));
            let each = room / answers.max(1);
            if each >= LEAST_DEFAULT.min(wanted) { wanted.min(each) } else { wanted }
        });
        let most = ask.output_bound(ask.max_tokens.or(max_tokens).unwrap_or(settings.default_max_tokens));
        let bound = input_bound.saturating_add(most);
        // A limit per minute limits the rate, not the size of a request: one that is larger waits for a full bucket, and
        // leaves a debt.
        let estimate = input.saturating_add(output.min(most)).min(per_minute.unwrap_or(MOST).max(1));
        Want { bound, estimate, max_tokens, habit: Some((habit, size)) }
    }
}

fn gauge(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

impl Reservation {
    /// The request goes to a replica: from now on it counts as one, whatever becomes of it.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
    }

    /// Does `spend`, which puts tokens into the spool's own spend and returns how many, and holds as many less, in one
    /// step: nobody sees them twice or not at all. A request that has used more than it took of a minute owes it from now.
    pub(crate) fn spend<T>(&mut self, spend: impl FnOnce() -> (T, u64)) -> T {
        let mut account = lock(&self.account);
        let (result, tokens) = spend();
        let released = tokens.min(self.held);
        account.release(released);
        self.held -= released;
        self.gauge.sub(gauge(released));
        self.used = self.used.saturating_add(tokens);
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.tokens() < self.used) {
            account.levels.correct(hold, self.used, self.spool.now());
        }
        result
    }

    /// Does `finish`, which puts the request's last tokens into the spool's own spend and returns what the request used
    /// in all; then nothing is held any more. One step.
    pub(crate) fn settle<T>(mut self, finish: impl FnOnce() -> (T, TokenCounts)) -> T {
        let shared = Arc::clone(&self.account);
        let mut account = lock(&shared);
        let (result, counts) = finish();
        self.give_back(&mut account, counts);
        drop(account);
        result
    }

    /// All that is held; what was used stays used. Once.
    fn give_back(&mut self, account: &mut Account, counts: TokenCounts) {
        let Some(mut hold) = self.hold.take() else { return };
        let held = std::mem::take(&mut self.held);
        account.release(held);
        self.gauge.sub(gauge(held));
        let now = self.spool.now();
        let input = counts.input.saturating_add(counts.cached_input);
        let output = counts.output.saturating_add(counts.reasoning);
        account.levels.correct(&mut hold, input.saturating_add(output), now);
        account.levels.close(hold, self.sent, now);
        if let Some((habit, size)) = self.habit.filter(|_| input > 0) {
            account.usual.learn(habit, size, input, output);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.hold.is_some() {
            let shared = Arc::clone(&self.account);
            self.give_back(&mut lock(&shared), TokenCounts::default());
        }
    }
}

//! The accounts of all tenants, and reservations: what a request holds of them until it is settled.

mod account;
mod accounts;
mod allowance;
mod levels;
pub(crate) mod together;
pub(crate) mod told;
mod usual;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ledger::ids::{ModelId, TenantId};
use ledger::time::{Micros, Period};
use ledger::tokens::TokenCounts;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use runtime::metrics::{Error as MetricsError, Name};
use runtime::{Metrics, Tasks};
use stream::spool::Spool;

use self::account::{Account, Balance, hard_quota};
use self::accounts::Accounts;
use self::levels::{Caps, Claim, Hold, Limited, Standing};
use self::together::{Answer, Link, Membership};
use self::usual::{Expected, Habit, Size};
use super::caller::Caller;
use super::request::Ask;
use crate::endpoint::Wire;
use crate::error::Refusal;
use crate::settings::Settings;

/// With less than this left, a request that names no `max_tokens` is refused rather than cut short at once.
const LEAST_DEFAULT: u64 = 16;
/// What a membership may take to leave, beside the time that open requests have.
const LEAVE: Duration = Duration::from_secs(2);
/// More is not held where nothing is refused for it, so that sums stay far from 64 bits.
const MOST: u64 = 1 << 40;

/// See the module.
#[derive(Debug)]
pub(crate) struct Limits {
    accounts: Arc<Accounts>,
    metrics: LimitMetrics,
    /// Until it is let loose.
    membership: Mutex<Option<Membership>>,
}

/// What limits show of themselves.
#[derive(Debug)]
struct LimitMetrics {
    reserved: IntGauge,
    limited: IntCounterVec,
    over_quota: IntCounter,
    apart: IntCounter,
}

/// What a request holds. Dropped without [`Reservation::settle`], all of it is given back.
#[derive(Debug)]
pub(crate) struct Reservation {
    accounts: Arc<Accounts>,
    account: Arc<Mutex<Account>>,
    gauge: IntGauge,
    /// Still held of the period.
    held: u64,
    /// What it took of the levels: not there yet, or given back.
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
    /// Tokens that the request is expected to use.
    pub expected: u64,
}

impl Limits {
    /// No accounts yet.
    ///
    /// # Errors
    /// When the metrics hold these already.
    pub(crate) fn new(spool: Spool, metrics: &Metrics, settings: &Settings) -> Result<Self, MetricsError> {
        let (link, membership) = together(metrics, settings)?.unzip();
        let metrics = LimitMetrics {
            reserved: metrics.gauge(Name::GatewayReservedTokens)?,
            limited: metrics.counters(Name::GatewayLimited, &["limit"])?,
            over_quota: metrics.counter(Name::GatewayOverQuota)?,
            apart: metrics.counter(Name::GatewayLimitsApart)?,
        };
        let accounts = Arc::new(Accounts::new(spool, link));
        Ok(Self { accounts, metrics, membership: Mutex::new(membership) })
    }

    /// Keeps limits together with other gateways, if that is set, until nothing is open after a shutdown.
    pub(crate) fn follow(&self, tasks: &Tasks, drain: Duration) {
        let membership = self.membership.lock().ok().and_then(|mut membership| membership.take());
        if let Some(membership) = membership {
            let (accounts, shutdown) = (Arc::clone(&self.accounts), tasks.shutdown().clone());
            tasks.spawn("limits in Redis", drain + LEAVE, membership.run(accounts, drain, shutdown));
        }
    }

    /// A balance of the topic. What of our own spend is in it stops being counted beside it, in the same step.
    pub(crate) fn balance(&self, tenant: &TenantId, period: Period, as_of: i64, tokens: u64) {
        let account = self.accounts.of(tenant);
        let mut account = self.accounts.lock(&account);
        if account.balance(Balance { period, as_of, tokens }) {
            self.accounts.spool.balance_seen(tenant, period.from, period.to, as_of);
        }
    }

    /// Holds room for a request, over all limits of the caller: in one step, or in two where gateways keep them together.
    /// Given up before it is done, it holds nothing.
    pub(crate) async fn reserve(
        &self,
        caller: &Caller,
        model: &ModelId,
        ask: &Ask,
        settings: &Settings,
    ) -> (Standing, Result<Room, Refusal>) {
        let account = self.accounts.of(&caller.tenant.id);
        let caps = caps(caller);
        let asked = Asked { model, ask, settings };
        let began = self.accounts.with(&account, |state, now| {
            let began = self.begin(state, caller, &caps, &asked, now);
            (state.levels.standing(&caps, now), began)
        });
        let (mut standing, mut result) = match began {
            (standing, Err(refusal)) => (standing, Err(refusal)),
            (standing, Ok((begun, taken))) => {
                let over_quota = begun.over_quota;
                let mut room = self.room(account, begun);
                let (standing, taken) = match taken {
                    Ok(hold) => (standing, Ok(hold)),
                    // The room holds the period's tokens meanwhile; dropped, it gives them back.
                    Err(claim) => self.ask_all(&caller.tenant.id, &room.reservation.account, &caps, claim).await,
                };
                let held = taken.map_err(told::limited).map(|hold| {
                    room.reservation.hold = Some(hold);
                    self.metrics.over_quota.inc_by(u64::from(over_quota));
                    room
                });
                (Standing { over_quota, ..standing }, held)
            }
        };
        if let Err(refusal) = &mut result {
            standing.over_quota = false;
            self.metrics.limited.with_label_values(&[refusal.limit().unwrap_or_default()]).inc();
        }
        (standing, result)
    }

    /// Holds the period's tokens, and takes from all levels that are kept here, or says what is to be asked of all
    /// gateways.
    fn begin(
        &self,
        account: &mut Account,
        caller: &Caller,
        caps: &Caps<'_>,
        asked: &Asked<'_>,
        now: Micros,
    ) -> Result<(Begun, Result<Hold, Claim>), Refusal> {
        let plan = &caller.tenant.plan;
        let period = account.period(caller.tenant.time_zone, now).filter(|_| plan.tokens_per_period.is_some());
        let own = period.map_or(0, |period| self.spent(&caller.tenant.id, period));
        let want = asked.want(account, caller, account.left(plan, period, own));
        let held = if hard_quota(plan).is_some() { want.bound } else { want.estimate };
        let over_quota = account.hold(plan, period, own, held).map_err(told::quota)?;
        let taken = match account.levels.claim(caps, want.estimate) {
            Some(claim) => Err(claim),
            None => Ok(account.levels.take(caps, want.estimate, now).map_err(|limited| {
                account.release(held);
                told::limited(limited)
            })?),
        };
        Ok((Begun { want, held, over_quota }, taken))
    }

    fn room(&self, account: Arc<Mutex<Account>>, begun: Begun) -> Room {
        let Begun { want: Want { max_tokens, expected, habit, .. }, held, .. } = begun;
        self.metrics.reserved.add(gauge(held));
        let (accounts, gauge) = (Arc::clone(&self.accounts), self.metrics.reserved.clone());
        let reservation = Reservation { accounts, account, gauge, held, hold: None, used: 0, habit, sent: false };
        Room { reservation, max_tokens, expected }
    }

    /// Asks all gateways together for a claim; without an answer it is taken of this one's share.
    async fn ask_all(
        &self,
        tenant: &TenantId,
        account: &Mutex<Account>,
        caps: &Caps<'_>,
        claim: Claim,
    ) -> (Standing, Result<Hold, Limited>) {
        let tokens = claim.tokens;
        let answer = match &self.accounts.link {
            Some(link) => link.take(tenant, claim).await,
            None => None,
        };
        self.accounts.with(account, |account, now| {
            let levels = &mut account.levels;
            let granted = match answer {
                Some(Answer::Refused(claim, states)) => {
                    levels.heard(&claim, &states, now);
                    return (levels.standing(caps, now), Err(claim.refused(&states, now)));
                }
                Some(Answer::Granted(grant)) => {
                    let (claim, states) = grant.claim();
                    let hold = levels.granted(caps, claim, states, now);
                    // What was granted to who this gateway was before is given back.
                    if hold.is_some() {
                        grant.kept();
                    }
                    hold
                }
                None => None,
            };
            let taken = granted.map_or_else(
                || {
                    self.metrics.apart.inc();
                    levels.take(caps, tokens, now)
                },
                Ok,
            );
            (levels.standing(caps, now), taken)
        })
    }

    fn spent(&self, tenant: &TenantId, period: Period) -> u64 {
        let amount = self.accounts.spool.total_spend(tenant, period.from, period.to);
        amount.counts.total().unwrap_or(u64::MAX)
    }
}

/// The link to other gateways, and what serves it, where that is set.
fn together(metrics: &Metrics, settings: &Settings) -> Result<Option<(Link, Membership)>, MetricsError> {
    let Some(redis) = &settings.redis else { return Ok(None) };
    let Ok(client) = redis.client() else {
        // Checked with the settings. What is wrong with it is not repeated: it could be a part of the password.
        tracing::error!("gateway.redis.url is no address of Redis: this gateway keeps its limits alone");
        return Ok(None);
    };
    let (link, calls) = Link::new(redis.gateways);
    let membership = Membership::new(redis.clone(), client, &settings.name, calls, metrics)?;
    Ok(Some((link, membership)))
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

/// What it holds of the period.
struct Begun {
    want: Want,
    held: u64,
    over_quota: bool,
}

/// What a request may use, and what such requests usually do.
struct Want {
    /// The most: what a hard quota must have room for.
    bound: u64,
    /// What limits that bend are asked for.
    estimate: u64,
    /// What it is charged before it is known.
    expected: u64,
    max_tokens: Option<u64>,
    /// Where the request learns, if it is worth knowing.
    habit: Option<(Habit, Size)>,
}

impl Asked<'_> {
    /// `left`: what a hard quota still gives.
    fn want(&self, account: &mut Account, caller: &Caller, left: u64) -> Want {
        let Self { model, ask, settings } = self;
        let input_bound = ask.input_bound(settings);
        let size = Size { input_bound, answers: ask.output_bound(1) };
        // What costs nothing teaches nothing of what costs.
        let habit = (ask.endpoint.wire != Wire::Free).then(|| account.usual.habit(caller.key, model));
        let seen = habit.and_then(|habit| account.usual.expected(habit, size));
        let limits = &settings.limits;
        let first = (input_bound, limits.first_estimate_tokens.saturating_mul(size.answers));
        let (input, output) =
            seen.map_or(first, |Expected { most: (input, output), .. }| limits.with_margin(input, output));
        let input = input.min(input_bound);
        let per_minute = caps(caller).tokens_per_minute();
        let limited = habit.is_some() && (per_minute.is_some() || caller.tenant.plan.tokens_per_period.is_some());
        let max_tokens = (limited && ask.max_tokens.is_none()).then(|| {
            let wanted = ask.default_max_tokens(settings.default_max_tokens);
            let room =
                per_minute.map_or(u64::MAX, |limit| limit.saturating_sub(input)).min(left.saturating_sub(input_bound));
            let each = room / size.answers.max(1);
            if each >= LEAST_DEFAULT.min(wanted) { wanted.min(each) } else { wanted }
        });
        let named = ask.max_tokens.or(max_tokens);
        let most = ask.output_bound(named.unwrap_or(settings.default_max_tokens));
        let bound = input_bound.saturating_add(most);
        // A limit per minute limits the rate, not the size of a request: one that is larger waits for a full bucket, and
        // leaves a debt.
        let estimate = input.saturating_add(output.min(most)).min(per_minute.unwrap_or(MOST).max(1));
        let expected = match seen {
            Some(Expected { mean: (input, output), .. }) => input.min(input_bound).saturating_add(output.min(most)),
            None => {
                let unseen = settings.queue.expected_output_tokens;
                input_bound.saturating_add(ask.output_bound(named.map_or(unseen, |named| named.min(unseen))))
            }
        };
        Want { bound, estimate, expected, max_tokens, habit: habit.map(|habit| (habit, size)) }
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
        let Self { accounts, account, gauge: reserved, held, hold, used, .. } = self;
        accounts.with(account, |account, now| {
            let (result, tokens) = spend();
            let released = tokens.min(*held);
            account.release(released);
            *held -= released;
            reserved.sub(gauge(released));
            *used = used.saturating_add(tokens);
            if let Some(hold) = hold.as_mut().filter(|hold| hold.tokens() < *used) {
                account.levels.correct(hold, *used, now);
            }
            result
        })
    }

    /// Does `finish`, which puts the request's last tokens into the spool's own spend and returns what the request used
    /// in all; then nothing is held any more. One step.
    pub(crate) fn settle<T>(mut self, finish: impl FnOnce() -> (T, TokenCounts)) -> T {
        self.give_back(finish)
    }

    /// All that is held; what was used stays used. Once: then there is nothing.
    fn give_back<T>(&mut self, finish: impl FnOnce() -> (T, TokenCounts)) -> T {
        let (held, hold) = (std::mem::take(&mut self.held), self.hold.take());
        self.gauge.sub(gauge(held));
        let (habit, sent) = (self.habit.take(), self.sent);
        self.accounts.with(&self.account, |account, now| {
            let (result, counts) = finish();
            account.release(held);
            let input = counts.input.saturating_add(counts.cached_input);
            let output = counts.output.saturating_add(counts.reasoning);
            if let Some(mut hold) = hold {
                account.levels.correct(&mut hold, input.saturating_add(output), now);
                account.levels.close(hold, sent, now);
            }
            if let Some((habit, size)) = habit.filter(|_| input > 0) {
                account.usual.learn(habit, size, input, output);
            }
            result
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.held > 0 || self.hold.is_some() {
            self.give_back(|| ((), TokenCounts::default()));
        }
    }
}

//! The accounts of all tenants, and reservations: what a request holds of them until it is settled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use ledger::ids::TenantId;
use ledger::quota::QuotaError;
use ledger::rate_limit::RateLimited;
use ledger::time::{Micros, Period};
use prometheus::IntGauge;
use stream::spool::Spool;

use super::account::{Account, Balance, MinuteStanding, NoRoom, Standing};
use super::policy::Tenant;
use super::request::Ask;
use crate::error::Refusal;
use crate::settings::Settings;

/// With less than this left, a request that names no `max_tokens` is refused rather than cut short at once.
const LEAST_DEFAULT: u64 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Limits {
    accounts: Mutex<HashMap<TenantId, Arc<Mutex<Account>>>>,
    spool: Spool,
    reserved: IntGauge,
}

/// What a request holds. Dropped without [`Reservation::settle`], all of it is given back.
#[derive(Debug)]
pub(crate) struct Reservation {
    account: Arc<Mutex<Account>>,
    spool: Spool,
    gauge: IntGauge,
    /// Still held of the quota.
    held: u64,
    /// Taken of the minute.
    taken: u64,
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
    /// No accounts yet. `reserved` shows what all of them hold.
    pub(crate) fn new(spool: Spool, reserved: IntGauge) -> Self {
        Self { accounts: Mutex::default(), spool, reserved }
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

    /// Holds room for a request, in one step over all of the tenant's limits.
    pub(crate) fn reserve(
        &self,
        tenant: &Tenant,
        ask: &Ask,
        settings: &Settings,
        now: Micros,
    ) -> (Standing, Result<Room, Refusal>) {
        let shared = self.account(&tenant.id);
        let mut account = lock(&shared);
        account.follow(tenant, now);
        let period = account.period(tenant, now);
        let own = period.map_or(0, |period| self.spent(&tenant.id, period));
        let limited = tenant.plan.tokens_per_minute.is_some() || tenant.plan.tokens_per_period.is_some();
        let input = ask.input_bound(settings.template_overhead_tokens);
        let max_tokens = (ask.max_tokens.is_none() && limited).then(|| {
            let wanted = ask.default_max_tokens(settings.default_max_tokens);
            let each = account.left(tenant, period, own).saturating_sub(input) / ask.output_bound(1).max(1);
            if each >= LEAST_DEFAULT.min(wanted) { wanted.min(each) } else { wanted }
        });
        let output = ask.output_bound(ask.max_tokens.or(max_tokens).unwrap_or(settings.default_max_tokens));
        let bound = input.saturating_add(output);
        if let Err(no_room) = account.reserve(tenant, period, own, bound, now) {
            return (account.standing(now), Err(refusal(no_room)));
        }
        self.reserved.add(gauge(bound));
        let standing = account.standing(now);
        drop(account);
        let (spool, gauge) = (self.spool.clone(), self.reserved.clone());
        let reservation = Reservation { account: shared, spool, gauge, held: bound, taken: bound, sent: false };
        (standing, Ok(Room { reservation, max_tokens }))
    }

    fn spent(&self, tenant: &TenantId, period: Period) -> u64 {
        let amount = self.spool.total_spend(tenant, period.from, period.to);
        amount.counts.total().unwrap_or(u64::MAX)
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
    /// step: nobody sees them twice or not at all.
    pub(crate) fn spend<T>(&mut self, spend: impl FnOnce() -> (T, u64)) -> T {
        let mut account = lock(&self.account);
        let (result, tokens) = spend();
        let released = tokens.min(self.held);
        account.release(released);
        self.held -= released;
        self.gauge.sub(gauge(released));
        result
    }

    /// Does `finish`, which puts the request's last tokens into the spool's own spend and returns how many the request
    /// used in all; then nothing is held any more. One step.
    pub(crate) fn settle<T>(mut self, finish: impl FnOnce() -> (T, u64)) -> T {
        let account = Arc::clone(&self.account);
        let mut account = lock(&account);
        let (result, used) = finish();
        let held = std::mem::take(&mut self.held);
        account.release(held);
        self.gauge.sub(gauge(held));
        account.used(std::mem::take(&mut self.taken), used, self.spool.now());
        self.sent = true;
        drop(account);
        result
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gauge.sub(gauge(self.held));
        if self.held == 0 && self.taken == 0 {
            return;
        }
        let mut account = lock(&self.account);
        account.release(self.held);
        if self.sent {
            account.used(self.taken, 0, self.spool.now());
        } else {
            account.undo(self.taken, self.spool.now());
        }
    }
}

fn refusal(no_room: NoRoom) -> Refusal {
    let limited = |what: &'static str, limited: RateLimited| match limited {
        RateLimited::Wait { limit, asked, wait_micros } => {
            let wait = Duration::from_micros(wait_micros);
            let words = format!(
                "Rate limit reached: {limit} {what} per minute, {asked} asked for. Try again in {:.1} s.",
                wait.as_secs_f64()
            );
            Refusal::rate_limited(what, words, Some(wait))
        }
        RateLimited::TooLarge { limit: 0, .. } => {
            Refusal::rate_limited(what, format!("The plan allows no {what}."), None)
        }
        RateLimited::TooLarge { limit, asked } => {
            let words = format!(
                "The request may use up to {asked} {what}, more than the limit of {limit} per minute ever allows. \
                 Send a shorter prompt or a smaller `max_tokens`."
            );
            Refusal::rate_limited(what, words, None)
        }
    };
    match no_room {
        NoRoom::Requests(wait) => limited("requests", wait),
        NoRoom::Tokens(wait) => limited("tokens", wait),
        NoRoom::Quota(QuotaError::Exceeded { limit, spent, reserved, asked }) => Refusal::insufficient_quota(format!(
            "The quota of {limit} tokens of this period has no room for a request of up to {asked}: {spent} are used, \
             {reserved} are held by open requests."
        )),
        NoRoom::Quota(QuotaError::Overflow) => {
            Refusal::insufficient_quota("The request may use more tokens than can be counted.".to_owned())
        }
    }
}

/// Puts both families of `x-ratelimit-*` on an answer, where the plan has the limit.
pub(crate) fn show(standing: &Standing, headers: &mut HeaderMap) {
    let names = |what: &str| match what {
        "requests" => ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
        _ => ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    };
    for (what, standing) in [("requests", standing.requests), ("tokens", standing.tokens)] {
        let Some(MinuteStanding { limit, remaining, reset_micros }) = standing else { continue };
        let [limit_name, remaining_name, reset_name] = names(what).map(HeaderName::from_static);
        headers.insert(limit_name, HeaderValue::from(limit));
        headers.insert(remaining_name, HeaderValue::from(remaining));
        let reset = HeaderValue::try_from(duration(reset_micros));
        headers.insert(reset_name, reset.unwrap_or(HeaderValue::from_static("60s")));
    }
}

/// As OpenAI writes durations: `850ms`, `12s`, `1m0s`.
fn duration(micros: u64) -> String {
    let millis = micros.div_ceil(1000);
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{}s", millis.div_ceil(1000)),
        _ => {
            let seconds = millis.div_ceil(1000);
            format!("{}m{}s", seconds / 60, seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_nothing_is_not_called_a_large_request() {
        let none = RateLimited::TooLarge { limit: 0, asked: 1 };
        assert!(refusal(NoRoom::Requests(none)).json().contains("The plan allows no requests."));
        let large = RateLimited::TooLarge { limit: 5, asked: 9 };
        assert!(refusal(NoRoom::Tokens(large)).json().contains("up to 9 tokens"));
    }

    #[test]
    fn durations_read_as_clients_expect() {
        let written = [0, 1, 850_000, 999_999, 12_000_000, 59_000_001, 60_000_000, 61_500_000].map(duration);
        assert_eq!(written, ["0ms", "1ms", "850ms", "1s", "12s", "60s", "1m0s", "1m2s"]);
    }
}

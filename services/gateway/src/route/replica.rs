//! A replica: where it is, how it does, and what is open there. It outlives the snapshots of control that name it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::uri::{Authority, Scheme, Uri};
use ledger::control::{Replica as Document, ReplicaKind, ServiceTier};
use ledger::ids::ReplicaId;
use tokio::sync::Notify;

use super::guard::{Said, Told};
use super::metrics::{Attempts, Gauges};
use super::outlier::{Outlier, Verdict};
use super::prefix::Number;
use crate::settings::Routing;

/// What all replicas share.
#[derive(Debug)]
pub(super) struct Shared {
    pub settings: Routing,
    /// See [`super::Pool::changed`].
    pub changed: Notify,
    began: Instant,
}

impl Shared {
    pub(super) fn new(settings: Routing) -> Self {
        Self { settings, changed: Notify::new(), began: Instant::now() }
    }

    /// Milliseconds since the pool was made; never 0.
    pub(super) fn now(&self) -> u64 {
        1 + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// Where a replica is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// Whether over TLS.
    pub secure: bool,
    /// Host, and port if it is not the usual one.
    pub authority: Authority,
}

impl Address {
    /// None if the URL is not `http://host:port` or `https://host:port`.
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        let bare = (secure || uri.scheme() == Some(&Scheme::HTTP)) && uri.path() == "/" && uri.query().is_none();
        Some(Self { secure, authority: uri.authority().filter(|_| bare)?.clone() })
    }

    /// What is connected to.
    pub(crate) fn socket(&self) -> (&str, u16) {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        (host, self.authority.port_u16().unwrap_or(if self.secure { 443 } else { 80 }))
    }
}

/// A server that answers for a model.
#[derive(Debug)]
pub(crate) struct Replica {
    pub id: ReplicaId,
    pub kind: ReplicaKind,
    pub(super) number: Number,
    url: String,
    address: Address,
    host: HeaderValue,
    health: AtomicU8,
    active: AtomicU32,
    prefill: Prefill,
    said: Said,
    outlier: Outlier,
    gauges: Gauges,
    shared: Arc<Shared>,
}

/// Whether a replica may get requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Standing {
    /// It may. The share of requests that it is for is less than 1 while it comes back.
    Fit(f64),
    /// Only if there is no other: it is new and was not asked for its health yet, or its requests failed.
    Doubtful,
    /// It does not answer.
    Down,
}

impl Replica {
    /// None if its URL is not `http://host:port` or `https://host:port`.
    pub(super) fn new(
        id: &ReplicaId,
        document: &Document,
        number: Number,
        gauges: Gauges,
        shared: Arc<Shared>,
    ) -> Option<Self> {
        let address = Address::of(&document.url)?;
        let host = HeaderValue::try_from(address.authority.as_str()).ok()?;
        Some(Self {
            id: id.clone(),
            kind: document.kind,
            number,
            url: document.url.clone(),
            address,
            host,
            health: AtomicU8::new(UNKNOWN),
            active: AtomicU32::new(0),
            prefill: Prefill::default(),
            said: Said::default(),
            outlier: Outlier::default(),
            gauges,
            shared,
        })
    }

    /// Whether the document tells of the same server.
    pub(super) fn is(&self, document: &Document) -> bool {
        self.url == document.url && self.kind == document.kind
    }

    /// Where it is spoken to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Tries at it.
    pub(crate) fn attempts(&self) -> &Arc<Attempts> {
        &self.gauges.attempts
    }

    /// Host and port as a header.
    pub(crate) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Whether it may get requests now.
    pub(super) fn standing(&self, now: u64) -> Standing {
        match self.health.load(Ordering::Relaxed) {
            DOWN => Standing::Down,
            UNKNOWN => Standing::Doubtful,
            _ => match self.outlier.share(&self.shared.settings.ejection, now) {
                0.0 => Standing::Doubtful,
                share => Standing::Fit(share),
            },
        }
    }

    /// Requests open there, others' as well as far as it says so.
    pub(super) fn active(&self, now: u64) -> u32 {
        let own = self.active.load(Ordering::Relaxed);
        own.saturating_add(self.said.others(&self.shared.settings.guard, now))
    }

    /// Whether it has enough to do, if it works on so many requests well.
    pub(super) fn is_busy(&self, limit: u32, now: u64) -> bool {
        self.said.is_enough(&self.shared.settings.guard, self.active.load(Ordering::Relaxed), limit, now)
    }

    /// Tokens of prompts that it has not read yet, and how many it reads in a second.
    pub(super) fn prefill(&self, now: u64) -> (u64, f64) {
        let rate = self.prefill.rate(&self.shared.settings);
        (self.prefill.unread(rate, now), rate)
    }

    /// What it is told of how soon a request of this band is to be served, if it is to be told.
    pub(crate) fn priority(&self, tier: ServiceTier) -> Option<u8> {
        let told = self.shared.settings.send_priority && self.kind == ReplicaKind::Vllm;
        told.then_some(u8::from(tier == ServiceTier::Flex))
    }

    /// Notes whether it answers. Said in the log once per change.
    pub(crate) fn seen(&self, up: bool, why: &str) {
        self.gauges.up.set(i64::from(up));
        let before = self.health.swap(if up { UP } else { DOWN }, Ordering::Relaxed);
        if up && before != UP {
            tracing::info!(replica = %self.id, "the replica is up");
            self.shared.changed.notify_one();
        } else if !up && before != DOWN {
            tracing::warn!(replica = %self.id, why, "the replica is down: it gets no requests until it is healthy");
        }
    }

    /// Notes what it says of itself.
    pub(super) fn told(&self, told: Told) {
        self.gauges.waiting.set(told.waiting.unwrap_or(0.0) as i64);
        self.said.take(told, self.active.load(Ordering::Relaxed), self.shared.now());
    }

    /// It refused a request because it has too much to do.
    pub(super) fn overloaded(&self) {
        self.said.overloaded(self.shared.now());
    }

    /// Shows what only time changes.
    pub(super) fn show(&self, now: u64) {
        self.gauges.age.set(i64::try_from(self.said.age(now) / 1000).unwrap_or(i64::MAX));
        self.gauges.ejected.set(i64::from(self.is_ejected(now)));
    }

    /// Whether its requests failed so that it gets none.
    pub(super) fn is_ejected(&self, now: u64) -> bool {
        self.outlier.share(&self.shared.settings.ejection, now) == 0.0
    }

    /// A request was answered there.
    pub(super) fn served(&self) {
        self.outlier.served();
    }

    /// A request failed there.
    pub(super) fn failed(&self, why: &str, may_eject: impl FnOnce(u64) -> bool) {
        let now = self.shared.now();
        match self.outlier.failed(&self.shared.settings.ejection, now, || may_eject(now)) {
            Verdict::Stays => {}
            Verdict::Ejected(time) => {
                self.gauges.ejected.set(1);
                tracing::warn!(replica = %self.id, why, seconds = time.as_secs(), "the replica's requests fail: it gets none for a while");
            }
            Verdict::Spared => {
                tracing::warn!(replica = %self.id, why, "the replica's requests fail, but too many others' do too: it goes on");
            }
        }
    }

    /// Opens a request there, unless that makes more than `limit`.
    pub(super) fn open(&self, limit: u32) -> bool {
        let room = |active: u32| (active < limit).then_some(active + 1);
        let opened = self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok();
        if opened {
            self.gauges.active.inc();
        }
        opened
    }

    /// Closes a request there.
    pub(super) fn close(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        self.gauges.active.dec();
        self.shared.changed.notify_one();
    }

    /// A prompt of so many tokens is to be read there. `streamed`: its first token will be seen.
    pub(super) fn reads(&self, tokens: u64, streamed: bool) -> Reading {
        let rate = self.prefill.rate(&self.shared.settings);
        let now = self.shared.now();
        let before = self.prefill.unread(rate, now);
        if streamed {
            self.prefill.streams.fetch_add(tokens, Ordering::Relaxed);
        } else {
            let millis = (tokens as f64 / rate * 1000.0) as u64;
            let until = |until: u64| Some(until.max(now).saturating_add(millis));
            let _ = self.prefill.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, until);
        }
        Reading {
            tokens: if streamed { tokens } else { 0 },
            ahead: before.saturating_add(tokens),
            since: Instant::now(),
        }
    }

    /// A prompt was read, or never will be. `first_token`: this was the moment at which the first token came.
    pub(super) fn has_read(&self, reading: &mut Reading, first_token: bool) {
        let tokens = std::mem::take(&mut reading.tokens);
        self.prefill.streams.fetch_sub(tokens, Ordering::Relaxed);
        if first_token && tokens >= MEASURED {
            self.prefill.measured(reading.ahead as f64, reading.since.elapsed(), &self.shared.settings);
        }
    }
}

/// A prompt of fewer tokens tells nothing of how fast they are read.
const MEASURED: u64 = 256;
/// The weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// How far from what the settings say a measured rate may be.
const RATES: f64 = 100.0;

/// A prompt that a replica reads.
#[derive(Debug)]
pub(super) struct Reading {
    /// 0 once it was read.
    tokens: u64,
    /// It, and all that was to be read before it.
    ahead: u64,
    since: Instant,
}

/// What a replica has to read. Of a stream the first token shows that its prompt was read; of a whole answer nothing does, so
/// its prompt is taken for read once the time is over that it takes by all that is known.
#[derive(Debug, Default)]
struct Prefill {
    streams: AtomicU64,
    /// When those of whole answers are read.
    until: AtomicU64,
    /// Tokens per second, as a float's bits; 0 until it is known.
    rate: AtomicU64,
}

impl Prefill {
    fn unread(&self, rate: f64, now: u64) -> u64 {
        let millis = self.until.load(Ordering::Relaxed).saturating_sub(now);
        self.streams.load(Ordering::Relaxed).saturating_add((millis as f64 / 1000.0 * rate) as u64)
    }

    fn rate(&self, settings: &Routing) -> f64 {
        let measured = f64::from_bits(self.rate.load(Ordering::Relaxed));
        if measured > 0.0 { measured } else { f64::from(settings.prefill_tokens_per_second) }
    }

    fn measured(&self, tokens: f64, time: Duration, settings: &Routing) {
        let usual = f64::from(settings.prefill_tokens_per_second);
        let newest = (tokens / time.as_secs_f64().max(1e-6)).clamp(usual / RATES, usual * RATES);
        let before = self.rate(settings);
        // Of two at once one is lost, which does no harm.
        self.rate.store((before + NEWEST * (newest - before)).to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_fast_prompts_are_read_is_learned_within_bounds() {
        let (prefill, settings) = (Prefill::default(), Routing::default());
        let usual = f64::from(settings.prefill_tokens_per_second);
        assert_eq!(prefill.rate(&settings), usual);
        for _ in 0..100 {
            prefill.measured(1000.0, Duration::from_secs(1), &settings);
        }
        assert!((prefill.rate(&settings) - 1000.0).abs() < 1.0);
        (0..100).for_each(|_| prefill.measured(1000.0, Duration::ZERO, &settings));
        assert!(prefill.rate(&settings) <= usual * RATES);
    }

    #[test]
    fn prompts_of_whole_answers_are_taken_for_read_when_their_time_is_over() {
        let prefill = Prefill::default();
        prefill.streams.store(50, Ordering::Relaxed);
        prefill.until.store(3_000, Ordering::Relaxed);
        assert_eq!([1_000, 2_500, 3_000, 9_000].map(|now| prefill.unread(100.0, now)), [250, 100, 50, 50]);
    }
}

//! A gateway, its clients, its disk and the log, all in memory: what clients got is compared with what the log says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ledger::ids::{ApiKeyId, EventId, RequestId, TenantId};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenCounts;
use runtime::clock::ManualClock;
use runtime::metrics::Metrics;
use schemas::event::{EndReason, Event, RequestFinished, TokensCounted};
use schemas::mark::Mark;
use schemas::topic::{REQUESTS, TOKENS};
use uuid::Uuid;

use super::log::{SimConnect, SimLog, Stored};
use crate::line::{LineState, LogRecord, Outcome};
use crate::ship::Shipper;
use crate::spool::sim_disk::SimDisk;
use crate::spool::{Admission, Finish, OpenError, OpenRequest, Opened, Spool, SpoolSettings, Usage, gateway_topics};

pub(crate) const PARTITIONS: i32 = 2;
pub(crate) const START: i64 = 1_700_000_000_000_000;
pub(crate) const FOREVER: (Slot, Slot) = (Slot(i64::MIN), Slot(i64::MAX));

pub(crate) fn settings() -> SpoolSettings {
    SpoolSettings { segment_bytes: 4000, max_bytes: 4 << 20, slots: 16, ..SpoolSettings::default() }
}

pub(crate) fn admission(number: u128, tenant: &str) -> Admission {
    Admission {
        request_id: RequestId(Uuid::from_u128(number)),
        tenant: tenant.parse().unwrap(),
        project: "search".parse().unwrap(),
        api_key: ApiKeyId(Uuid::from_u128(7)),
        model: "llama-3.1-8b".parse().unwrap(),
        version: "v1".parse().unwrap(),
        endpoint: "/v1/chat/completions".into(),
        received_at: Micros(START),
        stream: true,
    }
}

pub(crate) fn finish(usage: Usage) -> Finish {
    Finish {
        end_reason: EndReason::Complete,
        status: 200,
        error_code: None,
        usage,
        dispatched_at: Some(Micros(START)),
        first_byte_at: None,
    }
}

pub(crate) fn open(
    disk: &SimDisk,
    boot: Uuid,
    settings: &SpoolSettings,
    clock: &ManualClock,
) -> Result<Opened, OpenError> {
    Spool::open_on(Arc::new(disk.clone()), boot, settings, gateway_topics(PARTITIONS), Arc::new(clock.clone()), None)
}

/// What is known of a request from outside of the gateway.
#[derive(Debug, Clone, Default)]
pub(crate) struct Truth {
    /// Output that the client got, while its gateway was alive.
    pub handed: u64,
    /// The most that was stored in the table.
    pub stored: u64,
    pub input: u64,
    /// What the engine said at the end, if the client saw the end.
    pub ended: Option<TokenCounts>,
    /// The host crashed while it was open, or before its end was durable.
    pub unsure: bool,
}

pub(crate) struct Live {
    pub request: OpenRequest,
    pub id: u128,
}

pub(crate) struct World {
    pub disk: SimDisk,
    pub boot: Uuid,
    pub clock: ManualClock,
    pub settings: SpoolSettings,
    pub log: SimLog,
    pub running: Option<(Spool, Shipper)>,
    pub live: Vec<Live>,
    pub truth: BTreeMap<u128, Truth>,
    pub admitted: u128,
    pub now: Duration,
    pub refused: Option<OpenError>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(),
            boot: Uuid::from_u128(1),
            clock: ManualClock::at(START),
            settings: settings(),
            log: SimLog::new(seed),
            running: None,
            live: Vec::new(),
            truth: BTreeMap::new(),
            admitted: 0,
            now: Duration::ZERO,
            refused: None,
        }
    }

    /// Starts a gateway, if none runs and its disk lets it.
    pub(crate) fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        match open(&self.disk, self.boot, &self.settings, &self.clock) {
            Err(error) => self.refused = Some(error),
            Ok(Opened { spool, .. }) => {
                let connect = Box::new(SimConnect { log: self.log.clone(), disk: self.disk.clone() });
                let shipper = Shipper::new(spool.clone(), connect, &Metrics::new(), Duration::from_secs(5)).unwrap();
                self.running = Some((spool, shipper));
            }
        }
    }

    pub(crate) fn spool(&self) -> Option<&Spool> {
        self.running.as_ref().map(|(spool, _)| spool)
    }

    pub(crate) fn admit(&mut self, tenant: &str) {
        let Some(spool) = self.spool().cloned() else { return };
        self.admitted += 1;
        let id = self.admitted;
        if let Ok(mut request) = spool.admit(admission(id, tenant)) {
            request.attempt(0, "replica-1");
            self.truth.insert(id, Truth::default());
            self.live.push(Live { request, id });
        }
    }

    /// A frame of `tokens` for the `nth` open request.
    pub(crate) fn frame(&mut self, nth: usize, tokens: u64) {
        let count = self.live.len().max(1);
        let Some(Live { request, id }) = self.live.get_mut(nth % count) else { return };
        let (_, output, _) = request.counted();
        let truth = self.truth.get_mut(id).unwrap();
        let alive = !self.disk.is_dead();
        request.received(10, output + tokens, 0);
        if alive {
            (truth.stored, truth.input) = (output + tokens, 10);
            // Killed between the store and the socket is a kill just after.
            truth.handed = output + tokens;
        }
    }

    pub(crate) fn checkpoint(&mut self, nth: usize) {
        let count = self.live.len().max(1);
        if let Some(live) = self.live.get_mut(nth % count) {
            let _ = live.request.checkpoint();
        }
    }

    pub(crate) fn finish(&mut self, nth: usize, how: usize) {
        if self.live.is_empty() {
            return;
        }
        let Live { request, id } = self.live.remove(nth % self.live.len());
        let (input, output, _) = request.counted();
        let usage = match how % 3 {
            0 if output > 0 => Usage::Final(TokenCounts { input: 4, cached_input: input - 4, output, reasoning: 0 }),
            1 => Usage::Nothing,
            _ => Usage::Running,
        };
        let finished = request.finish(finish(usage));
        if self.disk.is_dead() || finished.lost {
            return;
        }
        let truth = self.truth.get_mut(&id).unwrap();
        truth.ended = Some(finished.settled.counts);
        truth.unsure = finished.delayed;
    }

    pub(crate) fn flush(&mut self) {
        if let Some((spool, _)) = &self.running {
            let _ = spool.flush();
            spool.retry_delayed();
        }
    }

    pub(crate) fn ship(&mut self) {
        self.now += Duration::from_millis(400);
        if let Some((_, shipper)) = &mut self.running {
            shipper.step(self.now, Duration::ZERO).unwrap();
        }
    }

    /// The gateway is killed; its host goes on.
    pub(crate) fn kill(&mut self) {
        self.disk.kill();
        self.bury();
        self.disk = self.disk.after_kill();
    }

    /// The host crashes.
    pub(crate) fn crash_host(&mut self) {
        let log = self.log.clone();
        let after = self.disk.after_host_crash(|limit| log.lock().chance.below(limit + 1));
        self.disk.kill();
        self.bury();
        self.disk = after;
        self.boot = Uuid::from_u128(self.boot.as_u128() + 1);
        self.truth.values_mut().for_each(|truth| truth.unsure = true);
    }

    fn bury(&mut self) {
        self.live.clear();
        self.running = None;
    }

    /// Everything works from now on: what is open ends as it must, and all is shipped.
    pub(crate) fn settle(&mut self) {
        self.disk.heal();
        self.disk.set_room(None);
        if self.disk.is_dead() {
            self.bury();
            self.disk = self.disk.after_kill();
        }
        {
            let mut log = self.log.lock();
            (log.prompt, log.away, log.failures) = (true, false, 0);
        }
        self.start();
        assert!(self.running.is_some(), "the spool opens again: {:?}", self.refused);
        self.clock.advance(10_000_000);
        while !self.live.is_empty() {
            self.finish(0, 2);
        }
        self.flush();
        let spool = self.spool().unwrap().clone();
        assert_eq!(spool.close().unwrap(), 0);
        for _ in 0..200 {
            self.flush();
            self.now += Duration::from_secs(20);
            self.log.lock().stir(true);
            if let Some((_, shipper)) = &mut self.running
                && shipper.step(self.now, Duration::ZERO).unwrap().idle
            {
                assert_eq!(spool.stats().unshipped_records, 0);
                return;
            }
        }
        panic!("not shipped: {:?}", spool.stats());
    }

    /// Every promise, of the log as it stands.
    pub(crate) fn check(&self) {
        let folded = fold(&self.log);
        for (id, truth) in &self.truth {
            let request = RequestId(Uuid::from_u128(*id));
            let events: Vec<_> = folded.tokens.iter().filter(|event| event.request_id == request).collect();
            let ends = folded.requests.iter().filter(|event| event.request_id == request).count();
            if truth.unsure && events.is_empty() {
                continue;
            }
            assert_eq!(ends, 1, "{id} ends once: {truth:?}");
            assert_eq!(events.iter().filter(|event| event.last).count(), 1, "{id} {truth:?}");
            assert!(events.last().unwrap().last, "nothing comes after the last count");
            let mut sum = TokenCounts::default();
            for event in &events {
                sum = sum.checked_add(event.delta().unwrap()).unwrap();
                assert_eq!(event.cumulative().unwrap(), sum, "{id}");
            }
            let output = sum.output + sum.reasoning;
            assert!(output <= truth.stored, "{id} is billed {output}: {truth:?}");
            assert!(sum.input + sum.cached_input <= truth.input);
            if !truth.unsure {
                assert!(output >= truth.handed, "{id} is billed {output}: {truth:?}");
                assert_eq!(truth.ended.unwrap_or(sum), sum, "{id} {truth:?}");
                assert_eq!(sum.input + sum.cached_input, if truth.handed > 0 { truth.input } else { 0 });
            }
            let answered: i64 = events.iter().map(|event| event.requests).sum();
            assert_eq!(answered, i64::from(output > 0), "{id}: a request is counted once if it got anything");
        }
        let known: BTreeSet<_> = self.truth.keys().map(|id| RequestId(Uuid::from_u128(*id))).collect();
        let foreign = folded.tokens.iter().filter(|event| !known.contains(&event.request_id));
        // The gateway died in the admission: the client got an error or nothing.
        assert!(foreign.clone().all(|event| event.delta().unwrap() == TokenCounts::default()));
    }

    /// The own spend that no balance shows is all there is; a balance up to the log's end takes all of it.
    pub(crate) fn check_spend(&self, exact: bool) {
        let folded = fold(&self.log);
        let spool = self.spool().unwrap();
        for tenant in ["a", "b", "c"] {
            let tenant: TenantId = tenant.parse().unwrap();
            let mut sum = TokenCounts::default();
            for event in folded.tokens.iter().filter(|event| event.tenant_id == tenant) {
                sum = sum.checked_add(event.delta().unwrap()).unwrap();
            }
            let spend = spool.total_spend(&tenant, FOREVER.0, FOREVER.1).counts;
            let total = |counts: TokenCounts| counts.input + counts.cached_input + counts.output + counts.reasoning;
            if exact {
                assert_eq!(spend, sum, "{tenant}");
            } else {
                assert!(total(spend) >= total(sum), "{tenant}: {spend:?} is less than {sum:?}");
            }
            spool.balance_seen(&tenant, FOREVER.0, FOREVER.1, i64::MAX);
            assert_eq!(total(spool.total_spend(&tenant, FOREVER.0, FOREVER.1).counts), 0, "{tenant}");
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub tokens: Vec<TokensCounted>,
    pub requests: Vec<RequestFinished>,
    pub marks: Vec<(String, i32, Mark)>,
    pub duplicates: usize,
}

/// Folds the whole log with the real line; a hole or a conflict fails.
pub(crate) fn fold(log: &SimLog) -> Folded {
    let mut folded = Folded::default();
    for ((topic, partition), records) in &log.lock().partitions {
        let (marks, duplicates) = match topic.as_str() {
            TOKENS => line(records, &mut folded.tokens),
            REQUESTS => line(records, &mut folded.requests),
            other => panic!("{other}"),
        };
        folded.marks.extend(marks.into_iter().map(|mark| (topic.clone(), *partition, mark)));
        folded.duplicates += duplicates;
    }
    folded
}

fn line<E: Event + std::fmt::Debug>(records: &[Stored], into: &mut Vec<E>) -> (Vec<Mark>, usize) {
    let mut line = LineState::default();
    let mut seen = BTreeMap::<(_, u64), EventId>::new();
    let (mut marks, mut duplicates) = (Vec::new(), 0);
    for (offset, record) in records.iter().enumerate() {
        let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let taken = line.step::<E>(&LogRecord {
            offset: offset as i64,
            log_time_ms: offset as i64,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        });
        match taken.expect("no hole").outcome {
            Outcome::Folded(event) => {
                let envelope = event.envelope();
                let watermark = line.sources[&envelope.source].watermark;
                assert!(envelope.occurred_at >= watermark, "a watermark was broken");
                assert!(seen.insert((envelope.source, envelope.seq as u64), envelope.event_id).is_none());
                into.push(event);
            }
            Outcome::Duplicate { source, seq, event_id } => {
                duplicates += 1;
                assert_eq!(seen.get(&(source, seq)).copied(), event_id, "a resend is the same event");
            }
            Outcome::Dead(reason) => panic!("{reason}"),
            Outcome::Mark(mark) => marks.push(mark),
        }
    }
    (marks, duplicates)
}

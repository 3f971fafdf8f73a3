//! A gateway with its clients and its disk, in memory: the real spool, recovery and shipping.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledger::ids::{ApiKeyId, RequestId};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenCounts;
use runtime::clock::ManualClock;
use runtime::metrics::Metrics;
use schemas::event::EndReason;
use uuid::Uuid;

use super::disk::SimDisk;
use super::hooks::{Rule, die_after_stores, left_out};
use super::log::{SimConnect, SimLog};
use super::oracle::Truth;
use crate::ship::{Progress, Shipper};
use crate::spool::frame::Position;
use crate::spool::{Admission, Finish, OpenError, OpenRequest, Opened, Spool, SpoolSettings, Usage, gateway_topics};

/// Partitions of each topic.
pub const PARTITIONS: i32 = 2;
/// When a simulation begins, microseconds.
pub const START: i64 = 1_700_000_000_000_000;
/// All slots.
pub const FOREVER: (Slot, Slot) = (Slot(i64::MIN), Slot(i64::MAX));
/// The prompt of every request.
const INPUT: u64 = 10;
/// The tokens of an answer that comes whole.
const WHOLE: u64 = 7;

/// Settings of a small spool.
pub fn settings() -> SpoolSettings {
    SpoolSettings { segment_bytes: 4000, max_bytes: 4 << 20, slots: 16, ..SpoolSettings::default() }
}

/// What is known of a request when it is let in.
pub fn admission(number: u128, tenant: &str) -> Admission {
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

/// An end with this usage.
pub fn finish(usage: Usage) -> Finish {
    Finish {
        end_reason: EndReason::Complete,
        status: 200,
        error_code: None,
        usage,
        dispatched_at: Some(Micros(START)),
        first_byte_at: None,
    }
}

/// Takes a spool into use.
///
/// # Errors
/// See [`OpenError`].
pub fn open(disk: &SimDisk, boot: Uuid, settings: &SpoolSettings, clock: &ManualClock) -> Result<Opened, OpenError> {
    Spool::open_on(Arc::new(disk.clone()), boot, settings, gateway_topics(PARTITIONS), Arc::new(clock.clone()), None)
}

/// When a gateway is killed while it hands a frame on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// After the counts are stored, before the client has the frame.
    BeforeHanding,
    /// After so many of the stores of the counts.
    InStores(u32),
}

/// A request that is open.
#[derive(Debug)]
pub struct Live {
    /// The request.
    pub request: OpenRequest,
    /// Its number.
    pub id: u128,
    /// Of the tokens, reasoning.
    reasoning: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Gateway {
    /// Its disk; a kill and a crash replace it.
    pub disk: SimDisk,
    /// A copy of the disk that was made earlier.
    pub backup: Option<SimDisk>,
    /// The boot of its host.
    pub boot: Uuid,
    /// The clock of its host.
    pub clock: ManualClock,
    /// Its settings.
    pub settings: SpoolSettings,
    /// The log that it ships to.
    pub log: SimLog,
    /// The process, if there is one.
    pub running: Option<(Spool, Shipper)>,
    /// Requests that are open.
    pub live: Vec<Live>,
    /// All requests that it ever let in.
    pub truth: BTreeMap<u128, Truth>,
    /// The last number that it gave to a request.
    pub admitted: u128,
    /// Its steady clock.
    pub now: Duration,
    /// Why it does not start.
    pub refused: Option<OpenError>,
    /// Why it ships no more.
    pub broken: Option<String>,
    /// How far its last process had synced.
    frontier: Position,
}

impl Gateway {
    /// The `nth` gateway, with an empty disk.
    pub fn new(nth: u64, log: SimLog) -> Self {
        Self {
            disk: SimDisk::new(),
            backup: None,
            boot: Uuid::from_u64_pair(nth, 1),
            clock: ManualClock::at(START),
            settings: settings(),
            log,
            running: None,
            live: Vec::new(),
            truth: BTreeMap::new(),
            admitted: u128::from(nth) << 64,
            now: Duration::ZERO,
            refused: None,
            broken: None,
            frontier: Position::default(),
        }
    }

    /// Another gateway of the same host, with a copy of this one's disk. Only a gateway that does not run is copied.
    pub fn cloned(&self, nth: u64) -> Option<Self> {
        if self.running.is_some() {
            return None;
        }
        let disk = self.disk.after_kill();
        Some(Self { disk, boot: self.boot, clock: self.clock.clone(), ..Self::new(nth, self.log.clone()) })
    }

    /// Starts a process, if none runs and the disk lets it.
    pub fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        match open(&self.disk, self.boot, &self.settings, &self.clock) {
            Err(error) => self.refused = Some(error),
            Ok(Opened { spool, .. }) => {
                let connect = Box::new(SimConnect { log: self.log.clone(), disk: self.disk.clone() });
                let shipper = Shipper::new(spool.clone(), connect, &Metrics::new(), Duration::from_secs(5)).unwrap();
                self.running = Some((spool, shipper));
                self.refused = None;
                self.truth.values_mut().for_each(|truth| truth.durable = true);
            }
        }
    }

    /// The spool of the process.
    pub fn spool(&self) -> Option<&Spool> {
        self.running.as_ref().map(|(spool, _)| spool)
    }

    /// Lets a request in.
    pub fn admit(&mut self, tenant: &str) {
        let Some(spool) = self.spool().cloned() else { return };
        self.admitted += 1;
        let id = self.admitted;
        if let Ok(mut request) = spool.admit(admission(id, tenant)) {
            request.attempt(0, "replica-1");
            self.truth.insert(id, Truth::default());
            self.live.push(Live { request, id, reasoning: 0 });
        }
    }

    /// A frame of `tokens` for the `nth` open request.
    pub fn frame(&mut self, nth: usize, tokens: u64) {
        self.frame_and(nth, tokens, 0, None);
    }

    /// The same; `shift` of the tokens before turn out to be reasoning, and the process may be killed on the way.
    pub fn frame_and(&mut self, nth: usize, tokens: u64, shift: u64, death: Option<Death>) {
        let count = self.live.len().max(1);
        let Some(live) = self.live.get_mut(nth % count) else { return };
        let truth = self.truth.get_mut(&live.id).unwrap();
        let (_, output, _) = live.request.counted();
        let shift = shift.min(output);
        live.reasoning += shift;
        let total = output + live.reasoning + tokens - shift;
        let alive = !self.disk.is_dead();
        if left_out(Rule::CountBeforeHanding) && alive {
            truth.handed = total;
            if death.is_some() {
                return self.kill();
            }
        }
        if let Some(Death::InStores(stores)) = death {
            die_after_stores(Some(stores));
        }
        live.request.received(INPUT, output + tokens - shift, live.reasoning);
        die_after_stores(None);
        if !alive {
            return;
        }
        (truth.stored, truth.input) = (total, INPUT);
        match death {
            Some(_) => self.kill(),
            None => truth.handed = total,
        }
    }

    /// Bills the `nth` open request so far.
    pub fn checkpoint(&mut self, nth: usize) {
        let count = self.live.len().max(1);
        if let Some(live) = self.live.get_mut(nth % count) {
            let _ = live.request.checkpoint();
        }
    }

    /// Ends the `nth` open request: with the engine's last word, with nothing, cut short, or with a last word of more than came
    /// before, as that of an answer that comes whole.
    pub fn finish(&mut self, nth: usize, how: usize) {
        if self.live.is_empty() {
            return;
        }
        let Live { request, id, .. } = self.live.remove(nth % self.live.len());
        let (_, output, reasoning) = request.counted();
        let (more, last_word) = (if how % 4 == 3 { WHOLE } else { 0 }, matches!(how % 4, 0 | 3));
        let usage = match output + reasoning + more {
            1.. if last_word => {
                let (input, cached_input) = (4, INPUT - 4);
                Usage::Final(TokenCounts { input, cached_input, output: output + more, reasoning })
            }
            _ if how % 4 == 1 => Usage::Nothing,
            _ => Usage::Running,
        };
        let truth = self.truth.get_mut(&id).unwrap();
        if more > 0 {
            (truth.stored, truth.input) = (output + reasoning + more, INPUT);
        }
        let finished = request.finish(finish(usage));
        if self.disk.is_dead() || finished.lost {
            return;
        }
        truth.handed += more;
        truth.ended = Some(finished.settled.counts);
        truth.ended_at = Some(finished.position).filter(|_| !finished.delayed);
    }

    /// Syncs, and tries again what a full disk refused.
    pub fn flush(&mut self) {
        if let Some((spool, _)) = &self.running {
            let _ = spool.flush();
            spool.retry_delayed();
        }
    }

    /// One step of shipping, 400 ms after the last one.
    pub fn ship(&mut self) {
        self.now += Duration::from_millis(400);
        if let Some((_, shipper)) = &mut self.running
            && let Err(error) = shipper.step(self.now)
        {
            self.broken = Some(error.to_string());
        }
    }

    /// The process is killed; its host goes on.
    pub fn kill(&mut self) {
        self.disk.kill();
        self.bury();
        self.disk = self.disk.after_kill();
    }

    /// The host crashes.
    pub fn crash_host(&mut self) {
        let log = self.log.clone();
        let after = self.disk.after_host_crash(|limit| log.lock().chance.below(limit + 1));
        self.disk.kill();
        self.bury();
        self.disk = after;
        self.boot = Uuid::from_u64_pair(self.boot.as_u64_pair().0, self.boot.as_u64_pair().1 + 1);
        for truth in self.truth.values_mut() {
            truth.unsure |= !truth.durable && truth.ended_at.is_none_or(|end| end > self.frontier);
        }
    }

    /// The volume is lost, or what a copy of it held is put in its place.
    pub fn restore(&mut self, disk: Option<SimDisk>) {
        self.kill();
        self.disk = disk.unwrap_or_default();
        self.truth.values_mut().for_each(|truth| truth.loose = true);
    }

    fn bury(&mut self) {
        if let Some((spool, _)) = &self.running {
            self.frontier = spool.frontier();
        }
        self.live.clear();
        self.running = None;
    }

    /// The disk works from now on, and a process runs.
    pub fn mend(&mut self) {
        self.disk.heal();
        self.disk.set_room(None);
        if self.disk.is_dead() {
            self.kill();
        }
        self.start();
    }

    /// All requests end and the process is about to stop; what is left is to be shipped. False if it cannot.
    pub fn end_all(&mut self) -> bool {
        while !self.live.is_empty() {
            self.finish(0, 2);
        }
        self.flush();
        self.spool().is_some_and(|spool| spool.close().is_ok_and(|open| open == 0))
    }

    /// Ships a while; true if all is shipped.
    pub fn drain(&mut self) -> bool {
        self.flush();
        self.now += Duration::from_secs(20);
        self.log.lock().stir(true);
        let Some((spool, shipper)) = &mut self.running else { return false };
        match shipper.step(self.now) {
            Ok(Progress { idle, .. }) => idle && spool.stats().unshipped_records == 0,
            Err(error) => {
                self.broken = Some(error.to_string());
                false
            }
        }
    }

    /// Everything works from now on: what is open ends as it must, and all is shipped.
    pub fn settle(&mut self) {
        {
            let mut log = self.log.lock();
            (log.prompt, log.away, log.failures) = (true, false, 0);
        }
        self.mend();
        assert!(self.running.is_some(), "the spool opens again: {:?}", self.refused);
        self.clock.advance(10_000_000);
        assert!(self.end_all());
        let drained = (0..200).any(|_| self.drain());
        assert!(drained, "not shipped: {:?} {:?}", self.broken, self.spool().map(Spool::stats));
    }
}

//! Ships a spool to Kafka: in order, gapless, from a cursor that is the contiguous acknowledged prefix.
//!
//! [`Shipper::run`] reads what fsync has covered and sends it through one idempotent producer. Whatever goes wrong with a
//! record or the producer, a new producer begins at the cursor: what was acknowledged beyond it is sent again, and the
//! fold drops it by its number. Each second every partition gets a heartbeat, once what it vouches for is acknowledged.

mod kafka;
#[cfg(test)]
mod tests;
mod transport;
mod window;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use ledger::ids::SourceId;
use ledger::time::Micros;
use runtime::Shutdown;
use runtime::metrics::{self, IntCounter, IntGauge, Metrics, Name};
use schemas::mark::Mark;

use crate::kafka::KafkaSettings;
use crate::spool::cursor::Cursor;
use crate::spool::frame::Record;
use crate::spool::{Reader, Spool, Watermark, headers_of};
use window::Window;

pub use kafka::KafkaConnect;
pub use transport::{Connect, Outgoing, Refused, Report, Transport};

/// Records on their way at once.
const WINDOW_RECORDS: usize = 50_000;
/// Bytes on their way at once.
const WINDOW_BYTES: usize = 64 << 20;
/// Records are handed over so many at a time, then reports are looked at.
const BATCH: usize = 4096;
/// The cursor is kept at most so often: each time is an fsync, and a crash only resends what came after.
const KEEP_INTERVAL: Duration = Duration::from_millis(500);
/// Waits for a report or for something to send, no longer.
const WAIT: Duration = Duration::from_millis(5);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The number of heartbeats: nothing waits for them.
const UNNUMBERED: u64 = u64::MAX;

/// Why shipping cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// What was durable is not there any more: going on would leave a hole in the log.
    #[error("the spool cannot be shipped any further: {0}. Restore the file, or retire this spool")]
    Damaged(io::Error),
}

#[derive(Debug)]
struct Meters {
    acked: Vec<IntCounter>,
    pending: IntGauge,
    oldest: IntGauge,
    errors: IntCounter,
    heartbeats: IntCounter,
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records handed over.
    pub sent: usize,
    /// Records acknowledged, in any order.
    pub acked: usize,
    /// True if everything durable is shipped.
    pub idle: bool,
}

/// Ships one spool.
#[derive(Debug)]
pub struct Shipper {
    spool: Spool,
    connect: Box<dyn Connect>,
    transport: Option<Box<dyn Transport>>,
    reader: Reader,
    window: Window,
    unsent: VecDeque<(u64, Record)>,
    /// Passed, but not told to every partition yet.
    watermark: Option<Watermark>,
    kept: Cursor,
    drain: Duration,
    backoff: Duration,
    /// Times since the first step.
    retry_at: Duration,
    kept_at: Duration,
    heartbeat_at: Duration,
    reports: Vec<Report>,
    meters: Meters,
}

impl Shipper {
    /// Ships `spool` to the Kafka of `settings`; `role` names the producer in the brokers' logs. On a stop there is
    /// `drain` to ship what is left. Registers the metrics of spool and shipping, so once per registry.
    ///
    /// # Errors
    /// When the metrics' names are taken.
    pub fn to_kafka(
        spool: Spool,
        settings: &KafkaSettings,
        role: &str,
        metrics: &Metrics,
        drain: Duration,
    ) -> Result<Self, metrics::Error> {
        Self::new(spool, Box::new(KafkaConnect::new(settings, role)), metrics, drain)
    }

    /// The same through any connection.
    ///
    /// # Errors
    /// See [`Shipper::to_kafka`].
    pub fn new(
        spool: Spool,
        connect: Box<dyn Connect>,
        metrics: &Metrics,
        drain: Duration,
    ) -> Result<Self, metrics::Error> {
        spool.meter(metrics)?;
        let acked = metrics.counters(Name::ShipAcked, &["topic"])?;
        let meters = Meters {
            acked: spool.topics().iter().map(|topic| acked.with_label_values(&[&topic.name])).collect(),
            pending: metrics.gauge(Name::ShipPending)?,
            oldest: metrics.gauge(Name::ShipOldest)?,
            errors: metrics.counter(Name::ShipErrors)?,
            heartbeats: metrics.counter(Name::ShipHeartbeats)?,
        };
        let kept = spool.cursor();
        Ok(Self {
            reader: Reader::new(kept.acked),
            window: Window::new(kept.clone(), spool.topics()),
            spool,
            connect,
            transport: None,
            unsent: VecDeque::new(),
            watermark: None,
            kept,
            drain,
            backoff: BACKOFF_MIN,
            retry_at: Duration::ZERO,
            kept_at: Duration::ZERO,
            heartbeat_at: Duration::ZERO,
            reports: Vec::new(),
            meters,
        })
    }

    /// Ships until `shutdown`, then what is left: until [`Spool::close`] was called and all is shipped, or the time to
    /// drain is over (the next start ships the rest). To be run on a thread of its own.
    ///
    /// # Errors
    /// See [`ShipError`]. An unreachable Kafka is none.
    pub fn run(mut self, shutdown: &Shutdown) -> Result<(), ShipError> {
        let begun = Instant::now();
        let mut deadline = None;
        loop {
            let progress = self.step(begun.elapsed())?;
            if shutdown.is_cancelled() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.drain);
                let done = progress.idle && self.spool.is_closed() && self.spool.is_flushed();
                if done || Instant::now() >= deadline {
                    break;
                }
            }
            let (position, end) = (self.reader.position(), crate::spool::END);
            if progress.idle {
                self.spool.wait_beyond(position, WAIT * 10);
            } else if self.transport.is_none() {
                // Nothing wakes this but time.
                self.spool.wait_beyond(end, WAIT * 10);
            } else if progress.sent == 0 && progress.acked == 0 {
                // For reports, which wake nobody, and for what is new, unless it could not be sent just now.
                self.spool.wait_beyond(if self.spool.is_beyond(position) { end } else { position }, WAIT);
            }
        }
        self.keep(begun.elapsed(), true);
        let left = self.spool.stats().unshipped_records;
        if left > 0 {
            tracing::warn!(records = left, "stopped before all was shipped; the next start ships the rest");
        }
        Ok(())
    }

    /// One round: read, send, look at reports, move the cursor. `now` is any time that does not go back.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub fn step(&mut self, now: Duration) -> Result<Progress, ShipError> {
        let mut progress = Progress::default();
        self.mark_time(now);
        self.reconnect(now);
        let sent = self.send(now)?;
        progress.sent = sent;
        if let Some(transport) = &mut self.transport {
            let mut reports = std::mem::take(&mut self.reports);
            let polled = transport.poll(&mut reports);
            for report in reports.drain(..) {
                progress.acked += usize::from(report.result.is_ok());
                self.report(report, now);
            }
            self.reports = reports;
            if let Err(reason) = polled {
                self.fail(&reason, now);
            }
        }
        self.advance(now);
        self.heartbeats(now);
        self.keep(now, false);
        progress.idle = self.window.records() == 0 && !self.spool.is_beyond(self.reader.position());
        Ok(progress)
    }

    /// Where shipping stands; the kept cursor may be a little behind.
    pub fn cursor(&self) -> &Cursor {
        self.window.cursor()
    }

    /// Asks for a watermark each interval, and shows how things stand.
    fn mark_time(&mut self, now: Duration) {
        if now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = now + Duration::from_millis(self.spool.settings().heartbeat_interval_ms);
        if let Err(error) = self.spool.watermark()
            && !self.spool.is_closed()
        {
            tracing::warn!(%error, "no watermark: heartbeats pause");
        }
        // Ends of requests let segments go too, without any acknowledgement.
        if let Err(error) = self.spool.reclaim() {
            tracing::warn!(%error, "a shipped segment could not be removed");
        }
        let oldest = self.window.oldest();
        self.spool.set_oldest_unshipped(oldest);
        let age = oldest.map_or(0, |time| (self.spool.now().0 - time).max(0) / 1_000_000);
        self.meters.oldest.set(age);
        self.spool.observe();
    }

    fn reconnect(&mut self, now: Duration) {
        if self.transport.is_some() || now < self.retry_at {
            return;
        }
        match self.connect.connect() {
            Ok(transport) => self.transport = Some(transport),
            Err(reason) => self.fail(&reason, now),
        }
    }

    /// Hands over what is durable, until the window is full.
    fn send(&mut self, now: Duration) -> Result<usize, ShipError> {
        let mut sent = 0;
        while sent < BATCH {
            let Some(transport) = &mut self.transport else { break };
            if let Some((id, record)) = self.unsent.front() {
                match transport.send(outgoing(&self.spool, *id, record)) {
                    Ok(()) => drop(self.unsent.pop_front()),
                    Err(Refused::Busy) => break,
                    Err(Refused::Failed(reason)) => {
                        self.fail(&reason, now);
                        break;
                    }
                }
                sent += 1;
                continue;
            }
            if self.window.records() >= WINDOW_RECORDS || self.window.bytes() >= WINDOW_BYTES {
                break;
            }
            match self.spool.read(&mut self.reader) {
                Ok(Some(frame)) => self.unsent.extend(self.window.take(frame)),
                Ok(None) => break,
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
                    return Err(ShipError::Damaged(error));
                }
                Err(error) => {
                    tracing::warn!(%error, "the spool could not be read; trying again");
                    break;
                }
            }
        }
        Ok(sent)
    }

    fn report(&mut self, report: Report, now: Duration) {
        match report.result {
            Ok(_) if report.id == UNNUMBERED => {}
            Ok(offset) => {
                let delivered = self.window.acked(report.id, offset);
                let mut spend = self.spool.own_spend();
                for d in delivered {
                    spend.acknowledged(d.source, d.partition, d.seq, d.offset);
                }
            }
            Err(_) if left_out!(NewProducer) => {}
            Err(reason) => self.fail(&reason, now),
        }
    }

    /// The connection is given up: a new one begins at the cursor.
    fn fail(&mut self, reason: &str, now: Duration) {
        if self.transport.is_none() && now < self.retry_at {
            return;
        }
        self.meters.errors.inc();
        tracing::error!(reason, cursor = %self.window.cursor().acked, wait = ?self.backoff, "shipping failed; a new producer begins at the cursor");
        self.transport = None;
        self.retry_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.unsent.clear();
        // What is acknowledged in front of the failure stays so.
        self.advance(now);
        self.window.restart();
        self.reader = Reader::new(self.window.cursor().acked);
    }

    fn advance(&mut self, now: Duration) {
        let advance = self.window.advance();
        let records: u64 = advance.records.iter().sum();
        if records > 0 {
            self.backoff = BACKOFF_MIN;
            self.spool.acknowledged(records);
            self.meters.acked.iter().zip(&advance.records).for_each(|(counter, records)| counter.inc_by(*records));
        }
        self.meters.pending.set(self.spool.pending() as i64);
        if let Some(watermark) = advance.watermark.filter(|watermark| watermark.source == self.spool.source().0) {
            self.watermark = Some(watermark);
        }
        // A segment is left behind: it can go when the cursor is kept.
        if self.window.cursor().acked.segment != self.kept.acked.segment {
            self.kept_at = now;
        }
    }

    /// Tells every partition the newest watermark that everything acknowledged stands behind.
    fn heartbeats(&mut self, now: Duration) {
        if left_out!(Heartbeats) {
            return;
        }
        let (Some(transport), Some(watermark)) = (&mut self.transport, self.watermark.take()) else { return };
        let (spool, source) = (self.spool.id(), SourceId(watermark.source));
        for (topic, seqs) in self.spool.topics().iter().zip(&watermark.seqs) {
            for (partition, &seq_high) in (0..).zip(seqs) {
                let mark = Mark::Heartbeat { spool, source, watermark: Micros(watermark.time), seq_high };
                let headers = headers_of(&mark);
                let heartbeat = Outgoing {
                    id: UNNUMBERED,
                    topic: &topic.name,
                    partition,
                    key: None,
                    value: None,
                    headers: &headers,
                };
                match transport.send(heartbeat) {
                    Ok(()) => self.meters.heartbeats.inc(),
                    // The next one says more.
                    Err(Refused::Busy) => {}
                    Err(Refused::Failed(reason)) => return self.fail(&reason, now),
                }
            }
        }
    }

    /// Keeps the cursor, if it is time.
    fn keep(&mut self, now: Duration, at_once: bool) {
        let cursor = self.window.cursor();
        if *cursor == self.kept || (now < self.kept_at && !at_once) {
            return;
        }
        self.kept_at = now + KEEP_INTERVAL;
        match self.spool.advance(cursor) {
            Ok(()) => {
                let left_behind = cursor.acked.segment != self.kept.acked.segment;
                self.kept = cursor.clone();
                if left_behind && let Err(error) = self.spool.reclaim() {
                    tracing::warn!(%error, "a shipped segment could not be removed");
                }
            }
            Err(error) => tracing::warn!(%error, "the cursor could not be kept; a crash would send more again"),
        }
    }
}

fn outgoing<'a>(spool: &'a Spool, id: u64, record: &'a Record) -> Outgoing<'a> {
    Outgoing {
        id,
        topic: spool.topics().get(record.topic as usize).map_or("", |topic| &topic.name),
        partition: record.partition,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: &record.headers,
    }
}

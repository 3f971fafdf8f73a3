//! One line at work: reads its partition, asks ClickHouse what its driver wants to know, publishes balances, says how it is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ledger::ids::TenantId;
use ledger::time::Micros;
use runtime::{Clock, Condition, Shutdown};
use schemas::event::BalanceUpdated;
use sql::{ChunkRows, DataRow as _, Table};
use stream::consume::{Bounds, ConsumeError, PartitionConsumer, Record};
use stream::control::ControlView;
use stream::kafka::KafkaSettings;
use stream::partition::partition_of;
use tokio::time::MissedTickBehavior;

use crate::ask::{self, Beside};
use crate::balances::{self, Balances};
use crate::call::{Answer, Call, Event, Standstill, Taken};
use crate::control::TenantZones;
use crate::driver::{Cuts, Driver};
use crate::event::FoldEvent;
use crate::health::Health;
use crate::looks::{Known, Looks, Seen};
use crate::meters::LineMeters;
use crate::publish::{PublishError, Publisher};
use crate::store::Store;

/// The consumer group whose offsets show the lag to people. Nobody joins it, and nothing reads them.
pub(crate) const GROUP: &str = "tollgate-fold";
/// Balances are published so often while there is something new.
const TICK: Duration = Duration::from_millis(50);
/// A line that has more offsets before it is behind: what it publishes is old already, and of many tenants a burden.
const BEHIND: i64 = 20_000;
/// Then it rests so long for each balance that it has published, which takes some 10 µs: it has the other nine tenths for catching up.
const REST: Duration = Duration::from_micros(100);
/// The end of the log is asked for, and the figure of lag committed, so often.
const LOOK: Duration = Duration::from_secs(1);
/// Everything that a quota may ask for is published again so often.
const REFRESH: Duration = Duration::from_secs(60);
/// A consumer that failed is opened again after so long.
const REOPEN: Duration = Duration::from_secs(1);
/// Records that are taken at once, before anything else is looked at.
const BATCH: usize = 256;

/// What all lines of a process share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) kafka: KafkaSettings,
    pub(crate) store: Store,
    pub(crate) publisher: Publisher,
    pub(crate) control: ControlView,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cuts: Cuts,
    pub(crate) stall: Duration,
}

type Answered = BoxFuture<'static, (Answer, Option<Beside>)>;
type Published = BoxFuture<'static, (Vec<BalanceUpdated>, Result<(), PublishError>)>;
type Looked = BoxFuture<'static, Result<Bounds, ConsumeError>>;

/// A line, with all that it touches.
pub(crate) struct Line<E: FoldEvent> {
    shared: Shared,
    table: Table,
    partition: i32,
    meters: LineMeters,
    health: Health,
    driver: Driver<E>,
    balances: Option<Balances>,
    log: Option<PartitionConsumer>,
    /// A record that has no room yet.
    held: Option<Record>,
    call: Option<Answered>,
    publishing: Option<Published>,
    looking: Option<Looked>,
    began: Instant,
    /// The tables that the position was proven of.
    tables: u64,
    inserted_at: Instant,
    looked_at: Option<Instant>,
    refreshed_at: Instant,
    published_at: Instant,
    /// How many balances were published then.
    published: u32,
    reopen_at: Option<Instant>,
    committed: i64,
    control_offset: i64,
    looks: Looks,
}

impl<E: FoldEvent> Line<E> {
    pub(crate) fn new(shared: Shared, partition: i32, meters: LineMeters, condition: Condition) -> Self {
        let now = Instant::now();
        Self {
            driver: Driver::new(partition, shared.cuts),
            table: E::Row::TABLE,
            health: Health::new(condition, shared.stall),
            shared,
            partition,
            meters,
            balances: None,
            log: None,
            held: None,
            call: None,
            publishing: None,
            looking: None,
            began: now,
            tables: 0,
            inserted_at: now,
            looked_at: None,
            refreshed_at: now,
            published_at: now,
            published: 0,
            reopen_at: None,
            committed: 0,
            control_offset: 0,
            looks: Looks::default(),
        }
    }

    /// Folds until shutdown. What fails is tried again for ever, and said on `/readyz`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Result<(), Infallible> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !shutdown.is_cancelled() {
            self.seek();
            self.take_held();
            self.ask();
            let due = self.driver.due_in_ms(self.now_ms()).filter(|_| self.call.is_none());
            let reads = self.held.is_none() && self.driver.wants_records();
            tokio::select! {
                () = shutdown.cancelled() => break,
                (answer, beside) = pending_or(&mut self.call) => {
                    self.call = None;
                    self.answered(answer, beside);
                }
                record = next_of(self.log.as_ref()), if reads => self.read(record),
                () = tokio::time::sleep(Duration::from_millis(due.unwrap_or(0))), if due.is_some() => {}
                (updates, published) = pending_or(&mut self.publishing) => {
                    self.publishing = None;
                    self.published(&updates, published);
                }
                bounds = pending_or(&mut self.looking) => {
                    self.looking = None;
                    self.looked(bounds);
                }
                _ = tick.tick() => self.tick(),
            }
        }
        self.health.stopping();
        Ok(())
    }

    /// A clock that only goes forward.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Opens the log where the driver wants to read: one record early, to see that it is the log that was folded.
    fn seek(&mut self) {
        if let Some(from) = self.driver.take_seek() {
            self.held = None;
            self.open((from - 1).max(0));
        } else if self.reopen_at.is_some_and(|at| at <= Instant::now()) {
            self.open(self.driver.reads_from());
        }
    }

    fn open(&mut self, from: i64) {
        self.reopen_at = None;
        let opened = match self.log.take() {
            Some(mut log) => log.restart(from).map(|()| log),
            None => PartitionConsumer::open(&self.shared.kafka, GROUP, self.table.topic(), self.partition, from),
        };
        match opened {
            Ok(log) => self.log = Some(log),
            Err(error) => self.lost_log(&error),
        }
    }

    fn lost_log(&mut self, error: &ConsumeError) {
        self.meters.error("kafka");
        tracing::warn!(topic = self.table.topic(), partition = self.partition, %error, "the log is opened again");
        self.health.kafka = Some(error.to_string());
        self.reopen_at = Some(Instant::now() + REOPEN);
        self.close();
    }

    fn close(&mut self) {
        if let Some(log) = self.log.take() {
            // Closing it waits for its threads.
            drop(tokio::task::spawn_blocking(move || drop(log)));
        }
    }

    fn take_held(&mut self) {
        if let Some(record) = self.held.take() {
            self.take(record);
        }
    }

    fn take(&mut self, record: Record) {
        let now_ms = self.now_ms();
        let (driver, balances, control) = (&mut self.driver, &mut self.balances, &self.shared.control);
        let taken = record.lend(|lent| {
            driver.take(lent, now_ms, |event| {
                if let Some(balances) = balances {
                    let used = event.and_then(FoldEvent::counts);
                    balances.take(record.offset, used.as_ref(), &TenantZones(control));
                }
            })
        });
        if taken == Taken::NoRoom {
            self.held = Some(record);
        }
    }

    /// Takes a record, and those that are there already.
    fn read(&mut self, first: Result<Record, ConsumeError>) {
        let mut next = Some(first);
        for _ in 0..BATCH {
            match next.take() {
                Some(Ok(record)) => {
                    self.health.kafka = None;
                    self.take(record);
                }
                Some(Err(error)) => return self.unread(&error),
                None => return,
            }
            if self.held.is_some() || !self.driver.wants_records() {
                return;
            }
            next = next_of(self.log.as_ref()).now_or_never();
        }
        if let Some(Ok(record)) = next {
            self.held = Some(record);
        }
    }

    fn unread(&mut self, error: &ConsumeError) {
        match error {
            ConsumeError::Transient(_) => {
                self.meters.error("kafka");
                tracing::debug!(topic = self.table.topic(), partition = self.partition, %error, "Kafka is away");
                self.health.kafka = Some(error.to_string());
            }
            // What is there now decides whether this is the end: the record before the position may be gone for good.
            ConsumeError::OutOfRange { .. } => {
                if let Some(log) = &self.log {
                    let (log, from) = (log.clone(), self.driver.reads_from());
                    self.looking = Some(async move { within(log.bounds().await?, from, log.place()) }.boxed());
                }
                self.lost_log(error);
            }
            ConsumeError::NoLogTime { .. } => self.driver.stand_still(Standstill::OtherLog(error.to_string())),
            ConsumeError::Missing { .. } | ConsumeError::Failed(_) => self.lost_log(error),
        }
    }

    /// Asks ClickHouse the next thing, if nothing is asked.
    fn ask(&mut self) {
        if self.call.is_some() {
            return;
        }
        let Some(call) = self.driver.next(self.now_ms()) else { return };
        match &call {
            Call::Prove { .. } => self.meters.all.proofs.inc(),
            Call::Insert { .. } => self.inserted_at = Instant::now(),
            Call::EventIds(_) | Call::Copy(_) | Call::Position => {}
        }
        let totals_from = balances::horizon(Micros(self.shared.clock.now()));
        self.call =
            Some(ask::perform::<E>(self.shared.clone(), self.partition, call, totals_from, self.tables).boxed());
    }

    fn answered(&mut self, answer: Answer, beside: Option<Beside>) {
        if let (Answer::Proof(Ok(proof)), Some(Beside { totals, tables })) = (&answer, beside) {
            self.tables = tables;
            if let Some((from, totals)) = totals {
                let zones = TenantZones(&self.shared.control);
                self.balances = Some(Balances::load(self.partition, proof.position, from, &totals, &zones));
                self.correct();
            }
        }
        let before = self.driver.position();
        let told = self.driver.on(answer, self.now_ms());
        self.tell(told);
        if self.driver.position() != before {
            self.health.advanced();
        }
        if !self.driver.has_failed() {
            self.health.clickhouse = None;
        }
    }

    fn tell(&mut self, event: Event<E::Row>) {
        let (topic, partition) = (self.table.topic(), self.partition);
        match event {
            Event::Nothing => {}
            Event::Proven(position) => {
                self.meters.position.set(position);
                tracing::debug!(topic, partition, position, "proven");
            }
            Event::Written(rows) => {
                self.meters.written(&rows);
                self.meters.all.insert.observe(self.inserted_at.elapsed().as_secs_f64());
                if let Some(first_ms) = first_news(&rows) {
                    let age_ms = (self.shared.clock.now() / 1000).saturating_sub(first_ms);
                    self.meters.all.delay.observe(Duration::from_millis(age_ms.try_into().unwrap_or(0)).as_secs_f64());
                }
                for dead in &rows.dead {
                    tracing::error!(
                        topic,
                        partition,
                        offset = dead.offset,
                        reason = dead.reason,
                        detail = dead.detail,
                        "dead letter"
                    );
                }
            }
            Event::Foreign(position) => {
                self.meters.chunk("foreign");
                self.meters.position.set(position);
                tracing::warn!(topic, partition, position, "another process folds this line too: its chunk was first");
            }
            Event::Torn => {
                self.meters.chunk("torn");
                tracing::warn!(
                    topic,
                    partition,
                    "ClickHouse kept a chunk's token and lost its rows: sent under another token"
                );
            }
            Event::Failed(kind, why) => {
                self.meters.error(kind);
                if matches!(kind, "fence" | "insert") {
                    self.meters.chunk("refused");
                }
                if self.health.clickhouse.is_none() {
                    tracing::warn!(topic, partition, kind, why, "the position is proven again");
                }
                self.health.clickhouse = Some(why);
            }
        }
    }

    /// What happens without any record or answer: balances go out, the end of the log is looked at, health is said.
    fn tick(&mut self) {
        let now = Instant::now();
        self.follow_control();
        if self.refreshed_at + REFRESH <= now {
            self.refreshed_at = now;
            let micros = Micros(self.shared.clock.now());
            self.balances.iter_mut().for_each(|balances| balances.refresh(micros));
        }
        self.publish();
        if self.looked_at.is_none_or(|at| at + LOOK <= now) && self.looking.is_none() {
            self.looked_at = Some(now);
            self.look();
        }
        let (position, reads_from) = (self.driver.position(), self.driver.reads_from());
        self.health.say(position, reads_from, self.driver.stands_still(), &self.meters);
    }

    /// A tenant whose time zone changed has other periods: all balances begin anew with what ClickHouse holds.
    fn follow_control(&mut self) {
        let offset = self.shared.control.load().offset;
        if offset == std::mem::replace(&mut self.control_offset, offset) {
            return;
        }
        let zones = TenantZones(&self.shared.control);
        if self.balances.as_ref().is_some_and(|balances| balances.is_outdated(&zones)) {
            tracing::info!(partition = self.partition, "a tenant's time zone changed: balances are computed anew");
            self.driver.reload_balances();
        }
        self.correct();
    }

    /// The corrections that control holds, of the tenants whose tokens are in this partition.
    fn correct(&mut self) {
        let Some(balances) = &mut self.balances else { return };
        let (control, partitions) = (self.shared.control.load(), self.shared.kafka.partitions);
        let belongs = |tenant: &TenantId| partition_of(tenant.as_str().as_bytes(), partitions) == self.partition;
        let made = control.state.adjustments().map(|(_, made)| made);
        balances.correct(made, belongs, &TenantZones(&self.shared.control));
    }

    fn publish(&mut self) {
        let Some(balances) = &mut self.balances else { return };
        let unknown = balances.take_unknown();
        if unknown > 0 {
            self.meters.all.unknown_tenants.inc_by(unknown);
            tracing::error!(
                partition = self.partition,
                unknown,
                "usage of tenants that control does not know: their periods are UTC months"
            );
        }
        let is_behind = self.health.end.is_some_and(|end| end - self.driver.reads_from() > BEHIND);
        let waits = is_behind && self.published_at.elapsed() < REST.saturating_mul(self.published);
        if waits || self.publishing.is_some() || !balances.is_dirty() {
            return;
        }
        self.published_at = Instant::now();
        let updates = balances.take_dirty(self.control_offset, Micros(self.shared.clock.now()));
        self.published = u32::try_from(updates.len()).unwrap_or(u32::MAX);
        let publisher = self.shared.publisher.clone();
        self.publishing = Some(
            async move {
                let published = publisher.balances(&updates).await;
                (updates, published)
            }
            .boxed(),
        );
    }

    fn published(&mut self, updates: &[BalanceUpdated], published: Result<(), PublishError>) {
        match published {
            Ok(()) => self.meters.all.balances.inc_by(updates.len() as u64),
            Err(error) => {
                self.meters.error("balances");
                tracing::warn!(partition = self.partition, %error, "balances are published again");
                self.balances.iter_mut().for_each(|balances| balances.unpublished(updates));
            }
        }
    }

    fn look(&mut self) {
        let Some(log) = self.log.clone() else { return };
        if let Some(position) = self.driver.position().filter(|&position| position > self.committed) {
            self.committed = position;
            log.commit_figure(position);
        }
        let (position, reads_from) = (self.driver.position().unwrap_or(0), self.driver.reads_from());
        self.looks.ask(Known { position, reads_from });
        self.looking = Some(async move { log.bounds().await }.boxed());
    }

    /// A consumer that was opened while its topic was made anew may hear nothing for ever, neither records nor that its offset is
    /// not there.
    fn listen(&mut self, end: i64) {
        let waits = self.driver.wants_records() && self.held.is_none();
        let (topic, partition) = (self.table.topic(), self.partition);
        match self.looks.see(end, waits.then(|| self.driver.reads_from())) {
            Seen::Nothing => {}
            Seen::Shorter(offset) => {
                let error = ConsumeError::OutOfRange { topic: topic.to_owned(), partition, offset };
                self.driver.stand_still(Standstill::OtherLog(error.to_string()));
            }
            Seen::Silent(from) => {
                tracing::warn!(topic, partition, from, end, "nothing comes of what is there: the log is opened again");
                self.close();
                self.open((from - 1).max(0));
            }
        }
    }

    fn looked(&mut self, bounds: Result<Bounds, ConsumeError>) {
        match bounds {
            Ok(bounds) => {
                if self.log.is_some() {
                    self.health.kafka = None;
                }
                self.health.end = Some(bounds.next);
                self.listen(bounds.next);
            }
            Err(error @ ConsumeError::OutOfRange { .. }) => {
                self.driver.stand_still(Standstill::OtherLog(error.to_string()));
            }
            Err(error) => self.health.kafka = Some(error.to_string()),
        }
    }
}

/// The log time of the first record of a chunk that somebody waits for: heartbeats alone wait on purpose.
fn first_news<D>(rows: &ChunkRows<D>) -> Option<i64> {
    let (data, dead) = (rows.data.first().map(|row| row.log_time_ms), rows.dead.first().map(|row| row.log_time_ms));
    data.into_iter().chain(dead).min()
}

/// Whether a position can be read on from, given what is there: its own record may be there although the one before is not.
fn within(bounds: Bounds, from: i64, (topic, partition): (String, i32)) -> Result<Bounds, ConsumeError> {
    if (bounds.first..=bounds.next).contains(&from) {
        return Ok(bounds);
    }
    Err(ConsumeError::OutOfRange { topic, partition, offset: from })
}

async fn next_of(log: Option<&PartitionConsumer>) -> Result<Record, ConsumeError> {
    match log {
        Some(log) => log.next().await,
        None => std::future::pending().await,
    }
}

async fn pending_or<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

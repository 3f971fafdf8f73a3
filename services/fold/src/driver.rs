//! What one line does next: proof, read, cut, insert, read back. No I/O and no clock: a simulation drives the same code.

use std::sync::Arc;

use sql::{ChunkRows, Position, Proof};
use stream::cut::CutPolicy;
use stream::line::{LineState, LogRecord};

use crate::call::{Answer, Call, Event, Refused, Standstill, StoreError, Taken};
use crate::chunk::{ClosedChunk, OpenChunk, proven};
use crate::event::FoldEvent;

/// What an insert may take, milliseconds by ClickHouse's clock: PROTOCOL rule 14.
pub(crate) const INSERT_WITHIN_MS: i64 = 60_000;
/// After so long without word of ClickHouse it is asked before an insert whether what was proven is still there: a chunk
/// that lands in data which were dropped or restored meanwhile is a hole.
const FRESH_MS: u64 = 100;
/// After so long it is proven anew.
const STALE_MS: u64 = 5_000;
/// A line with nothing to write looks so often whether what it wrote is still there.
const IDLE_MS: u64 = 10_000;
/// Of a deadline so much must be left for another token to be tried.
const RETRY_MARGIN_MS: i64 = 5_000;
/// So many tokens are tried under one deadline.
const RETRIES: u32 = 20;
/// A line that stands still looks so often whether it may go on.
pub(crate) const STOPPED_MS: u64 = 5_000;
/// The waits after failures: doubled from the first to the last.
const BACKOFF_MS: (u64, u64) = (50, 5_000);

/// Where chunks end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cuts {
    /// When a chunk is due.
    pub(crate) due: CutPolicy,
    /// What one block holds, when more comes than is written. Beyond it the line reads no further.
    pub(crate) block: CutPolicy,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The position is in doubt.
    Doubt { not_before_ms: u64 },
    /// Nothing is asked but, before an insert, the position.
    Read,
    /// Resends of a closed chunk are asked for.
    Settle,
    /// A chunk is to be written.
    Insert,
    /// A chunk was written, or so it seems.
    ReadBack,
}

/// What ClickHouse has said last.
#[derive(Debug, Clone, Copy)]
struct Base {
    position: i64,
    chain: [u8; 32],
    now_ms: i64,
    /// By the caller's clock.
    heard_ms: u64,
}

/// A chunk on its way.
#[derive(Debug)]
struct Cut<D> {
    rows: Arc<ChunkRows<D>>,
    retry: u32,
}

/// One line: the state of one topic and partition on its way into ClickHouse.
#[derive(Debug)]
pub(crate) struct Driver<E: FoldEvent> {
    partition: i32,
    cuts: Cuts,
    base: Option<Base>,
    /// The state after the last record that was read. It runs ahead of what is written.
    tip: LineState,
    /// The next offset that the balances have not seen: where the line begins beyond it, they need totals.
    counted: i64,
    open: OpenChunk<E>,
    closed: Option<ClosedChunk<E::Row>>,
    cut: Option<Cut<E::Row>>,
    phase: Phase,
    asked: bool,
    /// The next proof is what the line begins with anew.
    begin_anew: bool,
    with_totals: bool,
    /// Whether the proof that is being asked for comes with totals.
    asked_totals: bool,
    seek: Option<i64>,
    blocked: Option<Standstill>,
    failures: u32,
}

impl<E: FoldEvent> Driver<E> {
    /// A line that knows nothing yet.
    pub(crate) fn new(partition: i32, cuts: Cuts) -> Self {
        Self {
            partition,
            cuts,
            base: None,
            tip: LineState::default(),
            counted: 0,
            open: OpenChunk::at(0),
            closed: None,
            cut: None,
            phase: Phase::Doubt { not_before_ms: 0 },
            asked: false,
            begin_anew: true,
            with_totals: E::BALANCED,
            asked_totals: false,
            seek: None,
            blocked: None,
            failures: 0,
        }
    }

    /// The next offset that ClickHouse lacks, as it said last.
    pub(crate) fn position(&self) -> Option<i64> {
        self.base.map(|base| base.position)
    }

    /// Whether something failed and is not known to be over.
    pub(crate) const fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// The next offset to read.
    pub(crate) const fn reads_from(&self) -> i64 {
        self.tip.position
    }

    /// Where the log must be read from, when it must be opened anew.
    pub(crate) fn take_seek(&mut self) -> Option<i64> {
        self.seek.take()
    }

    /// Why the line stands still, if it does.
    pub(crate) const fn stands_still(&self) -> Option<&Standstill> {
        self.blocked.as_ref()
    }

    /// Whether records can be taken.
    pub(crate) const fn wants_records(&self) -> bool {
        self.base.is_some() && self.blocked.is_none()
    }

    /// The balances are to begin anew: with what ClickHouse holds at the next proof.
    pub(crate) fn reload_balances(&mut self) {
        if E::BALANCED {
            (self.with_totals, self.begin_anew) = (true, true);
        }
    }

    /// The line goes no further, for a reason that lies in the log.
    pub(crate) fn stand_still(&mut self, why: Standstill) {
        self.blocked.get_or_insert(why);
    }

    /// Takes the next record of the log, if it is the next. `seen` is told of each record that the line steps over, with
    /// the event if it counts.
    pub(crate) fn take(&mut self, record: &LogRecord<'_>, now_ms: u64, seen: impl FnOnce(Option<&E>)) -> Taken {
        let Some(base) = self.base.filter(|_| self.blocked.is_none()) else { return Taken::StoodStill };
        if record.offset < self.tip.position {
            return self.read_before(record);
        }
        let is_ours = record.offset >= base.position;
        if is_ours && self.open.is_full_for(record, &self.cuts.block) {
            return Taken::NoRoom;
        }
        let step = match self.tip.step::<E>(record) {
            Ok(step) => step,
            Err(stop) => {
                self.stand_still(Standstill::Lost(stop));
                return Taken::StoodStill;
            }
        };
        self.counted = self.counted.max(self.tip.position);
        seen(match &step.outcome {
            stream::line::Outcome::Folded(event) => Some(event),
            _ => None,
        });
        if is_ours {
            self.open.put(record, step.outcome, &self.tip, now_ms);
        } else if self.tip.position == base.position && self.tip.chain.0 != base.chain {
            self.stand_still(other_chain(base.position));
        }
        Taken::Stepped
    }

    /// A record from before: the log is opened one record early, to see that it is the log that was folded.
    fn read_before(&mut self, record: &LogRecord<'_>) -> Taken {
        if record.log_time_ms <= self.tip.log_time_ms {
            return Taken::Skipped;
        }
        self.stand_still(Standstill::OtherLog(format!(
            "the record at offset {} is younger than all that was folded up to offset {}: the topic was made anew; \
             restore it, or rebuild from a log that is whole",
            record.offset, self.tip.position
        )));
        Taken::StoodStill
    }

    /// What is to be asked now. After each call comes one [`Driver::on`].
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<Call<E::Row>> {
        if self.asked {
            return None;
        }
        let call = match self.phase {
            Phase::Doubt { not_before_ms } if now_ms < not_before_ms => None,
            Phase::Doubt { .. } => Some(Call::Prove { with_totals: self.with_totals }),
            Phase::Read => self.close_if_due(now_ms),
            Phase::Settle => None,
            Phase::Insert => self.insert(),
            Phase::ReadBack => Some(Call::Position),
        };
        self.asked = call.is_some();
        if let Some(Call::Prove { with_totals }) = call {
            self.asked_totals = with_totals;
        }
        call
    }

    /// Milliseconds until [`Driver::next`] has something without any record or answer; none if it waits for those.
    pub(crate) fn due_in_ms(&self, now_ms: u64) -> Option<u64> {
        match self.phase {
            _ if self.asked => None,
            Phase::Doubt { not_before_ms } => Some(not_before_ms.saturating_sub(now_ms)),
            Phase::Read if self.blocked.is_some() || self.begin_anew => Some(0),
            Phase::Read => {
                let due = self.open.due_in_ms(now_ms, &self.cuts.due);
                Some(due.unwrap_or_else(|| IDLE_MS.saturating_sub(self.idle_for_ms(now_ms))))
            }
            Phase::Settle | Phase::Insert | Phase::ReadBack => Some(0),
        }
    }

    /// How long ago ClickHouse said anything of the position.
    fn idle_for_ms(&self, now_ms: u64) -> u64 {
        self.base.map_or(u64::MAX, |base| now_ms.saturating_sub(base.heard_ms))
    }

    fn close_if_due(&mut self, now_ms: u64) -> Option<Call<E::Row>> {
        if self.begin_anew {
            return self.doubt(now_ms, 0);
        }
        if self.open.is_empty() {
            // What came before the standstill is written: look again whether it may go on.
            if self.blocked.is_some() {
                self.begin_anew = true;
                return self.doubt(now_ms, STOPPED_MS);
            }
            return if self.idle_for_ms(now_ms) >= IDLE_MS { self.doubt(now_ms, 0) } else { None };
        }
        if self.blocked.is_none() && self.open.due_in_ms(now_ms, &self.cuts.due) != Some(0) {
            return None;
        }
        match self.idle_for_ms(now_ms) {
            0..=FRESH_MS => {}
            idle if idle <= STALE_MS => return Some(Call::Position),
            _ => return self.doubt(now_ms, 0),
        }
        let open = std::mem::replace(&mut self.open, OpenChunk::at(self.tip.position));
        let (closed, resends) = open.close(self.partition, &self.tip);
        if resends.is_empty() {
            self.cut(closed);
            return self.insert();
        }
        self.closed = Some(closed);
        self.phase = Phase::Settle;
        Some(Call::EventIds(resends))
    }

    fn cut(&mut self, closed: ClosedChunk<E::Row>) {
        self.cut = Some(Cut { rows: Arc::new(closed.rows), retry: 0 });
        self.phase = Phase::Insert;
    }

    fn insert(&self) -> Option<Call<E::Row>> {
        let (base, cut) = (self.base?, self.cut.as_ref()?);
        let insert_before_ms = base.now_ms.saturating_add(INSERT_WITHIN_MS);
        Some(Call::Insert { rows: cut.rows.clone(), retry: cut.retry, insert_before_ms })
    }

    fn doubt(&mut self, now_ms: u64, wait_ms: u64) -> Option<Call<E::Row>> {
        self.phase = Phase::Doubt { not_before_ms: now_ms.saturating_add(wait_ms) };
        (wait_ms == 0).then_some(Call::Prove { with_totals: self.with_totals })
    }

    /// Takes what came of the call.
    pub(crate) fn on(&mut self, answer: Answer, now_ms: u64) -> Event<E::Row> {
        self.asked = false;
        match answer {
            Answer::Proof(Ok(proof)) => self.proven(&proof, now_ms),
            Answer::Proof(Err(StoreError::Damaged(why))) => {
                self.stand_still(Standstill::Damaged(why.clone()));
                self.begin_anew = true;
                self.doubt(now_ms, STOPPED_MS);
                Event::Failed("damaged", why)
            }
            Answer::EventIds(Ok(found)) => {
                if let Some(mut closed) = self.closed.take() {
                    closed.settle(&found);
                    self.cut(closed);
                }
                Event::Nothing
            }
            Answer::Inserted(Ok(())) => {
                self.phase = Phase::ReadBack;
                Event::Nothing
            }
            Answer::Position(Ok(position)) => self.read_back(position, now_ms),
            Answer::Inserted(Err(Refused::Malformed(why))) => {
                self.stand_still(Standstill::Damaged(format!("a chunk contradicts itself (a bug in Tollgate): {why}")));
                self.begin_anew = true;
                self.doubt(now_ms, STOPPED_MS);
                Event::Failed("malformed", why)
            }
            Answer::Inserted(Err(refused)) => {
                let kind = if refused == Refused::Fence { "fence" } else { "insert" };
                self.failed(kind, refused.to_string(), now_ms)
            }
            Answer::EventIds(Err(error)) => {
                // What was closed is read again: it is not known what of it counts.
                self.begin_anew = true;
                self.closed = None;
                self.failed("event_ids", error.to_string(), now_ms)
            }
            Answer::Proof(Err(error)) => self.failed("proof", error.to_string(), now_ms),
            Answer::Position(Err(error)) => self.failed("read_back", error.to_string(), now_ms),
        }
    }

    fn failed(&mut self, kind: &'static str, why: String, now_ms: u64) -> Event<E::Row> {
        let (first, last) = BACKOFF_MS;
        let wait = first.saturating_mul(1 << self.failures.min(10)).min(last);
        self.failures = self.failures.saturating_add(1);
        self.doubt(now_ms, wait);
        Event::Failed(kind, why)
    }

    fn proven(&mut self, proof: &Proof, now_ms: u64) -> Event<E::Row> {
        let Some(base) = self.base.filter(|_| !self.begin_anew) else {
            return self.begin(proof, now_ms);
        };
        if proof.position < base.position {
            // Dropped, or restored from an older backup: what is missing is read again.
            return self.begin(proof, now_ms);
        }
        if proof.position == base.position {
            if proof.chain != base.chain {
                return self.differs(proof.position, now_ms);
            }
            self.heard(proof.position, proof.chain, proof.now_ms, now_ms);
            match &mut self.cut {
                Some(cut) => {
                    cut.retry = 0;
                    self.phase = Phase::Insert;
                }
                None => {
                    self.failures = 0;
                    self.phase = Phase::Read;
                }
            }
            return Event::Proven(proof.position);
        }
        match self.cut.take_if(|cut| cut.rows.end == proof.position) {
            Some(cut) if cut.rows.chain == proof.chain => self.written(cut, proof.now_ms, now_ms),
            Some(_) => self.differs(proof.position, now_ms),
            None => self.foreign(proof, now_ms),
        }
    }

    fn differs(&mut self, position: i64, now_ms: u64) -> Event<E::Row> {
        let why = other_chain(position);
        let said = why.to_string();
        self.stand_still(why);
        self.begin_anew = true;
        self.doubt(now_ms, STOPPED_MS);
        Event::Failed("chain", said)
    }

    /// Another's cut won: what it covers is dropped here.
    fn foreign(&mut self, proof: &Proof, now_ms: u64) -> Event<E::Row> {
        if proof.position < self.tip.position || self.blocked.is_some() {
            self.begin(proof, now_ms);
        } else {
            (self.cut, self.closed) = (None, None);
            self.open = OpenChunk::at(proof.position);
            self.heard(proof.position, proof.chain, proof.now_ms, now_ms);
            self.phase = Phase::Read;
            if self.tip.position == proof.position && self.tip.chain.0 != proof.chain {
                return self.differs(proof.position, now_ms);
            }
        }
        Event::Foreign(proof.position)
    }

    fn read_back(&mut self, position: Position, now_ms: u64) -> Event<E::Row> {
        let Some((first, end)) = self.cut.as_ref().map(|cut| (cut.rows.first, cut.rows.end)) else {
            self.looked(position, now_ms);
            return Event::Nothing;
        };
        // Where data were dropped or restored beneath this line, a chunk may be the last one and not follow the others.
        if position.position == end
            && position.offsets == end
            && let Some(cut) = self.cut.take()
        {
            return self.written(cut, position.now_ms, now_ms);
        }
        if position.position != first {
            self.phase = Phase::Doubt { not_before_ms: now_ms };
            return Event::Nothing;
        }
        let deadline = self.base.map_or(i64::MIN, |base| base.now_ms.saturating_add(INSERT_WITHIN_MS));
        let lasts = position.now_ms.saturating_add(RETRY_MARGIN_MS) < deadline;
        match &mut self.cut {
            Some(cut) if lasts && cut.retry < RETRIES => {
                cut.retry += 1;
                self.phase = Phase::Insert;
            }
            _ => self.phase = Phase::Doubt { not_before_ms: now_ms },
        }
        Event::Torn
    }

    /// ClickHouse was asked before an insert.
    fn looked(&mut self, found: Position, now_ms: u64) {
        match self.base {
            Some(base) if (found.position, found.offsets) == (base.position, base.position) => {
                self.heard(base.position, base.chain, found.now_ms, now_ms);
                self.phase = Phase::Read;
            }
            _ => self.phase = Phase::Doubt { not_before_ms: now_ms },
        }
    }

    fn written(&mut self, cut: Cut<E::Row>, clickhouse_ms: i64, now_ms: u64) -> Event<E::Row> {
        self.heard(cut.rows.end, cut.rows.chain, clickhouse_ms, now_ms);
        self.failures = 0;
        self.phase = Phase::Read;
        Event::Written(cut.rows)
    }

    fn heard(&mut self, position: i64, chain: [u8; 32], clickhouse_ms: i64, now_ms: u64) {
        self.base = Some(Base { position, chain, now_ms: clickhouse_ms, heard_ms: now_ms });
    }

    /// Begins with what was proven; the log is read from there.
    fn begin(&mut self, proof: &Proof, now_ms: u64) -> Event<E::Row> {
        if E::BALANCED && !self.asked_totals && proof.position > self.counted {
            self.reload_balances();
            self.doubt(now_ms, 0);
            return Event::Nothing;
        }
        self.counted = self.counted.max(proof.position);
        self.heard(proof.position, proof.chain, proof.now_ms, now_ms);
        self.tip = proven(proof);
        self.open = OpenChunk::at(proof.position);
        (self.cut, self.closed, self.blocked) = (None, None, None);
        // Totals that were asked for since are another proof's.
        self.with_totals &= !self.asked_totals;
        self.begin_anew = self.with_totals;
        self.seek = Some(proof.position);
        self.phase = Phase::Read;
        Event::Proven(proof.position)
    }
}

fn other_chain(position: i64) -> Standstill {
    Standstill::OtherLog(format!(
        "what ClickHouse holds up to offset {position} was folded from another log than this one (the chains differ): \
         restore the topic, or rebuild"
    ))
}

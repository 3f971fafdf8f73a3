//! What one line does next: proof, read, cut, insert, read back. No I/O and no clock: a simulation drives the same code.

mod answers;

use std::sync::Arc;

use sql::ChunkRows;
use stream::cut::CutPolicy;
use stream::line::{LineState, LogRecord};

use crate::call::{Call, Standstill, Taken};
use crate::chunk::{ClosedChunk, OpenChunk};
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
    /// Dead letters of a chunk are to be copied.
    Copy,
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
    /// Whether its dead letters are in their topic.
    copied: bool,
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
        if is_ours && self.open.is_full_for(record, &self.cuts.block) && !left_out!(Block) {
            return Taken::NoRoom;
        }
        if is_ours && self.open.is_of_another_month(record, &self.tip) {
            self.open.end_here();
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
        } else if self.tip.position == base.position && !same(self.tip.chain.0, base.chain) {
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
            Phase::Copy => self.copy(),
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
            Phase::Settle | Phase::Copy | Phase::Insert | Phase::ReadBack => Some(0),
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
            return self.copy();
        }
        self.closed = Some(closed);
        self.phase = Phase::Settle;
        Some(Call::EventIds(resends))
    }

    fn cut(&mut self, closed: ClosedChunk<E::Row>) {
        let copied = closed.rows.dead.is_empty();
        self.cut = Some(Cut { rows: Arc::new(closed.rows), retry: 0, copied });
        self.phase = Phase::Copy;
    }

    /// The copies of dead letters come first: after a crash between the two they come twice, and never not at all.
    fn copy(&mut self) -> Option<Call<E::Row>> {
        let cut = self.cut.as_ref()?;
        if !cut.copied {
            return Some(Call::Copy(cut.rows.clone()));
        }
        self.phase = Phase::Insert;
        self.insert()
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
}

/// Whether two foldings are of the same log.
fn same(chain: [u8; 32], other: [u8; 32]) -> bool {
    chain == other || left_out!(Chain)
}

fn other_chain(position: i64) -> Standstill {
    Standstill::OtherLog(format!(
        "what ClickHouse holds up to offset {position} was folded from another log than this one (the chains differ): \
         restore the topic, or rebuild"
    ))
}

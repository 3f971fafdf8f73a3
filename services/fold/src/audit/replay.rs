//! The log read again, through the very steps of the fold.

use ledger::ids::SourceId;
use ledger::time::Slot;
use ledger::tokens::TokenError;
use sql::{ChunkRows, ClickHouse, DataRow as _, Table};
use stream::consume::Record;
use stream::cut::CutPolicy;
use stream::line::{LineState, Outcome};

use super::{AuditError, Sums};
use crate::archive::{Log, Records};
use crate::chunk::{ClosedChunk, OpenChunk};
use crate::event::{FoldEvent, Use};

/// Room for whatever was one chunk.
const WHOLE: CutPolicy =
    CutPolicy { max_age_ms: u64::MAX, max_quiet_ms: u64::MAX, max_offsets: u64::MAX, max_bytes: u64::MAX };

/// What goes into one chunk.
#[derive(Clone, Copy)]
pub(crate) struct Room<'a> {
    pub(crate) block: &'a CutPolicy,
    /// Whether it may reach into another month of the log, as chunks did that earlier versions cut.
    pub(crate) months: bool,
}

/// A line that reads and writes nothing.
pub(crate) struct Replay<'a, E: FoldEvent> {
    log: Records<'a>,
    partition: i32,
    state: LineState,
    /// A record beyond the chunk that was asked for.
    held: Option<Record>,
    pub(crate) sums: Sums,
    event: std::marker::PhantomData<E>,
}

/// A chunk as the log says it is, and the resends in it that are to be looked up.
pub(crate) type Replayed<D> = (ClosedChunk<D>, Vec<(SourceId, u64)>);

/// Where the log is not the one that was folded.
pub(crate) struct Unlike {
    pub(crate) offset: i64,
    pub(crate) why: String,
}

impl<'a, E: FoldEvent> Replay<'a, E> {
    /// Goes on from a state: that of the beginning, or one that was proven.
    pub(crate) fn open(log: Log<'a>, partition: i32, state: LineState) -> Result<Self, AuditError> {
        let log = Records::open(log, E::Row::TABLE.topic(), partition, state.position)?;
        let (held, sums) = (None, Sums::new());
        Ok(Self { log, partition, state, held, sums, event: std::marker::PhantomData })
    }

    /// What a chunk that ends here is to hold.
    pub(crate) async fn chunk(&mut self, end: i64) -> Result<Result<Replayed<E::Row>, Unlike>, AuditError> {
        self.cut(end, Room { block: &WHOLE, months: true }, |_| {}).await
    }

    /// What comes next, up to this offset or to what a block has room for. `passed` is told of the state after each record.
    pub(crate) async fn cut(
        &mut self,
        end: i64,
        room: Room<'_>,
        mut passed: impl FnMut(&LineState),
    ) -> Result<Result<Replayed<E::Row>, Unlike>, AuditError> {
        let mut open = OpenChunk::<E>::at(self.state.position);
        while self.state.position < end {
            let record = match self.held.take() {
                Some(record) => record,
                None => self.log.next().await?,
            };
            if record.offset >= end {
                let why =
                    "a chunk ends with it, and the log has no record there: it is another log, or was cut short".into();
                let offset = end - 1;
                self.held = Some(record);
                return Ok(Err(Unlike { offset, why }));
            }
            let is_full = record.lend(|lent| {
                open.is_full_for(lent, room.block) || (!room.months && open.is_of_another_month(lent, &self.state))
            });
            if is_full {
                self.held = Some(record);
                break;
            }
            let state = &mut self.state;
            let stepped = record.lend(|lent| {
                let step = state.step::<E>(lent).map_err(|stop| stop.to_string())?;
                if let Outcome::Folded(event) = &step.outcome
                    && let Some(used) = event.counts()
                {
                    add(&mut self.sums, &used).map_err(|error| error.to_string())?;
                }
                open.put(lent, step.outcome, state, 0);
                Ok(())
            });
            if let Err(why) = stepped {
                return Ok(Err(Unlike { offset: record.offset, why }));
            }
            passed(&self.state);
        }
        Ok(Ok(open.close(self.partition, &self.state)))
    }
}

fn add(sums: &mut Sums, used: &Use<'_>) -> Result<(), TokenError> {
    let key = (used.tenant.clone(), used.model.clone(), Slot::of(used.occurred_at));
    let (tokens, requests) = sums.entry(key).or_default();
    *tokens = tokens.checked_add(used.tokens)?;
    *requests = requests.checked_add(used.requests).ok_or(TokenError::Overflow)?;
    Ok(())
}

/// Compares the resends of a window with the rows that have their numbers, as the fold does when it closes a chunk.
pub(crate) async fn settled<D>(
    clickhouse: &ClickHouse,
    table: Table,
    partition: i32,
    window: Vec<Replayed<D>>,
) -> Result<Vec<ChunkRows<D>>, AuditError> {
    let numbers: Vec<_> = window.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
    let mut found =
        if numbers.is_empty() { Vec::new() } else { clickhouse.event_ids(table, partition, &numbers).await? };
    // Where the rows of a month are sealed, only the dead letter itself still says which event has its number.
    if found.len() < numbers.len() && clickhouse.sealed_until(table, partition).await?.is_some() {
        let offsets = window.first().zip(window.last()).map(|((first, _), (last, _))| first.rows.first..last.rows.end);
        let told = clickhouse.conflicts(table, partition, offsets.unwrap_or_default()).await?;
        let known: std::collections::BTreeSet<_> = found.iter().map(|event| (event.source, event.seq)).collect();
        found.extend(told.into_iter().filter(|event| !known.contains(&(event.source, event.seq))));
    }
    Ok(window
        .into_iter()
        .map(|(mut chunk, numbers)| {
            if !numbers.is_empty() {
                chunk.settle(&found);
            }
            chunk.rows
        })
        .collect())
}

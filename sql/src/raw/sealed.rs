//! The rows that a sealed month is to hold, out of the chunks that it stands for.

use std::collections::BTreeMap;

use clickhouse::Row;
use ledger::ids::SourceId;
use ledger::time::Slot;
use ledger::tokens::TokenCounts;

use super::{DataRow, Field, Figures, Place, RawRequests, RawRow, RawTokens};
use crate::calendar::LogHour;
use crate::rows::{ChunkRows, DeadRow, Folded, OutcomeCounts, RequestRow, SourceState, TokenRow};
use crate::seal::Month;
use crate::wire::WireUuid;

/// What the rows that one stands for come to.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    stands_for: i64,
    tokens: TokenCounts,
    requests: u64,
    attempts: i32,
}

/// A row that can stand for others which agree with it in every key of the sums.
pub trait SealedRow: DataRow + Clone {
    #[doc(hidden)]
    type Key: Ord + Send;
    #[doc(hidden)]
    fn key(row: &Folded<Self>) -> Self::Key;
    #[doc(hidden)]
    fn add(&self, sums: &mut Sums) -> Option<()>;
    #[doc(hidden)]
    fn sealed<'a>(row: &'a Folded<Self>, sums: Sums, place: Place, end: i64) -> <Self::Raw as Row>::Value<'a>;
}

/// What a sealed month is to hold by the log, chunk by chunk.
#[derive(Debug)]
pub struct SealedRows<D: SealedRow> {
    pub(crate) month: Month,
    counts: OutcomeCounts,
    end: i64,
    log_time_ms: i64,
    chain: [u8; 32],
    data: BTreeMap<D::Key, (Folded<D>, Sums)>,
    dead: BTreeMap<i64, DeadRow>,
    sources: BTreeMap<SourceId, SourceState>,
}

impl<D: SealedRow> SealedRows<D> {
    /// Of a month that the table says is sealed. How it was cut before is taken from there: the log does not know it.
    pub fn new(month: Month) -> Self {
        Self {
            month,
            counts: OutcomeCounts::default(),
            end: month.first,
            log_time_ms: i64::MIN,
            chain: [0; 32],
            data: BTreeMap::new(),
            dead: BTreeMap::new(),
            sources: BTreeMap::new(),
        }
    }

    /// Adds what the log says of the next offsets.
    ///
    /// # Errors
    /// Sums that no row can hold.
    pub fn add(&mut self, chunk: ChunkRows<D>) -> Result<(), String> {
        self.counts += chunk.counts;
        (self.end, self.log_time_ms, self.chain) = (chunk.end, chunk.log_time_ms, chunk.chain);
        self.sources.extend(chunk.sources);
        self.dead.extend(chunk.dead.into_iter().map(|dead| (dead.offset, dead)));
        for row in chunk.data {
            let (first, sums) = self.data.entry(D::key(&row)).or_insert_with(|| (row.clone(), Sums::default()));
            let added = row.event.add(sums);
            added.ok_or_else(|| format!("the sums of the row at offset {} do not fit", first.offset))?;
        }
        Ok(())
    }

    /// The rows of folded records by their offsets: each the first of those that it stands for.
    pub(crate) fn by_offset(&self) -> BTreeMap<i64, (&Folded<D>, Sums)> {
        self.data.values().map(|(row, sums)| (row.offset, (row, *sums))).collect()
    }

    pub(crate) fn dead(&self) -> impl Iterator<Item = (i64, &DeadRow)> {
        self.dead.iter().map(|(offset, dead)| (*offset, dead))
    }

    pub(crate) fn sources(&self) -> &BTreeMap<SourceId, SourceState> {
        &self.sources
    }

    fn place(&self) -> Place {
        Place {
            partition: 0,
            month: self.month.month,
            first: self.month.first,
            log_time_ms: self.log_time_ms,
            insert_before_ms: 0,
        }
    }

    pub(crate) fn data_difference(
        &self,
        (row, sums): (&Folded<D>, Sums),
        found: &<D::Raw as Row>::Value<'_>,
    ) -> Option<Field> {
        D::Raw::difference(&D::sealed(row, sums, self.place(), self.end), found)
    }

    pub(crate) fn dead_difference(&self, dead: &DeadRow, found: &<D::Raw as Row>::Value<'_>) -> Option<Field> {
        D::Raw::difference(&D::Raw::dead(dead, self.place()), found)
    }

    pub(crate) fn source_difference(
        &self,
        source: SourceId,
        state: &SourceState,
        found: &<D::Raw as Row>::Value<'_>,
    ) -> Option<Field> {
        D::Raw::difference(&D::Raw::source(source.0, state, self.place()), found)
    }

    pub(crate) fn chunk_difference(&self, found: &<D::Raw as Row>::Value<'_>) -> Option<Field> {
        let figures = Figures { end: self.end, counts: self.counts, chain: self.chain };
        D::Raw::difference(&D::Raw::sealed_chunk(figures, self.month.chunks, self.place()), found)
    }
}

type TokenKey = (String, Slot, String, uuid::Uuid, String, String, String, String, LogHour);
type RequestKey = (String, Slot, String, String, i32, &'static str, LogHour);

impl SealedRow for TokenRow {
    type Key = TokenKey;

    fn key(row: &Folded<Self>) -> TokenKey {
        let event = &row.event;
        (
            event.tenant_id.to_string(),
            Slot::of(event.occurred_at),
            event.project_id.to_string(),
            event.api_key_id.0,
            event.model.to_string(),
            event.version.to_string(),
            event.endpoint.clone(),
            event.replica.clone(),
            LogHour::of_ms(row.log_time_ms),
        )
    }

    fn add(&self, sums: &mut Sums) -> Option<()> {
        sums.stands_for = sums.stands_for.checked_add(1)?;
        sums.tokens = sums.tokens.checked_add(self.delta).ok()?;
        sums.requests = sums.requests.checked_add(self.requests)?;
        Some(())
    }

    fn sealed<'a>(row: &'a Folded<Self>, sums: Sums, place: Place, end: i64) -> RawTokens<'a> {
        RawTokens {
            event_id: WireUuid::default(),
            source: WireUuid::default(),
            seq: 0,
            request_id: WireUuid::default(),
            attempt: 0,
            input: sums.tokens.input,
            cached_input: sums.tokens.cached_input,
            output: sums.tokens.output,
            reasoning: sums.tokens.reasoning,
            input_cumulative: 0,
            cached_input_cumulative: 0,
            output_cumulative: 0,
            reasoning_cumulative: 0,
            requests: sums.requests,
            r#final: false,
            estimated: false,
            end_reason: "",
            chunk_end: end,
            folded: sums.stands_for - 1,
            ..Self::data(row, place)
        }
    }
}

impl SealedRow for RequestRow {
    type Key = RequestKey;

    fn key(row: &Folded<Self>) -> RequestKey {
        let event = &row.event;
        (
            event.tenant_id.to_string(),
            Slot::of(event.occurred_at),
            event.model.to_string(),
            event.endpoint.clone(),
            event.status,
            event.end_reason,
            LogHour::of_ms(row.log_time_ms),
        )
    }

    fn add(&self, sums: &mut Sums) -> Option<()> {
        sums.stands_for = sums.stands_for.checked_add(1)?;
        sums.attempts = sums.attempts.checked_add(self.attempts)?;
        Some(())
    }

    fn sealed<'a>(row: &'a Folded<Self>, sums: Sums, place: Place, end: i64) -> RawRequests<'a> {
        RawRequests {
            event_id: WireUuid::default(),
            source: WireUuid::default(),
            seq: 0,
            request_id: WireUuid::default(),
            attempts: sums.attempts,
            project_id: "",
            api_key_id: WireUuid::default(),
            version: "",
            replica: "",
            stream: false,
            error_code: "",
            received_at: 0,
            dispatched_at: None,
            first_byte_at: None,
            chunk_end: end,
            folded: sums.stands_for - 1,
            ..Self::data(row, place)
        }
    }
}

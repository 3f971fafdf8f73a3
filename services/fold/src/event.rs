//! What a line has to know of its events: their rows, and what of them counts in a balance.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ledger::ids::{ModelId, TenantId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;
use schemas::event::{CountOutOfBounds, EndReason, Event, RequestFinished, TokensCounted};
use sql::{ChunkRows, RequestRow, SealedRow, TokenRow};

use crate::call::Refused;
use crate::store::Store;

/// What a folded record adds to its tenant's balance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) model: &'a ModelId,
    pub(crate) occurred_at: Micros,
    pub(crate) tokens: TokenCounts,
    pub(crate) requests: u64,
}

/// An event that is folded into a raw table.
pub(crate) trait FoldEvent: Event + Send + Sync + 'static {
    /// What stands in the table for it.
    type Row: SealedRow + 'static;

    /// Whether it counts in balances, which are then published to the partition of the same number.
    const BALANCED: bool;

    /// Its row.
    ///
    /// # Errors
    /// Counts out of bounds, which a line's step has excluded.
    fn row(self) -> Result<Self::Row, CountOutOfBounds>;

    /// What it adds to a balance.
    fn counts(&self) -> Option<Use<'_>>;

    /// Writes a chunk of such rows. Here, because only of a row's own type is it known that it may cross threads.
    fn insert(
        store: Store,
        rows: Arc<ChunkRows<Self::Row>>,
        retry: u32,
        insert_before_ms: i64,
        tables: u64,
    ) -> Inserted;
}

/// What comes of an insert.
pub(crate) type Inserted = BoxFuture<'static, Result<(), Refused>>;

fn count(n: i64) -> Result<u64, CountOutOfBounds> {
    u64::try_from(n).map_err(|_| CountOutOfBounds(n))
}

impl FoldEvent for TokensCounted {
    type Row = TokenRow;
    const BALANCED: bool = true;

    fn row(self) -> Result<TokenRow, CountOutOfBounds> {
        let (delta, cumulative) = (self.delta()?, self.cumulative()?);
        Ok(TokenRow {
            event_id: self.event_id,
            source: self.source,
            seq: count(self.seq)?,
            occurred_at: self.occurred_at,
            tenant_id: self.tenant_id,
            request_id: self.request_id,
            attempt: self.attempt,
            project_id: self.project_id,
            api_key_id: self.api_key_id,
            model: self.model,
            version: self.version,
            replica: self.replica,
            endpoint: self.endpoint,
            delta,
            cumulative,
            requests: count(self.requests)?,
            last: self.last,
            estimated: self.estimated,
            end_reason: self.end_reason.map_or("", EndReason::as_str),
        })
    }

    fn counts(&self) -> Option<Use<'_>> {
        Some(Use {
            tenant: &self.tenant_id,
            model: &self.model,
            occurred_at: self.occurred_at,
            tokens: self.delta().ok()?,
            requests: count(self.requests).ok()?,
        })
    }

    fn insert(
        store: Store,
        rows: Arc<ChunkRows<TokenRow>>,
        retry: u32,
        insert_before_ms: i64,
        tables: u64,
    ) -> Inserted {
        async move { store.insert(&rows, retry, insert_before_ms, tables).await }.boxed()
    }
}

impl FoldEvent for RequestFinished {
    type Row = RequestRow;
    const BALANCED: bool = false;

    fn row(self) -> Result<RequestRow, CountOutOfBounds> {
        Ok(RequestRow {
            event_id: self.event_id,
            source: self.source,
            seq: count(self.seq)?,
            occurred_at: self.occurred_at,
            tenant_id: self.tenant_id,
            request_id: self.request_id,
            attempts: self.attempts,
            project_id: self.project_id,
            api_key_id: self.api_key_id,
            model: self.model,
            version: self.version,
            replica: self.replica,
            endpoint: self.endpoint,
            stream: self.stream,
            status: self.status,
            end_reason: self.end_reason.as_str(),
            error_code: self.error_code.unwrap_or_default(),
            received_at: self.received_at,
            dispatched_at: self.dispatched_at,
            first_byte_at: self.first_byte_at,
        })
    }

    fn counts(&self) -> Option<Use<'_>> {
        None
    }

    fn insert(
        store: Store,
        rows: Arc<ChunkRows<RequestRow>>,
        retry: u32,
        insert_before_ms: i64,
        tables: u64,
    ) -> Inserted {
        async move { store.insert(&rows, retry, insert_before_ms, tables).await }.boxed()
    }
}

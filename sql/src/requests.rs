//! Requests: a tenant's latest ones with their tokens, page by page, and how requests ended.

use std::collections::HashMap;
use std::str::FromStr;

use clickhouse::Row;
use ledger::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, RequestId, TenantId};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenCounts;
use serde::Deserialize;
use uuid::Uuid;

use crate::calendar::Span;
use crate::client::{ClickHouse, fetch};
use crate::error::QueryError;
use crate::usage::{id, slots};
use crate::wire::{WireUuid, counts};

const LATEST: &str = include_str!("../queries/latest_requests.sql");
const TOKENS: &str = include_str!("../queries/tokens_of_requests.sql");
const SEALED: &str = include_str!("../queries/requests_sealed.sql");
const ENDINGS: &str = include_str!("../queries/endings.sql");
/// The most requests of one page.
const PAGE_MAX: u64 = 1_000;
/// How far a request's tokens may lie outside of its own times: clocks are set, and a lost request is finished later.
const MARGIN_MICROS: i64 = 2 * 86_400_000_000;

/// Where a page ended; the next one begins after it. As text `micros.offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// When the last request of the page ended.
    pub occurred_at: Micros,
    /// Its offset in the log.
    pub offset: i64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.occurred_at.0, self.offset)
    }
}

impl FromStr for Cursor {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('.').and_then(|(at, offset)| Some((at.parse().ok()?, offset.parse().ok()?)));
        let (at, offset) = numbers.ok_or("this is no cursor: use one that a page gave")?;
        Ok(Self { occurred_at: Micros(at), offset })
    }
}

/// A question for a page of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestQuery {
    /// Whose.
    pub tenant: TenantId,
    /// Where the page before ended; the latest ones if none.
    pub after: Option<Cursor>,
    /// How many at most: up to 1,000.
    pub limit: u64,
}

/// A request that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of the event, in its order")]
pub struct RequestLine {
    /// For the next page.
    pub cursor: Cursor,
    pub occurred_at: Micros,
    pub request_id: RequestId,
    pub attempts: i32,
    pub project: ProjectId,
    pub api_key: ApiKeyId,
    pub model: ModelId,
    pub version: ModelVersion,
    pub replica: String,
    pub endpoint: String,
    pub stream: bool,
    pub status: i32,
    pub end_reason: String,
    pub error_code: Option<String>,
    pub received_at: Micros,
    pub dispatched_at: Option<Micros>,
    pub first_byte_at: Option<Micros>,
    /// All its tokens so far; absent while none of its counts is folded.
    pub tokens: Option<TokenCounts>,
}

/// How many requests ended in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct Endings {
    /// The first slot of the span.
    pub span: Slot,
    pub model: ModelId,
    pub status: i32,
    pub end_reason: String,
    pub requests: u64,
    pub attempts: i64,
}

#[derive(Row, Deserialize)]
struct LatestRow {
    offset: i64,
    occurred_at: i64,
    request_id: WireUuid,
    attempts: i32,
    project_id: String,
    api_key_id: WireUuid,
    model: String,
    version: String,
    replica: String,
    endpoint: String,
    stream: bool,
    status: i32,
    end_reason: String,
    error_code: String,
    received_at: i64,
    dispatched_at: Option<i64>,
    first_byte_at: Option<i64>,
}

#[derive(Row, Deserialize)]
struct TokensOfRow {
    request_id: WireUuid,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
}

#[derive(Row, Deserialize)]
struct SealedRow {
    last_slot: i64,
    row_count: u64,
}

#[derive(Row, Deserialize)]
struct EndingsRow {
    span: i64,
    model: String,
    status: i32,
    end_reason: String,
    request_count: u64,
    attempt_count: i64,
}

impl ClickHouse {
    /// A page of a tenant's requests, the latest first, each with its tokens. Reads by the primary key, backwards.
    ///
    /// # Errors
    /// No answer.
    pub async fn latest_requests(&self, asked: &RequestQuery) -> Result<Vec<RequestLine>, QueryError> {
        let after = asked.after.unwrap_or(Cursor { occurred_at: Micros(i64::MAX), offset: i64::MAX });
        let query = self
            .rows(LATEST)
            .param("tenant", asked.tenant.as_str())
            .param("before", after.occurred_at.0)
            .param("before_offset", after.offset)
            .param("limit", asked.limit.min(PAGE_MAX));
        let rows = fetch::<LatestRow>(query).await?;
        let tokens = self.tokens_of(&asked.tenant, &rows).await?;
        rows.into_iter().map(|row| line(row, &tokens)).collect()
    }

    async fn tokens_of(&self, tenant: &TenantId, of: &[LatestRow]) -> Result<HashMap<Uuid, TokenCounts>, QueryError> {
        let earliest = of.iter().map(|row| row.received_at.min(row.occurred_at)).min();
        let latest = of.iter().map(|row| row.occurred_at).max();
        let (Some(earliest), Some(latest)) = (earliest, latest) else { return Ok(HashMap::new()) };
        let query = self
            .rows(TOKENS)
            .param("tenant", tenant.as_str())
            .param("from", earliest.saturating_sub(MARGIN_MICROS))
            .param("to", latest.saturating_add(MARGIN_MICROS))
            .param("request_ids", of.iter().map(|row| row.request_id.0).collect::<Vec<Uuid>>());
        let rows = fetch::<TokensOfRow>(query).await?;
        let sums = |row: &TokensOfRow| {
            counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens])
        };
        Ok(rows.iter().map(|row| (row.request_id.0, sums(row))).collect())
    }

    /// Up to when requests of a tenant are sealed, so that only their figures remain: the end of the last slot of them; none if none is.
    ///
    /// # Errors
    /// No answer.
    pub async fn requests_sealed_until(&self, tenant: &TenantId) -> Result<Option<Micros>, QueryError> {
        let query = self.rows(SEALED).param("tenant", tenant.as_str());
        let sealed = fetch::<SealedRow>(query).await?.into_iter().find(|sealed| sealed.row_count > 0);
        Ok(sealed.map(|sealed| Slot(sealed.last_slot.saturating_add(1)).start()))
    }

    /// How requests of a tenant, or of all, ended between two slots, by span, model, status and end reason.
    ///
    /// # Errors
    /// No answer, or more spans than can be answered.
    pub async fn endings(
        &self,
        tenant: Option<&TenantId>,
        from: Slot,
        to: Slot,
        span: Span,
    ) -> Result<Vec<Endings>, QueryError> {
        let starts = span.starts(from, to)?;
        if starts.is_empty() {
            return Ok(Vec::new());
        }
        let query = self
            .sums(ENDINGS)
            .param("tenant", tenant.map_or("", TenantId::as_str))
            .param("from", from.0)
            .param("to", to.0)
            .param("spans", slots(Some(&starts)));
        let rows = fetch::<EndingsRow>(query).await?;
        let ending = |row: EndingsRow| {
            Ok(Endings {
                span: Slot(row.span),
                model: id("model", &row.model)?,
                status: row.status,
                end_reason: row.end_reason,
                requests: row.request_count,
                attempts: row.attempt_count,
            })
        };
        rows.into_iter().map(ending).collect()
    }
}

fn line(row: LatestRow, tokens: &HashMap<Uuid, TokenCounts>) -> Result<RequestLine, QueryError> {
    let occurred_at = Micros(row.occurred_at);
    Ok(RequestLine {
        cursor: Cursor { occurred_at, offset: row.offset },
        occurred_at,
        request_id: RequestId(row.request_id.0),
        attempts: row.attempts,
        project: id("project", &row.project_id)?,
        api_key: ApiKeyId(row.api_key_id.0),
        model: id("model", &row.model)?,
        version: id("version", &row.version)?,
        replica: row.replica,
        endpoint: row.endpoint,
        stream: row.stream,
        status: row.status,
        end_reason: row.end_reason,
        error_code: Some(row.error_code).filter(|code| !code.is_empty()),
        received_at: Micros(row.received_at),
        dispatched_at: row.dispatched_at.map(Micros),
        first_byte_at: row.first_byte_at.map(Micros),
        tokens: tokens.get(&row.request_id.0).copied(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = Cursor { occurred_at: Micros(-5), offset: 7 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for no in ["", "5", "5.", "a.b", "5.6.7", "1.99999999999999999999"] {
            assert!(no.parse::<Cursor>().is_err(), "{no}");
        }
    }
}

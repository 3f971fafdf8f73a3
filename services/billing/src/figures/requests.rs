//! A tenant's last requests, with how they ended and what they used.

use chrono::{DateTime, Utc};
use ledger::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, RequestId, TenantId};
use ledger::time::Micros;
use serde::{Deserialize, Serialize};
use sql::{Cursor, RequestLine, RequestQuery};
use utoipa::{IntoParams, ToSchema};

use super::instant;
use super::usage::{Counts, zone};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;

/// The most requests of one page.
const PAGE_MAX: u64 = 500;
/// How many there are if nothing is said.
const PAGE: u64 = 50;

/// Whose requests, and which part of them.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RequestsQuery {
    /// Whose. A tenant's own by default.
    #[param(value_type = Option<String>)]
    pub(crate) tenant: Option<TenantId>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
    /// How many at most: 1 to 500, 50 by default.
    pub(crate) limit: Option<u64>,
}

/// A request that ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct RequestShown {
    /// What the client was given as `x-request-id`.
    #[schema(value_type = String)]
    pub(crate) id: RequestId,
    #[schema(value_type = String)]
    pub(crate) project: ProjectId,
    /// The id of the API key.
    #[schema(value_type = String)]
    pub(crate) key: ApiKeyId,
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    #[schema(value_type = String)]
    pub(crate) version: ModelVersion,
    pub(crate) endpoint: String,
    pub(crate) stream: bool,
    /// The HTTP status that the client saw.
    pub(crate) status: i32,
    /// Why it ended: `complete`, `upstream_error`, `client_cancelled`, `deadline`, `gateway_lost` or `drained`.
    pub(crate) end_reason: String,
    /// The code of its error, if it was one.
    pub(crate) error_code: Option<String>,
    /// Tries at a replica.
    pub(crate) attempts: i32,
    pub(crate) received_at: DateTime<Utc>,
    pub(crate) first_byte_at: Option<DateTime<Utc>>,
    pub(crate) ended_at: DateTime<Utc>,
    /// What it is billed; absent while none of its counts is folded.
    #[serde(flatten)]
    pub(crate) tokens: Option<RequestTokens>,
}

/// Tokens of a request, by class.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct RequestTokens {
    pub(crate) input: u64,
    pub(crate) cached_input: u64,
    pub(crate) output: u64,
    pub(crate) reasoning: u64,
}

/// The latest requests first.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Requests {
    #[schema(value_type = String)]
    pub(crate) tenant: TenantId,
    pub(crate) data: Vec<RequestShown>,
    /// For the next page, as `cursor`; absent on the last one.
    pub(crate) next_cursor: Option<String>,
    /// On the last page: requests that ended before this time were sealed (`tollgate seal`). What they used is in usage and costs as
    /// before; they themselves are not listed any more. Absent if none was.
    pub(crate) sealed_until: Option<DateTime<Utc>>,
}

/// Answers a question for requests.
pub(crate) async fn requests(app: &App, caller: &Caller, asked: &RequestsQuery) -> Result<Requests, Problem> {
    let tenant = caller.one(asked.tenant.clone())?;
    zone(app, &tenant)?;
    let limit = asked.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::query(format!("`limit` must be 1 to {PAGE_MAX}")));
    }
    let after = asked.cursor.as_deref().map(str::parse::<Cursor>).transpose();
    let after = after.map_err(|said| Problem::query(format!("`cursor`: {said}")))?;
    // One more tells whether there is another page.
    let query = RequestQuery { tenant: tenant.clone(), after, limit: limit + 1 };
    let mut lines = app.ask("latest_requests", app.clickhouse.latest_requests(&query)).await?;
    let page = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = lines.len() > page;
    lines.truncate(page);
    let next_cursor = lines.last().filter(|_| more).map(|line| line.cursor.to_string());
    let sealed = match more {
        true => None,
        false => app.ask("requests_sealed_until", app.clickhouse.requests_sealed_until(&tenant)).await?,
    };
    let data = lines.into_iter().map(shown).collect::<Result<_, _>>()?;
    Ok(Requests { tenant, data, next_cursor, sealed_until: sealed.map(instant).transpose()? })
}

fn shown(line: RequestLine) -> Result<RequestShown, Problem> {
    let tokens = line.tokens.map(|tokens| {
        let Counts { input, cached_input, output, reasoning, .. } = Counts::of(&tokens, 1);
        RequestTokens { input, cached_input, output, reasoning }
    });
    Ok(RequestShown {
        id: line.request_id,
        project: line.project,
        key: line.api_key,
        model: line.model,
        version: line.version,
        endpoint: line.endpoint,
        stream: line.stream,
        status: line.status,
        end_reason: line.end_reason,
        error_code: line.error_code,
        attempts: line.attempts,
        received_at: instant(line.received_at)?,
        first_byte_at: line.first_byte_at.map(|at: Micros| instant(at)).transpose()?,
        ended_at: instant(line.occurred_at)?,
        tokens,
    })
}

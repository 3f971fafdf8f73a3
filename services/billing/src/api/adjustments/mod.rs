//! Corrections of usage: made once under an id that the client chooses, listed for ever, never changed.

mod enough;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, Utc};
use ledger::control::{ControlState, Corrected, Deltas, Document, Kind, Rejected, UsageAdjustment};
use ledger::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, RequestId, TenantId};
use ledger::time::{Micros, Slot};
use serde::{Deserialize, Serialize};
use sql::RatingLine;
use utoipa::{IntoParams, ToSchema};

use super::resource::{Known, Page, PageQuery, tagged};
use super::strict;
use crate::app::{App, Shared};
use crate::auth::Caller;
use crate::control::{self, Precondition};
use crate::extract::{JsonBody, Params, Segments};
use crate::figures::{instant, start};
use crate::problem::Problem;

/// The longest endpoint or place of a dead letter, in bytes.
const TEXT_MAX: usize = 200;

/// Signed counts by class: what is added, or taken away below zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DeltaBody {
    /// Prompt tokens that were computed.
    pub(crate) input: i64,
    /// Prompt tokens from the prefix cache.
    pub(crate) cached_input: i64,
    /// Generated tokens without reasoning.
    pub(crate) output: i64,
    /// Generated tokens of reasoning.
    pub(crate) reasoning: i64,
    /// Requests.
    pub(crate) requests: i64,
}

/// A correction as it is asked for.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdjustmentBody {
    /// Whose usage.
    #[schema(value_type = String, example = "acme")]
    tenant: TenantId,
    /// The part of the tenant.
    #[schema(value_type = String, example = "default")]
    project: ProjectId,
    /// Of which model.
    #[schema(value_type = String, example = "llama-3.1-8b")]
    model: ModelId,
    /// Of which version of it; of none in particular if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    version: Option<ModelVersion>,
    /// At which endpoint; at none in particular if absent.
    #[serde(default)]
    endpoint: Option<String>,
    /// Of which key; of none in particular if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    key: Option<ApiKeyId>,
    /// When it was used: the quarter of an hour that holds it is corrected, at its prices and in its period.
    #[serde(deserialize_with = "strict::instant")]
    at: DateTime<Utc>,
    /// What is added or taken away. Together with what was used and corrected before, no class of the project, model and
    /// quarter of an hour (nor of version, endpoint and key, where they are named) may come below zero.
    deltas: DeltaBody,
    /// Why: people read it on the bill.
    #[schema(example = "counted twice by an outage, ticket 311", max_length = 1000)]
    reason: String,
    /// The request that it is about.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    request: Option<RequestId>,
    /// The dead letter that it is about: `topic/partition/offset`.
    #[serde(default)]
    dead_letter: Option<String>,
}

/// A correction as it was made.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct AdjustmentShown {
    #[schema(value_type = String)]
    pub(crate) tenant: TenantId,
    #[schema(value_type = String)]
    pub(crate) project: ProjectId,
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    #[schema(value_type = Option<String>)]
    pub(crate) version: Option<ModelVersion>,
    pub(crate) endpoint: Option<String>,
    #[schema(value_type = Option<String>)]
    pub(crate) key: Option<ApiKeyId>,
    /// The first moment of the quarter of an hour that it corrects.
    pub(crate) slot: DateTime<Utc>,
    pub(crate) deltas: DeltaBody,
    pub(crate) reason: String,
    #[schema(value_type = Option<String>)]
    pub(crate) request: Option<RequestId>,
    pub(crate) dead_letter: Option<String>,
    /// Who made it.
    pub(crate) by: String,
    /// When.
    pub(crate) made_at: DateTime<Utc>,
}

/// Whose corrections.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AdjustmentsQuery {
    /// Of one tenant; of all without it.
    #[param(value_type = Option<String>)]
    tenant: Option<TenantId>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, 100 by default.
    limit: Option<usize>,
}

impl AdjustmentBody {
    fn made(self, by: String, made_at: Micros) -> Result<UsageAdjustment, Problem> {
        let texts = [self.endpoint.as_deref(), self.dead_letter.as_deref()];
        if texts.into_iter().flatten().any(|text| text.is_empty() || text.len() > TEXT_MAX) {
            return Err(Problem::value(format!("`endpoint` and `dead_letter` have 1 to {TEXT_MAX} bytes")));
        }
        let DeltaBody { input, cached_input, output, reasoning, requests } = self.deltas;
        let deltas = Deltas { input, cached_input, output, reasoning, requests };
        let slot = Slot::of(self.at.into());
        let of = Corrected { tenant: self.tenant, project: self.project, model: self.model, slot };
        Ok(UsageAdjustment {
            version: self.version,
            endpoint: self.endpoint,
            api_key: self.key,
            by,
            made_at,
            request: self.request,
            dead_letter: self.dead_letter,
            ..UsageAdjustment::new(of, deltas, self.reason.trim())
        })
    }
}

/// A correction as it is shown.
pub(crate) fn shown(id: &str, made: &UsageAdjustment) -> Result<Known<AdjustmentShown>, Problem> {
    let made = made.clone();
    let Deltas { input, cached_input, output, reasoning, requests } = made.deltas;
    let document = AdjustmentShown {
        slot: start(made.slot())?,
        tenant: made.tenant,
        project: made.project,
        model: made.model,
        version: made.version,
        endpoint: made.endpoint,
        key: made.api_key,
        deltas: DeltaBody { input, cached_input, output, reasoning, requests },
        reason: made.reason,
        request: made.request,
        dead_letter: made.dead_letter,
        by: made.by,
        made_at: instant(made.made_at)?,
    };
    Ok(Known { id: id.to_owned(), revision: 1, document })
}

/// All corrections, or a tenant's: the trail of what was changed, by whom and why. Sorted by id.
#[utoipa::path(get, path = "/api/v1/adjustments", tag = "adjustments", operation_id = "list_adjustments",
    params(AdjustmentsQuery),
    responses((status = 200, body = Page<Known<AdjustmentShown>>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Params(asked): Params<AdjustmentsQuery>,
) -> Result<Json<Page<Known<AdjustmentShown>>>, Problem> {
    caller.admin()?;
    let control = app.control()?;
    let of = |made: &UsageAdjustment| asked.tenant.as_ref().is_none_or(|tenant| made.tenant == *tenant);
    let all = control.state.adjustments().filter(|(_, made)| of(made));
    let page = PageQuery { cursor: asked.cursor.clone(), limit: asked.limit };
    let Page { data, next_cursor } = page.part(all.map(|(id, made)| (id.to_owned(), shown(id, made))))?;
    Ok(Json(Page { data: data.into_iter().collect::<Result<_, _>>()?, next_cursor }))
}

/// One correction.
#[utoipa::path(get, path = "/api/v1/adjustments/{id}", tag = "adjustments", operation_id = "get_adjustment",
    params(("id" = String, Path, description = "A UUID")),
    responses((status = 200, body = Known<AdjustmentShown>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
) -> Result<Response, Problem> {
    caller.admin()?;
    let control = app.control()?;
    match control.state.get(Kind::UsageAdjustment, &id) {
        Some(Document::UsageAdjustment(made)) => Ok(tagged(StatusCode::OK, 1, shown(&id, made)?)),
        _ => Err(Problem::not_found("usage adjustment", &id)),
    }
}

/// Makes a correction. The same once more is answered as the first time; another one under the same id is refused. It is never
/// changed and never deleted: another one reverses it.
#[utoipa::path(put, path = "/api/v1/adjustments/{id}", tag = "adjustments", operation_id = "put_adjustment",
    params(("id" = String, Path, description = "A UUID that the client chooses, so that it can ask again")),
    request_body = AdjustmentBody,
    responses((status = 200, body = Known<AdjustmentShown>), (status = 201, body = Known<AdjustmentShown>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn put(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
    JsonBody(body): JsonBody<AdjustmentBody>,
) -> Result<Response, Problem> {
    caller.admin()?;
    let id = id
        .parse::<uuid::Uuid>()
        .map_err(|_| Problem::id(format!("the id of an adjustment is a UUID, {id:?} is none")))?;
    let id = id.to_string();
    let made = body.made(caller.actor(), app.now())?;
    made.check().map_err(|error| Problem::value(error.to_string()))?;
    let is_new = app.control()?.state.revision(Kind::UsageAdjustment, &id) == 0;
    let used = if is_new && made.deltas.take_away() { enough::used(&app, &made).await? } else { Vec::new() };
    let (there, kept) = write(&app, &id, made, &used).await?;
    Ok(tagged(if there { StatusCode::OK } else { StatusCode::CREATED }, 1, shown(&id, &kept)?))
}

/// Makes it, unless it was made before; gives whether it was, and what is kept. What it takes away must be there beside all
/// corrections that are before it in the log: when another one comes in between, it is checked anew, while `used` only grows.
pub(crate) async fn write(
    app: &App,
    id: &str,
    made: UsageAdjustment,
    used: &[RatingLine],
) -> Result<(bool, UsageAdjustment), Problem> {
    let becomes = |state: &ControlState, now: Option<&Document>| match now {
        Some(Document::UsageAdjustment(there)) if !there.says_the_same(&made) => Err(Rejected::Final.into()),
        Some(there) => Ok(Some(there.clone())),
        None => {
            let after = enough::check(&made, used, state)?;
            Ok(Some(Document::UsageAdjustment(UsageAdjustment { after, ..made.clone() })))
        }
    };
    let (there, _) = control::write(app, &made.by, Kind::UsageAdjustment, id, Precondition::None, becomes).await?;
    let kept = match app.control()?.state.get(Kind::UsageAdjustment, id) {
        Some(Document::UsageAdjustment(kept)) => kept.clone(),
        _ => made,
    };
    Ok((there, kept))
}

//! Corrections of usage: made once under an id that the client chooses, listed for ever, never changed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, Utc};
use ledger::control::{Deltas, Document, Kind, UsageAdjustment};
use ledger::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, RequestId, TenantId};
use ledger::time::{Micros, Slot};
use ledger::tokens::{TokenClass, TokenCounts};
use serde::{Deserialize, Serialize};
use sql::{RatingLine, Scope};
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
    input: i64,
    /// Prompt tokens from the prefix cache.
    cached_input: i64,
    /// Generated tokens without reasoning.
    output: i64,
    /// Generated tokens of reasoning.
    reasoning: i64,
    /// Requests.
    requests: i64,
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
    tenant: TenantId,
    #[schema(value_type = String)]
    project: ProjectId,
    #[schema(value_type = String)]
    model: ModelId,
    #[schema(value_type = Option<String>)]
    version: Option<ModelVersion>,
    endpoint: Option<String>,
    #[schema(value_type = Option<String>)]
    key: Option<ApiKeyId>,
    /// The first moment of the quarter of an hour that it corrects.
    slot: DateTime<Utc>,
    deltas: DeltaBody,
    reason: String,
    #[schema(value_type = Option<String>)]
    request: Option<RequestId>,
    dead_letter: Option<String>,
    /// Who made it.
    by: String,
    /// When.
    made_at: DateTime<Utc>,
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
        Ok(UsageAdjustment {
            tenant: self.tenant,
            project: self.project,
            model: self.model,
            version: self.version,
            endpoint: self.endpoint,
            api_key: self.key,
            slot: Slot::of(self.at.into()).start(),
            deltas: Deltas { input, cached_input, output, reasoning, requests },
            reason: self.reason.trim().to_owned(),
            by,
            made_at,
            request: self.request,
            dead_letter: self.dead_letter,
        })
    }
}

fn shown(id: &str, made: &UsageAdjustment) -> Result<Known<AdjustmentShown>, Problem> {
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
    if app.control()?.state.revision(Kind::UsageAdjustment, &id) == 0 {
        leaves_nothing_below_zero(&app, &made).await?;
    }
    let becomes = |now: Option<&Document>| match now {
        Some(Document::UsageAdjustment(there)) if !there.says_the_same(&made) => {
            Err(ledger::control::Rejected::Final.into())
        }
        Some(there) => Ok(Some(there.clone())),
        None => Ok(Some(Document::UsageAdjustment(made.clone()))),
    };
    let (there, _) =
        control::write(&app, &caller.actor(), Kind::UsageAdjustment, &id, Precondition::None, becomes).await?;
    let control = app.control()?;
    let kept = match control.state.get(Kind::UsageAdjustment, &id) {
        Some(Document::UsageAdjustment(kept)) => kept.clone(),
        _ => made,
    };
    Ok(tagged(if there { StatusCode::OK } else { StatusCode::CREATED }, 1, shown(&id, &kept)?))
}

/// Whether a line of usage is of what a correction is about: of all that it names, or of project and model alone.
fn is_about(made: &UsageAdjustment, line: &RatingLine, all_named: bool) -> bool {
    let same = line.project == made.project && line.model == made.model;
    let named = made.version.as_ref().is_none_or(|version| *version == line.version)
        && made.endpoint.as_ref().is_none_or(|endpoint| *endpoint == line.endpoint)
        && made.api_key.is_none_or(|key| key == line.api_key);
    same && (named || !all_named)
}

/// Whether another correction is about the same: by all that is named, or by project and model alone.
fn is_beside(made: &UsageAdjustment, other: &UsageAdjustment, all_named: bool) -> bool {
    let place = |one: &UsageAdjustment| (one.tenant.clone(), one.project.clone(), one.model.clone(), one.slot);
    let named = |one: &UsageAdjustment| (one.version.clone(), one.endpoint.clone(), one.api_key);
    place(made) == place(other) && (!all_named || named(made) == named(other))
}

/// What is taken away must have been used: in the slot, of the project and model, and of what else is named. Two corrections that
/// are made at once are both held to what was there before.
async fn leaves_nothing_below_zero(app: &App, made: &UsageAdjustment) -> Result<(), Problem> {
    let deltas = made.deltas;
    let counts = TokenClass::ALL.map(|class| (class.as_str(), deltas.of(class))).into_iter();
    if counts.chain([("requests", deltas.requests)]).all(|(_, delta)| delta >= 0) {
        return Ok(());
    }
    let slot = made.slot();
    let scope = Scope::new(Some(made.tenant.clone()), slot, Slot(slot.0.saturating_add(1)));
    let lines = app.ask("rating", app.clickhouse.rating(&scope, false)).await?;
    let control = app.control()?;
    for all_named in [false, true] {
        let of: Vec<_> = lines.iter().filter(|line| is_about(made, line, all_named)).collect();
        let before: Vec<_> = control
            .state
            .adjustments()
            .map(|(_, other)| other)
            .filter(|other| is_beside(made, other, all_named))
            .collect();
        let used = |class| of.iter().map(|line| i128::from(TokenCounts::of(&line.tokens, class))).sum::<i128>();
        let corrected = |class| before.iter().map(|other| i128::from(other.deltas.of(class))).sum::<i128>();
        for class in TokenClass::ALL.into_iter().filter(|class| deltas.of(*class) < 0) {
            enough(class.as_str(), used(class) + corrected(class), deltas.of(class))?;
        }
        let requests = of.iter().map(|line| i128::from(line.requests)).sum::<i128>()
            + before.iter().map(|other| i128::from(other.deltas.requests)).sum::<i128>();
        enough("requests", requests, deltas.requests)?;
    }
    Ok(())
}

fn enough(what: &str, there: i128, delta: i64) -> Result<(), Problem> {
    if delta >= 0 || there + i128::from(delta) >= 0 {
        return Ok(());
    }
    Err(Problem::more_than_used(format!(
        "in this quarter of an hour {} of {what} are there after earlier corrections, and {} would be taken away: a correction \
         takes no more than was used; look at `usage` by hour",
        there.max(0),
        delta.unsigned_abs()
    )))
}

//! The routes of the figures: usage, costs, balances, the running bill and the last requests.

use axum::Json;
use axum::extract::State;
use ledger::ids::TenantId;

use crate::app::Shared;
use crate::auth::Caller;
use crate::extract::{Params, Segments};
use crate::figures::balance::{self, Balance};
use crate::figures::costs::{self, Costs};
use crate::figures::preview::{self, Bill, PreviewQuery};
use crate::figures::reconciliation::{self, Reconciliation};
use crate::figures::requests::{self, Requests, RequestsQuery};
use crate::figures::usage::{self, FiguresQuery, Usage};
use crate::problem::Problem;

/// Tokens and requests, as they are folded this moment.
#[utoipa::path(get, path = "/api/v1/usage", tag = "figures", operation_id = "usage", params(FiguresQuery),
    responses((status = 200, body = Usage), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn usage(
    State(app): State<Shared>,
    caller: Caller,
    Params(asked): Params<FiguresQuery>,
) -> Result<Json<Usage>, Problem> {
    usage::usage(&app, &caller, &asked).await.map(Json)
}

/// What usage is charged, by the prices in force when it was used.
#[utoipa::path(get, path = "/api/v1/costs", tag = "figures", operation_id = "costs", params(FiguresQuery),
    responses((status = 200, body = Costs), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn costs(
    State(app): State<Shared>,
    caller: Caller,
    Params(asked): Params<FiguresQuery>,
) -> Result<Json<Costs>, Problem> {
    costs::costs(&app, &caller, &asked).await.map(Json)
}

/// What a tenant has used in its current period, and what is left.
#[utoipa::path(get, path = "/api/v1/balances/{tenant}", tag = "figures", operation_id = "balance",
    params(("tenant" = String, Path, description = "Whose")),
    responses((status = 200, body = Balance), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn balance(
    State(app): State<Shared>,
    caller: Caller,
    Segments(tenant): Segments<TenantId>,
) -> Result<Json<Balance>, Problem> {
    balance::balance(&app, &caller, &tenant).map(Json)
}

/// The running bill of a period, by the function that invoices are made by.
#[utoipa::path(get, path = "/api/v1/invoices/preview", tag = "figures", operation_id = "preview_invoice",
    params(PreviewQuery), responses((status = 200, body = Bill), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn preview(
    State(app): State<Shared>,
    caller: Caller,
    Params(asked): Params<PreviewQuery>,
) -> Result<Json<Bill>, Problem> {
    preview::preview(&app, &caller, &asked).await.map(Json)
}

/// The last requests, the latest first.
#[utoipa::path(get, path = "/api/v1/requests", tag = "figures", operation_id = "requests", params(RequestsQuery),
    responses((status = 200, body = Requests), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn requests(
    State(app): State<Shared>,
    caller: Caller,
    Params(asked): Params<RequestsQuery>,
) -> Result<Json<Requests>, Problem> {
    requests::requests(&app, &caller, &asked).await.map(Json)
}

/// What the running reconciler found: whether log, rows, sums, balances and bills are the same, and where they are not.
#[utoipa::path(get, path = "/api/v1/reconciliation", tag = "figures", operation_id = "reconciliation",
    responses((status = 200, body = Reconciliation), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn reconciliation(State(app): State<Shared>, caller: Caller) -> Result<Json<Reconciliation>, Problem> {
    reconciliation::reconciliation(&app, &caller).await.map(Json)
}

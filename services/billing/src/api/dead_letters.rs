//! The routes of dead letters. They are read here; to write one anew is a command of the operator's, which knows who gives it.

use axum::Json;
use axum::extract::State;

use crate::app::Shared;
use crate::auth::Caller;
use crate::dead_letters::DeadLetterWhole;
use crate::extract::{Params, Segments};
use crate::figures::dead_letters::{self, DeadLetters, DeadLettersQuery};
use crate::problem::Problem;

/// What could not count, why, and what of it was replayed, in the order of the log. Admin only.
#[utoipa::path(get, path = "/api/v1/dead-letters", tag = "dead letters", operation_id = "list_dead_letters",
    params(DeadLettersQuery),
    responses((status = 200, body = DeadLetters), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Params(asked): Params<DeadLettersQuery>,
) -> Result<Json<DeadLetters>, Problem> {
    dead_letters::list(&app, &caller, &asked).await.map(Json)
}

/// One dead letter with its bytes, what they say, and who replayed it and why. Admin only.
#[utoipa::path(get, path = "/api/v1/dead-letters/{topic}/{partition}/{offset}", tag = "dead letters", operation_id = "get_dead_letter",
    params(("topic" = String, Path, description = "`tokens` or `requests`, or the topic's whole name"),
        ("partition" = i32, Path, description = "Its partition"), ("offset" = i64, Path, description = "Its offset")),
    responses((status = 200, body = DeadLetterWhole), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(app): State<Shared>,
    caller: Caller,
    Segments((topic, partition, offset)): Segments<(String, String, String)>,
) -> Result<Json<DeadLetterWhole>, Problem> {
    dead_letters::one(&app, &caller, &format!("{topic}/{partition}/{offset}")).await.map(Json)
}

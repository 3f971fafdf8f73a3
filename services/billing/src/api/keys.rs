//! API keys of tenants: made here, shown once, kept as a hash, revoked at once.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Utc};
use ledger::control::{ApiKey, ControlState, Document, Kind};
use ledger::ids::{ApiKeyId, ProjectId, TenantId};
use ledger::time::Micros;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::documents::instant;
use super::resource::{Known, Page, PageQuery, tagged};
use super::strict;
use crate::app::{Shared, tenant};
use crate::auth::{Caller, sha256};
use crate::control::{self, Precondition};
use crate::extract::{JsonBody, Params, Segments};
use crate::problem::Problem;
use crate::settings::is_sha256;

/// What a key is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    /// The project that its usage belongs to.
    #[schema(value_type = String, example = "default")]
    project: ProjectId,
    /// From when on it is refused; never if absent.
    #[serde(default, deserialize_with = "strict::instant_or_none")]
    expires_at: Option<DateTime<Utc>>,
}

/// A key that was made elsewhere, by its hash.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyBody {
    /// The project that its usage belongs to.
    #[schema(value_type = String, example = "default")]
    project: ProjectId,
    /// SHA-256 of the whole key, 64 hex digits in lower case.
    sha256: String,
    /// From when on it is refused; never if absent.
    #[serde(default, deserialize_with = "strict::instant_or_none")]
    expires_at: Option<DateTime<Utc>>,
    /// Whether it is refused now.
    #[serde(default)]
    revoked: bool,
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyShown {
    /// Whose.
    #[schema(value_type = String)]
    tenant: TenantId,
    /// The project that its usage belongs to.
    #[schema(value_type = String)]
    project: ProjectId,
    /// From when on it is refused; never if absent.
    expires_at: Option<DateTime<Utc>>,
    /// Whether it is refused now.
    revoked: bool,
}

/// A new key. The secret is shown this once.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeyMade {
    /// What clients send. It is kept nowhere: whoever loses it makes another key.
    secret: String,
    #[serde(flatten)]
    key: Known<KeyShown>,
}

fn shown(state: &ControlState, id: &str, key: &ApiKey) -> Known<KeyShown> {
    let document = KeyShown {
        tenant: key.tenant.clone(),
        project: key.project.clone(),
        expires_at: key.expires_at.and_then(instant),
        revoked: key.revoked,
    };
    Known { id: id.to_owned(), revision: state.revision(Kind::ApiKey, id), document }
}

/// A key of this tenant. That another tenant has it is not told.
fn find<'a>(state: &'a ControlState, owner: &TenantId, id: &str) -> Result<&'a ApiKey, Problem> {
    match state.get(Kind::ApiKey, id) {
        Some(Document::ApiKey(key)) if key.tenant == *owner => Ok(key),
        _ => Err(Problem::not_found("key", id)),
    }
}

fn owner(id: &str) -> Result<TenantId, Problem> {
    id.parse().map_err(|error: ledger::ids::SlugError| Problem::id(error.to_string()))
}

/// UUIDs have one way of being written here, so that one key has one id.
fn key_id(id: &str) -> Result<String, Problem> {
    let parsed: ApiKeyId = id.parse().map_err(|_| Problem::id(format!("the id of a key is a UUID, {id:?} is none")))?;
    Ok(parsed.to_string())
}

/// Lists a tenant's keys, by id, without their secrets. The admin, or the tenant itself.
#[utoipa::path(get, path = "/api/v1/tenants/{id}/keys", tag = "keys", operation_id = "list_keys",
    params(("id" = String, Path, description = "The tenant"), PageQuery),
    responses((status = 200, body = Page<Known<KeyShown>>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<Known<KeyShown>>>, Problem> {
    let owner = owner(&id)?;
    caller.sees(&owner)?;
    let control = app.control()?;
    tenant(&control.state, &owner)?;
    let own = control.state.iter().filter_map(|(id, document)| match document {
        Document::ApiKey(key) if key.tenant == owner => Some((id.to_owned(), shown(&control.state, id, key))),
        _ => None,
    });
    Ok(Json(page.part(own)?))
}

/// Makes a key. Its secret is in this answer and nowhere else. Admin only.
#[utoipa::path(post, path = "/api/v1/tenants/{id}/keys", tag = "keys", operation_id = "make_key",
    params(("id" = String, Path, description = "The tenant")), request_body = NewKey,
    responses((status = 201, body = KeyMade), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn make(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
    JsonBody(body): JsonBody<NewKey>,
) -> Result<Response, Problem> {
    caller.admin()?;
    let owner = owner(&id)?;
    tenant(&app.control()?.state, &owner)?;
    let expires_at = body.expires_at.map(Micros::from);
    if expires_at.is_some_and(|end| end <= app.now()) {
        return Err(Problem::value("`expires_at` is in the past"));
    }
    // Twice 122 random bits: nobody guesses it, and no salt is needed for its hash.
    let secret = format!("tg_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let key = ApiKey { expires_at, ..ApiKey::new(owner, body.project, sha256(&secret)) };
    let id = Uuid::now_v7().to_string();
    let document = Document::ApiKey(key.clone());
    let put = control::put(&app, &caller.actor(), &id, document, Precondition::Absent).await?;
    let key = shown(&app.control()?.state, &id, &key);
    Ok(tagged(StatusCode::CREATED, put.revision, KeyMade { secret, key }))
}

/// Reads a key, without its secret. The admin, or the tenant itself.
#[utoipa::path(get, path = "/api/v1/tenants/{id}/keys/{key_id}", tag = "keys", operation_id = "get_key",
    params(("id" = String, Path, description = "The tenant"), ("key_id" = String, Path, description = "The key's id")),
    responses((status = 200, body = Known<KeyShown>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(app): State<Shared>,
    caller: Caller,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<Response, Problem> {
    let owner = owner(&id)?;
    caller.sees(&owner)?;
    let control = app.control()?;
    let key = key_id(&key)?;
    let found = shown(&control.state, &key, find(&control.state, &owner, &key)?);
    Ok(tagged(StatusCode::OK, found.revision, found))
}

/// Puts a key that was made elsewhere, by its hash; or changes one. Admin only.
#[utoipa::path(put, path = "/api/v1/tenants/{id}/keys/{key_id}", tag = "keys", operation_id = "put_key",
    params(("id" = String, Path, description = "The tenant"), ("key_id" = String, Path, description = "A UUID"),
        ("if-match" = Option<String>, Header, description = "The entity tag that was read, or *"),
        ("if-none-match" = Option<String>, Header, description = "* to create only")),
    request_body = KeyBody,
    responses((status = 200, body = Known<KeyShown>), (status = 201, body = Known<KeyShown>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn put(
    State(app): State<Shared>,
    caller: Caller,
    Segments((id, key)): Segments<(String, String)>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<KeyBody>,
) -> Result<Response, Problem> {
    caller.admin()?;
    let owner = owner(&id)?;
    let key_id = key_id(&key)?;
    if !is_sha256(&body.sha256) {
        return Err(Problem::value("`sha256` must be 64 hex digits in lower case: the SHA-256 of the whole key"));
    }
    let when = Precondition::of(&headers)?;
    let KeyBody { project, sha256, expires_at, revoked } = body;
    let new =
        ApiKey { expires_at: expires_at.map(Micros::from), revoked, ..ApiKey::new(owner.clone(), project, sha256) };
    let becomes = |now: Option<&Document>| match now {
        Some(Document::ApiKey(now)) if now.tenant != owner => Err(Problem::not_found("key", &key_id)),
        _ => Ok(Some(Document::ApiKey(new.clone()))),
    };
    let (there, revision) = control::write(&app, &caller.actor(), Kind::ApiKey, &key_id, when, becomes).await?;
    let status = if there { StatusCode::OK } else { StatusCode::CREATED };
    Ok(tagged(status, revision, shown(&app.control()?.state, &key_id, &new)))
}

/// Revokes a key: every gateway refuses it within a second. What it used stays. Doing so twice changes nothing. Admin only.
#[utoipa::path(delete, path = "/api/v1/tenants/{id}/keys/{key_id}", tag = "keys", operation_id = "revoke_key",
    params(("id" = String, Path, description = "The tenant"), ("key_id" = String, Path, description = "The key's id"),
        ("if-match" = Option<String>, Header, description = "The entity tag that was read, or *")),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn revoke(
    State(app): State<Shared>,
    caller: Caller,
    Segments((id, key)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    caller.admin()?;
    let owner = owner(&id)?;
    let key_id = key_id(&key)?;
    let when = Precondition::of(&headers)?;
    let becomes = |now: Option<&Document>| match now {
        Some(Document::ApiKey(now)) if now.tenant == owner => {
            Ok(Some(Document::ApiKey(ApiKey { revoked: true, ..now.clone() })))
        }
        _ => Err(Problem::not_found("key", &key_id)),
    };
    control::write(&app, &caller.actor(), Kind::ApiKey, &key_id, when, becomes).await?;
    Ok(StatusCode::NO_CONTENT)
}

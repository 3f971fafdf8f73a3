//! API keys of tenants: made here, shown once, kept as a hash, replaced with an overlap, revoked at once.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Utc};
use ledger::control::{ApiKey, ControlState, Document, Kind, Scope};
use ledger::ids::{ApiKeyId, ProjectId, TenantId};
use ledger::time::{Micros, Slot};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::documents::{LimitsBody, instant};
use super::resource::{Known, Page, PageQuery, tagged};
use super::strict;
use crate::app::{App, Shared, tenant};
use crate::auth::{Caller, sha256};
use crate::control::{self, Precondition};
use crate::extract::{JsonBody, Params, Segments};
use crate::problem::Problem;
use crate::settings::is_sha256;

/// The longest overlap of an old key and its successor.
const OVERLAP_MAX: u32 = 31_536_000;
/// How long it is waited for when keys were last used.
const USED_MAX: Duration = Duration::from_secs(2);

/// The slot in which each key was last used.
type LastUsed = HashMap<ApiKeyId, Slot>;

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
    /// What it may be used for: some of `generate` (chat, completions, responses, messages), `embed` (embeddings, rerank,
    /// score), `models` (list models, count tokens) and `usage` (read this API); everything if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["generate", "models"]))]
    scopes: Option<Vec<Scope>>,
    /// Limits of this key, below those of its project and plan.
    #[serde(default)]
    limits: LimitsBody,
}

/// How a key is replaced.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    /// How long the old key is still taken, beside the new one. 0 ends it at once.
    #[schema(example = 86400, maximum = 31536000)]
    overlap_seconds: u32,
    /// From when on the new key is refused; never if absent.
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
    /// What it may be used for: some of `generate` (chat, completions, responses, messages), `embed` (embeddings, rerank,
    /// score), `models` (list models, count tokens) and `usage` (read this API); everything if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["generate", "models"]))]
    scopes: Option<Vec<Scope>>,
    /// Limits of this key, below those of its project and plan.
    #[serde(default)]
    limits: LimitsBody,
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
    /// What it may be used for; everything if absent.
    #[schema(value_type = Option<Vec<String>>)]
    scopes: Option<Vec<Scope>>,
    /// Limits of this key, below those of its project and plan.
    limits: LimitsBody,
}

/// A key, and when it was used.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyRead {
    #[serde(flatten)]
    key: KeyShown,
    /// The quarter of an hour in which a request of it was last counted; null if none ever was. Absent while usage cannot
    /// be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DateTime<Utc>>)]
    last_used_at: Option<Option<DateTime<Utc>>>,
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
        scopes: key.scopes.clone(),
        limits: key.limits.into(),
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

/// Each once, in the order of their list: two ways of saying the same are one document.
fn each_once(scopes: Option<Vec<Scope>>) -> Option<Vec<Scope>> {
    scopes.map(|scopes| Scope::ALL.into_iter().filter(|scope| scopes.contains(scope)).collect())
}

/// When a tenant's keys were last used. None while usage cannot be read: keys are still shown then.
async fn last_used(app: &App, owner: &TenantId) -> Option<LastUsed> {
    let asked = tokio::time::timeout(USED_MAX, app.ask("last_used", app.clickhouse.last_used(owner)));
    Some(asked.await.ok()?.ok()?.into_iter().collect())
}

fn read(key: Known<KeyShown>, used: Option<&LastUsed>) -> Known<KeyRead> {
    let Known { id, revision, document } = key;
    let last_used_at = used.map(|used| {
        let slot = id.parse().ok().and_then(|id: ApiKeyId| used.get(&id));
        slot.and_then(|slot| instant(slot.start()))
    });
    Known { id, revision, document: KeyRead { key: document, last_used_at } }
}

/// UUIDs have one way of being written here, so that one key has one id.
fn key_id(id: &str) -> Result<String, Problem> {
    let parsed: ApiKeyId = id.parse().map_err(|_| Problem::id(format!("the id of a key is a UUID, {id:?} is none")))?;
    Ok(parsed.to_string())
}

/// Lists a tenant's keys, by id, without their secrets, and when they were last used. The admin, or the tenant itself.
#[utoipa::path(get, path = "/api/v1/tenants/{id}/keys", tag = "keys", operation_id = "list_keys",
    params(("id" = String, Path, description = "The tenant"), PageQuery),
    responses((status = 200, body = Page<Known<KeyRead>>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<Known<KeyRead>>>, Problem> {
    let owner = owner(&id)?;
    caller.sees(&owner)?;
    let control = app.control()?;
    tenant(&control.state, &owner)?;
    let own = control.state.iter().filter_map(|(id, document)| match document {
        Document::ApiKey(key) if key.tenant == owner => Some((id.to_owned(), shown(&control.state, id, key))),
        _ => None,
    });
    let Page { data, next_cursor } = page.part(own)?;
    let used = last_used(&app, &owner).await;
    let data = data.into_iter().map(|key| read(key, used.as_ref())).collect();
    Ok(Json(Page { data, next_cursor }))
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
    let limits = body.limits.into();
    let (secret, key) = new_key(owner, body.project);
    let key = ApiKey { expires_at, scopes: each_once(body.scopes), limits, ..key };
    made(&app, &caller, secret, key).await
}

/// A key that opens everything, and its secret.
fn new_key(owner: TenantId, project: ProjectId) -> (String, ApiKey) {
    // Twice 122 random bits: nobody guesses it, and no salt is needed for its hash.
    let secret = format!("tg_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let key = ApiKey::new(owner, project, sha256(&secret));
    (secret, key)
}

async fn made(app: &App, caller: &Caller, secret: String, key: ApiKey) -> Result<Response, Problem> {
    let id = Uuid::now_v7().to_string();
    let document = Document::ApiKey(key.clone());
    let put = control::put(app, &caller.actor(), &id, document, Precondition::Absent).await?;
    let key = shown(&app.control()?.state, &id, &key);
    Ok(tagged(StatusCode::CREATED, put.revision, KeyMade { secret, key }))
}

/// Replaces a key: makes a new one with its project, scopes and limits, and lets the old one expire after the overlap, in
/// which both are taken. The secret of the new one is in this answer and nowhere else. Admin only.
#[utoipa::path(post, path = "/api/v1/tenants/{id}/keys/{key_id}/rotate", tag = "keys", operation_id = "rotate_key",
    params(("id" = String, Path, description = "The tenant"), ("key_id" = String, Path, description = "The old key's id")),
    request_body = Rotation,
    responses((status = 201, body = KeyMade), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn rotate(
    State(app): State<Shared>,
    caller: Caller,
    Segments((id, key)): Segments<(String, String)>,
    JsonBody(body): JsonBody<Rotation>,
) -> Result<Response, Problem> {
    caller.admin()?;
    let owner = owner(&id)?;
    let key_id = key_id(&key)?;
    if body.overlap_seconds > OVERLAP_MAX {
        return Err(Problem::value(format!("`overlap_seconds` must be at most {OVERLAP_MAX}: a year")));
    }
    let now = app.now();
    let expires_at = body.expires_at.map(Micros::from);
    if expires_at.is_some_and(|end| end <= now) {
        return Err(Problem::value("`expires_at` is in the past"));
    }
    let old = find(&app.control()?.state, &owner, &key_id)?.clone();
    if old.revoked || old.expires_at.is_some_and(|end| end <= now) {
        return Err(Problem::value("the key is refused already, and so has nothing to hand over: make a new one"));
    }
    let (secret, new) = new_key(owner.clone(), old.project);
    let new = ApiKey { expires_at, scopes: old.scopes, limits: old.limits, ..new };
    // The new one first: if what follows fails, there is a key that nobody has, and none that is missing.
    let made = made(&app, &caller, secret, new).await?;
    let end = Micros(now.0.saturating_add(i64::from(body.overlap_seconds) * 1_000_000));
    let becomes = |_: &ControlState, now: Option<&Document>| match now {
        Some(Document::ApiKey(now)) if now.tenant == owner => {
            let expires_at = Some(now.expires_at.map_or(end, |before| before.min(end)));
            Ok(Some(Document::ApiKey(ApiKey { expires_at, ..now.clone() })))
        }
        _ => Err(Problem::not_found("key", &key_id)),
    };
    control::write(&app, &caller.actor(), Kind::ApiKey, &key_id, Precondition::None, becomes).await?;
    Ok(made)
}

/// Reads a key, without its secret, and when it was last used. The admin, or the tenant itself.
#[utoipa::path(get, path = "/api/v1/tenants/{id}/keys/{key_id}", tag = "keys", operation_id = "get_key",
    params(("id" = String, Path, description = "The tenant"), ("key_id" = String, Path, description = "The key's id")),
    responses((status = 200, body = Known<KeyRead>), (status = "default", body = Problem, content_type = "application/problem+json")))]
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
    let found = read(found, last_used(&app, &owner).await.as_ref());
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
    let KeyBody { project, sha256, expires_at, revoked, scopes, limits } = body;
    let (expires_at, scopes, limits) = (expires_at.map(Micros::from), each_once(scopes), limits.into());
    let new = ApiKey { expires_at, revoked, scopes, limits, ..ApiKey::new(owner.clone(), project, sha256) };
    let becomes = |_: &ControlState, now: Option<&Document>| match now {
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
    let becomes = |_: &ControlState, now: Option<&Document>| match now {
        Some(Document::ApiKey(now)) if now.tenant == owner => {
            Ok(Some(Document::ApiKey(ApiKey { revoked: true, ..now.clone() })))
        }
        _ => Err(Problem::not_found("key", &key_id)),
    };
    control::write(&app, &caller.actor(), Kind::ApiKey, &key_id, when, becomes).await?;
    Ok(StatusCode::NO_CONTENT)
}

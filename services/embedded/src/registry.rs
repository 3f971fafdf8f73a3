//! The read API of Confluent's Schema Registry over the schemas that are compiled in; it keeps nothing and changes nothing.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use runtime::Shutdown;
use runtime::http::HttpError;
use schemas::registry::{SCHEMAS, SchemaVersion};
use serde::Deserialize;
use serde_json::{Value, json};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");
/// Answers are tiny: whoever has not read his by then is gone.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves the registry until shutdown.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(listen: SocketAddr, shutdown: Shutdown) -> Result<(), HttpError> {
    let listener = runtime::http::bind(listen).await?;
    tracing::info!(%listen, schemas = SCHEMAS.len(), "the schema registry's read API is up");
    runtime::http::serve(listener, router(SCHEMAS), shutdown, DRAIN).await
}

type Schemas = &'static [SchemaVersion];

/// The routes over `schemas`.
pub fn router(schemas: &'static [SchemaVersion]) -> Router {
    Router::new()
        .route("/", get(async || answer(json!({}))))
        .route("/subjects", get(subjects))
        .route("/subjects/{subject}", post(lookup).delete(read_only))
        .route("/subjects/{subject}/versions", get(versions).post(register))
        .route("/subjects/{subject}/versions/{version}", get(version).delete(read_only))
        .route("/subjects/{subject}/versions/{version}/schema", get(version_text))
        .route("/subjects/{subject}/versions/{version}/referencedby", get(referenced_by))
        .route("/schemas", get(all))
        .route("/schemas/types", get(async || answer(json!(["AVRO"]))))
        .route("/schemas/ids/{id}", get(by_id))
        .route("/schemas/ids/{id}/schema", get(text_by_id))
        .route("/schemas/ids/{id}/subjects", get(subjects_by_id))
        .route("/schemas/ids/{id}/versions", get(versions_by_id))
        .route("/config", get(async || answer(json!({"compatibilityLevel": "FULL"}))).put(read_only).delete(read_only))
        .route("/config/{subject}", get(config_of).put(read_only).delete(read_only))
        .route("/mode", get(async || answer(json!({"mode": "READONLY"}))).put(read_only))
        .route("/mode/{subject}", get(mode_of).put(read_only).delete(read_only))
        .fallback(async || Refusal(StatusCode::NOT_FOUND, 404, "HTTP 404 Not Found".to_owned()))
        .method_not_allowed_fallback(async || {
            Refusal(StatusCode::METHOD_NOT_ALLOWED, 405, "HTTP 405 Method Not Allowed".to_owned())
        })
        .with_state(schemas)
}

/// Status, the registry's own error code, and its message.
#[derive(Debug)]
struct Refusal(StatusCode, u32, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = answer(json!({"error_code": self.1, "message": self.2}));
        *response.status_mut() = self.0;
        response
    }
}

impl Refusal {
    fn subject(subject: &str) -> Self {
        Self(StatusCode::NOT_FOUND, 40401, format!("Subject '{subject}' not found."))
    }

    fn schema() -> Self {
        Self(StatusCode::NOT_FOUND, 40403, "Schema not found".to_owned())
    }

    fn read_only() -> Self {
        let why = "The registry is in read-only mode: Tollgate's schemas are compiled in";
        Self(StatusCode::UNPROCESSABLE_ENTITY, 42205, why.to_owned())
    }
}

fn answer(body: Value) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}

fn text_answer(schema: &SchemaVersion) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], schema.text).into_response()
}

fn described(schema: &SchemaVersion) -> Value {
    json!({"subject": schema.subject, "version": schema.version, "id": schema.id, "schema": schema.text})
}

async fn read_only() -> Refusal {
    Refusal::read_only()
}

#[derive(Deserialize)]
struct Prefix {
    #[serde(default, rename = "subjectPrefix")]
    prefix: String,
}

async fn subjects(State(schemas): State<Schemas>, Query(Prefix { prefix }): Query<Prefix>) -> Response {
    let mut names: Vec<_> = schemas.iter().map(|s| s.subject).filter(|s| s.starts_with(&prefix)).collect();
    names.sort_unstable();
    names.dedup();
    answer(json!(names))
}

async fn all(State(schemas): State<Schemas>) -> Response {
    answer(schemas.iter().map(described).collect())
}

/// The versions of a subject, oldest first.
fn of(schemas: Schemas, subject: &str) -> Result<Vec<&'static SchemaVersion>, Refusal> {
    let mut versions: Vec<_> = schemas.iter().filter(|s| s.subject == subject).collect();
    versions.sort_unstable_by_key(|s| s.version);
    if versions.is_empty() { Err(Refusal::subject(subject)) } else { Ok(versions) }
}

fn find(schemas: Schemas, subject: &str, version: &str) -> Result<&'static SchemaVersion, Refusal> {
    let versions = of(schemas, subject)?;
    let wanted = match version {
        "latest" | "-1" => versions.last().map(|s| s.version),
        number => number.parse().ok().filter(|&n: &u32| n > 0 && n <= i32::MAX.unsigned_abs()),
    };
    let Some(wanted) = wanted else {
        let why = format!(
            "The specified version '{version}' is not a valid version id. Allowed values are between [1, 2^31-1] and the \
             string \"latest\""
        );
        return Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, 42202, why));
    };
    let found = versions.into_iter().find(|s| s.version == wanted);
    found.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, 40402, format!("Version {wanted} not found.")))
}

async fn versions(State(schemas): State<Schemas>, Path(subject): Path<String>) -> Result<Response, Refusal> {
    let numbers: Vec<_> = of(schemas, &subject)?.iter().map(|s| s.version).collect();
    Ok(answer(json!(numbers)))
}

type SubjectVersion = Path<(String, String)>;

async fn version(State(schemas): State<Schemas>, Path((subject, v)): SubjectVersion) -> Result<Response, Refusal> {
    Ok(answer(described(find(schemas, &subject, &v)?)))
}

async fn version_text(State(schemas): State<Schemas>, Path((subject, v)): SubjectVersion) -> Result<Response, Refusal> {
    Ok(text_answer(find(schemas, &subject, &v)?))
}

async fn referenced_by(
    State(schemas): State<Schemas>,
    Path((subject, v)): SubjectVersion,
) -> Result<Response, Refusal> {
    find(schemas, &subject, &v)?;
    Ok(answer(json!([])))
}

/// All (subject, version) that have this id.
fn with_id(schemas: Schemas, id: &str) -> Result<Vec<&'static SchemaVersion>, Refusal> {
    let wanted: Option<u32> = id.parse().ok();
    let found: Vec<_> = schemas.iter().filter(|s| Some(s.id) == wanted).collect();
    if found.is_empty() {
        return Err(Refusal(StatusCode::NOT_FOUND, 40403, format!("Schema {id} not found")));
    }
    Ok(found)
}

async fn by_id(State(schemas): State<Schemas>, Path(id): Path<String>) -> Result<Response, Refusal> {
    Ok(answer(json!({"schema": with_id(schemas, &id)?[0].text})))
}

async fn text_by_id(State(schemas): State<Schemas>, Path(id): Path<String>) -> Result<Response, Refusal> {
    Ok(text_answer(with_id(schemas, &id)?[0]))
}

async fn subjects_by_id(State(schemas): State<Schemas>, Path(id): Path<String>) -> Result<Response, Refusal> {
    Ok(answer(with_id(schemas, &id)?.iter().map(|s| Value::from(s.subject)).collect()))
}

async fn versions_by_id(State(schemas): State<Schemas>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let found = with_id(schemas, &id)?;
    Ok(answer(found.iter().map(|s| json!({"subject": s.subject, "version": s.version})).collect()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefaultToGlobal {
    #[serde(default)]
    default_to_global: bool,
}

async fn config_of(Path(subject): Path<String>, Query(query): Query<DefaultToGlobal>) -> Result<Response, Refusal> {
    if query.default_to_global {
        return Ok(answer(json!({"compatibilityLevel": "FULL"})));
    }
    let why = format!("Subject '{subject}' does not have subject-level compatibility configured");
    Err(Refusal(StatusCode::NOT_FOUND, 40408, why))
}

async fn mode_of(Path(subject): Path<String>, Query(query): Query<DefaultToGlobal>) -> Result<Response, Refusal> {
    if query.default_to_global {
        return Ok(answer(json!({"mode": "READONLY"})));
    }
    let why = format!("Subject '{subject}' does not have subject-level mode configured");
    Err(Refusal(StatusCode::NOT_FOUND, 40409, why))
}

/// The schema that a request's body holds, as JSON.
fn posted(body: &str) -> Result<Value, Refusal> {
    let invalid = |why: String| Refusal(StatusCode::UNPROCESSABLE_ENTITY, 42201, format!("Invalid schema: {why}"));
    let request: Value = serde_json::from_str(body).map_err(|error| invalid(error.to_string()))?;
    let text = request["schema"].as_str().ok_or_else(|| invalid("no field \"schema\"".to_owned()))?;
    serde_json::from_str(text).map_err(|error| invalid(error.to_string()))
}

fn same(versions: &[&'static SchemaVersion], wanted: &Value) -> Option<&'static SchemaVersion> {
    let is_it = |s: &&&SchemaVersion| serde_json::from_str::<Value>(s.text).is_ok_and(|schema| schema == *wanted);
    versions.iter().rev().find(is_it).copied()
}

/// Is this schema known under the subject? A question, although it is posted.
async fn lookup(
    State(schemas): State<Schemas>,
    Path(subject): Path<String>,
    body: String,
) -> Result<Response, Refusal> {
    let versions = of(schemas, &subject)?;
    same(&versions, &posted(&body)?).map(|s| answer(described(s))).ok_or_else(Refusal::schema)
}

/// Registering what is there already is answered with its id, so that serializers that always register work.
async fn register(
    State(schemas): State<Schemas>,
    Path(subject): Path<String>,
    body: String,
) -> Result<Response, Refusal> {
    let wanted = posted(&body)?;
    let known = of(schemas, &subject).ok().and_then(|versions| same(&versions, &wanted));
    known.map(|s| answer(json!({"id": s.id}))).ok_or_else(Refusal::read_only)
}

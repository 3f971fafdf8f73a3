//! The paths: which answer belongs to which, and the headers that all share.

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, DATE, SERVER, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use runtime::{Clock, SystemClock};
use serde::Deserialize;
use serde_json::{Value, json};

use super::engine::Engine;
use super::errors::ApiError;
use super::faults::{ArmedFault, FaultBook};
use super::inference;
use super::metrics;
use super::record::Ledger;
use super::render::quote;
use super::settings::{Runner, SimulatorSettings};
use super::socket::SocketControl;
use super::tasks::Task;
use super::tokens::mix;
use super::wire::Broken;

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Broken>;

/// The longest request body that is read.
const MAX_BODY_BYTES: usize = 64 << 20;

/// What all requests share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Arc<SimulatorSettings>,
    pub(super) engine: Arc<Engine>,
    pub(super) faults: FaultBook,
    pub(super) ledger: Ledger,
    pub(super) started: f64,
}

impl State {
    pub(super) fn new(settings: SimulatorSettings) -> Self {
        let settings = Arc::new(settings);
        Self {
            engine: Arc::new(Engine::new(Arc::clone(&settings))),
            faults: FaultBook::new(settings.faults.clone()),
            ledger: Ledger::new(settings.keep_requests),
            started: SystemClock.now() as f64 / 1e6,
            settings,
        }
    }

    /// The value of `x-request-id`, when answers carry it.
    pub(super) fn identity(&self, given: Option<&str>, number: u64) -> Option<String> {
        let own = || format!("{:016x}{:016x}", mix(number), mix(self.settings.seed ^ number));
        self.settings.enable_request_id_headers.then(|| given.map_or_else(own, str::to_owned))
    }

    /// The headers of an answer in uvicorn's order.
    pub(super) fn headers(&self, kind: &str, length: Option<usize>, id: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        headers.insert(DATE, text(&date(SystemClock.now())));
        headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, text(kind));
        }
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        if let Some(id) = id {
            headers.insert("x-request-id", text(id));
        }
        headers
    }
}

/// The time of day in whole seconds since the Unix epoch.
pub(super) fn seconds() -> i64 {
    SystemClock.now().div_euclid(1_000_000)
}

/// A time as the `date` header writes it.
fn date(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).unwrap_or_default().format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The headers of a JSON answer.
pub(super) fn json_headers(state: &State, length: usize, id: Option<&str>) -> HeaderMap {
    state.headers("application/json", Some(length), id)
}

fn full(text: String) -> Body {
    if text.is_empty() {
        // A body known to be empty would move content-length to the end of the headers.
        return StreamBody::new(futures_util::stream::empty()).boxed_unsync();
    }
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn respond(state: &State, status: StatusCode, kind: &str, text: String, id: Option<&str>) -> Response<Body> {
    let headers = state.headers(kind, Some(text.len()), id);
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn json(state: &State, text: String, id: Option<&str>) -> Response<Body> {
    respond(state, StatusCode::OK, "application/json", text, id)
}

/// An error as an answer.
pub(super) fn refuse(state: &State, error: &ApiError, given: Option<&str>) -> Response<Body> {
    let id = state.identity(given, 0);
    let mut response = respond(state, error.status, "application/json", error.body.clone(), id.as_deref());
    if let Some(allow) = error.allow {
        let mut headers = HeaderMap::new();
        for (name, value) in response.headers() {
            if name == CONTENT_LENGTH {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            headers.insert(name.clone(), value.clone());
        }
        *response.headers_mut() = headers;
    }
    if error.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().remove(VARY);
    }
    response
}

/// Answers one request, or orders the connection closed.
pub(super) async fn handle(
    state: Arc<State>,
    socket: Arc<SocketControl>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (head, incoming) = request.into_parts();
    let given = head.headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let path = head.uri.path().to_owned();
    let task = Task::find(&path, state.settings.runner);
    if let Some(allow) = wrong_method(&head.method, &path, task) {
        return Ok(refuse(&state, &ApiError::method(allow), given.as_deref()));
    }
    if !authorized(&state, &head.headers, &path) {
        return Ok(refuse(&state, &ApiError::unauthorized(), given.as_deref()));
    }
    let Ok(body) = Limited::new(incoming, MAX_BODY_BYTES).collect().await else { return Err(Broken) };
    let body = body.to_bytes();
    if let (Some(task), true) = (task, head.method == Method::POST) {
        return inference::answer(state, socket, task.invoked(&path, &body), &path, &head.headers, &body).await;
    }
    Ok(plain(&state, &head.method, &path, &body, given.as_deref()))
}

/// The method that would do, where this one does not.
fn wrong_method(method: &Method, path: &str, task: Option<Task>) -> Option<&'static str> {
    let (right, allow) = match path {
        _ if task.is_some() => (method == Method::POST, "POST"),
        "/v1/models" | "/health" | "/version" | "/load" => (method == Method::GET || method == Method::HEAD, "GET"),
        _ => (true, ""),
    };
    (!right).then_some(allow)
}

/// The response that `/v1/responses/ID` or `/v1/responses/ID/cancel` asks about.
fn response_id(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/v1/responses/")?;
    let id = id.strip_suffix("/cancel").unwrap_or(id);
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

fn authorized(state: &State, headers: &HeaderMap, path: &str) -> bool {
    let Some(key) = &state.settings.api_key else { return true };
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    !(path.starts_with("/v1") || path.starts_with("/v2")) || given == Some(key.as_str())
}

/// Everything that has no task.
fn plain(state: &State, method: &Method, path: &str, body: &[u8], given: Option<&str>) -> Response<Body> {
    let id = state.identity(given, 0);
    let id = id.as_deref();
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/health") => {
            let status = if state.faults.unhealthy() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            respond(state, status, "", String::new(), id)
        }
        (&Method::GET | &Method::POST, "/ping") => respond(state, StatusCode::OK, "", String::new(), id),
        (&Method::GET, "/version") => json(state, r#"{"version":"0.32.0"}"#.to_owned(), id),
        (&Method::GET, "/load") => {
            json(state, format!(r#"{{"server_load":{}}}"#, metrics::load(&state.engine.stats)), id)
        }
        (&Method::GET, "/v1/models") => json(state, models(state), id),
        (&Method::GET, "/metrics") => {
            respond(state, StatusCode::OK, "text/plain; version=1.0.0; charset=utf-8", metrics::render(state), id)
        }
        (_, path) if state.settings.runner == Runner::Generate && response_id(path).is_some() => {
            refuse(state, &ApiError::no_response(response_id(path).unwrap_or_default()), given)
        }
        (_, path) if path.starts_with("/simulator/") => simulator(state, method, path, body),
        _ => refuse(state, &ApiError::detail(StatusCode::NOT_FOUND, "Not Found"), given),
    }
}

fn models(state: &State) -> String {
    let created = seconds();
    let root = quote(state.settings.root.as_deref().unwrap_or(state.settings.model()));
    let length = state.settings.max_model_len;
    let card = |(index, name): (u64, &String)| {
        format!(
            r#"{{"id":{},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":null,"max_model_len":{length},"permission":[{{"id":"modelperm-{:016x}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#,
            quote(name),
            mix(state.settings.seed ^ mix(index))
        )
    };
    let cards: Vec<String> = (0..).zip(&state.settings.models).map(card).collect();
    format!(r#"{{"object":"list","data":[{}]}}"#, cards.join(","))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Faults {
    faults: Vec<ArmedFault>,
}

/// The simulator's own paths: `faults` (GET, PUT, DELETE) and `requests` (GET, DELETE).
fn simulator(state: &State, method: &Method, path: &str, body: &[u8]) -> Response<Body> {
    match (method, path) {
        (&Method::PUT, "/simulator/faults") => match serde_json::from_slice::<Faults>(body) {
            Ok(given) => state.faults.replace(given.faults),
            Err(error) => {
                let text = json!({"error": format!("the body is no list of faults: {error}")}).to_string();
                return respond(state, StatusCode::BAD_REQUEST, "application/json", text, None);
            }
        },
        (&Method::DELETE, "/simulator/faults") => state.faults.replace(Vec::new()),
        (&Method::DELETE, "/simulator/requests") => state.ledger.clear(),
        (&Method::GET, "/simulator/faults" | "/simulator/requests") => {}
        _ => return refuse(state, &ApiError::detail(StatusCode::NOT_FOUND, "Not Found"), None),
    }
    let said: Value = if path.ends_with("faults") {
        json!({"faults": state.faults.armed()})
    } else {
        json!({"requests": state.ledger.read()})
    };
    json(state, said.to_string(), None)
}

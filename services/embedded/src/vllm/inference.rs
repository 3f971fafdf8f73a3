//! One inference request: check, fault, generate, answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::answer::{Answer, Event};
use super::errors::ApiError;
use super::faults::Fault;
use super::record::Entry;
use super::render::Envelope;
use super::request::{self, Ask, Endpoint};
use super::routes::{Body, State, json_headers, refuse, seconds};
use super::socket::SocketControl;
use super::tokens::mix;
use super::wire::{Broken, EndGuard, Source, Wire, stall};

/// Answers `/v1/chat/completions` or `/v1/completions`.
pub(super) async fn answer(
    state: Arc<State>,
    socket: Arc<SocketControl>,
    endpoint: Endpoint,
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response<Body>, Broken> {
    let request_id = header(headers, "x-request-id");
    let (number, entry) = state.ledger.open(path, request_id.clone());
    // Kept until here, so that an error's own outcome comes before the guard's.
    let guard = Arc::new(EndGuard(Arc::clone(&entry)));
    match generate(&state, &socket, endpoint, headers, body, number, Arc::clone(&guard)).await {
        Ok(response) => {
            entry.note(|record| record.status = response.status().as_u16());
            Ok(response)
        }
        Err(Refusal::Closed) => Err(Broken),
        Err(Refusal::Answer(error, outcome)) => {
            entry.note(|record| record.status = error.status.as_u16());
            entry.end(outcome);
            Ok(refuse(&state, &error, request_id.as_deref()))
        }
    }
}

/// Why there is no answer.
enum Refusal {
    /// The connection closes.
    Closed,
    /// An error, and the outcome that the oracle notes.
    Answer(ApiError, &'static str),
}

fn rejected(error: ApiError) -> Refusal {
    Refusal::Answer(error, "rejected")
}

async fn generate(
    state: &Arc<State>,
    socket: &Arc<SocketControl>,
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: &[u8],
    number: u64,
    guard: Arc<EndGuard>,
) -> Result<Response<Body>, Refusal> {
    let entry = Arc::clone(&guard.0);
    let json = header(headers, "content-type").is_some_and(|kind| {
        kind.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
    });
    if !json {
        return Err(rejected(ApiError::validation("Unsupported Media Type: Only 'application/json' is allowed", None)));
    }
    let fields = request::parse(body).map_err(rejected)?;
    let model = fields.get("model").and_then(|model| model.as_str()).map(str::to_owned);
    entry.note(|record| {
        record.model.clone_from(&model);
        record.stream = request::flag(&fields, "stream");
    });
    let (mut ask, mut plan) = request::read(endpoint, &fields, &state.settings).map_err(rejected)?;
    let fault = pick_fault(state, headers, &ask, model.as_deref());
    if let Some(fault) = fault {
        entry.note(|record| record.fault = Some(fault.to_string()));
        before_the_answer(fault, &entry).await?;
    }
    if let Some(Fault::Abort { after }) = fault {
        plan.abort_after = Some(after);
    } else {
        plan.abort_after = None;
    }
    let tell_usage = fault != Some(Fault::NoUsage);
    ask.include_usage &= tell_usage;
    ask.continuous_usage &= tell_usage;
    let request_id = header(headers, "x-request-id");
    let id = answer_id(state, &ask, request_id.as_deref(), number);
    entry.note(|record| {
        record.prompt_tokens = ask.prompt_tokens();
        record.id.clone_from(&id);
    });
    let stream = ask.stream;
    let generation = state.engine.submit(plan, Arc::clone(&entry)).map_err(|_| rejected(ApiError::busy()))?;
    let answer = Answer::new(envelope(state, endpoint, id), ask, generation, &state.settings);
    let headers = state.identity(request_id.as_deref(), number);
    if stream {
        Ok(streamed(state, socket, answer, fault, guard, headers.as_deref()))
    } else {
        whole(state, socket, answer, fault, guard, headers.as_deref(), tell_usage).await
    }
}

/// The header decides before the prompt, the prompt before what is armed.
fn pick_fault(state: &State, headers: &HeaderMap, ask: &Ask, model: Option<&str>) -> Option<Fault> {
    let by_header = header(headers, "x-simulator-fault").and_then(|text| text.parse().ok());
    by_header.or(ask.fault).or_else(|| state.faults.strike(model.unwrap_or(state.settings.model())))
}

/// Faults that strike before the status line.
async fn before_the_answer(fault: Fault, entry: &Entry) -> Result<(), Refusal> {
    match fault {
        Fault::Refuse => {
            entry.end("refuse");
            Err(Refusal::Closed)
        }
        Fault::Stall { after: 0, ms } => {
            stall(ms).await;
            Ok(())
        }
        Fault::Status(code) => Err(Refusal::Answer(ApiError::status(code), "status")),
        Fault::Overload => Err(Refusal::Answer(ApiError::busy(), "overload")),
        _ => Ok(()),
    }
}

fn envelope(state: &State, endpoint: Endpoint, id: String) -> Envelope {
    Envelope {
        endpoint,
        id,
        created: seconds(),
        model: state.settings.model().to_owned(),
        fingerprint: state.settings.system_fingerprint.clone(),
        prompt_details: state.settings.enable_prompt_tokens_details,
    }
}

/// The client's id (header before body), else one of our own; two answers may carry the same.
fn answer_id(state: &State, ask: &Ask, header: Option<&str>, number: u64) -> String {
    let prefix = match ask.endpoint {
        Endpoint::Chat => "chatcmpl",
        Endpoint::Completions => "cmpl",
    };
    match header.or(ask.request_id.as_deref()) {
        Some(given) => format!("{prefix}-{given}"),
        None => format!("{prefix}-{:016x}", mix(state.settings.seed ^ mix(number))),
    }
}

fn streamed(
    state: &State,
    socket: &Arc<SocketControl>,
    answer: Answer,
    fault: Option<Fault>,
    guard: Arc<EndGuard>,
    id: Option<&str>,
) -> Response<Body> {
    let wire = Wire::new(Source::Stream(Box::new(answer)), fault, Arc::clone(socket), guard, &state.settings);
    let mut response = Response::new(body(wire));
    *response.headers_mut() = state.headers("text/event-stream; charset=utf-8", None, id);
    response
}

async fn whole(
    state: &State,
    socket: &Arc<SocketControl>,
    mut answer: Answer,
    fault: Option<Fault>,
    guard: Arc<EndGuard>,
    id: Option<&str>,
    tell_usage: bool,
) -> Result<Response<Body>, Refusal> {
    let mut event = answer.whole(tell_usage).await;
    let entry = Arc::clone(&guard.0);
    entry.cached.store(u64::from(answer.cached_tokens()), Ordering::Release);
    if matches!(fault, Some(Fault::ErrorMidStream { .. })) {
        return Err(Refusal::Answer(ApiError::engine_dead(), "error_mid_stream"));
    }
    let length = event.bytes.len();
    let half = Event { bytes: event.bytes.split_to(length / 2), tokens: 0 };
    // A fault in the middle of a stream strikes a whole answer after half its body.
    let (events, fault, length) = match fault {
        Some(Fault::Die { reset, .. }) => ([half].into(), Some(Fault::Die { after: 1, reset }), length),
        Some(Fault::Stall { after: 1.., ms }) => ([half, event].into(), Some(Fault::Stall { after: 1, ms }), length),
        Some(Fault::Malformed { .. } | Fault::NoDone { .. }) => {
            entry.end(fault.map_or("", Fault::name));
            ([half].into(), None, length / 2)
        }
        other => {
            let whole =
                Event { bytes: Bytes::from([&half.bytes[..], &event.bytes[..]].concat()), tokens: event.tokens };
            (VecDeque::from([whole]), other, length)
        }
    };
    let wire = Wire::new(Source::Whole(events), fault, Arc::clone(socket), guard, &state.settings);
    let mut response = Response::new(body(wire));
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = json_headers(state, length, id);
    Ok(response)
}

fn body(wire: Wire) -> Body {
    let frames =
        stream::unfold(wire, |mut wire| async move { wire.next().await.map(|next| (next.map(Frame::data), wire)) });
    StreamBody::new(frames).boxed_unsync()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

//! One request: check, fault, work, answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Map, Value};

use super::answer::{Answer, Event};
use super::engine::{Generation, Plan};
use super::errors::ApiError;
use super::faults::Fault;
use super::markers::Markers;
use super::messages::Telling;
use super::pooling::{Head, PoolAsk};
use super::prompt::Prompt;
use super::record::Entry;
use super::render::Envelope;
use super::request::{self, Ask, Endpoint};
use super::responses::Report;
use super::routes::{Body, State, json_headers, refuse, seconds};
use super::socket::SocketControl;
use super::stats::Finish;
use super::tasks::{Generate, Pool, Task, Tokens};
use super::tokenizing;
use super::tokens::mix;
use super::voice::Voice;
use super::wire::{Broken, EndGuard, Source, Wire, stall};

/// One request on its way.
struct Call<'a> {
    state: &'a Arc<State>,
    socket: &'a Arc<SocketControl>,
    headers: &'a HeaderMap,
    number: u64,
    guard: Arc<EndGuard>,
    model: Option<String>,
}

/// Answers a post to one of the paths that have a task.
pub(super) async fn answer(
    state: Arc<State>,
    socket: Arc<SocketControl>,
    task: Task,
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response<Body>, Broken> {
    let request_id = header(headers, "x-request-id");
    let (number, entry) = state.ledger.open(path, request_id.clone());
    // Kept until here, so that an error's own outcome comes before the guard's.
    let guard = Arc::new(EndGuard(Arc::clone(&entry)));
    let call = Call { state: &state, socket: &socket, headers, number, guard: Arc::clone(&guard), model: None };
    match work(call, task, body).await {
        Ok(response) => {
            entry.note(|record| record.status = response.status().as_u16());
            Ok(response)
        }
        Err(Refusal::Closed) => Err(Broken),
        Err(Refusal::Answer(error, outcome)) => {
            entry.note(|record| record.status = error.status.as_u16());
            entry.end(outcome);
            let error = if task.is_message() { error.for_messages() } else { error };
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

async fn work(mut call: Call<'_>, task: Task, body: &[u8]) -> Result<Response<Body>, Refusal> {
    let json = header(call.headers, "content-type").is_some_and(|kind| {
        kind.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
    });
    if !json {
        return Err(rejected(ApiError::validation("Unsupported Media Type: Only 'application/json' is allowed", None)));
    }
    let fields = request::parse(body).map_err(rejected)?;
    call.model = fields.get("model").and_then(|model| model.as_str()).map(str::to_owned);
    call.guard.0.note(|record| {
        record.model.clone_from(&call.model);
        record.stream = request::flag(&fields, "stream");
    });
    match task {
        Task::Generate(form) => call.generate(form, fields).await,
        Task::Pool(kind) => call.pool(kind, &fields).await,
        Task::Tokens(kind) => call.tokens(kind, &fields).await,
    }
}

impl Call<'_> {
    async fn generate(self, form: Generate, fields: Map<String, Value>) -> Result<Response<Body>, Refusal> {
        let state = self.state;
        let (mut ask, mut plan) = request::read(form, &fields, &state.settings).map_err(rejected)?;
        let fault = self.strike(ask.fault).await?;
        plan.abort_after = match fault {
            Some(Fault::Abort { after }) => Some(after),
            _ => None,
        };
        let tell_usage = fault != Some(Fault::NoUsage);
        ask.include_usage &= tell_usage;
        ask.continuous_usage &= tell_usage;
        let id = self.answer_id(form, &ask);
        self.note(&id, ask.prompt_tokens());
        let stream = ask.stream;
        let voice = self.voice(form, id.clone(), fields, &plan);
        let tool_id = format!(
            "chatcmpl-tool-{:016x}",
            id.bytes().fold(state.settings.seed, |hash, byte| mix(hash ^ u64::from(byte)))
        );
        let generation = self.submit(plan)?;
        let mut answer = Answer::new(voice, tool_id, ask, generation, &state.settings);
        if stream {
            return Ok(self.streamed(answer, fault));
        }
        let event = answer.whole(tell_usage).await;
        self.guard.0.cached.store(u64::from(answer.cached_tokens()), Ordering::Release);
        self.whole(event, fault)
    }

    async fn pool(self, kind: Pool, fields: &Map<String, Value>) -> Result<Response<Body>, Refusal> {
        let ask = PoolAsk::read(kind, fields, &self.state.settings).map_err(rejected)?;
        let fault = self.strike(marked(&ask.prompts)).await?;
        let id = self.id(ask.prefix(), None);
        self.note(&id, ask.prompt_tokens());
        let mut generation = self.submit(ask.plan())?;
        let mut whole = !matches!(fault, Some(Fault::Abort { .. }));
        for _ in &ask.prompts {
            whole &= generation.steps.recv().await.is_some_and(|step| step.finish != Some(Finish::Abort));
        }
        if !whole {
            // A server that drains has no half of a vector to tell.
            return Err(Refusal::Answer(ApiError::engine_dead(), "abort"));
        }
        let tell_usage = fault != Some(Fault::NoUsage);
        let head = Head { id: &id, created: seconds(), model: self.state.settings.model(), tell_usage };
        self.whole(Event::new(ask.render(&head), 0), fault)
    }

    async fn tokens(self, kind: Tokens, fields: &Map<String, Value>) -> Result<Response<Body>, Refusal> {
        let (text, prompts) = tokenizing::answer(kind, fields, &self.state.settings).map_err(rejected)?;
        let fault = self.strike(marked(&prompts)).await?;
        self.note("", prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum());
        self.whole(Event::new(text, 0), fault)
    }

    /// The fault that strikes this request, after those that come before the status line. The header decides before the
    /// prompt, the prompt before what is armed.
    async fn strike(&self, marked: Option<Fault>) -> Result<Option<Fault>, Refusal> {
        let by_header = header(self.headers, "x-simulator-fault").and_then(|text| text.parse().ok());
        let model = self.model.as_deref().unwrap_or(self.state.settings.model());
        let fault = by_header.or(marked).or_else(|| self.state.faults.strike(model));
        if let Some(fault) = fault {
            let entry = &self.guard.0;
            entry.note(|record| record.fault = Some(fault.to_string()));
            before_the_answer(fault, entry).await?;
        }
        Ok(fault)
    }

    fn note(&self, id: &str, prompt_tokens: u64) {
        self.guard.0.note(|record| {
            record.prompt_tokens = prompt_tokens;
            id.clone_into(&mut record.id);
        });
    }

    fn submit(&self, plan: Plan) -> Result<Generation, Refusal> {
        self.state.engine.submit(plan, Arc::clone(&self.guard.0)).map_err(|_| rejected(ApiError::busy()))
    }

    /// The client's id, else one of our own; two answers may carry the same.
    fn id(&self, prefix: &str, given: Option<&str>) -> String {
        match header(self.headers, "x-request-id").as_deref().or(given) {
            Some(given) => format!("{prefix}-{given}"),
            None => format!("{prefix}-{:016x}", mix(self.state.settings.seed ^ mix(self.number))),
        }
    }

    /// The header goes before the body, but for responses, which take the body's id as it is.
    fn answer_id(&self, form: Generate, ask: &Ask) -> String {
        let given = ask.request_id.as_deref();
        match form {
            Generate::Chat | Generate::Messages => self.id("chatcmpl", given),
            Generate::Completions => self.id("cmpl", given),
            Generate::Responses => given.map_or_else(
                || format!("resp_{:016x}", mix(self.state.settings.seed ^ mix(self.number))),
                str::to_owned,
            ),
        }
    }

    fn voice(&self, form: Generate, id: String, fields: Map<String, Value>, plan: &Plan) -> Voice {
        let settings = &self.state.settings;
        let (created, model) = (seconds(), settings.model().to_owned());
        let choices = |endpoint, id| {
            Voice::Choices(Envelope {
                endpoint,
                id,
                created,
                model: model.clone(),
                fingerprint: settings.system_fingerprint.clone(),
                prompt_details: settings.enable_prompt_tokens_details,
            })
        };
        match form {
            Generate::Chat => choices(Endpoint::Chat, id),
            Generate::Completions => choices(Endpoint::Completions, id),
            Generate::Messages => Voice::Messages(Telling::new(id, model, settings.enable_prompt_tokens_details)),
            Generate::Responses => Voice::Responses(Box::new(Report::new(id, created, model, fields, plan))),
        }
    }

    /// The value of the answer's `x-request-id`.
    fn identity(&self) -> Option<String> {
        self.state.identity(header(self.headers, "x-request-id").as_deref(), self.number)
    }

    fn streamed(self, answer: Answer, fault: Option<Fault>) -> Response<Body> {
        let identity = self.identity();
        let source = Source::Stream(Box::new(answer));
        let wire = Wire::new(source, fault, Arc::clone(self.socket), self.guard, &self.state.settings);
        let mut response = Response::new(body(wire));
        *response.headers_mut() = self.state.headers("text/event-stream; charset=utf-8", None, identity.as_deref());
        response
    }

    fn whole(self, mut event: Event, fault: Option<Fault>) -> Result<Response<Body>, Refusal> {
        let entry = Arc::clone(&self.guard.0);
        if matches!(fault, Some(Fault::ErrorMidStream { .. })) {
            return Err(Refusal::Answer(ApiError::engine_dead(), "error_mid_stream"));
        }
        let length = event.bytes.len();
        let half = Event { bytes: event.bytes.split_to(length / 2), tokens: 0 };
        // A fault in the middle of a stream strikes a whole answer after half its body.
        let (events, fault, length) = match fault {
            Some(Fault::Die { reset, .. }) => ([half].into(), Some(Fault::Die { after: 1, reset }), length),
            Some(Fault::Stall { after: 1.., ms }) => {
                ([half, event].into(), Some(Fault::Stall { after: 1, ms }), length)
            }
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
        let identity = self.identity();
        let wire = Wire::new(Source::Whole(events), fault, Arc::clone(self.socket), self.guard, &self.state.settings);
        let mut response = Response::new(body(wire));
        *response.status_mut() = StatusCode::OK;
        *response.headers_mut() = json_headers(self.state, length, identity.as_deref());
        Ok(response)
    }
}

/// The fault that the prompts ask for.
fn marked(prompts: &[Prompt]) -> Option<Fault> {
    Markers::find(prompts.iter().map(|prompt| prompt.text.as_str())).fault
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

fn body(wire: Wire) -> Body {
    let frames =
        stream::unfold(wire, |mut wire| async move { wire.next().await.map(|next| (next.map(Frame::data), wire)) });
    StreamBody::new(frames).boxed_unsync()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

//! Sends a request to a replica, and to another one as long as no byte of an answer has come.

mod client;
mod connection;
mod peek;
mod priority;
pub(crate) mod salt;
mod upstream;
pub(crate) mod wire;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use ledger::control::ServiceTier;
use tokio::time::Instant;

use crate::admit::request::Ask;
use crate::error::Refusal;
use crate::meter::said::code_of;
use crate::object::members;
use crate::queue::NoTurn;
use crate::record::Meter;
use crate::route::{Lease, Pool, Want};
pub(crate) use client::{Client, Incoming};
use peek::First;
use priority::with_priority;
pub(crate) use upstream::{Upstream, UpstreamError};

/// An error of a replica is read so far at most.
const ERROR_BYTES: usize = 1 << 20;
/// And so long.
const ERROR_TIME: Duration = Duration::from_secs(5);

/// Where vLLM reads a request's `priority`.
const PRIORITY_PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/responses"];

/// What the client asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub ask: &'a Ask,
    pub body: &'a Bytes,
    /// The bound of the output that policy sets in the client's place.
    pub max_tokens: Option<u64>,
    /// The path that is asked of replicas.
    pub path: &'static str,
    pub headers: &'a HeaderMap,
    /// What the engine's prefix cache is kept apart by.
    pub salt: Option<&'a str>,
}

/// What is sent, and until when.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub want: Want<'a>,
    pub asked: Asked<'a>,
    /// The band of its plan.
    pub tier: ServiceTier,
    pub request_id: HeaderValue,
    pub attempts: u32,
    /// Until the first byte of each attempt's answer.
    pub first_byte: Duration,
    /// Until the end of it all.
    pub total: Instant,
    /// Of a stream: how its first event is looked at.
    pub peek: Option<Peek>,
}

/// How the first event of a stream is looked at before it is handed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peek {
    /// The head of an answer is held back so long for it.
    pub hold: Duration,
    /// No event is longer.
    pub limit: usize,
}

impl Call<'_> {
    /// The body for whoever is to answer: what is set in it depends on what the replica's kind understands.
    fn body(&self, lease: &Lease) -> Bytes {
        let Asked { ask, body, max_tokens, path, salt, .. } = self.asked;
        let mut body = ask.forwarded(body, lease.served_name(), lease.kind, max_tokens);
        if let Some(salt) = salt.filter(|_| salt::is_known_to(lease.kind)) {
            body = salt::salted(&body, salt);
        }
        match lease.priority(self.tier).filter(|_| PRIORITY_PATHS.contains(&path)) {
            Some(priority) => with_priority(body, priority),
            None => body,
        }
    }
}

/// A replica that answers.
#[derive(Debug)]
pub(crate) struct Answering {
    pub lease: Lease,
    pub response: Response<Incoming>,
    /// What was read of its body already.
    pub read: Bytes,
    /// Until the first token, if it is not among that.
    pub first_token: Instant,
}

/// An error of the replica, whole.
#[derive(Debug)]
pub(crate) struct ReplicaError {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl ReplicaError {
    /// Its own code: `error.code` is a number with one front end of vLLM and a text with the other; Anthropic's errors
    /// have a kind only.
    pub(crate) fn code(&self) -> Option<String> {
        let text = std::str::from_utf8(&self.body).ok()?;
        let found = members(text).ok()?;
        found.iter().find(|member| member.key == "error" && !member.is_null()).map(|error| code_of(error.value))
    }
}

/// Why nobody answers.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It got no turn.
    NoTurn(NoTurn),
    /// Those that were asked broke or could not be reached, or answered what is no answer.
    Broken,
    /// The time is over.
    Deadline,
    /// The model does not do what was asked: a model of chats gives no embeddings.
    NotServed,
    /// The last one that was asked answered with an error, which the client gets.
    Error(Box<ReplicaError>),
}

impl Failure {
    /// What the client is told when there is no answer of a replica to pass on.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::NoTurn(no) => match no {
                NoTurn::Expired => Refusal::queue_timeout(),
                NoTurn::NoReplica => Refusal::no_replica(),
                NoTurn::Deadline => Refusal::deadline(),
                NoTurn::Draining => Refusal::draining(),
            },
            Self::Broken | Self::Error(_) => Refusal::upstream(),
            Self::Deadline => Refusal::deadline(),
            Self::NotServed => Refusal::endpoint_not_supported(),
        }
    }
}

/// What becomes of an answer's head.
enum Head {
    Answer,
    /// The client's own fault, said by the engine: passed on as it is.
    Refused,
    /// Another replica may do better; if none is left, it is passed on.
    Failing,
    /// A replica that is set up wrongly. Its words would mislead the client and tell it of what is inside.
    Foreign,
}

fn judge(status: StatusCode) -> Head {
    match status.as_u16() {
        200..=299 => Head::Answer,
        401 | 403 | 404 | 405 | 407 => Head::Foreign,
        400..=499 => Head::Refused,
        500..=599 => Head::Failing,
        _ => Head::Foreign,
    }
}

/// Why an attempt came to nothing.
enum Ended {
    /// It would come to the same elsewhere, or the time is over.
    Final(Failure),
    /// Another replica may do better. Whether anything was sent to this one: if not, nothing is multiplied.
    Again { failure: Failure, sent: bool },
}

/// Finds a replica that answers: the one whose turn it is, else another one. Each try is an attempt of the meter.
///
/// # Errors
/// What the last try came to.
pub(crate) async fn dispatch(
    client: &Client,
    pool: &Pool,
    call: &Call<'_>,
    lease: Lease,
    meter: &mut Meter,
) -> Result<Answering, Failure> {
    pool.budget().request();
    let (mut turn, mut tried, mut last, mut pays) = (Some(lease), Vec::new(), Failure::Broken, false);
    for number in 0..call.attempts {
        let Some(lease) = turn.take().or_else(|| pool.pick_anyway(&call.want, &tried)) else { break };
        if pays && !pool.budget().retry() {
            pool.retry_refused();
            break;
        }
        tried.push(lease.id.clone());
        meter.attempt(number, &lease);
        match attempt(client, call, lease, number, meter).await {
            Ok(answering) => return Ok(answering),
            Err(Ended::Final(failure)) => return Err(failure),
            Err(Ended::Again { failure, sent }) => (last, pays) = (failure, sent),
        }
    }
    Err(last)
}

async fn attempt(
    client: &Client,
    call: &Call<'_>,
    lease: Lease,
    number: u32,
    meter: &mut Meter,
) -> Result<Answering, Ended> {
    let id = lease.id.clone();
    let again = |failure, sent| Err(Ended::Again { failure, sent });
    let until = call.total.min(Instant::now() + call.first_byte);
    let response = match tokio::time::timeout_at(until, client.send(&lease, call, meter)).await {
        Err(_) => {
            meter.attempt_ended("deadline");
            lease.failed("it gave no answer in time");
            // A whole answer may be long in the making everywhere; the head of a stream is not.
            let hopeless = !call.want.stream || Instant::now() >= call.total;
            return if hopeless { Err(Ended::Final(Failure::Deadline)) } else { again(Failure::Deadline, true) };
        }
        Ok(Err(error)) => {
            let reached = !error.is_connect();
            if !reached {
                lease.seen(false, "it could not be reached");
            }
            tracing::warn!(replica = %id, request = %meter.request_id(), trace = meter.trace_id(), %error, "the replica gave no answer");
            meter.attempt_ended("broken");
            // One that cannot be reached is back as soon as its health check says so.
            if reached {
                lease.failed("it gave no answer");
            }
            return again(Failure::Broken, reached);
        }
        Ok(Ok(response)) => response,
    };
    let status = response.status();
    match judge(status) {
        Head::Answer => match begun(response, call, until).await {
            Ok((response, read)) => Ok(Answering { lease, response, read, first_token: until }),
            Err(First::Error(error)) if error.status.is_client_error() => {
                meter.attempt_ended("refused");
                lease.served();
                Err(Ended::Final(Failure::Error(error)))
            }
            Err(First::Deadline) => {
                meter.attempt_ended("deadline");
                Err(Ended::Final(Failure::Deadline))
            }
            Err(First::Error(error)) => {
                tracing::warn!(replica = %id, request = %meter.request_id(), trace = meter.trace_id(), "the replica's stream begins with an error");
                meter.attempt_ended("failed");
                lease.failed("it answers with an error");
                again(Failure::Error(error), true)
            }
            Err(_) => {
                tracing::warn!(replica = %id, request = %meter.request_id(), trace = meter.trace_id(), "the replica's stream ends before it begins");
                meter.attempt_ended("broken");
                lease.failed("it gave no answer");
                again(Failure::Broken, true)
            }
        },
        Head::Refused => {
            meter.attempt_ended("refused");
            lease.served();
            Err(Ended::Final(read_error(response).await.map_or(Failure::Broken, Failure::Error)))
        }
        Head::Failing => {
            meter.attempt_ended("failed");
            if status == StatusCode::SERVICE_UNAVAILABLE {
                lease.overloaded();
            } else if number == 0 {
                // A request that fails everywhere is no sign of bad replicas: it counts at one.
                lease.failed("it answers with an error");
            }
            again(read_error(response).await.map_or(Failure::Broken, Failure::Error), true)
        }
        Head::Foreign => {
            let missing = matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            // An engine that has the path says in an error what it does not find.
            if missing && read_error(response).await.is_none_or(|error| error.code().is_none()) {
                meter.attempt_ended("not_served");
                tracing::warn!(replica = %id, path = call.asked.path, "the replica has no such path");
                lease.served();
                return again(Failure::NotServed, true);
            }
            tracing::error!(replica = %id, %status, "the replica is set up wrongly: it does not serve what control says");
            meter.attempt_ended("foreign");
            // One that is without an adapter serves others well.
            if !lease.is_of_adapter() {
                lease.failed("it does not serve what control says");
            }
            again(Failure::Broken, true)
        }
    }
}

/// The answer, once it has begun: a whole one has with its head, a stream with an event that is no error. Else what came in
/// its place.
async fn begun(
    response: Response<Incoming>,
    call: &Call<'_>,
    until: Instant,
) -> Result<(Response<Incoming>, Bytes), First> {
    let Some(Peek { hold, limit }) = call.peek else { return Ok((response, Bytes::new())) };
    let (head, mut body) = response.into_parts();
    match peek::first(&mut body, Instant::now() + hold, until, limit).await {
        First::Answer(read) => Ok((Response::from_parts(head, body), read)),
        none => Err(none),
    }
}

async fn read_error(response: Response<Incoming>) -> Option<Box<ReplicaError>> {
    let (head, mut body) = response.into_parts();
    let reading = async {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.ok()?.into_data() {
                whole.extend_from_slice(&data);
            }
            if whole.len() > ERROR_BYTES {
                return None;
            }
        }
        Some(whole.freeze())
    };
    let body = tokio::time::timeout(ERROR_TIME, reading).await.ok()??;
    Some(Box::new(ReplicaError { status: head.status, headers: head.headers, body }))
}

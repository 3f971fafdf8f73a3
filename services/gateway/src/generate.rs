//! A request that is counted: let in, sent to a replica when its turn comes, answered, and settled.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts as Head;
use http::{HeaderValue, Response, header};
use http_body::Body as HttpBody;
use ledger::ids::{ModelVersion, RequestId};
use ledger::time::Micros;
use schemas::event::EndReason;
use stream::spool::Admission;

use crate::Body;
use crate::admit::body;
use crate::admit::caller::Caller;
use crate::admit::limits::Room;
use crate::admit::limits::told::{Names, show};
use crate::admit::policy::Model;
use crate::admit::request::Ask;
use crate::endpoint::{ErrorShape, Found, Wire};
use crate::error::Refusal;
use crate::forward::{Answering, Asked, Call, Failure, Peek, dispatch};
use crate::gateway::{Gateway, id_header};
use crate::meter::scanner::Scanner;
use crate::meter::streamed::{Streamed, Times};
use crate::meter::whole;
use crate::queue::{Entry, Need, NoTurn, Over, Turn};
use crate::record::{Arrived, End, Meter};
use crate::route::{Prefix, Want};

impl Gateway {
    /// Answers a request to an endpoint of replicas.
    pub(crate) async fn generate<B>(
        &self,
        found: Found<'_>,
        head: &Head,
        body: B,
        arrived: &mut Arrived,
    ) -> Result<Response<Body>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let inner = &*self.0;
        let received_at = self.now();
        // Before the body is read, so that nobody fills memory who may not ask at all.
        let identity = inner.auth.identify(&head.headers, received_at).await?;
        let room = {
            let policy = inner.policy.load();
            let caller = identity.caller(&policy, received_at)?;
            caller.may(found.endpoint.scope)?;
            inner.queue.bodies().take(&caller.tenant.id, 0).map_err(body::refusal)?
        };
        let settings = &inner.settings;
        let (body, held) =
            body::take(&head.headers, body, room, settings.max_body_bytes, settings.deadlines.body).await?;
        let ask = Ask::read(found.endpoint, &body)?;
        // And again: the body may have taken its time.
        let policy = inner.policy.load_full();
        let caller = identity.caller(&policy, self.now())?;
        caller.may(found.endpoint.scope)?;
        arrived.tenant = Some(Arc::clone(&caller.tenant));
        let model = policy.model(&ask.model).ok_or_else(|| Refusal::model_not_found(&ask.model))?;
        if !caller.tenant.may_use(model) {
            return Err(Refusal::model_not_allowed(model.id.as_str()));
        }
        let now = self.now();
        let names = if ask.endpoint.errors == ErrorShape::Anthropic { Names::Anthropic } else { Names::OpenAi };
        let (standing, room) = inner.limits.reserve(&caller, &model.id, &ask, settings).await;
        let Room { reservation, max_tokens, expected } = match room {
            Ok(room) => room,
            Err(refusal) => {
                inner.recorder.metrics.refused.with_label_values(&[refusal.code]).inc();
                arrived.code = Some(refusal.code);
                let mut response = refusal.shaped(ask.endpoint.errors).response();
                show(&standing, names, now, response.headers_mut());
                return Ok(response);
            }
        };
        let priced = policy.has_price(&model.id, caller.tenant.currency, received_at);
        let salt = [caller.tenant.id.as_str(), model.id.as_str()];
        let prefix = Prefix::new(&salt, ask.prompt_pieces(&body), ask.prompt.estimate());
        let (plan, stream) = (&caller.tenant.plan_id, ask.stream);
        let want = Want { model: &model.id, plan, request: arrived.id, prefix: &prefix, stream };
        let need = Need {
            tenant: &caller.tenant,
            base: model.base.as_ref().unwrap_or(&model.id),
            want,
            tokens: expected,
            bytes: held.amount(),
            total: tokio::time::Instant::now() + settings.deadlines.total,
        };
        // Before anything of it is written: who sends more than may wait fills no log with it.
        let entry = inner.queue.enter(&need).map_err(|over| Refusal::queue_full(over == Over::Own))?;
        let version = inner.pool.version(&model.id, arrived.id).unwrap_or_else(|| model.version.clone());
        let admission = admission(arrived.id, &caller, model, version, &ask, received_at);
        let meter = inner.recorder.admit(admission, &caller.tenant, reservation, arrived)?;
        if !priced {
            meter.unpriced();
        }
        // What costs no tokens, leaves nothing in a cache.
        let salted = inner.settings.isolate_prefix_caches && found.endpoint.wire != Wire::Free;
        let salt = salted.then_some(caller.cache_salt.as_str());
        let (path, headers) = (found.path, &head.headers);
        let asked = Asked { ask: &ask, body: &body, max_tokens, path, headers, salt };
        let mut response = self.forward(asked, need, entry, meter).await;
        show(&standing, names, now, response.headers_mut());
        Ok(response)
    }

    /// Waits for its turn, sends it, and passes the answer on.
    async fn forward(&self, asked: Asked<'_>, need: Need<'_>, entry: Entry, mut meter: Meter) -> Response<Body> {
        let (inner, ask) = (&*self.0, asked.ask);
        let (deadlines, manners) = (&inner.settings.deadlines, &inner.settings.manners);
        let total = need.total;
        let Turn { lease, charge, waited } = match inner.queue.turn(&need, entry).await {
            Ok(turn) => turn,
            Err(no) => {
                let failure = Failure::NoTurn(no);
                inner.recorder.metrics.refused.with_label_values(&[failure.refusal().code]).inc();
                return give_up(failure, ask.endpoint.errors, meter).await;
            }
        };
        meter.has_turn(charge, waited);
        let limit = usize::try_from(inner.settings.max_answer_bytes).unwrap_or(usize::MAX);
        let hold = manners.keepalive().unwrap_or(deadlines.total);
        let prompt_bound = ask.input_bound(&inner.settings);
        let first_token = manners.first_token(deadlines.first_byte, prompt_bound);
        let call = Call {
            want: need.want,
            asked,
            tier: need.tenant.plan.service_tier,
            request_id: id_header(meter.request_id()),
            attempts: inner.settings.max_attempts,
            first_byte: if ask.stream { first_token } else { deadlines.whole_answer },
            total,
            peek: ask.stream.then_some(Peek { hold, limit }),
        };
        let answering = match dispatch(&self.1, &inner.pool, &call, lease, &mut meter).await {
            Ok(answering) => answering,
            Err(failure) => return give_up(failure, ask.endpoint.errors, meter).await,
        };
        if !ask.stream {
            return self.whole(ask, answering, meter, total).await;
        }
        let Answering { lease, response, read, first_token } = answering;
        let status = response.status();
        meter.answering(status.as_u16());
        let (head, upstream) = response.into_parts();
        let scanner = Scanner::new(ask, limit);
        let times = Times { first_token, idle: deadlines.idle, keepalive: manners.keepalive(), total };
        let mut answer = Response::new(Body::new(Streamed::new((upstream, read), lease, scanner, meter, times)));
        *answer.status_mut() = status;
        *answer.headers_mut() = head.headers;
        answer
    }

    async fn whole(
        &self,
        ask: &Ask,
        answering: Answering,
        mut meter: Meter,
        total: tokio::time::Instant,
    ) -> Response<Body> {
        let errors = ask.endpoint.errors;
        let settings = &self.0.settings;
        let Answering { lease, response, .. } = answering;
        let status = response.status();
        let (head, upstream) = response.into_parts();
        let collected = whole::collect(upstream, settings.max_answer_bytes, settings.deadlines.idle, total).await;
        let said = collected
            .and_then(|body| Ok((whole::read(ask.endpoint.wire, &body).map_err(|_| whole::Cut::Broken)?, body)));
        let (said, body) = match said {
            Ok(said) => said,
            Err(cut) => {
                lease.failed("its answer broke off");
                let broken = matches!(cut, whole::Cut::Broken);
                return give_up(if broken { Failure::Broken } else { Failure::Deadline }, errors, meter).await;
            }
        };
        meter.first_byte();
        if said.usage.is_none() {
            tracing::warn!(request = %meter.request_id(), trace = meter.trace_id(), model = %meter.model(), "the engine told no usage: it is estimated from the texts");
            meter.received(whole::estimate(ask.endpoint, &ask.prompt, &said, &body), true);
        }
        let aborted = said.choices.iter().any(|choice| choice.aborted);
        let reason = if aborted { EndReason::UpstreamError } else { EndReason::Complete };
        let (spool, end) =
            (meter.spool(), End { reason, status: status.as_u16(), error_code: said.error, usage: said.usage });
        meter.finished_by(said.choices.iter().filter_map(|choice| choice.finish));
        let finished = meter.finish(end);
        // After that: who is next is decided by what this one has used.
        if aborted {
            lease.failed("it gave up its answer")
        } else {
            lease.served()
        }
        Meter::durable(&spool, finished).await;
        let mut answer = Response::new(Body::from(body));
        *answer.status_mut() = status;
        *answer.headers_mut() = head.headers;
        answer
    }
}

fn admission(
    id: RequestId,
    caller: &Caller,
    model: &Model,
    version: ModelVersion,
    ask: &Ask,
    received_at: Micros,
) -> Admission {
    Admission {
        request_id: id,
        tenant: caller.tenant.id.clone(),
        project: caller.project.clone(),
        api_key: caller.key,
        model: model.id.clone(),
        version,
        endpoint: ask.endpoint.name.to_owned(),
        received_at,
        stream: ask.stream,
    }
}

/// Ends a request that got no answer, and tells the client.
async fn give_up(failure: Failure, errors: ErrorShape, meter: Meter) -> Response<Body> {
    let refusal = failure.refusal().shaped(errors);
    let (end, response) = match failure {
        Failure::Error(error) => {
            let reason = if error.status.is_server_error() { EndReason::UpstreamError } else { EndReason::Complete };
            let (status, error_code) = (error.status.as_u16(), error.code());
            let mut response = Response::new(Body::from(error.body));
            *response.status_mut() = error.status;
            *response.headers_mut() = error.headers;
            if status == 503 {
                response.headers_mut().entry(header::RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
            }
            (End { reason, status, error_code, usage: None }, response)
        }
        Failure::Deadline => (End::refused(EndReason::Deadline, &refusal), refusal.response()),
        Failure::NoTurn(no) => {
            let reason = match no {
                NoTurn::Expired | NoTurn::Deadline => EndReason::Deadline,
                NoTurn::Draining => EndReason::Drained,
                NoTurn::NoReplica => EndReason::UpstreamError,
            };
            (End::refused(reason, &refusal), refusal.response())
        }
        Failure::Broken => (End::refused(EndReason::UpstreamError, &refusal), refusal.response()),
        // The client's own fault.
        Failure::NotServed => (End::refused(EndReason::Complete, &refusal), refusal.response()),
    };
    let spool = meter.spool();
    Meter::durable(&spool, meter.finish(end)).await;
    response
}

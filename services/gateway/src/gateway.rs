//! The gateway: a request's way from admission to its record.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts as Head;
use http::{HeaderName, HeaderValue, Method, Request, Response, header};
use http_body::Body as HttpBody;
use ledger::ids::{ModelVersion, RequestId, TenantId};
use ledger::time::{Micros, Period};
use runtime::metrics::{Error as MetricsError, Name};
use runtime::traces::{Exporter, Traces};
use runtime::{Clock, Metrics, Shutdown, Tasks};
use schemas::event::{BalanceUpdated, EndReason};
use stream::control::ControlView;
use stream::spool::{Admission, Spool};

use crate::Body;
use crate::admit::auth::{Auth, SourceError};
use crate::admit::body;
use crate::admit::caller::Caller;
use crate::admit::limits::told::{Names, show};
use crate::admit::limits::{Limits, Room};
use crate::admit::policy::{Model, Policy};
use crate::admit::request::Ask;
use crate::cors::Cors;
use crate::endpoint::{self, ErrorShape, Found, Wire};
use crate::error::Refusal;
use crate::forward::{Answering, Asked, Call, Client, Failure, Peek, Upstream, UpstreamError, dispatch, passed_on};
use crate::meter::scanner::Scanner;
use crate::meter::streamed::{Streamed, Times};
use crate::meter::whole;
use crate::models;
use crate::queue::{Entry, Need, NoTurn, Over, Queue, Turn};
use crate::record::metrics::GatewayMetrics;
use crate::record::{Arrived, End, Meter, Recorder};
use crate::route::metrics::RouteMetrics;
use crate::route::{Pool, Prefix, Want, health, scrape};
use crate::settings::Settings;

/// The header that names a request, to the client and to the replica.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same for Anthropic's clients, which show it beside their errors.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// How long the queue may take to stop once nothing is served any more.
const STOP: Duration = Duration::from_secs(5);

/// What a gateway is made of. No part of it needs Kafka by itself.
#[derive(Debug)]
pub struct Parts {
    /// `[gateway]` of the configuration.
    pub settings: Settings,
    /// `[telemetry]` of the configuration.
    pub telemetry: runtime::traces::Settings,
    /// Keys, plans, models, replicas and prices.
    pub control: ControlView,
    /// Where usage is kept.
    pub spool: Spool,
    /// Where it is measured.
    pub metrics: Metrics,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// Why a gateway cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The metrics hold a gateway's already.
    #[error("the metrics of the gateway: {0}")]
    Metrics(#[from] MetricsError),
    /// The keys of an issuer are not where the settings say.
    #[error("[[gateway.jwt]]: {0}")]
    TokenKeys(String),
    /// Keys or roots for replicas are not where the settings say.
    #[error("[gateway.upstream]: {0}")]
    Upstream(String),
}

impl From<UpstreamError> for BuildError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error.to_string())
    }
}

impl From<SourceError> for BuildError {
    fn from(error: SourceError) -> Self {
        Self::TokenKeys(error.to_string())
    }
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    auth: Auth,
    cors: Cors,
    control: ControlView,
    policy: ArcSwap<Policy>,
    limits: Limits,
    pool: Arc<Pool>,
    queue: Arc<Queue>,
    recorder: Arc<Recorder>,
    /// Until it runs.
    exporter: Mutex<Option<Exporter>>,
}

/// A gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>, Client);

impl Gateway {
    /// Puts a gateway together. [`Gateway::follow`] keeps it current, [`Gateway::serve`] serves.
    ///
    /// # Errors
    /// When the metrics hold a gateway's already, or the settings name files that cannot be used.
    pub fn new(parts: Parts) -> Result<Self, BuildError> {
        let Parts { settings, telemetry, control, spool, metrics, clock } = parts;
        let auth = Auth::open(&settings.jwt, &metrics.counters(Name::GatewayTokenKeysErrors, &["issuer"])?)?;
        let cors = Cors::of(&settings.cors);
        let (traces, exporter) = Traces::new(&telemetry.otlp, "gateway", &settings.name, &metrics)?.unzip();
        let pool = Arc::new(Pool::new(settings.routing.clone(), RouteMetrics::new(&metrics)?));
        let queue = Queue::new(settings.queue.clone(), &settings.overload, Arc::clone(&pool), &metrics)?;
        let queue = Arc::new(queue);
        let limits = Limits::new(spool.clone(), &metrics, &settings)?;
        let metrics = GatewayMetrics::new(&metrics, settings.telemetry.max_label_values)?;
        pool.take(&control.load().state);
        let policy = ArcSwap::from_pointee(Policy::of(&control.load().state));
        let client = Client::new(settings.deadlines.connect, Upstream::open(&settings.upstream)?);
        let recorder = Arc::new(Recorder {
            spool,
            metrics,
            clock,
            traces,
            access_log: settings.telemetry.access_log,
            cut: Shutdown::new(),
        });
        let exporter = Mutex::new(exporter);
        let inner = Inner { settings, auth, cors, control, policy, limits, pool, queue, recorder, exporter };
        Ok(Self(Arc::new(inner), client))
    }

    /// Follows control, asks replicas for their health and metrics, and exports traces, until shutdown.
    pub fn follow(&self, tasks: &Tasks) {
        self.renew();
        if let Some(exporter) = self.0.exporter.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It ends after the last request has.
            let drain = self.0.settings.drain_notice + self.0.settings.drain() + exporter.drain();
            tasks.spawn("traces", drain, exporter.run());
        }
        self.0.auth.follow(tasks);
        let (gateway, shutdown) = (self.clone(), tasks.shutdown().clone());
        let settings = &self.0.settings;
        let drain = settings.drain();
        self.0.limits.follow(tasks, drain);
        tasks.spawn("policy", drain, async move { gateway.follow_control(shutdown).await });
        let (pool, client, shutdown) = (Arc::clone(&self.0.pool), self.1.clone(), tasks.shutdown().clone());
        let (interval, timeout) = (settings.health_interval, settings.health_timeout);
        // It ends with what is served, for which there is time after a stop.
        let stop = settings.drain_notice + drain + STOP;
        tasks.spawn("queue", stop, Arc::clone(&self.0.queue).run());
        let asked = health::watch(Arc::clone(&pool), client.clone(), interval, timeout, shutdown.clone());
        tasks.spawn("replica health", timeout * 2, asked);
        let guard = settings.routing.guard;
        tasks.spawn("replica metrics", guard.timeout * 2, scrape::watch(pool, client, guard, shutdown));
    }

    async fn follow_control(self, shutdown: Shutdown) -> Result<(), std::convert::Infallible> {
        let mut offsets = self.0.control.subscribe();
        loop {
            offsets.borrow_and_update();
            self.renew();
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = offsets.changed() => if changed.is_err() {
                    // Nobody reads control any more; what is known goes on until shutdown.
                    shutdown.cancelled().await;
                    return Ok(());
                },
            }
        }
    }

    /// Takes control as it is now.
    fn renew(&self) {
        let control = self.0.control.load();
        // Replicas first: a model that can be named has those that answer for it.
        self.0.pool.take(&control.state);
        self.0.policy.store(Arc::new(Policy::of(&control.state)));
    }

    /// A tenant's balance of a period, as the topic tells it.
    pub fn balance(&self, balance: &BalanceUpdated) {
        balance_of(&self.0.limits, balance);
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.0.queue
    }

    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.0.recorder
    }

    /// The same gateway with connections to replicas of its own, for one thread.
    pub(crate) fn at_worker(&self) -> Self {
        Self(Arc::clone(&self.0), self.1.apart())
    }

    /// Answers a request. Every answer carries its `x-request-id`.
    pub(crate) async fn handle<B>(self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (head, body) = request.into_parts();
        let origin = self.0.cors.allowed(&head.headers);
        if let Some(answer) = origin.as_ref().and_then(|origin| self.0.cors.preflight(&head, origin)) {
            return answer;
        }
        let mut arrived = Arrived::new(&self.0.recorder, &head.headers);
        let mut response = match self.answer(&head, body, &mut arrived).await {
            Ok(response) => response,
            Err(refusal) => {
                self.0.recorder.metrics.refused.with_label_values(&[refusal.code]).inc();
                let refusal = refusal.shaped(endpoint::errors_of(head.uri.path()));
                arrived.code = Some(refusal.code);
                refusal.response()
            }
        };
        if endpoint::errors_of(head.uri.path()) == ErrorShape::Anthropic {
            response.headers_mut().insert(ANTHROPIC_REQUEST_ID, id_header(arrived.id));
        }
        response.headers_mut().insert(REQUEST_ID, id_header(arrived.id));
        arrived.answered(response.status().as_u16());
        if let Some(origin) = origin {
            self.0.cors.show(origin, response.headers_mut());
        }
        response
    }

    async fn answer<B>(&self, head: &Head, body: B, arrived: &mut Arrived) -> Result<Response<Body>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (method, path) = (&head.method, head.uri.path());
        let found = endpoint::find(path).ok_or_else(|| Refusal::unknown_url(method, path))?;
        let right = &found.endpoint.method;
        if method != right && !(right == Method::GET && method == Method::HEAD) {
            let allow = if right == Method::GET { "GET" } else { "POST" };
            return Err(Refusal::method_not_allowed(method, path, allow));
        }
        if found.endpoint.wire == Wire::Own {
            return self.models(found.below, head).await;
        }
        arrived.endpoint = Some(found.endpoint.name);
        self.generate(found, head, body, arrived).await
    }

    async fn models(&self, one: Option<&str>, head: &Head) -> Result<Response<Body>, Refusal> {
        let identity = self.0.auth.identify(&head.headers, self.now()).await?;
        let policy = self.0.policy.load_full();
        let caller = identity.caller(&policy, self.now())?;
        caller.may(endpoint::MODELS.scope)?;
        models::answer(&policy, &caller.tenant, one)
    }

    fn now(&self) -> Micros {
        Micros(self.0.recorder.clock.now())
    }

    async fn generate<B>(
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
        let Room { reservation, max_tokens } = match room {
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
            tokens: expected(&ask, max_tokens, settings),
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
        let mut answer = Response::new(Streamed::new((upstream, read), lease, scanner, meter, times).into_body());
        *answer.status_mut() = status;
        *answer.headers_mut() = passed_on(&head.headers);
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
            tracing::warn!(request = %meter.request_id(), model = %meter.model(), "the engine told no usage: it is estimated from the texts");
            meter.received(whole::estimate(ask.endpoint, &ask.prompt, &said, &body), true);
        }
        let aborted = said.choices.iter().any(|choice| choice.aborted);
        let reason = if aborted { EndReason::UpstreamError } else { EndReason::Complete };
        let (spool, end) =
            (meter.spool(), End { reason, status: status.as_u16(), error_code: said.error, usage: said.usage });
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
        *answer.headers_mut() = passed_on(&head.headers);
        answer
    }
}

/// Takes a balance into the accounts.
pub(crate) fn balance_of(limits: &Limits, balance: &BalanceUpdated) {
    let tokens = balance.usage.iter().try_fold(0_u64, |sum, model| {
        let parts = [model.input, model.cached_input, model.output, model.reasoning];
        parts.into_iter().try_fold(sum, |sum, part| sum.checked_add(u64::try_from(part).ok()?))
    });
    let bounds =
        (ledger::time::Slot::starting_at(balance.period_from), ledger::time::Slot::starting_at(balance.period_to));
    let (Some(tokens), (Ok(from), Ok(to))) = (tokens, bounds) else {
        tracing::error!(tenant = %balance.tenant_id, as_of = balance.as_of, "a balance cannot be: it is not used");
        return;
    };
    let tenant: &TenantId = &balance.tenant_id;
    limits.balance(tenant, Period { from, to }, balance.as_of, tokens);
}

/// Tokens that a request is expected to use, for the queue: the bound of its input, and no more output than most ask for.
fn expected(ask: &Ask, max_tokens: Option<u64>, settings: &Settings) -> u64 {
    let usual = settings.queue.expected_output_tokens;
    let output = ask.max_tokens.or(max_tokens).map_or(usual, |most| most.min(usual));
    ask.input_bound(settings).saturating_add(ask.output_bound(output))
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

fn id_header(id: RequestId) -> HeaderValue {
    // Hex digits and dashes are always a header's value.
    HeaderValue::try_from(id.to_string()).unwrap_or(HeaderValue::from_static(""))
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

//! The gateway: its parts, what keeps them current, and the way of every request to whoever answers it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts as Head;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body as HttpBody;
use ledger::ids::{RequestId, TenantId};
use ledger::time::{Micros, Period};
use runtime::metrics::Name;
use runtime::traces::{Exporter, Traces};
use runtime::{Shutdown, Tasks};
use schemas::event::BalanceUpdated;
use stream::control::ControlView;

use crate::Body;
use crate::admit::auth::Auth;
use crate::admit::limits::Limits;
use crate::admit::policy::Policy;
use crate::cors::Cors;
use crate::endpoint::{self, ErrorShape, Found, Wire};
use crate::error::Refusal;
use crate::forward::{Client, Upstream};
use crate::labels::Labels;
use crate::models;
use crate::parts::{BuildError, Parts};
use crate::queue::Queue;
use crate::record::metrics::GatewayMetrics;
use crate::record::{Arrived, Recorder};
use crate::route::metrics::RouteMetrics;
use crate::route::{Pool, health, scrape};
use crate::settings::Settings;

/// The header that names a request, to the client and to the replica.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same for Anthropic's clients, which show it beside their errors.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// How long the queue may take to stop once nothing is served any more.
const STOP: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) auth: Auth,
    cors: Cors,
    control: ControlView,
    pub(crate) policy: ArcSwap<Policy>,
    pub(crate) limits: Limits,
    pub(crate) pool: Arc<Pool>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) recorder: Arc<Recorder>,
    /// Until it runs.
    exporter: Mutex<Option<Exporter>>,
}

/// A gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(pub(crate) Arc<Inner>, pub(crate) Client);

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
        let labels = Labels::new(settings.telemetry.max_label_values);
        let (routed, told) = (Arc::clone(&pool), Arc::clone(&labels));
        let queue = Arc::new(Queue::new(settings.queue.clone(), &settings.overload, routed, &metrics, told)?);
        let limits = Limits::new(spool.clone(), &metrics, &settings)?;
        let metrics = GatewayMetrics::new(&metrics, labels)?;
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
        let found = endpoint::find(head.uri.path());
        let errors = found.map_or_else(|| endpoint::errors_below(head.uri.path()), |found| found.endpoint.errors);
        let mut response = match self.answer(found, &head, body, &mut arrived).await {
            Ok(response) => response,
            Err(refusal) => {
                self.0.recorder.metrics.refused.with_label_values(&[refusal.code]).inc();
                arrived.code = Some(refusal.code);
                refusal.shaped(errors).response()
            }
        };
        if errors == ErrorShape::Anthropic {
            response.headers_mut().insert(ANTHROPIC_REQUEST_ID, id_header(arrived.id));
        }
        response.headers_mut().insert(REQUEST_ID, id_header(arrived.id));
        arrived.answered(response.status().as_u16());
        if let Some(origin) = origin {
            self.0.cors.show(origin, response.headers_mut());
        }
        response
    }

    async fn answer<B>(
        &self,
        found: Option<Found<'_>>,
        head: &Head,
        body: B,
        arrived: &mut Arrived,
    ) -> Result<Response<Body>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (method, path) = (&head.method, head.uri.path());
        let found = found.ok_or_else(|| Refusal::unknown_url(method, path))?;
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

    pub(crate) fn now(&self) -> Micros {
        Micros(self.0.recorder.clock.now())
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

pub(crate) fn id_header(id: RequestId) -> HeaderValue {
    // Hex digits and dashes are always a header's value.
    HeaderValue::try_from(id.to_string()).unwrap_or(HeaderValue::from_static(""))
}

//! The record of one request: its counts while it runs, and its one end, which settles spool, quota and metrics together.

mod access;
mod arrived;
pub(crate) mod metrics;
mod pace;
mod series;
mod trace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use ledger::control::WhenSpoolFull;
use ledger::ids::{ModelId, ReplicaId, RequestId};
use ledger::time::Micros;
use ledger::tokens::{TokenClass, TokenCounts};
use opentelemetry::trace::TraceId;
use runtime::traces::Traces;
use runtime::{Clock, Shutdown};
use schemas::event::EndReason;
use stream::spool::{
    Admission, AdmitError, AppendError, Finish, Finished, OpenRequest, Settled, Spool, Usage as Billed,
};

use crate::admit::limits::Reservation;
use crate::admit::policy::Tenant;
use crate::error::Refusal;
use crate::meter::counts::Totals;
use crate::meter::said::Usage;
use crate::queue::Charge;
use crate::route::Lease;
use crate::route::metrics::Attempts;
use crate::settings::AccessLog;
use tracing::field::DisplayValue;

use access::Line;
pub(crate) use arrived::Arrived;
use metrics::GatewayMetrics;
use pace::Pace;
use series::Series;
use trace::{Ended, Trace};

/// What every record needs, shared.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub spool: Spool,
    pub metrics: GatewayMetrics,
    pub clock: Arc<dyn Clock>,
    /// Makes spans, if they are exported.
    pub traces: Option<Traces>,
    /// The level of the line about each request.
    pub access_log: AccessLog,
    /// Triggered when what is still open is cut.
    pub cut: Shutdown,
}

/// How a request ended, as its owner knows it.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub reason: EndReason,
    /// What the client got; 0 for nothing.
    pub status: u16,
    pub error_code: Option<String>,
    /// The engine's last word on tokens, if it came whole.
    pub usage: Option<Usage>,
}

impl End {
    /// An end with a word for the client.
    pub(crate) fn refused(reason: EndReason, refusal: &Refusal) -> Self {
        let error_code = Some(refusal.code.to_owned());
        Self { reason, status: refusal.status.as_u16(), error_code, usage: None }
    }
}

/// The meter of a request that was let in. Dropped without an end, it ends as cut by the client or by the drain.
#[derive(Debug)]
pub(crate) struct Meter {
    recorder: Arc<Recorder>,
    admission: Arc<Admission>,
    /// Gone once the request has ended.
    open: Option<OpenRequest>,
    reservation: Option<Reservation>,
    /// What the queue has charged the tenant; given back as the request ends, but for what was used.
    charge: Option<Charge>,
    /// For its turn: time that is not the gateway's own.
    waited: Duration,
    tenant: Arc<Tenant>,
    series: Arc<Series>,
    trace: Trace,
    /// Of a stream.
    pace: Option<Pace>,
    begun: Instant,
    status: u16,
    attempts: u32,
    dispatched_at: Option<Micros>,
    first_byte_at: Option<Micros>,
    first_token: Option<Duration>,
    /// The last that was asked.
    replica: Option<ReplicaId>,
    /// Tries there.
    tries: Option<Arc<Attempts>>,
    /// Whether it is still to be said how the last attempt ended.
    answering: bool,
    totals: Totals,
    received: bool,
}

impl Recorder {
    /// Lets a request in: into the spool, or past it where the plan says so.
    ///
    /// # Errors
    /// What the client is told. Nothing is then left of the request.
    pub(crate) fn admit(
        self: &Arc<Self>,
        admission: Admission,
        tenant: &Arc<Tenant>,
        reservation: Reservation,
        arrived: &mut Arrived,
    ) -> Result<Meter, Refusal> {
        let open = match self.spool.admit(admission.clone()) {
            Ok(open) => open,
            Err(AdmitError::NoSlot(_)) => return Err(Refusal::overloaded()),
            Err(AdmitError::Append(AppendError::Closed)) => return Err(Refusal::draining()),
            Err(error) => {
                if tenant.plan.when_spool_full == WhenSpoolFull::Refuse {
                    tracing::warn!(%error, "a request is refused: its usage could not be kept");
                    return Err(Refusal::spool_full());
                }
                self.metrics.unmetered.inc();
                let (request, tenant) = (admission.request_id, &admission.tenant);
                tracing::warn!(%request, %tenant, %error, "a request is served without a record, as its plan says: it is recorded if there is room when it ends");
                self.spool.admit_unmetered(admission.clone())
            }
        };
        self.metrics.in_flight.inc();
        let mut trace = arrived.taken_over();
        trace.admitted(&admission, tenant);
        let series = self.metrics.series.of(&admission.endpoint, &admission.model, &tenant.plan_id);
        let pace = admission.stream.then(|| Pace::new(&series.between_tokens));
        Ok(Meter {
            recorder: Arc::clone(self),
            admission: Arc::new(admission),
            open: Some(open),
            reservation: Some(reservation),
            charge: None,
            waited: Duration::ZERO,
            tenant: Arc::clone(tenant),
            series,
            trace,
            pace,
            begun: arrived.begun,
            status: 0,
            attempts: 0,
            dispatched_at: None,
            first_byte_at: None,
            first_token: None,
            replica: None,
            tries: None,
            answering: false,
            totals: Totals::default(),
            received: false,
        })
    }
}

impl Meter {
    /// The request.
    pub(crate) fn request_id(&self) -> RequestId {
        self.admission.request_id
    }

    fn now(&self) -> Micros {
        Micros(self.recorder.clock.now())
    }

    /// The request has its turn.
    pub(crate) fn has_turn(&mut self, charge: Charge, waited: Duration) {
        (self.charge, self.waited) = (Some(charge), waited);
    }

    /// A try at a replica begins.
    pub(crate) fn attempt(&mut self, number: u32, lease: &Lease) {
        if number == 0 {
            self.recorder.metrics.overhead.observe(self.begun.elapsed().saturating_sub(self.waited).as_secs_f64());
        }
        self.attempts = number.saturating_add(1);
        self.dispatched_at = Some(self.now());
        let replica = &lease.id;
        (self.replica, self.answering) = (Some(replica.clone()), true);
        self.tries = Some(Arc::clone(lease.attempts()));
        self.trace.attempt(number, replica, lease.served_name());
        if let Some(open) = &mut self.open {
            open.attempt(number, replica.as_str());
            open.serves(lease.version());
        }
        if let Some(reservation) = &mut self.reservation {
            reservation.sent();
        }
    }

    /// A try at a replica came to this.
    pub(crate) fn attempt_ended(&mut self, outcome: &'static str) {
        self.answering = false;
        self.trace.attempt_ended(outcome);
        if let Some(tries) = &self.tries {
            tries.came_to(outcome);
        }
    }

    /// The choices of its answer ended so, in the engine's words.
    pub(crate) fn finished_by(&mut self, reasons: impl IntoIterator<Item = &'static str>) {
        self.trace.finished_by(reasons);
    }

    /// Its trace, for the log.
    pub(crate) fn trace_id(&self) -> Option<DisplayValue<TraceId>> {
        self.trace.id().map(tracing::field::display)
    }

    /// The headers by which the replica that is being asked learns of the trace.
    pub(crate) fn pass_on(&self, headers: &mut HeaderMap) {
        self.trace.pass_on(headers);
    }

    /// Its client heard nothing for long, and gets a sign of life.
    pub(crate) fn kept_alive(&self) {
        self.recorder.metrics.keepalives.inc();
    }

    /// It has no price.
    pub(crate) fn unpriced(&self) {
        self.series.unpriced.inc();
    }

    /// The status that the client got, or is about to get.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The client is about to get an answer with this status.
    pub(crate) fn answering(&mut self, status: u16) {
        self.status = status;
    }

    /// The first byte of an answer is about to be handed on.
    pub(crate) fn first_byte(&mut self) {
        if self.first_byte_at.is_none() {
            self.first_byte_at = Some(self.now());
            if self.admission.stream {
                let took = self.begun.elapsed();
                self.series.first_token.observe(took.as_secs_f64());
                self.first_token = Some(took);
            }
            self.trace.first_token();
        }
    }

    /// Running totals, before the frame they came with is handed on. Bills a part when it is due, but nothing of an
    /// estimate: what is billed cannot be taken back when the engine's own count comes.
    pub(crate) fn received(&mut self, totals: Totals, estimated: bool) {
        (self.totals, self.received) = (totals, true);
        if let Some(charge) = &mut self.charge {
            charge.used(totals.sum());
        }
        let now = self.now();
        if let Some(pace) = &mut self.pace {
            pace.tokens(now, totals.output.saturating_add(totals.reasoning));
        }
        let (Some(open), Some(reservation)) = (&mut self.open, &mut self.reservation) else { return };
        open.received(totals.input, totals.output, totals.reasoning);
        if !estimated && open.due(now) {
            let checkpoint = || match open.checkpoint() {
                Ok(done) => ((), done.and_then(|done| done.delta.total().ok()).unwrap_or(0)),
                Err(error) => {
                    // Nothing is lost: the counts are in the in-flight table, and come with the next one or the last.
                    tracing::warn!(request = %open.admission().request_id, trace = self.trace.id().map(tracing::field::display), %error, "a checkpoint could not be written");
                    ((), 0)
                }
            };
            reservation.spend(checkpoint);
        }
    }

    /// The one end. Counts, quota and reservation are settled in one step; what is returned is to be durable before the
    /// client sees the end, if the settings say so.
    pub(crate) fn finish(mut self, end: End) -> Option<Finished> {
        self.end(end)
    }

    fn end(&mut self, end: End) -> Option<Finished> {
        let (open, reservation) = (self.open.take()?, self.reservation.take()?);
        let counts = end.usage.and_then(|usage| self.split(usage));
        if let (Some(mut charge), Some(counts)) = (self.charge.take(), counts) {
            charge.used(counts.total().unwrap_or(u64::MAX));
        }
        let billed = match counts {
            Some(counts) => Billed::Final(counts),
            None if self.received => Billed::Running,
            None => Billed::Nothing,
        };
        let code = end.error_code;
        let finish = Finish {
            end_reason: end.reason,
            status: end.status,
            error_code: code.clone(),
            usage: billed,
            dispatched_at: self.dispatched_at,
            first_byte_at: self.first_byte_at,
        };
        let finished = reservation.settle(|| {
            let finished = open.finish(finish);
            (finished, finished.settled.counts)
        });
        self.tell(end.reason, end.status, code.as_deref(), finished.settled);
        Some(finished)
    }

    /// The engine's last word by class, if it can be: a part larger than its whole is none.
    fn split(&self, usage: Usage) -> Option<TokenCounts> {
        let Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens } = usage;
        TokenCounts::from_usage(prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens)
            .inspect_err(|error| {
                tracing::error!(request = %self.request_id(), trace = self.trace_id(), %error, "the engine's usage cannot be: billed by its running counts");
            })
            .ok()
    }

    fn tell(&mut self, reason: EndReason, status: u16, code: Option<&str>, settled: Settled) {
        let (metrics, series, took) = (&self.recorder.metrics, &self.series, self.begun.elapsed());
        metrics.in_flight.dec();
        if let Some(requests) = series.requests(reason) {
            requests.inc();
        }
        series.duration.observe(took.as_secs_f64());
        for class in TokenClass::ALL {
            let tokens = settled.counts.of(class);
            if let Some(counter) = series.tokens(class).filter(|_| tokens > 0) {
                counter.inc_by(tokens);
            }
        }
        if settled.estimated {
            metrics.estimated.with_label_values(&[reason.as_str()]).inc();
        }
        if let Some(tries) = self.tries.as_ref().filter(|_| self.answering) {
            tries.came_to(reason.as_str());
        }
        self.trace.ended(&Ended { status, reason, code, tokens: settled.counts, attempts: self.attempts });
        let line = Line {
            request: self.admission.request_id,
            trace: self.trace.id(),
            endpoint: Some(&self.admission.endpoint),
            tenant: Some(&self.tenant),
            project: Some(self.admission.project.as_str()),
            model: Some(self.admission.model.as_str()),
            replica: self.replica.as_ref().map(ReplicaId::as_str),
            status,
            reason,
            code,
            tokens: settled.counts,
            attempts: self.attempts,
            waited: Some(self.waited),
            first_token: self.first_token,
            took,
        };
        line.write(self.recorder.access_log);
    }

    /// Waits for the disk, where the settings say that the end of an answer does.
    pub(crate) async fn durable(spool: &Spool, finished: Option<Finished>) {
        if let Some(finished) = finished {
            spool.settled(&finished).await;
        }
    }

    /// The spool, to wait for.
    pub(crate) fn spool(&self) -> Spool {
        self.recorder.spool.clone()
    }

    /// The model's public name.
    pub(crate) fn model(&self) -> &ModelId {
        &self.admission.model
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.open.is_some() {
            let reason = if self.recorder.cut.is_cancelled() { EndReason::Drained } else { EndReason::ClientCancelled };
            self.end(End { reason, status: self.status, error_code: None, usage: None });
        }
    }
}

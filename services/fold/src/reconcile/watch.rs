//! The running reconciler: takes the replicas' counters, compares now and then, and keeps what it finds for people, metrics and
//! the log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::metrics::{self, Histogram, IntCounter, IntGauge, IntGaugeVec, Name, SECONDS};
use runtime::{Metrics, Shutdown};
use sql::{LogHour, LogHours, Reconciliation};
use stream::group::Given;

use super::report::{Check, Difference, Report};
use super::{ReconcileError, Reconciler};

/// The fold of this partition reconciles: there is one, and wherever two think that they are it, both find the same.
const PARTITION: i32 = 0;
/// A run that took long is followed by a pause of so many times as long: comparing takes a tenth of ClickHouse's time at most.
const PAUSE: u32 = 9;
/// How many differences, and how many pending figures, are kept of a run. Their number is kept whole.
const KEPT: usize = 1_000;
/// How many requests are kept of a difference.
const REQUESTS: usize = 100;
/// How many differences of a run are logged.
const LOGGED: usize = 20;

/// What the reconciler counts.
#[derive(Debug)]
pub(crate) struct WatchMeters {
    differences: IntGaugeVec,
    pending: IntGaugeVec,
    last: IntGauge,
    duration: Histogram,
    errors: IntCounter,
}

impl WatchMeters {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, metrics::Error> {
        Ok(Self {
            differences: metrics.gauges(Name::ReconciliationDifferences, &["check"])?,
            pending: metrics.gauges(Name::ReconciliationPending, &["check"])?,
            last: metrics.gauge(Name::ReconciliationLast)?,
            duration: metrics.histogram(Name::ReconciliationDuration, SECONDS)?,
            errors: metrics.counter(Name::ReconciliationErrors)?,
        })
    }

    fn found(&self, report: &Report) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for check in Check::ALL {
            let waiting = report.pending.iter().filter(|pending| pending.check == check).count();
            self.differences.with_label_values(&[check.as_str()]).set(number(report.count(check)));
            self.pending.with_label_values(&[check.as_str()]).set(number(waiting));
        }
    }

    /// Another process reconciles now, and says what it finds.
    fn forget(&self) {
        self.differences.reset();
        self.pending.reset();
        self.last.set(0);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) reconciler: Reconciler,
    pub(crate) given: Given,
    pub(crate) every: Duration,
    pub(crate) hours: u64,
    pub(crate) meters: WatchMeters,
}

impl Watch {
    /// Takes the counters of the replicas until shutdown, beside the comparisons: however long these take, samples are regular.
    pub(crate) async fn sample(self: Arc<Self>, shutdown: Shutdown) -> Result<(), Infallible> {
        while shutdown.sleep(self.every).await {
            if self.is_ours() {
                self.acts(self.reconciler.take_counters(), "the replicas' counters could not be kept", &shutdown).await;
            }
        }
        Ok(())
    }

    /// Compares until shutdown. What cannot be read is counted, and tried again the next time.
    pub(crate) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), Infallible> {
        let mut known = Vec::new();
        let mut pause = self.every;
        while shutdown.sleep(pause).await {
            let begun = Instant::now();
            if self.is_ours() {
                self.acts(self.once(&mut known), "the figures could not be compared", &shutdown).await;
            } else {
                self.meters.forget();
                known.clear();
            }
            pause = self.every.max(begun.elapsed().saturating_mul(PAUSE));
        }
        Ok(())
    }

    fn is_ours(&self) -> bool {
        self.given.borrow().as_ref().is_some_and(|given| given.contains(&PARTITION))
    }

    /// Does one of both, once all that it needs is read, unless the shutdown comes first.
    async fn acts(&self, act: impl Future<Output = Result<(), ReconcileError>>, failed: &str, shutdown: &Shutdown) {
        let act = async {
            self.reconciler.ready().await;
            act.await
        };
        let done = tokio::select! {
            done = act => done,
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = done {
            self.meters.errors.inc();
            tracing::warn!(%error, "{failed}");
        }
    }

    async fn once(&self, known: &mut Vec<Difference>) -> Result<(), ReconcileError> {
        let (begun, now) = (Instant::now(), self.reconciler.now());
        let this = LogHour::of_ms(now.0.div_euclid(1_000)).0;
        // The broker's clock may be ahead of this one.
        let from = this.saturating_sub(i64::try_from(self.hours).unwrap_or(i64::MAX)) + 1;
        let hours = LogHours { from: LogHour(from), before: LogHour(this + 24) };
        let mut report = self.reconciler.run(hours).await?;
        let took = begun.elapsed();
        self.meters.duration.observe(took.as_secs_f64());
        self.meters.found(&report);
        log(&report, known);
        let run = Reconciliation {
            at_ms: now.0.div_euclid(1_000),
            hours,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            differences: report.differences.len() as u64,
            pending: report.pending.len() as u64,
            report: shortened(&mut report),
        };
        self.reconciler.clickhouse().keep_reconciliation(&run).await?;
        self.meters.last.set(self.reconciler.now().0.div_euclid(1_000_000));
        Ok(())
    }
}

/// Says what was not known before: a difference that stays is no news each minute.
fn log(report: &Report, known: &mut Vec<Difference>) {
    for difference in report.differences.iter().filter(|found| !known.contains(found)).take(LOGGED) {
        tracing::error!(check = difference.check.as_str(), %difference, "figures that must be the same differ");
    }
    if report.agrees() && !known.is_empty() {
        tracing::info!("all figures are the same again");
    }
    known.clone_from(&report.differences);
}

/// The report as it is kept.
fn shortened(report: &mut Report) -> String {
    report.differences.truncate(KEPT);
    report.pending.truncate(KEPT);
    report.differences.iter_mut().for_each(|found| found.request_ids.truncate(REQUESTS));
    serde_json::to_string(report).unwrap_or_default()
}

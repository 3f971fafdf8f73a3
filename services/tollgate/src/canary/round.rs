//! A round: reads what is there, sends, and asks until exactly that is there too, or the time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::time::Micros;
use runtime::Clock;
use runtime::metrics::{self, BILLED_SECONDS, Histogram, IntCounterVec, IntGauge, Metrics, Name};
use serde::Serialize;

use super::billing::{self, Span};
use super::client::Client;
use super::gateway;
use super::settings::CanarySettings;
use super::tally::{Answered, Reading, Tally, Verdict, verdict};

/// How often billing is asked.
const POLL: Duration = Duration::from_millis(250);

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// All of it is in the usage API, once, in time.
    Billed,
    /// Something is not there in time.
    Late,
    /// More is there than was used.
    Excess,
    /// The gateway gave no answer that could be billed.
    Refused,
    /// Billing gave no answer, or none that could be judged.
    Unread,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Billed, Self::Late, Self::Excess, Self::Refused, Self::Unread];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Billed => "billed",
            Self::Late => "late",
            Self::Excess => "excess",
            Self::Refused => "refused",
            Self::Unread => "unread",
        }
    }
}

/// What a round saw.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) outcome: Outcome,
    /// Why, if it did not end well.
    pub(crate) said: String,
    /// What was answered, in the order in which it was sent.
    pub(crate) sent: Vec<Answered>,
    /// From the last answer until all was there.
    pub(crate) billed_after: Option<Duration>,
}

/// What the canary counts.
#[derive(Debug)]
struct Meters {
    rounds: IntCounterVec,
    billed_after: Histogram,
    last: IntGauge,
}

impl Meters {
    fn new(metrics: &Metrics) -> Result<Self, metrics::Error> {
        let rounds = metrics.counters(Name::CanaryRounds, &["outcome"])?;
        // An alert on an increase needs the zero before it.
        Outcome::ALL.iter().for_each(|outcome| rounds.with_label_values(&[outcome.as_str()]).reset());
        let billed_after = metrics.histogram(Name::CanaryBilledAfter, BILLED_SECONDS)?;
        Ok(Self { rounds, billed_after, last: metrics.gauge(Name::CanaryLast)? })
    }
}

/// Sends, and remembers what it sent.
#[derive(Debug)]
pub(crate) struct Canary {
    settings: CanarySettings,
    client: Client,
    clock: Arc<dyn Clock>,
    meters: Meters,
    tally: Tally,
}

/// Why a round ended before its requests were billed.
type Ended = (Outcome, String);

impl Canary {
    /// # Errors
    /// When a metric's name is taken.
    pub(crate) fn new(
        settings: CanarySettings,
        client: Client,
        clock: Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Result<Self, metrics::Error> {
        Ok(Self { settings, client, clock, meters: Meters::new(metrics)?, tally: Tally::default() })
    }

    /// One round, with a request for each of `streams`: streamed or not.
    pub(crate) async fn round(&mut self, streams: &[bool]) -> Report {
        let mut sent = Vec::new();
        let (outcome, said, billed_after) = match self.attempt(streams, &mut sent).await {
            Ok(after) => (Outcome::Billed, String::new(), Some(after)),
            Err((outcome, said)) => (outcome, said, None),
        };
        self.meters.rounds.with_label_values(&[outcome.as_str()]).inc();
        if outcome == Outcome::Billed {
            self.meters.last.set(self.clock.now().div_euclid(1_000_000));
        }
        Report { outcome, said, sent, billed_after }
    }

    async fn attempt(&mut self, streams: &[bool], sent: &mut Vec<Answered>) -> Result<Duration, Ended> {
        let span = Span::around(Micros(self.clock.now()));
        self.tally.forget_before(span.from);
        let base = self.settled(span).await?;
        for &stream in streams {
            let CanarySettings { gateway, model, .. } = &self.settings;
            let told = gateway::chat(&self.client, gateway, model, stream).await;
            let told = told.map_err(|why| (Outcome::Refused, why))?;
            let moment = Micros(self.clock.now());
            let answered = Answered { id: told.id, stream, counts: told.counts, at: Instant::now(), moment };
            self.tally.add(answered);
            sent.push(answered);
        }
        self.billed(span, &base, sent).await
    }

    /// What is there before anything is sent, once it stays as it is: else something is on its way that could not be told from
    /// what is sent.
    async fn settled(&mut self, span: Span) -> Result<Reading, Ended> {
        let (begun, bound) = (Instant::now(), self.settings.bound());
        let mut last: Option<Reading> = None;
        loop {
            let why = match self.read(span).await? {
                Ok(reading) if last.as_ref() == Some(&reading) => return Ok(reading),
                Ok(reading) => {
                    last = Some(reading);
                    "the usage of its tenant does not stand still: give the canary a tenant of its own".to_owned()
                }
                Err(why) => why,
            };
            if begun.elapsed() > bound {
                return Err((Outcome::Unread, why));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks until all that was sent is there; how long that took.
    async fn billed(&mut self, span: Span, base: &Reading, sent: &[Answered]) -> Result<Duration, Ended> {
        let (begun, bound) = (Instant::now(), self.settings.bound());
        loop {
            let asked = begun.elapsed();
            let not_yet = match self.read(span).await? {
                Ok(reading) => match verdict(base, &reading, sent) {
                    Verdict::Billed => return Ok(begun.elapsed()),
                    Verdict::Missing(said) => (Outcome::Late, format!("{said} after {} s", bound.as_secs())),
                    Verdict::Unexplained(said) => (Outcome::Excess, said),
                },
                Err(why) => (Outcome::Unread, why),
            };
            // What was asked within the bound, was there within it.
            if asked > bound {
                return Err(not_yet);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Reads, and looks at all that this process has sent. The inner error is for now: why billing gave no answer.
    async fn read(&mut self, span: Span) -> Result<Result<Reading, String>, Ended> {
        let reading = match billing::read(&self.client, &self.settings.billing, span).await {
            Ok(reading) => reading,
            Err(why) => return Ok(Err(why)),
        };
        for arrived in self.tally.arrived(&reading) {
            let after = arrived.at.elapsed();
            self.meters.billed_after.observe(after.as_secs_f64());
            tracing::debug!(request = %arrived.id, ?after, "a request is in the usage API");
        }
        match self.tally.excess(&reading) {
            Some(said) => Err((Outcome::Excess, said)),
            None => Ok(Ok(reading)),
        }
    }
}

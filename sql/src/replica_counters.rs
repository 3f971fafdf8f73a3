//! What replicas counted themselves, sample by sample, and what their requests are counted as here.

use clickhouse::Row;
use ledger::time::Micros;
use serde::{Deserialize, Serialize};

use crate::calendar::{LogHour, LogHours, log_month};
use crate::client::{ClickHouse, fetch, fetch_row, within_deadline};
use crate::error::QueryError;

const COUNTERS: &str = include_str!("../queries/replica_counters.sql");
const USAGE: &str = include_str!("../queries/replica_usage.sql");
/// Months of the log are those of the broker's clock: a request is looked for from the month of a day before it on.
const DAY_MS: i64 = 86_400_000;

/// What an engine said of itself at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Row, Serialize, Deserialize)]
pub struct ReplicaCounters {
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// The engine.
    pub url: String,
    /// The replicas of control that it is, by ascending name.
    pub replicas: Vec<String>,
    /// When it began to count, likewise; 0 if it does not say.
    pub started: i64,
    /// Prompt tokens since then.
    pub prompt_tokens: u64,
    /// Generated tokens since then.
    pub generation_tokens: u64,
    /// Requests that it worked on, or that waited there.
    pub open: u64,
}

/// What one engine's requests of a span are counted as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Row, Deserialize)]
pub struct ReplicaUsage {
    /// Prompt tokens of requests whose whole life lies in the span, estimates left out.
    pub sure_prompt: u64,
    /// Generated tokens, likewise.
    pub sure_generation: u64,
    /// Prompt tokens of all requests that were there at any moment of it.
    pub maybe_prompt: u64,
    /// Generated tokens, likewise.
    pub maybe_generation: u64,
    /// How many lie in it wholly.
    pub requests: u64,
    /// How many were cut, or tried more than once: an engine may have done more for them.
    pub cuts: u64,
    /// How many have counts that are estimates.
    pub estimates: u64,
    /// Prompt tokens of those that ended before the span did: whatever comes after it, they stay what they are.
    pub ended_prompt: u64,
    /// Generated tokens, likewise.
    pub ended_generation: u64,
    /// How many of them were cut.
    pub ended_cuts: u64,
    /// How many of them have counts that are estimates.
    pub ended_estimates: u64,
}

impl ReplicaUsage {
    /// Of the span of an earlier answer and of this one as one. This one is of requests that ended from then on at which that one's
    /// had surely ended, and both begin alike.
    #[must_use]
    pub fn after(self, earlier: &Self) -> Self {
        Self {
            sure_prompt: earlier.sure_prompt + self.sure_prompt,
            sure_generation: earlier.sure_generation + self.sure_generation,
            maybe_prompt: earlier.ended_prompt + self.maybe_prompt,
            maybe_generation: earlier.ended_generation + self.maybe_generation,
            requests: earlier.requests + self.requests,
            cuts: earlier.ended_cuts + self.cuts,
            estimates: earlier.ended_estimates + self.estimates,
            ended_prompt: earlier.ended_prompt + self.ended_prompt,
            ended_generation: earlier.ended_generation + self.ended_generation,
            ended_cuts: earlier.ended_cuts + self.ended_cuts,
            ended_estimates: earlier.ended_estimates + self.ended_estimates,
        }
    }
}

impl ClickHouse {
    /// Keeps samples.
    ///
    /// # Errors
    /// No answer.
    pub async fn keep_replica_counters(&self, samples: &[ReplicaCounters]) -> Result<(), QueryError> {
        if samples.is_empty() {
            return Ok(());
        }
        within_deadline(async {
            let mut insert = self.client().insert::<ReplicaCounters>("replica_counters").await?;
            for sample in samples {
                insert.write(sample).await?;
            }
            insert.end().await
        })
        .await
    }

    /// The samples of some hours, by engine and time.
    ///
    /// # Errors
    /// No answer.
    pub async fn replica_counters(&self, hours: LogHours) -> Result<Vec<ReplicaCounters>, QueryError> {
        let ms = |hour: LogHour| hour.start().0.div_euclid(1_000);
        // The calendar of ClickHouse has an end.
        let (from, before) = (ms(hours.from).max(0), ms(hours.before).min(4_000_000_000_000));
        fetch(self.rows(COUNTERS).param("from_ms", from).param("before_ms", before)).await
    }

    /// What an engine's requests are counted as that were there between two moments, and ended at `ended_from` or after. Clocks may be
    /// `skew` apart, in microseconds.
    ///
    /// # Errors
    /// No answer.
    pub async fn replica_usage(
        &self,
        replicas: &[String],
        (from, to): (Micros, Micros),
        ended_from: Micros,
        skew: i64,
    ) -> Result<ReplicaUsage, QueryError> {
        let month = log_month(ended_from.0.div_euclid(1_000) - DAY_MS).unwrap_or(0);
        let query = self
            .rows(USAGE)
            .param("replicas", replicas)
            .param("month_from", month)
            .param("surely_from", from.0 + skew)
            .param("surely_to", to.0 - skew)
            .param("ended_from", ended_from.0)
            .param("maybe_to", to.0 + skew);
        fetch_row::<ReplicaUsage>(query).await
    }
}

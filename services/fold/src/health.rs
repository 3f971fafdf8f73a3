//! Whether a line makes progress, and if not, why: its condition on `/readyz`.

use std::time::{Duration, Instant};

use runtime::Condition;

use crate::call::Standstill;
use crate::meters::LineMeters;

/// The health of one line.
#[derive(Debug)]
pub(crate) struct Health {
    condition: Condition,
    stall: Duration,
    advanced_at: Instant,
    /// The end of the log when it was last looked at.
    pub(crate) end: Option<i64>,
    /// What fails with ClickHouse and is not known to be over.
    pub(crate) clickhouse: Option<String>,
    /// What fails with Kafka and is not known to be over.
    pub(crate) kafka: Option<String>,
    stood_still: Option<Stood>,
}

/// Where a line stands still, and why.
#[derive(Debug)]
struct Stood {
    at: i64,
    why: String,
    /// It was what ClickHouse held, so that the line may be whole again without any record.
    damaged: bool,
}

impl Health {
    /// Without progress for `stall`, while there is something to fold, the line is not ready.
    pub(crate) fn new(condition: Condition, stall: Duration) -> Self {
        let (end, clickhouse, kafka, stood_still) = (None, None, None, None);
        Self { condition, stall, advanced_at: Instant::now(), end, clickhouse, kafka, stood_still }
    }

    /// The position changed.
    pub(crate) fn advanced(&mut self) {
        self.advanced_at = Instant::now();
    }

    pub(crate) fn stopping(&self) {
        self.condition.not_ready("stopping");
    }

    /// Says how the line is: in its condition, and in the figures of lag and standstill.
    pub(crate) fn say(
        &mut self,
        position: Option<i64>,
        reads_from: i64,
        stands_still: Option<&Standstill>,
        meters: &LineMeters,
    ) {
        let lag = self.end.zip(position).map(|(end, position)| (end - position).max(0));
        if lag == Some(0) {
            self.advanced();
        }
        self.note(reads_from, stands_still, self.end.is_some() && self.end == position, meters.topic);
        meters.lag.set(lag.unwrap_or(0));
        meters.stopped.set(i64::from(self.stood_still.is_some()));
        match self.reason(lag) {
            Some(reason) => self.condition.not_ready(reason),
            None => self.condition.ready(),
        }
    }

    fn reason(&self, lag: Option<i64>) -> Option<String> {
        let stood_still = self.stood_still.as_ref().map(|stood| &stood.why);
        if let Some(why) = stood_still.or(self.kafka.as_ref()).or(self.clickhouse.as_ref()) {
            return Some(why.clone());
        }
        let Some(lag) = lag else { return Some("the position is not proven yet".to_owned()) };
        let stalled = self.advanced_at.elapsed() >= self.stall;
        stalled.then(|| format!("no chunk was written for {} s while {lag} offsets wait", self.stall.as_secs()))
    }

    /// A standstill is over when the line has read on, not when it looks again whether it may.
    fn note(&mut self, reads_from: i64, stands_still: Option<&Standstill>, at_end: bool, topic: &str) {
        if let Some(standstill) = stands_still {
            let (why, damaged) = (standstill.to_string(), matches!(standstill, Standstill::Damaged(_)));
            if self.stood_still.as_ref().is_none_or(|stood| stood.why != why) {
                tracing::error!(topic, reads_from, why, "the line stands still");
            }
            self.stood_still = Some(Stood { at: reads_from, why, damaged });
        } else if self.stood_still.as_ref().is_some_and(|stood| reads_from > stood.at || (stood.damaged && at_end)) {
            tracing::info!(topic, reads_from, "the line goes on");
            self.stood_still = None;
        }
    }
}

//! What is late: what Kafka took after the period of its usage could have been closed. It is in every figure all the same.

use chrono_tz::Tz;
use ledger::control::UsageAdjustment;
use ledger::time::{HOUR_MICROS, Period, Slot};
use sql::{Grain, LogHour, Span};

use crate::problem::Problem;

/// The periods that a time is cut into, each with the first log hour that is late for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Late(Vec<(Slot, LogHour)>);

impl Late {
    /// The months of a time.
    pub(crate) fn of(time: Period, zone: Tz) -> Result<Self, Problem> {
        let span = Span { grain: Grain::Month, zone };
        let starts = span.starts(time.from, time.to).map_err(|error| Problem::range(error.to_string()))?;
        let months = starts.into_iter().map(|start| Ok((start, from_hour(start, zone)?)));
        months.collect::<Result<_, Problem>>().map(Self)
    }

    /// For ClickHouse.
    pub(crate) fn periods(&self) -> Vec<(Slot, LogHour)> {
        self.0.clone()
    }

    /// Whether usage of a slot that came in a log hour was late.
    pub(crate) fn is(&self, slot: Slot, hour: LogHour) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= slot);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, from)| hour >= *from)
    }

    /// Whether a correction was made late.
    pub(crate) fn is_made(&self, made: &UsageAdjustment) -> bool {
        self.is(made.slot(), LogHour(made.made_at.0.div_euclid(HOUR_MICROS)))
    }
}

/// The first log hour that is late for the month that holds a slot.
fn from_hour(slot: Slot, zone: Tz) -> Result<LogHour, Problem> {
    let month = Period::month_of(slot.start(), zone).map_err(|error| Problem::range(error.to_string()))?;
    Ok(LogHour(month.late_from_hour()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::time::Micros;

    #[test]
    fn usage_is_late_by_the_end_of_its_own_month() {
        let at = |text: &str| Micros::from(text.parse::<chrono::DateTime<chrono::Utc>>().unwrap());
        let (slot, hour) = (|text| Slot::of(at(text)), |text| LogHour(at(text).0.div_euclid(HOUR_MICROS)));
        let time = Period { from: slot("2026-03-10T00:00:00Z"), to: slot("2026-05-10T00:00:00Z") };
        let late = Late::of(time, chrono_tz::Europe::Berlin).unwrap();
        let march = slot("2026-03-31T21:45:00Z");
        assert!(
            !late.is(march, hour("2026-03-31T22:59:00Z")),
            "Berlin's April began at 22:00; until 23:00 all is in time"
        );
        assert!(late.is(march, hour("2026-03-31T23:00:00Z")));
        assert!(!late.is(slot("2026-03-31T22:00:00Z"), hour("2026-04-30T22:30:00Z")), "April, in time");
        assert!(late.is(slot("2026-04-02T00:00:00Z"), hour("2026-05-01T00:00:00Z")));
    }
}

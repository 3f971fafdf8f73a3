//! Hours of the log, and spans of time in a time zone's own calendar, as whole slots.

use chrono::{DateTime, Datelike, Offset, Timelike, Utc};
use chrono_tz::Tz;
use ledger::time::{Micros, Slot, TimeError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most spans that one answer may have.
pub const SPANS_MAX: usize = 10_000;
/// The longest time that can be cut into spans, in slots: a hundred years and some.
const SLOTS_MAX: i64 = 4_000_000;
const HOUR_MS: i64 = 3_600_000;

/// What cannot be cut into spans.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CalendarError {
    /// More than [`SPANS_MAX`] spans.
    #[error("that makes more than {SPANS_MAX} spans: ask for a shorter time or longer spans")]
    TooMany,
    /// Longer than a century.
    #[error("the time asked for is longer than a hundred years")]
    TooLong,
    /// Outside of the calendar.
    #[error(transparent)]
    Time(#[from] TimeError),
}

/// An hour of log time, counted from 1970, UTC: what decides which invoice a row falls into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogHour(pub i64);

impl LogHour {
    /// The hour of a log time in milliseconds since 1970.
    pub const fn of_ms(log_time_ms: i64) -> Self {
        Self(log_time_ms.div_euclid(HOUR_MS))
    }

    /// Its first microsecond.
    pub const fn start(self) -> Micros {
        Micros(self.0.saturating_mul(HOUR_MS * 1_000))
    }
}

/// Rows of which log hours count: `from` is among them, `before` is not. All of them by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHours {
    /// The first one.
    pub from: LogHour,
    /// The first one that does not count: an invoice's cut-off.
    pub before: LogHour,
}

impl Default for LogHours {
    fn default() -> Self {
        Self { from: LogHour(i64::MIN), before: LogHour(i64::MAX) }
    }
}

impl LogHours {
    /// Those before a cut-off.
    pub fn before(cut_off: LogHour) -> Self {
        Self { before: cut_off, ..Self::default() }
    }

    /// Those from a cut-off on: what came too late for it.
    pub fn since(cut_off: LogHour) -> Self {
        Self { from: cut_off, ..Self::default() }
    }
}

/// The month of a log time as `yyyymm`; none outside of the calendar's years 0 to 9999.
pub fn log_month(log_time_ms: i64) -> Option<u32> {
    let time = DateTime::<Utc>::from_timestamp_millis(log_time_ms)?;
    let year = u32::try_from(time.year()).ok().filter(|&year| year <= 9_999)?;
    Some(year * 100 + time.month())
}

/// When a month as `yyyymm` is over, milliseconds since 1970.
pub(crate) fn month_end_ms(month: u32) -> Option<i64> {
    let year = i32::try_from(month / 100).ok()?;
    let (year, next) = match month % 100 {
        12 => (year + 1, 1),
        of @ 1..12 => (year, of + 1),
        _ => return None,
    };
    let first = chrono::NaiveDate::from_ymd_opt(year, next, 1)?;
    Some(first.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

/// How long a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grain {
    /// An hour of the clock on the wall. The one that a clock repeats in autumn is two.
    Hour,
    /// A day of the calendar: 23 to 25 hours.
    Day,
    /// A month of the calendar.
    Month,
}

/// Into which spans an answer is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// How long they are.
    pub grain: Grain,
    /// In whose calendar.
    pub zone: Tz,
}

impl Span {
    /// What is the same for all slots of one span.
    fn mark(&self, slot: Slot) -> Result<(i32, u32, u32, u32, i32), TimeError> {
        let local = slot.start().to_utc()?.with_timezone(&self.zone);
        let (year, month, day, hour) = (local.year(), local.month(), local.day(), local.hour());
        Ok(match self.grain {
            Grain::Hour => (year, month, day, hour, local.offset().fix().local_minus_utc()),
            Grain::Day => (year, month, day, 0, 0),
            Grain::Month => (year, month, 0, 0, 0),
        })
    }

    /// The first slots of all spans between `from` and `to` (not in it). The first span begins at `from`, wherever that is.
    ///
    /// # Errors
    /// Too many, too long, or outside of the calendar.
    pub fn starts(&self, from: Slot, to: Slot) -> Result<Vec<Slot>, CalendarError> {
        if to.0.saturating_sub(from.0) > SLOTS_MAX {
            return Err(CalendarError::TooLong);
        }
        let mut starts = Vec::new();
        let mut last = None;
        for slot in (from.0..to.0).map(Slot) {
            let mark = Some(self.mark(slot)?);
            if mark != last {
                if starts.len() == SPANS_MAX {
                    return Err(CalendarError::TooMany);
                }
                starts.push(slot);
                last = mark;
            }
        }
        Ok(starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::time::Period;
    use proptest::prelude::*;

    fn slot(text: &str) -> Slot {
        Slot::starting_at(text.parse::<DateTime<Utc>>().unwrap().into()).unwrap()
    }

    fn starts(grain: Grain, zone: Tz, from: &str, to: &str) -> Vec<String> {
        let slots = Span { grain, zone }.starts(slot(from), slot(to)).unwrap();
        slots.into_iter().map(|slot| slot.start().to_string()).collect()
    }

    #[test]
    fn an_hour_in_india_begins_at_half_past() {
        let hours = starts(Grain::Hour, chrono_tz::Asia::Kolkata, "2026-11-01T00:00:00Z", "2026-11-01T02:00:00Z");
        assert_eq!(hours, ["2026-11-01T00:00:00Z", "2026-11-01T00:30:00Z", "2026-11-01T01:30:00Z"]);
    }

    #[test]
    fn the_day_on_which_clocks_go_back_has_25_hours() {
        let zone = chrono_tz::America::New_York;
        let (from, to) = ("2026-11-01T04:00:00Z", "2026-11-03T05:00:00Z");
        assert_eq!(starts(Grain::Day, zone, from, to), ["2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"]);
        assert_eq!(starts(Grain::Hour, zone, from, "2026-11-02T05:00:00Z").len(), 25);
        let spring = starts(Grain::Day, zone, "2026-03-08T05:00:00Z", "2026-03-09T05:00:00Z");
        assert_eq!(spring, ["2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"]);
    }

    #[test]
    fn too_much_is_refused() {
        let span = Span { grain: Grain::Hour, zone: chrono_tz::UTC };
        assert_eq!(span.starts(Slot(0), Slot(4 * 10_001)), Err(CalendarError::TooMany));
        assert_eq!(span.starts(Slot(0), Slot(i64::MAX)), Err(CalendarError::TooLong));
        assert!(matches!(span.starts(Slot(i64::MAX - 8), Slot(i64::MAX)), Err(CalendarError::Time(_))));
        assert_eq!(span.starts(Slot(7), Slot(7)), Ok(vec![]));
    }

    #[test]
    fn log_times_have_an_hour_and_a_month_also_before_1970() {
        assert_eq!((LogHour::of_ms(-1), log_month(-1)), (LogHour(-1), Some(196_912)));
        assert_eq!((LogHour::of_ms(3_600_000), log_month(3_600_000)), (LogHour(1), Some(197_001)));
        assert_eq!(log_month(i64::MAX), None);
    }

    #[test]
    fn a_month_is_over_when_the_next_one_begins() {
        for month in [202_612, 202_602, 202_401] {
            let end = month_end_ms(month).unwrap();
            assert_eq!(log_month(end - 1), Some(month));
            assert_ne!(log_month(end), Some(month));
        }
        assert_eq!((month_end_ms(202_613), month_end_ms(0)), (None, None));
    }

    proptest! {
        // Since 1980: before, a few islands kept offsets that are no whole slots, and the ledger refuses months there.
        #[test]
        fn months_begin_where_the_ledger_begins_them(days in 3_660i64..20_000, zone in 0..chrono_tz::TZ_VARIANTS.len()) {
            let zone = chrono_tz::TZ_VARIANTS[zone];
            let period = Period::month_of(Micros(days * 86_400_000_000), zone).unwrap();
            let months = Span { grain: Grain::Month, zone }.starts(period.from, Slot(period.to.0 + 1)).unwrap();
            prop_assert_eq!(months, vec![period.from, period.to]);
        }
    }
}

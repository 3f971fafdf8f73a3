//! Time as numbers: microseconds, the quarter-hour slots that everything is aggregated by, and half-open periods.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, TimeZone, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Microseconds of a slot: a quarter of an hour.
pub const SLOT_MICROS: i64 = 15 * 60 * 1_000_000;

/// Microseconds of an hour.
pub const HOUR_MICROS: i64 = 4 * SLOT_MICROS;

/// A period is not closed sooner after its end than this.
pub const CLOSING_MICROS: i64 = 5 * 60 * 1_000_000;

/// Why a time cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TimeError {
    /// Not a month.
    #[error("{0:?} is no month: write it as 2026-11")]
    NoMonth(String),
    /// Not on a whole quarter of an hour, UTC.
    #[error("{0} is not on a whole quarter of an hour (UTC)")]
    NotOnSlot(Micros),
    /// Outside of what dates can express.
    #[error("{0} microseconds since 1970 are outside of the calendar")]
    OutOfRange(i64),
}

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// As a calendar time.
    pub fn to_utc(self) -> Result<DateTime<Utc>, TimeError> {
        DateTime::from_timestamp_micros(self.0).ok_or(TimeError::OutOfRange(self.0))
    }
}

impl From<DateTime<Utc>> for Micros {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.timestamp_micros())
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_utc() {
            Ok(time) => f.write_str(&time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A quarter of an hour, counted from 1970, UTC: the grain of aggregates, prices and periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub i64);

impl Slot {
    /// The slot that holds `time`; also right before 1970.
    pub const fn of(time: Micros) -> Self {
        Self(time.0.div_euclid(SLOT_MICROS))
    }

    /// The slot that begins at `time`, which must be its very first microsecond.
    pub fn starting_at(time: Micros) -> Result<Self, TimeError> {
        if time.0.rem_euclid(SLOT_MICROS) == 0 { Ok(Self::of(time)) } else { Err(TimeError::NotOnSlot(time)) }
    }

    /// Its first microsecond.
    pub const fn start(self) -> Micros {
        Micros(self.0.saturating_mul(SLOT_MICROS))
    }
}

/// A span of whole slots: `from` is in it, `to` is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Period {
    /// The first slot of it.
    pub from: Slot,
    /// The first slot after it.
    pub to: Slot,
}

impl Period {
    /// The calendar month, in the tenant's time zone, that holds `time`.
    pub fn month_of(time: Micros, zone: Tz) -> Result<Self, TimeError> {
        let local = time.to_utc()?.with_timezone(&zone);
        Self::between((local.year(), local.month()), zone, time)
    }

    /// The calendar month that is written `2026-11`, in the tenant's time zone.
    ///
    /// # Errors
    /// When it is written otherwise, or too far away.
    pub fn month(written: &str, zone: Tz) -> Result<Self, TimeError> {
        let no_month = || TimeError::NoMonth(written.to_owned());
        let day = NaiveDate::parse_from_str(&format!("{written}-01"), "%Y-%m-%d").map_err(|_| no_month())?;
        let noon = day.and_hms_opt(12, 0, 0).ok_or_else(no_month)?.and_utc();
        Self::between((day.year(), day.month()), zone, noon.into())
    }

    fn between(first: (i32, u32), zone: Tz, asked: Micros) -> Result<Self, TimeError> {
        let next = if first.1 == 12 { (first.0 + 1, 1) } else { (first.0, first.1 + 1) };
        Ok(Self { from: month_start(first, zone, asked)?, to: month_start(next, zone, asked)? })
    }

    /// The first hour of log time, counted from 1970, whose records are late for it: the first whole hour once every source has
    /// had [`CLOSING_MICROS`] after its end to be heard of. It cannot be closed before, so nothing earlier is late.
    pub const fn late_from_hour(&self) -> i64 {
        let heard = self.to.start().0.saturating_add(CLOSING_MICROS);
        heard.saturating_add(HOUR_MICROS - 1).div_euclid(HOUR_MICROS)
    }

    /// Whether `time` lies in it.
    pub fn contains(&self, time: Micros) -> bool {
        let slot = Slot::of(time);
        self.from <= slot && slot < self.to
    }
}

/// The first slot of a month. Where the clocks skip midnight of the first, the month begins when they go on.
fn month_start((year, month): (i32, u32), zone: Tz, asked: Micros) -> Result<Slot, TimeError> {
    let out_of_range = TimeError::OutOfRange(asked.0);
    let midnight = NaiveDate::from_ymd_opt(year, month, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
    let midnight = midnight.ok_or(out_of_range.clone())?;
    (0..=24 * 4)
        .find_map(|quarters| {
            zone.from_local_datetime(&(midnight + chrono::TimeDelta::minutes(15 * quarters))).earliest()
        })
        .ok_or(out_of_range)
        .and_then(|start| Slot::starting_at(start.with_timezone(&Utc).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_month_is_read_as_it_is_written() {
        let zone = chrono_tz::Europe::Berlin;
        let november = Period::month("2026-11", zone).unwrap();
        assert_eq!(november, Period::month_of(november.from.start(), zone).unwrap());
        assert_eq!(Period::month("2026-12", zone).unwrap().from, november.to);
        for wrong in ["2026-13", "2026-00", "2026", "november", "2026-11-01", "", "99999999-01"] {
            let said = Period::month(wrong, zone).unwrap_err().to_string();
            assert!(said.contains("2026-11"), "{wrong}: {said}");
        }
    }

    fn at(text: &str) -> Micros {
        text.parse::<DateTime<Utc>>().unwrap().into()
    }

    #[test]
    fn a_month_is_the_tenants_own() {
        let period = Period::month_of(at("2026-03-31T22:30:00Z"), chrono_tz::Europe::Berlin).unwrap();
        assert_eq!(period.from.start(), at("2026-03-31T22:00:00Z"));
        assert_eq!(period.to.start(), at("2026-04-30T22:00:00Z"));
        let period = Period::month_of(at("2026-12-31T23:59:59.999999Z"), chrono_tz::UTC).unwrap();
        assert_eq!(period.to.start(), at("2027-01-01T00:00:00Z"));
        assert!(!period.contains(at("2027-01-01T00:00:00Z")));
        let kathmandu = Period::month_of(at("2026-06-01T00:00:00Z"), chrono_tz::Asia::Kathmandu).unwrap();
        assert_eq!(kathmandu.from.start(), at("2026-05-31T18:15:00Z"));
    }

    #[test]
    fn what_comes_an_hour_after_the_end_is_late() {
        let hour = |text| at(text).0.div_euclid(HOUR_MICROS);
        let utc = Period::month_of(at("2026-03-31T22:30:00Z"), chrono_tz::UTC).unwrap();
        assert_eq!(utc.late_from_hour(), hour("2026-04-01T01:00:00Z"));
        let kathmandu = Period::month_of(at("2026-05-20T00:00:00Z"), chrono_tz::Asia::Kathmandu).unwrap();
        assert_eq!(kathmandu.late_from_hour(), hour("2026-05-31T19:00:00Z"), "it ends at 18:15");
    }

    #[test]
    fn only_whole_quarters_begin_a_slot() {
        assert!(Slot::starting_at(at("2026-01-01T00:15:00Z")).is_ok());
        assert!(Slot::starting_at(at("2026-01-01T00:15:00.000001Z")).is_err());
        assert_eq!(Slot::of(Micros(-1)), Slot(-1));
    }

    proptest! {
        #[test]
        fn months_are_whole_slots_without_gap_or_overlap(micros in 946_684_800_000_000i64..4_102_444_800_000_000, zone in 0..chrono_tz::TZ_VARIANTS.len()) {
            let zone = chrono_tz::TZ_VARIANTS[zone];
            let period = Period::month_of(Micros(micros), zone).unwrap();
            prop_assert!(period.contains(Micros(micros)));
            let next = Period::month_of(period.to.start(), zone).unwrap();
            prop_assert_eq!(next.from, period.to);
            prop_assert_eq!(Period::month_of(Micros(period.to.start().0 - 1), zone).unwrap(), period);
        }
    }
}

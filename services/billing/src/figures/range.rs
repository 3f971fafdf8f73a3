//! Spans of time that are asked for: whole quarters of an hour, or a period of a tenant.

use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use ledger::time::{Micros, Period, Slot};

use crate::problem::Problem;

/// The longest span that one answer is for, in slots: ten years and some.
const LONGEST: i64 = 10 * 366 * 96;

/// An instant as RFC 3339 has it.
pub(crate) fn instant(name: &str, text: &str) -> Result<Micros, Problem> {
    DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc).into()).map_err(|_| {
        Problem::range(format!(
            "`{name}` must be an instant as RFC 3339 has it, for example 2026-11-01T00:00:00Z (write + as %2B)"
        ))
    })
}

fn slot(name: &str, text: &str) -> Result<Slot, Problem> {
    let time = instant(name, text)?;
    Slot::starting_at(time).map_err(|error| Problem::range(format!("`{name}`: {error}")))
}

/// What `from` and `to` mean; each that is absent is that of the current period.
pub(crate) fn between(from: Option<&str>, to: Option<&str>, now: Micros, zone: Tz) -> Result<Period, Problem> {
    let current = Period::month_of(now, zone).map_err(|error| Problem::internal(&error))?;
    let from = from.map_or(Ok(current.from), |text| slot("from", text))?;
    let to = to.map_or(Ok(current.to), |text| slot("to", text))?;
    if from >= to {
        return Err(Problem::range("`from` must be before `to`, which is not in the span itself"));
    }
    if to.0.saturating_sub(from.0) > LONGEST {
        return Err(Problem::range("the span is longer than ten years: ask for a part of it"));
    }
    Ok(Period { from, to })
}

/// The period of a name (`YYYY-MM`), or the current one.
pub(crate) fn period(name: Option<&str>, now: Micros, zone: Tz) -> Result<Period, Problem> {
    let within = match name {
        None => now,
        Some(name) => {
            let refused = || Problem::range("`period` must be a month, as YYYY-MM");
            let shaped = name.len() == 7 && name.as_bytes().get(4) == Some(&b'-');
            let day = NaiveDate::parse_from_str(&format!("{name}-15"), "%Y-%m-%d").ok().filter(|_| shaped);
            // Noon of the 15th is in the same month in every time zone.
            day.and_then(|day| day.and_hms_opt(12, 0, 0)).ok_or_else(refused)?.and_utc().into()
        }
    };
    Period::month_of(within, zone).map_err(|error| Problem::range(error.to_string()))
}

/// `YYYY-MM`: the month that a period is, in its time zone.
pub(crate) fn name(period: Period, zone: Tz) -> Result<String, Problem> {
    Ok(super::start(period.from)?.with_timezone(&zone).format("%Y-%m").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_500_000_000_000; // 2026-11-24

    fn spans(from: Option<&str>, to: Option<&str>) -> Result<Period, Problem> {
        between(from, to, Micros(NOW), chrono_tz::UTC)
    }

    #[test]
    fn a_span_is_whole_slots_in_order_and_within_reason() {
        let november = spans(None, None).unwrap();
        assert_eq!(super::super::start(november.from).unwrap().to_string(), "2026-11-01 00:00:00 UTC");
        let offset = spans(Some("2026-11-02T02:00:00+02:00"), Some("2026-11-02T00:15:00Z")).unwrap();
        assert_eq!(offset.to.0 - offset.from.0, 1);
        for (from, to) in [
            (Some("2026-11-02"), None),
            (Some("yesterday"), None),
            (Some("2026-11-02T00:00:01Z"), None),
            (Some("2026-11-02T00:00:00Z"), Some("2026-11-02T00:00:00Z")),
            (Some("2026-12-02T00:00:00Z"), None),
            (Some("1990-01-01T00:00:00Z"), None),
        ] {
            assert!(spans(from, to).is_err(), "{from:?} {to:?}");
        }
    }

    #[test]
    fn a_period_is_a_month_of_the_tenants_own() {
        let berlin = chrono_tz::Europe::Berlin;
        let march = period(Some("2026-03"), Micros(NOW), berlin).unwrap();
        assert_eq!(super::super::start(march.to).unwrap().to_rfc3339(), "2026-03-31T22:00:00+00:00");
        assert_eq!(name(march, berlin).unwrap(), "2026-03");
        assert_eq!(name(period(None, Micros(NOW), berlin).unwrap(), berlin).unwrap(), "2026-11");
        for wrong in ["", "2026", "2026-3", "2026-13", "2026-03-01", "26-03-", "+026-03", "999999-01"] {
            assert!(period(Some(wrong), Micros(NOW), berlin).is_err(), "{wrong}");
        }
    }
}

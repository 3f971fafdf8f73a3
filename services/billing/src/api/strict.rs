//! Values that clients write as text, read strictly: what would be rounded, cut off or guessed at is refused.

use chrono::{DateTime, Timelike as _, Utc};
use rust_decimal::Decimal;
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer};

/// A decimal as text, exactly as it is written: digits, and at most one point.
pub(super) fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Decimal, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let plain = text.strip_prefix('-').unwrap_or(&text).splitn(2, '.').all(digits);
    // Parsing alone would round what has too many places, and take 1_0 and 1e3 for numbers.
    let exact = Decimal::from_str_exact(&text).ok().filter(|_| plain);
    exact.ok_or_else(|| {
        D::Error::custom(format!("{text:?} is no decimal: write at most 28 digits and one point, as \"0.25\""))
    })
}

/// An instant as RFC 3339 has it, of the years 0 to 9999, in whole microseconds.
pub(super) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(deserializer)?;
    read(&text).map_err(D::Error::custom)
}

/// The same, where there may be none.
pub(super) fn instant_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| read(&text).map_err(D::Error::custom)).transpose()
}

fn read(text: &str) -> Result<DateTime<Utc>, String> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| {
        format!("{text:?} is no instant as RFC 3339 has it: write date, time and zone, as 2026-11-01T00:00:00Z")
    })?;
    if time.nanosecond() % 1_000 == 0 {
        Ok(time.with_timezone(&Utc))
    } else {
        Err(format!("{text:?} is finer than a microsecond"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IntoDeserializer as _;
    use serde::de::value::{Error, StrDeserializer};

    fn text(text: &str) -> StrDeserializer<'_, Error> {
        text.into_deserializer()
    }

    #[test]
    fn a_decimal_is_what_is_written_or_nothing() {
        for (written, meant) in [("0.25", "0.25"), ("7", "7"), ("-1.50", "-1.50"), ("0.000001", "0.000001")] {
            assert_eq!(decimal(text(written)).unwrap().to_string(), meant);
        }
        let long = "1.10000000000000000000000000000000000000001";
        for wrong in
            [long, "1e3", "1_0", "+1", " 1", "1.", ".5", "1.2.3", "", "-", "NaN", "٣", "99999999999999999999999999999"]
        {
            assert!(decimal(text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_instant_is_whole_and_of_this_calendar() {
        assert_eq!(instant(text("2026-11-01T01:00:00.5+01:00")).unwrap().to_rfc3339(), "2026-11-01T00:00:00.500+00:00");
        for wrong in
            ["2026-11-01", "+262142-12-31T23:59:59Z", "2026-11-01T00:00:00", "2026-11-01T00:00:00.0000005Z", "now"]
        {
            assert!(instant(text(wrong)).is_err(), "{wrong}");
        }
    }
}

//! Kinds of values that settings have: secrets, durations, sizes.

use serde::{Deserialize, Serialize};

/// A password or key. Shows itself to nobody by accident: not in `Debug`, not in errors.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides `secret`.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True when nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(empty)" } else { "Secret(set)" })
    }
}

/// `#[serde(with = "runtime::config::duration")]`: a [`std::time::Duration`] as `"300ms"`, `"2s"`, `"5m"`, `"1h"`, `"3d"`.
pub mod duration {
    use super::{Deserialize, Serialize};
    use serde::{Deserializer, Serializer, de::Error as _};
    use std::time::Duration;

    const UNITS: [(&str, u64); 6] =
        [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000), ("d", 86_400_000_000)];

    /// Reads a duration: a whole number and a unit.
    ///
    /// # Errors
    /// Anything else, with an example of what is meant.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let refused =
            || format!("{text:?} is not a duration; write a whole number and us, ms, s, m, h or d, e.g. \"300ms\"");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refused())?;
        let (_, micros) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(refused)?;
        number.checked_mul(*micros).map(Duration::from_micros).ok_or_else(refused)
    }

    /// Writes a duration with the largest unit that fits; below a microsecond it is cut.
    pub fn format(duration: Duration) -> String {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let fitting = UNITS.iter().rev().find(|(_, unit)| micros >= *unit && micros.is_multiple_of(*unit));
        match fitting {
            Some((name, unit)) => format!("{}{name}", micros / unit),
            None => "0s".into(),
        }
    }

    /// For serde.
    ///
    /// # Errors
    /// See [`parse`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// For serde.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        format(*duration).serialize(serializer)
    }
}

/// `#[serde(with = "runtime::config::byte_size")]`: a `u64` of bytes as `4096`, `"64KiB"`, `"256MiB"`, `"2GiB"`.
pub mod byte_size {
    use super::{Deserialize, Serialize};
    use serde::{Deserializer, Serializer, de::Error as _};

    const UNITS: [(&str, u64); 5] = [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

    /// Reads a size: a whole number and a unit, or only a number of bytes.
    ///
    /// # Errors
    /// Anything else, with an example of what is meant.
    pub fn parse(text: &str) -> Result<u64, String> {
        let refused = || format!("{text:?} is not a size; write a whole number and B, KiB, MiB or GiB, e.g. \"64MiB\"");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refused())?;
        let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(refused)?;
        number.checked_mul(*bytes).ok_or_else(refused)
    }

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number of bytes, or a size like \"64MiB\"")]
    enum Form {
        Bytes(u64),
        Text(String),
    }

    /// For serde.
    ///
    /// # Errors
    /// See [`parse`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(bytes),
            Form::Text(text) => parse(&text).map_err(D::Error::custom),
        }
    }

    /// For serde: a number of bytes.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.serialize(serializer)
    }
}

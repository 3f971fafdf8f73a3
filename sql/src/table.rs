//! The raw tables, and the kinds of rows in them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A raw table: what one data topic holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Tokens that were counted: what bills.
    Tokens,
    /// Requests that ended: what explains.
    Requests,
}

impl Table {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Tokens, Self::Requests];

    /// Its name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Requests => "requests",
        }
    }

    /// The topic that it holds.
    pub const fn topic(self) -> &'static str {
        match self {
            Self::Tokens => "tollgate.tokens.v1",
            Self::Requests => "tollgate.requests.v1",
        }
    }

    /// The deduplication token of a chunk: where it begins and nothing else. `retry` above 0 is for a part that the
    /// engine lost after it had kept the token.
    pub fn token(self, partition: i32, first: i64, retry: u32) -> String {
        let token = format!("{}/{partition}/{first}", self.topic());
        if retry == 0 { token } else { format!("{token}/r{retry}") }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a row of a raw table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A folded record.
    #[default]
    Data,
    /// A dead letter.
    Dead,
    /// How far a source is.
    Source,
    /// The chunk itself.
    Chunk,
}

impl Kind {
    /// The number in the tables' Enum8.
    pub(crate) const fn code(self) -> i8 {
        match self {
            Self::Data => 1,
            Self::Dead => 2,
            Self::Source => 3,
            Self::Chunk => 4,
        }
    }

    /// The kind with this number.
    pub(crate) fn of(code: i8) -> Option<Self> {
        [Self::Data, Self::Dead, Self::Source, Self::Chunk].into_iter().find(|kind| kind.code() == code)
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i8(self.code())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = i8::deserialize(deserializer)?;
        Self::of(code).ok_or_else(|| D::Error::custom(format!("rows of the unknown kind {code}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_only_where_its_chunk_begins() {
        assert_eq!(Table::Tokens.token(3, 1_000, 0), "tollgate.tokens.v1/3/1000");
        assert_eq!(Table::Requests.token(0, 0, 2), "tollgate.requests.v1/0/0/r2");
    }
}

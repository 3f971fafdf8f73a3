//! Typed ids: slugs that people choose, and UUIDs that processes make.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use uuid::Uuid;

/// The longest slug, in bytes.
pub const SLUG_MAX: usize = 64;

/// Why a text is no slug.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SlugError {
    /// Nothing at all.
    #[error("an id must not be empty: use 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-'")]
    Empty,
    /// Longer than [`SLUG_MAX`].
    #[error("an id has at most 64 bytes, this one has {0}")]
    TooLong(usize),
    /// A character outside of the set, or a first one that is neither letter nor digit.
    #[error("{0:?} is not allowed here in an id: use a-z, A-Z, 0-9, '.', '_', '-', and begin with a letter or a digit")]
    Character(char),
}

fn check_slug(text: &str) -> Result<(), SlugError> {
    if text.is_empty() {
        return Err(SlugError::Empty);
    }
    if text.len() > SLUG_MAX {
        return Err(SlugError::TooLong(text.len()));
    }
    let allowed = |(at, c): (usize, char)| c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '.' | '_' | '-'));
    match text.char_indices().find(|&pair| !allowed(pair)) {
        Some((_, c)) => Err(SlugError::Character(c)),
        None => Ok(()),
    }
}

macro_rules! slug {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes `text`: 1 to 64 of `a-z A-Z 0-9 . _ -`, a letter or a digit first.
            pub fn new(text: &str) -> Result<Self, SlugError> {
                check_slug(text).map(|()| Self(text.into()))
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = SlugError;
            fn from_str(text: &str) -> Result<Self, SlugError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

slug!(
    /// Who is billed.
    TenantId
);
slug!(
    /// A tenant's project: a line of its usage.
    ProjectId
);
slug!(
    /// A model's public name.
    ModelId
);
slug!(
    /// A version of a model.
    ModelVersion
);
slug!(
    /// A plan: limits and prices that tenants share.
    PlanId
);
slug!(
    /// A server that answers for a model.
    ReplicaId
);
slug!(
    /// Replicas of one class of GPU.
    PoolId
);
slug!(
    /// A class of GPU: `h100`, `l40s`.
    GpuClass
);

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

key!(
    /// An API key's id: never the key itself.
    ApiKeyId
);
key!(
    /// One client call, a UUIDv7.
    RequestId
);
key!(
    /// One event, the same on every resend.
    EventId
);
key!(
    /// A spool directory, which outlives its process.
    SpoolId
);
key!(
    /// One start of the process that owns a spool.
    SourceId
);

impl EventId {
    /// The id of an event that recovery writes: a UUIDv5 of where it stands, so that recovering twice, or on a cloned
    /// volume, gives the same bytes. The source is the namespace, `topic/partition/seq` the name.
    pub fn of_recovery(source: SourceId, topic: &str, partition: i32, seq: u64) -> Self {
        Self(Uuid::new_v5(&source.0, format!("{topic}/{partition}/{seq}").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_slug() {
        for good in ["a", "llama-3.1-8b", "A_b.9", &"x".repeat(64)] {
            assert_eq!(TenantId::new(good).unwrap().as_str(), good);
        }
        assert_eq!(TenantId::new(""), Err(SlugError::Empty));
        assert_eq!(TenantId::new(&"x".repeat(65)), Err(SlugError::TooLong(65)));
        assert_eq!(TenantId::new("-a"), Err(SlugError::Character('-')));
        assert_eq!(TenantId::new("a/b"), Err(SlugError::Character('/')));
        assert_eq!(TenantId::new("ä"), Err(SlugError::Character('ä')));
    }

    #[test]
    fn the_id_of_a_recovered_event_is_fixed() {
        let source = SourceId(Uuid::from_u128(7));
        let id = EventId::of_recovery(source, "tollgate.tokens.v1", 3, 41);
        assert_eq!(id, EventId::of_recovery(source, "tollgate.tokens.v1", 3, 41));
        assert_ne!(id, EventId::of_recovery(source, "tollgate.tokens.v1", 3, 42));
        assert_eq!(id.0.get_version_num(), 5);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_whole_or_refused(text in "\\PC{0,80}") {
            if let Ok(id) = TenantId::new(&text) {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert!(text.len() <= SLUG_MAX);
            }
        }
    }
}

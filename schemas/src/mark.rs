//! Marks: records with a null value whose headers say how far a source is. Foreign readers skip them.

use std::str::FromStr;

use ledger::ids::{SourceId, SpoolId};
use ledger::time::Micros;
use thiserror::Error;

/// The header that names the kind of mark.
pub const KIND: &str = "tollgate-mark";
const SPOOL: &str = "spool";
const SOURCE: &str = "source";
const WATERMARK: &str = "watermark";
const SEQ_HIGH: &str = "seq_high";
const NEXT: &str = "next";
const SEQ: &str = "seq";

/// What a source says about itself in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Each second, unspooled: nothing earlier than the watermark will come, and all up to `seq_high` was sent.
    Heartbeat {
        /// The spool.
        spool: SpoolId,
        /// Its source.
        source: SourceId,
        /// Nothing that occurred before it will come from this source.
        watermark: Micros,
        /// The highest number that was acknowledged in this partition; 0 when there is none.
        seq_high: u64,
    },
    /// The source has ended; `next` is the one after it in the same spool. Numbered like a record.
    SourceClosed {
        /// The spool.
        spool: SpoolId,
        /// The source that ended.
        source: SourceId,
        /// The source that follows.
        next: SourceId,
        /// Its number in this partition.
        seq: u64,
    },
    /// A clean stop: all was shipped, nothing is open. Numbered like a record.
    SpoolDrained {
        /// The spool.
        spool: SpoolId,
        /// The source that stopped.
        source: SourceId,
        /// Its number in this partition.
        seq: u64,
    },
}

/// Why headers are no mark.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MarkError {
    /// A null value without the header that names a kind.
    #[error("a record without a value has no header {KIND:?}")]
    NoKind,
    /// A kind that is not known.
    #[error("{0:?} is no kind of mark: was it written by a newer Tollgate?")]
    UnknownKind(String),
    /// A header that is missing, twice there, or not what it should be.
    #[error("the header {0:?} of a mark is missing, twice there or malformed")]
    Header(&'static str),
}

impl Mark {
    /// The headers that carry it.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let with = |kind: &str, spool: SpoolId, source: SourceId, rest: &[(&'static str, String)]| {
            let mut headers = vec![(KIND, kind.to_owned()), (SPOOL, spool.to_string()), (SOURCE, source.to_string())];
            headers.extend_from_slice(rest);
            headers
        };
        match *self {
            Self::Heartbeat { spool, source, watermark, seq_high } => {
                let rest = [(WATERMARK, watermark.0.to_string()), (SEQ_HIGH, seq_high.to_string())];
                with("heartbeat", spool, source, &rest)
            }
            Self::SourceClosed { spool, source, next, seq } => {
                with("source_closed", spool, source, &[(NEXT, next.to_string()), (SEQ, seq.to_string())])
            }
            Self::SpoolDrained { spool, source, seq } => {
                with("spool_drained", spool, source, &[(SEQ, seq.to_string())])
            }
        }
    }

    /// Reads the headers of a record without a value.
    pub fn from_headers(headers: &[(&str, &[u8])]) -> Result<Self, MarkError> {
        let kind = text(headers, KIND).map_err(|_| MarkError::NoKind)?;
        let spool = || value(headers, SPOOL).map(SpoolId);
        let source = || value(headers, SOURCE).map(SourceId);
        match kind {
            "heartbeat" => Ok(Self::Heartbeat {
                spool: spool()?,
                source: source()?,
                watermark: Micros(value(headers, WATERMARK)?),
                seq_high: value(headers, SEQ_HIGH)?,
            }),
            "source_closed" => Ok(Self::SourceClosed {
                spool: spool()?,
                source: source()?,
                next: SourceId(value(headers, NEXT)?),
                seq: value(headers, SEQ)?,
            }),
            "spool_drained" => Ok(Self::SpoolDrained { spool: spool()?, source: source()?, seq: value(headers, SEQ)? }),
            other => Err(MarkError::UnknownKind(other.to_owned())),
        }
    }
}

/// The one header of a name, as text.
fn text<'a>(headers: &[(&str, &'a [u8])], name: &'static str) -> Result<&'a str, MarkError> {
    let mut found = headers.iter().filter(|(key, _)| *key == name);
    match (found.next(), found.next()) {
        (Some((_, bytes)), None) => std::str::from_utf8(bytes).map_err(|_| MarkError::Header(name)),
        _ => Err(MarkError::Header(name)),
    }
}

fn value<T: FromStr>(headers: &[(&str, &[u8])], name: &'static str) -> Result<T, MarkError> {
    text(headers, name)?.parse().map_err(|_| MarkError::Header(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn read(headers: &[(&'static str, String)]) -> Result<Mark, MarkError> {
        let bytes: Vec<_> = headers.iter().map(|(key, text)| (*key, text.as_bytes())).collect();
        Mark::from_headers(&bytes)
    }

    proptest! {
        #[test]
        fn a_mark_comes_back_whole_and_misses_no_header(a in any::<u128>(), b in any::<u128>(), c in any::<u128>(), time in any::<i64>(), seq in any::<u64>()) {
            let (spool, source, next) = (SpoolId(Uuid::from_u128(a)), SourceId(Uuid::from_u128(b)), SourceId(Uuid::from_u128(c)));
            for mark in [
                Mark::Heartbeat { spool, source, watermark: Micros(time), seq_high: seq },
                Mark::SourceClosed { spool, source, next, seq },
                Mark::SpoolDrained { spool, source, seq },
            ] {
                let headers = mark.headers();
                prop_assert_eq!(read(&headers), Ok(mark));
                for gone in 0..headers.len() {
                    let mut fewer = headers.clone();
                    fewer.remove(gone);
                    prop_assert!(read(&fewer).is_err());
                    let mut twice = headers.clone();
                    twice.push(headers[gone].clone());
                    prop_assert!(read(&twice).is_err());
                }
            }
        }
    }

    #[test]
    fn what_is_no_mark_is_said() {
        assert_eq!(Mark::from_headers(&[]), Err(MarkError::NoKind));
        assert_eq!(Mark::from_headers(&[(KIND, b"later")]), Err(MarkError::UnknownKind("later".into())));
        let bad = [(KIND, b"heartbeat".as_slice()), (SPOOL, b"x")];
        assert_eq!(Mark::from_headers(&bad), Err(MarkError::Header(SPOOL)));
    }
}

//! Faults: their one textual form, and which of the armed ones strikes a request.
//!
//! The form is `name` or `name:number` or `name:number:number`, the same in settings, at `PUT /simulator/faults`, in the
//! header `x-simulator-fault`, and in a prompt as `[[fault:…]]`:
//!
//! | form | what happens |
//! |---|---|
//! | `refuse` | the connection is closed before any byte of an answer |
//! | `stall:AFTER:MS` | silence of MS milliseconds (0: for ever) after AFTER events (0: before the status line) |
//! | `die_mid_stream:AFTER` | the connection is closed after AFTER events, with no end of the chunked body (whole answers: after half the body) |
//! | `reset_mid_stream:AFTER` | the same with a TCP reset |
//! | `no_done:AFTER` | the body ends properly after AFTER events, without the rest and without `[DONE]` |
//! | `malformed:AFTER` | event AFTER is cut in the middle of its JSON, the others are whole |
//! | `status:CODE` | an error answer of that status (500 has the engine's own words) |
//! | `overload` | 503, the engine is busy |
//! | `no_usage` | no usage, asked for or not |
//! | `error_mid_stream:AFTER` | the engine dies: `data: {"error": …}` then `[DONE]` in a 200 stream (messages: an `error` event; responses: the connection just closes; whole answers: 500) |
//! | `abort:AFTER` | the server drains: the choices end with `finish_reason` `abort` after AFTER tokens each, with partial usage (vectors: 500) |
//! | `slow_drip:BYTES:MS` | BYTES bytes at a time, MS milliseconds between |
//! | `unhealthy` | `/health` answers 503; requests are served |

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// One way of failing. See the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Close before any byte of an answer.
    Refuse,
    /// Fall silent for `ms` milliseconds (0: for ever) after `after` events.
    Stall {
        /// Events before the silence; 0 is before the status line.
        after: u32,
        /// Milliseconds; 0 is for ever.
        ms: u64,
    },
    /// Close after so many events.
    Die {
        /// Events before the end.
        after: u32,
        /// A TCP reset instead of an orderly close.
        reset: bool,
    },
    /// End the body properly, but early.
    NoDone {
        /// Events before the end.
        after: u32,
    },
    /// Break one event's JSON.
    Malformed {
        /// Events before the broken one.
        after: u32,
    },
    /// Answer with an error status.
    Status(
        /// The HTTP status.
        u16,
    ),
    /// Answer 503 as a full engine does.
    Overload,
    /// Never tell usage.
    NoUsage,
    /// The engine dies: an error event and `[DONE]`.
    ErrorMidStream {
        /// Events before the error.
        after: u32,
    },
    /// The server drains: `finish_reason` is `abort`.
    Abort {
        /// Tokens of each choice before the end.
        after: u32,
    },
    /// A few bytes at a time.
    SlowDrip {
        /// Bytes at a time.
        bytes: u32,
        /// Milliseconds between.
        ms: u64,
    },
    /// `/health` answers 503.
    Unhealthy,
}

impl Fault {
    /// The name without its numbers: what `/simulator/requests` gives as the outcome.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Stall { .. } => "stall",
            Self::Die { reset: false, .. } => "die_mid_stream",
            Self::Die { reset: true, .. } => "reset_mid_stream",
            Self::NoDone { .. } => "no_done",
            Self::Malformed { .. } => "malformed",
            Self::Status(_) => "status",
            Self::Overload => "overload",
            Self::NoUsage => "no_usage",
            Self::ErrorMidStream { .. } => "error_mid_stream",
            Self::Abort { .. } => "abort",
            Self::SlowDrip { .. } => "slow_drip",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match *self {
            Self::Refuse | Self::Overload | Self::NoUsage | Self::Unhealthy => Ok(()),
            Self::Stall { after, ms } => write!(f, ":{after}:{ms}"),
            Self::SlowDrip { bytes, ms } => write!(f, ":{bytes}:{ms}"),
            Self::Status(code) => write!(f, ":{code}"),
            Self::Die { after, .. }
            | Self::NoDone { after }
            | Self::Malformed { after }
            | Self::ErrorMidStream { after }
            | Self::Abort { after } => write!(f, ":{after}"),
        }
    }
}

/// A fault's text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no fault: {reason}; see the table in embedded::vllm::faults")]
pub struct FaultError {
    text: String,
    reason: String,
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let wrong = |reason: &str| FaultError { text: text.to_owned(), reason: reason.to_owned() };
        let mut parts = text.trim().split(':');
        let name = parts.next().unwrap_or_default();
        let numbers: Vec<u64> = parts
            .map(|part| part.parse().map_err(|_| wrong("its parts after the name are whole numbers")))
            .collect::<Result<_, _>>()?;
        if numbers.len() > 2 {
            return Err(wrong("it has at most two numbers"));
        }
        let number = |index: usize, default: u64| numbers.get(index).copied().unwrap_or(default);
        let small = |index, default| u32::try_from(number(index, default)).map_err(|_| wrong("a number is too big"));
        let after = small(0, 0)?;
        Ok(match name {
            "refuse" => Self::Refuse,
            "stall" => Self::Stall { after, ms: number(1, 0) },
            "die_mid_stream" => Self::Die { after, reset: false },
            "reset_mid_stream" => Self::Die { after, reset: true },
            "no_done" => Self::NoDone { after },
            "malformed" => Self::Malformed { after },
            "status" => match number(0, 500) {
                code @ 400..=599 => Self::Status(u16::try_from(code).unwrap_or(500)),
                _ => return Err(wrong("a status is from 400 to 599")),
            },
            "overload" => Self::Overload,
            "no_usage" => Self::NoUsage,
            "error_mid_stream" => Self::ErrorMidStream { after },
            "abort" => Self::Abort { after },
            "slow_drip" => Self::SlowDrip { bytes: small(0, 1)?.max(1), ms: number(1, 1) },
            "unhealthy" => Self::Unhealthy,
            _ => return Err(wrong("no such name")),
        })
    }
}

impl Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// When an armed fault strikes, counted over the requests it applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Every request.
    #[default]
    Always,
    /// The next so many requests, then never again.
    Times(u32),
    /// Every k-th request (the k-th, the 2k-th, …).
    Every(u32),
}

/// A fault waiting for requests. JSON: `{"fault": "die_mid_stream:3", "when": {"times": 1}, "model": "llama-3.1-8b"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmedFault {
    /// What happens.
    pub fault: Fault,
    /// How often; always, if absent.
    #[serde(default)]
    pub when: When,
    /// Only for requests that name this model; all, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// The armed faults and how many requests each has seen.
#[derive(Debug, Default)]
pub(super) struct FaultBook {
    armed: Mutex<Vec<(ArmedFault, u64)>>,
}

impl FaultBook {
    pub(super) fn new(faults: Vec<ArmedFault>) -> Self {
        let book = Self::default();
        book.replace(faults);
        book
    }

    /// Puts these in the place of all that were armed, with fresh counters.
    pub(super) fn replace(&self, faults: Vec<ArmedFault>) {
        *super::lock(&self.armed) = faults.into_iter().map(|fault| (fault, 0)).collect();
    }

    pub(super) fn armed(&self) -> Vec<ArmedFault> {
        super::lock(&self.armed).iter().map(|(fault, _)| fault.clone()).collect()
    }

    /// Whether `/health` is to say 503.
    pub(super) fn unhealthy(&self) -> bool {
        super::lock(&self.armed).iter().any(|(armed, _)| armed.fault == Fault::Unhealthy)
    }

    /// The first armed fault that strikes this request; all that apply to it count it.
    pub(super) fn strike(&self, model: &str) -> Option<Fault> {
        let mut struck = None;
        let mut armed = super::lock(&self.armed);
        for (fault, seen) in armed.iter_mut() {
            if fault.fault == Fault::Unhealthy || fault.model.as_deref().is_some_and(|only| only != model) {
                continue;
            }
            *seen += 1;
            let hit = match fault.when {
                When::Always => true,
                When::Times(times) => *seen <= u64::from(times),
                When::Every(every) => every > 0 && *seen % u64::from(every) == 0,
            };
            if hit && struck.is_none() {
                struck = Some(fault.fault);
            }
        }
        armed.retain(|(fault, seen)| !matches!(fault.when, When::Times(times) if *seen >= u64::from(times)));
        struck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_every_fault_reads_back() {
        for text in [
            "refuse",
            "stall:2:500",
            "die_mid_stream:3",
            "reset_mid_stream:1",
            "no_done:4",
            "malformed:0",
            "status:500",
            "overload",
            "no_usage",
            "error_mid_stream:3",
            "abort:5",
            "slow_drip:7:5",
            "unhealthy",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in ["", "explode", "status:200", "stall:x", "stall:1:2:3", "die_mid_stream:-1"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn counters_decide_which_request_is_struck() {
        let armed = |fault: Fault, when| ArmedFault { fault, when, model: None };
        let book = FaultBook::new(vec![armed(Fault::Refuse, When::Every(3)), armed(Fault::Overload, When::Times(1))]);
        let struck: Vec<_> = (0..6).map(|_| book.strike("m")).collect();
        assert_eq!(struck, [Some(Fault::Overload), None, Some(Fault::Refuse), None, None, Some(Fault::Refuse)]);
        assert_eq!(book.armed().len(), 1);
        book.replace(vec![ArmedFault { model: Some("other".into()), ..armed(Fault::NoUsage, When::Always) }]);
        assert_eq!((book.strike("m"), book.strike("other")), (None, Some(Fault::NoUsage)));
    }
}

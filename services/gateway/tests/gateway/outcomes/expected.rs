//! The outcomes, and what each must come to at each endpoint.

use std::time::Duration;

use super::subjects::{Subject, Voice};
use crate::world::Setup;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete,
    NoUsage,
    /// The client goes: before any byte, between two, and with the end in its hands.
    GoneBefore,
    GoneWithin,
    GoneAtTheEnd,
    /// The replica closes the connection.
    Refused,
    /// The model does something else.
    NotServed,
    TooMany,
    Failed,
    Overloaded,
    DiesBefore,
    DiesWithin,
    ResetWithin,
    StallsBefore,
    StallsWithin,
    MalformedAtOnce,
    MalformedWithin,
    EndsEarly,
    EngineDies,
    Aborted,
    /// The time of the whole request is over.
    Deadline,
    /// The gateway stops, and waits or does not.
    DrainedInTime,
    Drained,
}

impl Outcome {
    pub(super) fn fault(self, subject: &Subject) -> Option<String> {
        let within = subject.before_third + 1;
        Some(match self {
            Self::Complete | Self::GoneAtTheEnd | Self::NotServed => return None,
            Self::NoUsage => "no_usage".to_owned(),
            Self::GoneBefore | Self::StallsBefore => "stall:0:0".to_owned(),
            Self::GoneWithin | Self::StallsWithin | Self::Deadline | Self::Drained => format!("stall:{within}:0"),
            Self::DrainedInTime => format!("stall:{within}:100"),
            Self::Refused => "refuse".to_owned(),
            Self::TooMany => "status:429".to_owned(),
            Self::Failed => "status:500".to_owned(),
            Self::Overloaded => "overload".to_owned(),
            Self::DiesBefore => "die_mid_stream:0".to_owned(),
            Self::DiesWithin => format!("die_mid_stream:{within}"),
            Self::ResetWithin => format!("reset_mid_stream:{within}"),
            Self::MalformedAtOnce => "malformed:0".to_owned(),
            Self::MalformedWithin => format!("malformed:{within}"),
            Self::EndsEarly => format!("no_done:{within}"),
            Self::EngineDies => format!("error_mid_stream:{within}"),
            Self::Aborted => "abort:3".to_owned(),
        })
    }

    pub(super) fn setup(self, setup: &mut Setup) {
        let deadlines = &mut setup.settings.deadlines;
        match self {
            Self::StallsBefore => {
                let soon = Duration::from_millis(300);
                (deadlines.first_byte, deadlines.whole_answer) = (soon, soon);
            }
            // Long enough for a busy machine to do what comes before.
            Self::StallsWithin => deadlines.idle = Duration::from_secs(2),
            Self::Deadline => deadlines.total = Duration::from_secs(3),
            Self::Drained => setup.settings.drain_seconds = 0,
            _ => {}
        }
    }
}

/// What the client gets of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The engine's own answer, whole.
    Engine,
    /// The engine's own error, as an answer.
    EngineError,
    /// Our error, as an answer.
    Refusal,
    /// What came, then our error.
    Broken,
    /// What came, then the engine's own error.
    EngineBroken,
    /// What came.
    Cut,
    /// Nothing.
    Nothing,
}

/// What is billed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bill {
    /// No request and no token.
    Nothing,
    /// The engine's last word.
    Final,
    /// What was counted when it was cut.
    Counted,
    /// An estimate of a whole answer.
    Estimated,
}

/// What a cell must come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) body: Body,
    pub(super) bill: Bill,
}

pub(super) fn expected(subject: &Subject, outcome: Outcome) -> Expected {
    let of = |status, reason, code, body, bill| Expected { status, reason, code, body, bill };
    let unanswered = |status, reason, code| of(status, reason, Some(code), Body::Refusal, Bill::Nothing);
    let complete = of(200, "complete", None, Body::Engine, Bill::Final);
    let broke = "upstream_error";
    // A stream whose head went out cannot have another status; a whole answer is held until it is there.
    let cut = |reason, code, bill| {
        if subject.stream { of(200, reason, Some(code), Body::Broken, bill) } else { unanswered(502, reason, code) }
    };
    let late = "deadline_exceeded";
    // The engine's own errors have a code in OpenAI's shape, and a kind in Anthropic's.
    let anthropic = subject.path.starts_with("/v1/messages");
    let own = |status, code, kind| {
        let reason = if status < 500 { "complete" } else { broke };
        of(status, reason, Some(if anthropic { kind } else { code }), Body::EngineError, Bill::Nothing)
    };
    let dead = own(500, "500", "InternalServerError");
    match outcome {
        Outcome::Complete | Outcome::DrainedInTime => complete,
        Outcome::GoneAtTheEnd => Expected { body: Body::Cut, ..complete },
        Outcome::NoUsage if subject.voice == Voice::Free => complete,
        Outcome::NoUsage => Expected { bill: Bill::Estimated, ..complete },
        Outcome::GoneWithin if subject.stream => of(200, "client_cancelled", None, Body::Cut, Bill::Counted),
        Outcome::GoneBefore | Outcome::GoneWithin => of(0, "client_cancelled", None, Body::Nothing, Bill::Nothing),
        Outcome::Refused => unanswered(502, broke, broke),
        // Every model has a tokenizer.
        Outcome::NotServed
            if matches!(subject.path, "/tokenize" | "/v1/tokenize" | "/detokenize" | "/v1/detokenize") =>
        {
            complete
        }
        Outcome::NotServed => unanswered(404, "complete", "endpoint_not_supported"),
        Outcome::TooMany => own(429, "429", "Too Many Requests"),
        Outcome::Failed => dead,
        Outcome::Overloaded => own(503, "503", "Service Unavailable"),
        // The first event is looked at before the client has anything.
        Outcome::DiesBefore | Outcome::MalformedAtOnce => unanswered(502, broke, broke),
        Outcome::DiesWithin | Outcome::ResetWithin | Outcome::MalformedWithin | Outcome::EndsEarly => {
            cut(broke, broke, Bill::Counted)
        }
        Outcome::StallsBefore => unanswered(504, "deadline", late),
        Outcome::StallsWithin | Outcome::Deadline if subject.stream => cut("deadline", late, Bill::Counted),
        Outcome::StallsWithin | Outcome::Deadline => unanswered(504, "deadline", late),
        Outcome::EngineDies if !subject.stream => dead,
        Outcome::EngineDies => match subject.voice {
            // A response of vLLM just breaks off.
            Voice::Responses => cut(broke, broke, Bill::Counted),
            Voice::Messages => of(200, broke, Some("internal_error"), Body::EngineBroken, Bill::Counted),
            _ => of(200, broke, Some("500"), Body::EngineBroken, Bill::Counted),
        },
        // A server that drains tells it in its own words, with its own counts; there is no half of a vector, and
        // vLLM's responses do not tell.
        Outcome::Aborted => match subject.voice {
            Voice::Vectors => dead,
            Voice::Free | Voice::Responses => complete,
            _ => Expected { reason: broke, ..complete },
        },
        Outcome::Drained if subject.stream => of(200, "drained", None, Body::Cut, Bill::Counted),
        Outcome::Drained => of(0, "drained", None, Body::Nothing, Bill::Nothing),
    }
}

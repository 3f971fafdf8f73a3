//! Holds what was recorded, and what the client got, against what the engine knows.

use embedded::vllm::RequestRecord;
use serde_json::Value;

use super::expected::{Bill, Body, Expected, Outcome};
use super::subjects::{Subject, Voice};
use crate::world::{Answer, Recorded};

/// Holds what was recorded against what the engine knows.
pub(super) fn billed(
    cell: &str,
    subject: &Subject,
    outcome: Outcome,
    bill: Bill,
    recorded: &Recorded,
    oracle: &RequestRecord,
) {
    let (sums, cached) = (recorded.sums(), recorded.billed().cached_input);
    let got = (sums, recorded.requests(), recorded.estimated());
    let free = subject.voice == Voice::Free;
    match bill {
        Bill::Nothing => assert_eq!(got, ((0, 0), 0, false), "{cell}"),
        Bill::Final if free => assert_eq!(got, ((0, 0), 1, false), "{cell}"),
        Bill::Final => {
            let wanted = (oracle.prompt_tokens, oracle.generated_tokens);
            assert_eq!((got, cached), ((wanted, 1, false), oracle.cached_tokens), "{cell} {oracle:?}");
            assert!(oracle.prompt_tokens > 0 && (oracle.generated_tokens > 0) == subject.generates(), "{cell}");
        }
        Bill::Counted => {
            // What was handed to the gateway is what it counted; of a reset, some of it may be lost.
            let ((input, output), ..) = got;
            let prompt =
                if subject.voice == Voice::Responses { subject.estimated_input() } else { oracle.prompt_tokens };
            // The engine goes on after the event that nobody can read, and is not heard.
            let known = if outcome == Outcome::MalformedWithin { 3 } else { oracle.wire_tokens };
            assert!(
                output == known || (outcome == Outcome::ResetWithin && output <= known),
                "{cell} {output} {oracle:?}"
            );
            if outcome != Outcome::ResetWithin || output > 0 {
                assert_eq!((input, got.1, got.2), (prompt, 1, true), "{cell}");
                assert!(output >= 3 || outcome == Outcome::ResetWithin, "{cell}: {output}");
            }
            assert!(output <= oracle.generated_tokens, "{cell}");
        }
        Bill::Estimated => {
            let ((input, output), ..) = got;
            assert_eq!((input, got.1, got.2), (subject.estimated_input(), 1, true), "{cell}");
            if subject.stream {
                // Each token is a piece, but that which ends a text by itself.
                assert!(
                    (oracle.generated_tokens - 1..=oracle.generated_tokens).contains(&output),
                    "{cell} {output} {oracle:?}"
                );
            } else {
                let least = u64::from(subject.generates());
                assert!((least..=oracle.generated_tokens).contains(&output), "{cell} {output} {oracle:?}");
            }
        }
    }
}

/// Our error is in the words that the endpoint's clients know.
fn is_our_error(cell: &str, subject: &Subject, json: &Value, code: &str) {
    let error = &json["error"];
    assert_eq!(error["code"], code, "{cell} {json}");
    assert!(error["message"].as_str().is_some_and(|words| words.len() > 10), "{cell}");
    if subject.path.starts_with("/v1/messages") {
        assert_eq!(json["type"], "error", "{cell}");
    }
}

pub(super) fn said(
    cell: &str,
    subject: &Subject,
    expected: &Expected,
    answer: Option<&Answer>,
    oracle: &RequestRecord,
) {
    let Some(answer) = answer else { return assert_eq!(expected.body, Body::Nothing, "{cell}") };
    assert_eq!(answer.status.as_u16(), expected.status, "{cell} {}", answer.body);
    assert_eq!(answer.ended, expected.body != Body::Cut, "{cell}");
    let kind = if subject.stream && expected.status == 200 { "text/event-stream" } else { "application/json" };
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with(kind), "{cell}");
    assert_eq!(answer.header("retry-after").is_some(), expected.status == 503, "{cell}");
    match expected.body {
        Body::Engine | Body::Cut | Body::Nothing => {}
        Body::EngineError => assert!(answer.json()["error"].is_object(), "{cell}"),
        Body::Refusal => is_our_error(cell, subject, &answer.json(), expected.code.unwrap()),
        Body::Broken => {
            let (came, error) = answer.body.rsplit_once("data: {").unwrap();
            let (error, end) = error.split_once("\n\n").unwrap();
            let json = serde_json::from_str(&format!("{{{error}")).unwrap();
            is_our_error(cell, subject, &json, expected.code.unwrap());
            let done = matches!(subject.voice, Voice::Chat | Voice::Completions);
            assert_eq!(end, if done { "data: [DONE]\n\n" } else { "" }, "{cell}");
            // All that the engine handed out and that is whole came before it.
            let came = events(came);
            let fault = oracle.fault.as_deref().unwrap();
            let malformed = fault.strip_prefix("malformed:").map(|at| at.parse().unwrap());
            assert!(
                came == malformed.unwrap_or(oracle.wire_events) || fault.starts_with("reset"),
                "{cell}: {came} {oracle:?}"
            );
        }
        Body::EngineBroken => {
            let done = u64::from(subject.voice != Voice::Messages);
            assert_eq!(events(&answer.body), oracle.wire_events + done, "{cell} {}", answer.body);
            assert!(answer.body.contains("\"error\":") && !answer.body.contains("upstream_error"), "{cell}");
        }
    }
}

pub(super) fn events(seen: &str) -> u64 {
    seen.matches("\n\n").count() as u64
}

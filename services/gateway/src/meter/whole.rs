//! An answer that is not streamed: held until its usage is read and recorded, then passed on as it is.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::Instant;

use super::counts::Totals;
use super::said::{Malformed, Said};
use crate::admit::prompt::{Prompt, tokens_of};
use crate::endpoint::{Endpoint, Wire};
use crate::forward::Incoming;

/// Why a whole answer did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The connection broke, or the answer is longer than allowed.
    Broken,
    /// The replica was silent for too long, or the request's time is over.
    Deadline,
}

/// The whole body.
pub(crate) async fn collect(mut body: Incoming, limit: u64, idle: Duration, total: Instant) -> Result<Bytes, Cut> {
    let mut whole = BytesMut::new();
    loop {
        let until = total.min(Instant::now() + idle);
        let frame = tokio::time::timeout_at(until, body.frame()).await.map_err(|_| Cut::Deadline)?;
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let Ok(data) = frame.map_err(|_| Cut::Broken)?.into_data() else { continue };
        if whole.len() as u64 + data.len() as u64 > limit {
            return Err(Cut::Broken);
        }
        whole.extend_from_slice(&data);
    }
}

/// What a whole answer says of itself.
pub(crate) fn read(wire: Wire, body: &[u8]) -> Result<Said, Malformed> {
    let said = wire.whole(std::str::from_utf8(body).map_err(|_| Malformed)?)?;
    if said.is_answer { Ok(said) } else { Err(Malformed) }
}

/// Members that hold what a model wrote.
const WRITTEN: [&str; 9] =
    ["content", "text", "reasoning", "reasoning_content", "thinking", "refusal", "arguments", "name", "input"];

/// What an answer probably is, in tokens, where the engine tells no usage: by its text, and at least one for each choice.
pub(crate) fn estimate(endpoint: &Endpoint, prompt: &Prompt, said: &Said, body: &[u8]) -> Totals {
    let input = prompt.estimate();
    if !endpoint.generates() {
        return Totals { input, ..Totals::default() };
    }
    let answer = serde_json::from_slice(body).unwrap_or_default();
    let output = tokens_of(written(&answer, false)).max(said.choices.len() as u64);
    Totals { input, output, reasoning: 0 }
}

/// Bytes of what a model wrote.
fn written(value: &Value, by_model: bool) -> u64 {
    match value {
        Value::String(text) if by_model => text.len() as u64,
        Value::Array(items) => items.iter().map(|item| written(item, by_model)).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| written(value, WRITTEN.contains(&name.as_str()))).sum()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::said::Usage;
    use super::*;
    use crate::endpoint::{CHAT, EMBEDDINGS, MESSAGES, RESPONSES};

    #[test]
    fn what_the_engine_does_not_count_is_estimated_from_its_text() {
        let prompt = Prompt { prompts: 1, bytes: 41, ..Prompt::default() };
        for (endpoint, answer, output) in [
            (&CHAT, json!({"id": "x", "choices": [{"message": {"role": "assistant", "content": "nine char"}}]}), 3),
            (&CHAT, json!({"choices": [{"text": ""}, {"text": ""}]}), 2),
            (
                &MESSAGES,
                json!({"type": "message", "role": "assistant", "content": [{"type": "text", "text": "eightchr"}]}),
                2,
            ),
            (
                &RESPONSES,
                json!({"object": "response", "output": [{"type": "message", "content": [{"type": "output_text", "text": "five5"}]}]}),
                2,
            ),
            (&EMBEDDINGS, json!({"data": [{"embedding": "AAAA"}]}), 0),
        ] {
            let body = answer.to_string();
            let said = read(endpoint.wire, body.as_bytes()).unwrap();
            assert_eq!(said.usage, None);
            let wanted = Totals { input: 11, output, reasoning: 0 };
            assert_eq!(estimate(endpoint, &prompt, &said, body.as_bytes()), wanted, "{body}");
        }
        assert_eq!(read(Wire::Free, b"{\"count\":3}").unwrap().usage, Some(Usage::default()), "it costs nothing");
        assert_eq!(read(Wire::Chunks, b"{}"), Err(Malformed));
        assert_eq!(read(Wire::Chunks, b"\xff"), Err(Malformed));
    }
}

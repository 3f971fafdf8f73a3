//! An answer that is not streamed: held until its usage is read and recorded, then passed on as it is.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::counts::{LONG_TOKEN, Totals};
use super::said::{Malformed, Said};
use crate::admit::prompt::Prompt;
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

/// Members of an answer with what a model made; others repeat what it was asked.
const MADE: [&str; 3] = ["choices", "content", "output"];
/// Members within them that hold what it wrote.
const WRITTEN: [&str; 9] =
    ["content", "text", "reasoning", "reasoning_content", "thinking", "refusal", "arguments", "name", "input"];

/// What an answer is at least, in tokens, where the engine tells no usage: nobody is billed for more than what came. It is
/// what its text is at least, and one for each choice, whose end is a token too.
pub(crate) fn estimate(endpoint: &Endpoint, prompt: &Prompt, said: &Said, body: &[u8]) -> Totals {
    let input = prompt.estimate();
    if !endpoint.generates() {
        return Totals { input, ..Totals::default() };
    }
    let answer: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let mut written = Written::default();
    for (name, value) in answer.iter().filter(|(name, _)| MADE.contains(&name.as_str())) {
        written.member(name, value);
    }
    Totals { input, output: written.tokens().max(said.choices.len() as u64), reasoning: 0 }
}

/// What a model wrote, to be counted without its tokenizer.
#[derive(Debug, Default)]
struct Written {
    words: u64,
    /// Of the words: a token may stand for any number of spaces.
    bytes: u64,
}

impl Written {
    /// The least number of tokens. No tokenizer in use makes one token of two words, and most make more; where nothing tells
    /// words apart (Chinese, code without spaces) a token is still hardly longer than [`LONG_TOKEN`].
    fn tokens(&self) -> u64 {
        self.words.max(self.bytes / LONG_TOKEN)
    }

    fn text(&mut self, text: &str) {
        for word in text.split_whitespace() {
            self.words += 1;
            self.bytes += word.len() as u64;
        }
    }

    fn member(&mut self, name: &str, value: &Value) {
        match value {
            // What a tool is called with was written as JSON.
            Value::Object(_) if name == "input" => self.text(&value.to_string()),
            _ => self.read(value, WRITTEN.contains(&name)),
        }
    }

    fn read(&mut self, value: &Value, by_model: bool) {
        match value {
            Value::String(text) if by_model => self.text(text),
            Value::Array(items) => items.iter().for_each(|item| self.read(item, by_model)),
            Value::Object(fields) => {
                // Some engines have the same text under its old name and its new one.
                let twice = fields.get("reasoning").is_some_and(Value::is_string);
                let once = fields.iter().filter(|(name, _)| !twice || *name != "reasoning_content");
                once.for_each(|(name, value)| self.member(name, value));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::said::Usage;
    use super::*;
    use crate::endpoint::{CHAT, EMBEDDINGS, MESSAGES, RESPONSES};

    #[test]
    fn what_the_engine_does_not_count_is_no_more_than_its_words() {
        let prompt = Prompt { prompts: 1, bytes: 41, ..Prompt::default() };
        for (endpoint, answer, output) in [
            (
                &CHAT,
                json!({"id": "x", "choices": [{"message": {"role": "assistant", "content": " nine\n  char "}}]}),
                2,
            ),
            (&CHAT, json!({"choices": [{"text": ""}, {"text": ""}]}), 2),
            (&CHAT, json!({"choices": [{"text": "東京特許許可局局長".repeat(8)}]}), 27),
            (
                &CHAT,
                json!({"model": "two words", "choices": [{"message": {"content": null, "reasoning": "one two", "reasoning_content": "one two",
                    "tool_calls": [{"id": "no words", "function": {"name": "three", "arguments": "{\"four\": 5}"}}]},
                    "logprobs": {"content": [{"token": "one", "bytes": [111], "top_logprobs": []}]}}]}),
                5,
            ),
            (
                &MESSAGES,
                json!({"type": "message", "role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "tool_use", "name": "two", "input": {"three": "four five"}}]}),
                4,
            ),
            (
                &RESPONSES,
                json!({"object": "response", "instructions": "say", "tools": [{"name": "no word of an answer"}],
                    "output": [{"type": "message", "content": [{"type": "output_text", "text": "one two"}]}]}),
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

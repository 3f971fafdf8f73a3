//! Anthropic's wire: messages, whole and as events. Its input tokens do not hold the cached ones; ours do.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::said::{Choice, Malformed, Part, Place, Said, Usage, error_of, finish_of, object};

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    content_block: Option<Block<'a>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stop_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partial_json: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stop_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Words {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

/// Usage, and what it is of.
fn usage(raw: &RawValue) -> Option<(Usage, Part)> {
    let words: Words = object(raw.get()).ok()?;
    if words.input_tokens.is_none() && words.output_tokens.is_none() {
        return None;
    }
    let cached_tokens = words.cache_read_input_tokens.unwrap_or_default();
    let created = words.cache_creation_input_tokens.unwrap_or_default();
    let prompt_tokens = words.input_tokens.unwrap_or_default().saturating_add(cached_tokens).saturating_add(created);
    let completion_tokens = words.output_tokens.unwrap_or_default();
    let usage = Usage { prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens: 0 };
    Some((usage, if words.input_tokens.is_none() { Part::Output } else { Part::Both }))
}

/// The end of a message. One that is given up has no reason of its own: vLLM tells it as null.
fn ended(stop_reason: Option<&RawValue>) -> Choice {
    let reason = stop_reason.map_or("null", RawValue::get);
    let aborted = matches!(reason, "null" | "\"abort\"");
    Choice { finished: true, aborted, finish: finish_of(reason), ..Choice::default() }
}

impl Said {
    fn take(&mut self, raw: Option<&RawValue>) {
        if let Some((usage, part)) = raw.and_then(usage) {
            (self.usage, self.part) = (Some(usage), part);
        }
    }
}

/// Reads the JSON of an event.
pub(crate) fn event(json: &str) -> Result<Said, Malformed> {
    let event: Event<'_> = object(json)?;
    let mut said = Said { error: error_of(event.error), ..Said::default() };
    match event.kind.as_ref() {
        "message_start" => {
            // What it says of the output is nothing yet, or a guess.
            said.take(event.message.and_then(|message| message.usage));
            said.part = Part::Input;
            said.is_answer = true;
            said.choices.push(Choice::default());
        }
        "content_block_start" => {
            // The name of a tool was generated; an empty text was not.
            let named = event.content_block.is_some_and(|block| !matches!(block.kind.as_ref(), "text" | "thinking"));
            said.is_answer = true;
            said.choices.push(Choice { has_content: named, ..Choice::default() });
        }
        "content_block_delta" => {
            let delta = event.delta.ok_or(Malformed)?;
            let text = [delta.text, delta.thinking, delta.partial_json].into_iter().flatten().next();
            let bytes = text.map_or(0, |text| (text.get().len() as u64).saturating_sub(2));
            said.is_answer = true;
            said.choices.push(Choice { has_content: bytes > 0, bytes, ..Choice::default() });
        }
        "message_delta" => {
            said.take(event.usage);
            if said.usage.is_some() {
                said.place = Place::Last;
            }
            said.is_answer = true;
            said.choices.push(ended(event.delta.and_then(|delta| delta.stop_reason)));
        }
        "message_stop" => said.place = Place::End,
        _ => {}
    }
    Ok(said)
}

/// Reads a whole message.
pub(crate) fn whole(json: &str) -> Result<Said, Malformed> {
    let event: Event<'_> = object(json)?;
    let mut said = Said { is_answer: event.content.is_some(), error: error_of(event.error), ..Said::default() };
    said.take(event.usage);
    said.choices.push(ended(event.stop_reason));
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_part_of_the_prompt() {
        let start =
            event(r#"{"type":"message_start","message":{"usage":{"input_tokens":372,"output_tokens":0}}}"#).unwrap();
        assert_eq!((start.is_answer, start.place, start.usage.unwrap().prompt_tokens), (true, Place::Within, 372));
        let last = r#"{"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"input_tokens":116,"output_tokens":4,"cache_creation_input_tokens":5,"cache_read_input_tokens":256}}"#;
        let last = event(last).unwrap();
        let wanted = Usage { prompt_tokens: 377, completion_tokens: 4, cached_tokens: 256, reasoning_tokens: 0 };
        assert_eq!((last.place, last.usage, last.part), (Place::Last, Some(wanted), Part::Both));
        let older = event(r#"{"type":"message_delta","delta":{},"usage":{"output_tokens":9}}"#).unwrap();
        assert_eq!((older.part, older.usage.unwrap().completion_tokens), (Part::Output, 9));
        assert_eq!(event(r#"{"type":"message_stop"}"#).unwrap().place, Place::End);
    }

    #[test]
    fn pieces_are_what_was_generated() {
        let of = |json| event(json).unwrap().choices[0];
        assert_eq!(
            of(r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"zake"},"index":0}"#).bytes,
            4
        );
        assert_eq!(of(r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"a"}}"#).bytes, 1);
        assert!(
            !of(r#"{"type":"content_block_delta","delta":{"type":"signature_delta","signature":"a"}}"#).has_content
        );
        assert!(!of(r#"{"type":"content_block_start","content_block":{"type":"text","text":""}}"#).has_content);
        assert!(of(r#"{"type":"content_block_start","content_block":{"type":"tool_use","name":"f"}}"#).has_content);
        assert_eq!(event(r#"{"type":"ping"}"#).unwrap(), Said::default());
        let error = event(r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#).unwrap();
        assert_eq!(error.error.as_deref(), Some("overloaded_error"));
        assert!(whole(r#"{"type":"message","content":[],"stop_reason":null}"#).unwrap().choices[0].aborted);
        assert!(!whole(r#"{"type":"message","content":[],"stop_reason":"end_turn"}"#).unwrap().choices[0].aborted);
        assert!(!whole("{}").unwrap().is_answer);
        assert_eq!(event("[]").unwrap_err(), Malformed);
    }
}

//! What an event of a stream, or a whole answer, says of itself: the same words for every wire.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{chunk, messages, responses};
use crate::endpoint::Wire;
use crate::object::{NotJson, Walk, members};

/// What is no part of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Usage: cached tokens lie inside of the prompt's, reasoning inside of the completion's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cached_tokens: u64,
    pub reasoning_tokens: u64,
}

/// A choice, as far as counting needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub index: u64,
    /// Whether it carries anything that was generated.
    pub has_content: bool,
    /// Bytes of text in it.
    pub bytes: u64,
    /// Whether nothing of it follows.
    pub finished: bool,
    /// Whether the engine gave it up: it was told to stop.
    pub aborted: bool,
    /// Why nothing of it follows, where the engine says so.
    pub finish: Option<&'static str>,
}

/// Why choices end, in the words of every wire.
const FINISHES: [&str; 15] = [
    "stop",
    "length",
    "tool_calls",
    "function_call",
    "content_filter",
    "abort",
    "eos_token",
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "completed",
    "incomplete",
    "failed",
    "cancelled",
];

/// Why a choice ends; a word that is not known could be anything.
pub(super) fn finish_of(word: &str) -> Option<&'static str> {
    let known = FINISHES.into_iter().find(|known| *known == word.trim_matches('"'));
    (word != "null").then_some(known.unwrap_or("other"))
}

/// Where an event stands in its stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// Others follow.
    #[default]
    Within,
    /// It has the engine's last word on usage; only the end follows.
    Last,
    /// Nothing follows.
    End,
}

/// What usage is of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Part {
    #[default]
    Both,
    /// Nothing was generated yet.
    Input,
    /// The input was told before.
    Output,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub place: Place,
    pub usage: Option<Usage>,
    pub part: Part,
    pub choices: Vec<Choice>,
    /// Whether it is of an answer. With a choice, the model is at work.
    pub is_answer: bool,
    /// Its error's code, if it is one.
    pub error: Option<String>,
    /// Where in the JSON a member `usage` stands, with its comma, in order: a client gets that only when it asks.
    pub shown_usage: Vec<Range<usize>>,
}

impl Wire {
    /// Reads the JSON of an event of a stream.
    pub(crate) fn event(self, json: &str) -> Result<Said, Malformed> {
        match self {
            Self::Messages => messages::event(json),
            Self::Responses => responses::event(json),
            Self::Chunks | Self::Vectors | Self::Free | Self::Own => chunk::read(json),
        }
    }

    /// Reads an answer that is not streamed.
    pub(crate) fn whole(self, json: &str) -> Result<Said, Malformed> {
        match self {
            Self::Chunks => chunk::read(json),
            Self::Messages => messages::whole(json),
            Self::Responses => responses::whole(json),
            Self::Vectors => chunk::vectors(json),
            Self::Free | Self::Own => members(json).map_err(|_| Malformed).map(|_| Said {
                is_answer: true,
                usage: Some(Usage::default()),
                ..Said::default()
            }),
        }
    }
}

/// What a JSON object says; a list of the same values in order is none.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Malformed> {
    if !json.trim_start().starts_with('{') {
        return Err(Malformed);
    }
    serde_json::from_str(json).map_err(|_| Malformed)
}

/// Usage in OpenAI's words, old (`prompt_tokens`) and new (`input_tokens`). Usage of another shape is no usage: the count is
/// then an estimate, and said to be one.
pub(crate) fn usage(json: &str) -> Option<Usage> {
    let (mut prompt, mut completion, mut all, mut cached, mut reasoning) = (None, None, None, None, None);
    let mut walk = Walk::of(json);
    walk.object(|walk, key, _| {
        match key.as_ref() {
            "prompt_tokens" | "input_tokens" => prompt = walk.count()?,
            "completion_tokens" | "output_tokens" => completion = walk.count()?,
            "total_tokens" => all = walk.count()?,
            "prompt_tokens_details" | "input_tokens_details" => cached = detail(walk, "cached_tokens")?,
            "completion_tokens_details" | "output_tokens_details" => {
                reasoning = detail(walk, "reasoning_tokens")?.or(reasoning);
            }
            // SGLang has it here.
            "reasoning_tokens" => reasoning = reasoning.or(walk.count()?),
            _ => drop(walk.value()?),
        }
        Ok(())
    })
    .and_then(|()| walk.end())
    .ok()?;
    let completion_tokens = completion.unwrap_or_default();
    // Of what is only read, some servers tell the total alone.
    let total = || all.map(|total: u64| total.saturating_sub(completion_tokens));
    Some(Usage {
        prompt_tokens: prompt.or_else(total)?,
        completion_tokens,
        cached_tokens: cached.unwrap_or_default(),
        reasoning_tokens: reasoning.unwrap_or_default(),
    })
}

/// A count in an object, if that is there.
fn detail(walk: &mut Walk<'_>, name: &str) -> Result<Option<u64>, NotJson> {
    if !walk.is_object() {
        return walk.count();
    }
    let mut found = None;
    walk.object(|walk, key, _| {
        if key == name {
            found = walk.count()?;
            return Ok(());
        }
        walk.value().map(drop)
    })?;
    Ok(found)
}

/// The code of an error, if there is one.
pub(super) fn error_of(error: Option<&RawValue>) -> Option<String> {
    error.map(|error| code_of(error.get()))
}

/// The code of an error: a number with one front end, a text with the other; else what kind it is of.
pub(crate) fn code_of(error: &str) -> String {
    let fields = members(error).unwrap_or_default();
    let of = |name: &str| fields.iter().find(|member| member.key == name && !member.is_null());
    let code = of("code").or_else(|| of("type")).map_or("upstream_error", |member| member.value.trim_matches('"'));
    code.chars().take(64).collect()
}

/// Where members `usage` stand, each with the comma before it; where nothing that stays comes before, with the one after it.
#[derive(Debug, Default)]
pub(super) struct UsageSpans {
    spans: Vec<Range<usize>>,
    /// One that nothing stays before: whether there is a member after it is not known yet.
    first: Option<Range<usize>>,
    /// Where the last member ended, if one before it stays.
    behind: Option<usize>,
}

impl UsageSpans {
    /// The next member of the object.
    pub(super) fn see(&mut self, key: &str, place: Range<usize>) {
        if let Some(first) = self.first.take() {
            self.spans.push(first.start..place.start);
        }
        match (key, self.behind) {
            ("usage", Some(behind)) => self.spans.push(behind..place.end),
            ("usage", None) => {
                self.first = Some(place);
                return;
            }
            _ => {}
        }
        self.behind = Some(place.end);
    }

    /// There are no more.
    pub(super) fn all(mut self) -> Vec<Range<usize>> {
        self.spans.extend(self.first);
        self.spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stripped(json: &str) -> String {
        let mut kept = json.to_owned();
        let mut spans = UsageSpans::default();
        let found = members(json).unwrap_or_default();
        found.iter().for_each(|member| spans.see(&member.key, member.start..member.end()));
        spans.all().into_iter().rev().for_each(|span| kept.replace_range(span, ""));
        kept
    }

    #[test]
    fn the_usage_goes_and_nothing_else() {
        for (json, left) in [
            (r#"{"a":1,"usage":{"prompt_tokens":3},"b":2}"#, r#"{"a":1,"b":2}"#),
            (r#"{ "usage" : null , "b":2}"#, r#"{ "b":2}"#),
            (r#"{"usage":{}}"#, "{}"),
            (r#"{"a":"usage","b":{"usage":1},"usage":{"x":"}"} }"#, r#"{"a":"usage","b":{"usage":1} }"#),
            (r#"{"usage":1,"usage":2,"a":3}"#, r#"{"a":3}"#),
            (r#"{"a":3}"#, r#"{"a":3}"#),
        ] {
            assert_eq!(stripped(json), left);
        }
    }

    #[test]
    fn usage_is_read_in_the_words_of_every_engine() {
        let of = |prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens| {
            Some(Usage { prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens })
        };
        for (json, wanted) in [
            (
                r#"{"prompt_tokens":17,"total_tokens":18,"completion_tokens":1,"completion_tokens_details":null}"#,
                of(17, 1, 0, 0),
            ),
            (
                r#"{"prompt_tokens":17,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":16,"created_cache_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}"#,
                of(17, 8, 16, 2),
            ),
            (
                r#"{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":null,"reasoning_tokens":2}"#,
                of(9, 3, 0, 2),
            ),
            (
                r#"{"input_tokens":372,"input_tokens_details":{"cached_tokens":256},"output_tokens":4,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":376}"#,
                of(372, 4, 256, 1),
            ),
            (r#"{"prompt_tokens":8,"total_tokens":8}"#, of(8, 0, 0, 0)),
            (r#"{"total_tokens":8}"#, of(8, 0, 0, 0)),
            (r#"{"prompt_tokens":-1}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(usage(json), wanted, "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            for wire in [Wire::Chunks, Wire::Messages, Wire::Responses, Wire::Vectors] {
                let (_, _) = (wire.event(&text), wire.whole(&text));
            }
            let _ = stripped(&text);
        }

        #[test]
        fn what_is_left_is_the_same_json_without_usage(
            before in prop::collection::btree_map("[a-t]{1,3}", "\\PC{0,6}", 0..3), after in prop::collection::btree_map("[v-z]{1,3}", any::<i32>(), 0..3), tokens in any::<u64>()
        ) {
            let mut fields: Vec<String> = before.iter().map(|(k, v)| format!("{k:?}:{}", serde_json::Value::from(v.as_str()))).collect();
            fields.push(format!("\"usage\": {{\"prompt_tokens\":{tokens}}}"));
            fields.extend(after.iter().map(|(k, v)| format!("{k:?} : {v}")));
            let json = format!("{{{}}}", fields.join(","));
            let left = stripped(&json);
            let left: serde_json::Value = serde_json::from_str(&left).unwrap();
            let mut wanted: serde_json::Value = serde_json::from_str(&json).unwrap();
            wanted.as_object_mut().unwrap().remove("usage");
            prop_assert_eq!(left, wanted);
        }
    }
}

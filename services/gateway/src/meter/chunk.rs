//! One chunk of a streamed answer, or a whole one: its usage, its choices, and its bytes without the usage.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::object::{Member, members};

/// What is no chunk of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Usage as the engine says it: cached tokens lie inside of the prompt's, reasoning inside of the completion's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    pub prompt_tokens: u64,
    #[serde(deserialize_with = "or_zero")]
    pub completion_tokens: u64,
    #[serde(rename = "prompt_tokens_details", deserialize_with = "cached")]
    pub cached_tokens: u64,
    #[serde(rename = "completion_tokens_details", deserialize_with = "reasoning")]
    pub reasoning_tokens: u64,
}

fn or_zero<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn cached<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    struct Details {
        cached_tokens: Option<u64>,
    }
    Ok(Option::<Details>::deserialize(from)?.and_then(|details| details.cached_tokens).unwrap_or_default())
}

fn reasoning<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    struct Details {
        reasoning_tokens: Option<u64>,
    }
    Ok(Option::<Details>::deserialize(from)?.and_then(|details| details.reasoning_tokens).unwrap_or_default())
}

/// A choice, as far as counting needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub index: u64,
    /// Whether it carries anything that was generated.
    pub has_content: bool,
    /// Whether the engine gave it up: it was told to stop.
    pub aborted: bool,
}

/// What a chunk, or a whole answer, says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub usage: Option<Usage>,
    pub choices: Vec<Choice>,
    /// Whether it has a list of choices at all.
    pub is_answer: bool,
    /// Its error's code, if it is one.
    pub error: Option<String>,
    has_usage: bool,
}

#[derive(Deserialize)]
struct RawChoice<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

impl Chunk {
    /// Reads the JSON of a chunk.
    pub(crate) fn read(json: &str) -> Result<Self, Malformed> {
        let mut chunk = Self { usage: None, choices: Vec::new(), is_answer: false, error: None, has_usage: false };
        for member in members(json).map_err(|_| Malformed)? {
            match member.key.as_ref() {
                "usage" => {
                    chunk.has_usage = true;
                    // Usage of another shape is no usage: the count is then an estimate, and said to be one.
                    chunk.usage = serde_json::from_str::<Option<Usage>>(member.value).unwrap_or_default();
                }
                "choices" if !member.is_null() => {
                    let choices: Vec<RawChoice<'_>> = serde_json::from_str(member.value).map_err(|_| Malformed)?;
                    chunk.choices = choices.iter().map(Choice::of).collect();
                    chunk.is_answer = true;
                }
                "error" if !member.is_null() => chunk.error = Some(code_of(member.value)),
                _ => {}
            }
        }
        Ok(chunk)
    }

    /// Whether it is the chunk after all others, which has the sum over all choices.
    pub(crate) fn is_sum(&self) -> bool {
        self.is_answer && self.choices.is_empty() && self.usage.is_some()
    }

    /// Whether it has a member `usage` at all.
    pub(crate) fn has_usage(&self) -> bool {
        self.has_usage
    }
}

impl Choice {
    fn of(raw: &RawChoice<'_>) -> Self {
        let filled = |value: &str| !matches!(value, "null" | "\"\"" | "[]" | "{}");
        let in_object = |object: &str| {
            let filled = |member: &Member<'_>| member.key != "role" && filled(member.value);
            members(object).is_ok_and(|fields| fields.iter().any(filled))
        };
        let text = raw.text.is_some_and(|text| filled(text.get()));
        let spoken = [raw.delta, raw.message].into_iter().flatten().any(|part| in_object(part.get()));
        let aborted = raw.finish_reason.is_some_and(|reason| reason.get() == "\"abort\"");
        Self { index: raw.index, has_content: text || spoken, aborted }
    }
}

/// The code of an error: a number with one front end, a text with the other; else what kind it is of.
fn code_of(error: &str) -> String {
    let fields = members(error).unwrap_or_default();
    let of = |name: &str| fields.iter().find(|member| member.key == name && !member.is_null());
    let code = of("code").or_else(|| of("type")).map_or("upstream_error", |member| member.value.trim_matches('"'));
    code.chars().take(64).collect()
}

/// An event's bytes without the member `usage` of its JSON, which stands at `json`; all else as it was.
pub(crate) fn without_usage(event: &Bytes, json: std::ops::Range<usize>) -> Bytes {
    let Some(Ok(text)) = event.get(json.clone()).map(std::str::from_utf8) else { return event.clone() };
    let Ok(found) = members(text) else { return event.clone() };
    let mut kept = BytesMut::with_capacity(event.len());
    let (mut at, mut follows) = (0, false);
    for (place, member) in found.iter().enumerate() {
        if member.key != "usage" {
            follows = true;
            continue;
        }
        // With the comma before it; where nothing that stays comes before, with the one after it.
        let before = place.checked_sub(1).and_then(|before| found.get(before)).filter(|_| follows);
        let (from, to) = match (before, found.get(place + 1)) {
            (Some(before), _) => (before.end(), member.end()),
            (None, Some(after)) => (member.start, after.start),
            (None, None) => (member.start, member.end()),
        };
        kept.extend_from_slice(event.get(json.start + at..json.start + from).unwrap_or_default());
        at = to;
    }
    let head = event.get(..json.start).unwrap_or_default();
    let tail = event.get(json.start + at..).unwrap_or_default();
    [head, &kept, tail].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stripped(json: &str) -> String {
        let event = Bytes::from(format!("data: {json}\n\n"));
        String::from_utf8(without_usage(&event, 6..6 + json.len()).to_vec()).unwrap()
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
            assert_eq!(stripped(json), format!("data: {left}\n\n"));
        }
    }

    #[test]
    fn both_front_ends_are_read() {
        let python = r#"{"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":null}],"usage":{"prompt_tokens":17,"total_tokens":18,"completion_tokens":1,"completion_tokens_details":null}}"#;
        let chunk = Chunk::read(python).unwrap();
        assert_eq!(chunk.choices, [Choice { index: 1, has_content: true, aborted: false }]);
        assert_eq!(chunk.usage, Some(Usage { prompt_tokens: 17, completion_tokens: 1, ..Usage::default() }));
        let sum = r#"{"choices":[],"usage":{"prompt_tokens":17,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":16},"completion_tokens_details":{"reasoning_tokens":2}}}"#;
        let sum = Chunk::read(sum).unwrap();
        assert!(sum.is_sum());
        assert_eq!(
            sum.usage,
            Some(Usage { prompt_tokens: 17, completion_tokens: 8, cached_tokens: 16, reasoning_tokens: 2 })
        );
        let role = Chunk::read(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#).unwrap();
        assert!(!role.choices[0].has_content);
        for (error, code) in [
            (r#"{"error": {"message": "m", "code": 500}}"#, "500"),
            (r#"{"error":{"type":"server_error","code":"engine"}}"#, "engine"),
            (r#"{"error":"Unauthorized"}"#, "upstream_error"),
        ] {
            assert_eq!(Chunk::read(error).unwrap().error.as_deref(), Some(code));
        }
        for bad in ["{\"choices\":[{", "[]", "{\"choices\":7}", ""] {
            assert_eq!(Chunk::read(bad), Err(Malformed), "{bad}");
        }
        assert_eq!(Chunk::read(r#"{"choices":[],"usage":{"prompt_tokens":-1}}"#).unwrap().usage, None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _ = Chunk::read(&text);
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
            let left: serde_json::Value = serde_json::from_str(left.strip_prefix("data: ").unwrap()).unwrap();
            let mut wanted: serde_json::Value = serde_json::from_str(&json).unwrap();
            wanted.as_object_mut().unwrap().remove("usage");
            prop_assert_eq!(left, wanted);
        }
    }
}

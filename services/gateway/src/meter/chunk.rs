//! OpenAI's first wire: chunks of chats and completions, their whole answers, and vectors and scores.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::said::{Choice, Malformed, Place, Said, code_of, usage, usage_spans};
use crate::object::{Member, members};

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

/// Reads a chunk, or a whole answer: they are alike.
pub(crate) fn read(json: &str) -> Result<Said, Malformed> {
    let found = members(json).map_err(|_| Malformed)?;
    let mut said = Said { shown_usage: usage_spans(&found), ..Said::default() };
    for member in found {
        match member.key.as_ref() {
            "usage" => said.usage = usage(member.value),
            "choices" if !member.is_null() => {
                let choices: Vec<RawChoice<'_>> = serde_json::from_str(member.value).map_err(|_| Malformed)?;
                said.choices = choices.iter().map(choice).collect();
                said.is_answer = true;
            }
            "error" if !member.is_null() => said.error = Some(code_of(member.value)),
            _ => {}
        }
    }
    // The chunk after all others has the sum over all choices, and none of them.
    if said.is_answer && said.choices.is_empty() && said.usage.is_some() {
        said.place = Place::Last;
    }
    Ok(said)
}

/// Reads vectors or scores: a list of them, alone or beside their usage.
pub(crate) fn vectors(json: &str) -> Result<Said, Malformed> {
    if json.trim_start().starts_with('[') {
        serde_json::from_str::<Vec<&RawValue>>(json).map_err(|_| Malformed)?;
        return Ok(Said { is_answer: true, ..Said::default() });
    }
    let mut said = Said::default();
    for member in members(json).map_err(|_| Malformed)? {
        match member.key.as_ref() {
            "usage" => said.usage = usage(member.value),
            "data" | "results" => said.is_answer |= member.value.starts_with('['),
            "error" if !member.is_null() => said.error = Some(code_of(member.value)),
            _ => {}
        }
    }
    Ok(said)
}

fn choice(raw: &RawChoice<'_>) -> Choice {
    let filled = |value: &str| !matches!(value, "null" | "\"\"" | "[]" | "{}");
    let mut choice = Choice { index: raw.index, ..Choice::default() };
    let mut take = |value: &str| {
        choice.has_content |= filled(value);
        if let Some(text) = value.strip_prefix('"') {
            choice.bytes += text.len() as u64 - 1;
        }
    };
    if let Some(text) = raw.text {
        take(text.get());
    }
    for part in [raw.delta, raw.message].into_iter().flatten() {
        let fields = members(part.get()).unwrap_or_default();
        fields.iter().filter(|field: &&Member<'_>| field.key != "role").for_each(|field| take(field.value));
    }
    let reason = raw.finish_reason.map(RawValue::get).filter(|reason| *reason != "null");
    (choice.finished, choice.aborted) = (reason.is_some(), reason == Some("\"abort\""));
    choice
}

#[cfg(test)]
mod tests {
    use super::super::said::Usage;
    use super::*;

    #[test]
    fn both_front_ends_are_read() {
        let python = r#"{"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":null}],"usage":{"prompt_tokens":17,"total_tokens":18,"completion_tokens":1,"completion_tokens_details":null}}"#;
        let chunk = read(python).unwrap();
        assert_eq!(chunk.choices, [Choice { index: 1, has_content: true, bytes: 1, ..Choice::default() }]);
        assert_eq!(chunk.usage, Some(Usage { prompt_tokens: 17, completion_tokens: 1, ..Usage::default() }));
        let sum = read(r#"{"choices":[],"usage":{"prompt_tokens":17,"completion_tokens":8}}"#).unwrap();
        assert_eq!((sum.place, sum.usage.unwrap().completion_tokens), (Place::Last, 8));
        let role = read(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#).unwrap();
        assert!(!role.choices[0].has_content && role.is_answer);
        let last = read(r#"{"choices":[{"index":0,"text":"ab","finish_reason":"abort"}]}"#).unwrap().choices[0];
        assert_eq!((last.bytes, last.finished, last.aborted), (2, true, true));
        for (error, code) in [
            (r#"{"error": {"message": "m", "code": 500}}"#, "500"),
            (r#"{"error":{"type":"server_error","code":"engine"}}"#, "engine"),
            (r#"{"error":"Unauthorized"}"#, "upstream_error"),
        ] {
            assert_eq!(read(error).unwrap().error.as_deref(), Some(code));
        }
        for bad in ["{\"choices\":[{", "[]", "{\"choices\":7}", ""] {
            assert_eq!(read(bad), Err(Malformed), "{bad}");
        }
        assert_eq!(read(r#"{"choices":[],"usage":{"prompt_tokens":-1}}"#).unwrap().usage, None);
    }

    #[test]
    fn vectors_are_a_list_wherever_it_stands() {
        let scored = vectors(r#"{"results":[{"index":0}],"usage":{"prompt_tokens":8,"total_tokens":8}}"#).unwrap();
        assert_eq!((scored.is_answer, scored.usage.unwrap().prompt_tokens), (true, 8));
        assert!(vectors(r#" [{"score":0.5}]"#).unwrap().is_answer);
        assert!(!vectors(r#"{"object":"list"}"#).unwrap().is_answer);
        assert_eq!(vectors("[1,").unwrap_err(), Malformed);
    }
}

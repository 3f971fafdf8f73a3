//! OpenAI's first wire: chunks of chats and completions, their whole answers, and vectors and scores.

use serde_json::value::RawValue;

use super::said::{Choice, Malformed, Place, Said, UsageSpans, code_of, finish_of, usage};
use crate::object::{NotJson, Walk, members};

/// Reads a chunk, or a whole answer: they are alike.
pub(crate) fn read(json: &str) -> Result<Said, Malformed> {
    let (mut said, mut spans) = (Said::default(), UsageSpans::default());
    let mut walk = Walk::of(json);
    walk.object(|walk, key, start| {
        match key.as_ref() {
            "choices" if walk.is_list() => {
                said.choices.clear();
                walk.list(|walk| choice(walk).map(|choice| said.choices.push(choice)))?;
                said.is_answer = true;
            }
            "choices" => walk.null()?,
            "usage" => said.usage = usage(walk.value()?),
            "error" => {
                let error = walk.value()?;
                if error != "null" {
                    said.error = Some(code_of(error));
                }
            }
            _ => drop(walk.value()?),
        }
        spans.see(&key, start..walk.at());
        Ok(())
    })
    .and_then(|()| walk.end())
    .map_err(|_| Malformed)?;
    said.shown_usage = spans.all();
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

fn choice(walk: &mut Walk<'_>) -> Result<Choice, NotJson> {
    let mut choice = Choice::default();
    walk.object(|walk, key, _| {
        match key.as_ref() {
            "index" => choice.index = walk.count()?.unwrap_or_default(),
            "text" => choice.holds(walk.value()?),
            "delta" | "message" if walk.is_object() => walk.object(|walk, key, _| {
                let value = walk.value()?;
                if key != "role" {
                    choice.holds(value);
                }
                Ok(())
            })?,
            "finish_reason" => {
                let reason = walk.value()?;
                (choice.finished, choice.aborted) = (reason != "null", reason == "\"abort\"");
                choice.finish = finish_of(reason);
            }
            _ => drop(walk.value()?),
        }
        Ok(())
    })?;
    Ok(choice)
}

impl Choice {
    /// It has this value.
    fn holds(&mut self, value: &str) {
        self.has_content |= !matches!(value, "null" | "\"\"" | "[]" | "{}");
        if let Some(text) = value.strip_prefix('"') {
            self.bytes += text.len() as u64 - 1;
        }
    }
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
        assert_eq!((last.bytes, last.finished, last.aborted, last.finish), (2, true, true, Some("abort")));
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

//! OpenAI's second wire: responses, whole and as events. The last event holds the whole response.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::said::{Choice, Malformed, Place, Said, code_of, error_of, finish_of, object, usage};

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    response: Option<Response<'a>>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl Response<'_> {
    fn said(&self) -> Said {
        let failed = matches!(self.status.as_deref(), Some("failed" | "cancelled"));
        let finish = self.status.as_deref().and_then(finish_of);
        Said {
            usage: self.usage.and_then(|raw| usage(raw.get())),
            is_answer: self.output.is_some(),
            choices: vec![Choice { finished: true, aborted: failed, finish, ..Choice::default() }],
            error: error_of(self.error).filter(|_| failed),
            ..Said::default()
        }
    }
}

/// Reads the JSON of an event.
pub(crate) fn event(json: &str) -> Result<Said, Malformed> {
    let event: Event<'_> = object(json)?;
    match event.kind.as_ref() {
        "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
            let said = event.response.unwrap_or_default().said();
            Ok(Said { place: Place::End, ..said })
        }
        // These come before the model is at work.
        "response.created" | "response.in_progress" | "response.queued" => Ok(Said::default()),
        "error" => Ok(Said { error: error_of(event.error).or_else(|| Some(code_of(json))), ..Said::default() }),
        kind if kind.starts_with("response.") => {
            let delta = event.delta.filter(|_| kind.ends_with(".delta")).map_or("", RawValue::get);
            let bytes = delta.strip_prefix('"').map_or(0, |text| text.len() as u64 - 1);
            let choice = Choice { has_content: bytes > 0, bytes, ..Choice::default() };
            Ok(Said { is_answer: true, choices: vec![choice], ..Said::default() })
        }
        _ => Ok(Said { error: error_of(event.error), ..Said::default() }),
    }
}

/// Reads a whole response.
pub(crate) fn whole(json: &str) -> Result<Said, Malformed> {
    Ok(object::<Response<'_>>(json)?.said())
}

#[cfg(test)]
mod tests {
    use super::super::said::Usage;
    use super::*;

    #[test]
    fn the_last_event_holds_the_usage() {
        let last = r#"{"response":{"output":[],"status":"incomplete","error":null,"usage":{"input_tokens":13,"input_tokens_details":{"cached_tokens":2},"output_tokens":6,"output_tokens_details":{"reasoning_tokens":1}}},"type":"response.completed"}"#;
        let said = event(last).unwrap();
        let wanted = Usage { prompt_tokens: 13, completion_tokens: 6, cached_tokens: 2, reasoning_tokens: 1 };
        assert_eq!((said.place, said.usage, said.error), (Place::End, Some(wanted), None));
        let failed = r#"{"type":"response.failed","response":{"status":"failed","output":[],"error":{"code":"server_error","message":"m"}}}"#;
        let failed = event(failed).unwrap();
        assert_eq!((failed.place, failed.error.as_deref()), (Place::End, Some("server_error")));
        assert!(failed.choices[0].aborted);
        for (error, code) in [
            (r#"{"type":"error","code":"dead","message":"m"}"#, "dead"),
            (r#"{"error":{"message":"m","type":"InternalServerError","param":null,"code":500}}"#, "500"),
        ] {
            assert_eq!(event(error).unwrap().error.as_deref(), Some(code));
        }
    }

    #[test]
    fn pieces_are_what_was_generated() {
        for (json, answer, bytes) in [
            (r#"{"type":"response.created","response":{"output":[],"usage":null}}"#, false, None),
            (r#"{"type":"response.output_item.added","item":{"content":[]}}"#, true, Some(0)),
            (r#"{"type":"response.output_text.delta","delta":"zake","logprobs":[]}"#, true, Some(4)),
            (r#"{"type":"response.function_call_arguments.delta","delta":"{}"}"#, true, Some(2)),
            (r#"{"type":"response.output_text.done","text":"zake"}"#, true, Some(0)),
            (r#"{"type":"other.delta","delta":"x"}"#, false, None),
        ] {
            let said = event(json).unwrap();
            assert_eq!((said.is_answer, said.choices.first().map(|choice| choice.bytes)), (answer, bytes), "{json}");
        }
        assert!(!whole("{}").unwrap().is_answer);
        assert_eq!(whole("[]").map(|said| said.is_answer), Err(Malformed));
    }
}

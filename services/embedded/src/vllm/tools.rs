//! Forced tool calls, as the captured model makes them: 56 tokens, most of them in no event, and the arguments `true`.

use serde_json::{Map, Value};

use super::errors::ApiError;
use super::render::quote;
use super::settings::SimulatorSettings;

/// Tokens of a call, the end token included.
pub(super) const CALL_TOKENS: u32 = 56;

/// After so many tokens an event tells the function's name.
const NAME_AT: u64 = 26;

/// After so many tokens an event tells a part of the arguments.
const NAMED_PARTS: &[(u64, &str)] = &[(40, "t"), (41, "r"), (42, "u"), (43, "e")];
const REQUIRED_PARTS: &[(u64, &str)] = &[(40, "t"), (41, "r"), (43, "ue")];

/// The call that a request forces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolCall {
    name: String,
    required: bool,
}

impl ToolCall {
    /// What `tools` and `tool_choice` force: `auto` and `none` give text.
    pub(super) fn find(fields: &Map<String, Value>, settings: &SimulatorSettings) -> Result<Option<Self>, ApiError> {
        let Some(tools) = fields.get("tools").and_then(Value::as_array).filter(|tools| !tools.is_empty()) else {
            return Ok(None);
        };
        let first = tools.iter().find_map(|tool| tool.pointer("/function/name")).and_then(Value::as_str).unwrap_or("");
        let parser = |choice: String| {
            let unset = ApiError::bad(&format!("{choice} requires --tool-call-parser to be set"), None);
            if settings.enable_auto_tool_choice { Ok(()) } else { Err(unset) }
        };
        let choice = fields.get("tool_choice").filter(|choice| !choice.is_null());
        match choice {
            Some(Value::String(word)) if word == "none" => Ok(None),
            Some(Value::String(word)) if word == "required" => {
                parser("tool_choice=\"required\"".to_owned())?;
                Ok(Some(Self { name: first.to_owned(), required: true }))
            }
            Some(Value::Object(named)) => {
                let function = Value::Object(named.clone());
                let name = function.pointer("/function/name").and_then(Value::as_str).unwrap_or(first).to_owned();
                parser(format!("tool_choice=function \"{name}\""))?;
                Ok(Some(Self { name, required: false }))
            }
            _ if settings.enable_auto_tool_choice => Ok(None),
            _ => Err(ApiError::bad(
                "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set",
                None,
            )),
        }
    }

    /// What `finish_reason` says when the call is whole.
    pub(super) fn finish(&self) -> &'static str {
        if self.required { "tool_calls" } else { "stop" }
    }

    /// The delta of the event after so many tokens; most tokens have none.
    pub(super) fn delta(&self, id: &str, generated: u64, finished: bool) -> Option<String> {
        if generated == NAME_AT {
            let (id, name) = (quote(id), quote(&self.name));
            return Some(format!(
                r#"{{"content":null,"tool_calls":[{{"id":{id},"type":"function","index":0,"function":{{"name":{name}}}}}]}}"#
            ));
        }
        let parts = if self.required { REQUIRED_PARTS } else { NAMED_PARTS };
        match parts.iter().find(|(at, _)| *at == generated) {
            Some((_, part)) => Some(format!(
                r#"{{"content":null,"tool_calls":[{{"index":0,"function":{{"arguments":{}}}}}]}}"#,
                quote(part)
            )),
            None => finished.then(|| "{}".to_owned()),
        }
    }

    /// The call in a whole answer, once its name is out.
    pub(super) fn whole(&self, id: &str, generated: u64) -> Option<String> {
        let parts = NAMED_PARTS.iter().filter(|(at, _)| *at <= generated).map(|(_, part)| *part);
        let (id, name, arguments) = (quote(id), quote(&self.name), quote(&parts.collect::<String>()));
        (generated >= NAME_AT).then(|| {
            format!(r#"[{{"id":{id},"type":"function","function":{{"name":{name},"arguments":{arguments}}}}}]"#)
        })
    }
}

//! `/tokenize`, `/detokenize` and `/v1/messages/count_tokens`.

use serde_json::{Map, Value};

use super::errors::{ApiError, shown};
use super::messages;
use super::prompt::{self, Prompt};
use super::render::quote;
use super::request::{flag, unknown_model};
use super::settings::SimulatorSettings;
use super::tasks::Tokens;
use super::tokens::{in_vocabulary, text_of};

/// The answer, and the prompts that it counted.
pub(super) fn answer(
    kind: Tokens,
    fields: &Map<String, Value>,
    settings: &SimulatorSettings,
) -> Result<(String, Vec<Prompt>), ApiError> {
    let chat = if kind == Tokens::Count { Some(messages::as_chat(fields, false)?) } else { None };
    if let Some(model) = unknown_model(fields, settings) {
        return Err(ApiError::model(model, &settings.models));
    }
    match (kind, chat) {
        (Tokens::Detokenize, _) => Ok((detokenize(fields)?, Vec::new())),
        (_, Some(chat)) => {
            let prompt = prompt::chat(&chat, settings.model())?;
            Ok((messages::count(prompt.tokens.len()), vec![prompt]))
        }
        (_, None) => tokenize(fields, settings),
    }
}

fn tokenize(fields: &Map<String, Value>, settings: &SimulatorSettings) -> Result<(String, Vec<Prompt>), ApiError> {
    let prompts = if fields.contains_key("messages") {
        vec![prompt::chat(fields, settings.model())?]
    } else {
        prompt::texts(fields, "prompt")?
    };
    let pieces: Vec<_> = prompts.iter().flat_map(|prompt| &prompt.pieces).collect();
    let ids: Vec<String> = pieces.iter().map(|piece| piece.id.to_string()).collect();
    let strings = if flag(fields, "return_token_strs") {
        let strings: Vec<String> = pieces.iter().map(|piece| quote(&String::from_utf8_lossy(&piece.bytes))).collect();
        format!("[{}]", strings.join(","))
    } else {
        "null".to_owned()
    };
    let text = format!(
        r#"{{"count":{},"max_model_len":{},"tokens":[{}],"token_strs":{strings}}}"#,
        ids.len(),
        settings.max_model_len,
        ids.join(",")
    );
    Ok((text, prompts))
}

fn detokenize(fields: &Map<String, Value>) -> Result<String, ApiError> {
    let place = "body.tokens";
    let ids = match fields.get("tokens") {
        Some(Value::Array(ids)) => ids,
        None => return Err(ApiError::missing("tokens", fields)),
        Some(other) => return Err(ApiError::field("list_type", place, "Input should be a valid list", &shown(other))),
    };
    let mut text = String::new();
    for id in ids {
        match id.as_u64() {
            Some(id) if in_vocabulary(id) => text.push_str(text_of(id)),
            Some(id) => return Err(ApiError::bad(&format!("Token id {id} is out of vocabulary"), None)),
            None => return Err(ApiError::field("int_type", place, "Input should be a valid integer", &shown(id))),
        }
    }
    Ok(format!(r#"{{"prompt":{}}}"#, quote(&text)))
}

//! From messages or prompts to tokens: the chat template of the captured model, and its length checks.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::errors::{ApiError, shown};
use super::tokens::{PromptToken, in_vocabulary, special, tokenize};

/// One prompt.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    pub(super) tokens: Arc<[u32]>,
    /// The text of every token, for `/tokenize`.
    pub(super) pieces: Vec<PromptToken>,
    /// The text as the user wrote it; empty for a prompt of token ids.
    pub(super) text: String,
    /// Characters of what the tokenizer gets to see, template included; absent for token ids.
    characters: Option<usize>,
}

/// Characters that one token may stand for, by vLLM's cheap check before it tokenizes.
const CHARACTERS_PER_TOKEN: usize = 12;

impl Prompt {
    fn new(pieces: Vec<PromptToken>, text: String, characters: Option<usize>) -> Self {
        let tokens = pieces.iter().map(|piece| piece.id).collect();
        Self { tokens, pieces, text, characters }
    }

    /// The cheap check by characters.
    pub(super) fn check_characters(&self, context: u32) -> Result<(), ApiError> {
        let most = usize::try_from(context).unwrap_or(usize::MAX).saturating_mul(CHARACTERS_PER_TOKEN);
        match self.characters.filter(|characters| *characters > most) {
            None => Ok(()),
            Some(characters) => Err(ApiError::parameter(
                &format!(
                    "This model's maximum context length is {context} tokens. However, your prompt contains {characters} characters (more than \
                     {most} characters, which is the upper bound for {context} input tokens). Please reduce the length of the input prompt."
                ),
                "input_text",
                Some(&characters.to_string()),
            )),
        }
    }

    /// Room for the output, at least 1 token. The words of this refusal are not among the captures.
    pub(super) fn check_tokens(&self, context: u32, asked: Option<u32>) -> Result<u32, ApiError> {
        let length = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let wanted = asked.unwrap_or(1);
        match context.checked_sub(length) {
            Some(room) if room >= wanted => Ok(room),
            _ => Err(ApiError::parameter(
                &format!(
                    "This model's maximum context length is {context} tokens. However, you requested {wanted} output tokens and your prompt contains \
                     {length} input tokens, for a total of {} tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
                    u64::from(length) + u64::from(wanted)
                ),
                "input_tokens",
                Some(&length.to_string()),
            )),
        }
    }
}

/// A chat through the template `<|begin|>` (`<|im_start|>role\ncontent<|im_end|>\n`)* `<|im_start|>assistant\n`.
pub(super) fn chat(fields: &Map<String, Value>, model: &str) -> Result<Prompt, ApiError> {
    let messages = match fields.get("messages") {
        Some(Value::Array(messages)) if messages.is_empty() => {
            return Err(ApiError::bad(
                "Cannot apply chat template to an empty conversation. Provide at least one message.",
                None,
            ));
        }
        Some(Value::Array(messages)) => messages,
        other => {
            return Err(ApiError::field(
                "list_type",
                "body.messages",
                "Input should be a valid list",
                &shown(other.unwrap_or(&Value::Null)),
            ));
        }
    };
    let mut pieces = vec![special(0, "<|begin|>")];
    let mut said = String::new();
    if let Some(tools) = fields.get("tools").filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty())) {
        pieces.extend(tokenize(&tools.to_string()));
    }
    for (index, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str);
        let Some(role) = role else {
            return Err(ApiError::field(
                "missing",
                &format!("body.messages.{index}.role"),
                "Field required",
                &shown(message),
            ));
        };
        let content = content(message.get("content"), model)?;
        let role_id = if role == "user" { 429 } else { tokenize(role).first().map_or(0, |token| token.id) };
        pieces.extend([special(2, "<|im_start|>"), special(role_id, role), special(205, "\n")]);
        pieces.extend(tokenize(&content));
        pieces.extend([special(3, "<|im_end|>"), special(205, "\n")]);
        said.push_str(&content);
        said.push('\n');
    }
    pieces.extend([special(2, "<|im_start|>"), special(71, "a"), special(345, "ssistant"), special(205, "\n")]);
    let characters = pieces.iter().map(|piece| characters(&piece.bytes)).sum();
    Ok(Prompt::new(pieces, said, Some(characters)))
}

/// Characters that begin in these bytes (a piece may hold a part of one).
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
}

/// A message's text: a string, or the text of its parts.
fn content(content: Option<&Value>, model: &str) -> Result<String, ApiError> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            for part in parts {
                match part.get("text").and_then(Value::as_str) {
                    Some(text) => texts.push(text),
                    None => return Err(ApiError::bad(&format!("{model} is not a multimodal model"), None)),
                }
            }
            Ok(texts.join("\n"))
        }
        _ => Ok(String::new()),
    }
}

/// The prompts in a field: a text, texts, token ids, or lists of token ids.
pub(super) fn texts(fields: &Map<String, Value>, name: &str) -> Result<Vec<Prompt>, ApiError> {
    let prompts = match fields.get(name) {
        Some(Value::String(text)) => vec![text_prompt(text)],
        Some(Value::Array(list)) if list.iter().all(Value::is_u64) && !list.is_empty() => vec![id_prompt(list, name)?],
        Some(Value::Array(list)) => list.iter().map(|item| list_item(item, name)).collect::<Result<_, _>>()?,
        _ => Vec::new(),
    };
    if prompts.is_empty() || prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
        return Err(ApiError::bad("The decoder prompt cannot be empty", None));
    }
    Ok(prompts)
}

fn list_item(item: &Value, name: &str) -> Result<Prompt, ApiError> {
    let place = format!("body.{name}");
    match item {
        Value::String(text) => Ok(text_prompt(text)),
        Value::Array(ids) => id_prompt(ids, name),
        other => Err(ApiError::field("string_type", &place, "Input should be a valid string", &shown(other))),
    }
}

pub(super) fn text_prompt(text: &str) -> Prompt {
    Prompt::new(tokenize(text), text.to_owned(), Some(text.chars().count()))
}

fn id_prompt(ids: &[Value], name: &str) -> Result<Prompt, ApiError> {
    let place = format!("body.{name}");
    let mut pieces = Vec::with_capacity(ids.len());
    for id in ids {
        match id.as_u64() {
            Some(id) if in_vocabulary(id) => {
                pieces.push(PromptToken { id: u32::try_from(id).unwrap_or(0), bytes: Vec::new() })
            }
            Some(id) => return Err(ApiError::bad(&format!("Token id {id} is out of vocabulary"), None)),
            None => {
                return Err(ApiError::field("int_type", &place, "Input should be a valid integer", &shown(id)));
            }
        }
    }
    Ok(Prompt::new(pieces, String::new(), None))
}

#[cfg(test)]
mod tests {
    use super::super::tokens::count_chat;
    use super::*;

    #[test]
    fn a_chat_has_the_promised_number_of_tokens() {
        let fields = serde_json::json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello world tell me a story"}]});
        let prompt = chat(fields.as_object().unwrap(), "m").unwrap();
        assert_eq!(prompt.tokens.len(), count_chat(["be kind", "hello world tell me a story"]) as usize);
    }
}

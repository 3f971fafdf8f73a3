//! `/v1/messages` in vLLM's words: its request as a chat, its answer and stream out of a chat's pieces.

use serde_json::{Map, Value, json};

use super::errors::{ApiError, shown};
use super::render::{Counts, Piece, quote, quote_or_null};
use super::request::renamed;
use super::tokens::mix;
use super::voice::{Ended, named};

/// vLLM turns a message request into a chat, and so does this; tools the model is made to call give text.
pub(super) fn as_chat(fields: &Map<String, Value>, generates: bool) -> Result<Map<String, Value>, ApiError> {
    let wanted: &[&str] = if generates { &["model", "messages", "max_tokens"] } else { &["model", "messages"] };
    if let Some(name) = wanted.iter().find(|name| fields.get(**name).is_none_or(Value::is_null)) {
        return Err(ApiError::missing(name, fields));
    }
    if fields.get("max_tokens").and_then(Value::as_i64).is_some_and(|most| most <= 0) && generates {
        let input = fields.get("max_tokens").map_or_else(String::new, shown);
        return Err(ApiError::field(
            "value_error",
            "body.max_tokens",
            "Value error, max_tokens must be positive",
            &input,
        ));
    }
    let names = [
        ("model", "model"),
        ("max_tokens", "max_tokens"),
        ("stop_sequences", "stop"),
        ("temperature", "temperature"),
        ("stream", "stream"),
        ("cache_salt", "cache_salt"),
    ];
    let mut chat = renamed(fields, &names);
    if fields.get("stream").and_then(Value::as_bool) == Some(true) {
        chat.insert("stream_options".to_owned(), json!({"include_usage": true, "continuous_usage_stats": true}));
    }
    chat.insert("messages".to_owned(), messages(fields));
    if let Some(tools) = fields.get("tools").and_then(Value::as_array).filter(|tools| !tools.is_empty()) {
        chat.insert("tools".to_owned(), tools.iter().map(function).collect());
    }
    Ok(chat)
}

fn function(tool: &Value) -> Value {
    json!({"type": "function", "function": {
        "name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema"),
    }})
}

/// The system prompt first, then each message; the result of a tool becomes a message of its own.
fn messages(fields: &Map<String, Value>) -> Value {
    let mut chat = Vec::new();
    let system = fields.get("system").map(|system| text(Some(system))).filter(|text| !text.is_empty());
    chat.extend(system.map(|text| json!({"role": "system", "content": text})));
    let Some(list) = fields.get("messages").and_then(Value::as_array) else {
        return fields.get("messages").cloned().unwrap_or_default();
    };
    for message in list {
        let Some(blocks) = message.get("content").and_then(Value::as_array) else {
            chat.push(message.clone());
            continue;
        };
        let mut parts = Vec::new();
        for block in blocks {
            match block.get("type").and_then(Value::as_str) {
                Some("text") => parts.push(json!({"type": "text", "text": block.get("text")})),
                Some("image") => parts.push(json!({"type": "image_url", "image_url": {}})),
                Some("tool_result") => chat.push(json!({"role": "tool", "content": text(block.get("content"))})),
                _ => {}
            }
        }
        let role = message.get("role").and_then(Value::as_str);
        if !(parts.is_empty() && role == Some("user")) {
            chat.push(json!({"role": role, "content": parts}));
        }
    }
    Value::Array(chat)
}

/// A text, or the texts of a list of blocks.
fn text(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(blocks)) => {
            blocks.iter().filter_map(|block| block.get("text").and_then(Value::as_str)).collect()
        }
        _ => String::new(),
    }
}

/// The answer of `/v1/messages/count_tokens`.
pub(super) fn count(tokens: usize) -> String {
    format!(r#"{{"input_tokens":{tokens},"context_management":{{"original_input_tokens":{tokens}}}}}"#)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
}

/// One answer on its way.
#[derive(Debug)]
pub(super) struct Telling {
    id: String,
    model: String,
    signature: String,
    prompt_details: bool,
    open: Option<Block>,
    blocks: u32,
    finish: Option<&'static str>,
    stop: Option<String>,
}

impl Telling {
    pub(super) fn new(id: String, model: String, prompt_details: bool) -> Self {
        let hash = id.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        let signature = format!("{:016x}{:016x}", hash, mix(hash));
        Self { id, model, signature, prompt_details, open: None, blocks: 0, finish: None, stop: None }
    }

    /// Usage as Anthropic counts: what was cached, or is from now on, is no input.
    fn usage(&self, counts: Option<Counts>, details: bool) -> String {
        let Some(counts) = counts else { return String::new() };
        let (mut input, mut cached) = (counts.prompt, String::new());
        if details && self.prompt_details {
            let (read, created) = (u64::from(counts.cache.cached), u64::from(counts.cache.created));
            input = input.saturating_sub(read + created);
            cached = format!(r#","cache_creation_input_tokens":{created},"cache_read_input_tokens":{read}"#);
        }
        format!(r#","usage":{{"input_tokens":{input},"output_tokens":{}{cached}}}"#, counts.completion)
    }

    pub(super) fn start(&self, usage: Option<Counts>) -> String {
        let (id, model, usage) = (quote(&self.id), quote(&self.model), self.usage(usage, false));
        let message = format!(
            r#"{{"type":"message_start","message":{{"id":{id},"type":"message","role":"assistant","content":[],"model":{model},"stop_reason":null,"stop_sequence":null{usage}}}}}"#
        );
        named("message_start", &message)
    }

    /// Pieces without a text make no event.
    pub(super) fn piece(&mut self, piece: &Piece) -> Vec<String> {
        if piece.finish.is_some() {
            self.finish = piece.finish;
            self.stop.clone_from(&piece.stop_reason);
        }
        let mut events = Vec::new();
        for (block, text) in [(Block::Thinking, piece.reasoning.as_deref()), (Block::Text, Some(piece.text.as_str()))] {
            let Some(text) = text.filter(|text| !text.is_empty()) else { continue };
            if self.open != Some(block) {
                events.extend(self.stop_block());
                events.push(self.start_block(block));
            }
            let (index, text) = (self.blocks, quote(text));
            let delta = match block {
                Block::Text => format!(r#"{{"type":"text_delta","text":{text}}}"#),
                Block::Thinking => format!(r#"{{"type":"thinking_delta","thinking":{text}}}"#),
            };
            events.push(delta_event(&delta, index));
        }
        events
    }

    fn start_block(&mut self, block: Block) -> String {
        self.open = Some(block);
        let empty = match block {
            Block::Text => r#"{"type":"text","text":""}"#,
            Block::Thinking => r#"{"type":"thinking","thinking":""}"#,
        };
        let index = self.blocks;
        named(
            "content_block_start",
            &format!(r#"{{"type":"content_block_start","content_block":{empty},"index":{index}}}"#),
        )
    }

    fn stop_block(&mut self) -> Vec<String> {
        let Some(block) = self.open.take() else { return Vec::new() };
        let index = self.blocks;
        self.blocks += 1;
        let signature = (block == Block::Thinking)
            .then(|| delta_event(&format!(r#"{{"type":"signature_delta","signature":"{}"}}"#, self.signature), index));
        let stop = named("content_block_stop", &format!(r#"{{"type":"content_block_stop","index":{index}}}"#));
        signature.into_iter().chain([stop]).collect()
    }

    /// vLLM has no word for an aborted message: its reason is null.
    fn reason(&self) -> (Option<&'static str>, Option<&str>) {
        match (self.finish, self.stop.as_deref()) {
            (Some("length"), _) => (Some("max_tokens"), None),
            (Some("stop"), Some(stop)) => (Some("stop_sequence"), Some(stop)),
            (Some("stop"), None) => (Some("end_turn"), None),
            _ => (None, None),
        }
    }

    pub(super) fn close(&mut self, ended: &Ended) -> Vec<String> {
        let mut events = self.stop_block();
        let (reason, stop) = self.reason();
        let (reason, stop) = (quote_or_null(reason), quote_or_null(stop));
        let usage = self.usage(ended.tell_usage.then_some(ended.counts), true);
        events.push(named(
            "message_delta",
            &format!(r#"{{"type":"message_delta","delta":{{"stop_reason":{reason},"stop_sequence":{stop}}}{usage}}}"#),
        ));
        events.push(named("message_stop", r#"{"type":"message_stop"}"#));
        events
    }

    pub(super) fn whole(&mut self, piece: &Piece, ended: &Ended) -> String {
        self.finish = piece.finish;
        self.stop.clone_from(&piece.stop_reason);
        let thinking = piece.reasoning.as_deref().filter(|text| !text.is_empty());
        let mut blocks: Vec<String> = thinking
            .map(|text| format!(r#"{{"type":"thinking","thinking":{},"signature":"{}"}}"#, quote(text), self.signature))
            .into_iter()
            .collect();
        if !piece.text.is_empty() || blocks.is_empty() {
            blocks.push(format!(r#"{{"type":"text","text":{}}}"#, quote(&piece.text)));
        }
        let (reason, stop) = self.reason();
        let field = |name: &str, value: Option<&str>| {
            value.map_or_else(String::new, |value| format!(r#","{name}":{}"#, quote(value)))
        };
        format!(
            r#"{{"id":{},"type":"message","role":"assistant","content":[{}],"model":{}{}{}{}}}"#,
            quote(&self.id),
            blocks.join(","),
            quote(&self.model),
            field("stop_reason", reason),
            field("stop_sequence", stop),
            self.usage(ended.tell_usage.then_some(ended.counts), true)
        )
    }

    /// The chat's error event is no chunk to the code that turns chunks into messages: that is what it tells. (Not among the
    /// captures; from vLLM's source.)
    pub(super) fn broken(&self) -> String {
        let message = "2 validation errors for ChatCompletionStreamResponse\nmodel\n  Field required [type=missing, \
                       input_value={'error': {'message': 'En...m': None, 'code': 500}}, input_type=dict]\nchoices\n  \
                       Field required [type=missing, input_value={'error': {'message': 'En...m': None, 'code': 500}}, \
                       input_type=dict]";
        let message = quote(message);
        named("error", &format!(r#"{{"type":"error","error":{{"type":"internal_error","message":{message}}}}}"#))
    }
}

fn delta_event(delta: &str, index: u32) -> String {
    named("content_block_delta", &format!(r#"{{"type":"content_block_delta","delta":{delta},"index":{index}}}"#))
}

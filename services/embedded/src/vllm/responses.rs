//! `/v1/responses` in vLLM's words: its request as a chat, its answer and its typed, numbered events.

use serde_json::{Map, Value, json};

use super::engine::Plan;
use super::errors::{ApiError, shown};
use super::render::{Millis, Piece, quote};
use super::request::renamed;
use super::tokens::mix;
use super::voice::{Ended, named};

/// vLLM turns a response's request into a chat, and so does this; tools the model is made to call give text.
pub(super) fn as_chat(fields: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let Some(input) = fields.get("input").filter(|input| !input.is_null()) else {
        return Err(ApiError::missing("input", fields));
    };
    if !input.is_string() && !input.is_array() {
        let message = "Input should be a valid string";
        return Err(ApiError::field("string_type", "body.input.str", message, &shown(input)));
    }
    if fields.get("background").and_then(Value::as_bool) == Some(true) {
        return Err(ApiError::no_background());
    }
    if let Some(id) = fields.get("previous_response_id").and_then(Value::as_str) {
        return Err(ApiError::no_response(id));
    }
    let names = [
        ("model", "model"),
        ("max_output_tokens", "max_completion_tokens"),
        ("temperature", "temperature"),
        ("stream", "stream"),
        ("stop", "stop"),
        ("cache_salt", "cache_salt"),
        ("ignore_eos", "ignore_eos"),
    ];
    let mut chat = renamed(fields, &names);
    let instructions = fields.get("instructions").and_then(Value::as_str);
    let mut messages: Vec<Value> =
        instructions.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    match input {
        Value::Array(items) => messages.extend(items.iter().filter_map(message)),
        said => messages.push(json!({"role": "user", "content": said})),
    }
    chat.insert("messages".to_owned(), Value::Array(messages));
    if let Some(tools) = fields.get("tools").and_then(Value::as_array).filter(|tools| !tools.is_empty()) {
        chat.insert(
            "tools".to_owned(),
            tools.iter().map(|tool| json!({"type": "function", "function": tool})).collect(),
        );
    }
    Ok(chat)
}

/// An item of the input as a message; reasoning and calls of before are no prompt here.
fn message(item: &Value) -> Option<Value> {
    if item.get("type").and_then(Value::as_str) == Some("function_call_output") {
        return Some(json!({"role": "tool", "content": item.get("output")}));
    }
    let role = item.get("role")?;
    let content = match item.get("content") {
        Some(Value::Array(parts)) => Value::Array(parts.iter().map(part).collect()),
        other => other.cloned().unwrap_or_default(),
    };
    Some(json!({"role": role, "content": content}))
}

fn part(part: &Value) -> Value {
    match part.get("text") {
        Some(text) => json!({"type": "text", "text": text}),
        None => json!({"type": "image_url"}),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Message,
    Reasoning,
}

/// One answer on its way.
#[derive(Debug)]
pub(super) struct Report {
    id: String,
    created: i64,
    model: String,
    max_output_tokens: u32,
    request: Map<String, Value>,
    sequence: u32,
    open: Option<(Item, String)>,
    said: String,
    done: Vec<String>,
    items: u32,
    finish: Option<&'static str>,
}

impl Report {
    pub(super) fn new(id: String, created: i64, model: String, request: Map<String, Value>, plan: &Plan) -> Self {
        let max_output_tokens = plan.choices.first().map_or(0, |choice| choice.limit);
        Self {
            id,
            created,
            model,
            max_output_tokens,
            request,
            sequence: 0,
            open: None,
            said: String::new(),
            done: Vec::new(),
            items: 0,
            finish: None,
        }
    }

    /// A field of the request, as it was given.
    fn given(&self, name: &str) -> String {
        self.request.get(name).map_or_else(|| "null".to_owned(), Value::to_string)
    }

    fn number(&self, name: &str, default: f64) -> String {
        format!("{:?}", self.request.get(name).and_then(Value::as_f64).unwrap_or(default))
    }

    fn or(&self, name: &str, default: &str) -> String {
        self.request.get(name).filter(|value| !value.is_null()).map_or_else(|| default.to_owned(), Value::to_string)
    }

    /// The response object. The request's own fields come back in it.
    fn object(&self, status: &str, output: &[String], usage: &str, millis: Option<Millis>) -> String {
        let incomplete = if status == "incomplete" { r#"{"reason":"max_output_tokens"}"# } else { "null" };
        let has_tools = self.request.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
        let choice = self.or("tool_choice", if has_tools { r#""auto""# } else { r#""none""# });
        let metrics = millis.map_or_else(String::new, |millis| format!(r#","metrics":{}"#, millis.render(true)));
        let head = format!(
            r#"{{"id":{},"created_at":{},"incomplete_details":{incomplete},"instructions":{},"metadata":{},"model":{},"object":"response","output":[{}],"parallel_tool_calls":{},"#,
            quote(&self.id),
            self.created,
            self.given("instructions"),
            self.given("metadata"),
            quote(&self.model),
            output.join(","),
            self.or("parallel_tool_calls", "true"),
        );
        let middle = format!(
            r#""temperature":{},"tool_choice":{choice},"tools":{},"top_p":{},"background":false,"max_output_tokens":{},"max_tool_calls":{},"previous_response_id":null,"prompt":null,"reasoning":{},"service_tier":{},"status":"{status}","text":{},"top_logprobs":null,"truncation":{},"#,
            self.number("temperature", 1.0),
            self.or("tools", "[]"),
            self.number("top_p", 1.0),
            self.max_output_tokens,
            self.given("max_tool_calls"),
            self.given("reasoning"),
            self.or("service_tier", r#""auto""#),
            self.given("text"),
            self.or("truncation", r#""disabled""#),
        );
        format!(
            r#"{head}{middle}"usage":{usage},"user":{}{metrics},"presence_penalty":{},"frequency_penalty":{},"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}}"#,
            self.given("user"),
            self.number("presence_penalty", 0.0),
            self.number("frequency_penalty", 0.0),
        )
    }

    /// One event. Fields come in alphabetical order, so that a text stands behind the number.
    fn event(&mut self, kind: &str, fields: &str, text: Option<&str>) -> String {
        let sequence = self.sequence;
        self.sequence += 1;
        let text = text.map_or_else(String::new, |text| format!(r#""text":{text},"#));
        named(kind, &format!(r#"{{{fields},"sequence_number":{sequence},{text}"type":"{kind}"}}"#))
    }

    pub(super) fn greeting(&mut self) -> Vec<String> {
        let response = format!(r#""response":{}"#, self.object("in_progress", &[], "null", None));
        ["response.created", "response.in_progress"].map(|kind| self.event(kind, &response, None)).into()
    }

    /// Pieces without a text make no event.
    pub(super) fn piece(&mut self, piece: &Piece) -> Vec<String> {
        self.finish = piece.finish.or(self.finish);
        let mut events = Vec::new();
        for (item, text) in [(Item::Reasoning, piece.reasoning.as_deref()), (Item::Message, Some(piece.text.as_str()))]
        {
            let Some(text) = text.filter(|text| !text.is_empty()) else { continue };
            if self.open.as_ref().is_none_or(|(open, _)| *open != item) {
                events.extend(self.close_item());
                events.extend(self.open_item(item));
            }
            self.said.push_str(text);
            let (id, index, text) = (self.item_id(), self.items, quote(text));
            events.push(match item {
                Item::Message => self.event(
                    "response.output_text.delta",
                    &format!(r#""content_index":0,"delta":{text},"item_id":{id},"logprobs":[],"output_index":{index}"#),
                    None,
                ),
                Item::Reasoning => self.event(
                    "response.reasoning_text.delta",
                    &format!(r#""content_index":0,"delta":{text},"item_id":{id},"output_index":{index}"#),
                    None,
                ),
            });
        }
        events
    }

    fn new_id(&self, prefix: &str) -> String {
        let hash = self.id.bytes().fold(u64::from(self.items), |hash, byte| mix(hash ^ u64::from(byte)));
        format!("{prefix}_{hash:016x}")
    }

    fn item_id(&self) -> String {
        self.open.as_ref().map_or_else(|| "null".to_owned(), |(_, id)| quote(id))
    }

    fn open_item(&mut self, item: Item) -> Vec<String> {
        self.said.clear();
        let (prefix, part) = match item {
            Item::Message => ("msg", r#"{"annotations":[],"text":"","type":"output_text","logprobs":[]}"#),
            Item::Reasoning => ("rs", r#"{"text":"","type":"reasoning_text"}"#),
        };
        self.open = Some((item, self.new_id(prefix)));
        let (id, index) = (self.item_id(), self.items);
        let empty = match item {
            Item::Message => message_item(&id, "", "in_progress"),
            Item::Reasoning => reasoning_item(&id, "null", r#""in_progress""#),
        };
        vec![
            self.event("response.output_item.added", &format!(r#""item":{empty},"output_index":{index}"#), None),
            self.event(
                "response.content_part.added",
                &format!(r#""content_index":0,"item_id":{id},"output_index":{index},"part":{part}"#),
                None,
            ),
        ]
    }

    fn close_item(&mut self) -> Vec<String> {
        let id = self.item_id();
        let Some((item, _)) = self.open.take() else { return Vec::new() };
        let (index, text) = (self.items, quote(&self.said));
        let place = format!(r#""content_index":0,"item_id":{id},"output_index":{index}"#);
        let (part, whole, done) = match item {
            Item::Message => {
                let part = text_part(&text);
                let whole = message_item(&id, &part, "completed");
                let done = self.event(
                    "response.output_text.done",
                    &format!(r#""content_index":0,"item_id":{id},"logprobs":[],"output_index":{index}"#),
                    Some(&text),
                );
                (part, whole, done)
            }
            Item::Reasoning => {
                let part = format!(r#"{{"text":{text},"type":"reasoning_text"}}"#);
                let whole = reasoning_item(&id, &format!("[{part}]"), r#""completed""#);
                let done = self.event("response.reasoning_text.done", &place, Some(&text));
                (part, whole, done)
            }
        };
        let part = self.event("response.content_part.done", &format!(r#"{place},"part":{part}"#), None);
        let closed =
            self.event("response.output_item.done", &format!(r#""item":{whole},"output_index":{index}"#), None);
        self.done.push(whole);
        self.items += 1;
        vec![done, part, closed]
    }

    /// An aborted response is told as completed, as vLLM does.
    fn status(&self) -> &'static str {
        if self.finish == Some("length") { "incomplete" } else { "completed" }
    }

    pub(super) fn close(&mut self, ended: &Ended) -> Vec<String> {
        let mut events = self.close_item();
        let object = self.object(self.status(), &self.done, &usage(ended), ended.millis);
        events.push(self.event("response.completed", &format!(r#""response":{object}"#), None));
        events
    }

    pub(super) fn whole(&mut self, piece: &Piece, ended: &Ended) -> String {
        self.finish = piece.finish;
        let mut output = Vec::new();
        if let Some(reasoning) = piece.reasoning.as_deref().filter(|text| !text.is_empty()) {
            let content = format!(r#"[{{"text":{},"type":"reasoning_text"}}]"#, quote(reasoning));
            output.push(reasoning_item(&quote(&self.new_id("rs")), &content, "null"));
            self.items += 1;
        }
        let id = quote(&self.new_id("msg"));
        if !piece.text.is_empty() {
            output.push(message_item(&id, &text_part(&quote(&piece.text)), "completed"));
        } else if output.is_empty() {
            output.push(message_item(&id, "", "completed"));
        }
        self.object(self.status(), &output, &usage(ended), ended.millis)
    }
}

fn text_part(text: &str) -> String {
    format!(r#"{{"annotations":[],"text":{text},"type":"output_text","logprobs":null}}"#)
}

fn message_item(id: &str, content: &str, status: &str) -> String {
    format!(
        r#"{{"id":{id},"content":[{content}],"role":"assistant","status":"{status}","type":"message","phase":null}}"#
    )
}

fn reasoning_item(id: &str, content: &str, status: &str) -> String {
    format!(
        r#"{{"id":{id},"summary":[],"type":"reasoning","content":{content},"encrypted_content":null,"status":{status}}}"#
    )
}

/// Cached tokens are told here whatever the flags, as vLLM does.
fn usage(ended: &Ended) -> String {
    if !ended.tell_usage {
        return "null".to_owned();
    }
    let counts = ended.counts;
    let (input, output) = (counts.prompt, counts.completion);
    let (cached, written) = (counts.cache.cached, counts.cache.created);
    format!(
        r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":{written},"input_tokens_per_turn":[],"cached_tokens_per_turn":[]}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":{},"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]}},"total_tokens":{}}}"#,
        counts.reasoning.unwrap_or(0),
        input + output
    )
}

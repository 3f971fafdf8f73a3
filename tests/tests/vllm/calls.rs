//! What is asked of the engines: every endpoint that they serve, with what people use of it.

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

pub(crate) const MODEL: &str = "tiny-llama";
pub(crate) const ADAPTER: &str = "tiny-lora";
pub(crate) const EMBEDDER: &str = "tiny-embed";
/// Sold, and at no engine.
pub(crate) const GHOST: &str = "tiny-ghost";

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    /// A text is sent as it is, and nothing is no body.
    pub(crate) body: Value,
    /// How often the engine counts the prompt: once for each choice.
    pub(crate) prompts: u64,
}

impl Call {
    pub(crate) fn method(&self) -> Method {
        if self.body.is_null() { Method::GET } else { Method::POST }
    }

    pub(crate) fn bytes(&self) -> Option<Bytes> {
        match &self.body {
            Value::Null => None,
            Value::String(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
            body => Some(Bytes::from(body.to_string())),
        }
    }
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn with(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn chat(more: &Value) -> Value {
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Tell me a story of a gateway."}],
        "temperature": 0, "seed": 1, "max_tokens": 24,
    });
    with(body, more)
}

fn completion(more: &Value) -> Value {
    let body = json!({
        "model": MODEL, "prompt": "the quick brown fox", "temperature": 0, "seed": 1, "max_tokens": 16,
    });
    with(body, more)
}

fn response(more: &Value) -> Value {
    let body = json!({
        "model": MODEL, "input": "Tell me a story.", "temperature": 0, "max_output_tokens": 16, "store": false,
    });
    with(body, more)
}

fn message(more: &Value) -> Value {
    let body = json!({
        "model": MODEL, "max_tokens": 16, "temperature": 0, "system": "You are brief.",
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    with(body, more)
}

fn weather() -> Value {
    json!([{"type": "function", "function": {
        "name": "weather", "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }}])
}

fn call(name: &'static str, path: &'static str, body: Value) -> Call {
    Call { name, path, body, prompts: 1 }
}

/// Requests that are answered to their end.
pub(crate) fn whole() -> Vec<Call> {
    let usage = json!({"include_usage": true});
    let each = json!({"include_usage": true, "continuous_usage_stats": true});
    let long = "the quick brown fox jumps over a lazy dog ".repeat(40);
    let nearly_full = "the quick brown fox jumps over a lazy dog ".repeat(100);
    vec![
        call("chat", CHAT, chat(&json!({}))),
        call("chat again, from the cache", CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]}))),
        call("chat again, from the cache", CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]}))),
        call(
            "chat without a bound",
            CHAT,
            chat(&json!({"max_tokens": null, "messages": [{"role": "user", "content": nearly_full}]})),
        ),
        Call { prompts: 3, ..call("three choices", CHAT, chat(&json!({"n": 3, "temperature": 1}))) },
        call("stop", CHAT, chat(&json!({"stop": ["e", "a"], "max_tokens": 60}))),
        call("log probabilities", CHAT, chat(&json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 4}))),
        call(
            "forced tool",
            CHAT,
            chat(&json!({
                "tools": weather(), "max_tokens": 120,
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
            })),
        ),
        call("unknown fields", CHAT, chat(&json!({"x_unknown": {"a": [1, 2]}, "top_k": 5, "min_tokens": 2}))),
        call(
            "parts",
            CHAT,
            chat(&json!({"messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]},
            ]})),
        ),
        call("stream", CHAT, chat(&json!({"stream": true}))),
        call("stream with usage", CHAT, chat(&json!({"stream": true, "stream_options": usage}))),
        call("stream with counts", CHAT, chat(&json!({"stream": true, "stream_options": each}))),
        call("stream, stopped", CHAT, chat(&json!({"stream": true, "stop": ["e"], "max_tokens": 60}))),
        Call {
            prompts: 2,
            ..call(
                "stream of two choices",
                CHAT,
                chat(&json!({"stream": true, "n": 2, "temperature": 1, "stream_options": usage})),
            )
        },
        call(
            "stream of a tool",
            CHAT,
            chat(&json!({
                "stream": true, "tools": weather(), "max_tokens": 120,
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
            })),
        ),
        call("adapter", CHAT, chat(&json!({"model": ADAPTER}))),
        call("adapter, streamed", CHAT, chat(&json!({"model": ADAPTER, "stream": true}))),
        call("completion", COMPLETIONS, completion(&json!({}))),
        call("echo", COMPLETIONS, completion(&json!({"echo": true}))),
        call("echo alone", COMPLETIONS, completion(&json!({"echo": true, "max_tokens": 0}))),
        call("token ids", COMPLETIONS, completion(&json!({"prompt": [11, 12, 13, 14]}))),
        call("several prompts", COMPLETIONS, completion(&json!({"prompt": ["one", "two three"]}))),
        call("completion, streamed", COMPLETIONS, completion(&json!({"stream": true}))),
        call(
            "prompts, streamed",
            COMPLETIONS,
            completion(&json!({
                "stream": true, "prompt": ["one", "two three"], "stream_options": usage,
            })),
        ),
        call("response", RESPONSES, response(&json!({}))),
        call("response, streamed", RESPONSES, response(&json!({"stream": true}))),
        call("message", MESSAGES, message(&json!({}))),
        call("message, streamed", MESSAGES, message(&json!({"stream": true}))),
        call("embedding", "/v1/embeddings", json!({"model": EMBEDDER, "input": ["the quick brown fox", "dog"]})),
        call(
            "embedding in base64",
            "/v1/embeddings",
            json!({
                "model": EMBEDDER, "input": "hello", "encoding_format": "base64",
            }),
        ),
        call("rerank", "/v1/rerank", json!({"model": EMBEDDER, "query": "fox", "documents": ["dog", "the fox"]})),
        call("score", "/v1/score", json!({"model": EMBEDDER, "text_1": "fox", "text_2": ["dog", "the fox"]})),
    ]
}

/// Questions that generate nothing and cost nothing.
pub(crate) fn free() -> Vec<Call> {
    vec![
        call("tokenize", "/tokenize", json!({"model": MODEL, "prompt": "the quick brown fox"})),
        call("detokenize", "/detokenize", json!({"model": MODEL, "tokens": [11, 12, 13]})),
        call(
            "count tokens",
            "/v1/messages/count_tokens",
            json!({
                "model": MODEL, "messages": [{"role": "user", "content": "hello"}],
            }),
        ),
    ]
}

/// A request that comes to nothing.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) call: Call,
    /// What the client of the gateway is told.
    pub(crate) status: u16,
    /// What the engine says to the same, asked without a gateway.
    pub(crate) engine: u16,
    /// Whether the client is told it in the engine's own words.
    pub(crate) passed_on: bool,
}

/// Requests that the engine refuses, and such as the gateway refuses before it is asked.
pub(crate) fn refused() -> Vec<Refused> {
    let long = "fox ".repeat(4000);
    let by_engine = |call| Refused { call, status: 400, engine: 400, passed_on: true };
    let before = |call, status, engine| Refused { call, status, engine, passed_on: false };
    let text = |text: &str| Value::String(text.to_owned());
    vec![
        by_engine(call("temperature", CHAT, chat(&json!({"temperature": -3})))),
        by_engine(call("too long", CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]})))),
        by_engine(call(
            "too long, streamed",
            CHAT,
            chat(&json!({"stream": true, "messages": [{"role": "user", "content": long}]})),
        )),
        by_engine(call("more than the context", CHAT, chat(&json!({"max_tokens": 100_000})))),
        by_engine(call("no messages", CHAT, json!({"model": MODEL, "max_tokens": 3}))),
        by_engine(call(
            "unknown tool",
            CHAT,
            chat(&json!({"tool_choice": {"type": "function", "function": {"name": "x"}}})),
        )),
        by_engine(call("too many log probabilities", COMPLETIONS, completion(&json!({"logprobs": 100_000})))),
        by_engine(call("completion too long", COMPLETIONS, completion(&json!({"prompt": long})))),
        by_engine(call("response too long", RESPONSES, response(&json!({"input": long})))),
        by_engine(call("response without input", RESPONSES, json!({"model": MODEL}))),
        by_engine(call(
            "message too long",
            MESSAGES,
            message(&json!({"messages": [{"role": "user", "content": long}]})),
        )),
        by_engine(call("message without messages", MESSAGES, json!({"model": MODEL, "max_tokens": 3}))),
        by_engine(call("embedding too long", "/v1/embeddings", json!({"model": EMBEDDER, "input": long}))),
        by_engine(call("no documents", "/v1/rerank", json!({"model": EMBEDDER, "query": "fox"}))),
        before(call("no JSON", CHAT, text("{\"model\":")), 400, 400),
        before(call("a list", CHAT, text("[]")), 400, 400),
        before(call("not a number", CHAT, chat(&json!({"max_tokens": "many"}))), 400, 400),
        before(call("unknown model", CHAT, chat(&json!({"model": "unknown"}))), 404, 404),
        before(call("a model of nobody", CHAT, chat(&json!({"model": GHOST}))), 502, 404),
        before(call("unknown path", "/v1/unknown", json!({"model": MODEL})), 404, 404),
        before(call("wrong method", CHAT, Value::Null), 405, 405),
    ]
}

/// Tokens of an answer that nobody waits for.
pub(crate) const ENDLESS: u64 = 800;

/// Streams that somebody hangs up on, after so many reads; 0: at once.
pub(crate) fn cut() -> Vec<(Call, usize)> {
    let endless = json!({"stream": true, "max_tokens": ENDLESS, "ignore_eos": true});
    let mut cut = Vec::new();
    for reads in [40, 12, 3, 1, 0] {
        cut.push((call("chat", CHAT, chat(&endless)), reads));
        cut.push((call("completion", COMPLETIONS, completion(&endless)), reads));
        cut.push((
            call("response", RESPONSES, response(&json!({"stream": true, "max_output_tokens": ENDLESS}))),
            reads,
        ));
        cut.push((call("message", MESSAGES, message(&json!({"stream": true, "max_tokens": ENDLESS}))), reads));
    }
    let two = with(endless, &json!({"n": 2, "temperature": 1}));
    cut.push((Call { prompts: 2, ..call("two choices", CHAT, chat(&two)) }, 8));
    cut
}

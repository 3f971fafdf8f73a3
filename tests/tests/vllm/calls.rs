//! What is asked of the engines: every endpoint that they serve, with what people use of it.

use serde_json::{Value, json};

pub(crate) const MODEL: &str = "tiny-llama";
pub(crate) const ADAPTER: &str = "tiny-lora";
pub(crate) const EMBEDDER: &str = "tiny-embed";

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: Value,
    /// How often the engine counts the prompt: once for each choice.
    pub(crate) prompts: u64,
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
    vec![
        call("chat", CHAT, chat(&json!({}))),
        call("chat again, from the cache", CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]}))),
        call("chat again, from the cache", CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]}))),
        call("chat without a bound", CHAT, chat(&json!({"max_tokens": null, "ignore_eos": false}))),
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
            ..call("stream of two choices", CHAT, chat(&json!({"stream": true, "n": 2, "stream_options": usage})))
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

/// Requests that the engine refuses, with the status that it gives.
pub(crate) fn refused() -> Vec<(Call, u16)> {
    let long = "fox ".repeat(4000);
    vec![
        (call("temperature", CHAT, chat(&json!({"temperature": -3}))), 400),
        (call("too long", CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]}))), 400),
        (
            call(
                "too long, streamed",
                CHAT,
                chat(&json!({"stream": true, "messages": [{"role": "user", "content": long}]})),
            ),
            400,
        ),
        (call("no messages", CHAT, json!({"model": MODEL, "max_tokens": 3})), 400),
        (call("too many log probabilities", COMPLETIONS, completion(&json!({"logprobs": 100_000}))), 400),
        (call("message without messages", MESSAGES, json!({"model": MODEL, "max_tokens": 3})), 400),
    ]
}

/// Streams that somebody hangs up on, after so many reads.
pub(crate) fn cut() -> Vec<(Call, usize)> {
    let endless = json!({"stream": true, "max_tokens": 800, "ignore_eos": true});
    let mut cut = Vec::new();
    for reads in [1, 3, 12, 40] {
        cut.push((call("chat", CHAT, chat(&endless)), reads));
        cut.push((call("completion", COMPLETIONS, completion(&endless)), reads));
        cut.push((call("response", RESPONSES, response(&json!({"stream": true, "max_output_tokens": 800}))), reads));
        cut.push((call("message", MESSAGES, message(&json!({"stream": true, "max_tokens": 800}))), reads));
    }
    cut.push((Call { prompts: 2, ..call("two choices", CHAT, chat(&with(endless, &json!({"n": 2})))) }, 8));
    cut
}

//! The endpoints, each with one request that is asked in every way.

use embedded::vllm::Runner;
use serde_json::{Value, json};

use crate::world::MODEL;

/// How an answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    Chat,
    Completions,
    Messages,
    Responses,
    /// Read, and nothing generated.
    Vectors,
    /// Costs nothing.
    Free,
}

/// An endpoint, as one request asks it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) path: &'static str,
    pub(super) voice: Voice,
    pub(super) stream: bool,
    /// The request, beside model and stream.
    pub(super) ask: &'static str,
    /// Events of a stream before its third token.
    pub(super) before_third: u32,
}

const fn subject(path: &'static str, voice: Voice, stream: bool, ask: &'static str) -> Subject {
    let before_third = match voice {
        Voice::Chat => 1 + 2,
        Voice::Completions => 2,
        Voice::Messages => 2 + 2,
        Voice::Responses => 4 + 2,
        Voice::Vectors | Voice::Free => 0,
    };
    Subject { path, voice, stream, ask, before_third }
}

const CHAT: &str = r#"{"max_tokens":12,"messages":[{"role":"user","content":"count [[tokens:9]] please"}]}"#;
const TWO: &str = r#"{"max_tokens":5,"n":2,"prompt":["abc","hello world"]}"#;
const INPUT: &str = r#"{"max_output_tokens":12,"input":"count [[tokens:9]] please"}"#;
const RANK: &str = r#"{"query":"hello","documents":["hello world","weather city","x"]}"#;
const SCORE: &str = r#"{"text_1":"hello","text_2":["hello world","x"]}"#;

pub(super) static SUBJECTS: [Subject; 20] = [
    subject("/v1/chat/completions", Voice::Chat, true, CHAT),
    subject("/v1/chat/completions", Voice::Chat, false, CHAT),
    subject("/v1/completions", Voice::Completions, true, r#"{"max_tokens":9,"prompt":"hello world"}"#),
    subject("/v1/completions", Voice::Completions, false, TWO),
    subject("/v1/messages", Voice::Messages, true, CHAT),
    subject("/v1/messages", Voice::Messages, false, CHAT),
    subject("/v1/responses", Voice::Responses, true, INPUT),
    subject("/v1/responses", Voice::Responses, false, INPUT),
    subject("/v1/messages/count_tokens", Voice::Free, false, r#"{"messages":[{"role":"user","content":"hello"}]}"#),
    subject("/v1/embeddings", Voice::Vectors, false, r#"{"input":["hello world","tell me"],"dimensions":8}"#),
    subject("/v1/rerank", Voice::Vectors, false, RANK),
    subject("/v2/rerank", Voice::Vectors, false, RANK),
    subject("/rerank", Voice::Vectors, false, RANK),
    subject("/v1/score", Voice::Vectors, false, SCORE),
    subject("/score", Voice::Vectors, false, SCORE),
    subject("/tokenize", Voice::Free, false, r#"{"prompt":"hello world, hello world"}"#),
    subject("/v1/tokenize", Voice::Free, false, r#"{"messages":[{"role":"user","content":"hello"}]}"#),
    subject("/detokenize", Voice::Free, false, r#"{"tokens":[10,300,400,10,300,400]}"#),
    subject("/v1/detokenize", Voice::Free, false, r#"{"tokens":[10,300,400,10,300,400]}"#),
    // No endpoint of replicas: it has no cells.
    subject("/v1/models", Voice::Free, false, "{}"),
];

impl Subject {
    pub(super) fn body(&self) -> Value {
        let mut body: Value = serde_json::from_str(self.ask).unwrap();
        body["model"] = json!(MODEL);
        if self.stream {
            body["stream"] = json!(true);
        }
        body
    }

    pub(super) fn runner(&self) -> Runner {
        if self.voice == Voice::Vectors { Runner::Pooling } else { Runner::Generate }
    }

    pub(super) fn other_runner(&self) -> Runner {
        if self.runner() == Runner::Pooling { Runner::Generate } else { Runner::Pooling }
    }

    pub(super) fn generates(&self) -> bool {
        !matches!(self.voice, Voice::Vectors | Voice::Free)
    }

    /// The estimate of the prompt: a token for four bytes of what may be read.
    pub(super) fn estimated_input(&self) -> u64 {
        let ask: Value = serde_json::from_str(self.ask).unwrap();
        let bytes = |value: &Value| if value.is_number() { 0 } else { value.to_string().len() };
        let bytes = match self.voice {
            Voice::Free => 0,
            Voice::Vectors => {
                // What is one for all is read with each of the others.
                let lists: Vec<&Vec<Value>> = ask.as_object().unwrap().values().filter_map(Value::as_array).collect();
                let times = if self.path.ends_with("embeddings") { 1 } else { lists[0].len() };
                let text = |value: &Value| if value.is_string() { times * bytes(value) } else { bytes(value) };
                ask.as_object().unwrap().values().map(text).sum()
            }
            _ => ask.as_object().unwrap().values().map(bytes).sum(),
        };
        (bytes as u64).div_ceil(4)
    }
}

/// What usage is booked under.
pub(super) fn booked(path: &str) -> &str {
    match path {
        "/v2/rerank" | "/rerank" => "/v1/rerank",
        "/score" => "/v1/score",
        "/v1/tokenize" => "/tokenize",
        "/v1/detokenize" => "/detokenize",
        same => same,
    }
}

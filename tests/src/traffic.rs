//! Mixed traffic, chosen by a seed: whole answers, streams, several choices, clients that hang up, upstreams that die, errors.
//! Each request leaves what its client saw of it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Client, Events};
use crate::system::MODELS;

/// No stream of these tests is silent for so long.
const SILENCE: Duration = Duration::from_secs(30);

/// A client whose connection is refused tries again so often,
const REFUSED_TRIES: usize = 3600;
/// after so long.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// What a request is to go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A whole chat answer.
    Chat,
    /// A whole completion.
    Completion,
    /// A whole chat answer with so many choices.
    Choices(u8),
    /// A chat stream to its end; whether the client asks for usage at its end.
    Stream {
        /// `stream_options.include_usage`
        usage: bool,
        /// `n`
        choices: u8,
    },
    /// A completion stream to its end, with usage.
    CompletionStream,
    /// A chat stream whose client hangs up after so many events.
    HangUp {
        /// Events that it reads.
        after: u8,
        /// Whether it asks for usage on each of them.
        counts: bool,
    },
    /// The upstream does this; the client reads what comes.
    Fault(&'static str, bool),
    /// A model that is not there.
    UnknownModel,
    /// A body that is no JSON.
    BadJson,
    /// A key that is none.
    BadKey,
}

/// One request of the traffic.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its number: it is in the prompt.
    pub number: usize,
    /// Which of the keys sends it.
    pub key: usize,
    /// The model that it names.
    pub model: &'static str,
    /// What it goes through.
    pub shape: Shape,
    /// Tokens that the engine will generate for each choice.
    pub tokens: u32,
}

/// Usage as the client was told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// The whole prompt.
    pub prompt: u64,
    /// Of it, from the prefix cache.
    pub cached: u64,
    /// All that was generated.
    pub completion: u64,
    /// Of it, reasoning.
    pub reasoning: u64,
}

impl Told {
    fn read(usage: &Value) -> Self {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Self {
            prompt: number(&usage["prompt_tokens"]),
            cached: number(&usage["prompt_tokens_details"]["cached_tokens"]),
            completion: number(&usage["completion_tokens"]),
            reasoning: number(&usage["completion_tokens_details"]["reasoning_tokens"]),
        }
    }
}

/// What a client saw of its request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The request.
    pub plan: Planned,
    /// The status; none when the connection broke before.
    pub status: Option<u16>,
    /// The gateway's id of the request.
    pub request_id: Option<String>,
    /// Usage at the end, where there was one.
    pub usage: Option<Told>,
    /// Generated tokens that were handed over at least: as counted on the events, or one for each with text.
    pub tokens: u64,
    /// True if the answer went to its end: `[DONE]`, or a whole body.
    pub whole: bool,
    /// A stable error code, of the body or of an event.
    pub code: Option<String>,
}

/// A small generator of numbers that is the same everywhere.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one below `bound` (SplitMix64).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

const FAULTS: [&str; 8] = [
    "die_mid_stream:3",
    "reset_mid_stream:2",
    "error_mid_stream:4",
    "malformed:3",
    "no_done:3",
    "status:500",
    "no_usage",
    "refuse",
];

/// Tokens of a stream whose client hangs up, beside those that any stream has.
const LONGER: u32 = 24;

/// `count` requests of `keys` keys, every shape among them.
pub fn plan(count: usize, keys: usize, seed: u64) -> Vec<Planned> {
    let mut dice = Dice::new(seed);
    (0..count)
        .map(|number| {
            let (key, model) = (dice.below(keys as u64) as usize, MODELS[dice.below(2) as usize]);
            let (shape, tokens) = (shape(&mut dice), 1 + dice.below(40) as u32);
            // A client that hangs up does so long before the end, however many events come together.
            let longer = if matches!(shape, Shape::HangUp { .. }) { LONGER } else { 0 };
            Planned { number, key, model, shape, tokens: tokens + longer }
        })
        .collect()
}

fn shape(dice: &mut Dice) -> Shape {
    let streamed = dice.below(2) == 0;
    match dice.below(100) {
        0..15 => Shape::Chat,
        15..22 => Shape::Completion,
        22..29 => Shape::Choices(2 + dice.below(2) as u8),
        29..50 => Shape::Stream { usage: streamed, choices: 1 },
        50..57 => Shape::Stream { usage: streamed, choices: 2 + dice.below(2) as u8 },
        57..64 => Shape::CompletionStream,
        64..79 => Shape::HangUp { after: dice.below(20) as u8, counts: streamed },
        79..91 => Shape::Fault(FAULTS[dice.below(8) as usize], streamed),
        91..94 => Shape::UnknownModel,
        94..97 => Shape::BadJson,
        _ => Shape::BadKey,
    }
}

impl Planned {
    fn path(&self) -> &'static str {
        match self.shape {
            Shape::Completion | Shape::CompletionStream => "/v1/completions",
            _ => "/v1/chat/completions",
        }
    }

    /// True if the answer streams.
    pub const fn streams(&self) -> bool {
        matches!(
            self.shape,
            Shape::Stream { .. } | Shape::CompletionStream | Shape::HangUp { .. } | Shape::Fault(_, true)
        )
    }

    fn body(&self) -> Bytes {
        let mut prompt = format!("request {} tells a story [[tokens:{}]]", self.number, self.tokens);
        // Half of them share a long beginning, so that the engine's prefix cache has something to give.
        if self.number.is_multiple_of(2) {
            prompt = format!("{} {prompt}", "The house rules of this assistant are many. ".repeat(40));
        }
        if self.number.is_multiple_of(5) {
            prompt += " [[reasoning:2]]";
        }
        if let Shape::Fault(fault, _) = self.shape {
            prompt += &format!(" [[fault:{fault}]]");
        }
        let mut body = match self.path() {
            "/v1/completions" => json!({"model": self.model, "prompt": prompt, "max_tokens": 64}),
            _ => json!({"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}),
        };
        if self.streams() {
            body["stream"] = true.into();
        }
        match self.shape {
            Shape::Choices(n) => body["n"] = n.into(),
            Shape::Stream { usage, choices } => {
                body["n"] = choices.into();
                if usage {
                    body["stream_options"] = json!({"include_usage": true});
                }
            }
            Shape::CompletionStream => body["stream_options"] = json!({"include_usage": true}),
            Shape::HangUp { counts: true, .. } | Shape::Fault(_, true) => {
                body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
            }
            Shape::UnknownModel => body["model"] = "no-such-model".into(),
            Shape::BadJson => return Bytes::from_static(b"{\"model\": \"llama-3.1-8b\", "),
            _ => {}
        }
        Bytes::from(body.to_string())
    }

    /// Sends it to a gateway, or to the next one where nobody listens, and sees what comes.
    async fn send(self, client: &Client, gateways: &[String], keys: &[String]) -> Seen {
        let key = match self.shape {
            Shape::BadKey => "tg_nobody",
            _ => &keys[self.key],
        };
        let (path, body) = (self.path(), self.body());
        let mut seen =
            Seen { plan: self, status: None, request_id: None, usage: None, tokens: 0, whole: false, code: None };
        let mut tries = 0;
        let answer = loop {
            let url = format!("{}{path}", gateways[tries % gateways.len()]);
            match client.open(Method::POST, &url, Some(key), Some(body.clone())).await {
                Ok(answer) => break answer,
                // Nobody listens: a gateway that was killed is about to be there again.
                Err(broken) if broken.refused && tries < REFUSED_TRIES => {
                    tries += 1;
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                Err(_) => return seen,
            }
        };
        seen.status = Some(answer.status().as_u16());
        seen.request_id = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        if answer.status().is_success() && seen.plan.streams() {
            seen.read_stream(answer.into_body()).await;
        } else {
            let body = tokio::time::timeout(SILENCE, answer.into_body().collect()).await;
            if let Ok(body) = body.expect("an answer that began ends") {
                seen.read_whole(&body.to_bytes());
            }
        }
        seen
    }
}

impl Seen {
    fn read_whole(&mut self, body: &[u8]) {
        let Ok(json) = serde_json::from_slice::<Value>(body) else { return };
        self.whole = true;
        self.code = json["error"]["code"].as_str().map(str::to_owned);
        if json["usage"].is_object() {
            let usage = Told::read(&json["usage"]);
            self.tokens = usage.completion;
            self.usage = Some(usage);
        }
    }

    async fn read_stream(&mut self, mut body: hyper::body::Incoming) {
        let limit = match self.plan.shape {
            Shape::HangUp { after, .. } => usize::from(after),
            _ => usize::MAX,
        };
        let (mut events, mut read) = (Events::default(), 0);
        while read < limit {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await.expect("a stream does not fall silent");
            let Some(Ok(frame)) = frame else { return };
            let came = frame.data_ref().map(|data| events.push(data)).unwrap_or_default();
            for event in came.into_iter().take(limit - read) {
                read += 1;
                self.read_event(&event);
            }
        }
    }

    fn read_event(&mut self, event: &str) {
        if event == "[DONE]" {
            self.whole = true;
            return;
        }
        let Ok(json) = serde_json::from_str::<Value>(event) else { return };
        if let Some(code) = json["error"]["code"].as_str() {
            self.code = Some(code.to_owned());
        }
        let choices = json["choices"].as_array().map_or(0, Vec::len);
        if json["usage"].is_object() {
            let told = Told::read(&json["usage"]);
            self.tokens = self.tokens.max(told.completion);
            if choices == 0 {
                self.usage = Some(told);
            }
        } else if choices > 0 {
            let choice = &json["choices"][0];
            let has_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
            let delta = &choice["delta"];
            let reasoned = has_text(&delta["reasoning_content"]) || has_text(&delta["reasoning"]);
            self.tokens += u64::from(has_text(&delta["content"]) || has_text(&choice["text"]) || reasoned);
        }
    }

    /// True if it was refused before anything was sent to a replica.
    pub fn is_refused(&self) -> bool {
        matches!(self.plan.shape, Shape::UnknownModel | Shape::BadJson | Shape::BadKey)
            || self.code.as_deref() == Some("spool_full")
    }
}

/// Sends them all, `at_once` of them at a time; gives what was seen, by number.
pub async fn run(client: &Client, gateway: &str, keys: &[String], plans: Vec<Planned>, at_once: usize) -> Vec<Seen> {
    run_at(client, &[gateway.to_owned()], keys, plans, at_once).await
}

/// The same of several gateways: the first one, or the next where nobody listens.
pub async fn run_at(
    client: &Client,
    gateways: &[String],
    keys: &[String],
    plans: Vec<Planned>,
    at_once: usize,
) -> Vec<Seen> {
    let sent = plans.into_iter().map(|plan| plan.send(client, gateways, keys));
    let mut seen: Vec<Seen> = futures_util::stream::iter(sent).buffer_unordered(at_once).collect().await;
    seen.sort_by_key(|seen| seen.plan.number);
    seen
}

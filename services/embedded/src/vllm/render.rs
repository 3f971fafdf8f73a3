//! The bytes of answers and events, field by field in the order of vLLM's Python front end.

use std::fmt::Write as _;

use super::engine::Step;
use super::prefix_cache::CacheUse;
use super::request::Endpoint;
use super::tokens::OutputToken;

/// Text as a JSON string: non-ASCII stays as it is, as pydantic writes it.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

pub(super) fn quote_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), quote)
}

fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut out = String::from("[");
    for (index, item) in items.into_iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{item}");
    }
    out.push(']');
    out
}

fn list_or_null<T: std::fmt::Display>(items: Option<Vec<T>>) -> String {
    items.map_or_else(|| "null".to_owned(), list)
}

/// What all events of an answer share.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    pub(super) prompt_details: bool,
}

/// Counts for a usage object.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) prompt: u64,
    pub(super) completion: u64,
    /// Absent: said as null, or not at all.
    pub(super) reasoning: Option<u64>,
    pub(super) cache: CacheUse,
}

impl Counts {
    fn head(&self) -> String {
        let (prompt, completion) = (self.prompt, self.completion);
        format!(r#"{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{completion}"#, prompt + completion)
    }

    fn reasoning(&self) -> String {
        self.reasoning.map_or_else(|| "null".to_owned(), |tokens| format!(r#"{{"reasoning_tokens":{tokens}}}"#))
    }
}

/// Times for the `metrics` object, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Millis {
    pub(super) first_token: f64,
    pub(super) generation: f64,
    pub(super) queue: f64,
    pub(super) tokens: u32,
}

impl Millis {
    pub(super) fn render(self, whole: bool) -> String {
        let between = if self.tokens > 1 { self.generation / f64::from(self.tokens - 1) } else { 0.0 };
        let total = self.first_token + self.generation;
        let rate = if total > 0.0 { f64::from(self.tokens) * 1000.0 / total } else { 0.0 };
        let tail = if whole { r#","speculative_decoding":null"# } else { "" };
        format!(
            r#"{{"time_to_first_token_ms":{:?},"generation_time_ms":{:?},"queue_time_ms":{:?},"mean_itl_ms":{between:?},"tokens_per_second":{rate:?}{tail}}}"#,
            self.first_token, self.generation, self.queue
        )
    }
}

/// Some tokens of one choice: what one event carries, or a whole answer's choice.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub(super) choice: u32,
    pub(super) text: String,
    /// Text of the reasoning; an event has either this or `text`.
    pub(super) reasoning: Option<String>,
    pub(super) tokens: Vec<OutputToken>,
    pub(super) finish: Option<&'static str>,
    pub(super) stop_reason: Option<String>,
    /// A tool call: the event's delta, or the whole answer's list of calls.
    pub(super) tool: Option<String>,
}

impl Piece {
    /// Adds what a step made.
    pub(super) fn add(&mut self, step: &Step, reasoning: bool) {
        self.choice = step.choice;
        if reasoning {
            self.reasoning.get_or_insert_default().push_str(&step.text);
        } else {
            self.text.push_str(&step.text);
        }
        self.tokens.extend(step.token.clone());
        self.finish = step.finish.map(super::stats::Finish::word);
        self.stop_reason.clone_from(&step.stop_reason);
    }

    fn token_ids(&self, asked: bool) -> String {
        list_or_null(asked.then(|| self.tokens.iter().map(|token| token.id).collect()))
    }

    fn logprobs(&self, top: Option<u32>) -> String {
        let Some(top) = top else { return "null".to_owned() };
        let entry = |token: &OutputToken, rank: u32| {
            let bytes = list(token.text.bytes());
            format!(
                r#""token":{},"logprob":{:?},"bytes":{bytes}"#,
                quote(&token.text),
                -0.5 - f64::from(rank) - f64::from(token.id % 64) / 64.0
            )
        };
        let token = |token: &OutputToken| {
            let ranked = list((0..top).map(|rank| format!("{{{}}}", entry(token, rank))));
            format!(r#"{{{},"top_logprobs":{ranked}}}"#, entry(token, 0))
        };
        format!(r#"{{"content":{}}}"#, list(self.tokens.iter().map(token)))
    }
}

/// How events of one answer are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) token_ids: bool,
    pub(super) logprobs: Option<u32>,
}

impl Envelope {
    fn head(&self, object: &str) -> String {
        format!(
            r#"{{"id":{},"object":"{object}","created":{},"model":{},"choices":"#,
            quote(&self.id),
            self.created,
            quote(&self.model)
        )
    }

    fn event(&self, rest: &str) -> String {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        format!("data: {}{rest}}}\n\n", self.head(object))
    }

    /// The usage that every event carries with `continuous_usage_stats`, of one choice.
    fn running_usage(&self, counts: Option<Counts>) -> String {
        let Some(counts) = counts else { return String::new() };
        let tail = match (self.endpoint, counts.reasoning) {
            (Endpoint::Completions, None) => String::new(),
            _ => format!(r#","completion_tokens_details":{}"#, counts.reasoning()),
        };
        format!(r#","usage":{}{tail}}}"#, counts.head())
    }

    /// A chat's first event per choice: the role.
    pub(super) fn role(&self, choice: u32, usage: Option<Counts>, prompt_ids: Option<&[u32]>) -> String {
        let ids = list_or_null(prompt_ids.map(<[u32]>::to_vec));
        self.event(&format!(
            r#"[{{"index":{choice},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]{},"prompt_token_ids":{ids},"prompt_text":null"#,
            self.running_usage(usage)
        ))
    }

    /// An event with text. `last`: no usage event follows, so this one carries the fingerprint.
    pub(super) fn piece(&self, piece: &Piece, form: Form, usage: Option<Counts>, last: bool) -> String {
        let (index, ids, logprobs) = (piece.choice, piece.token_ids(form.token_ids), piece.logprobs(form.logprobs));
        let finish = quote_or_null(piece.finish);
        let stop = quote_or_null(piece.stop_reason.as_deref());
        let choice = match self.endpoint {
            Endpoint::Chat => {
                let delta = match (&piece.tool, &piece.reasoning) {
                    (Some(call), _) => call.clone(),
                    (None, Some(reasoning)) => format!(r#"{{"reasoning":{}}}"#, quote(reasoning)),
                    (None, None) => format!(r#"{{"content":{}}}"#, quote(&piece.text)),
                };
                let stop = if piece.finish.is_some() { format!(r#","stop_reason":{stop}"#) } else { String::new() };
                format!(
                    r#"[{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}{stop},"token_ids":{ids}}}]"#
                )
            }
            Endpoint::Completions => format!(
                r#"[{{"index":{index},"text":{},"logprobs":{logprobs},"finish_reason":{finish},"stop_reason":{stop},"prompt_token_ids":null,"token_ids":{ids}}}]"#,
                quote(&piece.text)
            ),
        };
        let tail = if last { format!(r#","system_fingerprint":{}"#, quote(&self.fingerprint)) } else { String::new() };
        self.event(&format!("{choice}{}{tail}", self.running_usage(usage)))
    }

    /// The event with no choices and the sum of all.
    pub(super) fn usage(&self, counts: Counts, millis: Option<Millis>) -> String {
        let mut usage = counts.head();
        if self.prompt_details {
            let CacheUse { cached, created } = counts.cache;
            let created = match self.endpoint {
                Endpoint::Chat => format!(r#","created_cache_tokens":{created}"#),
                Endpoint::Completions => String::new(),
            };
            let _ = write!(usage, r#","prompt_tokens_details":{{"cached_tokens":{cached}{created}}}"#);
        }
        if counts.reasoning.is_some() {
            let _ = write!(usage, r#","completion_tokens_details":{}"#, counts.reasoning());
        }
        let metrics = millis.map_or_else(String::new, |millis| format!(r#","metrics":{}"#, millis.render(false)));
        self.event(&format!(r#"[],"usage":{usage}}},"system_fingerprint":{}{metrics}"#, quote(&self.fingerprint)))
    }

    /// A whole answer.
    pub(super) fn whole(
        &self,
        pieces: &[Piece],
        form: Form,
        counts: Option<Counts>,
        millis: Option<Millis>,
        prompt_ids: Option<&[u32]>,
    ) -> String {
        let ids = list_or_null(prompt_ids.map(<[u32]>::to_vec));
        let choices = list(pieces.iter().map(|piece| self.whole_choice(piece, form, &ids)));
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completions => "text_completion",
        };
        let prompts = match self.endpoint {
            Endpoint::Chat => format!(r#""prompt_logprobs":null,"prompt_token_ids":{ids},"prompt_text":null,"#),
            Endpoint::Completions => String::new(),
        };
        let usage = counts.map_or_else(|| "null".to_owned(), |counts| self.whole_usage(counts));
        let metrics = millis.map_or_else(|| "null".to_owned(), |millis| millis.render(true));
        format!(
            r#"{}{choices},"service_tier":null,"system_fingerprint":{},"usage":{usage},{prompts}"kv_transfer_params":null,"ec_transfer_params":null,"metrics":{metrics}}}"#,
            self.head(object),
            quote(&self.fingerprint)
        )
    }

    fn whole_choice(&self, piece: &Piece, form: Form, prompt_ids: &str) -> String {
        let (index, ids, logprobs) = (piece.choice, piece.token_ids(form.token_ids), piece.logprobs(form.logprobs));
        let (text, finish, stop) =
            (quote(&piece.text), quote_or_null(piece.finish), quote_or_null(piece.stop_reason.as_deref()));
        let reasoning = quote_or_null(piece.reasoning.as_deref());
        let tools = piece.tool.as_ref().map_or_else(String::new, |calls| format!(r#""tool_calls":{calls},"#));
        match self.endpoint {
            Endpoint::Chat => format!(
                r#"{{"index":{index},"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":null,"audio":null,"function_call":null,{tools}"reasoning":{reasoning}}},"logprobs":{logprobs},"finish_reason":{finish},"stop_reason":{stop},"token_ids":{ids},"routed_experts":null}}"#
            ),
            Endpoint::Completions => format!(
                r#"{{"index":{index},"text":{text},"logprobs":{logprobs},"finish_reason":{finish},"stop_reason":{stop},"token_ids":{ids},"prompt_logprobs":null,"prompt_token_ids":{prompt_ids},"routed_experts":null}}"#
            ),
        }
    }

    fn whole_usage(&self, counts: Counts) -> String {
        let details = if self.prompt_details {
            let CacheUse { cached, created } = counts.cache;
            let created = match self.endpoint {
                Endpoint::Chat => created.to_string(),
                Endpoint::Completions => "null".to_owned(),
            };
            format!(r#"{{"cached_tokens":{cached},"created_cache_tokens":{created},"multimodal_tokens":null}}"#)
        } else {
            "null".to_owned()
        };
        format!(
            r#"{},"prompt_tokens_details":{details},"completion_tokens_details":{}}}"#,
            counts.head(),
            counts.reasoning()
        )
    }
}

/// The error event of a dead engine, spaced as Python's `json.dumps` does.
pub(super) fn error_event(message: &str) -> String {
    format!(
        "data: {{\"error\": {{\"message\": {}, \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}}}\n\n",
        quote(message)
    )
}

/// The end of a stream.
pub(super) const DONE: &str = "data: [DONE]\n\n";

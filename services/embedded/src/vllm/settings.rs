//! The simulator's settings: who it pretends to be, how fast it is, and how its wire misbehaves.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::faults::ArmedFault;

/// What the model does (`--runner`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// Makes text: chats, completions, messages, responses.
    #[default]
    Generate,
    /// Reads only: embeddings, pooling, scores, ranks.
    Pooling,
}

/// What the simulated vLLM serves and how. Names follow vLLM's own flags where there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatorSettings {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Served model names. The first is the one that answers and metrics carry, the others are aliases of it.
    pub models: Vec<String>,
    /// What the model does, and with it which paths there are.
    pub runner: Runner,
    /// Numbers in a vector of a pooling model.
    pub embedding_size: u32,
    /// What `/v1/models` gives as `root`; the first model's name if absent.
    pub root: Option<String>,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: u32,
    /// Microseconds from scheduling to the first token.
    pub time_to_first_token_us: u64,
    /// Microseconds between two output tokens of one choice; 0 is as fast as possible.
    pub time_per_output_token_us: u64,
    /// Tokens per block of the prefix cache (CPU builds of vLLM use 128, GPU builds 16).
    pub block_size: u32,
    /// Blocks in the prefix cache; the least recently used goes first.
    pub cache_blocks: usize,
    /// Tokens after which the model ends by itself when the prompt does not ask otherwise; absent: only the limit ends it.
    pub default_output_tokens: Option<u32>,
    /// Most choices that run at once; others wait.
    pub max_num_seqs: u32,
    /// Most requests that wait; one more is refused with 503. Absent: no bound.
    pub max_num_queued_reqs: Option<u32>,
    /// Chooses texts and ids. Two simulators with one seed answer alike.
    pub seed: u64,
    /// Tokens that the engine still generates after the client has gone.
    pub overshoot_tokens: u32,
    /// Tokens per event after the first of a choice (`--stream-interval`).
    pub stream_interval: u32,
    /// After every so many events comes one with an empty text and no token; 0: never.
    pub empty_event_every: u32,
    /// Milliseconds between `: keep-alive` comments before the first event; 0: none.
    pub keep_alive_interval_ms: u64,
    /// The first so many output tokens of each choice are reasoning, told as `completion_tokens_details.reasoning_tokens`
    /// (OpenAI's shape: the captured Python front end has no count for it and says null).
    pub reasoning_tokens: u32,
    /// `--enable-prompt-tokens-details`: tell cached tokens.
    pub enable_prompt_tokens_details: bool,
    /// `--enable-force-include-usage`: usage on every event, asked for or not.
    pub enable_force_include_usage: bool,
    /// `--enable-per-request-metrics`: a `metrics` object at the end of each answer.
    pub enable_per_request_metrics: bool,
    /// `--enable-request-id-headers`: answers carry `x-request-id`.
    pub enable_request_id_headers: bool,
    /// `--enable-auto-tool-choice` and `--tool-call-parser`: tools are taken, and forced calls made.
    pub enable_auto_tool_choice: bool,
    /// `--api-key`: paths under `/v1` want it as a bearer token.
    pub api_key: Option<String>,
    /// What answers carry as `system_fingerprint`.
    pub system_fingerprint: String,
    /// Events are cut into HTTP chunks of so many bytes; 0: one chunk per event, as vLLM does.
    pub split_bytes: u32,
    /// So many events travel in one HTTP chunk.
    pub events_per_chunk: u32,
    /// Most bytes of one write to the socket; 0: no bound.
    pub max_write_bytes: u32,
    /// Faults armed from the start.
    pub faults: Vec<ArmedFault>,
    /// Requests that `/simulator/requests` remembers; older ones are forgotten.
    pub keep_requests: usize,
}

impl Default for SimulatorSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            models: vec!["llama-3.1-8b".to_owned()],
            runner: Runner::Generate,
            embedding_size: 128,
            root: None,
            max_model_len: 8192,
            time_to_first_token_us: 0,
            time_per_output_token_us: 0,
            block_size: 128,
            cache_blocks: 16_384,
            default_output_tokens: None,
            max_num_seqs: 256,
            max_num_queued_reqs: None,
            seed: 0,
            overshoot_tokens: 8,
            stream_interval: 1,
            empty_event_every: 0,
            keep_alive_interval_ms: 0,
            reasoning_tokens: 0,
            enable_prompt_tokens_details: true,
            enable_force_include_usage: false,
            enable_per_request_metrics: false,
            enable_request_id_headers: false,
            enable_auto_tool_choice: true,
            api_key: None,
            system_fingerprint: "vllm-0.32.0-def0d56e".to_owned(),
            split_bytes: 0,
            events_per_chunk: 1,
            max_write_bytes: 0,
            faults: Vec::new(),
            keep_requests: 100_000,
        }
    }
}

impl SimulatorSettings {
    /// Everything that is wrong with the settings, in words; empty when they can serve.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.models.is_empty() || self.models.iter().any(String::is_empty) {
            wrong.push("models: name at least one model, and leave no name empty".to_owned());
        }
        for (name, value) in [
            ("max_model_len", self.max_model_len),
            ("embedding_size", self.embedding_size),
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("stream_interval", self.stream_interval),
            ("events_per_chunk", self.events_per_chunk),
        ] {
            if value == 0 {
                wrong.push(format!("{name}: must be at least 1"));
            }
        }
        wrong
    }

    /// The name that answers and metrics carry.
    #[must_use]
    pub fn model(&self) -> &str {
        self.models.first().map_or("", String::as_str)
    }
}

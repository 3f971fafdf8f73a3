//! A simulated vLLM: the very bytes of vLLM 0.32.0, exact counts, and every way of failing, all deterministic.
//!
//! Answers are modelled on captures of the real server (its Python front end). There is no randomness: settings and the order of
//! requests decide everything but clocks.
//!
//! - A model that generates serves `/v1/chat/completions`, `/v1/completions`, `/v1/messages`, `/v1/responses` (whole and streamed),
//!   `/v1/messages/count_tokens`; one that pools ([`Runner`]) `/v1/embeddings`, `/pooling`, `/score`, `/v1/score`, `/rerank`, `/v1/rerank`,
//!   `/v2/rerank`; both `/tokenize`, `/detokenize`, `/invocations`, `/v1/models`, `/health`, `/ping`, `/version`, `/load`, `/metrics`.
//! - Counts: see [`count_text`] and [`count_chat`]. The output has `max_tokens` tokens (completions: 16, chats: to the end of the context),
//!   unless the prompt has `[[tokens:N]]` or `default_output_tokens` ends it earlier.
//! - Faults: see [`faults`]; by settings, `PUT /simulator/faults {"faults": [{"fault": "die_mid_stream:3", "when": {"every": 5}}]}`
//!   (`when`: `"always"`, `{"times": n}`, `{"every": k}`; `model` narrows it), the header `x-simulator-fault`, or `[[fault:…]]` in a prompt.
//! - The oracle: `GET /simulator/requests` lists a [`RequestRecord`] per request, `DELETE` forgets them.
//!
//! Not simulated: tool calls that the model chooses itself (`auto` gives text; those that a chat forces are as captured, messages and
//! responses give text), log probabilities of completions, guided decoding, stored responses, vectors as bare bytes. `/detokenize` gives
//! a text for every id, though not that of the prompt they came from.

mod answer;
mod engine;
mod errors;
pub mod faults;
mod inference;
mod markers;
mod messages;
mod metrics;
mod pooling;
mod prefix_cache;
mod prompt;
mod record;
mod render;
mod request;
mod responses;
mod routes;
mod server;
mod settings;
mod socket;
mod stats;
mod stops;
mod tasks;
mod tokenizing;
mod tokens;
mod tools;
mod voice;
mod wire;

pub use faults::{ArmedFault, Fault, FaultError, When};
pub use record::RequestRecord;
pub use server::{Simulator, SimulatorError, serve};
pub use settings::{Runner, SimulatorSettings};
pub use tokens::{count_chat, count_text};

/// Locks, also when a holder panicked: what these locks guard is whole after every statement.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

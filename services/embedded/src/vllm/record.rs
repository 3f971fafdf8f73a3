//! What the simulator knows of each request: the oracle that tests hold bills against.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

/// One request as the engine saw it; what `GET /simulator/requests` lists, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Counts from 1 in the order of arrival.
    pub number: u64,
    /// The `X-Request-Id` header as received.
    pub request_id: Option<String>,
    /// The id that the answer carries; empty when it was refused before it got one.
    pub id: String,
    /// The path.
    pub endpoint: String,
    /// The model as the request names it.
    pub model: Option<String>,
    /// Whether the answer streams.
    pub stream: bool,
    /// Prompt tokens as usage tells them: each prompt once, however many choices.
    pub prompt_tokens: u64,
    /// Those of them that usage tells as cached; known from the first token on.
    pub cached_tokens: u64,
    /// Prompt tokens as `vllm:prompt_tokens_total` counts them: once per choice, from its first token on.
    pub prefilled_tokens: u64,
    /// Output tokens generated, over all choices, overshoot included.
    pub generated_tokens: u64,
    /// Output tokens in what was handed to the connection, over all choices.
    pub wire_tokens: u64,
    /// Events handed to the connection, `[DONE]` included; 1 for a whole answer.
    pub wire_events: u64,
    /// `running`, then one of: `complete`, `client_gone`, `aborted` (the server drained), `rejected` (4xx, 503), or the name of the
    /// fault that ended it.
    pub outcome: String,
    /// The HTTP status of the answer; 0 when there was none.
    pub status: u16,
    /// The fault that struck, if any, in its textual form.
    pub fault: Option<String>,
}

/// One request while it runs: counts are plain adds, the rest is written once.
#[derive(Debug, Default)]
pub(super) struct Entry {
    text: Mutex<RequestRecord>,
    pub(super) cached: AtomicU64,
    pub(super) prefilled: AtomicU64,
    pub(super) generated: AtomicU64,
    pub(super) wire_tokens: AtomicU64,
    pub(super) wire_events: AtomicU64,
}

impl Entry {
    /// Changes what is known besides the counts.
    pub(super) fn note(&self, change: impl FnOnce(&mut RequestRecord)) {
        change(&mut super::lock(&self.text));
    }

    /// Sets the outcome, unless one is set already: the first is the true one.
    pub(super) fn end(&self, outcome: &str) {
        let mut text = super::lock(&self.text);
        if text.outcome == "running" {
            outcome.clone_into(&mut text.outcome);
        }
    }

    pub(super) fn read(&self) -> RequestRecord {
        let mut record = super::lock(&self.text).clone();
        record.cached_tokens = self.cached.load(Ordering::Acquire);
        record.prefilled_tokens = self.prefilled.load(Ordering::Acquire);
        record.generated_tokens = self.generated.load(Ordering::Acquire);
        record.wire_tokens = self.wire_tokens.load(Ordering::Acquire);
        record.wire_events = self.wire_events.load(Ordering::Acquire);
        record
    }
}

/// The latest requests, bounded.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    state: Mutex<(u64, VecDeque<Arc<Entry>>)>,
    keep: usize,
}

impl Ledger {
    pub(super) fn new(keep: usize) -> Self {
        Self { state: Mutex::default(), keep }
    }

    /// Enters a request; it is `running` until told otherwise.
    pub(super) fn open(&self, endpoint: &str, request_id: Option<String>) -> (u64, Arc<Entry>) {
        let entry = Arc::new(Entry::default());
        let mut state = super::lock(&self.state);
        state.0 += 1;
        let number = state.0;
        entry.note(|record| {
            record.number = number;
            record.request_id = request_id;
            endpoint.clone_into(&mut record.endpoint);
            "running".clone_into(&mut record.outcome);
        });
        state.1.push_back(Arc::clone(&entry));
        while state.1.len() > self.keep {
            state.1.pop_front();
        }
        (number, entry)
    }

    pub(super) fn read(&self) -> Vec<RequestRecord> {
        super::lock(&self.state).1.iter().map(|entry| entry.read()).collect()
    }

    /// Forgets the requests; numbers go on.
    pub(super) fn clear(&self) {
        super::lock(&self.state).1.clear();
    }
}

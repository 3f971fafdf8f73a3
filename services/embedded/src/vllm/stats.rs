//! The engine's counters and gauges, as `/metrics` tells them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How a choice ended, in vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
    Abort,
}

impl Finish {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// A histogram with vLLM's own bucket bounds.
#[derive(Debug)]
pub(super) struct Histogram {
    pub(super) bounds: Vec<f64>,
    state: Mutex<(Vec<u64>, u64, f64)>,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), state: Mutex::new((vec![0; bounds.len()], 0, 0.0)) }
    }

    pub(super) fn observe(&self, value: f64) {
        let mut state = super::lock(&self.state);
        for (bound, count) in self.bounds.iter().zip(state.0.iter_mut()) {
            *count += u64::from(value <= *bound);
        }
        state.1 += 1;
        state.2 += value;
    }

    /// Cumulative counts per bound, count, sum.
    pub(super) fn read(&self) -> (Vec<u64>, u64, f64) {
        super::lock(&self.state).clone()
    }
}

const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// 1, 2, 5, 10, 20, 50, … up to the longest context.
fn token_bounds(max_model_len: u32) -> Vec<f64> {
    let decades = (0..10).map(|power| 10_u64.pow(power));
    let series = decades.flat_map(|decade| [1, 2, 5].map(|step| step * decade));
    series.take_while(|bound| *bound <= u64::from(max_model_len)).map(|bound| bound as f64).collect()
}

const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Everything the engine counts. Token counters grow as tokens are made, not when a request ends.
#[derive(Debug)]
pub(super) struct Stats {
    pub(super) running: AtomicI64,
    pub(super) waiting: AtomicI64,
    /// Tokens held in the cache by running choices.
    pub(super) resident: AtomicI64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generation_tokens: AtomicU64,
    pub(super) stopped: AtomicU64,
    pub(super) lengthy: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) request_prompt_tokens: Histogram,
    pub(super) request_generation_tokens: Histogram,
    pub(super) time_to_first_token: Histogram,
    pub(super) e2e_latency: Histogram,
    pub(super) queue_time: Histogram,
}

impl Stats {
    /// Zeros, with bounds for this longest context.
    pub(super) fn new(max_model_len: u32) -> Self {
        let tokens = token_bounds(max_model_len);
        Self {
            running: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            resident: AtomicI64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
            lengthy: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            request_prompt_tokens: Histogram::new(&tokens),
            request_generation_tokens: Histogram::new(&tokens),
            time_to_first_token: Histogram::new(FIRST_TOKEN),
            e2e_latency: Histogram::new(LATENCY),
            queue_time: Histogram::new(LATENCY),
        }
    }

    /// A choice ended by itself or at its limit. Aborted ones are counted nowhere, as in the Python front end.
    pub(super) fn finished(&self, finish: Finish, prompt_tokens: u32, generated: u32) {
        match finish {
            Finish::Stop => self.stopped.fetch_add(1, Ordering::Relaxed),
            Finish::Length => self.lengthy.fetch_add(1, Ordering::Relaxed),
            Finish::Abort => return,
        };
        self.request_prompt_tokens.observe(f64::from(prompt_tokens));
        self.request_generation_tokens.observe(f64::from(generated));
    }
}

/// A gauge that stands as long as this lives.
pub(super) struct Held<'a> {
    gauge: &'a AtomicI64,
    amount: i64,
}

impl<'a> Held<'a> {
    pub(super) fn new(gauge: &'a AtomicI64, amount: i64) -> Self {
        gauge.fetch_add(amount, Ordering::AcqRel);
        Self { gauge, amount }
    }

    pub(super) fn change(&mut self, by: i64) {
        self.gauge.fetch_add(by, Ordering::AcqRel);
        self.amount += by;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.amount, Ordering::AcqRel);
    }
}

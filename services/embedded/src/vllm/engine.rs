//! The engine: takes plans, waits for room, makes tokens at its pace, stops a while after its client has gone.
//!
//! One task per request; all its choices advance together, choice 0 first, so that the order of events never varies.
//! What it makes goes into an unbounded channel: a client that does not read holds nothing back, as with vLLM.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::prefix_cache::{CacheUse, PrefixCache};
use super::record::Entry;
use super::settings::SimulatorSettings;
use super::stats::{Finish, Held, Stats};
use super::stops::StopWatch;
use super::tokens::{OutputToken, Writer};

/// One choice to be generated.
#[derive(Clone, Debug)]
pub(super) struct ChoicePlan {
    pub(super) prompt: Arc<[u32]>,
    /// Tokens to make; 0: the prompt is only read, for a pooling model.
    pub(super) limit: u32,
    /// The model ends by itself after so many tokens, the last of them the (silent) end token.
    pub(super) natural: Option<u32>,
}

/// One request to be generated.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) choices: Vec<ChoicePlan>,
    pub(super) stops: Vec<String>,
    pub(super) include_stop: bool,
    pub(super) cache_salt: u64,
    /// The server drains after so many tokens.
    pub(super) abort_after: Option<u32>,
}

/// One token of one choice, or its end without one.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) choice: u32,
    /// Absent when the choice is aborted before another token.
    pub(super) token: Option<OutputToken>,
    /// Text that is released now; what might begin a stop string is held back.
    pub(super) text: String,
    pub(super) finish: Option<Finish>,
    /// The stop string that ended it.
    pub(super) stop_reason: Option<String>,
    pub(super) cache: CacheUse,
}

/// When things happened, for the `metrics` object of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) arrived: Instant,
    pub(super) scheduled: Option<Instant>,
}

/// A running request. Dropping it tells the engine that the client has gone.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) steps: mpsc::UnboundedReceiver<Step>,
    pub(super) timing: Arc<Mutex<Timing>>,
    gone: CancellationToken,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// The engine cannot take another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) settings: Arc<SimulatorSettings>,
    pub(super) stats: Stats,
    slots: Semaphore,
    cache: Mutex<PrefixCache>,
    drain: CancellationToken,
    tasks: TaskTracker,
}

impl Engine {
    pub(super) fn new(settings: Arc<SimulatorSettings>) -> Self {
        Self {
            stats: Stats::new(settings.max_model_len),
            slots: Semaphore::new(usize::try_from(settings.max_num_seqs).unwrap_or(Semaphore::MAX_PERMITS)),
            cache: Mutex::new(PrefixCache::new(settings.block_size, settings.cache_blocks)),
            drain: CancellationToken::new(),
            tasks: TaskTracker::new(),
            settings,
        }
    }

    /// Starts a request, or refuses it when too many wait.
    pub(super) fn submit(self: &Arc<Self>, plan: Plan, entry: Arc<Entry>) -> Result<Generation, Busy> {
        if let Some(most) = self.settings.max_num_queued_reqs
            && self.stats.waiting.load(Ordering::Acquire) >= i64::from(most)
            && self.slots.available_permits() == 0
        {
            self.stats.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(Busy);
        }
        let (sender, steps) = mpsc::unbounded_channel();
        let gone = CancellationToken::new();
        let timing = Arc::new(Mutex::new(Timing { arrived: Instant::now(), scheduled: None }));
        let run =
            Run { engine: Arc::clone(self), plan, entry, sender, gone: gone.clone(), timing: Arc::clone(&timing) };
        self.tasks.spawn(run.work());
        Ok(Generation { steps, timing, gone })
    }

    /// Ends every running choice with `abort` and waits until all have ended.
    pub(super) async fn drain(&self) {
        self.drain.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Run {
    engine: Arc<Engine>,
    plan: Plan,
    entry: Arc<Entry>,
    sender: mpsc::UnboundedSender<Step>,
    gone: CancellationToken,
    timing: Arc<Mutex<Timing>>,
}

/// One choice on its way.
struct Choice {
    index: u32,
    plan: ChoicePlan,
    writer: Writer,
    stops: StopWatch,
    made: u32,
    cache: CacheUse,
    done: bool,
}

impl Run {
    async fn work(self) {
        let engine = Arc::clone(&self.engine);
        let (stats, settings) = (&engine.stats, &engine.settings);
        let count = u32::try_from(self.plan.choices.len()).unwrap_or(u32::MAX);
        let queued = Instant::now();
        let waiting = Held::new(&stats.waiting, i64::from(count));
        let permits = engine.slots.acquire_many(count.min(settings.max_num_seqs));
        let _permits = tokio::select! {
            biased;
            () = self.gone.cancelled() => return,
            () = engine.drain.cancelled() => return self.abort_all(),
            permits = permits => permits,
        };
        drop(waiting);
        let mut running = Held::new(&stats.running, i64::from(count));
        let now = Instant::now();
        super::lock(&self.timing).scheduled = Some(now);
        stats.queue_time.observe(now.duration_since(queued).as_secs_f64());
        let mut due = now + Duration::from_micros(settings.time_to_first_token_us);
        if self.pause(due).await.is_break() {
            return;
        }
        let mut choices = self.prefill();
        stats.time_to_first_token.observe(queued.elapsed().as_secs_f64());
        let prompts: i64 = choices.iter().map(|choice| i64::try_from(choice.plan.prompt.len()).unwrap_or(0)).sum();
        let mut resident = Held::new(&stats.resident, prompts);
        let mut ticks = 0_u32;
        loop {
            let draining = engine.drain.is_cancelled() || self.plan.abort_after.is_some_and(|after| ticks + 1 >= after);
            for choice in choices.iter_mut().filter(|choice| !choice.done) {
                if choice.plan.limit == 0 {
                    self.pooled(choice);
                } else {
                    self.advance(choice, draining);
                    resident.change(1);
                }
                if choice.done {
                    running.change(-1);
                }
            }
            ticks += 1;
            if choices.iter().all(|choice| choice.done) {
                break;
            }
            due += Duration::from_micros(settings.time_per_output_token_us);
            if self.gone.is_cancelled() || self.pause(due).await.is_break() {
                return self.overshoot(&mut choices);
            }
            if settings.time_per_output_token_us == 0 && ticks.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
        stats.e2e_latency.observe(queued.elapsed().as_secs_f64());
    }

    /// Waits for the next token's time. Breaks when the client has gone; a drain cuts the wait short.
    async fn pause(&self, due: Instant) -> std::ops::ControlFlow<()> {
        if due <= Instant::now() {
            return std::ops::ControlFlow::Continue(());
        }
        tokio::select! {
            biased;
            () = self.gone.cancelled() => std::ops::ControlFlow::Break(()),
            () = self.engine.drain.cancelled() => std::ops::ControlFlow::Continue(()),
            () = sleep_until(due) => std::ops::ControlFlow::Continue(()),
        }
    }

    /// Reads the prompts: every choice counts its whole prompt, and finds in the cache what those before it left.
    fn prefill(&self) -> Vec<Choice> {
        let stats = &self.engine.stats;
        let mut cache = super::lock(&self.engine.cache);
        let seed = self.engine.settings.seed;
        let admit = |(index, plan): (u32, &ChoicePlan)| {
            let used = cache.admit(self.plan.cache_salt, &plan.prompt);
            let tokens = plan.prompt.len() as u64;
            stats.prompt_tokens.fetch_add(tokens, Ordering::AcqRel);
            stats.cached_tokens.fetch_add(u64::from(used.cached), Ordering::AcqRel);
            self.entry.prefilled.fetch_add(tokens, Ordering::AcqRel);
            Choice {
                index,
                plan: plan.clone(),
                writer: Writer::new(seed, &plan.prompt, index),
                stops: StopWatch::new(&self.plan.stops, self.plan.include_stop),
                made: 0,
                cache: used,
                done: false,
            }
        };
        (0..).zip(&self.plan.choices).map(admit).collect()
    }

    /// A prompt that was only read has ended.
    fn pooled(&self, choice: &mut Choice) {
        choice.done = true;
        let prompt = u32::try_from(choice.plan.prompt.len()).unwrap_or(u32::MAX);
        self.engine.stats.finished(Finish::Stop, prompt, 0);
        let _ = self.sender.send(Step {
            choice: choice.index,
            token: None,
            text: String::new(),
            finish: Some(Finish::Stop),
            stop_reason: None,
            cache: choice.cache,
        });
    }

    /// Makes one token of one choice and hands it over.
    fn advance(&self, choice: &mut Choice, draining: bool) {
        choice.made += 1;
        let natural = choice.plan.natural.is_some_and(|natural| choice.made >= natural);
        let limit = choice.made >= choice.plan.limit;
        let mut token = choice.writer.next(natural || limit || draining);
        if natural {
            token.text.clear();
        }
        self.engine.stats.generation_tokens.fetch_add(1, Ordering::AcqRel);
        self.entry.generated.fetch_add(1, Ordering::AcqRel);
        let (mut text, stop_reason) = choice.stops.push(&token.text);
        let finish = match (&stop_reason, natural, limit, draining) {
            (Some(_), ..) | (None, true, ..) => Some(Finish::Stop),
            (None, false, true, _) => Some(Finish::Length),
            (None, false, false, true) => Some(Finish::Abort),
            (None, false, false, false) => None,
        };
        if let Some(finish) = finish {
            choice.done = true;
            if stop_reason.is_none() {
                text.push_str(&choice.stops.rest());
            }
            self.engine.stats.finished(
                finish,
                u32::try_from(choice.plan.prompt.len()).unwrap_or(u32::MAX),
                choice.made,
            );
        }
        // A closed channel means that the client has gone: what is made now is overshoot.
        let _ = self.sender.send(Step {
            choice: choice.index,
            token: Some(token),
            text,
            finish,
            stop_reason,
            cache: choice.cache,
        });
    }

    /// The tokens made between the disconnect and the moment the engine notices it.
    fn overshoot(&self, choices: &mut [Choice]) {
        for _ in 0..self.engine.settings.overshoot_tokens {
            for choice in choices.iter_mut().filter(|choice| !choice.done) {
                self.advance(choice, false);
            }
        }
    }

    fn abort_all(&self) {
        for index in (0..).take(self.plan.choices.len()) {
            let step = Step {
                choice: index,
                token: None,
                text: String::new(),
                finish: Some(Finish::Abort),
                stop_reason: None,
                cache: CacheUse::default(),
            };
            let _ = self.sender.send(step);
        }
    }
}

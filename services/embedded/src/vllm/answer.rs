//! From the engine's steps to events and whole answers.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::engine::{Generation, Step};
use super::render::{Counts, Form, Millis, Piece};
use super::request::Ask;
use super::settings::SimulatorSettings;
use super::voice::{Ended, Voice};

/// Bytes for the connection, and the output tokens that they carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) bytes: Bytes,
    pub(super) tokens: u64,
}

impl Event {
    pub(super) fn new(text: String, tokens: u64) -> Self {
        Self { bytes: Bytes::from(text), tokens }
    }
}

/// One choice as told so far.
#[derive(Clone, Debug, Default)]
struct Told {
    piece: Piece,
    waiting: u32,
    generated: u64,
    reasoning: u64,
    events: u32,
    done: bool,
    echo: String,
}

/// An answer in the making.
pub(super) struct Answer {
    voice: Voice,
    ask: Ask,
    generation: Generation,
    told: Vec<Told>,
    queue: VecDeque<Event>,
    /// Tokens that no event has carried yet: some voices have no event without a text.
    owed: u64,
    started: bool,
    ended: bool,
    cache: super::prefix_cache::CacheUse,
    first_step: Option<tokio::time::Instant>,
    keep_alive: Duration,
    empty_every: u32,
    per_request_metrics: bool,
    tool_id: String,
}

impl Answer {
    /// `tool_id`: the id of the call that the answer may be.
    pub(super) fn new(
        voice: Voice,
        tool_id: String,
        ask: Ask,
        generation: Generation,
        settings: &SimulatorSettings,
    ) -> Self {
        let per_prompt = usize::try_from(ask.choices_per_prompt).unwrap_or(1);
        let echo = |prompt: &super::prompt::Prompt| if ask.echo { prompt.text.clone() } else { String::new() };
        let told = ask
            .prompts
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(Told { echo: echo(prompt), ..Told::default() }, per_prompt))
            .collect();
        // Only chats and completions are kept alive.
        let keep_alive = if matches!(voice, Voice::Choices(_)) { settings.keep_alive_interval_ms } else { 0 };
        let mut answer = Self {
            tool_id,
            voice,
            ask,
            generation,
            told,
            queue: VecDeque::new(),
            owed: 0,
            started: false,
            ended: false,
            cache: super::prefix_cache::CacheUse::default(),
            first_step: None,
            keep_alive: Duration::from_millis(keep_alive),
            empty_every: settings.empty_event_every,
            per_request_metrics: settings.enable_per_request_metrics,
        };
        if answer.ask.stream {
            let greeting = answer.voice.greeting();
            answer.say(greeting, 0);
        }
        answer
    }

    /// Puts events into the queue; the first carries the tokens.
    fn say(&mut self, events: Vec<String>, tokens: u64) {
        self.owed += tokens;
        for event in events {
            self.queue.push_back(Event::new(event, std::mem::take(&mut self.owed)));
        }
    }

    /// What a stream says when the engine dies.
    pub(super) fn broken(&self, message: &str) -> Option<String> {
        self.voice.broken(message)
    }

    /// Whether all events have been taken.
    pub(super) fn ended(&self) -> bool {
        self.ended && self.queue.is_empty()
    }

    /// The next event of a stream; none after `[DONE]`.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let waits = !self.started && !self.keep_alive.is_zero();
            let step = if waits {
                match tokio::time::timeout(self.keep_alive, self.generation.steps.recv()).await {
                    Ok(step) => step,
                    Err(_) => return Some(Event::new(": keep-alive\n\n".to_owned(), 0)),
                }
            } else {
                self.generation.steps.recv().await
            };
            match step {
                Some(step) => self.take(&step),
                None => self.ended = true,
            }
        }
    }

    /// The cached tokens that usage tells. A completion with several prompts tells only those of one prompt, as vLLM does.
    pub(super) fn cached_tokens(&self) -> u32 {
        self.cache.cached
    }

    fn take(&mut self, step: &Step) {
        self.note_first(step);
        if !self.started {
            self.started = true;
            self.start();
        }
        let form = self.form();
        let prompt = self.prompt_of(step.choice);
        let (interval, limit) = (self.ask.stream_interval, u64::from(self.ask.reasoning_tokens));
        let Some(told) = usize::try_from(step.choice).ok().and_then(|index| self.told.get_mut(index)) else { return };
        let reasons = step.token.is_some() && told.generated < limit;
        told.piece.add(step, reasons);
        told.waiting += 1;
        told.generated += u64::from(step.token.is_some());
        told.reasoning += u64::from(reasons);
        told.done = step.finish.is_some();
        let call = self.ask.tool.as_ref().map(|tool| tool.delta(&self.tool_id, told.generated, told.done));
        let due = match &call {
            Some(delta) => delta.is_some(),
            None => told.due(interval, reasons && told.generated == limit),
        };
        if !due {
            return;
        }
        let mut piece = std::mem::take(&mut told.piece);
        piece.tool = call.flatten();
        if let Some(tool) = &self.ask.tool
            && piece.finish == Some("stop")
        {
            piece.finish = Some(tool.finish());
        }
        if told.events == 0 && !told.echo.is_empty() {
            piece.text.insert_str(0, &told.echo);
        }
        if self.ask.echo_only {
            piece.text.clone_from(&told.echo);
        }
        told.events += 1;
        told.waiting = 0;
        let (events, counts) = (told.events, told.counts(prompt, limit > 0));
        let all_done = self.told.iter().all(|told| told.done);
        let usage = self.ask.continuous_usage.then_some(counts);
        let texts = self.voice.piece(&piece, form, usage, all_done && !self.ask.include_usage);
        self.say(texts, piece.tokens.len() as u64);
        if self.empty_every > 0 && events.is_multiple_of(self.empty_every) && piece.finish.is_none() {
            let empty = Piece { choice: piece.choice, ..Piece::default() };
            let texts = self.voice.piece(&empty, form, usage, false);
            self.say(texts, 0);
        }
        if all_done {
            self.close();
        }
    }

    fn note_first(&mut self, step: &Step) {
        self.first_step.get_or_insert_with(tokio::time::Instant::now);
        if step.choice == 0 {
            self.cache = step.cache;
        }
    }

    fn start(&mut self) {
        for choice in (0..).take(self.told.len()) {
            let prompt = self.prompt_of(choice);
            let usage = self.ask.continuous_usage.then_some(Counts {
                prompt,
                reasoning: (self.ask.reasoning_tokens > 0).then_some(0),
                ..Counts::default()
            });
            let ids = self
                .ask
                .return_token_ids
                .then(|| self.ask.prompts.first().map(|prompt| prompt.tokens.clone()))
                .flatten();
            let text = self.voice.start(choice, usage, ids.as_deref());
            self.say(text.into_iter().collect(), 0);
        }
    }

    fn close(&mut self) {
        let ended = self.sums(self.ask.include_usage);
        let texts = self.voice.close(&ended);
        self.say(texts, 0);
        self.ended = true;
    }

    fn sums(&self, tell_usage: bool) -> Ended {
        Ended { counts: self.sum(), millis: self.millis(), tell_usage }
    }

    fn form(&self) -> Form {
        Form { token_ids: self.ask.return_token_ids, logprobs: self.ask.logprobs }
    }

    fn prompt_of(&self, choice: u32) -> u64 {
        let index = usize::try_from(choice / self.ask.choices_per_prompt.max(1)).unwrap_or(0);
        self.ask.prompts.get(index).map_or(0, |prompt| prompt.tokens.len() as u64)
    }

    fn sum(&self) -> Counts {
        Counts {
            prompt: self.ask.prompt_tokens(),
            completion: self.told.iter().map(|told| told.generated).sum(),
            reasoning: (self.ask.reasoning_tokens > 0).then(|| self.told.iter().map(|told| told.reasoning).sum()),
            cache: self.cache,
        }
    }

    fn millis(&self) -> Option<Millis> {
        let timing = *super::lock(&self.generation.timing);
        self.per_request_metrics.then(|| {
            let scheduled = timing.scheduled.unwrap_or(timing.arrived);
            let first = self.first_step.unwrap_or(scheduled);
            let millis = |span: Duration| span.as_secs_f64() * 1000.0;
            Millis {
                first_token: millis(first.duration_since(scheduled)),
                generation: millis(first.elapsed()),
                queue: millis(scheduled.duration_since(timing.arrived)),
                tokens: u32::try_from(self.told.iter().map(|told| told.generated).sum::<u64>()).unwrap_or(u32::MAX),
            }
        })
    }

    /// The whole answer, once all choices have ended. `tell_usage` false: usage is null.
    pub(super) async fn whole(&mut self, tell_usage: bool) -> Event {
        while !self.told.iter().all(|told| told.done) {
            let Some(step) = self.generation.steps.recv().await else { break };
            self.note_first(&step);
            let limit = u64::from(self.ask.reasoning_tokens);
            let Some(told) = usize::try_from(step.choice).ok().and_then(|index| self.told.get_mut(index)) else {
                continue;
            };
            let reasons = step.token.is_some() && told.generated < limit;
            told.piece.add(&step, reasons);
            told.generated += u64::from(step.token.is_some());
            told.reasoning += u64::from(reasons);
            told.done = step.finish.is_some();
        }
        for (index, told) in (0..).zip(&mut self.told) {
            told.piece.choice = index;
            told.piece.text.insert_str(0, &told.echo);
            if self.ask.echo_only {
                told.piece.text.clone_from(&told.echo);
            }
            if let Some(tool) = &self.ask.tool {
                told.piece.tool = tool.whole(&self.tool_id, told.generated);
                told.piece.text.clear();
                if told.piece.finish == Some("stop") {
                    told.piece.finish = Some(tool.finish());
                }
            }
        }
        let pieces: Vec<Piece> = self.told.iter_mut().map(|told| std::mem::take(&mut told.piece)).collect();
        let ended = self.sums(tell_usage);
        let ids =
            self.ask.return_token_ids.then(|| self.ask.prompts.first().map(|prompt| prompt.tokens.clone())).flatten();
        let text = self.voice.whole(&pieces, self.form(), &ended, ids.as_deref());
        Event::new(text, ended.counts.completion)
    }
}

impl Told {
    /// Whether an event leaves now: the first token alone, then so many together.
    fn due(&self, interval: u32, reasoning_ends: bool) -> bool {
        self.events == 0 || self.waiting >= interval || self.done || reasoning_ends
    }

    fn counts(&self, prompt: u64, reasons: bool) -> Counts {
        Counts { prompt, completion: self.generated, reasoning: reasons.then_some(self.reasoning), ..Counts::default() }
    }
}

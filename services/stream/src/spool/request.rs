//! The life of one request in the spool: let in, counted while it runs, closed once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ledger::time::Micros;
use ledger::tokens::{TOKENS_MAX, TokenCounts};
use schemas::event::EndReason;

use super::Spool;
use super::book::{CLOSING_ROOM, Delayed};
use super::close::{Admission, Closing, Count, Finish, Settled, Usage, close, count, settle};
use super::frame::{Entry, Position, Tally};
use super::log::{AppendError, Draft, Guard};
use crate::inflight::Slot;
use crate::spend::Amount;

/// Why a request was not let in. The plan says whether it is then refused or served at a counted loss.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// No room: Kafka has been away for long, or the limit is small.
    #[error("the spool is full: {used} of {max} bytes are used or reserved; is Kafka reachable?")]
    Full {
        /// Bytes used or reserved.
        used: u64,
        /// `spool.max_bytes`.
        max: u64,
    },
    /// As many requests are open as the in-flight table has slots.
    #[error("{0} requests are open, as many as spool.slots allows")]
    NoSlot(u32),
    /// It could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// What a checkpoint billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Output and reasoning since the checkpoint before; it is in [`Spool::spend`] now.
    pub delta: TokenCounts,
    /// The end of its frame.
    pub position: Position,
}

/// A request that has its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// What was billed in all.
    pub settled: Settled,
    /// Of that, what checkpoints had billed before.
    pub billed_before: TokenCounts,
    /// The end of the closing frame. If `delayed`, nothing durable stands for it yet.
    pub position: Position,
    /// True if the disk refused the closing frame: it is kept in memory and the in-flight table, and tried again. A crash
    /// of the process finishes the request as `gateway_lost` with the counts of the table.
    pub delayed: bool,
}

/// A request that was let in. Dropped without [`OpenRequest::finish`], it ends as `gateway_lost`.
#[derive(Debug)]
pub struct OpenRequest {
    spool: Spool,
    admission: Arc<Admission>,
    slot: Option<Slot>,
    pin: u64,
    attempt: u32,
    attempts: u32,
    replica: String,
    tally: Tally,
    billed: Tally,
    checkpoint_at: Micros,
}

impl Spool {
    /// Lets a request in: it is in the spool, has a slot in the in-flight table, and room for its end.
    ///
    /// # Errors
    /// See [`AdmitError`]; nothing is then left of it.
    pub fn admit(&self, admission: Admission) -> Result<OpenRequest, AdmitError> {
        let mut slot = self.0.table.take().ok_or(AdmitError::NoSlot(self.0.table.slots()))?;
        let json = serde_json::to_vec(&admission).map_err(|error| AppendError::Disk(error.into()))?;
        let request = admission.request_id.0;
        let now = self.0.clock.now();
        let state = self.0.log.lock();
        if state.closed {
            return Err(AppendError::Closed.into());
        }
        let used = state.bytes() + state.book.reserved() + json.len() as u64 + 64;
        let room = CLOSING_ROOM + self.stop_room();
        if used + room > self.0.settings.max_bytes {
            return Err(AdmitError::Full { used, max: self.0.settings.max_bytes });
        }
        let entry = Entry::Admitted { request, slot: slot.index(), admission: json };
        let build = &mut |draft: &mut Draft<'_>| {
            draft.push(&entry);
            Ok(())
        };
        let (mut state, result) = self.0.log.append(state, now, build);
        if let Err(error) = result {
            self.0.disk_errors.fetch_add(1, Ordering::Relaxed);
            return Err(error.into());
        }
        let pin = state.active_segment();
        state.book.admitted(pin);
        drop(state);
        slot.begin(request);
        Ok(OpenRequest {
            spool: self.clone(),
            admission: Arc::new(admission),
            slot: Some(slot),
            pin,
            attempt: 0,
            attempts: 0,
            replica: String::new(),
            tally: Tally::default(),
            billed: Tally::default(),
            checkpoint_at: Micros(now),
        })
    }

    /// Room that is always left for the marks of a stop and of the start after it, in bytes.
    fn stop_room(&self) -> u64 {
        let partitions: u64 = self.topics().iter().map(|topic| topic.partitions.max(0) as u64).sum();
        (partitions * 512 + 4096) * 2
    }

    /// Appends a closing frame and counts it as spent; returns its end.
    pub(super) fn append_closing<'a>(
        &'a self,
        state: Guard<'a>,
        closing: &Closing,
    ) -> (Guard<'a>, Result<Position, AppendError>) {
        let mut spent = None;
        let build = &mut |draft: &mut Draft<'_>| {
            spent = Some(close(draft, closing)?);
            Ok(())
        };
        let now = self.0.clock.now();
        let (state, result) = self.0.log.append(state, now, build);
        if let (Ok(_), Some(spent)) = (&result, &spent) {
            self.spent(spent, state.active_segment());
        }
        (state, result)
    }
}

impl OpenRequest {
    /// What is known of the request.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// A try at a replica begins, numbered from 0. No later one may begin once an answer's first byte was received.
    pub fn attempt(&mut self, number: u32, replica: &str) {
        (self.attempt, self.replica) = (number, replica.to_owned());
        self.attempts = self.attempts.max(number + 1);
        if let Some(slot) = &mut self.slot {
            slot.attempt(number, replica);
        }
    }

    /// The running totals of the request, over its choices: the prompt (cached or not), generated tokens without
    /// reasoning, and reasoning. To be called before the frame they came with is handed to the client; a frame without
    /// counts repeats the last ones. Plain stores, no system call. Totals that go back, or are above what one request can
    /// have, are not taken.
    pub fn received(&mut self, input: u64, output: u64, reasoning: u64) {
        let tally = &mut self.tally;
        tally.frames += 1;
        if input <= TOKENS_MAX {
            tally.input = tally.input.max(input);
        }
        let possible = output <= TOKENS_MAX && reasoning <= TOKENS_MAX;
        if possible && output + reasoning >= tally.output + tally.reasoning {
            (tally.output, tally.reasoning) = (output, reasoning);
        }
        if let Some(slot) = &mut self.slot {
            slot.count(self.tally);
        }
    }

    /// The totals that were last stored: input, output, reasoning.
    pub fn counted(&self) -> (u64, u64, u64) {
        (self.tally.input, self.tally.output, self.tally.reasoning)
    }

    /// True if a checkpoint is due by the settings.
    pub fn due(&self, now: Micros) -> bool {
        let settings = &self.spool.0.settings;
        let tokens = self.tally.output + self.tally.reasoning;
        let open = tokens.saturating_sub(self.billed.output + self.billed.reasoning);
        let waited = now.0.saturating_sub(self.checkpoint_at.0) >= settings.checkpoint_interval_ms as i64 * 1000;
        open >= settings.checkpoint_tokens || (open > 0 && waited)
    }

    /// Bills the output and reasoning since the last checkpoint. Nothing happens (none) if there are none, if one of the
    /// two went back, or if the spool has no room to spare: the counts then come with the next one, or the last.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was billed.
    pub fn checkpoint(&mut self) -> Result<Option<Checkpoint>, AppendError> {
        let now = self.spool.0.clock.now();
        self.checkpoint_at = Micros(now);
        let of = |tally: &Tally| TokenCounts { output: tally.output, reasoning: tally.reasoning, ..Default::default() };
        let Ok(delta) = of(&self.tally).since(of(&self.billed)) else { return Ok(None) };
        if delta == TokenCounts::default() {
            return Ok(None);
        }
        let state = self.spool.0.log.lock();
        let used = state.bytes() + state.book.reserved() + CLOSING_ROOM + self.spool.stop_room();
        if used > self.spool.0.settings.max_bytes {
            return Ok(None);
        }
        let one = Count {
            admission: &self.admission,
            attempt: self.attempt,
            replica: &self.replica,
            before: of(&self.billed),
            cumulative: of(&self.tally),
            requests: 0,
            end: None,
            estimated: false,
            recovered: false,
        };
        let note = Entry::Progress {
            request: self.admission.request_id.0,
            attempt: self.attempt,
            replica: self.replica.chars().take(64).collect(),
            tally: self.tally,
        };
        let mut spent = None;
        let build = &mut |draft: &mut Draft<'_>| {
            spent = Some(count(draft, &one)?);
            draft.push(&note);
            Ok(())
        };
        let (state, result) = self.spool.0.log.append(state, now, build);
        let position = result?;
        if let Some(spent) = &spent {
            self.spool.spent(spent, state.active_segment());
        }
        drop(state);
        self.billed = self.tally;
        Ok(Some(Checkpoint { delta, position }))
    }

    /// Ends the request: its last count and its end go into the spool as one frame, then its slot is free. To be called
    /// before the client sees the end.
    pub fn finish(mut self, finish: Finish) -> Finished {
        self.end(finish)
    }

    fn end(&mut self, finish: Finish) -> Finished {
        let settled = settle(finish.usage, self.tally, self.billed);
        let billed_before =
            TokenCounts { output: self.billed.output, reasoning: self.billed.reasoning, ..Default::default() };
        let closing = Closing {
            admission: Arc::clone(&self.admission),
            attempt: self.attempt,
            attempts: self.attempts,
            replica: std::mem::take(&mut self.replica),
            finish,
            settled,
            billed: self.billed,
            recovered: false,
        };
        let state = self.spool.0.log.lock();
        let (mut state, result) = self.spool.append_closing(state, &closing);
        let finished = |position, delayed| Finished { settled, billed_before, position, delayed };
        match result {
            Ok(position) => {
                state.book.ended(position, self.pin);
                drop(state);
                self.slot = None;
                finished(position, false)
            }
            Err(error) => {
                tracing::error!(request = %self.admission.request_id, %error, "the end of a request could not be written; trying again");
                self.spool.0.disk_errors.fetch_add(1, Ordering::Relaxed);
                let position = state.head();
                if let Some(slot) = self.slot.take() {
                    let counts = settled.counts.since(billed_before).unwrap_or_default();
                    let amount = Amount { counts, requests: u64::from(settled.answered) };
                    let a = &self.admission;
                    let at = Micros(self.spool.0.clock.now());
                    self.spool.own_spend().promised(&a.tenant, &a.model, at, amount);
                    state.book.delayed.push_back(Delayed {
                        closing,
                        _slot: slot,
                        pin: self.pin,
                        promised: (at, amount),
                    });
                }
                drop(state);
                self.spool.0.log.wake();
                finished(position, true)
            }
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.end(Finish {
                end_reason: EndReason::GatewayLost,
                status: 0,
                error_code: None,
                usage: Usage::Running,
                dispatched_at: None,
                first_byte_at: None,
            });
        }
    }
}

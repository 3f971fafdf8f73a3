//! The life of one request in the spool: let in, counted while it runs, closed once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ledger::ids::ModelVersion;
use ledger::time::Micros;
use ledger::tokens::{TOKENS_MAX, TokenCounts};
use schemas::event::EndReason;

use super::Spool;
use super::book::{CLOSING_ROOM, Delayed};
use super::close::{Admission, Closing, Count, Finish, Settled, Usage, close, count, end, last_count, settle};
use super::draft::{AppendError, Draft};
use super::frame::{Entry, Position, Tally};
use super::log::Guard;
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

impl AdmitError {
    /// True if the spool has no room, or its disk takes nothing: the tenant's plan says whether the request is refused
    /// then, or served by [`Spool::admit_unmetered`].
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Append(AppendError::Disk(_)))
    }
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
    /// True if the disk refused the closing frame: it is kept in memory, its counts in the in-flight table, and it is tried
    /// again. A crash of the process finishes the request as `gateway_lost` with the counts that were settled.
    pub delayed: bool,
    /// True if nothing will ever stand for it: it was served unmetered, and there was no room for its end either.
    pub lost: bool,
    /// Written when so many delayed ends are.
    pub(super) ticket: u64,
}

/// A request that was let in. Dropped without [`OpenRequest::finish`], it ends as `gateway_lost`.
#[derive(Debug)]
pub struct OpenRequest {
    spool: Spool,
    admission: Arc<Admission>,
    /// None if it is served unmetered.
    slot: Option<Slot>,
    ended: bool,
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
        if !self.has_room(&state, CLOSING_ROOM + json.len() as u64 + 64) {
            return Err(AdmitError::Full { used: self.taken(&state), max: self.0.settings.max_bytes });
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
        Ok(self.open_request(Arc::new(admission), Some(slot), pin, now))
    }

    /// Serves a request although the spool has no room, since the tenant's plan says so. It is in no table, so a crash
    /// loses it. If there is room again when it ends, it is recorded like any other; if not, its usage is lost: it is
    /// counted in `tollgate_spool_lost_total` and said in the log, with tenant, request and tokens, and
    /// [`Finished::lost`] says so.
    pub fn admit_unmetered(&self, admission: Admission) -> OpenRequest {
        self.open_request(Arc::new(admission), None, 0, self.0.clock.now())
    }

    fn open_request(&self, admission: Arc<Admission>, slot: Option<Slot>, pin: u64, now: i64) -> OpenRequest {
        OpenRequest {
            spool: self.clone(),
            admission,
            slot,
            ended: false,
            pin,
            attempt: 0,
            attempts: 0,
            replica: String::new(),
            tally: Tally::default(),
            billed: Tally::default(),
            checkpoint_at: Micros(now),
        }
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
        if left_out!(OneFrame) {
            return self.append_in_two_frames(state, closing);
        }
        let (state, result) = self.0.log.append(state, now, build);
        if let (Ok(_), Some(spent)) = (&result, &spent) {
            self.spent(spent, state.active_segment());
        }
        (state, result)
    }

    /// What no real process does: the last count and the end in frames of their own.
    fn append_in_two_frames<'a>(
        &'a self,
        state: Guard<'a>,
        closing: &Closing,
    ) -> (Guard<'a>, Result<Position, AppendError>) {
        let now = self.0.clock.now();
        let count = &mut |draft: &mut Draft<'_>| last_count(draft, closing).map(drop);
        match self.0.log.append(state, now, count) {
            (state, Ok(_)) => self.0.log.append(state, now, &mut |draft: &mut Draft<'_>| end(draft, closing)),
            refused => refused,
        }
    }

    /// Gives up an end that can never be written, so that nothing waits for it for ever; returns the place.
    pub(super) fn write_off<'a>(
        &'a self,
        state: Guard<'a>,
        closing: &Closing,
        error: &AppendError,
    ) -> (Guard<'a>, Position) {
        self.lost(closing, "invalid", error);
        let request = closing.admission.request_id.0;
        let build = &mut |draft: &mut Draft<'_>| {
            draft.push(&Entry::Ended { request });
            Ok(())
        };
        let (state, result) = self.0.log.append(state, self.0.clock.now(), build);
        let head = state.head();
        (state, result.unwrap_or(head))
    }

    /// Says and counts that usage is lost.
    fn lost(&self, closing: &Closing, reason: &str, why: &dyn std::fmt::Display) {
        let Closing { admission: a, settled, .. } = closing;
        tracing::error!(
            tenant = %a.tenant,
            request = %a.request_id,
            model = %a.model,
            input = settled.counts.input,
            cached_input = settled.counts.cached_input,
            output = settled.counts.output,
            reasoning = settled.counts.reasoning,
            %why,
            "the usage of a request is lost"
        );
        if let Some(meters) = self.0.log.meters.get() {
            meters.lost(reason);
        }
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

    /// The version that really serves the request, if it is another one than the admission says. It is written down anew, so
    /// that a crash does not forget it; if the disk refuses that, it holds as long as the process lives.
    pub fn serves(&mut self, version: &ModelVersion) {
        if self.admission.version == *version {
            return;
        }
        Arc::make_mut(&mut self.admission).version = version.clone();
        let Some(slot) = &self.slot else { return };
        let (request, slot) = (self.admission.request_id.0, slot.index());
        let noted = serde_json::to_vec(&*self.admission).map_err(|error| AppendError::Disk(error.into()));
        let noted = noted.and_then(|admission| {
            let entry = Entry::Admitted { request, slot, admission };
            let build = &mut |draft: &mut Draft<'_>| {
                draft.push(&entry);
                Ok(())
            };
            let log = &self.spool.0.log;
            log.append(log.lock(), self.spool.0.clock.now(), build).1
        });
        if let Err(error) = noted {
            tracing::warn!(request = %self.admission.request_id, %error, "the version that serves a request could not be written down");
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
        let since = now.0.saturating_sub(self.checkpoint_at.0);
        // A clock that stepped back does not say how long it was.
        let waited = since < 0 || since >= settings.checkpoint_interval_ms as i64 * 1000;
        self.slot.is_some() && (open >= settings.checkpoint_tokens || (open > 0 && waited))
    }

    /// Bills the output and reasoning since the last checkpoint. Nothing happens (none) if there are none, if one of the
    /// two went back, or if the spool has no room to spare: the counts then come with the next one, or the last.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was billed.
    pub fn checkpoint(&mut self) -> Result<Option<Checkpoint>, AppendError> {
        let now = self.spool.0.clock.now();
        self.checkpoint_at = Micros(now);
        if self.slot.is_none() {
            return Ok(None);
        }
        let of = |tally: &Tally| TokenCounts {
            input: if left_out!(InputAtTheEnd) { tally.input } else { 0 },
            output: tally.output,
            reasoning: tally.reasoning,
            ..Default::default()
        };
        let Ok(delta) = of(&self.tally).since(of(&self.billed)) else { return Ok(None) };
        if delta == TokenCounts::default() {
            return Ok(None);
        }
        let state = self.spool.0.log.lock();
        if !self.spool.has_room(&state, CLOSING_ROOM) {
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
        self.ended = true;
        match self.slot.take() {
            Some(slot) => self.end_metered(closing, billed_before, slot),
            None => self.end_unmetered(&closing, billed_before),
        }
    }

    fn end_metered(&self, closing: Closing, billed_before: TokenCounts, slot: Slot) -> Finished {
        let settled = closing.settled;
        let finished = |position| Finished { settled, billed_before, position, delayed: false, lost: false, ticket: 0 };
        let spool = &self.spool;
        let mut slot = Some(slot).filter(|_| !left_out!(SlotFreedLast));
        let (mut state, result) = spool.append_closing(spool.0.log.lock(), &closing);
        match result {
            // The slot is freed after the frame was written, at the end of this function.
            Ok(position) => {
                state.book.ended(position, self.pin);
                finished(position)
            }
            Err(error) if error.is_passing() => {
                tracing::error!(request = %self.admission.request_id, %error, "the end of a request could not be written; trying again");
                spool.0.disk_errors.fetch_add(1, Ordering::Relaxed);
                // The answer may go out before the disk takes its end.
                if let Some(slot) = slot.as_mut().filter(|_| settled.answered && !left_out!(EndInTable)) {
                    slot.end(self.tally, settled);
                }
                let counts = settled.counts.since(billed_before).unwrap_or_default();
                let amount = Amount { counts, requests: u64::from(settled.answered) };
                let at = Micros(spool.0.clock.now());
                spool.own_spend().promised(&self.admission.tenant, &self.admission.model, at, amount);
                let ticket = state.book.delay(Delayed { closing, _slot: slot, pin: self.pin, promised: (at, amount) });
                let position = state.head();
                drop(state);
                spool.0.log.wake();
                Finished { delayed: true, ticket, ..finished(position) }
            }
            Err(error) => {
                let (mut state, position) = spool.write_off(state, &closing, &error);
                state.book.ended(position, self.pin);
                Finished { lost: true, ..finished(position) }
            }
        }
    }

    fn end_unmetered(&self, closing: &Closing, billed_before: TokenCounts) -> Finished {
        let settled = closing.settled;
        let finished = |position, lost| Finished { settled, billed_before, position, delayed: false, lost, ticket: 0 };
        let spool = &self.spool;
        let state = spool.0.log.lock();
        let head = state.head();
        let why: &dyn std::fmt::Display = if state.closed {
            &"the spool is closed"
        } else if !spool.has_room(&state, CLOSING_ROOM) {
            &"the spool is full"
        } else {
            match spool.append_closing(state, closing).1 {
                Ok(position) => return finished(position, false),
                Err(error) => &error.to_string(),
            }
        };
        // Who got nothing owes nothing.
        if settled.answered {
            spool.lost(closing, "spool_full", why);
        }
        finished(head, settled.answered)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if !self.ended {
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

//! How a request is counted at its end: which totals are billed, the last delta, and the frame that says so.

use std::sync::Arc;

use ledger::ids::{ApiKeyId, EventId, ModelId, ModelVersion, ProjectId, RequestId, SourceId, TenantId};
use ledger::time::Micros;
use ledger::tokens::{TokenCounts, TokenError};
use schemas::codec::encode;
use schemas::event::{EndReason, RequestFinished, TokensCounted};
use serde::{Deserialize, Serialize};

use super::draft::{AppendError, Draft};
use super::frame::{Entry, Tally};
use super::{REQUESTS, TOKENS};
use crate::partition::partition_of;
use crate::spend::Spent;

/// What is known of a request when it is let in. Kept in the spool until the request has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// A UUIDv7, unique.
    pub request_id: RequestId,
    /// Who pays.
    pub tenant: TenantId,
    /// The tenant's project.
    pub project: ProjectId,
    /// The key that was used.
    pub api_key: ApiKeyId,
    /// The model's public name.
    pub model: ModelId,
    /// The version that the request goes to.
    pub version: ModelVersion,
    /// The path asked for, at most 64 bytes (longer ones are cut).
    pub endpoint: String,
    /// When it came in.
    pub received_at: Micros,
    /// Whether the answer is streamed.
    pub stream: bool,
}

/// What the request used, as its owner knows at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The client got no byte of an answer: nothing is billed. Taken as [`Usage::Running`] if counts were stored before.
    Nothing,
    /// The engine's own last word, split by class.
    Final(TokenCounts),
    /// Cut short: what was last stored with [`super::OpenRequest::received`] is billed, its input as uncached, and flagged.
    Running,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub end_reason: EndReason,
    /// The HTTP status that the client got; 0 when it got none.
    pub status: u16,
    /// The code of the error that the client got.
    pub error_code: Option<String>,
    /// What was used.
    pub usage: Usage,
    /// When the last attempt was sent to its replica.
    pub dispatched_at: Option<Micros>,
    /// When the first byte of the answer was handed to the client.
    pub first_byte_at: Option<Micros>,
}

/// What is billed for a request in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The total over all of its deltas.
    pub counts: TokenCounts,
    /// Whether it counts as a request that was answered.
    pub answered: bool,
    /// Whether the counts are not the engine's own last word.
    pub estimated: bool,
}

/// Decides what a request is billed in all. `tally` is what was last stored, `billed` what checkpoints have billed.
///
/// Never less than what was billed before, class by class: when the engine moves tokens between output and reasoning, or
/// takes some back, the total of both is kept where it can be, and the count is flagged.
pub fn settle(usage: Usage, tally: Tally, billed: Tally) -> Settled {
    let nothing_yet = tally.frames == 0 && billed == Tally::default();
    let (wanted, estimated) = match usage {
        Usage::Nothing | Usage::Running if nothing_yet => {
            return Settled { counts: TokenCounts::default(), answered: false, estimated: false };
        }
        Usage::Final(counts) if counts.bounded().is_ok() => (counts, false),
        // Counts that cannot be are no last word.
        Usage::Final(_) | Usage::Nothing | Usage::Running => {
            let Tally { input, output, reasoning, .. } = tally;
            (TokenCounts { input, cached_input: 0, output, reasoning }, true)
        }
    };
    let before = billed.output.saturating_add(billed.reasoning);
    let completion = wanted.output.saturating_add(wanted.reasoning).max(before);
    let most_output = completion - billed.reasoning.min(completion);
    let output = (completion - wanted.reasoning.min(completion)).max(billed.output).min(most_output);
    let counts = TokenCounts { output, reasoning: completion - output, ..wanted };
    Settled { counts, answered: true, estimated: estimated || counts != wanted }
}

/// A request about to be closed.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    pub admission: Arc<Admission>,
    pub attempt: u32,
    /// Tries at a replica.
    pub attempts: u32,
    pub replica: String,
    pub finish: Finish,
    pub settled: Settled,
    /// What checkpoints have billed; their input is 0.
    pub billed: Tally,
    /// Whether recovery closes it: the ids are then derived from the place.
    pub recovered: bool,
}

/// The partition of a tenant in a topic of the spool.
pub(crate) fn partition_in(draft: &Draft<'_>, topic: u8, tenant: &TenantId) -> i32 {
    partition_of(tenant.as_str().as_bytes(), draft.topics()[topic as usize].partitions)
}

/// A text cut to at most 64 bytes, at a character.
fn bounded(text: &str) -> String {
    let mut end = text.len().min(64);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn number(count: u64) -> Result<i64, TokenError> {
    i64::try_from(count).ok().filter(|_| count <= ledger::tokens::TOKENS_MAX).ok_or(TokenError::OutOfBounds(count))
}

/// What one count says beyond what the admission says.
#[derive(Debug)]
pub(crate) struct Count<'a> {
    pub admission: &'a Admission,
    pub attempt: u32,
    pub replica: &'a str,
    pub before: TokenCounts,
    pub cumulative: TokenCounts,
    pub requests: i64,
    pub end: Option<EndReason>,
    pub estimated: bool,
    pub recovered: bool,
}

/// Adds the record of a count; returns what it spends.
pub(crate) fn count(draft: &mut Draft<'_>, count: &Count<'_>) -> Result<Spent, AppendError> {
    let a = count.admission;
    let partition = partition_in(draft, TOKENS, &a.tenant);
    let seq = draft.seq(TOKENS, partition);
    let delta = count.cumulative.since(count.before)?;
    let event = TokensCounted {
        event_id: event_id(draft, TOKENS, partition, seq, count.recovered),
        source: SourceId(draft.source()),
        seq: seq as i64,
        occurred_at: Micros(draft.time()),
        tenant_id: a.tenant.clone(),
        request_id: a.request_id,
        attempt: count.attempt as i32,
        project_id: a.project.clone(),
        api_key_id: a.api_key,
        model: a.model.clone(),
        version: a.version.clone(),
        replica: bounded(count.replica),
        endpoint: bounded(&a.endpoint),
        input: number(delta.input)?,
        cached_input: number(delta.cached_input)?,
        output: number(delta.output)?,
        reasoning: number(delta.reasoning)?,
        input_cumulative: number(count.cumulative.input)?,
        cached_input_cumulative: number(count.cumulative.cached_input)?,
        output_cumulative: number(count.cumulative.output)?,
        reasoning_cumulative: number(count.cumulative.reasoning)?,
        requests: count.requests,
        last: count.end.is_some(),
        estimated: count.estimated,
        end_reason: count.end,
    };
    let key = a.tenant.as_str().as_bytes().to_vec();
    draft.record(TOKENS, partition, seq, Some(key), Some(encode(&event)?), Vec::new())?;
    Ok(Spent {
        tenant: a.tenant.clone(),
        model: a.model.clone(),
        occurred_at: Micros(draft.time()),
        partition,
        source: draft.source(),
        seq,
        counts: delta,
        requests: count.requests as u64,
    })
}

/// Adds the last count of a request.
pub(crate) fn last_count(draft: &mut Draft<'_>, closing: &Closing) -> Result<Spent, AppendError> {
    let before = TokenCounts {
        input: if left_out!(InputAtTheEnd) { closing.billed.input } else { 0 },
        output: closing.billed.output,
        reasoning: closing.billed.reasoning,
        ..TokenCounts::default()
    };
    count(
        draft,
        &Count {
            admission: &closing.admission,
            attempt: closing.attempt,
            replica: &closing.replica,
            before,
            cumulative: closing.settled.counts,
            requests: i64::from(closing.settled.answered),
            end: Some(closing.finish.end_reason),
            estimated: closing.settled.estimated,
            recovered: closing.recovered,
        },
    )
}

/// Adds the closing frame's entries: the last count, the end, and the local note that the request is no longer open.
pub(crate) fn close(draft: &mut Draft<'_>, closing: &Closing) -> Result<Spent, AppendError> {
    let spent = last_count(draft, closing)?;
    end(draft, closing)?;
    Ok(spent)
}

/// Adds the end of a request, and the local note.
pub(crate) fn end(draft: &mut Draft<'_>, closing: &Closing) -> Result<(), AppendError> {
    let a = &*closing.admission;
    let partition = partition_in(draft, REQUESTS, &a.tenant);
    let seq = draft.seq(REQUESTS, partition);
    let event = RequestFinished {
        event_id: event_id(draft, REQUESTS, partition, seq, closing.recovered),
        source: SourceId(draft.source()),
        seq: seq as i64,
        occurred_at: Micros(draft.time()),
        tenant_id: a.tenant.clone(),
        request_id: a.request_id,
        attempts: closing.attempts as i32,
        project_id: a.project.clone(),
        api_key_id: a.api_key,
        model: a.model.clone(),
        version: a.version.clone(),
        replica: bounded(&closing.replica),
        endpoint: bounded(&a.endpoint),
        stream: a.stream,
        status: i32::from(closing.finish.status),
        end_reason: closing.finish.end_reason,
        error_code: closing.finish.error_code.as_deref().map(bounded),
        received_at: a.received_at,
        dispatched_at: closing.finish.dispatched_at,
        first_byte_at: closing.finish.first_byte_at,
    };
    let key = a.tenant.as_str().as_bytes().to_vec();
    draft.record(REQUESTS, partition, seq, Some(key), Some(encode(&event)?), Vec::new())?;
    draft.push(&Entry::Ended { request: a.request_id.0 });
    Ok(())
}

fn event_id(draft: &mut Draft<'_>, topic: u8, partition: i32, seq: u64, recovered: bool) -> EventId {
    #[cfg(any(test, feature = "simulation"))]
    if left_out!(DerivedIds)
        && let Some(id) = crate::simulation::next_id()
    {
        return EventId(id);
    }
    if recovered {
        let name = &draft.topics()[topic as usize].name;
        return EventId::of_recovery(SourceId(draft.source()), name, partition, seq);
    }
    draft.event_id()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(frames: u64, input: u64, output: u64, reasoning: u64) -> Tally {
        Tally { frames, input, output, reasoning }
    }

    #[test]
    fn nothing_is_billed_before_the_first_byte_and_the_last_count_after_it() {
        let none = Tally::default();
        for usage in [Usage::Nothing, Usage::Running] {
            assert_eq!(
                settle(usage, none, none),
                Settled { counts: TokenCounts::default(), answered: false, estimated: false }
            );
            let cut = settle(usage, tally(3, 10, 5, 2), tally(2, 0, 4, 1));
            let counts = TokenCounts { input: 10, cached_input: 0, output: 5, reasoning: 2 };
            assert_eq!(cut, Settled { counts, answered: true, estimated: true });
        }
        let counts = TokenCounts { input: 2, cached_input: 8, output: 5, reasoning: 2 };
        assert_eq!(settle(Usage::Final(counts), none, none), Settled { counts, answered: true, estimated: false });
    }

    #[test]
    fn tokens_that_turn_out_to_be_reasoning_after_they_were_billed_as_output_stay_so() {
        let counts = TokenCounts { input: 1, cached_input: 0, output: 10, reasoning: 90 };
        let settled = settle(Usage::Final(counts), tally(9, 1, 100, 0), tally(9, 0, 60, 0));
        assert_eq!((settled.counts.output, settled.counts.reasoning, settled.estimated), (60, 40, true));
    }

    proptest! {
        #[test]
        fn never_below_what_is_billed_and_the_total_is_kept(
            c in (0..500_u64, 0..500_u64, 0..500_u64, 0..500_u64), b in (0..500_u64, 0..500_u64), frames in 0..3_u64, running in any::<bool>()
        ) {
            let wanted = TokenCounts { input: c.0, cached_input: if running { 0 } else { c.1 }, output: c.2, reasoning: c.3 };
            let billed = tally(u64::from(b != (0, 0)), 0, b.0, b.1);
            let stored = tally(frames.max(1), c.0, c.2, c.3);
            let settled = settle(if running { Usage::Running } else { Usage::Final(wanted) }, stored, billed);
            let counts = settled.counts;
            prop_assert!(counts.output >= b.0 && counts.reasoning >= b.1);
            prop_assert_eq!(counts.output + counts.reasoning, (c.2 + c.3).max(b.0 + b.1));
            prop_assert_eq!((counts.input, counts.cached_input), (wanted.input, wanted.cached_input));
            if b.0 <= c.2 && b.1 <= c.3 {
                prop_assert_eq!(counts, wanted);
                prop_assert_eq!(settled.estimated, running);
            }
        }
    }
}

//! What is known of requests from outside of their gateways, and whether what was counted agrees.

use std::collections::BTreeMap;

use ledger::tokens::TokenCounts;

use crate::spool::frame::Position;

/// What is known of a request from outside of the gateway.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// Output and reasoning that the client got, while its gateway was alive.
    pub handed: u64,
    /// The most that was stored in the table.
    pub stored: u64,
    /// The whole prompt.
    pub input: u64,
    /// What was settled at the end, if the client saw the end.
    pub ended: Option<TokenCounts>,
    /// Where the end stands in the spool.
    pub ended_at: Option<Position>,
    /// Its gateway has started again since: what is known of it is durable.
    pub durable: bool,
    /// The host crashed while it was open, or before its end was durable.
    pub unsure: bool,
    /// Its volume was lost, or restored from a copy: what became of it is told by alarms alone.
    pub loose: bool,
}

/// A count, as the log or the raw table holds it.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// Whose.
    pub request: u128,
    /// Since the count before.
    pub delta: TokenCounts,
    /// Of the request so far.
    pub cumulative: TokenCounts,
    /// Requests that were answered.
    pub requests: u64,
    /// Whether it is the last one.
    pub last: bool,
}

/// What is wrong with the counts of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// Less is counted than was handed out, or nothing.
    Lost(String),
    /// More is counted than there was.
    Doubled(String),
    /// The counts contradict each other, or what was settled.
    Other(String),
}

const fn completion(counts: TokenCounts) -> u64 {
    counts.output + counts.reasoning
}

/// Compares what was counted, in the order of each request's counts, with what is known.
///
/// # Errors
/// What is wrong.
pub fn check(truths: &BTreeMap<u128, Truth>, counted: &[Counted]) -> Result<(), Wrong> {
    let mut of: BTreeMap<u128, Vec<Counted>> = BTreeMap::new();
    for count in counted {
        of.entry(count.request).or_default().push(*count);
    }
    for (id, truth) in truths.iter().filter(|(_, truth)| !truth.loose) {
        check_one(truth, of.get(id).map_or(&[], Vec::as_slice)).map_err(|wrong| {
            let say = |what| format!("request {}: {what}; {truth:?}", short(*id));
            match wrong {
                Wrong::Lost(what) => Wrong::Lost(say(what)),
                Wrong::Doubled(what) => Wrong::Doubled(say(what)),
                Wrong::Other(what) => Wrong::Other(say(what)),
            }
        })?;
    }
    let unknown = |(id, counts): &(&u128, &Vec<Counted>)| {
        // The gateway died in the admission: the client got an error or nothing.
        !truths.contains_key(id) && counts.iter().any(|count| count.delta != TokenCounts::default())
    };
    match of.iter().find(unknown) {
        Some((id, _)) => Err(Wrong::Other(format!("tokens for request {}, which nobody made", short(*id)))),
        None => Ok(()),
    }
}

/// A request's name in a story.
fn short(id: u128) -> String {
    format!("{}.{}", id >> 64, id as u64)
}

fn check_one(truth: &Truth, counts: &[Counted]) -> Result<(), Wrong> {
    if truth.unsure && counts.is_empty() {
        return Ok(());
    }
    let last = counts.iter().filter(|count| count.last).count();
    let mut sum = TokenCounts::default();
    for count in counts {
        sum = sum.checked_add(count.delta).map_err(|error| Wrong::Other(error.to_string()))?;
    }
    let billed = completion(sum);
    if billed > truth.stored || sum.input + sum.cached_input > truth.input || last > 1 {
        return Err(Wrong::Doubled(format!("{sum:?} are billed, with {last} ends")));
    }
    if last == 0 {
        return Err(Wrong::Lost(format!("{sum:?} are billed, and it has no end")));
    }
    let mut so_far = TokenCounts::default();
    for count in counts {
        so_far = so_far.checked_add(count.delta).map_err(|error| Wrong::Other(error.to_string()))?;
        if count.cumulative != so_far {
            return Err(Wrong::Other(format!("a count says {:?} where {so_far:?} is the sum", count.cumulative)));
        }
    }
    let answered: u64 = counts.iter().map(|count| count.requests).sum();
    if answered != u64::from(billed > 0) {
        return Err(Wrong::Other(format!("{answered} requests for {billed} tokens")));
    }
    if truth.unsure {
        return Ok(());
    }
    if billed < truth.handed {
        return Err(Wrong::Lost(format!("{billed} are billed")));
    }
    let input = if truth.handed > 0 { truth.input } else { 0 };
    if sum.input + sum.cached_input < input || truth.ended.is_some_and(|ended| ended != sum) {
        return Err(Wrong::Other(format!("{sum:?} are billed")));
    }
    Ok(())
}

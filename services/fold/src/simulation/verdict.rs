//! What must hold once all is quiet: truth = log = rows = aggregates = balances, and nothing passes in silence.

use std::collections::{BTreeMap, BTreeSet};

use ledger::ids::{EventId, SourceId};
use schemas::codec::decode;
use schemas::event::{Event as _, TokensCounted};
use stream::line::{LineState, Outcome, SourceEnd};
use stream::simulation::{Counted, PARTITIONS, Truth, Wrong, check};

use super::step::Beyond;
use super::world::{World, place};
use crate::chunk::SEQ_CONFLICT;

/// In which way a run failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Tokens that a gateway durably took are not counted.
    Lost,
    /// Tokens are counted twice, or were never there.
    Doubled,
    /// Counts contradict each other.
    Miscounted,
    /// A line stood still, although nothing happened that cannot be undone.
    Stopped,
    /// Faults are over, and there is no progress.
    Stuck,
    /// What cannot be undone was not found.
    Silent,
    /// Rows and aggregates differ.
    Aggregates,
    /// Rows and balances differ.
    Balance,
    /// A dead letter that nobody wrote, or one that is missing.
    DeadLetter,
    /// A dead letter has no copy in its topic.
    Copy,
    /// A record is earlier than its source had promised, or the promises stopped.
    Watermark,
    /// A source has ended, and its end or the one after it is unknown.
    Sources,
    /// The folding is not the one of the log.
    Folding,
    /// A spool is larger than its limit.
    Overfull,
    /// A spool cannot be taken into use, or be shipped.
    Refused,
    Panicked,
}

/// See [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) what: String,
}

impl Failure {
    pub(super) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

/// A partition of the log, folded by the real line with every rule in force.
pub(super) struct Reference {
    line: LineState,
    events: BTreeMap<i64, TokensCounted>,
    dead: BTreeMap<i64, String>,
    counts: sql::OutcomeCounts,
}

/// Folds what stands in a partition of the log.
pub(super) fn reference(world: &World, p: usize) -> Result<Reference, Failure> {
    let log = world.log.lock();
    let mut found = Reference {
        line: LineState::default(),
        events: BTreeMap::new(),
        dead: BTreeMap::new(),
        counts: sql::OutcomeCounts::default(),
    };
    let mut ids: BTreeMap<(SourceId, u64), EventId> = BTreeMap::new();
    for record in log.partitions.get(&place(p)).iter().flat_map(|partition| &partition.records) {
        let step = record.lend(|lent| found.line.step::<TokensCounted>(lent));
        let step = step.map_err(|stop| Failure::new(Kind::Stopped, format!("partition {p} of the log: {stop}")))?;
        found.counts.marks += step.holes;
        match step.outcome {
            Outcome::Folded(event) => {
                let envelope = event.envelope();
                let promised = found.line.sources.get(&envelope.source).map(|state| state.watermark);
                // A volume that is restored ends what its copy held open, at the time of the copy.
                if promised.is_some_and(|promised| envelope.occurred_at < promised) && !world.was_restored() {
                    return Err(Failure::new(Kind::Watermark, format!("{event:?} is earlier than promised")));
                }
                ids.insert((envelope.source, envelope.seq.unsigned_abs()), envelope.event_id);
                found.counts.folded += 1;
                found.events.insert(record.offset, event);
            }
            Outcome::Duplicate { source, seq, event_id } => {
                let known = ids.get(&(source, seq));
                if event_id.is_some() && known.is_some() && known != event_id.as_ref() {
                    found.dead.insert(record.offset, SEQ_CONFLICT.to_owned());
                    found.counts.dead += 1;
                } else {
                    found.counts.duplicates += 1;
                }
            }
            Outcome::Dead(reason) => {
                // What can be read has taken its number all the same.
                let event = record.value.as_deref().and_then(|value| decode::<TokensCounted>(value).ok());
                if let Some(event) = event.filter(|event| event.seq > 0) {
                    ids.insert((event.source, event.seq.unsigned_abs()), event.event_id);
                }
                found.dead.insert(record.offset, reason.code().to_owned());
                found.counts.dead += 1;
            }
            Outcome::Mark(_) => found.counts.marks += 1,
        }
    }
    Ok(found)
}

fn failed(wrong: Wrong) -> Failure {
    match wrong {
        Wrong::Lost(what) => Failure::new(Kind::Lost, what),
        Wrong::Doubled(what) => Failure::new(Kind::Doubled, what),
        Wrong::Other(what) => Failure::new(Kind::Miscounted, what),
    }
}

impl World {
    /// All that must hold of a partition that is folded to its end.
    pub(super) fn check_partition(&self, p: usize, reference: &Reference) -> Result<(), Failure> {
        let partition = p as i32;
        let rows: Vec<_> = self.engine.data(partition).collect();
        let offsets: BTreeSet<_> = rows.iter().map(|row| row.offset).collect();
        if offsets.len() < rows.len() {
            return Err(Failure::new(Kind::Doubled, format!("partition {p}: rows are there twice")));
        }
        let wanted: BTreeSet<_> = reference.events.keys().copied().collect();
        if offsets != wanted {
            let what = format!("partition {p}: rows of {offsets:?} where the log has {wanted:?}");
            let kind = if offsets.is_superset(&wanted) { Kind::Doubled } else { Kind::Lost };
            return Err(Failure::new(kind, what));
        }
        let differs =
            rows.iter().any(|row| reference.events.get(&row.offset).is_none_or(|e| e.event_id != row.event.event_id));
        let proof = self.engine.prove(partition).map_err(|error| Failure::new(Kind::Silent, error.to_string()))?;
        if differs || proof.chain != reference.line.chain.0 {
            return Err(Failure::new(Kind::Folding, format!("partition {p}: the rows are of another log")));
        }
        if proof.counts != reference.counts || self.engine.dead(partition) != reference.dead {
            let what = format!(
                "{:?} {:?}, not {:?} {:?}",
                proof.counts,
                self.engine.dead(partition),
                reference.counts,
                reference.dead
            );
            return Err(Failure::new(Kind::DeadLetter, format!("partition {p}: {what}")));
        }
        let last = |source: &SourceId| reference.line.sources.get(source).map(|state| state.last_seq);
        if proof.sources.iter().any(|(source, state)| last(source) != Some(state.last_seq)) {
            return Err(Failure::new(Kind::Folding, format!("partition {p}: sources differ")));
        }
        self.check_dead(partition, reference)?;
        let sum = |tokens: ledger::tokens::TokenCounts| tokens.output + tokens.reasoning;
        let aggregates: u64 = self.engine.totals(partition).iter().map(|total| sum(total.tokens)).sum();
        let of_rows: u64 = rows.iter().map(|row| sum(row.event.delta)).sum();
        match aggregates == of_rows {
            true => Ok(()),
            false => {
                Err(Failure::new(Kind::Aggregates, format!("partition {p}: {of_rows} in rows, {aggregates} in sums")))
            }
        }
    }

    /// Whether a volume was lost, or restored from a copy.
    fn was_restored(&self) -> bool {
        self.gateways.iter().flat_map(|gateway| gateway.truth.values()).any(|truth| truth.loose)
    }

    /// Dead letters are what somebody else wrote, and what a restored volume numbers anew; each has its copy.
    fn check_dead(&self, partition: i32, reference: &Reference) -> Result<(), Failure> {
        let restored = self.was_restored();
        for (offset, reason) in &reference.dead {
            let expected = self.garbage.contains(&(partition, *offset)) || (restored && reason == SEQ_CONFLICT);
            if !expected {
                let what = format!("{reason} at offset {offset} of partition {partition}, and nobody is to blame");
                return Err(Failure::new(Kind::DeadLetter, what));
            }
            if !self.copies.contains(&(partition, *offset)) {
                return Err(Failure::new(Kind::Copy, format!("{reason} at offset {offset} of partition {partition}")));
            }
        }
        Ok(())
    }

    /// What clients got is what the rows say.
    pub(super) fn check_truth(&self) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for partition in 0..PARTITIONS {
            let mut of: Vec<_> = self.engine.data(partition).collect();
            of.sort_by_key(|row| row.offset);
            rows.extend(of.into_iter().map(|row| Counted {
                request: row.event.request_id.0.as_u128(),
                delta: row.event.delta,
                cumulative: row.event.cumulative,
                requests: row.event.requests,
                last: row.event.last,
            }));
        }
        let truths: BTreeMap<u128, Truth> = self
            .gateways
            .iter()
            .flat_map(|gateway| gateway.truth.iter().map(|(id, truth)| (*id, truth.clone())))
            .collect();
        check(&truths, &rows).map_err(failed)
    }

    /// Each source has its end in every partition, which names the one after it; the newest one keeps promising.
    pub(super) fn check_sources(&self, p: usize, reference: &Reference, clocks: &[i64]) -> Result<(), Failure> {
        if self.scenario.beyond != Beyond::Nothing {
            return Ok(());
        }
        for (g, sources) in self.sources.iter().enumerate() {
            let (Some(first), Some(newest)) = (sources.first(), sources.last()) else { continue };
            let mut at = *first;
            for _ in 0..1_000 {
                if at == *newest {
                    break;
                }
                match reference.line.sources.get(&at).and_then(|state| state.end) {
                    Some(SourceEnd::Closed { next }) => at = next,
                    other => {
                        let what =
                            format!("gateway {g}, partition {p}: source {at} has ended, and the log says {other:?}");
                        return Err(Failure::new(Kind::Sources, what));
                    }
                }
            }
            let watermark = reference.line.sources.get(newest).map_or(i64::MIN, |state| state.watermark.0);
            if watermark < clocks[g] {
                let now = clocks[g];
                let what =
                    format!("gateway {g}, partition {p}: nothing is promised beyond {watermark}, and it is {now}");
                return Err(Failure::new(Kind::Watermark, what));
            }
        }
        Ok(())
    }

    /// Every process that folds a partition, and every reader of balances, has the sums of its rows.
    pub(super) fn check_balances(&mut self) -> Result<(), Failure> {
        let now = self.micros();
        let mut all = 0;
        for p in 0..PARTITIONS as usize {
            let rows: u64 = self.engine.data(p as i32).map(|r| r.event.delta.output + r.event.delta.reasoning).sum();
            all += rows as i64;
            for f in 0..self.folds.len() {
                let Some(line) = self.line(f, p) else { continue };
                let sums = line.sums(now);
                if sums != rows as i64 {
                    let what = format!("fold {f}, partition {p}: {sums} in balances, {rows} in rows");
                    return Err(Failure::new(Kind::Balance, what));
                }
            }
        }
        let read = self.view.all();
        let read: i64 = read.iter().flat_map(|update| &update.usage).map(|usage| usage.output + usage.reasoning).sum();
        match read == all {
            true => Ok(()),
            false => Err(Failure::new(Kind::Balance, format!("readers know {read}, the rows say {all}"))),
        }
    }
}

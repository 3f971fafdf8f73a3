//! The comparisons, each a pure step over figures of one common point: nothing that is merely under way is a difference.

use std::collections::{BTreeMap, BTreeSet};

use ledger::control::{Deltas, UsageAdjustment};
use ledger::ids::{EventId, ModelId, SourceId};
use ledger::invoice::Preview;
use ledger::money::Money;
use ledger::tokens::{TokenClass, TokenCounts};
use schemas::event::BalanceUpdated;
use sql::{
    BalanceSum, ChunkBreak, ChunkFault, EventRow, LogHour, SourceState, Table, TrialBalance, TrialBalanceLine, Uneven,
    Unmatched,
};
use stream::consume::Bounds;

use super::report::{Check, Difference, Place, Report, Side};

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Tokens by class and requests, as most comparisons have them on each side.
type Sums = [i64; 5];

const FIGURES: [&str; 5] = [
    TokenClass::Input.as_str(),
    TokenClass::CachedInput.as_str(),
    TokenClass::Output.as_str(),
    TokenClass::Reasoning.as_str(),
    "requests",
];

fn sums(tokens: &TokenCounts, requests: u64) -> Sums {
    [tokens.input, tokens.cached_input, tokens.output, tokens.reasoning, requests].map(number)
}

fn same_sums(report: &mut Report, check: Check, place: &Place, names: [&'static str; 2], one: Sums, other: Sums) {
    for (figure, (one, other)) in FIGURES.into_iter().zip(one.into_iter().zip(other)) {
        report.same(check, place, figure, Side { of: names[0], is: one }, Side { of: names[1], is: other });
    }
}

/// The log of a line beside the position, which must have been read before the log's bounds.
pub(crate) fn log(report: &mut Report, table: Table, partition: i32, position: i64, log: Bounds) {
    let place = Place::line(table.topic(), partition);
    let folded = Side { of: "folded up to", is: position };
    report.compared(Check::Log, 1);
    if position > log.next {
        let one = Side { of: "the log ends at", is: log.next };
        let said = "what was folded is not in the log: it was cut, or the topic was made anew".to_owned();
        report.differs(Difference::between(Check::Log, place, "offsets", one, folded).saying(said));
    } else if position < log.first {
        let one = Side { of: "the log begins at", is: log.first };
        let said = "records were deleted from the log before they were folded".to_owned();
        report.differs(Difference::between(Check::Log, place, "offsets", one, folded).saying(said));
    } else if position < log.next {
        report.pending(Check::Log, place, format!("{} offsets are not folded yet", log.next - position));
    }
}

/// A line that is no whole folding although its chunks follow each other and have their rows.
pub(crate) fn damaged(report: &mut Report, table: Table, partition: i32, offsets: (i64, i64), why: &str) {
    let (one, other) = (Side { of: "folded up to", is: offsets.0 }, Side { of: "outcomes", is: offsets.1 });
    let place = Place::line(table.topic(), partition);
    report.differs(Difference::between(Check::Chunks, place, "offsets", one, other).saying(why.to_owned()));
}

/// Where the chunks of a line do not follow each other.
pub(crate) fn breaks(report: &mut Report, table: Table, partition: i32, breaks: &[ChunkBreak]) {
    let line = Place::line(table.topic(), partition);
    for gap in breaks {
        let words = match gap.chunk_first > gap.expected {
            true => format!("offsets {} to {} are in no chunk", gap.expected, gap.chunk_first - 1),
            false => format!("offsets from {} on are in more than one chunk", gap.chunk_first),
        };
        let one = Side { of: "the chunks before end at", is: gap.expected };
        let other = Side { of: "the next begins at", is: gap.chunk_first };
        let place = line.clone().at(LogHour(gap.hour));
        report.differs(Difference::between(Check::Chunks, place, "offsets", one, other).saying(words));
    }
}

/// What the log and the rows of one chunk have, that the other has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// In the log, and in no row.
    pub(crate) missing: Vec<EventRow>,
    /// In a row, and not at its offset of the log; or there more than once.
    pub(crate) added: Vec<EventRow>,
}

/// Compares the events of a chunk's offsets in the log with its rows. `known` are the events of the log that have a row
/// anywhere: a resend has its row at the offset of the first.
pub(crate) fn name(log: &[EventRow], rows: &[EventRow], known: &BTreeSet<EventId>) -> Named {
    let mut named = Named::default();
    let mut seen = BTreeSet::new();
    for event in log {
        if !known.contains(&event.event_id) && seen.insert(event.event_id) {
            named.missing.push(event.clone());
        }
    }
    let at: BTreeMap<i64, EventId> = log.iter().map(|event| (event.offset, event.event_id)).collect();
    let mut offsets = BTreeSet::new();
    for row in rows {
        if at.get(&row.offset) != Some(&row.event_id) || !offsets.insert(row.offset) {
            named.added.push(row.clone());
        }
    }
    named
}

/// A chunk that says other numbers of rows than there are; `named` is absent when the log could not be asked.
pub(crate) fn rows(report: &mut Report, table: Table, partition: i32, fault: &ChunkFault, named: Option<&Named>) {
    let line = Place::line(table.topic(), partition).at(LogHour(fault.hour));
    let place = if fault.chunks == 0 { Place { hour: None, ..line } } else { line };
    let empty = Named::default();
    let Named { missing, added } = named.unwrap_or(&empty);
    let (mut ids, mut words) = (Vec::new(), vec![format!("the chunk at offset {}", fault.chunk_first)]);
    for (events, what) in [(missing, "missing"), (added, "not of the log")] {
        ids.extend(events.iter().map(|event| event.request_id));
        words.extend(events.iter().map(|event| format!("offset {} of {} is {what}", event.offset, event.tenant)));
    }
    match named {
        None if fault.sealed > 0 => words.push("it is a sealed month: tollgate audit holds it to the log".to_owned()),
        None => words.push("the log could not be read to name the requests".to_owned()),
        Some(_) => {}
    }
    let of = |figure, said: i64, is: u64, names: [&'static str; 2]| {
        let (one, other) = (Side { of: names[0], is: said }, Side { of: names[1], is: number(is) });
        Difference::between(Check::Rows, place.clone(), figure, one, other)
    };
    let found = [
        of("rows", fault.folded_said, fault.data_rows, ["the chunk says", "rows are there"]),
        of("dead letters", fault.dead_said, fault.dead_rows, ["the chunk says", "rows are there"]),
        of("chunks", 1, fault.chunks, ["one row of the chunk", "rows are there"]),
    ];
    for difference in found.into_iter().filter(|difference| difference.by != 0) {
        report.differs(difference.saying(words.join("; ")).naming(ids.clone()));
    }
}

/// Sums out of projections beside sums out of rows. Hours from `open` of a partition on were still written meanwhile.
pub(crate) fn aggregates(report: &mut Report, balance: &TrialBalance, open: &BTreeMap<i32, LogHour>) {
    type Both<'a> = [Option<&'a TrialBalanceLine>; 2];
    let mut hours = BTreeMap::<(i32, LogHour), Both<'_>>::new();
    for (side, lines) in [&balance.raw, &balance.aggregate].into_iter().enumerate() {
        for line in lines {
            hours.entry((line.partition, line.log_hour)).or_default()[side] = Some(line);
        }
    }
    for ((partition, hour), both) in hours {
        let place = Place::line(Table::Tokens.topic(), partition).at(hour);
        if open.get(&partition).is_some_and(|open| hour >= *open) {
            report.pending(Check::Aggregates, place, "the hour is not over in the log".to_owned());
            continue;
        }
        let names = ["rows", "aggregates"];
        let counted = |line: Option<&TrialBalanceLine>| number(line.map_or(0, |line| line.rows));
        let [one, other] = both.map(counted);
        let sides = (Side { of: names[0], is: one }, Side { of: names[1], is: other });
        report.same(Check::Aggregates, &place, "rows", sides.0, sides.1);
        let of =
            |line: Option<&TrialBalanceLine>| line.map_or_else(Sums::default, |line| sums(&line.tokens, line.requests));
        let [one, other] = both.map(of);
        same_sums(report, Check::Aggregates, &place, names, one, other);
    }
}

/// Requests whose counts do not add up to their running count.
pub(crate) fn counts(report: &mut Report, partition: i32, uneven: &[Uneven]) {
    for request in uneven {
        let place = Place::line(Table::Tokens.topic(), partition).at(request.hour).of(&request.tenant);
        for class in TokenClass::ALL {
            let one = Side { of: "running count", is: number(request.running.of(class)) };
            let other = Side { of: "counts add up to", is: number(request.counted.of(class)) };
            if one.is != other.is {
                let found = Difference::between(Check::Counts, place.clone(), class.as_str(), one, other);
                report.differs(found.naming(vec![request.request_id]));
            }
        }
    }
}

/// Requests that `there` has and the other table has not. `sources` is how far the other line was with each source, read
/// before the requests were: what a source may still send there is under way.
pub(crate) fn ends(
    report: &mut Report,
    there: Table,
    partition: i32,
    unmatched: &[Unmatched],
    sources: &BTreeMap<SourceId, SourceState>,
) {
    let (other, names) = match there {
        Table::Tokens => (Table::Requests, ["last counts", "their ends"]),
        Table::Requests => (Table::Tokens, ["ends", "their last counts"]),
    };
    let settled = |one: &Unmatched| {
        sources.get(&one.source).is_some_and(|source| source.end.is_some() || source.watermark > one.at)
    };
    let (lost, waiting): (Vec<_>, Vec<_>) = unmatched.iter().partition(|one| settled(one));
    if !waiting.is_empty() {
        let said = format!("{} requests of {} are not there yet", waiting.len(), there.topic());
        report.pending(Check::Ends, Place::line(other.topic(), partition), said);
    }
    let mut places = BTreeMap::<_, Vec<_>>::new();
    for one in lost {
        places.entry((one.hour, &one.tenant)).or_default().push(one.request_id);
    }
    for ((hour, tenant), ids) in places {
        let place = Place::line(other.topic(), partition).at(hour).of(tenant);
        let (one, none) = (Side { of: names[0], is: number(ids.len() as u64) }, Side { of: names[1], is: 0 });
        report.differs(Difference::between(Check::Ends, place, "requests", one, none).naming(ids));
    }
}

/// A published balance beside the rows up to its offset. `position` was read after the balance, `next` after the position.
/// False: it cannot be compared.
pub(crate) fn is_comparable(report: &mut Report, balance: &BalanceUpdated, position: i64, next: i64) -> bool {
    let place = Place::line(Table::Tokens.topic(), balance.partition).of(&balance.tenant_id);
    if balance.as_of > next {
        report.compared(Check::Balances, 1);
        let (one, other) =
            (Side { of: "the log ends at", is: next }, Side { of: "the balance is of", is: balance.as_of });
        report.differs(Difference::between(Check::Balances, place, "offsets", one, other));
        return false;
    }
    if balance.as_of > position {
        let said = format!("the balance is of offset {}, the rows end at {position}", balance.as_of);
        report.pending(Check::Balances, place, said);
        return false;
    }
    true
}

/// What corrections of a tenant's period change, as the newest control has them.
pub(crate) struct Corrections<'a> {
    pub(crate) made: Vec<&'a UsageAdjustment>,
    /// The offset of that control.
    pub(crate) as_of: i64,
}

/// See [`is_comparable`]: `rows` are the sums of its tenant up to its offset. Corrections are never taken back, so that without
/// any now there were none then; of those that are there a balance of an older control may lack some.
pub(crate) fn balance(
    report: &mut Report,
    balance: &BalanceUpdated,
    rows: &[&BalanceSum],
    corrections: &Corrections<'_>,
) {
    let mut models = BTreeMap::<ModelId, [Sums; 2]>::new();
    for sum in rows {
        let wanted = &mut models.entry(sum.model.clone()).or_default()[0];
        for (wanted, more) in wanted.iter_mut().zip(sums(&sum.tokens, sum.requests)) {
            *wanted = wanted.saturating_add(more);
        }
    }
    for one in &corrections.made {
        let Deltas { input, cached_input, output, reasoning, requests } = one.deltas;
        let wanted = &mut models.entry(one.model.clone()).or_default()[0];
        for (sum, delta) in wanted.iter_mut().zip([input, cached_input, output, reasoning, requests]) {
            *sum = sum.saturating_add(delta);
        }
    }
    for usage in &balance.usage {
        let sums = [usage.input, usage.cached_input, usage.output, usage.reasoning, usage.requests];
        models.entry(usage.model.clone()).or_default()[1] = sums;
    }
    // No balance is below nothing.
    models.values_mut().for_each(|[wanted, _]| *wanted = wanted.map(|sum| sum.max(0)));
    let place = Place::line(Table::Tokens.topic(), balance.partition).of(&balance.tenant_id);
    let agrees = models.values().all(|[wanted, found]| wanted == found);
    if !agrees && !corrections.made.is_empty() && corrections.as_of != balance.control_offset {
        let (of, now) = (balance.control_offset, corrections.as_of);
        let said = format!("there are corrections, and the balance is of control's offset {of}, not {now}");
        report.pending(Check::Balances, place, said);
        return;
    }
    for (model, [one, other]) in models {
        let place = Place { model: Some(model), ..place.clone() };
        same_sums(report, Check::Balances, &place, ["rows", "balance"], one, other);
    }
}

/// A bill as it is reckoned for people beside the same one out of the rows; and its lines beside its total.
pub(crate) fn bill(report: &mut Report, place: &Place, rows: &Preview, shown: &Preview) {
    let mut quantities = BTreeMap::<(ModelId, &'static str), [u64; 2]>::new();
    for (side, bill) in [rows, shown].into_iter().enumerate() {
        let rated = bill.lines.iter().map(|line| (&line.model, line.class, line.tokens));
        let unrated = bill.unrated.iter().map(|line| (&line.model, line.class, line.tokens));
        for (model, class, tokens) in rated.chain(unrated) {
            let sum = &mut quantities.entry((model.clone(), class.as_str())).or_default()[side];
            *sum = sum.saturating_add(tokens);
        }
    }
    let before = report.differences.len();
    for ((model, class), [one, other]) in quantities {
        let place = Place { model: Some(model), ..place.clone() };
        let (one, other) = (Side { of: "rows", is: number(one) }, Side { of: "bill", is: number(other) });
        report.same(Check::Invoices, &place, class, one, other);
    }
    let adds_up =
        shown.lines.iter().map(|line| line.amount).try_fold(shown.rounding, Money::checked_add) == Ok(shown.total);
    report.compared(Check::Invoices, 1);
    if report.differences.len() == before && (rows != shown || !adds_up) {
        let said = format!("the bill says {}, the rows {}", shown.total.amount(), rows.total.amount());
        let sides = (Side { of: "rows", is: 0 }, Side { of: "bill", is: 1 });
        report.differs(Difference::between(Check::Invoices, place.clone(), "total", sides.0, sides.1).saying(said));
    }
}

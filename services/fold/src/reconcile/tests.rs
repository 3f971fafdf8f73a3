//! The comparisons, held to what was done to their figures: all of it is found, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use ledger::control::{Corrected, Deltas, UsageAdjustment};
use ledger::ids::{EventId, RequestId, SourceId};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenCounts;
use proptest::prelude::*;
use schemas::event::{BalanceUpdated, ModelUsage};
use sql::{
    BalanceSum, ChunkFault, EventRow, LogHour, LogHours, SourceState, Table, TrialBalance, TrialBalanceLine, Unmatched,
};
use stream::consume::Bounds;
use uuid::Uuid;

use super::compare::{self, Corrections};
use super::report::{Check, Report};

fn report() -> Report {
    Report::begin(Micros(0), LogHours { from: LogHour(0), before: LogHour(100) })
}

fn event(offset: i64) -> EventRow {
    let id = Uuid::from_u128(1 + offset.unsigned_abs() as u128);
    EventRow { offset, event_id: EventId(id), request_id: RequestId(id), tenant: "acme".parse().unwrap() }
}

fn line(partition: i32, hour: i64, output: u64) -> TrialBalanceLine {
    let tokens = TokenCounts { output, ..TokenCounts::default() };
    TrialBalanceLine { partition, log_hour: LogHour(hour), rows: 1, tokens, requests: 1 }
}

#[test]
fn a_log_that_ends_before_what_was_folded_differs_and_one_that_goes_on_does_not() {
    for (position, first, next, differences, pending) in
        [(5, 0, 5, 0, 0), (5, 3, 9, 0, 1), (6, 0, 5, 1, 0), (5, 6, 9, 1, 0), (0, 0, 0, 0, 0)]
    {
        let mut report = report();
        compare::log(&mut report, Table::Tokens, 1, position, Bounds { first, next });
        assert_eq!((report.differences.len(), report.pending.len()), (differences, pending), "{report:?}");
    }
}

#[test]
fn a_request_is_missed_only_where_its_source_vouched_for_a_later_time() {
    let one = |n: u128, at: i64| Unmatched {
        tenant: "acme".parse().unwrap(),
        request_id: RequestId(Uuid::from_u128(n)),
        hour: LogHour(1),
        source: SourceId(Uuid::from_u128(7)),
        at: Micros(at),
    };
    let state = |watermark, end| SourceState { last_seq: 1, watermark: Micros(watermark), end };
    for (state, lost) in [
        (None, vec![]),
        (Some(state(5, None)), vec![1]),
        (Some(state(9, None)), vec![1, 2]),
        (Some(state(0, Some(sql::SourceEnd::Drained))), vec![1, 2]),
    ] {
        let sources: BTreeMap<_, _> = state.into_iter().map(|state| (SourceId(Uuid::from_u128(7)), state)).collect();
        let mut report = report();
        compare::ends(&mut report, Table::Tokens, 0, &[one(1, 4), one(2, 5)], &sources);
        let named: Vec<_> =
            report.differences.iter().flat_map(|found| &found.request_ids).map(|id| id.0.as_u128()).collect();
        assert_eq!(named, lost, "{report:?}");
        assert_eq!(report.pending.len(), usize::from(lost.len() < 2));
    }
}

fn updated(sums: &BTreeMap<u8, [i64; 5]>, as_of: i64) -> BalanceUpdated {
    let usage = sums.iter().map(|(model, sums)| ModelUsage {
        model: format!("m{model}").parse().unwrap(),
        input: sums[0],
        cached_input: sums[1],
        output: sums[2],
        reasoning: sums[3],
        requests: sums[4],
    });
    BalanceUpdated {
        tenant_id: "acme".parse().unwrap(),
        period_from: Micros(0),
        period_to: Micros(1),
        partition: 0,
        as_of,
        control_offset: 0,
        published_at: Micros(0),
        usage: usage.collect(),
    }
}

#[test]
fn a_balance_ahead_of_the_rows_waits_and_one_ahead_of_the_log_differs() {
    let balance = updated(&BTreeMap::new(), 7);
    for (position, next, comparable, differences, pending) in
        [(7, 7, true, 0, 0), (6, 7, false, 0, 1), (6, 6, false, 1, 0)]
    {
        let mut report = report();
        assert_eq!(compare::is_comparable(&mut report, &balance, position, next), comparable);
        assert_eq!((report.differences.len(), report.pending.len()), (differences, pending));
    }
}

#[test]
fn a_correction_is_in_a_balance_of_its_control_and_may_be_lacking_in_an_older_one() {
    let of = Corrected {
        tenant: "acme".parse().unwrap(),
        project: "default".parse().unwrap(),
        model: "m1".parse().unwrap(),
        slot: Slot(0),
    };
    let made = UsageAdjustment::new(of, Deltas { output: -30, ..Deltas::default() }, "counted twice");
    let tokens = TokenCounts { output: 100, ..TokenCounts::default() };
    let rows = BalanceSum { tenant: "acme".parse().unwrap(), model: "m1".parse().unwrap(), tokens, requests: 1 };
    for (output, as_of, differences, pending) in
        [(70, 0, 0, 0), (70, 9, 0, 0), (100, 9, 0, 1), (100, 0, 1, 0), (60, 0, 1, 0)]
    {
        let balance = updated(&BTreeMap::from([(1, [0, 0, output, 0, 1])]), 9);
        let mut report = report();
        compare::balance(&mut report, &balance, &[&rows], &Corrections { made: vec![&made], as_of });
        assert_eq!((report.differences.len(), report.pending.len()), (differences, pending), "{output} {report:?}");
    }
}

proptest! {
    #[test]
    fn every_row_that_was_taken_away_or_put_in_is_named(
        count in 1i64..60,
        gone in prop::collection::btree_set(0i64..60, 0..6),
        strange in prop::collection::btree_set(100i64..160, 0..6),
        twice in prop::collection::btree_set(0i64..60, 0..6),
        resent in prop::collection::btree_set(0i64..60, 0..6),
    ) {
        let inside = |set: BTreeSet<i64>| set.into_iter().filter(|offset| *offset < count).collect::<BTreeSet<_>>();
        let (gone, twice, resent) = (inside(gone), inside(twice), inside(resent));
        let twice: BTreeSet<_> = twice.difference(&gone).copied().collect();
        let mut log: Vec<_> = (0..count).map(event).collect();
        let mut rows: Vec<_> = log.iter().filter(|event| !gone.contains(&event.offset)).cloned().collect();
        // A resend lies at an offset of its own, and has no row.
        log.extend(resent.iter().map(|offset| EventRow { offset: count + offset, ..event(*offset) }));
        let known: BTreeSet<_> = rows.iter().map(|row| row.event_id).collect();
        rows.extend(twice.iter().chain(&strange).map(|offset| event(*offset)));
        rows.sort_by_key(|row| row.offset);
        let named = compare::name(&log, &rows, &known);
        let offsets = |events: &[EventRow]| events.iter().map(|event| event.offset).collect::<BTreeSet<_>>();
        prop_assert_eq!(offsets(&named.missing), gone.clone());
        prop_assert_eq!(offsets(&named.added), twice.union(&strange).copied().collect());
        let mut report = report();
        let fault = ChunkFault {
            chunk_first: 0, end: count, hour: 3, chunks: 1, folded_said: count, dead_said: 0,
            data_rows: rows.len() as u64, dead_rows: 0, sealed: 0,
        };
        compare::rows(&mut report, Table::Tokens, 0, &fault, Some(&named));
        prop_assert_eq!(report.differences.len(), usize::from(rows.len() as i64 != count));
        for difference in &report.differences {
            prop_assert_eq!(difference.by, rows.len() as i64 - count);
            prop_assert_eq!(difference.request_ids.len(), offsets(&named.missing).union(&offsets(&named.added)).count());
        }
    }

    #[test]
    fn sums_differ_exactly_where_they_were_changed_in_hours_that_are_over(
        hours in prop::collection::btree_map((0i32..3, 0i64..8), 1u64..1000, 1..20),
        changed in prop::collection::btree_map((0i32..3, 0i64..8), 1u64..1000, 0..6),
        open in prop::collection::btree_map(0i32..3, 0i64..9, 0..3),
    ) {
        let raw: Vec<_> = hours.iter().map(|(&(partition, hour), &output)| line(partition, hour, output)).collect();
        let mut sums = hours.clone();
        for (at, more) in &changed {
            *sums.entry(*at).or_default() += more;
        }
        let aggregate = sums.iter().map(|(&(partition, hour), &output)| line(partition, hour, output)).collect();
        let open: BTreeMap<_, _> = open.into_iter().map(|(partition, hour)| (partition, LogHour(hour))).collect();
        let over = |at: &(i32, i64)| open.get(&at.0).is_none_or(|open| at.1 < open.0);
        let mut report = report();
        compare::aggregates(&mut report, &TrialBalance { raw, aggregate }, &open);
        let found: Vec<_> = report.differences.iter().filter(|found| found.figure == "output")
            .map(|found| (found.place.partition.unwrap(), found.place.hour.clone().unwrap(), found.by)).collect();
        let expected: Vec<_> = changed.iter().filter(|(at, _)| over(at))
            .map(|(at, more)| (at.0, LogHour(at.1).start().to_string(), *more as i64)).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.pending.len(), sums.keys().filter(|at| !over(at)).count());
        prop_assert_eq!(report.agrees(), !changed.keys().any(over));
    }

    #[test]
    fn a_balance_agrees_with_its_rows_and_with_no_others(
        sums in prop::collection::btree_map(0u8..4, prop::array::uniform5(0i64..1000), 0..4),
        model in 0u8..4, figure in 0usize..5, by in -500i64..500,
    ) {
        let rows: Vec<_> = sums.iter().map(|(model, sums)| BalanceSum {
            tenant: "acme".parse().unwrap(),
            model: format!("m{model}").parse().unwrap(),
            tokens: TokenCounts {
                input: sums[0] as u64, cached_input: sums[1] as u64, output: sums[2] as u64, reasoning: sums[3] as u64,
            },
            requests: sums[4] as u64,
        }).collect();
        let mut wrong = sums;
        wrong.entry(model).or_default()[figure] += by;
        let mut report = report();
        let none = Corrections { made: vec![], as_of: 5 };
        compare::balance(&mut report, &updated(&wrong, 9), &rows.iter().collect::<Vec<_>>(), &none);
        prop_assert_eq!(report.count(Check::Balances), usize::from(by != 0));
        prop_assert!(report.differences.iter().all(|found| found.by == by), "{report:?}");
    }
}

//! Each rule of the protocol left out: the simulation must miss it.
//!
//! A test leaves out one rule and searches the scenario in which it counts. It asks for a failure of the kind that the rule
//! prevents, and that the same steps pass with the rule in force.

use stream::simulation::Rule;

use super::scenario::{
    DROPPED, EVERYTHING, FOREIGN, FULL, GATEWAYS, GROUP, HOSTS, LOST_RECORDS, OWNERS, SMALL_WINDOW, VOLUMES, ZOMBIES,
};
use super::search::{Met, first, run};
use super::step::Scenario;
use super::verdict::Kind;

/// Seeds that are tried before a rule counts as not needed.
const SEEDS: u64 = 3_000;

fn misses(rule: Rule, scenario: &Scenario, kinds: &[Kind]) {
    let found = first(0..SEEDS, scenario, Some(rule), &mut Met::default());
    let Some(found) = found else { panic!("{SEEDS} seeds of `{}` do not miss {rule:?}", scenario.name) };
    println!("{rule:?} seed {} {:?}", found.seed, found.failure.kind);
    if std::env::var_os("SIMULATE_STORIES").is_some() || !kinds.contains(&found.failure.kind) {
        let found = found.shrunk();
        println!("{}", found.story());
        assert!(kinds.contains(&found.failure.kind), "{:?}", found.failure.kind);
        return;
    }
    assert_eq!(run(&found.actions, scenario, None, &mut Met::default()), Ok(()), "the same steps pass with {rule:?}");
}

macro_rules! without {
    ($($name:ident: $rule:ident in $scenario:ident gives $($kind:ident)|+;)+) => {
        $(#[test] fn $name() { misses(Rule::$rule, &$scenario, &[$(Kind::$kind),+]); })+
    };
}

// 1 to 7: the spool and recovery.
without! {
    rule_01_new_source: NewSource in VOLUMES gives Lost | DeadLetter;
    rule_02_one_frame: OneFrame in GATEWAYS gives Doubled;
    rule_02_numbers_of_written_frames: NumberWithFrame in GATEWAYS gives Stopped | Refused | Stuck;
    rule_02_time_never_goes_back: TimeForward in EVERYTHING gives Watermark | Balance;
    rule_02_room_for_ends: RoomForEnds in FULL gives Overfull;
    rule_03_frontier: Frontier in GATEWAYS gives Stopped | DeadLetter | Lost | Refused | Doubled | Miscounted;
    rule_04_counts_before_handing: CountBeforeHanding in GATEWAYS gives Lost;
    rule_04_end_in_the_table: EndInTable in GATEWAYS gives Lost | Miscounted;
    rule_04_two_copies: TwoCopies in GATEWAYS gives Lost | Doubled | Miscounted;
    rule_04_slot_freed_last: SlotFreedLast in GATEWAYS gives Lost;
    rule_04_boot_of_the_table: BootOfTable in HOSTS gives Doubled | Miscounted;
    rule_05_delta_of_recovery: DeltaOfRecovery in GATEWAYS gives Doubled | Miscounted;
    rule_05_input_at_the_end: InputAtTheEnd in GATEWAYS gives Lost | Doubled | Miscounted;
    rule_06_written_again: WriteAgain in HOSTS gives Refused | Lost | DeadLetter | Stopped;
    rule_06_damage_stops: DamageStops in VOLUMES gives Lost | Refused | DeadLetter | Stopped;
    rule_06_pinned_segments: PinnedSegments in GATEWAYS gives Lost;
    rule_07_ends_what_was_open: EndsWhatWasOpen in GATEWAYS gives Lost;
    rule_07_derived_ids: DerivedIds in VOLUMES gives DeadLetter;
    rule_07_source_closed: SourceClosed in GATEWAYS gives Sources;
}

// 8: shipping.
without! {
    rule_08_contiguous_cursor: ContiguousCursor in GATEWAYS gives Stopped | Lost | Sources;
    rule_08_new_producer: NewProducer in GATEWAYS gives Stuck | Stopped;
    rule_08_gapless: Gapless in GATEWAYS gives Stopped;
    rule_08_one_on_its_way: OneOnItsWay in GATEWAYS gives Stopped | Lost;
    rule_08_heartbeats: Heartbeats in GATEWAYS gives Watermark;
}

// 9 to 13: proof, cut, outcomes, rows, parts.
without! {
    rule_09_proof_sums: ProofSums in SMALL_WINDOW gives Silent;
    rule_09_proof_at_start: ProofAtStart in DROPPED gives Stopped | Balance;
    rule_09_proof_of_sources: ProofOfSources in EVERYTHING gives Stopped;
    rule_10_block: Block in EVERYTHING gives Stopped;
    rule_11_duplicates: Duplicates in EVERYTHING gives Doubled | Stopped | DeadLetter;
    rule_11_seq_conflict: SeqConflict in VOLUMES gives DeadLetter;
    rule_11_a_gap_stops: GapStops in LOST_RECORDS gives Silent;
    rule_11_holes_are_marks: HolesAreMarks in EVERYTHING gives Stopped;
    rule_11_no_outcome_of_the_moment: NoOutcomeOfTheMoment in FOREIGN gives DeadLetter;
    rule_11_monotone_log_time: MonotoneLogTime in EVERYTHING gives Stopped | Folding;
    rule_12_source_rows: SourceRows in EVERYTHING gives Stopped;
    rule_13_one_part: OnePart in EVERYTHING gives Stopped;
    rule_13_projections: Projections in EVERYTHING gives Aggregates | Balance;
}

// 14 to 17: insert, read back, balances, dead letters; and what ARCHITECTURE.md adds.
without! {
    rule_14_token: Token in OWNERS gives Stopped;
    rule_14_token_of_first: TokenOfFirst in OWNERS gives Stopped;
    rule_14_fence: Fence in ZOMBIES gives Stopped;
    rule_14_fence_in_block: FenceInBlock in ZOMBIES gives Stopped;
    rule_15_read_back: ReadBack in OWNERS gives Stopped;
    rule_15_retry_token: RetryToken in EVERYTHING gives Stuck;
    rule_15_foreign_cut: ForeignCut in OWNERS gives Stopped;
    rule_15_doubt_after_error: DoubtAfterError in OWNERS gives Stopped;
    rule_16_balance_once: BalanceOnce in OWNERS gives Balance;
    rule_16_highest_balance: HighestBalance in EVERYTHING gives Balance;
    rule_17_copy_first: CopyFirst in EVERYTHING gives Copy;
}

/// The group decides who works, and nothing else: see the scenario.
#[test]
fn a_group_alone_protects_nothing() {
    misses(Rule::TokenOfFirst, &GROUP, &[Kind::Stopped]);
}

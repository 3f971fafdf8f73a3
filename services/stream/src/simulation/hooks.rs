//! Rules of the protocol that a simulation leaves out, to show that it would miss them. Per thread; none in a real process.

use std::cell::Cell;

use uuid::Uuid;

/// A rule that can be left out, by its place in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// 1: every start is a new source.
    NewSource,
    /// 2: the last count and the end of a request are one frame.
    OneFrame,
    /// 2: a number is taken only by a frame that is written.
    NumberWithFrame,
    /// 2: the time of records never goes back.
    TimeForward,
    /// 2: room for the end of a request is kept when it is let in.
    RoomForEnds,
    /// 3: only what fsync covered is shipped.
    Frontier,
    /// 4: counts are stored before what they count is handed on.
    CountBeforeHanding,
    /// 4: what an end settled is stored before it is handed on, where the disk refuses it.
    EndInTable,
    /// 4: counts are kept twice, with an index that flips.
    TwoCopies,
    /// 4: a slot is freed after the last frame is written.
    SlotFreedLast,
    /// 4: the table of another boot is ignored.
    BootOfTable,
    /// 5: recovery bills what the last checkpoint had not.
    DeltaOfRecovery,
    /// 5: checkpoints carry no input.
    InputAtTheEnd,
    /// 6: after a failed fsync everything is written again.
    WriteAgain,
    /// 6: damage that is no torn tail stops the start.
    DamageStops,
    /// 6: a segment stays while a request admitted in it is open.
    PinnedSegments,
    /// 7: recovery ends what was open.
    EndsWhatWasOpen,
    /// 7: recovery's event ids are derived.
    DerivedIds,
    /// 7: the source before is closed in every partition.
    SourceClosed,
    /// 8: the cursor is the contiguous acknowledged prefix.
    ContiguousCursor,
    /// 8: a delivery error is followed by a new producer from the cursor.
    NewProducer,
    /// 8: a record that fails takes the later ones of its partition with it.
    Gapless,
    /// 8: one request is on its way to a broker at a time.
    OneOnItsWay,
    /// 8: heartbeats go out.
    Heartbeats,
    /// 9: each offset is proven to be there once.
    ProofSums,
    /// 9: a line begins with a proof.
    ProofAtStart,
    /// 9: a proof gives each source's last number.
    ProofOfSources,
    /// 10: a chunk is no larger than a block.
    Block,
    /// 11: a number that was read before is a duplicate.
    Duplicates,
    /// 11: a number that another event has is a dead letter.
    SeqConflict,
    /// 11: a number too high stops the line.
    GapStops,
    /// 11: offsets without a record are marks.
    HolesAreMarks,
    /// 11: what depends on the moment is no outcome.
    NoOutcomeOfTheMoment,
    /// 11: log time is made monotone.
    MonotoneLogTime,
    /// 12: a chunk writes the state of its sources.
    SourceRows,
    /// 12: chains are compared.
    Chain,
    /// 13: a chunk is one part.
    OnePart,
    /// 13: sums lie in the parts of their rows.
    Projections,
    /// 14: inserts have a token.
    Token,
    /// 14: the token names only where the chunk begins.
    TokenOfFirst,
    /// 14: inserts have a deadline.
    Fence,
    /// 14: the deadline is looked at when the block comes, not when the query begins.
    FenceInBlock,
    /// 15: every insert is read back.
    ReadBack,
    /// 15: a token that lost its part is followed by another.
    RetryToken,
    /// 15: another's cut is taken over, not one's own.
    ForeignCut,
    /// 15: an insert without an answer is followed by a proof.
    DoubtAfterError,
    /// 16: each offset adds to a balance once.
    BalanceOnce,
    /// 16: readers keep the balance with the highest offset.
    HighestBalance,
    /// 17: dead letters are copied before their row is written.
    CopyFirst,
}

thread_local! {
    static LEFT_OUT: Cell<Option<Rule>> = const { Cell::new(None) };
    static NEXT_ID: Cell<Option<u64>> = const { Cell::new(None) };
    static STORES: Cell<Option<u32>> = const { Cell::new(None) };
}

/// From now on this thread works without `rule`.
pub fn leave_out(rule: Option<Rule>) {
    LEFT_OUT.set(rule);
}

/// Whether this thread works without `rule`.
pub fn left_out(rule: Rule) -> bool {
    LEFT_OUT.get() == Some(rule)
}

/// From now on new spools and sources of this thread have numbers for ids, so that a run can be repeated.
pub fn number_ids_from(first: u64) {
    NEXT_ID.set(Some(first));
}

/// The next id; none if ids are chance.
pub(crate) fn next_id() -> Option<Uuid> {
    let next = NEXT_ID.get()?;
    NEXT_ID.set(Some(next + 1));
    Some(Uuid::from_u128(0x5eed << 64 | u128::from(next)))
}

/// This thread's process dies after so many stores to mapped memory: later ones do nothing. None: it lives.
pub fn die_after_stores(stores: Option<u32>) {
    STORES.set(stores);
}

/// Whether a store to mapped memory is still made.
pub(crate) fn stores_on() -> bool {
    match STORES.get() {
        None => true,
        Some(0) => false,
        Some(left) => {
            STORES.set(Some(left - 1));
            true
        }
    }
}

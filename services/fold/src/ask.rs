//! One thing that a line's driver wants to know or to have done, carried out.

use ledger::time::Slot;
use sql::{DataRow as _, PartitionTotal};

use crate::call::{Answer, Call};
use crate::event::FoldEvent;
use crate::line::Shared;
use crate::store::Proven;

/// What comes with a proof, beside what the driver is told.
#[derive(Debug)]
pub(crate) struct Beside {
    /// With what balances begin, from a slot on.
    pub(crate) totals: Option<(Slot, Vec<PartitionTotal>)>,
    /// The tables that the position was proven of.
    pub(crate) tables: u64,
}

/// Does it. `tables` is what the position was proven of, and totals begin at `totals_from`.
pub(crate) async fn perform<E: FoldEvent>(
    shared: Shared,
    partition: i32,
    call: Call<E::Row>,
    totals_from: Slot,
    tables: u64,
) -> (Answer, Option<Beside>) {
    let (store, table) = (&shared.store, E::Row::TABLE);
    let answer = match call {
        Call::Prove { with_totals } => match store.prove(table, partition, with_totals.then_some(totals_from)).await {
            Ok(Proven { proof, totals, tables }) => {
                let totals = totals.map(|totals| (totals_from, totals));
                return (Answer::Proof(Ok(proof)), Some(Beside { totals, tables }));
            }
            Err(error) => Answer::Proof(Err(error)),
        },
        Call::EventIds(numbers) => Answer::EventIds(store.event_ids(table, partition, &numbers).await),
        Call::Position => Answer::Position(store.position(table, partition).await),
        Call::Copy(rows) => {
            let copied = shared.publisher.dead_letters(table.topic(), partition, &rows.dead).await;
            Answer::Copied(copied.map_err(|error| format!("dead letters were not copied: {error}")))
        }
        Call::Insert { rows, retry, insert_before_ms } => {
            Answer::Inserted(E::insert(store.clone(), rows, retry, insert_before_ms, tables).await)
        }
    };
    (answer, None)
}

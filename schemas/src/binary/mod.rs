//! A record's own way to and from Avro's binary form, without a look at its schema for each field. Every request is written twice,
//! and every event is read, and the library takes ten times as long.
//!
//! What it rests on is held by tests that compare it with the library: fields stand in the order of their schema, a union is of
//! null and one other, and all numbers are `int` and `long`, which are written alike.

mod read;
mod write;

pub(crate) use read::read;
pub(crate) use write::write;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::event::{
        BalanceUpdated, ControlChanged, DeadLettered, GpuSampled, Record, RequestFinished, TokensCounted,
    };

    /// Otherwise the library would read it, ten times as slowly, and nobody would see.
    #[test]
    fn what_is_written_today_is_read_this_way() {
        fn is_read<R: Record>(value: &[u8]) {
            let record: R = codec::decode(value).unwrap();
            let bytes = codec::encode(&record).unwrap();
            assert!(read::<R>(bytes.get(codec::HEADER..).unwrap()).is_some(), "{}", R::SCHEMA_ID);
        }
        is_read::<TokensCounted>(include_bytes!("../../golden/tokens_counted.v1.bin"));
        is_read::<RequestFinished>(include_bytes!("../../golden/request_finished.v1.bin"));
        is_read::<BalanceUpdated>(include_bytes!("../../golden/balance_updated.v1.bin"));
        is_read::<ControlChanged>(include_bytes!("../../golden/control_changed.v1.bin"));
        is_read::<DeadLettered>(include_bytes!("../../golden/dead_lettered.v1.bin"));
        is_read::<GpuSampled>(include_bytes!("../../golden/gpu_sampled.v1.bin"));
    }
}

//! A sealed month beside the log: replayed as it once was, and summed up as its rows are.

use sql::{Month, SealedRows};
use stream::cut::CutPolicy;

use super::replay::{Room, Unlike, settled};
use super::{Audit, AuditError, Difference, Progress, TOLD, WINDOW};
use crate::event::FoldEvent;

/// What is replayed at once: how it was cut before it was sealed is not known, and no figure depends on it.
const PIECE: CutPolicy =
    CutPolicy { max_age_ms: u64::MAX, max_quiet_ms: u64::MAX, max_offsets: WINDOW as u64, max_bytes: 64 << 20 };

impl<E: FoldEvent> Audit<'_, E> {
    /// Replays a sealed month and compares its rows. Tells where the log is not the one that was folded.
    pub(super) async fn sealed(
        &mut self,
        month: Month,
        of: i64,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Option<Unlike>, AuditError> {
        let (table, topic, partition) = (<E::Row as sql::DataRow>::TABLE, self.audited.topic, self.audited.partition);
        let mut wanted = SealedRows::<E::Row>::new(month);
        while self.audited.offsets < month.end {
            let piece = match self.replay.cut(month.end, Room { block: &PIECE, months: true }, |_| {}).await? {
                Ok(piece) => piece,
                Err(unlike) => return Ok(Some(unlike)),
            };
            for chunk in settled(self.clickhouse, table, partition, vec![piece]).await? {
                (self.audited.offsets, self.audited.chain) = (chunk.end, chunk.chain);
                self.audited.counts += chunk.counts;
                if let Err(why) = wanted.add(chunk) {
                    self.tell([Difference::Table(why)]);
                }
            }
            progress(Progress { topic, partition, done: self.audited.offsets, of });
        }
        self.audited.chunks += month.chunks;
        let different = self.clickhouse.sealed_differences(&wanted, partition, TOLD).await?;
        self.tell(different.into_iter().map(Difference::Row));
        Ok(None)
    }
}

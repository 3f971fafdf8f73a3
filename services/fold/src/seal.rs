//! Months that are over, held to the log once more and then sealed: their raw rows become rows that stand for many.
//!
//! What is sealed can be raw again only out of the log, so a month is sealed only if the log, or an archive of it, still has it and says what
//! its rows say. Months are sealed in their order, so that the sealed ones of a line are its beginning.

use schemas::event::{RequestFinished, TokensCounted};
use sql::{ClickHouse, ClickHouseSettings, Month, MonthSize, ProofError, QueryError, Table};
use thiserror::Error;

use crate::archive::Log;
use crate::audit::{Audit, AuditError, Difference, Progress};
use crate::chunk::proven;
use crate::event::FoldEvent;

const DAY_MS: i64 = 86_400_000;

/// Which months are sealed, and on what ground.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Days that a month must have been over, by ClickHouse's clock: one at least, so that no deadline of an insert is near.
    pub older_than_days: u32,
    /// Only says what would be sealed.
    pub dry_run: bool,
    /// Trusts the rows where nothing has the log any more. What is wrong with them can never be found afterwards.
    pub without_log: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { older_than_days: 35, dry_run: false, without_log: false }
    }
}

/// Why it stopped. What was sealed before is; the month that it stopped at is as it was.
#[derive(Debug, Error)]
pub enum SealError {
    /// The log was not read: without it nothing is sealed.
    #[error(
        "{0}; what is sealed can be audited only if an archive has it: give one with --archive, see tollgate archive"
    )]
    Log(#[from] AuditError),
    /// ClickHouse was not read, or did not do it.
    #[error("ClickHouse: {0}")]
    ClickHouse(#[from] QueryError),
    /// The months before are no whole folding.
    #[error(transparent)]
    Damaged(#[from] ProofError),
    /// The sealed month does not say what the raw one said.
    #[error(
        "{table}/{partition}, month {month}: ClickHouse has sealed it to other figures than its rows had; run tollgate rebuild, and \
         report it"
    )]
    Unfaithful {
        /// Which.
        table: Table,
        /// Which.
        partition: i32,
        /// Which.
        month: u32,
    },
}

/// What became of a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was sealed before.
    Already,
    /// It is sealed now; what it takes since.
    Sealed(MonthSize),
    /// It would be sealed.
    Would,
    /// It is not as the log says, which an audit tells in full. Later months of the line are not sealed before it.
    Refused(Vec<Difference>),
    /// It has not been over for long enough, or nothing of a later month is there yet, so that it may still grow.
    Young,
}

/// A month of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Its topic.
    pub topic: &'static str,
    /// Its partition.
    pub partition: i32,
    /// The month and its offsets.
    pub month: Month,
    /// What it took before.
    pub size: MonthSize,
    /// What became of it.
    pub outcome: Outcome,
}

/// Seals what is old enough of these partitions of both topics. The fold, readers and another run may go on meanwhile.
///
/// # Errors
/// See [`SealError`].
pub async fn run(
    log: Log<'_>,
    clickhouse: &ClickHouseSettings,
    partitions: &[i32],
    rules: Rules,
    mut progress: impl FnMut(Progress),
) -> Result<Vec<Sealed>, SealError> {
    let clickhouse = ClickHouse::new(clickhouse);
    let sealing = Sealing { log, clickhouse: &clickhouse, rules };
    let mut sealed = Vec::new();
    for &partition in partitions {
        sealed.extend(sealing.line::<TokensCounted>(partition, &mut progress).await?);
        sealed.extend(sealing.line::<RequestFinished>(partition, &mut progress).await?);
    }
    Ok(sealed)
}

struct Sealing<'a> {
    log: Log<'a>,
    clickhouse: &'a ClickHouse,
    rules: Rules,
}

impl Sealing<'_> {
    async fn line<E: FoldEvent>(
        &self,
        partition: i32,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Vec<Sealed>, SealError> {
        let table = <E::Row as sql::DataRow>::TABLE;
        if !self.rules.dry_run {
            self.clickhouse.finish_sealing(table).await?;
        }
        let months = self.clickhouse.months(table, partition).await?;
        let now_ms = self.clickhouse.position(table, partition).await?.now_ms;
        let mut line = Vec::new();
        for (at, month) in months.iter().enumerate() {
            let size = self.clickhouse.month_size(table, partition, month.month).await?;
            let is_last = at + 1 == months.len();
            let outcome = match month.sealed {
                true => Outcome::Already,
                false if is_last || !is_old(month, now_ms, self.rules.older_than_days) => Outcome::Young,
                false => self.month::<E>(partition, month, progress).await?,
            };
            let goes_on = matches!(outcome, Outcome::Already | Outcome::Sealed(_) | Outcome::Would);
            line.push(Sealed { topic: table.topic(), partition, month: *month, size, outcome });
            if !goes_on {
                break;
            }
        }
        Ok(line)
    }

    async fn month<E: FoldEvent>(
        &self,
        partition: i32,
        month: &Month,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Outcome, SealError> {
        let table = <E::Row as sql::DataRow>::TABLE;
        if self.rules.dry_run {
            return Ok(Outcome::Would);
        }
        let before = self.clickhouse.month_figures(table, partition, month.month).await?;
        let mut differences = self.own_faults(table, partition, month, (before.folded, before.dead)).await?;
        if differences.is_empty() && !self.rules.without_log {
            differences = self.audit::<E>(partition, month, progress).await?;
        }
        if !differences.is_empty() {
            return Ok(Outcome::Refused(differences));
        }
        self.clickhouse.seal(table, partition, month).await?;
        let months = self.clickhouse.months(table, partition).await?;
        let sealed = months.contains(&Month { sealed: true, ..*month });
        if !sealed || self.clickhouse.month_figures(table, partition, month.month).await? != before {
            return Err(SealError::Unfaithful { table, partition, month: month.month });
        }
        Ok(Outcome::Sealed(self.clickhouse.month_size(table, partition, month.month).await?))
    }

    /// What is wrong with a month by its own account: offsets, outcomes and rows must agree, and go on with the month before.
    async fn own_faults(
        &self,
        table: Table,
        partition: i32,
        month: &Month,
        rows: (u64, u64),
    ) -> Result<Vec<Difference>, SealError> {
        let before = self.clickhouse.prove_before(table, partition, month.month).await?;
        let (first, offsets) = (month.first, month.end - month.first);
        let said = (u64::try_from(month.counts.folded), u64::try_from(month.counts.dead));
        let why = match () {
            () if before.position != first => {
                format!("month {} begins at offset {first}, the one before ends at {}", month.month, before.position)
            }
            () if month.lengths != offsets || month.counts.total() != Some(offsets) => {
                format!("the chunks of month {} do not hold each of its {offsets} offsets once", month.month)
            }
            () if said != (Ok(rows.0), Ok(rows.1)) => {
                format!(
                    "month {} has {} data rows and {} dead rows for {:?}",
                    month.month, rows.0, rows.1, month.counts
                )
            }
            () => return Ok(Vec::new()),
        };
        Ok(vec![Difference::Table(why)])
    }

    /// Replays the month from the state before it, and compares every row of it.
    async fn audit<E: FoldEvent>(
        &self,
        partition: i32,
        month: &Month,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Vec<Difference>, SealError> {
        let table = <E::Row as sql::DataRow>::TABLE;
        let before = self.clickhouse.prove_before(table, partition, month.month).await?;
        let mut audit = Audit::<E>::open(self.log, self.clickhouse, partition, proven(&before))?;
        // Whether the log is another is one of the differences.
        let _ = audit.follow(month.end, progress).await?;
        let mut differences = audit.audited.differences;
        if differences.is_empty() && (audit.audited.offsets, audit.audited.chain) != (month.end, month.chain) {
            differences.push(Difference::Table(format!("its chain at offset {} is not the log's", month.end)));
        }
        Ok(differences)
    }
}

fn is_old(month: &Month, now_ms: i64, older_than_days: u32) -> bool {
    let days = i64::from(older_than_days.max(1));
    month.over_ms().is_some_and(|over| now_ms.saturating_sub(over) >= days * DAY_MS)
}

#[cfg(test)]
mod tests {
    use sql::OutcomeCounts;

    use super::*;

    #[test]
    fn a_month_is_old_when_it_has_been_over_for_so_many_days_and_one_at_least() {
        let counts = OutcomeCounts::default();
        let (chunks, first, end, lengths, log_time_ms, chain) = (1, 0, 1, 1, 0, [0; 32]);
        let month = Month { month: 197_001, sealed: false, chunks, first, end, lengths, counts, log_time_ms, chain };
        for (days, older_than, old) in [(31, 0, false), (32, 0, true), (32, 1, true), (65, 35, false), (66, 35, true)] {
            assert_eq!(is_old(&month, days * DAY_MS, older_than), old, "{days} {older_than}");
        }
        assert!(!is_old(&Month { month: 0, ..month }, i64::MAX, 1), "a month that is none");
    }
}

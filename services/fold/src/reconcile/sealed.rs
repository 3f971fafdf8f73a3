//! Sealed months beside the others: what cannot be compared row by row, because a part of it is no row of its own any more.

use ledger::time::Micros;
use sql::{ClickHouse, LogHours, QueryError, ReplicaCounters, Table, Uneven};

use super::replicas::{LONGEST, SKEW};

/// A month is sealed a day after its end at the earliest.
const DAY_MICROS: i64 = 86_400_000_000;

/// Up to when rows of a line are sealed, if that reaches into these hours; the beginning of time if not. What occurred later has a row.
pub(super) async fn until(
    clickhouse: &ClickHouse,
    table: Table,
    partition: i32,
    hours: LogHours,
    now_ms: i64,
) -> Result<Micros, QueryError> {
    if hours.from.start().0 > now_ms.saturating_mul(1_000).saturating_sub(DAY_MICROS) {
        return Ok(Micros(i64::MIN));
    }
    let sealed = clickhouse.sealed_until(table, partition).await?;
    // Clocks may be apart.
    Ok(Micros(sealed.map_or(i64::MIN, |ms| ms.saturating_mul(1_000).saturating_add(SKEW))))
}

/// Leaves out requests that had begun before rows were sealed: some of their counts may be among those.
pub(super) async fn leave_out(
    clickhouse: &ClickHouse,
    partition: i32,
    sealed: Micros,
    uneven: &mut Vec<Uneven>,
) -> Result<(), QueryError> {
    if uneven.is_empty() || sealed.0 == i64::MIN {
        return Ok(());
    }
    let ids: Vec<_> = uneven.iter().map(|one| one.request_id).collect();
    let before = clickhouse.began_before(partition, &ids, sealed).await?;
    uneven.retain(|one| !before.contains(&one.request_id));
    Ok(())
}

/// Leaves out samples from when requests may have been there whose counts are sealed.
pub(super) fn leave_out_samples(samples: &mut Vec<ReplicaCounters>, sealed: Micros) {
    samples.retain(|sample| sample.at.saturating_mul(1_000) > sealed.0.saturating_add(LONGEST));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_compared_once_no_request_of_sealed_rows_can_be_there() {
        let sample = |at| ReplicaCounters {
            at,
            url: String::new(),
            replicas: Vec::new(),
            started: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            open: 0,
        };
        let left = |sealed| {
            let mut samples = [1_000, 3_600_000, 3_600_002].map(sample).to_vec();
            leave_out_samples(&mut samples, Micros(sealed));
            samples.into_iter().map(|sample| sample.at).collect::<Vec<_>>()
        };
        assert_eq!(left(1_000), [3_600_002]);
        assert_eq!(left(i64::MIN).len(), 3);
    }
}

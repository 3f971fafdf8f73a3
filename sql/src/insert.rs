//! Writing a chunk: one insert, one block, one part, under a token and a deadline.

use std::time::Duration;

use clickhouse::insert::Insert;
use clickhouse::{Client, Row};

use crate::calendar::log_month;
use crate::client::ClickHouse;
use crate::error::InsertError;
use crate::raw::{DataRow, Figures, Place, RawRow};
use crate::rows::ChunkRows;

/// How long one piece may take to be sent.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// How long the answer may take: more than ClickHouse gives itself, so that it says why.
const END_DEADLINE: Duration = Duration::from_secs(45);

/// What keeps a chunk in one block and one part. `max_partitions_per_insert_block` refuses one that would be two. A disk with less than
/// a gibibyte of room is written nothing: ClickHouse says yes to parts that a full disk cut short, and may forget tokens.
const SETTINGS: [(&str, &str); 10] = [
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("max_execution_time", "30"),
    ("max_insert_block_size", "10000000"),
    ("max_insert_block_size_bytes", "0"),
    ("max_insert_threads", "1"),
    ("max_partitions_per_insert_block", "1"),
    ("min_free_disk_bytes_to_perform_insert", "1073741824"),
    ("min_insert_block_size_rows", "10000000"),
    ("min_insert_block_size_bytes", "1000000000"),
];

impl ClickHouse {
    /// Writes a chunk, unless one with the same first offset (and the same `retry`) was written before: then nothing
    /// happens, and that is no error. So read the position back after each success.
    ///
    /// `retry` is 0, and higher only when the position is still at `first` after a success. `insert_before_ms` is the
    /// clock of the last proof or read-back plus what an insert may take: ClickHouse refuses the rows from then on.
    ///
    /// # Errors
    /// See [`InsertError`]; after all but a malformed chunk, ask for a proof.
    pub async fn insert_chunk<D: DataRow>(
        &self,
        chunk: &ChunkRows<D>,
        retry: u32,
        insert_before_ms: i64,
    ) -> Result<(), InsertError> {
        chunk.check().map_err(InsertError::Malformed)?;
        let place = place(chunk, insert_before_ms).map_err(InsertError::Malformed)?;
        let (client, compares) = self.writer(D::TABLE);
        let written = write(&client, chunk, place, retry).await;
        self.inserted(D::TABLE, compares, written.is_ok());
        written
    }
}

async fn write<D: DataRow>(client: &Client, chunk: &ChunkRows<D>, place: Place, retry: u32) -> Result<(), InsertError> {
    let token = D::TABLE.token(chunk.partition, chunk.first, retry);
    let mut insert = open::<D>(client, &token).await?;
    for row in &chunk.data {
        insert.write(&D::data(row, place)).await?;
    }
    for row in &chunk.dead {
        insert.write(&D::Raw::dead(row, place)).await?;
    }
    for (source, state) in &chunk.sources {
        insert.write(&D::Raw::source(source.0, state, place)).await?;
    }
    let figures = Figures { end: chunk.end, counts: chunk.counts, chain: chunk.chain };
    insert.write(&D::Raw::chunk(figures, place)).await?;
    Ok(insert.end().await?)
}

/// Opens an insert with the settings that exactness rests on. The columns of the table are asked once and kept.
async fn open<D: DataRow>(client: &Client, token: &str) -> Result<Insert<D::Raw>, InsertError>
where
    D::Raw: Row,
{
    let asked = client.insert::<D::Raw>(D::TABLE.name());
    let insert = tokio::time::timeout(SEND_DEADLINE, asked)
        .await
        .map_err(|_| InsertError::Unknown("the table's columns were not told in time".to_owned()))??;
    let insert = insert.with_timeouts(Some(SEND_DEADLINE), Some(END_DEADLINE));
    let settled = SETTINGS.into_iter().fold(insert, |insert, (name, value)| insert.with_setting(name, value));
    Ok(settled.with_setting("insert_deduplication_token", token))
}

/// What all rows of a chunk have in common.
pub(crate) fn place<D>(chunk: &ChunkRows<D>, insert_before_ms: i64) -> Result<Place, String> {
    let month = log_month(chunk.first_log_time_ms)
        .ok_or_else(|| format!("log time {} ms has no month", chunk.first_log_time_ms))?;
    Ok(Place {
        partition: chunk.partition,
        month,
        first: chunk.first,
        log_time_ms: chunk.log_time_ms,
        insert_before_ms,
    })
}

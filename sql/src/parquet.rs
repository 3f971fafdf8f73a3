//! Records of a log as Parquet: ClickHouse writes and reads the format, through a table in its memory.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::Row;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::client::{ClickHouse, within_deadline};
use crate::error::QueryError;
use crate::wire;

const LOG_ROWS: &str = include_str!("../queries/log_rows.sql");
const FORGOTTEN: &str = include_str!("../queries/log_rows_forgotten.sql");
/// How long one piece may take to be sent, and ClickHouse to have read them all.
const DEADLINES: (Option<Duration>, Option<Duration>) = (Some(Duration::from_secs(30)), Some(Duration::from_secs(75)));

/// A record as Kafka handed it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// Its offset.
    pub offset: i64,
    /// Kafka's LogAppendTime, milliseconds since 1970.
    pub log_time_ms: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub headers: Vec<(String, Vec<u8>)>,
}

#[derive(Row, Serialize, Deserialize)]
struct WireRow<'a> {
    kafka_offset: i64,
    log_time: i64,
    #[serde(borrow)]
    key: Option<wire::Bytes<'a>>,
    #[serde(borrow)]
    value: Option<wire::Bytes<'a>>,
    #[serde(borrow)]
    header_names: Vec<&'a str>,
    #[serde(borrow)]
    header_values: Vec<wire::Bytes<'a>>,
}

impl<'a> WireRow<'a> {
    fn of(row: &'a LogRow) -> Self {
        Self {
            kafka_offset: row.offset,
            log_time: row.log_time_ms,
            key: row.key.as_deref().map(wire::Bytes),
            value: row.value.as_deref().map(wire::Bytes),
            header_names: row.headers.iter().map(|(name, _)| name.as_str()).collect(),
            header_values: row.headers.iter().map(|(_, value)| wire::Bytes(value)).collect(),
        }
    }

    fn row(&self) -> Result<LogRow, QueryError> {
        if self.header_names.len() != self.header_values.len() {
            return Err(QueryError::Mismatch(format!("offset {} has headers without a value", self.kafka_offset)));
        }
        let names = self.header_names.iter().map(|name| (*name).to_owned());
        Ok(LogRow {
            offset: self.kafka_offset,
            log_time_ms: self.log_time,
            key: self.key.map(|bytes| bytes.0.to_vec()),
            value: self.value.map(|bytes| bytes.0.to_vec()),
            headers: names.zip(self.header_values.iter().map(|bytes| bytes.0.to_vec())).collect(),
        })
    }
}

/// What turns records into Parquet and back. Its table is no one else's; [`ParquetTable::drop_table`] removes it.
#[derive(Debug)]
pub struct ParquetTable {
    clickhouse: ClickHouse,
    name: String,
}

impl ClickHouse {
    /// Makes the table, and removes those that killed processes left a day ago or longer.
    ///
    /// # Errors
    /// No answer, or no right to create tables.
    pub async fn parquet_table(&self) -> Result<ParquetTable, QueryError> {
        for forgotten in within_deadline(self.rows(FORGOTTEN).fetch_all::<String>()).await? {
            ParquetTable { clickhouse: self.clone(), name: forgotten }.drop_table().await?;
        }
        let name = format!("log_rows_{}", Uuid::new_v4().simple());
        within_deadline(self.rows(LOG_ROWS).param("table", &name).execute()).await?;
        Ok(ParquetTable { clickhouse: self.clone(), name })
    }
}

impl ParquetTable {
    /// These records as a Parquet file.
    ///
    /// # Errors
    /// No answer.
    pub async fn parquet(&self, rows: &[LogRow]) -> Result<Bytes, QueryError> {
        self.clear().await?;
        let mut insert = within_deadline(self.clickhouse.client().insert::<WireRow<'_>>(&self.name)).await?;
        insert = insert.with_timeouts(DEADLINES.0, DEADLINES.1).with_setting("async_insert", "0");
        for row in rows {
            insert.write(&WireRow::of(row)).await?;
        }
        insert.end().await?;
        let query = self
            .all("SELECT * FROM {table:Identifier} ORDER BY kafka_offset")
            // Values are bytes; as text they would be no file that others can read.
            .with_setting("output_format_parquet_string_as_string", "0")
            .with_setting("output_format_parquet_compression_method", "zstd");
        let mut answer = query.fetch_bytes("Parquet")?;
        let parquet = within_deadline(answer.collect()).await?;
        self.clear().await?;
        Ok(parquet)
    }

    /// The records of a Parquet file, by their offsets.
    ///
    /// # Errors
    /// No answer, or a file that is none of ours.
    pub async fn rows(&self, parquet: Bytes) -> Result<Vec<LogRow>, QueryError> {
        self.clear().await?;
        // The name is our own: a word and a UUID.
        let insert = format!("INSERT INTO {} FORMAT Parquet", self.name);
        let mut insert = self
            .clickhouse
            .client()
            .insert_formatted_with(insert)
            .with_timeouts(DEADLINES.0, DEADLINES.1)
            .with_setting("async_insert", "0")
            .with_setting("input_format_parquet_allow_missing_columns", "0");
        insert.send(parquet).await?;
        insert.end().await?;
        let mut found =
            self.all("SELECT ?fields FROM {table:Identifier} ORDER BY kafka_offset").fetch::<WireRow<'_>>()?;
        let mut rows = Vec::new();
        while let Some(row) = within_deadline(found.next()).await? {
            rows.push(row.row()?);
        }
        self.clear().await?;
        Ok(rows)
    }

    /// Removes the table.
    ///
    /// # Errors
    /// No answer; then it is removed a day later by whoever makes the next one.
    pub async fn drop_table(self) -> Result<(), QueryError> {
        within_deadline(self.all("DROP TABLE IF EXISTS {table:Identifier} SYNC").execute()).await
    }

    fn all(&self, sql: &str) -> clickhouse::query::Query {
        self.clickhouse.rows(sql).param("table", &self.name)
    }

    async fn clear(&self) -> Result<(), QueryError> {
        within_deadline(self.all("TRUNCATE TABLE {table:Identifier}").execute()).await
    }
}

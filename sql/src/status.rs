//! What a ClickHouse says of itself, for people: its version, its clock, how far the database is migrated.

use ledger::time::Micros;

use crate::client::{server, within_deadline};
use crate::error::QueryError;
use crate::settings::ClickHouseSettings;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Of ClickHouse itself.
    pub server_version: String,
    /// Its clock when it answered.
    pub now: Micros,
    /// The newest migration that was applied; absent when [`migrate`](fn@crate::migrate) never ran.
    pub migration: Option<u32>,
}

impl ClickHouseSettings {
    /// Asks. Changes nothing.
    ///
    /// # Errors
    /// No answer, or a wrong user or password.
    pub async fn status(&self) -> Result<Status, QueryError> {
        let client = server(self);
        let itself = client.query("SELECT version(), toUnixTimestamp64Micro(now64(6))");
        let (server_version, now) = within_deadline(itself.fetch_one::<(String, i64)>()).await?;
        let book = client
            .query("SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'migrations'")
            .param("database", &self.database);
        let migration = match within_deadline(book.fetch_one::<u64>()).await? {
            0 => None,
            _ => {
                let newest = client
                    .query("SELECT max(number) FROM {database:Identifier}.migrations")
                    .param("database", &self.database);
                Some(within_deadline(newest.fetch_one::<u32>()).await?).filter(|number| *number > 0)
            }
        };
        Ok(Status { server_version, now: Micros(now), migration })
    }
}

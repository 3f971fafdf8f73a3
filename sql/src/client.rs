//! The handle on one database: settings that every statement has, deadlines, and errors in our words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clickhouse::query::Query;
use clickhouse::{Client, RowOwned, RowRead};

use crate::error::QueryError;
use crate::settings::ClickHouseSettings;
use crate::table::Table;

/// How long ClickHouse may work on a statement that reads, in seconds.
const READ_SECONDS: u64 = 60;
/// How long the answer to such a statement may take in all: a little more, so that ClickHouse says why.
const READ_DEADLINE: Duration = Duration::from_secs(READ_SECONDS + 15);

/// One database of one ClickHouse. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct ClickHouse {
    client: Client,
    strict: bool,
    read_seconds: u64,
    /// Tables whose columns were held to our types by an insert, and no insert has failed since.
    checked: Arc<[AtomicBool; Table::ALL.len()]>,
}

impl std::fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouse").field("strict", &self.strict).finish_non_exhaustive()
    }
}

impl ClickHouse {
    /// A handle; nothing is asked yet.
    pub fn new(settings: &ClickHouseSettings) -> Self {
        let client = server(settings).with_database(&settings.database);
        Self { client, strict: false, read_seconds: READ_SECONDS, checked: Arc::default() }
    }

    /// ClickHouse works on a statement that reads for so many seconds at most (60 without this): who waits for less long lets it do
    /// nothing in vain.
    pub fn reading_at_most(mut self, seconds: u64) -> Self {
        self.read_seconds = seconds.min(READ_SECONDS);
        self
    }

    /// Refuses a sum that no projection answers. For tests and for measuring: the figures are the same either way.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Whether ClickHouse answers and has the database.
    ///
    /// # Errors
    /// No answer, a wrong password, no such database.
    pub async fn ping(&self) -> Result<(), QueryError> {
        within_deadline(self.client.query("SELECT 1").fetch_one::<u8>()).await.map(|_| ())
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// A client that writes rows of a table, and whether it compares each field's type with its column's: it does until an insert
    /// has shown that they agree. Comparing takes as long as writing.
    pub(crate) fn writer(&self, table: Table) -> (Client, bool) {
        let compares = !self.checked[table as usize].load(Ordering::Relaxed);
        (self.client.clone().with_validation(compares), compares)
    }

    /// An insert into a table was done, or was not: then types are compared again. Only one that compared them shows that they agree.
    pub(crate) fn inserted(&self, table: Table, compared: bool, done: bool) {
        if compared || !done {
            self.checked[table as usize].store(done, Ordering::Relaxed);
        }
    }

    /// A statement that reads rows.
    pub(crate) fn rows(&self, sql: &str) -> Query {
        self.client.query(sql).with_setting("max_execution_time", self.read_seconds.to_string())
    }

    /// A statement that sums, which a projection is to answer.
    pub(crate) fn sums(&self, sql: &str) -> Query {
        let query = self.rows(sql).with_setting("optimize_use_projections", "1");
        if self.strict { query.with_setting("force_optimize_projection", "1") } else { query }
    }
}

/// A client without a database.
pub(crate) fn server(settings: &ClickHouseSettings) -> Client {
    let client = Client::default()
        .with_url(&settings.url)
        .with_user(&settings.user)
        .with_product_info("tollgate", env!("CARGO_PKG_VERSION"));
    match settings.password.expose() {
        "" => client,
        password => client.with_password(password),
    }
}

/// All rows of a statement.
pub(crate) async fn fetch<T: RowOwned + RowRead>(query: Query) -> Result<Vec<T>, QueryError> {
    within_deadline(query.fetch_all::<T>()).await
}

/// The one row of a statement that always has one.
pub(crate) async fn fetch_row<T: RowOwned + RowRead>(query: Query) -> Result<T, QueryError> {
    let rows = fetch::<T>(query).await?;
    rows.into_iter().next().ok_or_else(|| QueryError::Mismatch("no row where one must be".to_owned()))
}

/// Waits for an answer, but not for ever.
pub(crate) async fn within_deadline<T>(
    answer: impl Future<Output = Result<T, clickhouse::error::Error>>,
) -> Result<T, QueryError> {
    match tokio::time::timeout(READ_DEADLINE, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(QueryError::Unreachable(format!("no answer within {} s", READ_DEADLINE.as_secs()))),
    }
}

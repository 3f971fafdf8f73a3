//! Migrations: numbered, in order, each safe to run again after a kill, beside another process that runs it too, or to make
//! a table anew that was dropped.

use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::client::{server, within_deadline};
use crate::error::QueryError;
use crate::settings::ClickHouseSettings;
use crate::table::Table;

/// The book itself: made if absent, every time.
const BOOK: &str = include_str!("../migrations/0000_migrations.sql");

/// All migrations, in order. A new one is added at the end; an old one is never changed.
const MIGRATIONS: &[Migration] = &[
    Migration { number: 1, name: "raw_tables", sql: include_str!("../migrations/0001_raw_tables.sql") },
    Migration { number: 2, name: "reconciliations", sql: include_str!("../migrations/0002_reconciliations.sql") },
    Migration { number: 3, name: "replica_counters", sql: include_str!("../migrations/0003_replica_counters.sql") },
    Migration { number: 4, name: "sealed_months", sql: include_str!("../migrations/0004_sealed_months.sql") },
    Migration { number: 5, name: "offset_index", sql: include_str!("../migrations/0005_offset_index.sql") },
];

/// A step of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// From 1, without holes.
    pub number: u32,
    /// What it is about.
    pub name: &'static str,
    sql: &'static str,
}

impl Migration {
    /// SHA-256 of its text, in hex: what must not change once it was applied.
    fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The statements of a file. Each ends with a semicolon at the end of a line.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    let bare = |text: &str| text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with("--"));
    sql.split(";\n").map(str::trim).filter(move |text| !bare(text))
}

/// The number of the newest migration that this binary knows.
pub fn version() -> u32 {
    MIGRATIONS.last().map_or(0, |last| last.number)
}

/// What `migrate` is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The database is made if absent.
    Database(&'a str),
    /// A migration begins.
    Begins(&'a Migration),
    /// It is applied and in the book.
    Applied(&'a Migration),
}

/// What `migrate` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Applied now.
    pub applied: Vec<Migration>,
    /// How many were in the book before.
    pub already: usize,
    /// The version that the database has.
    pub version: u32,
}

/// Why a database is not migrated.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// No answer, or a statement was refused.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A later version of Tollgate was here.
    #[error(
        "the database {database:?} is at version {found} and this binary knows version {known}: run the newer Tollgate \
         that migrated it, or give this one a database of its own"
    )]
    Newer {
        /// Which database.
        database: String,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// What was applied is not what this binary would have applied.
    #[error(
        "migration {number} ({name}) was applied to the database {database:?} with another text than this binary has: \
         migrations are added, never changed; use the build that applied it, or a new database and a rebuild"
    )]
    Changed {
        /// Which database.
        database: String,
        /// Which migration.
        number: u32,
        /// Its name.
        name: String,
    },
    /// The book has a hole.
    #[error(
        "the database {database:?} has migration {after} but not migration {missing}: its book was changed by hand"
    )]
    Hole {
        /// Which database.
        database: String,
        /// What is not there.
        missing: u32,
        /// What is.
        after: u32,
    },
}

/// A line of the book.
#[derive(Debug, Clone, PartialEq, Eq, Row, Serialize, Deserialize)]
struct Entry {
    number: u32,
    name: String,
    checksum: String,
}

/// What is left to apply, in order.
fn left<'a>(database: &str, known: &'a [Migration], book: &[Entry]) -> Result<&'a [Migration], MigrateError> {
    let database = || database.to_owned();
    let found = book.iter().map(|entry| entry.number).max().unwrap_or(0);
    let version = known.last().map_or(0, |last| last.number);
    if found > version {
        return Err(MigrateError::Newer { database: database(), found, known: version });
    }
    let (applied, left) = known.split_at(known.partition_point(|migration| migration.number <= found));
    for migration in applied {
        let mut entries = book.iter().filter(|entry| entry.number == migration.number).peekable();
        if entries.peek().is_none() {
            return Err(MigrateError::Hole { database: database(), missing: migration.number, after: found });
        }
        let checksum = migration.checksum();
        if let Some(other) = entries.find(|entry| entry.checksum != checksum) {
            let (number, name) = (migration.number, other.name.clone());
            return Err(MigrateError::Changed { database: database(), number, name });
        }
    }
    Ok(left)
}

async fn execute(client: &Client, statement: &str) -> Result<(), QueryError> {
    within_deadline(client.query(statement).execute()).await
}

/// Whether a table is gone that the migrations make. The book then says what was done to a table that is not there.
async fn lacks_a_table(client: &Client) -> Result<bool, QueryError> {
    let names: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    let there =
        "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name IN {names:Array(String)}";
    let there: u64 = within_deadline(client.query(there).param("names", &names).fetch_one()).await?;
    Ok(there < names.len() as u64)
}

/// Brings the database to this binary's version. Safe to run again, from two places at once, and after a kill in the
/// middle: every statement does nothing when it was done before. Where a table was dropped all of them are run again.
///
/// # Errors
/// See [`MigrateError`]; what was applied before the error stays applied.
pub async fn migrate(
    settings: &ClickHouseSettings,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Report, MigrateError> {
    let name = settings.database.as_str();
    progress(Progress::Database(name));
    let database =
        server(settings).query("CREATE DATABASE IF NOT EXISTS {database:Identifier}").param("database", name);
    within_deadline(database.execute()).await?;
    let client = server(settings).with_database(name);
    for statement in statements(BOOK) {
        execute(&client, statement).await?;
    }
    let book = client.query("SELECT DISTINCT number, name, checksum FROM migrations ORDER BY number, checksum");
    let book: Vec<Entry> = within_deadline(book.fetch_all()).await?;
    let left = match left(name, MIGRATIONS, &book)? {
        left if left.len() < MIGRATIONS.len() && lacks_a_table(&client).await? => MIGRATIONS,
        left => left,
    };
    for migration in left {
        progress(Progress::Begins(migration));
        for statement in statements(migration.sql) {
            execute(&client, statement).await?;
        }
        record(&client, migration).await?;
        progress(Progress::Applied(migration));
    }
    Ok(Report { applied: left.to_vec(), already: MIGRATIONS.len() - left.len(), version: version() })
}

/// Enters a migration into the book. Twice is once: the book is read without its repetitions.
async fn record(client: &Client, migration: &Migration) -> Result<(), QueryError> {
    let insert = "INSERT INTO migrations (number, name, checksum) \
                  SELECT {number:UInt32}, {name:String}, {checksum:String}";
    let query = client
        .query(insert)
        .with_setting("async_insert", "0")
        .param("number", migration.number)
        .param("name", migration.name)
        .param("checksum", migration.checksum());
    within_deadline(query.execute()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Migration = Migration { number: 1, name: "a", sql: "CREATE 1" };
    const SECOND: Migration = Migration { number: 2, name: "b", sql: "CREATE 2" };

    fn entry(of: Migration) -> Entry {
        Entry { number: of.number, name: of.name.to_owned(), checksum: of.checksum() }
    }

    #[test]
    fn what_is_left_follows_from_the_book() {
        let known = [FIRST, SECOND];
        assert_eq!(left("d", &known, &[]).unwrap(), &known);
        assert_eq!(left("d", &known, &[entry(FIRST), entry(FIRST)]).unwrap(), &[SECOND]);
        assert_eq!(left("d", &known, &[entry(FIRST), entry(SECOND)]).unwrap(), &[]);
        assert!(matches!(
            left("d", &known[..1], &[entry(SECOND)]),
            Err(MigrateError::Newer { found: 2, known: 1, .. })
        ));
        assert!(matches!(left("d", &known, &[entry(SECOND)]), Err(MigrateError::Hole { missing: 1, after: 2, .. })));
        let changed = Entry { checksum: "0".into(), ..entry(FIRST) };
        let said = left("d", &known, &[entry(FIRST), changed]).unwrap_err().to_string();
        assert!(said.contains("migration 1 (a)") && said.contains("never changed"), "{said}");
    }

    #[test]
    fn numbers_have_no_holes_and_every_statement_may_run_twice() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.number as usize, at + 1);
            for statement in statements(BOOK).chain(statements(migration.sql)) {
                let guarded = statement.contains(" IF NOT EXISTS ") || statement.contains(" IF EXISTS ");
                assert!(guarded, "migration {}: {statement}", migration.number);
            }
            assert!(migration.sql.ends_with(";\n"), "migration {} must end with a semicolon", migration.number);
        }
    }

    #[test]
    fn statements_end_at_semicolons() {
        assert_eq!(statements("-- x\nA;\n\nB\n;\n-- end\n").collect::<Vec<_>>(), ["-- x\nA", "B"]);
    }
}

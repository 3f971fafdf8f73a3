//! `tollgate migrate`: the topics in Kafka and the tables in ClickHouse, as the roles need them; safe to run again.

use std::time::{Duration, Instant};

use runtime::Shutdown;
use sql::{ClickHouseSettings, MigrateError, Progress, QueryError};
use stream::kafka::KafkaSettings;
use stream::topics;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The topics.
    #[error(transparent)]
    Topics(#[from] topics::TopicsError),
    /// The tables.
    #[error("{0}; ClickHouse is at [clickhouse] url {1}")]
    Tables(MigrateError, String),
}

impl Error {
    /// Whether waiting may help: a server that is not up yet.
    fn is_transient(&self) -> bool {
        match self {
            Self::Topics(error) => error.is_transient(),
            Self::Tables(error, _) => matches!(error, MigrateError::Query(QueryError::Unreachable(_))),
        }
    }
}

/// What is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Topics and tables.
    All,
    /// Only the tables: after a restore, or where somebody else makes the topics.
    Tables,
}

/// Makes what is missing, and refuses topics whose settings exact counting cannot rest on. Says each step through `say`.
/// Servers that do not answer yet are waited for, at most `patience`.
pub(crate) async fn run(
    kafka: &KafkaSettings,
    clickhouse: &ClickHouseSettings,
    scope: Scope,
    patience: Duration,
    shutdown: &Shutdown,
    mut say: impl FnMut(String),
) -> Result<(), Error> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let error = match once(kafka, clickhouse, scope, &mut say).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_transient() && began.elapsed() < patience => error,
            Err(error) => return Err(error),
        };
        if !told {
            say(format!("waiting: {error}"));
            told = true;
        }
        if !shutdown.sleep(Duration::from_millis(500)).await {
            return Err(error);
        }
    }
}

async fn once(
    kafka: &KafkaSettings,
    clickhouse: &ClickHouseSettings,
    scope: Scope,
    say: &mut impl FnMut(String),
) -> Result<(), Error> {
    if scope == Scope::All {
        topics::ensure(kafka).await?;
        topics::verify(kafka).await?;
        say(format!("the topics are there, with {} partitions each for data", kafka.partitions));
    }
    let steps = |progress: Progress<'_>| {
        if let Progress::Applied(migration) = progress {
            say(format!("migration {} ({}) is applied", migration.number, migration.name));
        }
    };
    let report = sql::migrate(clickhouse, steps).await.map_err(|error| Error::Tables(error, clickhouse.url.clone()))?;
    say(format!("the tables of {} are at version {}", clickhouse.database, report.version));
    Ok(())
}

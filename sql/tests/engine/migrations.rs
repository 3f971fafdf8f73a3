//! Migrations: twice, four at once, given up at any moment, and refused where they must be.

use std::time::Duration;

use sql::{ClickHouse, ClickHouseSettings, MigrateError, Progress, Table, migrate, version};

use crate::engine::Engine;

/// The tables of a database as ClickHouse has them, without the database's name.
async fn schema(engine: &Engine, database: &str) -> String {
    let client = engine.client(database);
    let tables = "SELECT name FROM system.tables WHERE database = currentDatabase() ORDER BY name";
    let mut text = String::from("-- What the migrations add up to. Written by ClickHouse; a test compares.\n");
    for table in client.query(tables).fetch_all::<String>().await.unwrap() {
        let create = client.query("SHOW CREATE TABLE {table:Identifier}").param("table", &table);
        let create: String = create.fetch_one().await.unwrap();
        text += &format!("\n{};\n", create.replace(&format!("CREATE TABLE {database}."), "CREATE TABLE "));
    }
    text
}

async fn assert_whole(engine: &Engine, settings: &ClickHouseSettings) {
    let found = schema(engine, &settings.database).await;
    assert!(found == include_str!("../../schema.sql"), "schema.sql is not what the migrations add up to:\n{found}");
    assert_eq!(ClickHouse::new(settings).prove(Table::Requests, 0).await.unwrap().position, 0);
}

#[tokio::test]
async fn the_schema_is_what_the_migrations_add_up_to_and_a_second_run_does_nothing() {
    let engine = Engine::empty().await;
    let settings = engine.settings("meter");
    let handle = ClickHouse::new(&settings);
    assert!(handle.ping().await.is_err(), "the database is not there yet");
    let mut seen = Vec::new();
    let report = migrate(&settings, |progress| {
        seen.push(match progress {
            Progress::Database(name) => name.to_owned(),
            Progress::Begins(migration) => format!("{} begins", migration.number),
            Progress::Applied(migration) => format!("{} applied", migration.number),
        });
    });
    let report = report.await.unwrap();
    assert_eq!((report.applied.len(), report.already, report.version), (version() as usize, 0, version()));
    assert_eq!(seen[..3], ["meter", "1 begins", "1 applied"]);
    handle.ping().await.unwrap();
    assert_whole(&engine, &settings).await;
    let report = migrate(&settings, |_| ()).await.unwrap();
    assert_eq!((report.applied.len(), report.already), (0, version() as usize));
    assert_whole(&engine, &settings).await;
}

#[tokio::test]
async fn a_table_that_was_dropped_alone_is_made_anew() {
    let engine = Engine::empty().await;
    let settings = engine.settings("meter");
    migrate(&settings, |_| ()).await.unwrap();
    for table in Table::ALL {
        engine.client("meter").query(&format!("DROP TABLE {table}")).execute().await.unwrap();
        assert!(!migrate(&settings, |_| ()).await.unwrap().applied.is_empty());
        assert_whole(&engine, &settings).await;
        assert!(migrate(&settings, |_| ()).await.unwrap().applied.is_empty());
    }
}

#[tokio::test]
async fn four_at_once_are_one() {
    let engine = Engine::empty().await;
    let settings = engine.settings("meter");
    let run = || migrate(&settings, |_| ());
    let reports = tokio::join!(run(), run(), run(), run());
    for report in [reports.0, reports.1, reports.2, reports.3] {
        assert_eq!(report.unwrap().version, version());
    }
    assert_whole(&engine, &settings).await;
    assert_eq!(migrate(&settings, |_| ()).await.unwrap().already, version() as usize);
}

#[tokio::test]
async fn given_up_or_killed_at_any_moment_it_is_finished_by_the_next_run() {
    let mut engine = Engine::empty().await;
    for millis in 0..40 {
        let settings = engine.settings(&format!("meter_{millis}"));
        // What it was doing goes on or not, as after a kill of this process.
        let _ = tokio::time::timeout(Duration::from_millis(millis), migrate(&settings, |_| ())).await;
        if millis % 13 == 12 {
            engine.kill().await;
            engine.start_again().await;
        }
        migrate(&settings, |_| ()).await.unwrap();
        assert_whole(&engine, &settings).await;
    }
}

#[tokio::test]
async fn a_newer_database_and_a_changed_migration_are_refused_in_words() {
    let engine = Engine::empty().await;
    let settings = engine.settings("meter");
    migrate(&settings, |_| ()).await.unwrap();
    let enter = async |number: u32| {
        let insert = "INSERT INTO migrations (number, name, checksum) SELECT {n:UInt32}, 'later', 'abc'";
        engine.client("meter").query(insert).param("n", number).execute().await.unwrap();
        migrate(&settings, |_| ()).await.unwrap_err()
    };
    let changed = enter(1).await;
    assert!(matches!(changed, MigrateError::Changed { number: 1, .. }), "{changed}");
    let newer = enter(version() + 1).await;
    assert!(matches!(newer, MigrateError::Newer { .. }) && newer.to_string().contains("newer Tollgate"), "{newer}");
}

//! Starts the embedded ClickHouse in a process of its own (this test binary, run again as a server), and migrates it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use clickhouse::Client;
use embedded::clickhouse::{ClickHouseChild, ClickHouseSettings, library_in, serve};
use runtime::Shutdown;
use sql::ClickHouse;
use tempfile::TempDir;

const DATA: &str = "TOLLGATE_TEST_DATA";
const PORT: &str = "TOLLGATE_TEST_PORT";

fn library() -> PathBuf {
    let tools = std::env::var_os("TOLLGATE_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools"), PathBuf::from);
    let library = library_in(&tools);
    assert!(library.exists(), "{} is missing: run make setup", library.display());
    library
}

/// Not a test: what the server process runs.
#[test]
#[ignore = "the server process of the other tests"]
fn server_process() {
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let settings = ClickHouseSettings::new(std::env::var(DATA).unwrap(), library(), port);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let served = runtime.block_on(async { serve(settings, Shutdown::from_signals().unwrap()).await });
    eprintln!("{}", served.unwrap_err());
    std::process::abort();
}

/// A server on a data folder of its own. Killed when dropped.
pub(crate) struct Engine {
    server: ClickHouseSettings,
    child: Option<ClickHouseChild>,
    // Last: it goes after the process that writes into it.
    _folder: TempDir,
}

impl Engine {
    /// An empty server.
    pub(crate) async fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = ClickHouseSettings::new(folder.path().join("data"), library(), port);
        let mut engine = Self { server, child: None, _folder: folder };
        engine.start_again().await;
        engine
    }

    /// A server with our tables. Nothing is merged, so that parts can be counted.
    pub(crate) async fn start() -> Self {
        let engine = Self::empty().await;
        sql::migrate(&engine.settings("tollgate"), |_| ()).await.unwrap();
        engine.execute("SYSTEM STOP MERGES").await;
        engine
    }

    /// A new process on the same data.
    pub(crate) async fn start_again(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "engine::server_process", "--nocapture"])
            .env(DATA, &self.server.data_dir)
            .env(PORT, self.server.listen.port().to_string());
        self.child = Some(ClickHouseChild::start(&self.server, command).await.unwrap());
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self) {
        self.child.take().unwrap().kill().await;
    }

    pub(crate) fn settings(&self, database: &str) -> sql::ClickHouseSettings {
        let url = format!("http://{}", self.server.listen);
        sql::ClickHouseSettings { url, database: database.to_owned(), ..Default::default() }
    }

    /// A handle that refuses a sum which no projection answers.
    pub(crate) fn clickhouse(&self) -> ClickHouse {
        ClickHouse::new(&self.settings("tollgate")).strict()
    }

    pub(crate) fn client(&self, database: &str) -> Client {
        Client::default().with_url(format!("http://{}", self.server.listen)).with_database(database)
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.client("tollgate").query(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub(crate) async fn number(&self, sql: &str) -> u64 {
        let answer = self.client("tollgate").query(sql).fetch_one().await;
        answer.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

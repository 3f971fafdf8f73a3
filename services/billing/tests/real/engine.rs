//! Starts the embedded ClickHouse in a process of its own (this test binary, run again as a server), and migrates it.

use std::path::{Path, PathBuf};
use std::process::Command;

use embedded::clickhouse::{ClickHouseChild, ClickHouseSettings, library_in, serve};
use runtime::Shutdown;

const DATA: &str = "TOLLGATE_TEST_DATA";
const PORT: &str = "TOLLGATE_TEST_PORT";

fn library() -> PathBuf {
    let library = library_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"));
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

/// A server that can be killed and started again. Killed when dropped.
pub(crate) struct Engine {
    server: ClickHouseSettings,
    child: Option<ClickHouseChild>,
}

impl Engine {
    /// A server with our tables, and its data in a folder.
    pub(crate) async fn start(folder: &Path) -> Self {
        let server = ClickHouseSettings::new(folder.join("clickhouse"), library(), super::free_port());
        let mut engine = Self { server, child: None };
        engine.start_again().await;
        sql::migrate(&engine.settings(), |_| ()).await.unwrap();
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

    pub(crate) fn settings(&self) -> sql::ClickHouseSettings {
        sql::ClickHouseSettings { url: format!("http://{}", self.server.listen), ..Default::default() }
    }
}

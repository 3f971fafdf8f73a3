//! Starts the embedded ClickHouse in a process of its own: this test binary, run again as a server.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clickhouse::Client;
use embedded::clickhouse::{ClickHouseChild, ClickHouseSettings, library_in, serve};
use runtime::Shutdown;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const DATA: &str = "TOLLGATE_TEST_DATA";
const PORT: &str = "TOLLGATE_TEST_PORT";

pub(crate) fn library() -> PathBuf {
    let tools = std::env::var_os("TOLLGATE_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from);
    let library = library_in(&tools);
    assert!(library.exists(), "{} is missing: run make setup", library.display());
    library
}

pub(crate) fn settings(data: &Path) -> ClickHouseSettings {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    ClickHouseSettings::new(data, library(), port)
}

/// Not a test: what the server process runs.
#[test]
#[ignore = "the server process of the other tests"]
fn server_process() {
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let mut settings = ClickHouseSettings::new(std::env::var(DATA).unwrap(), library(), port);
    settings.patience = Duration::from_secs(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let served = runtime.block_on(async { serve(settings, Shutdown::from_signals().unwrap()).await });
    eprintln!("{}", served.unwrap_err());
    std::process::abort();
}

/// This test binary, as a server with these settings.
pub(crate) fn command(settings: &ClickHouseSettings) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "engine::server_process", "--nocapture"])
        .env(DATA, &settings.data_dir)
        .env(PORT, settings.listen.port().to_string());
    command
}

/// A data folder and the server on it. Killed when dropped.
pub(crate) struct Engine {
    pub(crate) settings: ClickHouseSettings,
    child: Option<ClickHouseChild>,
    // Last: it goes after the process that writes into it.
    _folder: TempDir,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Self { settings: settings(&folder.path().join("data")), child: None, _folder: folder };
        engine.start_again().await;
        engine
    }

    /// A new process on the same data.
    pub(crate) async fn start_again(&mut self) {
        self.child = Some(ClickHouseChild::start(&self.settings, command(&self.settings)).await.unwrap());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().pid()
    }

    /// True if it ended by itself in time.
    pub(crate) async fn stop(&mut self, grace: Duration) -> bool {
        self.child.take().unwrap().stop(grace).await
    }

    /// kill -9, and a new process on the same data.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.child.take().unwrap().kill().await;
        self.start_again().await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.settings.listen
    }

    pub(crate) fn client(&self) -> Client {
        Client::default().with_url(self.child.as_ref().unwrap().url())
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.client().query(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub(crate) async fn number(&self, sql: &str) -> u64 {
        self.client().query(sql).fetch_one().await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// A request as it is on the wire; the whole answer.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut socket = TcpStream::connect(self.address()).await.unwrap();
        socket.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One POST with this path and body.
    pub(crate) async fn post(&self, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        self.raw((head + body).as_bytes()).await
    }
}

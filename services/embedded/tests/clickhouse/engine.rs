//! Starts the embedded ClickHouse in a process of its own: this test binary, run again as a server.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clickhouse::Client;
use embedded::clickhouse::{ClickHouseSettings, library_in, serve, until_ready};
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
    assert!(library.exists(), "{} is missing: run deploy/local/clickhouse.sh", library.display());
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

/// A data folder and the server on it. Killed when dropped.
pub(crate) struct Engine {
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) process: Child,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn process(data: &Path, port: u16) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "engine::server_process", "--nocapture"])
        .env(DATA, data)
        .env(PORT, port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

impl Engine {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let process = process(folder.path(), port);
        let engine = Self { folder, address: ([127, 0, 0, 1], port).into(), process };
        engine.ready().await;
        engine
    }

    async fn ready(&self) {
        until_ready(self.address, Duration::from_secs(60)).await.unwrap();
    }

    /// kill -9, and a new process on the same data.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = process(self.folder.path(), self.address.port());
        self.ready().await;
    }

    pub(crate) fn client(&self) -> Client {
        Client::default().with_url(format!("http://{}", self.address))
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.client().query(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub(crate) async fn number(&self, sql: &str) -> u64 {
        self.client().query(sql).fetch_one().await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// A request as it is on the wire; the whole answer.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
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

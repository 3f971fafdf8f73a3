//! Where the embedded ClickHouse keeps its data, where it listens, how much it does at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to serve ClickHouse's HTTP interface. [`ClickHouseSettings::new`] fills in what suits one machine.
#[derive(Clone)]
pub struct ClickHouseSettings {
    /// Everything it keeps. Made if absent; one process at a time.
    pub data_dir: PathBuf,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The engine: `libchdb.so` (see [`library_in`]).
    pub library: PathBuf,
    /// If set, every statement must bring it (the user's name does not matter).
    pub password: Option<String>,
    /// How many statements run at once; more of them wait.
    pub concurrency: usize,
    /// How long a client may pause while it sends an INSERT's body, or reads a result, before it is given up.
    pub patience: Duration,
    /// How long open statements may take to end when the process is to stop.
    pub drain: Duration,
    /// How long a child may take until it answers: 0.1 to 0.5 s, more when the 566 MB of the library come from a cold disk.
    pub start_timeout: Duration,
}

impl ClickHouseSettings {
    /// On this machine's loopback address.
    pub fn new(data_dir: impl Into<PathBuf>, library: impl Into<PathBuf>, port: u16) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            library: library.into(),
            password: None,
            concurrency: 64,
            patience: Duration::from_secs(300),
            drain: Duration::from_secs(2),
            start_timeout: Duration::from_secs(90),
        }
    }
}

impl std::fmt::Debug for ClickHouseSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseSettings")
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .field("library", &self.library)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("concurrency", &self.concurrency)
            .field("patience", &self.patience)
            .field("drain", &self.drain)
            .field("start_timeout", &self.start_timeout)
            .finish()
    }
}

/// The engine's library where `deploy/local/clickhouse.sh` puts it.
pub fn library_in(tools_dir: &Path) -> PathBuf {
    tools_dir.join("chdb/libchdb.so")
}

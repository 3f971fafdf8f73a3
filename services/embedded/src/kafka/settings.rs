//! Where the embedded Kafka keeps its data, where it listens, how large it may grow.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How to run Kafka as a child. [`KafkaSettings::new`] fills in what suits one machine.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// Everything it keeps: the log, its cluster id, its own log file. Made if absent.
    pub data_dir: PathBuf,
    /// Where `deploy/local/kafka.sh` put the jars: this folder holds `kafka/lib`.
    pub tools_dir: PathBuf,
    /// Where clients connect; also the address it tells them, so not 0.0.0.0.
    pub listen: SocketAddr,
    /// Where its own controller listens; `None` takes a free port at each start.
    pub controller: Option<SocketAddr>,
    /// The Java program.
    pub java: PathBuf,
    /// The largest heap, in MiB.
    pub heap_mib: u32,
    /// How long it may take until it answers. A cold, busy machine needs a while.
    pub start_timeout: Duration,
    /// True to let it live on when this process dies; otherwise the kernel kills it then.
    pub outlives_parent: bool,
    /// Settings of Kafka that are put over the built-in ones.
    pub properties: BTreeMap<String, String>,
}

impl KafkaSettings {
    /// One node on this machine's loopback address, with Java from `JAVA_HOME` or the search path.
    pub fn new(data_dir: impl Into<PathBuf>, tools_dir: impl Into<PathBuf>, port: u16) -> Self {
        let java = std::env::var_os("JAVA_HOME")
            .map(|home| PathBuf::from(home).join("bin/java"))
            .filter(|java| java.exists())
            .unwrap_or_else(|| PathBuf::from("java"));
        Self {
            data_dir: data_dir.into(),
            tools_dir: tools_dir.into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            controller: None,
            java,
            heap_mib: 512,
            start_timeout: Duration::from_secs(90),
            outlives_parent: false,
            properties: BTreeMap::new(),
        }
    }
}

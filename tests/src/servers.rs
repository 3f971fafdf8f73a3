//! Kafka and ClickHouse of a system under test: started, killed, copied.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use embedded::clickhouse::{ClickHouseChild, ClickHouseError, ClickHouseSettings, library_in};
use embedded::kafka::{KafkaChild, KafkaSettings};

use crate::host::{BROKER, CLICKHOUSE, Hosts};
use crate::system::{System, binary, free_port, root};

/// How long each may take until it answers: where all tests run at once on a small machine, Java alone needs a minute.
const START: Duration = Duration::from_secs(240);

/// Where `make setup` puts Kafka and the ClickHouse engine.
pub(crate) fn tools() -> PathBuf {
    let tools = root().join(".tools");
    assert!(library_in(&tools).exists() && tools.join("kafka/lib").exists(), "no tools in .tools: run make setup");
    tools
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Servers {
    kafka_settings: KafkaSettings,
    clickhouse_settings: ClickHouseSettings,
    kafka: Mutex<Option<KafkaChild>>,
    clickhouse: Mutex<Option<ClickHouseChild>>,
    pub(crate) hosts: Option<Hosts>,
}

impl Servers {
    /// Settings on free ports, in a system's folder. Nothing runs.
    pub(crate) fn new(dir: &Path, hosts: Option<Hosts>, adjust: impl FnOnce(&mut KafkaSettings)) -> Self {
        let tools = tools();
        let mut kafka_settings = KafkaSettings::new(dir.join("kafka"), &tools, free_port());
        kafka_settings.start_timeout = START;
        adjust(&mut kafka_settings);
        if let Some(hosts) = &hosts {
            kafka_settings.java = hosts.wrapped(&kafka_settings.java, BROKER);
        }
        let mut clickhouse_settings = ClickHouseSettings::new(dir.join("clickhouse"), library_in(&tools), free_port());
        clickhouse_settings.start_timeout = START;
        Self { kafka_settings, clickhouse_settings, kafka: Mutex::new(None), clickhouse: Mutex::new(None), hosts }
    }
}

/// What is behind a lock. No holder leaves it half changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl System {
    /// Where the broker is.
    pub fn brokers(&self) -> String {
        self.servers.kafka_settings.listen.to_string()
    }

    /// Where ClickHouse is.
    pub fn clickhouse_url(&self) -> String {
        format!("http://{}", self.servers.clickhouse_settings.listen)
    }

    /// Where ClickHouse listens.
    pub const fn clickhouse_address(&self) -> std::net::SocketAddr {
        self.servers.clickhouse_settings.listen
    }

    /// Starts the broker again on what it kept.
    pub async fn start_kafka(&self) {
        let child = KafkaChild::start(&self.servers.kafka_settings).await.expect("Kafka");
        *locked(&self.servers.kafka) = Some(child);
    }

    /// kill -9 of the broker.
    pub async fn kill_kafka(&self) {
        let child = locked(&self.servers.kafka).take();
        child.expect("Kafka runs").kill().await;
    }

    /// Starts ClickHouse again on what it kept.
    pub async fn start_clickhouse(&self) {
        self.try_start_clickhouse().await.expect("ClickHouse");
    }

    /// The same, where it may not start on what it kept.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn try_start_clickhouse(&self) -> Result<(), ClickHouseError> {
        let settings = &self.servers.clickhouse_settings;
        let mut command = settings.command(binary());
        command.envs(self.servers.hosts.iter().flat_map(|hosts| hosts.variables(CLICKHOUSE)));
        let child = ClickHouseChild::start(settings, command).await?;
        *locked(&self.servers.clickhouse) = Some(child);
        Ok(())
    }

    /// kill -9 of ClickHouse.
    pub async fn kill_clickhouse(&self) {
        let child = locked(&self.servers.clickhouse).take();
        child.expect("ClickHouse runs").kill().await;
    }

    /// Everything that ClickHouse holds is gone, as after the loss of its disk. It must not run.
    pub fn drop_clickhouse_data(&self) {
        std::fs::remove_dir_all(self.clickhouse_at_rest()).expect("its folder");
    }

    /// Keeps a copy of everything that ClickHouse holds. It must not run.
    pub fn back_up_clickhouse(&self) {
        copy(self.clickhouse_at_rest(), &self.dir().join("backup"));
    }

    /// Puts the copy in the place of what ClickHouse holds. It must not run.
    pub fn restore_clickhouse(&self) {
        self.drop_clickhouse_data();
        copy(&self.dir().join("backup"), self.clickhouse_at_rest());
    }

    fn clickhouse_at_rest(&self) -> &Path {
        assert!(locked(&self.servers.clickhouse).is_none(), "ClickHouse runs");
        &self.servers.clickhouse_settings.data_dir
    }

    /// The pid of the broker.
    pub fn kafka_pid(&self) -> u32 {
        locked(&self.servers.kafka).as_ref().expect("Kafka runs").pid()
    }

    /// Whether the broker has not ended by itself.
    pub fn kafka_runs(&self) -> bool {
        locked(&self.servers.kafka).as_ref().is_some_and(KafkaChild::is_running)
    }

    /// The pid of ClickHouse.
    pub fn clickhouse_pid(&self) -> u32 {
        locked(&self.servers.clickhouse).as_ref().expect("ClickHouse runs").pid()
    }
}

/// Puts a folder, as it is, in the place of another.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("the folder of the last one");
    }
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp starts");
    assert!(copied.success(), "{} was not copied", from.display());
}

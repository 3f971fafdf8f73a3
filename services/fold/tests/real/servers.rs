//! Real servers of one test: Kafka, ClickHouse, and folds as processes of their own (this test binary, run again).

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use embedded::clickhouse::{self, ClickHouseChild, library_in};
use embedded::kafka::{KafkaChild, KafkaSettings as Broker};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use runtime::Shutdown;
use stream::kafka::KafkaSettings;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DATA: &str = "TOLLGATE_TEST_DATA";
const PORT: &str = "TOLLGATE_TEST_PORT";
const BROKERS: &str = "TOLLGATE_TEST_BROKERS";
const CLICKHOUSE: &str = "TOLLGATE_TEST_CLICKHOUSE";
const DATABASE: &str = "TOLLGATE_TEST_DATABASE";
const CHUNK_MS: &str = "TOLLGATE_TEST_CHUNK_MS";

/// Only a bound: on a busy machine a run of the reconciler takes ten seconds, and its pause nine times as long.
pub(crate) const SOON: Duration = Duration::from_secs(300);

fn tools() -> PathBuf {
    let tools = std::env::var_os("TOLLGATE_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from);
    for part in [tools.join("kafka/lib"), library_in(&tools)] {
        assert!(part.exists(), "{} is missing: run make setup", part.display());
    }
    tools
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a process of this test reaches, by its variables.
pub(crate) struct Reached {
    pub(crate) kafka: KafkaSettings,
    pub(crate) clickhouse: sql::ClickHouseSettings,
}

impl Reached {
    pub(crate) fn by_variables() -> Self {
        let database = variable(DATABASE);
        let clickhouse = sql::ClickHouseSettings { database, ..clickhouse_settings(variable(CLICKHOUSE)) };
        Self { kafka: kafka_settings(variable(BROKERS)), clickhouse }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", test, "--nocapture"]);
    command
}

/// Not a test: what the ClickHouse process runs.
#[test]
#[ignore = "the ClickHouse process of the other tests"]
fn clickhouse_process() {
    let port = variable(PORT).parse().unwrap();
    let settings = clickhouse::ClickHouseSettings::new(variable(DATA), library_in(&tools()), port);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let served = runtime.block_on(async { clickhouse::serve(settings, Shutdown::from_signals().unwrap()).await });
    eprintln!("{}", served.unwrap_err());
    std::process::abort();
}

/// Not a test: what a fold process runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the fold process of the other tests"]
async fn fold_process() {
    let log = runtime::telemetry::Settings { filter: "info,fold=debug".into(), ..Default::default() };
    runtime::telemetry::init(&log).unwrap();
    let Reached { kafka, clickhouse } = Reached::by_variables();
    let settings = fold::RunSettings {
        fold: fold::Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], variable(PORT).parse().unwrap())),
            chunk_ms: variable(CHUNK_MS).parse().unwrap(),
            stall_seconds: 3,
            // Two of them are two owners of all.
            partitions: fold::Partitions::All,
            reconcile_seconds: 1,
            ..Default::default()
        },
        kafka,
        clickhouse,
    };
    fold::run(settings, Shutdown::from_signals().unwrap()).await.unwrap();
}

fn kafka_settings(brokers: String) -> KafkaSettings {
    KafkaSettings { brokers, single_node: true, partitions: 2, ..KafkaSettings::default() }
}

fn clickhouse_settings(url: String) -> sql::ClickHouseSettings {
    sql::ClickHouseSettings { url, ..Default::default() }
}

pub(crate) struct Servers {
    broker: KafkaChild,
    server: clickhouse::ClickHouseSettings,
    clickhouse: Option<ClickHouseChild>,
    // Last: it goes after the processes that write into it.
    folder: TempDir,
}

impl Servers {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let broker = KafkaChild::start(&Broker::new(folder.path().join("kafka"), tools(), free_port())).await.unwrap();
        let server =
            clickhouse::ClickHouseSettings::new(folder.path().join("clickhouse"), library_in(&tools()), free_port());
        let mut servers = Self { broker, server, clickhouse: None, folder };
        servers.start_clickhouse().await;
        servers
    }

    pub(crate) async fn start_clickhouse(&mut self) {
        let mut command = again("servers::clickhouse_process");
        command.env(DATA, &self.server.data_dir).env(PORT, self.server.listen.port().to_string());
        self.clickhouse = Some(ClickHouseChild::start(&self.server, command).await.unwrap());
    }

    /// kill -9.
    pub(crate) async fn kill_clickhouse(&mut self) {
        self.clickhouse.take().unwrap().kill().await;
    }

    pub(crate) fn kafka(&self) -> KafkaSettings {
        kafka_settings(self.broker.brokers())
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.listen)
    }

    pub(crate) fn clickhouse(&self) -> sql::ClickHouse {
        sql::ClickHouse::new(&self.clickhouse_settings())
    }

    pub(crate) fn clickhouse_settings(&self) -> sql::ClickHouseSettings {
        clickhouse_settings(self.url())
    }

    /// A place for files of the test, which go when it ends.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Deletes what Kafka has of a partition before an offset, as its retention would.
    pub(crate) async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let admin: AdminClient<DefaultClientContext> = self.kafka().client("test").create().unwrap();
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
        let deleted = admin.delete_records(&offsets, &AdminOptions::new()).await.unwrap();
        deleted.elements()[0].error().unwrap();
    }

    /// The one number that a statement gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        ::clickhouse::Client::default().with_url(self.url()).query(sql).fetch_one().await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        ::clickhouse::Client::default().with_url(self.url()).query(sql).execute().await.unwrap();
    }

    /// A fold that waits so long for a chunk to fill.
    pub(crate) fn fold(&self, chunk_ms: u64) -> Fold {
        self.fold_into("tollgate", chunk_ms)
    }

    /// Where ClickHouse listens.
    pub(crate) const fn clickhouse_address(&self) -> SocketAddr {
        self.server.listen
    }

    /// This test binary once more, for what it runs under this name, which reaches ClickHouse at an address.
    pub(crate) fn again_at(&self, test: &str, clickhouse: SocketAddr) -> Command {
        let mut command = again(test);
        command
            .env(BROKERS, self.broker.brokers())
            .env(CLICKHOUSE, format!("http://{clickhouse}"))
            .env(DATABASE, "tollgate");
        command
    }

    /// One that writes another database.
    pub(crate) fn fold_into(&self, database: &str, chunk_ms: u64) -> Fold {
        let port = free_port();
        let log = std::fs::File::create(self.folder.path().join(format!("fold-{port}.log"))).unwrap();
        let child = again("servers::fold_process")
            .env(PORT, port.to_string())
            .env(BROKERS, self.broker.brokers())
            .env(CLICKHOUSE, self.url())
            .env(DATABASE, database)
            .env(CHUNK_MS, chunk_ms.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Fold { child, port, log: self.folder.path().join(format!("fold-{port}.log")) }
    }
}

/// A fold process. Killed when dropped.
pub(crate) struct Fold {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Fold {
    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn get(&self, path: &str) -> String {
        let Ok(mut socket) = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await else {
            return "not listening yet".to_owned();
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        if socket.write_all(request.as_bytes()).await.is_err() || socket.read_to_string(&mut answer).await.is_err() {
            return "not answering".to_owned();
        }
        answer
    }

    /// Waits until an answer holds this text, and gives the answer.
    pub(crate) async fn says(&self, path: &str, wanted: &str) -> String {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let answer = self.get(path).await;
            if answer.contains(wanted) {
                return answer;
            }
            if tokio::time::Instant::now() > deadline {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(40).collect();
                panic!(
                    "{path} does not say {wanted:?}: {answer}\n{}",
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Fold {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

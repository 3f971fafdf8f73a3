//! A whole Tollgate on free ports: Apache Kafka, the ClickHouse engine, simulated vLLM, and each role as a process of its own
//! that can be killed, stopped and started again.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use embedded::kafka::KafkaSettings;
use embedded::vllm::{Simulator, SimulatorSettings};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::client::Client;
use crate::host::{Host, Hosts};
pub use crate::role::Role;
use crate::servers::{Servers, locked};
use crate::wait::until;

/// The admin key of a system under test.
pub const ADMIN: &str = "tg_admin_of_the_tests";

/// How long a part may take until it is ready. A cold, busy machine needs a while.
const START: Duration = Duration::from_secs(180);
/// How long a part may take to stop cleanly.
const STOP: Duration = Duration::from_secs(60);

/// A port that was free a moment ago, and that no outgoing connection takes while its owner is dead: below the range that
/// the kernel hands out.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Other processes of tests begin elsewhere.
    let process = u16::try_from(std::process::id() % 181).expect("small") * 100;
    let ports = std::iter::repeat_with(|| 10_000 + (process + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000);
    let mut free = ports.take(20_000).filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.next().expect("a free port")
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// The binary that users start: `make test` and `make bench` build it before they start what needs it.
pub fn binary() -> PathBuf {
    // target/PROFILE/deps/this-test → target/PROFILE/tollgate
    let this = std::env::current_exe().expect("this test's own path");
    let profile = this.ancestors().nth(2).expect("the profile's folder");
    let binary = profile.join("tollgate");
    assert!(binary.exists(), "{} is not built: run cargo build --package tollgate", binary.display());
    binary
}

/// A running system. Dropping it kills every process of it; what it held stays where a test failed.
#[derive(Debug)]
pub struct System {
    ports: BTreeMap<Role, u16>,
    /// Settings as variables, for every role.
    variables: BTreeMap<String, String>,
    roles: Mutex<BTreeMap<Role, Child>>,
    pub(crate) servers: Servers,
    /// The simulated vLLM of each model, with what each knows of its requests.
    pub simulators: BTreeMap<&'static str, Simulator>,
    /// By which way gateways reach one, where not directly.
    ways: BTreeMap<&'static str, String>,
    /// For the API and the gateway.
    pub client: Client,
    /// The last one to go, when nobody writes there any more.
    dir: TempDir,
}

/// The models of a system under test.
pub const MODELS: [&str; 2] = ["llama-3.1-8b", "mistral-7b"];

impl System {
    /// Kafka, ClickHouse and the simulators run; no role yet.
    pub async fn parts(pace_us: u64) -> Self {
        Self::parts_in(folder(), None, pace_us, |_| {}).await
    }

    /// The same, each process on a host of its own, and with other settings of the broker.
    pub async fn parts_on_hosts(pace_us: u64, adjust: impl FnOnce(&mut KafkaSettings)) -> Self {
        let dir = folder();
        let hosts = Hosts::new(dir.path().join("hosts"));
        Self::parts_in(dir, Some(hosts), pace_us, adjust).await
    }

    async fn parts_in(
        dir: TempDir,
        hosts: Option<Hosts>,
        pace_us: u64,
        adjust: impl FnOnce(&mut KafkaSettings),
    ) -> Self {
        let servers = Servers::new(dir.path(), hosts, adjust);
        let mut simulators = BTreeMap::new();
        for model in MODELS {
            let settings = SimulatorSettings {
                listen: ([127, 0, 0, 1], 0).into(),
                models: vec![model.to_owned()],
                time_per_output_token_us: pace_us,
                ..SimulatorSettings::default()
            };
            simulators.insert(model, Simulator::start(settings).await.expect("a simulator"));
        }
        let sharing = (2..=4).map(Role::SharingFold);
        let roles = Role::ALL.into_iter().chain([Role::SecondFold, Role::SecondGateway, Role::Canary]).chain(sharing);
        let ports: BTreeMap<Role, u16> = roles.map(|role| (role, free_port())).collect();
        let mut system = Self {
            ports,
            variables: BTreeMap::new(),
            roles: Mutex::default(),
            servers,
            simulators,
            ways: BTreeMap::new(),
            client: Client::default(),
            dir,
        };
        tokio::join!(system.start_kafka(), system.start_clickhouse());
        system.variables = system.default_variables();
        system
    }

    /// Everything runs and is ready, without any tenant.
    pub async fn start(pace_us: u64) -> Self {
        let system = Self::parts(pace_us).await;
        system.start_all(&Role::ALL).await;
        system
    }

    /// Makes topics and tables, starts these roles and waits until they are ready.
    pub async fn start_all(&self, roles: &[Role]) {
        self.migrate();
        for role in roles {
            self.spawn(*role);
        }
        for role in roles {
            self.ready(*role).await;
        }
    }

    fn default_variables(&self) -> BTreeMap<String, String> {
        let hash = Sha256::digest(ADMIN.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let listen = |role| format!("127.0.0.1:{}", self.ports[&role]);
        let settings: [(&str, String); 11] = [
            ("KAFKA__BROKERS", self.brokers()),
            ("KAFKA__SINGLE_NODE", "true".into()),
            ("KAFKA__PARTITIONS", "4".into()),
            ("CLICKHOUSE__URL", self.clickhouse_url()),
            ("CLICKHOUSE__DATABASE", "tollgate".into()),
            ("GATEWAY__LISTEN", listen(Role::Gateway)),
            ("FOLD__LISTEN", listen(Role::Fold)),
            ("BILLING__LISTEN", listen(Role::Billing)),
            ("BILLING__ADMIN_KEY_SHA256", hash),
            ("BILLING__DIR", self.dir.path().join("billing").display().to_string()),
            ("SPOOL__DIR", self.dir.path().join("spool").display().to_string()),
        ];
        settings.into_iter().map(|(name, value)| (format!("TOLLGATE__{name}"), value)).collect()
    }

    /// Makes topics and tables.
    pub fn migrate(&self) {
        let (done, said) = self.run(&["migrate"]);
        assert!(done, "tollgate migrate: {said}");
    }

    /// Runs the binary to its end, with the settings of every role. Gives whether all was well, and what it wrote.
    pub fn run(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(self.dir.path()).env_clear().envs(&self.variables).stdin(Stdio::null());
        let done = command.output().expect("the tollgate binary starts");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.success(), said(&done.stdout) + &said(&done.stderr))
    }

    /// Runs a command of Tollgate to its end, with the roles' settings: its exit code and what it wrote, errors last.
    pub async fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = tokio::process::Command::new(binary());
        command.args(arguments).current_dir(self.dir.path()).env_clear().envs(&self.variables).stdin(Stdio::null());
        let done = command.output().await.expect("the tollgate binary starts");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), said(&done.stdout) + &said(&done.stderr))
    }

    /// Changes a setting (`SECTION__KEY`) of roles that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(format!("TOLLGATE__{name}"), value.to_owned());
    }

    /// Where a role is, with a path.
    pub fn url(&self, role: Role, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[&role])
    }

    /// Where gateways reach the replica of a model.
    pub fn replica_url(&self, model: &str) -> String {
        self.ways.get(model).cloned().unwrap_or_else(|| self.simulators[model].url())
    }

    /// Lets gateways reach it there, if it is not registered yet.
    pub fn lead(&mut self, model: &'static str, url: String) {
        self.ways.insert(model, url);
    }

    /// What a host does from now on: of a system on hosts of its own.
    pub fn turn_host(&self, name: &str, host: Host) {
        self.servers.hosts.as_ref().expect("hosts of its own").turn(name, host);
    }

    /// The system's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a role and does not wait for it.
    pub fn spawn(&self, role: Role) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(role)).expect("a log");
        let mut command = Command::new(binary());
        command.arg(role.subcommand()).current_dir(self.dir.path()).env_clear().envs(&self.variables);
        let own = self.own_settings(role).into_iter().map(|(name, value)| (format!("TOLLGATE__{name}"), value));
        command.envs(own).envs(self.servers.hosts.iter().flat_map(|hosts| hosts.variables(role.name())));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        // It dies with the test's thread, however that ends.
        embedded::die_with_parent(&mut command);
        locked(&self.roles).insert(role, command.spawn().expect("the tollgate binary starts"));
    }

    /// What a second process of a role has for itself.
    fn own_settings(&self, role: Role) -> Vec<(&'static str, String)> {
        let listen = format!("127.0.0.1:{}", self.ports[&role]);
        match role {
            // Other cuts than the first one's.
            Role::SecondFold => {
                vec![("FOLD__LISTEN", listen), ("FOLD__CHUNK_MS", "170".into()), ("FOLD__PARTITIONS", "all".into())]
            }
            Role::SharingFold(_) => vec![("FOLD__LISTEN", listen)],
            Role::SecondGateway => vec![
                ("GATEWAY__LISTEN", listen),
                ("GATEWAY__NAME", role.name().into()),
                ("SPOOL__DIR", self.dir.path().join("second-spool").display().to_string()),
            ],
            Role::Canary => vec![("CANARY__LISTEN", listen)],
            Role::Gateway | Role::Fold | Role::Billing => Vec::new(),
        }
    }

    /// Returns when a role says that it is ready.
    pub async fn ready(&self, role: Role) {
        let url = self.url(role, "/readyz");
        until(&format!("{} to be ready", role.name()), START, async || {
            let ended = self.ended(role);
            assert!(ended.is_none(), "{} ended: {ended:?}\n{}", role.name(), self.log_tail(role));
            match self.client.get(&url, None).await {
                Ok(answer) if answer.status.is_success() => Ok(()),
                Ok(answer) => Err(String::from_utf8_lossy(&answer.body).into_owned()),
                Err(error) => Err(format!("{error:?}")),
            }
        })
        .await;
    }

    /// Starts a role and waits until it is ready.
    pub async fn start_role(&self, role: Role) {
        self.spawn(role);
        self.ready(role).await;
    }

    /// kill -9.
    pub fn kill(&self, role: Role) {
        let mut child = self.taken(role);
        child.kill().expect("a signal");
        child.wait().expect("its end");
    }

    /// SIGTERM, and waits for a clean end.
    pub async fn stop(&self, role: Role) {
        self.signal(role, libc::SIGTERM);
        let status = self.end(role).await;
        assert!(status.success(), "{} ended with {status}\n{}", role.name(), self.log_tail(role));
    }

    /// SIGTERM, and again while it drains: it ends at once. Gives the exit code.
    pub async fn stop_at_once(&self, role: Role) -> Option<i32> {
        self.signal(role, libc::SIGTERM);
        let (client, url) = (self.client.clone(), self.url(role, "/readyz"));
        until(&format!("{} to drain", role.name()), STOP, async || match client.get(&url, None).await {
            Ok(answer) if answer.status.is_success() => Err(()),
            _ => Ok(()),
        })
        .await;
        self.signal(role, libc::SIGTERM);
        self.end(role).await.code()
    }

    /// Returns when a role has ended by itself, with how.
    async fn end(&self, role: Role) -> ExitStatus {
        let status = until(&format!("{} to stop", role.name()), STOP, async || self.ended(role).ok_or(())).await;
        drop(self.taken(role));
        status
    }

    fn taken(&self, role: Role) -> Child {
        locked(&self.roles).remove(&role).expect("a role that runs")
    }

    /// How a role ended, if it did.
    fn ended(&self, role: Role) -> Option<ExitStatus> {
        locked(&self.roles).get_mut(&role).expect("a role that was started").try_wait().expect("a child")
    }

    /// SIGSTOP: it does nothing any more, and does not know.
    pub fn pause(&self, role: Role) {
        self.signal(role, libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self, role: Role) {
        self.signal(role, libc::SIGCONT);
    }

    fn signal(&self, role: Role, signal: libc::c_int) {
        crate::process::signal(self.pid(role), signal);
    }

    /// Where a role writes.
    pub fn log(&self, role: Role) -> PathBuf {
        self.dir.path().join(format!("{}.log", role.name()))
    }

    /// The end of a role's log.
    pub fn log_tail(&self, role: Role) -> String {
        tail(&self.log(role))
    }

    /// The pid of a role.
    pub fn pid(&self, role: Role) -> u32 {
        locked(&self.roles)[&role].id()
    }

    /// Whether a role has not ended.
    pub fn runs(&self, role: Role) -> bool {
        locked(&self.roles).get_mut(&role).is_some_and(|child| child.try_wait().expect("a child").is_none())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.dir.disable_cleanup(true);
            eprintln!("what the system held stays in {}", self.dir.path().display());
        }
        for (role, child) in locked(&self.roles).iter_mut() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            if failed {
                eprintln!("---- the end of {}'s log\n{}", role.name(), self.log_tail(*role));
            }
        }
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("tollgate-").tempdir().expect("a folder")
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

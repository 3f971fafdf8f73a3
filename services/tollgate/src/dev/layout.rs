//! Where everything of `dev` is: folders, addresses, and how each child is started.

use std::ffi::OsString;
use std::path::PathBuf;

use embedded::kafka::KafkaSettings;

use super::child::Spec;
use super::ports::{Part, Ports};
use super::settings::DevSettings;

/// The models that the simulated replicas serve.
pub(crate) const LLAMA: &str = "llama-3.1-8b";
pub(crate) const MISTRAL: &str = "mistral-7b";

/// Folders and ports.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Everything that is kept between starts; absolute.
    pub(crate) data: PathBuf,
    /// Kafka's jars and the ClickHouse engine; absolute.
    pub(crate) tools: PathBuf,
    /// None of them 0.
    pub(crate) ports: Ports,
    settings: DevSettings,
    /// This very program.
    program: PathBuf,
    started_in: PathBuf,
}

impl Layout {
    /// # Errors
    /// When this program or the working folder cannot be found, or no port is free.
    pub(crate) fn new(settings: DevSettings) -> std::io::Result<Self> {
        Ok(Self {
            data: std::path::absolute(&settings.data_dir)?,
            tools: std::path::absolute(&settings.tools_dir)?,
            ports: settings.ports().chosen()?,
            settings,
            program: std::env::current_exe()?,
            started_in: std::env::current_dir()?,
        })
    }

    /// The settings that the roles get, and doctor.
    pub(crate) fn config(&self) -> PathBuf {
        self.data.join("config.toml")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(format!("{name}.log"))
    }

    /// Apache Kafka, one node.
    pub(crate) fn kafka(&self) -> KafkaSettings {
        KafkaSettings::new(self.data.join("kafka"), &self.tools, self.ports.of(Part::Kafka))
    }

    /// The engine that deploy/local/clickhouse.sh fetched.
    pub(crate) fn clickhouse_library(&self) -> PathBuf {
        embedded::clickhouse::library_in(&self.tools)
    }

    /// This program as ClickHouse.
    pub(crate) fn clickhouse(&self) -> Spec {
        let arguments = vec![
            "embedded-clickhouse".into(),
            "--library".into(),
            self.clickhouse_library().into(),
            "--data-dir".into(),
            self.data.join("clickhouse").into(),
            "--listen".into(),
            self.ports.address(Part::ClickHouse).into(),
        ];
        self.child("clickhouse", arguments)
    }

    /// This program as the schema registry.
    pub(crate) fn registry(&self) -> Spec {
        let listen = self.ports.address(Part::Registry);
        self.child("registry", ["embedded-registry", "--listen", &listen].map(OsString::from).to_vec())
    }

    /// This program as a simulated vLLM.
    pub(crate) fn vllm(&self, name: &'static str, model: &str, part: Part) -> Spec {
        let listen = self.ports.address(part);
        let first = runtime::config::duration::format(self.settings.simulator_time_to_first_token);
        let each = runtime::config::duration::format(self.settings.simulator_time_per_output_token);
        let tokens = self.settings.simulator_output_tokens.to_string();
        let served = ["embedded-vllm", "--listen", &listen, "--model", model];
        let pace = ["--time-to-first-token", &first, "--time-per-output-token", &each, "--output-tokens", &tokens];
        self.child(name, served.into_iter().chain(pace).map(OsString::from).collect())
    }

    /// This program as a role, with the settings that were put together for it. Relative paths in the user's own file
    /// begin where dev was started.
    pub(crate) fn role(&self, name: &'static str) -> Spec {
        let role = self.child(name, vec![name.into(), "--config".into(), self.config().into()]);
        Spec { folder: self.started_in.clone(), ..role }
    }

    fn child(&self, name: &'static str, arguments: Vec<OsString>) -> Spec {
        Spec { name, program: self.program.clone(), arguments, folder: self.data.clone(), log: self.log(name) }
    }
}

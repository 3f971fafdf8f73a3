//! Apache Kafka itself, one KRaft node, as a child process.

mod error;
mod prepare;
mod probe;
mod settings;

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use error::KafkaError;
pub use prepare::{Launch, prepare};
pub use probe::{ProbeError, probe};
pub use settings::KafkaSettings;

use crate::process::{self, Lifetime, Process};

/// How often a starting broker is asked.
const POLL: Duration = Duration::from_millis(50);

/// A Kafka that answers. Dropping it kills the process, unless it may outlive us; the data stays, and another
/// [`KafkaChild::start`] with the same settings goes on from it.
#[derive(Debug)]
pub struct KafkaChild {
    process: Process,
    listen: SocketAddr,
}

impl KafkaChild {
    /// Prepares the data folder, starts the broker and waits until it serves.
    ///
    /// # Errors
    /// What is missing, taken or broken, with the end of Kafka's own log where that helps.
    pub async fn start(settings: &KafkaSettings) -> Result<Self, KafkaError> {
        let launch = prepare(settings).await?;
        let child = Self { process: spawn(settings, &launch)?, listen: settings.listen };
        let began = Instant::now();
        loop {
            let last = match probe(settings.listen).await {
                Ok(()) => return Ok(child),
                Err(last) => last,
            };
            if let Some(status) = child.process.exit_status() {
                let how = process::describe(status);
                return Err(KafkaError::Died { how, log: launch.log.clone(), tail: last_words(&launch) });
            }
            if began.elapsed() >= settings.start_timeout {
                child.process.kill().await;
                let tail = last_words(&launch);
                let seconds = settings.start_timeout.as_secs();
                return Err(KafkaError::NotReady { listen: settings.listen, seconds, last, log: launch.log, tail });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Where clients connect, as `bootstrap.servers` wants it.
    pub fn brokers(&self) -> String {
        self.listen.to_string()
    }

    /// The process id, for whoever wants to measure or hurt it.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// True until it has ended.
    pub fn is_running(&self) -> bool {
        self.process.exit_status().is_none()
    }

    /// Waits until it ends, for whatever reason.
    pub async fn wait(&self) -> Option<ExitStatus> {
        self.process.wait().await
    }

    /// Stops it cleanly; after `grace` it is killed, which loses nothing that was acknowledged. True if it was clean.
    pub async fn stop(self, grace: Duration) -> bool {
        let clean = self.process.stop(grace).await;
        if !clean {
            tracing::warn!(?grace, "Kafka did not stop in time and was killed");
        }
        clean
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub async fn kill(self) {
        self.process.kill().await;
    }
}

/// What Java itself writes, besides Kafka's log.
const OUTPUT: &str = "java.log";

fn spawn(settings: &KafkaSettings, launch: &Launch) -> Result<Process, KafkaError> {
    let path = launch.folder.join(OUTPUT);
    let output = File::create(&path).map_err(KafkaError::file(&path))?;
    let errors = output.try_clone().map_err(KafkaError::file(&path))?;
    let mut command = launch.command();
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let lifetime = if settings.outlives_parent { Lifetime::Detached } else { Lifetime::Bound };
    Process::spawn(command, lifetime).map_err(|source| KafkaError::NoJava { java: launch.program.clone(), source })
}

fn last_words(launch: &Launch) -> String {
    let end = |path: &Path| std::fs::read(path).map(|text| process::tail(&text, 12)).unwrap_or_default();
    end(&launch.log) + &end(&launch.folder.join(OUTPUT))
}

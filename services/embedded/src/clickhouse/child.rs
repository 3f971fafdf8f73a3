//! The embedded ClickHouse as a child process: started, waited for, stopped, killed.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::probe::probe;
use super::{ClickHouseError, ClickHouseSettings};
use crate::process::{self, Lifetime, Process};

/// How often a starting one is asked.
const POLL: Duration = Duration::from_millis(20);
/// What the child writes, in its data folder.
const LOG: &str = "server.log";
const LAST_LINES: usize = 12;

/// A ClickHouse that answers. Dropping it kills the process, and so does the end of this one; the data stays, and another
/// [`ClickHouseChild::start`] with the same settings goes on from it.
#[derive(Debug)]
pub struct ClickHouseChild {
    process: Process,
    listen: SocketAddr,
}

impl ClickHouseChild {
    /// Starts `command`, which must run [`super::serve`] with these settings (see [`ClickHouseSettings::command`]), and
    /// waits until it answers. What it writes is appended to `server.log` in the data folder.
    ///
    /// # Errors
    /// What is missing, taken or broken, with the end of its log where that helps.
    pub async fn start(settings: &ClickHouseSettings, command: Command) -> Result<Self, ClickHouseError> {
        if !settings.library.exists() {
            return Err(ClickHouseError::LibraryMissing(settings.library.clone()));
        }
        until_free(settings.listen).await?;
        let log = Log::open(&settings.data_dir)?;
        let child = Self { process: spawn(command, &log)?, listen: settings.listen };
        let began = Instant::now();
        loop {
            let answer = probe(settings.listen).await;
            // In this order: another process may have been faster on the same port, and answers in its place.
            if let Some(status) = child.process.exit_status() {
                return Err(ClickHouseError::Died { how: process::describe(status), tail: log.tail(), log: log.path });
            }
            let Err(last) = answer else { return Ok(child) };
            if began.elapsed() >= settings.start_timeout {
                child.process.kill().await;
                let seconds = settings.start_timeout.as_secs();
                let (listen, tail) = (settings.listen, log.tail());
                return Err(ClickHouseError::NotReady { listen, seconds, last, tail, log: log.path });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `http://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
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

    /// Stops it cleanly; after `grace` it is killed, which loses nothing that was acknowledged. True if it was clean. It
    /// needs at most `settings.drain` and 2 s.
    pub async fn stop(self, grace: Duration) -> bool {
        let clean = self.process.stop(grace).await;
        if !clean {
            tracing::warn!(?grace, "ClickHouse did not stop in time and was killed");
        }
        clean
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub async fn kill(self) {
        self.process.kill().await;
    }
}

impl ClickHouseSettings {
    /// `PROGRAM embedded-clickhouse --library FILE --data-dir DIR --listen ADDRESS:PORT`: how the `tollgate` binary serves
    /// these settings. The others of them are that subcommand's own choice.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.arg("embedded-clickhouse").arg("--library").arg(&self.library);
        command.arg("--data-dir").arg(&self.data_dir).arg("--listen").arg(self.listen.to_string());
        command
    }
}

async fn until_free(listen: SocketAddr) -> Result<(), ClickHouseError> {
    let waited = tokio::task::spawn_blocking(move || crate::port::until_free(listen));
    waited.await.map_err(|error| ClickHouseError::Thread(error.to_string()))?.map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => ClickHouseError::PortTaken(listen),
        _ => runtime::http::HttpError::Bind { address: listen, source }.into(),
    })
}

/// Where a child writes, and where in it this start begins.
struct Log {
    path: PathBuf,
    file: File,
    begin: u64,
}

impl Log {
    fn open(data_dir: &Path) -> Result<Self, ClickHouseError> {
        let error = |source| ClickHouseError::DataDir { path: data_dir.to_owned(), source };
        std::fs::create_dir_all(data_dir).map_err(error)?;
        let path = data_dir.join(LOG);
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(error)?;
        let begin = file.metadata().map_err(error)?.len();
        Ok(Self { path, file, begin })
    }

    /// The last lines of this start.
    fn tail(&self) -> String {
        let mut text = Vec::new();
        let mut file = &self.file;
        // What cannot be read is left out: it only explains another error.
        let _ = file.seek(SeekFrom::Start(self.begin)).and_then(|_| file.read_to_end(&mut text));
        process::tail(&text, LAST_LINES)
    }
}

fn spawn(mut command: Command, log: &Log) -> Result<Process, ClickHouseError> {
    let program = PathBuf::from(command.get_program());
    let output = log.file.try_clone().and_then(|output| output.try_clone().map(|errors| (output, errors)));
    let (output, errors) = output.map_err(|source| ClickHouseError::DataDir { path: log.path.clone(), source })?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    Process::spawn(command, Lifetime::Bound).map_err(|source| ClickHouseError::Program { program, source })
}

//! What can go wrong with the embedded Kafka, and what to do about it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::probe::ProbeError;

/// Why Kafka could not be started.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// The jars are not there.
    #[error("Kafka's jars are not in {0}: run make setup (deploy/local/kafka.sh; it needs a JDK and Maven)")]
    JarsMissing(PathBuf),
    /// Java cannot be run.
    #[error("cannot run {java}: {source}; install Java 17 or newer (e.g. default-jre-headless) or set JAVA_HOME")]
    NoJava {
        /// The program that was tried.
        java: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Java is too old, or is no Java.
    #[error("Kafka needs Java 17 or newer, but {java} says: {said}")]
    OldJava {
        /// The program that was asked.
        java: PathBuf,
        /// What it answered to -version.
        said: String,
    },
    /// Settings that Kafka cannot work with.
    #[error("the embedded Kafka cannot start: {0}")]
    Settings(String),
    /// Another process listens there.
    #[error(
        "port {} is taken on {}: stop what listens there (another Kafka, or another `tollgate dev`), or choose another port",
        .0.port(), .0.ip()
    )]
    PortTaken(SocketAddr),
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The empty store could not be made.
    #[error("Kafka could not prepare its store in {folder}:\n{output}")]
    Format {
        /// The data folder.
        folder: PathBuf,
        /// The last lines that it wrote.
        output: String,
    },
    /// It ended while it was being waited for.
    #[error("Kafka {how} before it was ready; the end of {log}:\n{tail}")]
    Died {
        /// Its exit code or signal, in words.
        how: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// It runs, but does not answer.
    #[error("Kafka on {listen} is not ready after {seconds} s ({last}); the end of {log}:\n{tail}")]
    NotReady {
        /// Where it should answer.
        listen: SocketAddr,
        /// How long it was waited for.
        seconds: u64,
        /// What the last try met.
        last: ProbeError,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
}

impl KafkaError {
    /// Wraps an I/O error with the path it is about.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

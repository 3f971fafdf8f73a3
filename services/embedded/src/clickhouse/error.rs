//! Errors: why the server cannot run, and ClickHouse's own exceptions as its HTTP interface reports them.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::probe::ProbeError;

/// Why the embedded ClickHouse cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ClickHouseError {
    /// The engine's library is not there.
    #[error("the ClickHouse engine is not at {0}: run make setup (deploy/local/clickhouse.sh; it needs npm)")]
    LibraryMissing(PathBuf),
    /// The library is there but cannot be used.
    #[error("the ClickHouse engine {path} cannot be loaded: {source}; run deploy/local/clickhouse.sh again")]
    Library {
        /// Which file.
        path: PathBuf,
        /// What the loader said.
        source: libloading::Error,
    },
    /// The data folder cannot be made.
    #[error("the data folder {path} cannot be used: {source}")]
    DataDir {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine refuses the data folder.
    #[error(
        "the ClickHouse engine does not open {path}: {reason}. If another process has it open, stop that one; \
         if the disk is full or the folder is not writable, make room"
    )]
    Open {
        /// The data folder.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// The address cannot be listened on, or the server broke.
    #[error(transparent)]
    Http(#[from] runtime::http::HttpError),
    /// Another process listens there.
    #[error(
        "port {} is taken on {}: stop what listens there (another ClickHouse, or another `tollgate dev`), or choose another port",
        .0.port(), .0.ip()
    )]
    PortTaken(SocketAddr),
    /// The program that is to serve cannot be run.
    #[error("cannot run {program}: {source}")]
    Program {
        /// Which one.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended while it was being waited for.
    #[error("ClickHouse {how} before it was ready; the end of {log}:\n{tail}")]
    Died {
        /// Its exit code or signal, in words.
        how: String,
        /// Where it writes its log.
        log: PathBuf,
        /// The last lines of this start.
        tail: String,
    },
    /// It runs, but does not answer.
    #[error("ClickHouse on {listen} is not ready after {seconds} s ({last}); the end of {log}:\n{tail}")]
    NotReady {
        /// Where it should answer.
        listen: SocketAddr,
        /// How long it was waited for.
        seconds: u64,
        /// What the last try met.
        last: ProbeError,
        /// Where it writes its log.
        log: PathBuf,
        /// The last lines of this start.
        tail: String,
    },
    /// A thread could not be had.
    #[error("the host gives no thread to the ClickHouse engine: {0}")]
    Thread(String),
}

/// One of ClickHouse's exceptions: its number and its whole text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Exception {
    pub(super) code: u32,
    pub(super) text: String,
}

pub(super) const CANNOT_READ_ALL_DATA: (u32, &str) = (33, "CANNOT_READ_ALL_DATA");
pub(super) const BAD_ARGUMENTS: (u32, &str) = (36, "BAD_ARGUMENTS");
pub(super) const CHECKSUM_DOESNT_MATCH: (u32, &str) = (40, "CHECKSUM_DOESNT_MATCH");
pub(super) const NOT_IMPLEMENTED: (u32, &str) = (48, "NOT_IMPLEMENTED");
pub(super) const UNKNOWN_COMPRESSION_METHOD: (u32, &str) = (89, "UNKNOWN_COMPRESSION_METHOD");
pub(super) const REQUEST_TOO_LARGE: (u32, &str) = (307, "TOO_MANY_BYTES");
pub(super) const SOCKET_TIMEOUT: (u32, &str) = (209, "SOCKET_TIMEOUT");
pub(super) const NETWORK_ERROR: (u32, &str) = (210, "NETWORK_ERROR");
pub(super) const TOO_MANY_QUERIES: (u32, &str) = (202, "TOO_MANY_SIMULTANEOUS_QUERIES");
pub(super) const CANNOT_DECOMPRESS: (u32, &str) = (271, "CANNOT_DECOMPRESS");
pub(super) const AUTHENTICATION_FAILED: (u32, &str) = (516, "AUTHENTICATION_FAILED");
/// ClickHouse's number for what is not one of its own exceptions.
const STD_EXCEPTION: (u32, &str) = (1001, "STD_EXCEPTION");

impl Exception {
    /// One of ours, worded as ClickHouse words them.
    pub(super) fn new((code, name): (u32, &str), what: impl std::fmt::Display) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {what}. ({name})") }
    }

    /// What the engine reports: "Code: 62. DB::Exception: Syntax error: … (SYNTAX_ERROR)".
    pub(super) fn from_engine(text: impl Into<String>) -> Self {
        let text = text.into();
        let digits = text.split_once("Code: ").map_or("", |(_, rest)| rest);
        let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
        match digits.parse() {
            Ok(code) => Self { code, text },
            Err(_) => Self::new(STD_EXCEPTION, text),
        }
    }

    /// The status that ClickHouse's HTTPHandler gives to this exception.
    pub(super) fn status(&self) -> StatusCode {
        match self.code {
            194 => StatusCode::UNAUTHORIZED,
            192 | 193 | 512 | 516 => StatusCode::FORBIDDEN,
            6 | 15 | 25 | 26 | 27 | 36 | 38 | 41 | 44 | 45 | 53 | 62 | 72 | 117 | 167 | 168 | 321 | 376 | 427 | 441
            | 442 | 467 => StatusCode::BAD_REQUEST,
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 83 | 115 | 183 => StatusCode::NOT_FOUND,
            159 => StatusCode::REQUEST_TIMEOUT,
            381 => StatusCode::LENGTH_REQUIRED,
            307 => StatusCode::PAYLOAD_TOO_LARGE,
            48 => StatusCode::NOT_IMPLEMENTED,
            202 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Exception {
    fn into_response(self) -> Response {
        let code = [("x-clickhouse-exception-code", HeaderValue::from(self.code))];
        (self.status(), code, self.text + "\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_from_the_engines_text() {
        let syntax = Exception::from_engine("Code: 62. DB::Exception: Syntax error. (SYNTAX_ERROR)");
        assert_eq!((syntax.code, syntax.status()), (62, StatusCode::BAD_REQUEST));
        let fence = Exception::from_engine("Code: 469. DB::Exception: Constraint `fence` … (VIOLATED_CONSTRAINT)");
        assert_eq!((fence.code, fence.status()), (469, StatusCode::INTERNAL_SERVER_ERROR));
        assert_eq!(Exception::from_engine("std::bad_alloc").code, 1001);
    }
}

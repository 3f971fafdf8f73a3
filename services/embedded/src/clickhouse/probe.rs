//! Asks a ClickHouse over HTTP whether it serves.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(25);
/// A one-line answer with its headers is far shorter.
const MOST: u64 = 1 << 16;

/// Why a ClickHouse does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens, or the connection broke.
    #[error("no connection: {0}")]
    Io(#[from] std::io::Error),
    /// It accepts but does not answer in time (it may be opening its data).
    #[error("it did not answer within 2 s")]
    Silent,
    /// It answers something else than 200; its first line.
    #[error("it answered {0:?}")]
    Refused(String),
}

/// Succeeds when `/ping` does, which the embedded one answers only once its data is open. Needs no password.
///
/// # Errors
/// Why it is not ready (yet).
pub async fn probe(address: SocketAddr) -> Result<(), ProbeError> {
    let answer = tokio::time::timeout(LIMIT, ask(address)).await.map_err(|_| ProbeError::Silent)??;
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with("\nOk.\n") {
        return Ok(());
    }
    Err(ProbeError::Refused(answer.lines().next().unwrap_or_default().to_owned()))
}

/// Waits until [`probe`] succeeds.
///
/// # Errors
/// What the last try met, when `limit` is over.
pub async fn until_ready(address: SocketAddr, limit: Duration) -> Result<(), ProbeError> {
    let began = tokio::time::Instant::now();
    loop {
        match probe(address).await {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() >= limit => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

async fn ask(address: SocketAddr) -> Result<String, ProbeError> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /ping HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(MOST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

//! Asks a broker, in Kafka's own protocol, whether it serves.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(2);
/// Api key and version of a Metadata request that every Kafka since 0.10 understands.
const METADATA: [u8; 4] = [0, 3, 0, 1];
const CORRELATION: [u8; 4] = *b"toll";
/// No metadata answer without topics is longer.
const MAX_ANSWER: u32 = 1 << 20;

/// Why a broker does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens, or the connection broke.
    #[error("no connection: {0}")]
    Io(#[from] std::io::Error),
    /// It accepts but does not answer in time.
    #[error("it did not answer within 2 s")]
    Silent,
    /// What answers does not speak Kafka's protocol.
    #[error("what answers there is not Kafka")]
    NotKafka,
    /// The broker is up, but the controller has not let it in yet.
    #[error("the broker is not registered yet")]
    NotRegistered,
}

/// Succeeds when the broker at `address` answers a metadata request and knows at least one live broker (which it does
/// only once it is itself let in).
///
/// # Errors
/// Why it is not ready (yet).
pub async fn probe(address: SocketAddr) -> Result<(), ProbeError> {
    match tokio::time::timeout(LIMIT, ask(address)).await {
        Ok(answer) => brokers(&answer?).and_then(|n| if n > 0 { Ok(()) } else { Err(ProbeError::NotRegistered) }),
        Err(_) => Err(ProbeError::Silent),
    }
}

async fn ask(address: SocketAddr) -> Result<Vec<u8>, ProbeError> {
    let mut socket = TcpStream::connect(address).await?;
    let mut request = Vec::with_capacity(20);
    request.extend_from_slice(&14_u32.to_be_bytes());
    request.extend_from_slice(&METADATA);
    request.extend_from_slice(&CORRELATION);
    request.extend_from_slice(&(-1_i16).to_be_bytes()); // no client id
    request.extend_from_slice(&0_u32.to_be_bytes()); // of no topics: brokers only
    socket.write_all(&request).await?;
    let length = socket.read_u32().await?;
    if !(4..=MAX_ANSWER).contains(&length) {
        return Err(ProbeError::NotKafka);
    }
    let mut answer = vec![0; length as usize];
    socket.read_exact(&mut answer).await?;
    Ok(answer)
}

/// How many live brokers the answer names.
fn brokers(answer: &[u8]) -> Result<u32, ProbeError> {
    match answer.split_first_chunk::<4>() {
        Some((&CORRELATION, rest)) => {
            let count = rest.first_chunk::<4>().ok_or(ProbeError::NotKafka)?;
            u32::try_from(i32::from_be_bytes(*count)).map_err(|_| ProbeError::NotKafka)
        }
        _ => Err(ProbeError::NotKafka),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answering(bytes: &'static [u8]) -> Result<(), ProbeError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest).await;
        };
        let (probed, ()) = tokio::join!(probe(address), server);
        probed
    }

    #[tokio::test]
    async fn only_a_broker_that_is_let_in_is_ready() {
        answering(b"\0\0\0\x08toll\0\0\0\x01").await.unwrap();
        assert!(matches!(answering(b"\0\0\0\x08toll\0\0\0\0").await, Err(ProbeError::NotRegistered)));
        assert!(matches!(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n").await, Err(ProbeError::NotKafka)));
        assert!(matches!(answering(b"\0\0\0\x08tell\0\0\0\x01").await, Err(ProbeError::NotKafka)));
    }

    #[tokio::test]
    async fn a_closed_port_is_an_error() {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        assert!(matches!(probe(address).await, Err(ProbeError::Io(_))));
    }
}

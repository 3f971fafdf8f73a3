//! Clients that cost little: each holds one connection, sends fixed bytes, and looks at nothing but what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::upstream::{STAMP, STAMP_DIGITS, nanos};

/// A round goes on for so long at most beyond its time, for those that are slower than the round.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One whole answer.
    Plain,
    /// A stream whose frames come as fast as they can.
    Stream,
    /// A stream with time between its frames.
    Paced,
    /// A stream that falls silent after its first frame.
    Idle,
}

impl Kind {
    fn body(self, model: &str) -> String {
        let (words, stream) = match self {
            Self::Plain => ("", ""),
            Self::Stream => ("", ",\"stream\":true,\"stream_options\":{\"include_usage\":true}"),
            Self::Paced => (" [[paced]]", ",\"stream\":true,\"stream_options\":{\"include_usage\":true}"),
            Self::Idle => (" [[idle]]", ",\"stream\":true,\"stream_options\":{\"include_usage\":true}"),
        };
        format!(
            "{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"}},{{\"role\":\"user\",\"content\":\"hello world tell me a story about a gateway that routes requests and meters tokens for billing{words}\"}}],\"max_tokens\":20,\"temperature\":0{stream}}}"
        )
    }

    /// The bytes of a request, with a key where the server wants one.
    pub(crate) fn request(self, model: &str, key: Option<&str>) -> Vec<u8> {
        let body = self.body(model);
        let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{key}content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// What a round saw. Times in microseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub requests: u64,
    /// Answers that were no 200, or not whole.
    pub failed: u64,
    pub seconds: f64,
    /// From sending to the last byte.
    pub whole: Vec<u32>,
    /// From sending to the first byte of the body.
    pub first: Vec<u32>,
    /// From the upstream's writing of a frame to its arrival.
    pub lag: Vec<u32>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.whole.extend(other.whole);
        self.first.extend(other.first);
        self.lag.extend(other.lag);
    }
}

fn find(bytes: &[u8], words: &[u8]) -> Option<usize> {
    bytes.windows(words.len()).position(|window| window == words)
}

fn micros(began: u64) -> u32 {
    u32::try_from(nanos().saturating_sub(began) / 1000).unwrap_or(u32::MAX)
}

/// How the end of a body is found.
enum Length {
    Bytes(usize),
    Chunked,
}

/// The status and where the body begins and ends.
fn head(bytes: &[u8]) -> Option<(bool, usize, Length)> {
    let end = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    Some((text.starts_with("http/1.1 200"), end, length.map_or(Length::Chunked, Length::Bytes)))
}

pub(crate) struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(1 << 15) })
    }

    /// Sends a request, and reads until the first byte of a body.
    pub(crate) async fn first_frame(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(request).await?;
        loop {
            self.socket.read_buf(&mut self.buffer).await?;
            if head(&self.buffer).is_some_and(|(ok, begin, _)| ok && self.buffer.len() > begin) {
                self.buffer = Vec::new();
                return Ok(());
            }
        }
    }

    /// One request and its whole answer.
    async fn exchange(&mut self, request: &[u8], kind: Kind, seen: &mut Seen) -> std::io::Result<()> {
        let began = nanos();
        self.buffer.clear();
        self.socket.write_all(request).await?;
        let (mut known, mut scanned, mut is_first) = (None, 0, true);
        loop {
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if known.is_none() {
                known = head(&self.buffer);
            }
            let Some((ok, begin, length)) = &known else { continue };
            if is_first && self.buffer.len() > *begin {
                is_first = false;
                seen.first.push(micros(began));
            }
            if kind == Kind::Paced {
                scanned = self.stamps(scanned, &mut seen.lag);
            }
            let is_whole = match length {
                Length::Bytes(bytes) => self.buffer.len() >= begin + bytes,
                Length::Chunked => self.buffer.ends_with(b"0\r\n\r\n"),
            };
            if is_whole {
                let ended = kind == Kind::Plain || find(&self.buffer, b"[DONE]").is_some();
                seen.requests += 1;
                seen.failed += u64::from(!ok || !ended);
                seen.whole.push(micros(began));
                return Ok(());
            }
        }
    }

    /// Notes how old the frames are that came since.
    fn stamps(&self, mut from: usize, lag: &mut Vec<u32>) -> usize {
        while let Some(at) = find(&self.buffer[from..], STAMP) {
            let digits = from + at + STAMP.len();
            let Some(text) = self.buffer.get(digits..digits + STAMP_DIGITS) else { break };
            lag.push(micros(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0)));
            from = digits + STAMP_DIGITS;
        }
        from
    }
}

/// So many clients at once, each one request after the other, for some time. Blocks.
pub(crate) fn run(address: SocketAddr, request: &[u8], kind: Kind, at_once: usize, time: Duration) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let opened = join_all((0..at_once).map(|_| Connection::open(address))).await;
        let connections: Vec<_> = opened.into_iter().map(|opened| opened.expect("a connection")).collect();
        let began = Instant::now();
        let client = async |mut connection: Connection| {
            let mut seen = Seen::default();
            while began.elapsed() < time {
                let exchange = connection.exchange(request, kind, &mut seen);
                let left = (time + PATIENCE).saturating_sub(began.elapsed());
                if !matches!(tokio::time::timeout(left, exchange).await, Ok(Ok(()))) {
                    seen.failed += 1;
                    connection = Connection::open(address).await.expect("a connection");
                }
            }
            seen
        };
        let all = join_all(connections.into_iter().map(client)).await;
        let mut seen = Seen { seconds: began.elapsed().as_secs_f64(), ..Seen::default() };
        all.into_iter().for_each(|one| seen.add(one));
        seen
    })
}

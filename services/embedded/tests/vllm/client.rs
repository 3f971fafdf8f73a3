//! A plain HTTP/1.1 client that keeps every byte: what comes before the body, the body, and how it ended.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How the answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By its own framing.
    Whole,
    /// The connection was closed before.
    Closed,
    /// The connection was reset.
    Reset,
}

/// An answer as received.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Status line and headers, without the empty line.
    pub(crate) head: String,
    /// The body as received, chunked framing included.
    pub(crate) raw: Vec<u8>,
    /// The body without framing.
    pub(crate) body: String,
    /// Sizes of the HTTP chunks.
    pub(crate) chunks: Vec<usize>,
    pub(crate) end: End,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The events of a stream, without `data: ` and the empty lines.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.body
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| event.strip_prefix("data: ").unwrap_or(event))
            .collect()
    }
}

/// A request on its way.
pub(crate) struct Client {
    stream: TcpStream,
    seen: Vec<u8>,
    end: Option<End>,
}

impl Client {
    pub(crate) async fn send(
        addr: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(&[head.as_bytes(), body.unwrap_or_default()].concat()).await.unwrap();
        Self { stream, seen: Vec::new(), end: None }
    }

    /// Reads until so many events of a stream have come.
    pub(crate) async fn read_events(&mut self, count: usize) {
        while text(&self.seen).matches("data: ").count() < count {
            assert!(self.more().await, "the stream ended early: {}", text(&self.seen));
        }
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16_384];
        match tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer))
            .await
            .expect("an answer within 20 s")
        {
            Ok(0) => self.end = Some(End::Closed),
            Ok(read) => self.seen.extend_from_slice(&buffer[..read]),
            Err(_) => self.end = Some(End::Reset),
        }
        self.end.is_none()
    }

    /// Reads to the end of the answer.
    pub(crate) async fn finish(mut self) -> Answer {
        loop {
            if let Some(answer) = parse(&self.seen, self.end) {
                return answer;
            }
            self.more().await;
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The answer, once it is complete or its connection has ended.
fn parse(seen: &[u8], end: Option<End>) -> Option<Answer> {
    let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") else {
        let answer = |end| Answer { head: text(seen), raw: Vec::new(), body: String::new(), chunks: Vec::new(), end };
        return end.map(answer);
    };
    let (head, raw) = (text(&seen[..at]), seen[at + 4..].to_vec());
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse::<usize>().ok());
    let (body, chunks, whole) = match length {
        Some(length) => (raw.clone(), Vec::new(), raw.len() >= length),
        None => unchunk(&raw),
    };
    let end = if whole { End::Whole } else { end? };
    Some(Answer { head, body: text(&body), raw, chunks, end })
}

fn unchunk(mut raw: &[u8]) -> (Vec<u8>, Vec<usize>, bool) {
    let (mut body, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let Some(at) = raw.windows(2).position(|window| window == b"\r\n") else { return (body, sizes, false) };
        let size = usize::from_str_radix(&text(&raw[..at]), 16).unwrap();
        if raw.len() < at + 2 + size + 2 {
            return (body, sizes, false);
        }
        if size == 0 {
            return (body, sizes, true);
        }
        body.extend_from_slice(&raw[at + 2..at + 2 + size]);
        sizes.push(size);
        raw = &raw[at + 2 + size + 2..];
    }
}

/// Posts JSON and reads the whole answer.
pub(crate) async fn post(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: Vec<_> = [("Content-Type", "application/json")].iter().chain(headers).copied().collect();
    Client::send(addr, "POST", path, &headers, Some(body.as_bytes())).await.finish().await
}

/// Gets and reads the whole answer.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Answer {
    Client::send(addr, "GET", path, &[], None).await.finish().await
}

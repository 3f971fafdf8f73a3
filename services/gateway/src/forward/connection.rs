//! One connection to a replica: a request and its answer at a time. Whoever waits for an answer reads it itself, so what comes wakes
//! that one task. Bytes are read where all connections of a thread read theirs: one that waits holds no memory for it.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::{self, Body, Head, WireError};

/// What a thread reads into: what is held back of an answer, and as much again.
const SCRATCH_BYTES: usize = 2 * wire::HEAD_BYTES;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It ended, or the replica said something unasked, before a request.
    #[error("the connection was closed while it was not used")]
    Unusable,
}

/// What a replica is spoken to through.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    bytes: bytes::buf::Chain<Bytes, Bytes>,
    is_untouched: bool,
}

impl Outgoing {
    pub(super) fn new(head: Vec<u8>, body: Bytes) -> Self {
        Self { bytes: Bytes::from(head).chain(body), is_untouched: true }
    }

    /// Whether nothing of it was sent: then it can be sent elsewhere, and nothing is done twice.
    pub(super) const fn is_untouched(&self) -> bool {
        self.is_untouched
    }
}

/// See the module. Dropped, it is closed.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    /// What was read and is not taken yet: the beginning of something.
    held: Vec<u8>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn over(socket: impl Socket + 'static) -> Self {
        Self { socket: Box::new(socket), held: Vec::new() }
    }

    /// Sends a request; the answer's head. An answer that comes before all is sent is taken, and nothing more is sent.
    ///
    /// # Errors
    /// When the connection broke, or what came is no answer.
    pub(super) async fn send(&mut self, request: &mut Outgoing) -> Result<Head, Broken> {
        poll_fn(|context| {
            // Asked until a byte is sent: a task that has had its turn is told that nothing has come, whatever has.
            if request.is_untouched && !self.is_quiet(context) {
                return Poll::Ready(Err(Broken::Unusable));
            }
            let written = self.poll_write(context, request);
            if request.is_untouched {
                return written.map(|written| Err(written.err().map_or(Broken::Unusable, Broken::Io)));
            }
            let head = self.poll_read(context, |bytes| {
                Ok(wire::head(bytes)?.map_or((None, 0), |(head, length)| (Some(head), length)))
            });
            match (head, written) {
                (Poll::Ready(head), written) => Poll::Ready(head.map(|mut head| {
                    head.keeps &= matches!(written, Poll::Ready(Ok(())));
                    head
                })),
                (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
                (Poll::Pending, _) => Poll::Pending,
            }
        })
        .await
    }

    /// The next bytes of an answer's body: all that are there. None at its end.
    pub(super) fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        body: &mut Body,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        if body.is_over() {
            return Poll::Ready(None);
        }
        let read = self.poll_read(context, |bytes| {
            let mut out = Vec::with_capacity(bytes.len());
            let taken = body.take(bytes, &mut out)?;
            Ok(((body.is_over() || !out.is_empty()).then_some(out), taken))
        });
        match ready!(read) {
            Ok(out) if out.is_empty() => Poll::Ready(None),
            Ok(out) => Poll::Ready(Some(Ok(out.into()))),
            // Some answers end with the connection.
            Err(Broken::Wire(WireError::Cut)) => Poll::Ready(body.end().err().map(|cut| Err(cut.into()))),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// Whether nothing came that was not asked for, as far as is known without asking.
    pub(super) fn is_clean(&self) -> bool {
        self.held.is_empty()
    }

    fn is_quiet(&mut self, context: &mut Context<'_>) -> bool {
        let mut byte = [0];
        self.is_clean() && Pin::new(&mut self.socket).poll_read(context, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    fn poll_write(&mut self, context: &mut Context<'_>, request: &mut Outgoing) -> Poll<io::Result<()>> {
        while request.bytes.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 2];
            let count = request.bytes.chunks_vectored(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            request.is_untouched = false;
            request.bytes.advance(written);
        }
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// Reads until `take` finds what it looks for in what is there. It says how much of that it took.
    fn poll_read<T>(
        &mut self,
        context: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(Option<T>, usize), WireError>,
    ) -> Poll<Result<T, Broken>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut there = self.held.len();
            scratch[..there].copy_from_slice(&self.held);
            loop {
                if there > 0 {
                    let (found, taken) = take(&scratch[..there])?;
                    scratch.copy_within(taken..there, 0);
                    there -= taken;
                    if let Some(found) = found {
                        self.held = scratch[..there].to_vec();
                        return Poll::Ready(Ok(found));
                    }
                }
                let mut room = ReadBuf::new(&mut scratch[there..]);
                let read = Pin::new(&mut self.socket).poll_read(context, &mut room)?;
                let length = room.filled().len();
                match read {
                    Poll::Pending => {
                        self.held = scratch[..there].to_vec();
                        return Poll::Pending;
                    }
                    Poll::Ready(()) if length == 0 => return Poll::Ready(Err(WireError::Cut.into())),
                    Poll::Ready(()) => there += length,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    fn request(body: &'static str) -> Outgoing {
        Outgoing::new(b"POST / HTTP/1.1\r\n\r\n".to_vec(), Bytes::from_static(body.as_bytes()))
    }

    async fn rest(connection: &mut Connection, body: &mut Body) -> Result<Vec<u8>, Broken> {
        let mut whole = Vec::new();
        while let Some(data) = poll_fn(|context| connection.poll_body(context, body)).await {
            whole.extend_from_slice(&data?);
        }
        Ok(whole)
    }

    /// Reads a request to the end that its body has.
    async fn heard(replica: &mut DuplexStream, end: &str) -> String {
        let mut heard = String::new();
        while !heard.ends_with(end) {
            let mut bytes = [0; 64];
            let length = replica.read(&mut bytes).await.unwrap();
            assert!(length > 0, "it ended: {heard}");
            heard.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
        heard
    }

    #[tokio::test]
    async fn answers_follow_each_other_on_one_connection() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut connection = Connection::over(near);
        let replica = async {
            assert_eq!(heard(&mut far, "one").await, "POST / HTTP/1.1\r\n\r\none");
            let first = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst";
            far.write_all(first.as_bytes()).await.unwrap();
            heard(&mut far, "two").await;
            let second = "HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nse\r\n4\r\ncond\r\n0\r\n\r\n";
            far.write_all(second.as_bytes()).await.unwrap();
        };
        let client = async {
            for (body, status, answer) in [("one", 200, "first"), ("two", 503, "second")] {
                let mut head = connection.send(&mut request(body)).await.unwrap();
                assert_eq!((head.status, head.keeps), (StatusCode::from_u16(status).unwrap(), true));
                assert_eq!(rest(&mut connection, &mut head.body).await.unwrap(), answer.as_bytes());
                assert!(connection.is_clean());
            }
        };
        tokio::join!(replica, client);
    }

    #[tokio::test]
    async fn what_was_closed_or_said_unasked_is_seen_before_a_byte_is_sent() {
        for unasked in [&b""[..], b"HTTP/1.1 408 Late\r\n\r\n"] {
            let (near, mut far) = tokio::io::duplex(1024);
            let mut connection = Connection::over(near);
            far.write_all(unasked).await.unwrap();
            far.shutdown().await.unwrap();
            let mut request = request("x");
            assert!(matches!(connection.send(&mut request).await, Err(Broken::Unusable)));
            assert!(request.is_untouched());
            drop(connection);
            assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "nothing was sent");
        }
    }

    #[tokio::test]
    async fn an_answer_may_come_before_all_is_sent() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut connection = Connection::over(near);
        far.write_all(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        // It is there before the first byte is: as unasked as it is, only the check before a request tells.
        let mut large = Outgoing::new(vec![b'x'; 1000], Bytes::new());
        assert!(matches!(connection.send(&mut large).await, Err(Broken::Unusable)));
        let (near, mut far) = tokio::io::duplex(64);
        let mut connection = Connection::over(near);
        let (answered, ()) = tokio::join!(connection.send(&mut large), async {
            heard(&mut far, "x").await;
            far.write_all(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        });
        let mut head = answered.unwrap();
        assert_eq!((head.status, head.keeps), (StatusCode::PAYLOAD_TOO_LARGE, false));
        assert_eq!(rest(&mut connection, &mut head.body).await.unwrap(), b"no");
        assert!(!large.is_untouched());
    }

    #[tokio::test]
    async fn an_end_too_early_is_an_error_and_some_answers_end_with_the_connection() {
        for (answer, whole) in [
            ("", None),
            ("HTTP/1.1 200 OK\r\ncontent-le", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour", None),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n", None),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\nx", None),
            ("HTTP/1.1 200 OK\r\n\r\nfour", Some("four")),
        ] {
            let (near, mut far) = tokio::io::duplex(1024);
            let mut connection = Connection::over(near);
            let (got, ()) = tokio::join!(
                async {
                    let mut head = connection.send(&mut request("x")).await?;
                    rest(&mut connection, &mut head.body).await
                },
                async {
                    heard(&mut far, "x").await;
                    far.write_all(answer.as_bytes()).await.unwrap();
                    far.shutdown().await.unwrap();
                }
            );
            assert_eq!(got.as_deref().ok(), whole.map(str::as_bytes), "{answer}: {got:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_waits_holds_nothing_but_what_is_incomplete() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut connection = Connection::over(near);
        let mut first = request("x");
        let (head, ()) = tokio::join!(connection.send(&mut first), async {
            heard(&mut far, "x").await;
            far.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1").await.unwrap();
        });
        let mut body = head.unwrap().body;
        let data = poll_fn(|context| connection.poll_body(context, &mut body)).await.unwrap().unwrap();
        assert_eq!((&data[..], &connection.held[..]), (&b"abc"[..], &b"1"[..]));
        let more = poll_fn(|context| Poll::Ready(connection.poll_body(context, &mut body).is_pending())).await;
        assert!(more && connection.held.capacity() < 64);
    }
}

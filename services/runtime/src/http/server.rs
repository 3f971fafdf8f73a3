//! Accepting connections: with TLS or without, each with a time for its head, all drained within a budget.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use crate::Shutdown;
use crate::tls::Tls;

/// A connection that sends no head of a request for so long is closed.
const HEAD: Duration = Duration::from_secs(75);
/// One that has not agreed on TLS within so long, too.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an accept that failed (no file handles left, for one) it is tried again so much later.
const AGAIN: Duration = Duration::from_millis(20);

/// What can go wrong in an answer.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What connections are served by.
pub trait Serves:
    Service<Request<Incoming>, Response = Response<Self::Answer>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + 'static
{
    /// The body of an answer.
    type Answer: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> Serves for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Answer = B;
}

/// Where connections come from.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

impl Listener {
    /// Connections are to use TLS, if there is some.
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// Takes connections until `until`, and has each started as one of `open`: see [`Accepted::serve`]. Dropped earlier, it
    /// takes no more.
    pub async fn accept(
        &self,
        open: &mut Connections,
        until: &Shutdown,
        mut start: impl FnMut(&mut JoinSet<()>, Accepted),
    ) {
        loop {
            tokio::select! {
                biased;
                () = until.cancelled() => return,
                Some(_) = open.tasks.join_next() => {}
                accepted = self.tcp.accept() => match accepted {
                    Ok((socket, client)) => {
                        let (tls, closing) = (self.tls.clone(), open.closing.clone());
                        start(&mut open.tasks, Accepted { socket, client, tls, closing });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        until.sleep(AGAIN).await;
                    }
                },
            }
        }
    }
}

/// A connection that nothing was read from yet.
#[derive(Debug)]
pub struct Accepted {
    socket: TcpStream,
    client: SocketAddr,
    tls: Option<Tls>,
    closing: Shutdown,
}

/// A connection on its way to another runtime.
#[derive(Debug)]
pub struct Moved {
    socket: std::net::TcpStream,
    client: SocketAddr,
    tls: Option<Tls>,
    closing: Shutdown,
}

impl Moved {
    /// Belongs to the runtime that this is called in.
    ///
    /// # Errors
    /// When the socket broke on the way.
    pub fn arrived(self) -> std::io::Result<Accepted> {
        let Self { socket, client, tls, closing } = self;
        Ok(Accepted { socket: TcpStream::from_std(socket)?, client, tls, closing })
    }
}

impl Accepted {
    /// Leaves the runtime that accepted it, whose thread would wake up for each frame if it were served on another.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn moved(self) -> std::io::Result<Moved> {
        let Self { socket, client, tls, closing } = self;
        Ok(Moved { socket: socket.into_std()?, client, tls, closing })
    }

    /// Serves it to its end.
    pub async fn serve<S: Serves>(self, service: S) {
        if let Some(opened) = self.open().await {
            opened.serve(service).await;
        }
    }

    /// Agrees on TLS where that is to be. None if the client does not, or it is time to stop.
    pub async fn open(self) -> Option<Opened<Socket>> {
        let Self { socket, client, tls, closing } = self;
        // Without it one streamed frame in ten waits 40 ms for the client's delayed acknowledgement.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let Some(tls) = tls else {
            return Some(Opened { socket: Socket::Plain(socket), client, closing, buffer: None });
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(socket)) => shaken,
            // Nothing was asked yet.
            () = closing.cancelled() => return None,
        };
        match shaken {
            Ok(Ok(socket)) => {
                return Some(Opened { socket: Socket::Secure(Box::new(socket)), client, closing, buffer: None });
            }
            Ok(Err(error)) => tracing::debug!(%client, %error, "a connection did not agree on TLS"),
            Err(_) => tracing::debug!(%client, "a connection took too long to agree on TLS"),
        }
        None
    }
}

/// A connection that HTTP can be spoken on.
#[derive(Debug)]
pub struct Opened<S> {
    socket: S,
    client: SocketAddr,
    closing: Shutdown,
    buffer: Option<usize>,
}

impl<S> Opened<S> {
    /// With something around its socket.
    pub fn around<T>(self, wrap: impl FnOnce(S) -> T) -> Opened<T> {
        let Self { socket, client, closing, buffer } = self;
        Opened { socket: wrap(socket), client, closing, buffer }
    }

    /// No more bytes of a request's head, or of an answer, are held for it.
    pub fn with_buffer(self, bytes: usize) -> Self {
        Self { buffer: Some(bytes), ..self }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Opened<S> {
    /// Serves it to its end.
    pub async fn serve(self, service: impl Serves) {
        let Self { socket, client, closing, buffer } = self;
        let mut http = http1::Builder::new();
        // A client that closes its side has gone: what runs for it is dropped at once, upstream too.
        http.half_close(false).timer(TokioTimer::new()).header_read_timeout(HEAD);
        if let Some(buffer) = buffer {
            http.max_buf_size(buffer);
        }
        let connection = http.serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%client, %error, "a connection ended early");
        }
    }
}

/// With TLS or without.
#[derive(Debug)]
pub enum Socket {
    /// Without.
    Plain(TcpStream),
    /// With.
    Secure(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Closed, it sends a reset in place of what it still holds.
    ///
    /// # Errors
    /// What the system says.
    pub fn reset_on_close(&self) -> std::io::Result<()> {
        match self {
            Self::Plain(socket) => socket.set_zero_linger(),
            Self::Secure(socket) => socket.get_ref().0.set_zero_linger(),
        }
    }
}

macro_rules! either {
    ($self:ident, $socket:ident => $done:expr) => {
        match $self.get_mut() {
            Socket::Plain($socket) => {
                let $socket = Pin::new($socket);
                $done
            }
            Socket::Secure($socket) => {
                let $socket = Pin::new(&mut **$socket);
                $done
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        either!(self, socket => socket.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        either!(self, socket => socket.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, socket => socket.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        either!(self, socket => socket.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Secure(socket) => socket.is_write_vectored(),
        }
    }
}

/// Connections that are open. Dropped, they are cut.
#[derive(Debug, Default)]
pub struct Connections {
    tasks: JoinSet<()>,
    closing: Shutdown,
}

impl Connections {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets what is open come to its end, within `budget`: a connection ends when its request has its answer. How many are
    /// still open then.
    pub async fn drain(&mut self, budget: Duration) -> usize {
        self.closing.trigger();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(budget, all).await;
        self.tasks.len()
    }

    /// Cuts those that are left.
    pub async fn cut(mut self) {
        self.tasks.shutdown().await;
    }
}

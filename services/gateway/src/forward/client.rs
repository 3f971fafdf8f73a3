//! Connections to replicas, kept and used again by the thread that opened them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::{Call, Upstream};
use crate::kind;
use crate::record::Meter;
use crate::route::{Lease, Replica};

/// An unused connection is closed before the replica's own (uvicorn: 5 s) runs out: none is used while it closes.
const IDLE: Duration = Duration::from_secs(4);
/// So many unused ones are kept for each replica.
const IDLE_MAX: usize = 256;
/// A longer page of metrics is not read.
const METRICS_BYTES: usize = 8 << 20;

/// Why a replica gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody listens there, or it cannot be reached.
    #[error("it cannot be connected to: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke, or what came was no HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl Error {
    /// Whether nothing was sent.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(self, Self::Connect(_))
    }
}

#[derive(Debug)]
struct Unused {
    connection: Connection,
    since: Instant,
}

/// See the module. Cheap to clone; clones share the connections. A connection belongs to the runtime that opened it, so
/// each worker has a client of its own: a frame then never crosses threads.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    connect: Duration,
    upstream: Arc<Upstream>,
    unused: Arc<Mutex<HashMap<Authority, Vec<Unused>>>>,
}

impl Client {
    /// No connections yet.
    pub(crate) fn new(connect: Duration, upstream: Upstream) -> Self {
        Self { connect, upstream: Arc::new(upstream), unused: Arc::default() }
    }

    /// One with the same settings, and connections of its own.
    pub(crate) fn apart(&self) -> Self {
        Self { unused: Arc::default(), ..self.clone() }
    }

    /// Sends a call; the answer's head.
    pub(crate) async fn send(
        &self,
        lease: &Lease,
        call: &Call<'_>,
        meter: &Meter,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::new(Full::new(call.body(lease)));
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-request-id", call.request_id.clone());
        meter.pass_on(headers);
        for name in call.asked.ask.endpoint.headers {
            headers.extend(call.asked.headers.get(*name).map(|value| (HeaderName::from_static(name), value.clone())));
        }
        self.request(lease, call.asked.path, request).await
    }

    /// What the replica says of itself, in Prometheus' text form; else why not.
    pub(crate) async fn metrics(&self, replica: &Replica, path: &'static str) -> Result<Bytes, String> {
        let response = self.request(replica, path, Request::new(Full::default())).await;
        let response = response.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let page = Limited::new(response.into_body(), METRICS_BYTES).collect().await;
        page.map(|page| page.to_bytes()).map_err(|error| error.to_string())
    }

    /// What the replica says of its health.
    pub(crate) async fn health(&self, replica: &Replica) -> Result<StatusCode, Error> {
        let path = kind::of(replica.kind).health;
        let response = self.request(replica, path, Request::new(Full::default())).await?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
        let _ = response.into_body().collect().await;
        Ok(status)
    }

    /// Sends a request to a path of the replica, over an unused connection or a new one.
    pub(crate) async fn request(
        &self,
        replica: &Replica,
        path: &'static str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Error> {
        let authority = replica.authority();
        *request.uri_mut() = Uri::from(PathAndQuery::from_static(path));
        request.headers_mut().insert(header::HOST, replica.host().clone());
        self.upstream.authorize(&replica.id, request.headers_mut());
        while let Some(mut connection) = self.take_unused(authority) {
            match connection.send(request).await {
                Ok(response) => return Ok(self.incoming(authority, connection, response)),
                // The replica closed it meanwhile. Nothing of the request was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let mut connection = self.open(replica).await?;
        let response = connection.send(request).await.map_err(|error| error.into_error())?;
        Ok(self.incoming(authority, connection, response))
    }

    async fn open(&self, replica: &Replica) -> Result<Connection, Error> {
        let authority = replica.authority();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let connecting =
            TcpStream::connect((host, authority.port_u16().unwrap_or(if replica.is_secure() { 443 } else { 80 })));
        let socket = timeout(self.connect, connecting).await.map_err(std::io::Error::from)??;
        // Without it a small frame may wait for the other side's delayed acknowledgement.
        socket.set_nodelay(true)?;
        if !replica.is_secure() {
            return Ok(Connection::over(socket).await?);
        }
        let agreeing = self.upstream.tls.connect(host, socket);
        Ok(Connection::over(timeout(self.connect, agreeing).await.map_err(std::io::Error::from)??).await?)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Authority, Vec<Unused>>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last, if it can still be used.
    fn take_unused(&self, authority: &Authority) -> Option<Connection> {
        let mut unused = self.lock();
        let of_replica = unused.get_mut(authority)?;
        while let Some(Unused { connection, since }) = of_replica.pop() {
            if since.elapsed() >= IDLE {
                // Those below it wait for longer still.
                of_replica.clear();
            } else if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn give_back(&self, authority: Authority, connection: Connection) {
        let (mut unused, now) = (self.lock(), Instant::now());
        let of_replica = unused.entry(authority).or_default();
        // The oldest go first, so that none is left open for ever.
        if of_replica.first().is_some_and(|oldest| now - oldest.since >= IDLE) {
            of_replica.retain(|unused| now - unused.since < IDLE);
        }
        if of_replica.len() < IDLE_MAX {
            of_replica.push(Unused { connection, since: now });
        }
    }

    fn incoming(
        &self,
        authority: &Authority,
        connection: Connection,
        response: Response<hyper::body::Incoming>,
    ) -> Response<Incoming> {
        let back = Some(Back { client: self.clone(), authority: authority.clone(), connection });
        response.map(|body| Incoming { body, back })
    }
}

#[derive(Debug)]
struct Back {
    client: Client,
    authority: Authority,
    connection: Connection,
}

/// The body of a replica's answer. Read to its end, its connection can be used again; dropped before, it is closed.
#[derive(Debug)]
pub(crate) struct Incoming {
    body: hyper::body::Incoming,
    back: Option<Back>,
}

impl Incoming {
    fn ended(&mut self, context: &mut Context<'_>) {
        let Some(Back { client, authority, mut connection }) = self.back.take() else { return };
        if !connection.is_ready() {
            // Its last bytes are perhaps read, and not yet looked at.
            connection.run(context);
        }
        if connection.is_ready() {
            client.give_back(authority, connection);
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, back } = &mut *self;
        let mut frame = Pin::new(&mut *body).poll_frame(cx);
        if let (true, Some(back)) = (frame.is_pending(), back) {
            back.connection.run(cx);
            frame = Pin::new(body).poll_frame(cx);
        }
        let frame = ready!(frame);
        match &frame {
            Some(Ok(_)) if !self.body.is_end_stream() => {}
            Some(Err(_)) => self.back = None,
            None | Some(Ok(_)) => self.ended(cx),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

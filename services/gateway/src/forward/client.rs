//! Connections to replicas, kept and used again by the thread that opened them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Limited};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::connection::{Broken, Connection, Outgoing};
use super::wire::{Body, Head, request_head};
use super::{Call, Upstream};
use crate::kind;
use crate::record::Meter;
use crate::route::{Address, Lease, Replica};

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
    #[error(transparent)]
    Broken(#[from] Broken),
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
    unused: Arc<Mutex<HashMap<Address, Vec<Unused>>>>,
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
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-request-id", call.request_id.clone());
        meter.pass_on(&mut headers);
        for name in call.asked.ask.endpoint.headers {
            headers.extend(call.asked.headers.get(*name).map(|value| (HeaderName::from_static(name), value.clone())));
        }
        self.request(lease, &Method::POST, call.asked.path, headers, call.body(lease)).await
    }

    /// What the replica says of itself, in Prometheus' text form; else why not.
    pub(crate) async fn metrics(&self, replica: &Replica, path: &'static str) -> Result<Bytes, String> {
        let response = self.get(replica, path).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let page = Limited::new(response.into_body(), METRICS_BYTES).collect().await;
        page.map(|page| page.to_bytes()).map_err(|error| error.to_string())
    }

    /// What the replica says of its health.
    pub(crate) async fn health(&self, replica: &Replica) -> Result<StatusCode, Error> {
        let response = self.get(replica, kind::of(replica.kind).health).await?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
        let _ = response.into_body().collect().await;
        Ok(status)
    }

    async fn get(&self, replica: &Replica, path: &'static str) -> Result<Response<Incoming>, Error> {
        self.request(replica, &Method::GET, path, HeaderMap::new(), Bytes::new()).await
    }

    /// Sends a request to a path of the replica, over an unused connection or a new one.
    async fn request(
        &self,
        replica: &Replica,
        method: &Method,
        path: &'static str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        let address = replica.address();
        self.upstream.authorize(&replica.id, &mut headers);
        let mut request = Outgoing::new(request_head(method, path, replica.host(), &headers, body.len()), body);
        while let Some(mut connection) = self.take_unused(address) {
            match connection.send(&mut request).await {
                Ok(head) => return Ok(self.incoming(address, connection, head)),
                // The replica closed it meanwhile.
                Err(_) if request.is_untouched() => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Apart, as its state is large: most requests find an unused one.
        let mut connection = Box::pin(self.open(replica)).await?;
        let head = connection.send(&mut request).await?;
        Ok(self.incoming(address, connection, head))
    }

    async fn open(&self, replica: &Replica) -> std::io::Result<Connection> {
        let address = replica.address();
        let (host, port) = address.socket();
        let connecting = TcpStream::connect((host, port));
        let socket = timeout(self.connect, connecting).await.map_err(std::io::Error::from)??;
        // Without it a small frame may wait for the other side's delayed acknowledgement.
        socket.set_nodelay(true)?;
        if !address.secure {
            return Ok(Connection::over(socket));
        }
        let agreeing = self.upstream.tls.connect(host, socket);
        Ok(Connection::over(timeout(self.connect, agreeing).await.map_err(std::io::Error::from)??))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Vec<Unused>>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last, if it is not too old.
    fn take_unused(&self, address: &Address) -> Option<Connection> {
        let mut unused = self.lock();
        let of_replica = unused.get_mut(address)?;
        let Unused { connection, since } = of_replica.pop()?;
        if since.elapsed() < IDLE {
            return Some(connection);
        }
        // Those below it wait for longer still.
        of_replica.clear();
        None
    }

    fn give_back(&self, address: Address, connection: Connection) {
        let (mut unused, now) = (self.lock(), Instant::now());
        let of_replica = unused.entry(address).or_default();
        // The oldest go first, so that none is left open for ever.
        if of_replica.first().is_some_and(|oldest| now - oldest.since >= IDLE) {
            of_replica.retain(|unused| now - unused.since < IDLE);
        }
        if of_replica.len() < IDLE_MAX {
            of_replica.push(Unused { connection, since: now });
        }
    }

    fn incoming(&self, address: &Address, connection: Connection, head: Head) -> Response<Incoming> {
        let Head { status, headers, body, keeps } = head;
        let owner = keeps.then(|| (self.clone(), address.clone()));
        let mut incoming = Incoming { body, connection: Some(connection), owner };
        if body.is_over() {
            incoming.ended();
        }
        let mut response = Response::new(incoming);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        response
    }
}

/// The body of a replica's answer. Read to its end, its connection can be used again; dropped before, it is closed.
#[derive(Debug)]
pub(crate) struct Incoming {
    body: Body,
    connection: Option<Connection>,
    /// Who gets the connection back, if it can be used again.
    owner: Option<(Client, Address)>,
}

impl Incoming {
    fn ended(&mut self) {
        if let (Some(connection), Some((client, address))) = (self.connection.take(), self.owner.take())
            && connection.is_clean()
        {
            client.give_back(address, connection);
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Self { body, connection, .. } = &mut *self;
        let Some(live) = connection else { return Poll::Ready(None) };
        let data = ready!(live.poll_body(cx, body));
        match &data {
            Some(Ok(_)) if !body.is_over() => {}
            Some(Err(_)) => *connection = None,
            None | Some(Ok(_)) => self.ended(),
        }
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }
}

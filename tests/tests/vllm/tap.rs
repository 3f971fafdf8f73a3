//! Stands between the gateway and an engine, and keeps the bytes of every answer by the id that the gateway sent along.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Collected, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What an engine answered to one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    /// What it was asked.
    pub(crate) question: Bytes,
    /// What of its body the gateway was sent.
    pub(crate) body: Vec<u8>,
}

type Kept = Arc<Mutex<BTreeMap<String, Answered>>>;
type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// See the module. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) url: String,
    kept: Kept,
    _serving: JoinSet<()>,
}

impl Tap {
    /// Stands before the engine at this port.
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kept = Kept::default();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // The engine closes connections that were not used for a while, maybe while one is: each request has its own.
        let pool = Pool::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, port, pool, Arc::clone(&kept)));
        Self { url, kept, _serving: serving }
    }

    /// What the engine answered to this request, if it was asked.
    pub(crate) fn answered(&self, request_id: &str) -> Option<Answered> {
        self.kept.lock().unwrap().get(request_id).cloned()
    }

    /// The requests that it was asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.kept.lock().unwrap().keys().cloned().collect()
    }
}

async fn serve(listener: TcpListener, port: u16, pool: Pool<HttpConnector, Full<Bytes>>, kept: Kept) {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (pool, kept) = (pool.clone(), Arc::clone(&kept));
        let service = service_fn(move |request| pass(request, port, pool.clone(), Arc::clone(&kept)));
        connections.spawn(async move {
            // The gateway hanging up is what some of the tests are about.
            let _ = http1::Builder::new().half_close(false).serve_connection(TokioIo::new(socket), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(
    request: Request<Incoming>,
    port: u16,
    pool: Pool<HttpConnector, Full<Bytes>>,
    kept: Kept,
) -> Result<Response<Body>, Infallible> {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = format!("http://127.0.0.1:{port}{path}").parse().unwrap();
    head.headers.remove("host");
    let Ok(question) = body.collect().await.map(Collected::to_bytes) else { return Ok(gone()) };
    if !id.is_empty() {
        let asked = Answered { question: question.clone(), ..Answered::default() };
        kept.lock().unwrap().insert(id.clone(), asked);
    }
    let Ok(response) = pool.request(Request::from_parts(head, Full::new(question))).await else {
        return Ok(gone());
    };
    let (head, body) = response.into_parts();
    if let Some(answered) = kept.lock().unwrap().get_mut(&id) {
        answered.status = head.status.as_u16();
    }
    let frames = unfold((body, kept, id), async |(mut body, kept, id)| {
        let frame: Result<Frame<Bytes>, hyper::Error> = body.frame().await?;
        if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref)
            && let Some(answered) = kept.lock().unwrap().get_mut(&id)
        {
            answered.body.extend_from_slice(data);
        }
        Some((frame, (body, kept, id)))
    });
    Ok(Response::from_parts(head, StreamBody::new(frames).boxed_unsync()))
}

fn gone() -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

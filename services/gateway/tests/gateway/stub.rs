//! A replica that remembers what it was sent, head and body, with TLS or without.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::response::{IntoResponse, Json};
use http::HeaderMap;
use runtime::http::Listener;
use runtime::tls::Tls;
use runtime::{Shutdown, Tasks};
use serde_json::{Value, json};

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// See the module.
pub(crate) struct Stub {
    sent: Arc<Mutex<Vec<Sent>>>,
    address: SocketAddr,
    secure: bool,
    tasks: Tasks,
}

impl Stub {
    pub(crate) async fn start(tls: Option<Tls>) -> Self {
        let sent = Arc::<Mutex<Vec<Sent>>>::default();
        let tcp = runtime::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (address, secure) = (tcp.local_addr().unwrap(), tls.is_some());
        let seen = Arc::clone(&sent);
        let router = Router::new().fallback(move |request: Request| answer(seen.clone(), request));
        let tasks = Tasks::new(Shutdown::new());
        let (listener, time) = (Listener::from(tcp).with_tls(tls), Duration::from_secs(5));
        tasks.spawn("stub", time, runtime::http::serve(listener, router, tasks.shutdown().clone(), time));
        Self { sent, address, secure, tasks }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// What was sent, but for questions of health.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().iter().filter(|sent| !sent.body.is_null()).cloned().collect()
    }

    /// All of it.
    pub(crate) fn everything(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    pub(crate) async fn stop(self) {
        self.tasks.shutdown().trigger();
        self.tasks.run().await.unwrap();
    }
}

async fn answer(seen: Arc<Mutex<Vec<Sent>>>, request: Request) -> impl IntoResponse {
    let (head, body) = request.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let (path, body) = (head.uri.path().to_owned(), serde_json::from_slice(&bytes).unwrap_or(Value::Null));
    seen.lock().unwrap().push(Sent { path, headers: head.headers, body });
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }))
}

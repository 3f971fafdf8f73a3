//! A server that publishes an issuer's keys: it counts who asks, and fails when it is told to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use runtime::http::Listener;
use runtime::tls::Tls;
use runtime::{Shutdown, Tasks};

/// What it answers, and how often it was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published(Arc<Mutex<(String, bool, usize)>>);

impl Published {
    pub(crate) fn publish(&self, keys: String) {
        self.0.lock().unwrap().0 = keys;
    }

    pub(crate) fn fails(&self, fails: bool) {
        self.0.lock().unwrap().1 = fails;
    }

    pub(crate) fn asked(&self) -> usize {
        self.0.lock().unwrap().2
    }

    fn answer(&self) -> (StatusCode, String) {
        let mut now = self.0.lock().unwrap();
        now.2 += 1;
        if now.1 { (StatusCode::INTERNAL_SERVER_ERROR, "down".to_owned()) } else { (StatusCode::OK, now.0.clone()) }
    }
}

/// See the module.
pub(crate) struct KeyServer {
    pub(crate) published: Published,
    address: SocketAddr,
    secure: bool,
    tasks: Tasks,
}

impl KeyServer {
    pub(crate) async fn start(keys: String, tls: Option<Tls>) -> Self {
        let published = Published::default();
        published.publish(keys);
        let tcp = runtime::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (address, secure) = (tcp.local_addr().unwrap(), tls.is_some());
        let answers = published.clone();
        let router = Router::new().fallback(move || async move { answers.answer() });
        let tasks = Tasks::new(Shutdown::new());
        let listener = Listener::from(tcp).with_tls(tls);
        let time = Duration::from_secs(5);
        tasks.spawn("keys", time, runtime::http::serve(listener, router, tasks.shutdown().clone(), time));
        Self { published, address, secure, tasks }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://localhost:{}/keys.json", self.address.port())
    }

    pub(crate) async fn stop(self) {
        self.tasks.shutdown().trigger();
        self.tasks.run().await.unwrap();
    }
}

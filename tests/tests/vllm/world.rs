//! A Tollgate before three engines: two that generate the same, and one that embeds.

use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use promises::client::Client;
use promises::figures::Counts;
use promises::system::{Role, System};
use promises::tenants::{put, tenant};
use promises::wait::until;
use serde_json::json;
use tempfile::TempDir;

use crate::calls::{ADAPTER, Call, EMBEDDER, GHOST, MODEL};
use crate::engine::{Engine, Runs, Totals};
use crate::tap::{Answered, Tap};

/// The tenants: one of the usual kind, and one that others go before.
pub(crate) const TENANTS: [&str; 2] = ["acme", "batch"];
/// How long anything may take: a busy machine gives a test little of itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// See the module.
pub(crate) struct World {
    pub(crate) system: System,
    _logs: TempDir,
    pub(crate) engines: Vec<Engine>,
    pub(crate) taps: Vec<Tap>,
    pub(crate) keys: [String; 2],
}

/// A whole answer, and the id of its request.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl World {
    pub(crate) async fn start() -> Self {
        // Engines first, and alone: each reads gigabytes and compiles.
        let logs = tempfile::Builder::new().prefix("tollgate-vllm-").tempdir().unwrap();
        let kinds = [("a", Runs::Generate), ("b", Runs::Generate), ("embed", Runs::Pool)];
        let mut engines: Vec<Engine> =
            kinds.iter().map(|(name, runs)| Engine::spawn(name, *runs, logs.path())).collect();
        let client = Client::default();
        join_all(engines.iter_mut().map(|engine| engine.ready(&client))).await;
        let mut system = System::parts(1000).await;
        system.migrate();
        for (name, value) in [
            ("GATEWAY__ROUTING__SEND_PRIORITY", "true"),
            // Slow is not dead, on a machine that does other things too; and no sign of life stands between the bytes.
            ("GATEWAY__HEALTH_TIMEOUT", "5m"),
            ("GATEWAY__DEADLINES__CONNECT", "1m"),
            ("GATEWAY__DEADLINES__FIRST_BYTE", "10m"),
            ("GATEWAY__DEADLINES__IDLE", "10m"),
            ("GATEWAY__MANNERS__KEEPALIVE_INTERVAL", "1h"),
        ] {
            system.set(name, value);
        }
        for role in Role::ALL {
            system.spawn(role);
        }
        for role in Role::ALL {
            system.ready(role).await;
        }
        let mut taps = Vec::new();
        for engine in &engines {
            taps.push(Tap::before(engine.port).await);
        }
        let keys = shop(&system, &taps).await;
        Self { system, _logs: logs, engines, taps, keys }
    }

    /// What all engines have counted, when none of them works any more.
    pub(crate) async fn totals(&self) -> Totals {
        let client = &self.system.client;
        join_all(self.engines.iter().map(|engine| engine.settled(client)))
            .await
            .into_iter()
            .fold(Totals::default(), |a, b| a + b)
    }

    /// Asks as the first tenant, and reads the whole answer.
    pub(crate) async fn ask(&self, call: &Call) -> Asked {
        self.ask_as(0, call).await
    }

    /// The same as any of them.
    pub(crate) async fn ask_as(&self, tenant: usize, call: &Call) -> Asked {
        let url = self.system.url(Role::Gateway, call.path);
        let asked = send(&self.system.client, &url, Some(&self.keys[tenant]), call).await;
        assert!(!asked.id.is_empty(), "{}: each answer has an id", call.name);
        asked
    }

    /// Asks an engine itself.
    pub(crate) async fn ask_engine(&self, at: usize, call: &Call) -> Asked {
        // With a connection of its own: the engine closes unused ones, maybe while one is used again.
        send(&Client::default(), &format!("{}{}", self.engines[at].url(), call.path), None, call).await
    }

    /// Reads so many pieces of an answer and hangs up; gives the request's id and what was read.
    pub(crate) async fn hang_up(&self, call: &Call, reads: usize) -> (String, Vec<u8>) {
        let url = self.system.url(Role::Gateway, call.path);
        let read = async {
            let answer = self.system.client.open(Method::POST, &url, Some(&self.keys[0]), call.bytes()).await.unwrap();
            let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
            let (mut seen, mut body) = (Vec::new(), answer.into_body());
            for _ in 0..reads {
                seen.extend_from_slice(&body.frame().await.expect("more").unwrap().into_data().unwrap());
            }
            (id, seen)
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{}: no answer", call.name))
    }

    /// Hangs up as soon as an engine is asked, whether it answers or not; gives the request's id. Nothing else may be asked
    /// meanwhile.
    pub(crate) async fn hang_up_at_once(&self, call: &Call) -> String {
        let asked = || self.taps.iter().flat_map(Tap::asked).collect::<Vec<_>>();
        let before = asked();
        let url = self.system.url(Role::Gateway, call.path);
        let open = self.system.client.open(Method::POST, &url, Some(&self.keys[0]), call.bytes());
        let seen = until("an engine to be asked", PATIENCE, async || {
            asked().into_iter().find(|id| !before.contains(id)).ok_or(())
        });
        match select(std::pin::pin!(seen), std::pin::pin!(open)).await {
            Either::Left((id, _)) => id,
            Either::Right((answer, _)) => answer.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned(),
        }
    }

    /// What an engine answered; nothing if none was asked.
    pub(crate) fn answered(&self, id: &str) -> Answered {
        self.taps.iter().find_map(|tap| tap.answered(id)).unwrap_or_default()
    }

    pub(crate) async fn billed(&self, ids: &[String]) -> Vec<Counts> {
        self.system.settled(ids).await;
        let billed = self.system.billed().await;
        ids.iter().map(|id| billed.get(id).copied().unwrap_or_default()).collect()
    }
}

async fn send(client: &Client, url: &str, key: Option<&str>, call: &Call) -> Asked {
    let read = async {
        let answer = client.open(call.method(), url, key, call.bytes()).await.unwrap();
        let (head, body) = answer.into_parts();
        let id = head.headers.get("x-request-id").map(|id| id.to_str().unwrap().to_owned()).unwrap_or_default();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Asked { id, status: head.status, text }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{}: no answer", call.name))
}

/// Models, replicas and tenants without limits; gives their keys.
async fn shop(system: &System, taps: &[Tap]) -> [String; 2] {
    for model in [MODEL, EMBEDDER, GHOST] {
        put(system, &format!("models/{model}"), &json!({"version": "v1", "served_name": model})).await;
    }
    let adapter = json!({"version": "v1", "served_name": ADAPTER, "base": MODEL});
    put(system, &format!("models/{ADAPTER}"), &adapter).await;
    for (at, model) in [MODEL, MODEL, EMBEDDER].into_iter().enumerate() {
        put(system, &format!("replicas/vllm-{at}"), &json!({"model": model, "url": taps[at].url})).await;
    }
    // Somebody has written down a model that the engine does not have.
    put(system, "replicas/ghost", &json!({"model": GHOST, "url": taps[0].url})).await;
    let first = tenant(system, TENANTS[0], &json!({"name": "Acme"})).await;
    let second = tenant(system, TENANTS[1], &json!({"name": "Batch", "service_tier": "flex"})).await;
    for key in [&first, &second] {
        for model in [MODEL, ADAPTER, EMBEDDER, GHOST] {
            let url = system.url(Role::Gateway, &format!("/v1/models/{model}"));
            until("the gateway to know the key", PATIENCE, async || {
                let answer = system.client.get(&url, Some(key)).await.map_err(|error| format!("{error:?}"))?;
                if answer.status.is_success() { Ok(()) } else { Err(answer.status.to_string()) }
            })
            .await;
        }
    }
    [first, second]
}

//! A gateway with a spool in a temporary directory, control given directly, replicas simulated; and what it recorded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded::vllm::{Simulator, SimulatorSettings};
use gateway::{Gateway, Parts, Settings};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ledger::control::{ApiKey, ControlState, Document, Kind, Model, Plan, Price, Replica, Tenant, Write};
use ledger::price::PriceKey;
use ledger::time::Micros;
use ledger::tokens::{TokenClass, TokenCounts};
use runtime::http::Listener;
use runtime::tls::Tls;
use runtime::{Metrics, Readiness, Shutdown, SystemClock, Tasks};
use schemas::event::{RequestFinished, TokensCounted};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stream::control::{ControlPublisher, ControlSnapshot, ControlView};
use stream::spool::frame::{Entry, Record, check, entries};
use stream::spool::{Spool, SpoolSettings, gateway_topics};
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

pub(crate) const KEY: &str = "tg_test";
pub(crate) const MODEL: &str = "llama-3.1-8b";
pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";
const SOON: Duration = Duration::from_secs(60);

/// A simulated replica on a free port.
pub(crate) async fn simulator(settings: SimulatorSettings) -> Simulator {
    Simulator::start(SimulatorSettings { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..settings }).await.unwrap()
}

/// A plan without limits.
pub(crate) fn unlimited() -> Plan {
    Plan { name: "Test".into(), ..Plan::default() }
}

/// Control, as tests write it.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) state: ControlState,
    offset: i64,
}

impl Control {
    pub(crate) fn put(&mut self, id: &str, document: Document) {
        let kind = document.kind();
        let expected_revision = self.state.revision(kind, id);
        self.state.apply(&Write { kind, id: id.to_owned(), expected_revision, document: Some(document) }).unwrap();
        self.offset += 1;
    }

    pub(crate) fn delete(&mut self, kind: Kind, id: &str) {
        let expected_revision = self.state.revision(kind, id);
        self.state.apply(&Write { kind, id: id.to_owned(), expected_revision, document: None }).unwrap();
        self.offset += 1;
    }

    /// One tenant with one key, one model, and a replica for each of these addresses.
    pub(crate) fn with(plan: Plan, replicas: &[String]) -> Self {
        let mut control = Self { state: ControlState::default(), offset: 0 };
        for model in [MODEL, "other"] {
            let document = Model::new("v1".parse().unwrap(), MODEL);
            control.put(model, Document::Model(document));
        }
        for (at, url) in replicas.iter().enumerate() {
            let model = MODEL.parse().unwrap();
            control.put(&format!("r{at}"), Document::Replica(Replica::new(model, url)));
        }
        for class in TokenClass::ALL {
            let key = PriceKey { model: MODEL.parse().unwrap(), class, currency: "USD".parse().unwrap() };
            let price = Price { key, from: Micros(0), per_million: "1".parse().unwrap() };
            control.put(&format!("p-{}", class.as_str()), Document::Price(price));
        }
        control.plan(plan);
        let tenant = Tenant::new("Acme", "plan".parse().unwrap(), "USD".parse().unwrap(), chrono_tz::UTC);
        control.put("acme", Document::Tenant(tenant));
        control.key(KEY, false, None);
        control
    }

    pub(crate) fn plan(&mut self, plan: Plan) {
        self.put("plan", Document::Plan(plan));
    }

    pub(crate) fn key(&mut self, key: &str, revoked: bool, expires_at: Option<Micros>) {
        self.key_as(key, |document| (document.revoked, document.expires_at) = (revoked, expires_at));
    }

    /// Another tenant, with a plan and a key of its own.
    pub(crate) fn tenant(&mut self, tenant: &str, plan: Plan, key: &str) {
        let plan_id = format!("plan-{tenant}");
        self.put(&plan_id, Document::Plan(plan));
        let document = Tenant::new(tenant, plan_id.parse().unwrap(), "USD".parse().unwrap(), chrono_tz::UTC);
        self.put(tenant, Document::Tenant(document));
        self.key_as(key, |document| document.tenant = tenant.parse().unwrap());
    }

    /// A key of the tenant's project `search`, unless `change` says otherwise.
    pub(crate) fn key_as(&mut self, key: &str, change: impl FnOnce(&mut ApiKey)) {
        let sha256 = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut document = ApiKey::new("acme".parse().unwrap(), "search".parse().unwrap(), sha256);
        change(&mut document);
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()).to_string();
        self.put(&id, Document::ApiKey(document));
    }
}

/// See the module.
pub(crate) struct World {
    pub(crate) addr: SocketAddr,
    pub(crate) gateway: Gateway,
    pub(crate) spool: Spool,
    pub(crate) metrics: Metrics,
    pub(crate) control: Control,
    publisher: ControlPublisher,
    shutdown: Shutdown,
    tasks: Tasks,
    running: JoinSet<()>,
    client: Client<HttpConnector, Full<Bytes>>,
    dir: TempDir,
}

/// How a world is made.
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) telemetry: runtime::traces::Settings,
    pub(crate) plan: Plan,
    pub(crate) replicas: Vec<String>,
    pub(crate) spool: SpoolSettings,
    pub(crate) tls: Option<Tls>,
}

impl Setup {
    pub(crate) fn new(replicas: &[&Simulator]) -> Self {
        let mut settings = Settings::default();
        // Tests of what is refused need not wait for a replica that will not come.
        settings.queue.no_replica_wait = Duration::ZERO;
        Self {
            settings,
            telemetry: runtime::traces::Settings::default(),
            plan: unlimited(),
            replicas: replicas.iter().map(|replica| replica.url()).collect(),
            spool: SpoolSettings::default(),
            tls: None,
        }
    }

    pub(crate) async fn start(self) -> World {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings { dir: dir.path().to_owned(), ..self.spool };
        let opened = Spool::open(&settings, gateway_topics(4), Arc::new(SystemClock)).unwrap();
        let control = Control::with(self.plan, &self.replicas);
        let snapshot = ControlSnapshot { state: control.state.clone(), offset: control.offset, fresh_at: 0 };
        let (publisher, view) = ControlView::new(snapshot, true);
        let metrics = Metrics::new();
        let gateway = Gateway::new(Parts {
            settings: self.settings,
            telemetry: self.telemetry,
            control: view,
            spool: opened.spool.clone(),
            metrics: metrics.clone(),
            clock: Arc::new(SystemClock),
        })
        .unwrap();
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        gateway.follow(&tasks);
        let listener = runtime::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = Listener::from(listener).with_tls(self.tls);
        let serve = gateway.clone().serve(listener, metrics.clone(), Readiness::new(), shutdown.clone());
        tasks.spawn("serve", Duration::from_secs(60), serve);
        let mut running = JoinSet::new();
        running.spawn_blocking(move || opened.flusher.run());
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let spool = opened.spool;
        World { addr, gateway, spool, metrics, control, publisher, shutdown, tasks, running, client, dir }
    }
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    /// Whether the body came to its own end.
    pub(crate) ended: bool,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn id(&self) -> String {
        self.headers["x-request-id"].to_str().unwrap().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What the spool holds of a request that has ended.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) counts: Vec<TokensCounted>,
    pub(crate) finished: RequestFinished,
}

impl Recorded {
    /// What is billed: the sum over all deltas.
    pub(crate) fn billed(&self) -> TokenCounts {
        self.counts.iter().fold(TokenCounts::default(), |sum, count| sum.checked_add(count.delta().unwrap()).unwrap())
    }

    /// Prompt tokens, completion tokens.
    pub(crate) fn sums(&self) -> (u64, u64) {
        let billed = self.billed();
        (billed.input + billed.cached_input, billed.output + billed.reasoning)
    }

    pub(crate) fn requests(&self) -> i64 {
        self.counts.iter().map(|count| count.requests).sum()
    }

    pub(crate) fn reason(&self) -> &'static str {
        self.finished.end_reason.as_str()
    }

    pub(crate) fn estimated(&self) -> bool {
        self.counts.iter().any(|count| count.estimated)
    }
}

impl World {
    /// Shows what was written to `control`.
    pub(crate) fn publish(&self) {
        self.tell(&self.control);
    }

    /// Shows control as it is here.
    pub(crate) fn tell(&self, control: &Control) {
        let (state, offset) = (control.state.clone(), control.offset);
        self.publisher.publish(ControlSnapshot { state, offset, fresh_at: 0 });
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<http::Response<Incoming>, hyper_util::client::legacy::Error> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(Full::new(body.into())).unwrap()).await
    }

    pub(crate) async fn open(&self, path: &str, body: &Value) -> http::Response<Incoming> {
        self.try_open(path, body).await.unwrap()
    }

    /// The same, where the connection may break before the answer's head.
    pub(crate) async fn try_open(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<http::Response<Incoming>, hyper_util::client::legacy::Error> {
        let bearer = format!("Bearer {KEY}");
        self.try_send(Method::POST, path, &[("authorization", &bearer)], body.to_string()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        whole(self.open(path, body).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        whole(self.send(Method::GET, path, &[("x-api-key", KEY)], "").await).await
    }

    /// All records of the spool, read from its files.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut files: Vec<_> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "spool"));
        files.sort();
        let mut found = Vec::new();
        for file in files {
            let bytes = std::fs::read(file).unwrap();
            let mut rest = &bytes[..];
            while let Ok((payload, used)) = check(rest) {
                found.extend(entries(payload).unwrap().into_iter().filter_map(|entry| match entry {
                    Entry::Record(record) => Some(record),
                    _ => None,
                }));
                rest = &rest[used..];
            }
        }
        found
    }

    /// What was recorded of a request, if it has its end.
    pub(crate) fn try_recorded(&self, id: &str) -> Option<Recorded> {
        let (mut counts, mut finished) = (Vec::new(), None);
        for record in self.records() {
            let Some(value) = record.value else { continue };
            match record.topic {
                stream::spool::TOKENS => counts.push(schemas::codec::decode::<TokensCounted>(&value).unwrap()),
                _ => {
                    let one: RequestFinished = schemas::codec::decode(&value).unwrap();
                    if one.request_id.to_string() == id {
                        assert!(finished.replace(one).is_none(), "a request ends once");
                    }
                }
            }
        }
        counts.retain(|count| count.request_id.to_string() == id);
        finished.map(|finished| Recorded { counts, finished })
    }

    /// What was recorded of a request whose end the client has seen: it is there already.
    pub(crate) fn recorded(&self, answer: &Answer) -> Recorded {
        self.try_recorded(&answer.id()).expect("the end is recorded before the client sees it")
    }

    /// All requests that have their end.
    pub(crate) fn all(&self) -> Vec<RequestFinished> {
        let ends = self.records().into_iter().filter(|record| record.topic == stream::spool::REQUESTS);
        ends.filter_map(|record| record.value).map(|value| schemas::codec::decode(&value).unwrap()).collect()
    }

    /// A metric's value: the sum over the lines that begin so.
    pub(crate) fn metric(&self, begin: &str) -> f64 {
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with(begin));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Asks it to stop, without waiting.
    pub(crate) fn ask_to_stop(&self) {
        self.shutdown.trigger();
    }

    /// Stops it: nothing is left open, held, or unsaid.
    pub(crate) async fn stop(mut self) {
        self.shutdown.trigger();
        self.tasks.run().await.unwrap();
        assert_eq!(self.spool.close().unwrap(), 0, "every request has its end");
        while self.running.join_next().await.is_some() {}
        assert_eq!(self.metric("tollgate_gateway_requests_in_flight"), 0.0);
        assert_eq!(self.metric("tollgate_gateway_reserved_tokens"), 0.0);
        assert_eq!(self.metric("tollgate_gateway_replica_active_requests"), 0.0);
        assert_eq!(self.metric("tollgate_gateway_queue_length"), 0.0);
    }
}

impl Drop for World {
    /// A test that fails leaves nothing running either.
    fn drop(&mut self) {
        let _ = self.spool.close();
    }
}

/// Reads an answer to its end.
pub(crate) async fn whole(response: http::Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut ended) = (Vec::new(), true);
    while let Some(frame) = tokio::time::timeout(SOON, body.frame()).await.expect("an answer within a minute") {
        match frame {
            Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => ended = false,
        }
        if !ended {
            break;
        }
    }
    Answer { status: head.status, headers: head.headers, body: String::from_utf8(bytes).unwrap(), ended }
}

/// A chat of one message.
pub(crate) fn chat(content: &str, max_tokens: u64) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens})
}

/// The same, streamed, with what usage the client asks for.
pub(crate) fn stream(content: &str, max_tokens: u64, include_usage: bool) -> Value {
    let mut body = chat(content, max_tokens);
    body["stream"] = json!(true);
    if include_usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

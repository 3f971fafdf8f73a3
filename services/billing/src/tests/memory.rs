//! Billing without Kafka: the real state of control behind the real routes, with nothing but the log itself in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use ledger::control::Write;
use ledger::ids::TenantId;
use ledger::time::{Micros, Period};
use runtime::{ManualClock, Metrics, Readiness};
use schemas::event::{BalanceUpdated, ModelUsage};
use serde_json::{Value, json};
use sql::{ClickHouse, ClickHouseSettings};
use stream::balances::BalancesView;
use stream::control::{ControlPublisher, ControlSnapshot, ControlView, WriteError, Written};
use stream::kafka::KafkaSettings;
use tower::ServiceExt as _;

use crate::app::{App, ControlLog, Parts, Pending, Shared};
use crate::auth::sha256;
use crate::server;

pub(super) const ADMIN: &str = "tg_admin";
/// 2026-11-24T12:00:00Z
pub(super) const NOW: i64 = 1_795_521_600_000_000;

/// A log of control that is applied as it is written.
struct Memory {
    view: ControlView,
    log: Arc<Log>,
}

pub(super) struct Log {
    publisher: ControlPublisher,
    view: ControlView,
    /// Writes that others make, one before each write here.
    before: Mutex<VecDeque<Write>>,
    away: Mutex<bool>,
}

impl Log {
    fn apply(&self, write: &Write) -> Result<Written, WriteError> {
        let mut next = ControlSnapshot::clone(&self.view.load());
        let applied = next.state.apply(write);
        let offset = next.offset;
        next.offset += 1;
        self.publisher.publish(next);
        Ok(Written { revision: applied?, offset })
    }

    /// Somebody else writes just before the next write.
    pub(super) fn first(&self, write: Write) {
        self.before.lock().unwrap().push_back(write);
    }

    /// The log does not answer any more.
    pub(super) fn goes_away(&self) {
        *self.away.lock().unwrap() = true;
    }
}

impl ControlLog for Memory {
    fn view(&self) -> &ControlView {
        &self.view
    }

    fn write<'a>(&'a self, write: Write, _: &'a str) -> Pending<'a, Result<Written, WriteError>> {
        Box::pin(async move {
            if *self.log.away.lock().unwrap() {
                return Err(WriteError::Unavailable("the broker at 10.0.0.7 is down".into()));
            }
            let other = self.log.before.lock().unwrap().pop_front();
            if let Some(other) = other {
                self.log.apply(&other).unwrap();
            }
            self.log.apply(&write)
        })
    }
}

/// Billing under test.
pub(super) struct Billing {
    pub(super) app: Shared,
    pub(super) router: Router,
    pub(super) log: Arc<Log>,
    pub(super) clock: ManualClock,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The code of a problem, whose shape is checked.
    pub(super) fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        let code = problem["code"].as_str().unwrap().to_owned();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["type"], format!("urn:tollgate:problem:{code}"));
        assert!(!problem["title"].as_str().unwrap().is_empty() && !problem["detail"].as_str().unwrap().is_empty());
        (self.status.as_u16(), code)
    }
}

impl Billing {
    /// Nothing is there yet; ClickHouse is away.
    pub(super) fn empty() -> Self {
        Self::with(
            ControlSnapshot::default(),
            true,
            ClickHouseSettings {
                // Nobody listens there.
                url: "http://127.0.0.1:9".to_owned(),
                ..ClickHouseSettings::default()
            },
        )
    }

    pub(super) fn with(first: ControlSnapshot, loaded: bool, clickhouse: ClickHouseSettings) -> Self {
        let (publisher, view) = ControlView::new(first, loaded);
        let log = Arc::new(Log { publisher, view: view.clone(), before: Mutex::default(), away: Mutex::new(false) });
        let (clock, metrics) = (ManualClock::at(NOW), Metrics::new());
        let app = App::new(Parts {
            control: Box::new(Memory { view, log: log.clone() }),
            balances: BalancesView::of([balance("acme", 700), balance("globex", 5)]),
            clickhouse: ClickHouse::new(&clickhouse),
            kafka: KafkaSettings::default(),
            clock: Arc::new(clock.clone()),
            metrics: metrics.clone(),
            admin_key_sha256: Some(sha256(ADMIN)),
            secure_cookie: false,
        })
        .unwrap();
        let router = server::router(app.clone(), metrics, Readiness::new());
        Self { app, router, log, clock }
    }

    /// Two tenants with a plan, a model, prices, and a key each.
    pub(super) async fn shop() -> (Self, String, String) {
        let billing = Self::empty();
        billing.put("models/llama", &json!({"version": "v1", "served_name": "llama"})).await;
        billing.put("replicas/r1", &json!({"model": "llama", "url": "http://127.0.0.1:8000"})).await;
        billing.put("plans/free", &json!({"name": "Free", "tokens_per_period": 1000})).await;
        let price = json!({"model": "llama", "class": "input", "currency": "USD", "from": "2026-01-01T00:00:00Z", "per_million": "0.5"});
        billing.put("prices/p1", &price).await;
        let mut keys = Vec::new();
        for tenant in ["acme", "globex"] {
            let body =
                json!({"name": format!("The {tenant} company"), "plan": "free", "currency": "USD", "time_zone": "UTC"});
            billing.put(&format!("tenants/{tenant}"), &body).await;
            let path = format!("tenants/{tenant}/keys");
            let made = billing.send(Method::POST, &path, Some(ADMIN), Some(&json!({"project": "default"}))).await;
            assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
            keys.push(made.json()["secret"].as_str().unwrap().to_owned());
        }
        let globex = keys.pop().unwrap();
        (billing, keys.pop().unwrap(), globex)
    }

    pub(super) async fn request(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(super) async fn send(&self, method: Method, path: &str, key: Option<&str>, body: Option<&Value>) -> Answer {
        self.send_with(method, path, key, body, &[]).await
    }

    pub(super) async fn send_with(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("/api/v1/{path}"));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.request(request.body(body).unwrap()).await
    }

    pub(super) async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(Method::GET, path, Some(key), None).await
    }

    /// PUTs as the admin, and must succeed.
    pub(super) async fn put(&self, path: &str, body: &Value) -> Answer {
        let answer = self.send(Method::PUT, path, Some(ADMIN), Some(body)).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
        answer
    }
}

fn balance(tenant: &str, input: i64) -> BalanceUpdated {
    let period = Period::month_of(Micros(NOW), chrono_tz::UTC).unwrap();
    let usage =
        ModelUsage { model: "llama".parse().unwrap(), input, cached_input: 1, output: 2, reasoning: 3, requests: 4 };
    BalanceUpdated {
        tenant_id: tenant.parse::<TenantId>().unwrap(),
        period_from: period.from.start(),
        period_to: period.to.start(),
        partition: 0,
        as_of: 77,
        control_offset: 5,
        published_at: Micros(NOW - 1_000_000),
        usage: vec![usage],
    }
}

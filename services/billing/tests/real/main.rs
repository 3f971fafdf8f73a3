//! Billing as a role, beside a real Kafka and a real ClickHouse: what is written is in force, and every figure is the rows'.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

mod corrections;
mod engine;
mod rows;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use billing::{RunSettings, Settings};
use embedded::kafka::{KafkaChild, KafkaSettings as Broker};
use runtime::{Shutdown, TaskError, Tasks};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sql::ClickHouse;
use stream::kafka::KafkaSettings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use engine::Engine;
use rows::Used;

const ADMIN: &str = "tg_admin";
/// The key of all rows.
const USED_KEY: &str = "00000000-0000-0000-0000-00000000c000";
const OTHER_KEY: &str = "00000000-0000-0000-0000-00000000c001";
const SOON: Duration = Duration::from_secs(300);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A role that runs.
struct Role {
    address: SocketAddr,
    tasks: Tasks,
}

impl Role {
    fn start(dir: &Path, kafka: &str, clickhouse: sql::ClickHouseSettings) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = Sha256::digest(ADMIN.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let settings = RunSettings {
            billing: Settings {
                listen: address,
                admin_key_sha256: Some(admin),
                dir: Some(dir.join("billing")),
                ..Settings::default()
            },
            kafka: KafkaSettings { brokers: kafka.to_owned(), single_node: true, partitions: 2, ..Default::default() },
            clickhouse,
        };
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("billing", SOON, billing::run(settings, tasks.shutdown().clone()));
        Self { address, tasks }
    }

    async fn stop(self) -> Result<(), TaskError> {
        self.tasks.shutdown().trigger();
        self.tasks.run().await
    }

    /// Status and body.
    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Option<(u16, String)> {
        let mut socket = tokio::net::TcpStream::connect(self.address).await.ok()?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        socket.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    async fn api(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let headers = format!("authorization: Bearer {ADMIN}\r\ncontent-type: application/json\r\n");
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.send(method, &format!("/api/v1/{path}"), &headers, &text).await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn put(&self, path: &str, body: Value) {
        let (status, answer) = self.api("PUT", path, &body).await;
        assert!((200..=201).contains(&status), "{path}: {status} {answer}");
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.api("GET", path, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The page of a tenant.
    async fn page(&self, tenant: &str) -> String {
        let cookie = format!("cookie: tollgate_key={ADMIN}\r\n");
        let (status, page) = self.send("GET", &format!("/console?tenant={tenant}"), &cookie, "").await.unwrap();
        assert_eq!(status, 200, "{page}");
        page
    }

    /// Waits until the role is ready, or is not any more.
    async fn until_ready(&self, ready: bool) {
        let began = Instant::now();
        loop {
            let answer = self.send("GET", "/readyz", "", "").await;
            if answer.as_ref().is_some_and(|(status, _)| (*status == 200) == ready) {
                return;
            }
            assert!(began.elapsed() < SOON, "never {ready}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn shop(role: &Role) {
    for model in ["llama", "unpriced"] {
        role.put(&format!("models/{model}"), json!({"version": "v1", "served_name": model})).await;
    }
    for (class, price) in [("input", "0.25"), ("cached_input", "0.025"), ("output", "1.5"), ("reasoning", "1.500001")] {
        let from = "2020-01-01T00:00:00Z";
        let price = json!({"model": "llama", "class": class, "currency": "USD", "from": from, "per_million": price});
        role.put(&format!("prices/{}", class.replace('_', "-")), price).await;
    }
    role.put("plans/free", json!({"name": "Free", "tokens_per_period": 1_000_000})).await;
    for tenant in ["acme", "globex"] {
        let body = json!({"name": tenant, "plan": "free", "currency": "USD", "time_zone": "Europe/Berlin"});
        role.put(&format!("tenants/{tenant}"), body).await;
    }
    for key in [USED_KEY, OTHER_KEY] {
        let hash: String = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        role.put(&format!("tenants/acme/keys/{key}"), json!({"project": "default", "sha256": hash})).await;
    }
}

/// The value that the page shows under an id.
fn shown<'a>(page: &'a str, id: &str) -> &'a str {
    let after = page.split_once(&format!("id=\"{id}\" data-value=\"")).unwrap_or_else(|| panic!("no {id} in {page}")).1;
    after.split_once('"').unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn every_figure_is_that_of_the_rows_and_the_page_shows_what_the_api_gives() {
    let folder = tempfile::tempdir().unwrap();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    assert!(tools.join("kafka/lib").is_dir(), "Kafka's jars are missing: run make setup");
    let broker = Broker::new(folder.path().join("kafka"), tools, free_port());
    let kafka = KafkaChild::start(&broker).await.unwrap();
    let mut engine = Engine::start(folder.path()).await;
    let role = Role::start(folder.path(), &kafka.brokers(), engine.settings());
    role.until_ready(true).await;
    shop(&role).await;

    let clickhouse = ClickHouse::new(&engine.settings());
    let used = [
        Used { tenant: "acme", model: "llama", tokens: [1_000_000, 40, 30_000, 7] },
        Used { tenant: "acme", model: "llama", tokens: [20_000, 0, 5_000, 0] },
        Used { tenant: "acme", model: "unpriced", tokens: [11, 0, 13, 0] },
        Used { tenant: "globex", model: "llama", tokens: [3, 0, 0, 0] },
    ];
    rows::insert(&clickhouse, &used).await;
    figures(&role).await;
    page(&role).await;
    corrections::late_usage_is_told_apart(&role, &clickhouse).await;
    corrections::corrections_are_lines_of_their_own(&role).await;
    let other = Role::start(&folder.path().join("other"), &kafka.brokers(), engine.settings());
    other.until_ready(true).await;
    corrections::many_at_once_take_no_more_than_was_used(&role, &other).await;
    other.stop().await.unwrap();
    figures(&role).await;

    // Without ClickHouse figures are refused, control goes on, and all is said.
    engine.kill().await;
    let (status, problem) = role.api("GET", "usage?tenant=acme", &Value::Null).await;
    assert_eq!((status, &problem["code"]), (503, &json!("clickhouse_unavailable")));
    role.put("models/another", json!({"version": "v1", "served_name": "x"})).await;
    assert!(role.page("acme").await.contains("ClickHouse does not answer"));
    role.until_ready(false).await;
    engine.start_again().await;
    role.until_ready(true).await;
    figures(&role).await;

    // Without Kafka a new process knows the tenants, and figures are there.
    role.stop().await.unwrap();
    kafka.kill().await;
    let role = Role::start(folder.path(), &broker.listen.to_string(), engine.settings());
    role.until_ready(true).await;
    figures(&role).await;
    let (status, problem) = role.api("PUT", "models/new", &json!({"version": "v1", "served_name": "x"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("kafka_unavailable")));
    role.stop().await.unwrap();
}

async fn figures(role: &Role) {
    let used = role.get(&format!("tenants/acme/keys/{USED_KEY}")).await["last_used_at"].clone();
    let quarter = used.as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp();
    let age = runtime::Clock::now(&runtime::SystemClock) / 1_000_000 - quarter;
    assert!(quarter % 900 == 0 && (0..=1_800).contains(&age), "{used}");
    let keys = role.get("tenants/acme/keys").await;
    let said: Vec<_> = keys["data"].as_array().unwrap().iter().map(|key| key["last_used_at"].clone()).collect();
    assert_eq!(said, [used, Value::Null], "one that was never used says so");
    let usage = role.get("usage?tenant=acme&group_by=model").await;
    let row = |model: &str, [input, cached_input, output, reasoning]: [u64; 4], requests: u64| {
        let tokens = input + cached_input + output + reasoning;
        json!({"model": model, "tokens": tokens, "input": input, "cached_input": cached_input, "output": output,
            "reasoning": reasoning, "requests": requests})
    };
    let expected = json!([row("llama", [1_020_000, 40, 35_000, 7], 2), row("unpriced", [11, 0, 13, 0], 1)]);
    assert_eq!(usage["data"], expected);
    assert_eq!(usage["time_zone"], "Europe/Berlin");
    let everybody = role.get("usage?group_by=tenant,class").await;
    let of = |tenant: &str, class: &str| {
        let rows = everybody["data"].as_array().unwrap();
        let row = rows.iter().find(|row| row["tenant"] == tenant && row["class"] == class);
        row.map_or(0, |row| row["tokens"].as_u64().unwrap())
    };
    assert_eq!(
        (of("acme", "input"), of("acme", "output"), of("globex", "input"), of("globex", "output")),
        (1_020_011, 35_013, 3, 0)
    );

    // 1,020,000 × 0.25 + 40 × 0.025 + 35,000 × 1.5 + 7 × 1.500001, by a million each.
    let exact = "0.307511500007";
    let costs = role.get("costs?tenant=acme&group_by=model,day").await;
    assert_eq!(costs["charged"], exact);
    let unrated: Vec<_> =
        costs["unrated"].as_array().unwrap().iter().map(|line| (&line["class"], &line["tokens"])).collect();
    assert_eq!(unrated, [(&json!("input"), &json!(11)), (&json!("output"), &json!(13))]);
    let bill = role.get("invoices/preview?tenant=acme").await;
    assert_eq!((&bill["exact"], &bill["total"]), (&json!(exact), &json!("0.31")));
    let lines: Vec<_> = bill["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["exact"].as_str().unwrap(), line["amount"].as_str().unwrap()))
        .collect();
    assert_eq!(lines, [("0.255", "0.26"), ("0.000001", "0.00"), ("0.0525", "0.05"), ("0.000010500007", "0.00")]);
    assert_eq!((&bill["rounding"], bill["unrated"].as_array().unwrap().len()), (&json!("0.00"), 2));

    let first = role.get("requests?tenant=acme&limit=2").await;
    assert_eq!(first["data"].as_array().unwrap().len(), 2);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = role.get(&format!("requests?tenant=acme&limit=2&cursor={cursor}")).await;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    let oldest = &rest["data"][0];
    assert_eq!(
        (&oldest["input"], &oldest["reasoning"], &oldest["end_reason"]),
        (&json!(1_000_000), &json!(7), &json!("complete"))
    );
}

async fn page(role: &Role) {
    let page = role.page("acme").await;
    let (usage, costs) = (role.get("usage?tenant=acme").await, role.get("costs?tenant=acme").await);
    let bill = role.get("invoices/preview?tenant=acme").await;
    for (id, field) in [
        ("input", "input"),
        ("cached-input", "cached_input"),
        ("output", "output"),
        ("reasoning", "reasoning"),
        ("usage-tokens", "tokens"),
    ] {
        assert_eq!(shown(&page, id), usage["data"][0][field].to_string(), "{id}");
    }
    for (id, value) in [("charged", &costs["charged"]), ("total", &bill["total"]), ("rounding", &bill["rounding"])] {
        assert_eq!(shown(&page, id), value.as_str().unwrap(), "{id}");
    }
    assert_eq!(page.matches("<tr class=\"line\">").count(), bill["lines"].as_array().unwrap().len());
    assert_eq!(page.matches("<tr class=\"unrated\">").count(), 2);
    assert_eq!(page.matches("<tr class=\"request\">").count(), 3);
    // Each of the four classes was used on one day.
    assert_eq!(page.matches("<rect").count(), 4, "{page}");
}

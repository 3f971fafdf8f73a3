//! The figures, each from its own place: raw rows, aggregates, balances, usage, costs, and what roles say of themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use rust_decimal::Decimal;
use serde_json::Value;

use crate::client::Client;
use crate::system::{ADMIN, Role, System};
use crate::wait::until;

/// How long the way from a spool to ClickHouse may take after faults.
const SETTLE: Duration = Duration::from_secs(300);

/// Token counts, disjoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Prompt tokens that were computed.
    pub input: u64,
    /// Prompt tokens from the prefix cache.
    pub cached_input: u64,
    /// Generated tokens without reasoning.
    pub output: u64,
    /// Generated tokens of reasoning.
    pub reasoning: u64,
    /// Requests that ended.
    pub requests: u64,
}

impl Counts {
    /// All that was generated.
    pub const fn generated(&self) -> u64 {
        self.output + self.reasoning
    }

    /// The whole prompt.
    pub const fn prompt(&self) -> u64 {
        self.input + self.cached_input
    }

    fn read(row: &Value) -> Self {
        let number = |name: &str| {
            let value = &row[name];
            value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {row}"))
        };
        Self {
            input: number("input"),
            cached_input: number("cached_input"),
            output: number("output"),
            reasoning: number("reasoning"),
            requests: number("requests"),
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.input += other.input;
        self.cached_input += other.cached_input;
        self.output += other.output;
        self.reasoning += other.reasoning;
        self.requests += other.requests;
    }
}

/// Counts by tenant and model.
pub type ByModel = BTreeMap<(String, String), Counts>;

const SUMS: &str = "sum(input) AS input, sum(cached_input) AS cached_input, sum(output) AS output, \
                    sum(reasoning) AS reasoning, sum(requests) AS requests";

/// Asks ClickHouse in the test's own words, not the product's.
pub async fn select(client: &Client, clickhouse: &str, sql: &str) -> Vec<Value> {
    select_in("tollgate", client, clickhouse, sql).await
}

/// The same in another database: `tollgate` is not there before it is made.
pub async fn select_in(database: &str, client: &Client, clickhouse: &str, sql: &str) -> Vec<Value> {
    let url = format!("{clickhouse}/?database={database}&output_format_json_quote_64bit_integers=0");
    let statement = Bytes::from(format!("{sql} FORMAT JSONEachRow"));
    let answer = client.send_bytes(Method::POST, &url, None, Some(statement)).await.expect("ClickHouse answers");
    assert!(answer.status.is_success(), "{sql}: {}", String::from_utf8_lossy(&answer.body));
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

/// Lets ClickHouse do something.
pub async fn execute(client: &Client, clickhouse: &str, sql: &'static str) {
    let url = format!("{clickhouse}/?database=tollgate");
    let answer = client.send_bytes(Method::POST, &url, None, Some(Bytes::from_static(sql.as_bytes()))).await;
    let answer = answer.expect("ClickHouse answers");
    assert!(answer.status.is_success(), "{sql}: {}", String::from_utf8_lossy(&answer.body));
}

fn by_model(rows: &[Value]) -> ByModel {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    rows.iter().map(|row| ((text(row, "tenant_id"), text(row, "model")), Counts::read(row))).collect()
}

impl System {
    async fn select(&self, sql: &str) -> Vec<Value> {
        select(&self.client, &self.clickhouse_url(), sql).await
    }

    /// The rows themselves, summed without any projection.
    pub async fn raw(&self) -> ByModel {
        let sql = format!(
            "SELECT tenant_id, model, {SUMS} FROM tokens WHERE kind = 'data' GROUP BY tenant_id, model \
             SETTINGS optimize_use_projections = 0"
        );
        by_model(&self.select(&sql).await)
    }

    /// The aggregates alone: ClickHouse refuses if it would have to read rows.
    pub async fn aggregates(&self) -> ByModel {
        let sql = format!(
            "SELECT tenant_id, model, {SUMS} FROM tokens WHERE kind = 'data' GROUP BY tenant_id, model \
             SETTINGS optimize_use_projections = 1, force_optimize_projection = 1"
        );
        by_model(&self.select(&sql).await)
    }

    /// What each request was billed, by its id.
    pub async fn billed(&self) -> BTreeMap<String, Counts> {
        let sql = format!(
            "SELECT toString(request_id) AS id, {SUMS} FROM tokens WHERE kind = 'data' GROUP BY id \
             SETTINGS optimize_use_projections = 0"
        );
        self.select(&sql).await.iter().map(|row| (row["id"].as_str().unwrap().to_owned(), Counts::read(row))).collect()
    }

    /// How each request ended, by its id: every row, so that one which is there twice is seen.
    pub async fn endings(&self) -> BTreeMap<String, Vec<String>> {
        let sql = "SELECT toString(request_id) AS id, groupArray(toString(end_reason)) AS reasons FROM requests \
                   WHERE kind = 'data' GROUP BY id";
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reasons = |row: &Value| row["reasons"].as_array().unwrap().iter().map(text).collect();
        self.select(sql).await.iter().map(|row| (text(&row["id"]), reasons(row))).collect()
    }

    /// Offsets that the chunks cover, and the sum of their outcomes, over both tables: by E3 the same.
    pub async fn outcomes(&self) -> (i64, i64) {
        let sum = async |table: &str| {
            let sql = format!(
                "SELECT sum(chunk_end - chunk_first) AS offsets, sum(folded + duplicates + dead + marks) AS outcomes, \
                 sum(dead) AS dead_letters FROM {table} WHERE kind = 'chunk'"
            );
            let row = self.select(&sql).await.remove(0);
            assert_eq!(row["dead_letters"].as_i64(), Some(0), "no record of ours is a dead letter");
            (row["offsets"].as_i64().unwrap(), row["outcomes"].as_i64().unwrap())
        };
        let (tokens, requests) = (sum("tokens").await, sum("requests").await);
        (tokens.0 + requests.0, tokens.1 + requests.1)
    }

    /// The API, as the admin.
    pub async fn api(&self, path: &str) -> Value {
        let url = self.url(Role::Billing, &format!("/api/v1/{path}"));
        self.client.get(&url, Some(ADMIN)).await.expect("billing answers").ok()
    }

    /// Usage by model, as the API gives it.
    pub async fn usage(&self, tenants: &[&str]) -> ByModel {
        let mut usage = ByModel::new();
        for tenant in tenants {
            let answer = self.api(&format!("usage?tenant={tenant}&{}&group_by=model", around_now())).await;
            for row in answer["data"].as_array().expect("rows") {
                usage.insert(((*tenant).to_owned(), row["model"].as_str().unwrap().to_owned()), Counts::read(row));
            }
        }
        usage
    }

    /// Balances by model, as the API gives them.
    pub async fn balances(&self, tenants: &[&str]) -> ByModel {
        let mut balances = ByModel::new();
        for tenant in tenants {
            let answer = self.api(&format!("balances/{tenant}")).await;
            for row in answer["models"].as_array().expect("models") {
                balances.insert(((*tenant).to_owned(), row["model"].as_str().unwrap().to_owned()), Counts::read(row));
            }
        }
        balances
    }

    /// What a role says of itself: a metric, summed over its labels.
    pub async fn metric(&self, role: Role, name: &str) -> f64 {
        let text = self.client.get(&self.url(role, "/metrics"), None).await.expect("metrics").body;
        let text = String::from_utf8_lossy(&text).into_owned();
        let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        text.lines().filter(of_it).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Returns when ClickHouse holds the end of each of these requests in both of its tables.
    pub async fn settled(&self, requests: &[String]) {
        until("every request to be in ClickHouse", SETTLE, async || {
            // ClickHouse may be about to start again, and its tables about to be made.
            let url = format!("{}/?database=tollgate", self.clickhouse_url());
            let sql = "SELECT toString(request_id) FROM requests WHERE kind = 'data' AND request_id IN \
                       (SELECT request_id FROM tokens WHERE kind = 'data' AND final) FORMAT TSV";
            let answer = self.client.send_bytes(Method::POST, &url, None, Some(Bytes::from(sql))).await;
            let answer = answer.map_err(|error| format!("{error:?}"))?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            if !answer.status.is_success() {
                return Err(text);
            }
            let there: std::collections::BTreeSet<&str> = text.lines().collect();
            let missing: Vec<_> = requests.iter().filter(|id| !there.contains(id.as_str())).collect();
            let some = &missing[..missing.len().min(5)];
            if missing.is_empty() { Ok(()) } else { Err(format!("{} are missing, as {some:?}", missing.len())) }
        })
        .await;
    }
}

/// `from` and `to` around this moment: two days each way, whole hours.
pub fn around_now() -> String {
    let now = chrono::DateTime::from_timestamp_micros(runtime::Clock::now(&runtime::SystemClock)).expect("a time");
    let hour = |moment: chrono::DateTime<chrono::Utc>| moment.format("%Y-%m-%dT%H:00:00Z").to_string();
    format!("from={}&to={}", hour(now - chrono::TimeDelta::days(2)), hour(now + chrono::TimeDelta::days(2)))
}

/// Tokens × price per million, added up by integers alone: units of 10⁻¹² of the currency. `prices` are in units of 10⁻⁶
/// per million tokens: input, cached input, output, reasoning.
pub fn cost(usage: &ByModel, prices: &BTreeMap<&str, [u64; 4]>) -> Decimal {
    let units: i128 = usage
        .iter()
        .map(|((_, model), counts)| {
            let price = prices[model.as_str()].map(i128::from);
            let counts = [counts.input, counts.cached_input, counts.output, counts.reasoning].map(i128::from);
            price.iter().zip(counts).map(|(price, count)| price * count).sum::<i128>()
        })
        .sum();
    Decimal::from_i128_with_scale(units, 12).normalize()
}

//! What came late, and what was corrected: in every figure, and told apart in each.

use chrono::{DateTime, Datelike as _, Months, TimeZone as _, Utc};
use ledger::time::Micros;
use serde_json::{Value, json};
use sql::ClickHouse;

use crate::Role;
use crate::rows::{Used, insert_late};

/// Noon of the tenth of the month that lies so many months back.
fn tenth(months_ago: u32) -> DateTime<Utc> {
    let now = DateTime::from_timestamp_micros(runtime::Clock::now(&runtime::SystemClock)).unwrap();
    let that = now.checked_sub_months(Months::new(months_ago)).unwrap();
    Utc.with_ymd_and_hms(that.year(), that.month(), 10, 12, 0, 0).unwrap()
}

fn month(time: DateTime<Utc>) -> String {
    time.format("%Y-%m").to_string()
}

fn sum(rows: &Value, field: &str) -> i64 {
    rows.as_array().unwrap().iter().map(|row| row[field].as_i64().unwrap()).sum()
}

fn lines<'a>(bill: &'a Value, field: &str) -> Vec<(i64, &'a str, bool)> {
    let line = |line: &'a Value| {
        (line["tokens"].as_i64().unwrap(), line["exact"].as_str().unwrap(), line["late"].as_bool().unwrap())
    };
    bill[field].as_array().unwrap().iter().map(line).collect()
}

/// Of a month long past, and here only now: in the bill of its month, flagged, and shown beside the next one's.
pub(crate) async fn late_usage_is_told_apart(role: &Role, clickhouse: &ClickHouse) {
    let used = Used { tenant: "acme", model: "llama", tokens: [4_000_000, 0, 0, 0] };
    insert_late(clickhouse, &used, Micros(tenth(3).timestamp_micros())).await;
    let day = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let time = format!("from={}&to={}", day(tenth(4)), day(tenth(2)));
    let usage = role.get(&format!("usage?tenant=acme&{time}&group_by=late,model")).await;
    let row = &usage["data"][0];
    assert_eq!((&row["late"], &row["tokens"], &row["model"]), (&json!(true), &json!(4_000_000), &json!("llama")));
    let now = role.get("usage?tenant=acme&group_by=late").await;
    assert_eq!(now["data"].as_array().unwrap().len(), 1, "{now}");
    assert_eq!(now["data"][0]["late"], json!(false));
    let costs = role.get(&format!("costs?tenant=acme&{time}&group_by=late")).await;
    assert_eq!((&costs["data"][0]["late"], &costs["charged"]), (&json!(true), &json!("1")));
    let bill = role.get(&format!("invoices/preview?tenant=acme&period={}", month(tenth(3)))).await;
    assert_eq!(lines(&bill, "lines"), [(4_000_000, "1", true)]);
    assert_eq!((&bill["total"], &bill["late_of_period_before"]), (&json!("1.00"), &Value::Null));
    let next = role.get(&format!("invoices/preview?tenant=acme&period={}", month(tenth(2)))).await;
    assert_eq!((lines(&next, "lines"), &next["total"]), (vec![], &json!("0.00")));
    let late = &next["late_of_period_before"];
    assert_eq!((&late["period"]["name"], &late["total"]), (&json!(month(tenth(3))), &json!("1.00")));
    assert_eq!(lines(late, "lines"), [(4_000_000, "1", true)]);
}

/// What was metered stays as it is; each correction is a line with its reason, and the sum is what is billed.
pub(crate) async fn corrections_are_lines_of_their_own(role: &Role) {
    let at = tenth(3).to_rfc3339();
    let body = |deltas: Value, reason: &str| json!({"tenant": "acme", "project": "default", "model": "llama", "at": at, "deltas": deltas, "reason": reason});
    let (first, second, third) = (
        "adjustments/8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a01",
        "adjustments/8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a02",
        "adjustments/8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a03",
    );
    let (status, problem) = role.api("PUT", first, &body(json!({"input": -4_000_001}), "too much")).await;
    assert_eq!((status, &problem["code"]), (422, &json!("more_than_used")), "{problem}");
    role.put(first, body(json!({"input": -3_000_000, "requests": -1}), "counted twice")).await;
    role.put(first, body(json!({"input": -3_000_000, "requests": -1}), "counted twice")).await;
    let (status, _) = role.api("PUT", second, &body(json!({"input": -1_000_001}), "too much")).await;
    assert_eq!(status, 422, "what was corrected before is not there any more");
    let (status, _) = role.api("PUT", second, &body(json!({"requests": -1}), "too much")).await;
    assert_eq!(status, 422);
    let mut of_key = body(json!({"input": -1}), "of a key that used nothing");
    of_key["key"] = json!(crate::OTHER_KEY);
    let (status, _) = role.api("PUT", second, &of_key).await;
    assert_eq!(status, 422);
    role.put(second, body(json!({"output": 2_000_000}), "lost by a foreign gateway")).await;

    let month = month(tenth(3));
    let day = |days: i64| (tenth(3) + chrono::TimeDelta::days(days)).format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let time = format!("from={}&to={}", day(-1), day(1));
    let usage = role.get(&format!("usage?tenant=acme&{time}&group_by=model")).await;
    let rows = &usage["data"];
    assert_eq!((sum(rows, "input"), sum(rows, "output"), sum(rows, "requests")), (1_000_000, 2_000_000, 0));
    assert_eq!((&rows[0]["input"], &rows[0]["adjustment"]), (&json!(4_000_000), &Value::Null), "what was metered");
    assert_eq!(rows[1]["adjustment"]["reason"], "counted twice");
    let by_class = role.get(&format!("usage?tenant=acme&{time}&group_by=class,day")).await;
    assert_eq!(sum(&by_class["data"], "tokens"), 3_000_000);
    let all = role.get(&format!("usage?{time}")).await;
    assert_eq!(sum(&all["data"], "tokens"), 3_000_000, "of all tenants too");

    // 4 × 0.25 − 3 × 0.25 + 2 × 1.5
    let costs = role.get(&format!("costs?tenant=acme&{time}")).await;
    assert_eq!((&costs["charged"], &costs["data"][1]["charged"]), (&json!("3.25"), &json!("-0.75")));
    let bill = role.get(&format!("invoices/preview?tenant=acme&period={month}")).await;
    assert_eq!(lines(&bill, "adjustments"), [(-3_000_000, "-0.75", true), (2_000_000, "3", true)]);
    assert_eq!((&bill["exact"], &bill["total"], &bill["rounding"]), (&json!("3.25"), &json!("3.25"), &json!("0.00")));
    assert_eq!(bill["adjustments"][0]["reason"], "counted twice");

    role.put(third, body(json!({"input": 3_000_000, "requests": 1, "output": -2_000_000}), "reverses both")).await;
    let bill = role.get(&format!("invoices/preview?tenant=acme&period={month}")).await;
    assert_eq!((&bill["total"], bill["adjustments"].as_array().unwrap().len()), (&json!("1.00"), 4));
    let trail = role.get("adjustments?tenant=acme").await;
    assert_eq!(trail["data"].as_array().unwrap().len(), 3);
    assert_eq!(role.get("adjustments?tenant=globex").await["data"], json!([]));
}

/// Four at once, at two processes, of which two take all that was used: whoever comes first in the log.
pub(crate) async fn many_at_once_take_no_more_than_was_used(role: &Role, other: &Role) {
    let body = json!({"tenant": "acme", "project": "default", "model": "llama", "at": tenth(3).to_rfc3339(),
        "deltas": {"input": -2_000_000}, "reason": "at once"});
    let made = async |role: &Role, number: u32| {
        role.api("PUT", &format!("adjustments/8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a1{number}"), &body).await
    };
    let (a, b, c, d) = tokio::join!(made(role, 1), made(other, 2), made(role, 3), made(other, 4));
    let answers = [a, b, c, d];
    let made = answers.iter().filter(|(status, _)| *status == 201).count();
    let refused = answers.iter().filter(|(_, answer)| answer["code"] == "more_than_used").count();
    assert_eq!((made, refused), (2, 2), "{answers:?}");
}

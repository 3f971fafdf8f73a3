//! Documents of control: idempotent, by revision, refused in plain words.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use ledger::control::{Document, Kind, Model, Write};
use serde_json::{Value, json};

use super::memory::{ADMIN, Answer, Billing};

async fn put_with(billing: &Billing, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
    billing.send_with(Method::PUT, path, Some(ADMIN), Some(body), headers).await
}

fn model(version: &str) -> Value {
    json!({"version": version, "served_name": "llama"})
}

#[tokio::test]
async fn a_put_is_idempotent_and_counts_revisions() {
    let billing = Billing::empty();
    let first = billing.put("models/llama", &model("v1")).await;
    assert_eq!((first.status, first.header("etag")), (StatusCode::CREATED, Some("\"1\"")));
    assert_eq!(first.json(), json!({"id": "llama", "revision": 1, "version": "v1", "served_name": "llama"}));
    let again = billing.put("models/llama", &model("v1")).await;
    assert_eq!((again.status, again.header("etag")), (StatusCode::OK, Some("\"1\"")), "nothing was to be written");
    let other = billing.put("models/llama", &model("v2")).await;
    assert_eq!(other.header("etag"), Some("\"2\""));
    let read = billing.get("models/llama", ADMIN).await;
    assert_eq!((read.header("etag"), &read.json()["version"]), (Some("\"2\""), &json!("v2")));
}

#[tokio::test]
async fn a_condition_holds_or_nothing_is_written() {
    let billing = Billing::empty();
    let refused = put_with(&billing, "models/llama", &model("v1"), &[("if-match", "\"1\"")]).await;
    assert_eq!(refused.problem(), (412, "precondition_failed".into()));
    let made = put_with(&billing, "models/llama", &model("v1"), &[("if-none-match", "*")]).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let twice = put_with(&billing, "models/llama", &model("v1"), &[("if-none-match", "*")]).await;
    assert_eq!(twice.problem(), (412, "precondition_failed".into()));
    let seen = put_with(&billing, "models/llama", &model("v2"), &[("if-match", "\"1\"")]).await;
    assert_eq!(seen.header("etag"), Some("\"2\""));
    let stale = put_with(&billing, "models/llama", &model("v3"), &[("if-match", "\"1\"")]).await;
    assert_eq!(stale.problem(), (412, "precondition_failed".into()));
    let gone = billing.send_with(Method::DELETE, "models/llama", Some(ADMIN), None, &[("if-match", "\"1\"")]).await;
    assert_eq!(gone.problem(), (412, "precondition_failed".into()));
    assert_eq!(billing.get("models/llama", ADMIN).await.json()["version"], "v2");
    let wrong = put_with(&billing, "models/llama", &model("v3"), &[("if-match", "2")]).await;
    assert_eq!(wrong.problem(), (400, "invalid_query".into()));
}

#[test]
fn what_is_left_out_is_not_written_to_the_log_and_old_documents_are_read() {
    for old in [
        r#"{"kind":"replica","model":"llama","url":"http://a:1"}"#,
        r#"{"kind":"model","version":"v1","served_name":"x"}"#,
        r#"{"kind":"tenant","name":"T","plan":"p","currency":"USD","time_zone":"UTC"}"#,
        r#"{"kind":"api_key","tenant":"t","project":"p","sha256":"00","expires_at":null,"revoked":false}"#,
        r#"{"kind":"plan","name":"P","requests_per_minute":1,"tokens_per_minute":null,"tokens_per_period":null,"models":null,"when_spool_full":"refuse"}"#,
    ] {
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Document>(old).unwrap()).unwrap(), old);
    }
}

fn by_another(version: &str, expected_revision: u64) -> Write {
    let model = Model::new(version.parse().unwrap(), "llama");
    Write { kind: Kind::Model, id: "llama".into(), expected_revision, document: Some(Document::Model(model)) }
}

#[tokio::test]
async fn a_lost_race_is_tried_again_unless_a_revision_was_named() {
    let billing = Billing::empty();
    billing.put("models/llama", &model("v1")).await;
    billing.log.first(by_another("v2", 1));
    let over = billing.put("models/llama", &model("v3")).await;
    assert_eq!(over.header("etag"), Some("\"3\""), "over the other one's");
    billing.log.first(by_another("v4", 3));
    let lost = put_with(&billing, "models/llama", &model("v5"), &[("if-match", "\"3\"")]).await;
    assert_eq!(lost.problem(), (412, "precondition_failed".into()));
    assert_eq!(billing.get("models/llama", ADMIN).await.json()["version"], "v4");
}

#[tokio::test]
async fn a_write_without_a_condition_comes_through_whoever_else_writes() {
    let billing = Billing::empty();
    for revision in 0..30 {
        billing.log.first(by_another(&format!("v{revision}"), revision));
    }
    let over = billing.put("models/llama", &model("mine")).await;
    assert_eq!((over.status, over.header("etag")), (StatusCode::OK, Some("\"31\"")));
}

#[tokio::test]
async fn a_refused_body_says_where_it_is_wrong() {
    let (billing, ..) = Billing::shop().await;
    for (path, body, said) in [
        ("plans/p", json!({"name": "P", "tokens_per_minute": -1}), "`tokens_per_minute`: "),
        ("plans/p", json!({"name": "P", "tokens_per_minute": 1.5}), "a whole number"),
        (
            "tenants/t",
            json!({"name": "T", "plan": "free", "currency": "EUR", "time_zone": "Mars/Base"}),
            "`time_zone`: ",
        ),
        ("plans/p", json!({"name": "P", "models": ["llama", "a b"]}), "`models[1]`: "),
    ] {
        let answer = billing.send(Method::PUT, path, Some(ADMIN), Some(&body)).await;
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains(said) && !detail.contains("u64"), "{detail}");
    }
}

#[tokio::test]
async fn what_is_named_is_there_and_stays() {
    let (billing, ..) = Billing::shop().await;
    let tenant = json!({"name": "New", "plan": "nowhere", "currency": "USD", "time_zone": "UTC"});
    let missing = billing.send(Method::PUT, "tenants/new", Some(ADMIN), Some(&tenant)).await;
    assert_eq!(missing.problem(), (422, "missing_reference".into()));
    let in_use = billing.send(Method::DELETE, "plans/free", Some(ADMIN), None).await;
    assert_eq!(in_use.problem(), (409, "in_use".into()));
    let price = json!({"model": "llama", "class": "input", "currency": "USD", "from": "2026-01-01T00:00:00Z", "per_million": "9"});
    let twice = billing.send(Method::PUT, "prices/p2", Some(ADMIN), Some(&price)).await;
    assert_eq!(twice.problem(), (409, "already_there".into()));
    assert_eq!(billing.send(Method::DELETE, "replicas/r1", Some(ADMIN), None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(
        billing.send(Method::DELETE, "replicas/r1", Some(ADMIN), None).await.problem(),
        (404, "not_found".into())
    );
    assert_eq!(billing.get("replicas/r1", ADMIN).await.problem(), (404, "not_found".into()));
}

#[tokio::test]
async fn bad_bodies_are_refused_in_plain_words() {
    let (billing, ..) = Billing::shop().await;
    let price = |from: &str, per_million: Value| json!({"model": "llama", "class": "output", "currency": "USD", "from": from, "per_million": per_million});
    for (path, body, code) in [
        ("models/llama", json!({"version": "v1"}), "invalid_body"),
        ("models/llama", json!({"version": "v1", "served_name": "x", "colour": 1}), "invalid_body"),
        ("models/llama", json!({"version": "a/b", "served_name": "x"}), "invalid_body"),
        ("models/llama", json!({"version": "v1", "served_name": ""}), "invalid_value"),
        ("models/a%2Fb", model("v1"), "invalid_id"),
        ("models/%20", model("v1"), "invalid_id"),
        ("plans/p", json!({"name": "P", "tokens_per_minute": -1}), "invalid_body"),
        ("plans/p", json!({"name": "P", "when_spool_full": "perhaps"}), "invalid_body"),
        ("tenants/t", json!({"name": "T", "plan": "free", "currency": "XXX", "time_zone": "UTC"}), "invalid_body"),
        (
            "tenants/t",
            json!({"name": "T", "plan": "free", "currency": "USD", "time_zone": "Mars/Base"}),
            "invalid_body",
        ),
        ("prices/p", price("2026-01-01T00:00:00Z", json!(0.5)), "invalid_body"),
        ("prices/p", price("2026-01-01T00:00:01Z", json!("0.5")), "invalid_value"),
        ("prices/p", price("2026-01-01T00:00:00Z", json!("-1")), "invalid_value"),
        ("prices/p", price("2026-01-01T00:00:00Z", json!("0.0000001")), "invalid_value"),
        ("prices/p", price("2026-01-01", json!("1")), "invalid_body"),
        ("prices/p", price("+262142-01-01T00:00:00Z", json!("1")), "invalid_body"),
        (
            "prices/p",
            price("2026-01-01T00:00:00Z", json!("1.00000000000000000000000000000000000000001")),
            "invalid_body",
        ),
        ("prices/p", price("2026-01-01T00:00:00Z", json!("1e3")), "invalid_body"),
        ("replicas/r", json!({"model": "llama", "url": "127.0.0.1:8000"}), "invalid_value"),
    ] {
        let answer = billing.send(Method::PUT, path, Some(ADMIN), Some(&body)).await;
        assert_eq!(answer.problem().1, code, "{path} {body}: {answer:?}");
    }
}

#[tokio::test]
async fn a_body_is_json_of_a_bounded_size() {
    let billing = Billing::empty();
    let put = |content_type: &'static str, body: Body| {
        Request::put("/api/v1/models/llama")
            .header("authorization", format!("Bearer {ADMIN}"))
            .header("content-type", content_type)
            .body(body)
            .unwrap()
    };
    let text = billing.request(put("text/plain", Body::from(model("v1").to_string()))).await;
    assert_eq!(text.problem(), (415, "unsupported_media_type".into()));
    let large = billing.request(put("application/json", Body::from(vec![b' '; 1 << 20]))).await;
    assert_eq!(large.problem(), (413, "body_too_large".into()));
    for broken in ["", "{", "[]", "\u{0}", "{\"version\": \"v1\", \"version\": \"v2\", \"served_name\": \"x\"}"] {
        let answer = billing.request(put("application/json; charset=utf-8", Body::from(broken))).await;
        assert_eq!(answer.problem(), (400, "invalid_body".into()), "{broken:?}");
    }
}

#[tokio::test]
async fn lists_are_paged_without_gap_or_repeat() {
    let billing = Billing::empty();
    for n in 0..7 {
        billing.put(&format!("models/m{n}"), &model("v1")).await;
    }
    billing.put("plans/aside", &json!({"name": "Another kind"})).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = billing.get(&format!("models?limit=3{cursor}"), ADMIN).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..7).map(|n| format!("m{n}")).collect::<Vec<_>>());
    for wrong in ["limit=0", "limit=1001", "limit=x", "colour=red", "limit=1&limit=2"] {
        assert_eq!(
            billing.get(&format!("models?{wrong}"), ADMIN).await.problem(),
            (400, "invalid_query".into()),
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn without_kafka_a_write_is_a_503_that_names_no_broker() {
    let (billing, ..) = Billing::shop().await;
    billing.log.goes_away();
    let answer = billing.send(Method::PUT, "models/new", Some(ADMIN), Some(&model("v1"))).await;
    assert_eq!(answer.problem(), (503, "kafka_unavailable".into()));
    assert!(!answer.text.contains("10.0.0.7"), "{answer:?}");
    assert_eq!(billing.get("models/llama", ADMIN).await.status, StatusCode::OK, "what is known is still read");
}

#[tokio::test]
async fn questions_for_figures_are_checked_before_anything_is_asked() {
    let (billing, ..) = Billing::shop().await;
    let span = |from: &str, to: &str| format!("usage?tenant=acme&from={from}&to={to}");
    for (path, code) in [
        ("usage?tenant=acme&colour=red".to_owned(), "invalid_query"),
        ("usage?tenant=a/b".to_owned(), "invalid_query"),
        ("usage?tenant=acme&group_by=colour".to_owned(), "invalid_query"),
        ("usage?tenant=acme&group_by=day,month".to_owned(), "invalid_query"),
        ("costs".to_owned(), "invalid_query"),
        ("requests".to_owned(), "invalid_query"),
        ("requests?tenant=acme&limit=501".to_owned(), "invalid_query"),
        ("requests?tenant=acme&cursor=abc".to_owned(), "invalid_query"),
        ("invoices/preview?tenant=acme&period=2026-13".to_owned(), "invalid_range"),
        (span("2026-11-02T00:00:00Z", "2026-11-01T00:00:00Z"), "invalid_range"),
        (span("2026-11-02T00:00:01Z", "2026-11-03T00:00:00Z"), "invalid_range"),
        (span("2010-11-02T00:00:00Z", "2026-11-03T00:00:00Z"), "invalid_range"),
        (span("today", "tomorrow"), "invalid_range"),
        (span("2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z") + "&group_by=hour", "invalid_range"),
    ] {
        assert_eq!(billing.get(&path, ADMIN).await.problem(), (400, code.into()), "{path}");
    }
    for path in [
        "usage?tenant=nobody",
        "costs?tenant=nobody",
        "requests?tenant=nobody",
        "invoices/preview?tenant=nobody",
        "balances/nobody",
    ] {
        assert_eq!(billing.get(path, ADMIN).await.problem(), (404, "not_found".into()), "{path}");
    }
    let away = billing.get("usage?tenant=acme", ADMIN).await;
    assert_eq!(away.problem(), (503, "clickhouse_unavailable".into()));
    assert!(!away.text.contains("127.0.0.1"), "{away:?}");
}

#[tokio::test]
async fn a_balance_says_what_is_left_and_as_of_when() {
    let (billing, ..) = Billing::shop().await;
    let balance = billing.get("balances/acme", ADMIN).await.json();
    assert_eq!(
        balance["models"],
        json!([{"model": "llama", "tokens": 706, "input": 700, "cached_input": 1, "output": 2, "reasoning": 3, "requests": 4}])
    );
    assert_eq!((&balance["limit"], &balance["left"]), (&json!(1000), &json!(294)));
    assert_eq!(
        balance["as_of"],
        json!({"at": "2026-11-24T11:59:59Z", "partition": 0, "offset": 77, "control_offset": 5})
    );
    assert_eq!(balance["period"]["name"], "2026-11");
    billing.put("plans/free", &json!({"name": "Less", "tokens_per_period": 10})).await;
    assert_eq!(billing.get("balances/acme", ADMIN).await.json()["left"], 0, "more was used than there is now");
    billing.clock.set(super::memory::NOW + 40 * 86_400_000_000);
    let next = billing.get("balances/acme", ADMIN).await.json();
    assert_eq!((&next["tokens"], &next["as_of"]), (&json!(0), &Value::Null), "a new period begins with nothing");
}

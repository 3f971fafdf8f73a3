//! Corrections of usage: made once, by the admin, listed for ever, never changed; what cannot be is refused in plain words.

use axum::http::{Method, StatusCode};
use ledger::control::{Corrected, Deltas, Document, Kind, UsageAdjustment, Write};
use ledger::ids::{ApiKeyId, ModelVersion};
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenCounts;
use serde_json::{Value, json};
use sql::RatingLine;
use uuid::Uuid;

use super::memory::{ADMIN, Answer, Billing, NOW};
use crate::api::adjustments::write;

const ID: &str = "8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a69";
const OTHER: &str = "8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a70";

fn more() -> Value {
    json!({"tenant": "acme", "project": "default", "model": "llama", "at": "2026-11-24T11:07:30Z", "deltas": {"input": 5},
        "reason": "lost by a foreign gateway, ticket 7"})
}

fn with(name: &str, value: Value) -> Value {
    let mut body = more();
    body[name] = value;
    body
}

async fn put(billing: &Billing, id: &str, key: &str, body: &Value) -> Answer {
    billing.send(Method::PUT, &format!("adjustments/{id}"), Some(key), Some(body)).await
}

#[tokio::test]
async fn a_correction_is_made_once_and_says_who_when_and_why() {
    let (billing, ..) = Billing::shop().await;
    let made = put(&billing, ID, ADMIN, &more()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let shown = made.json();
    assert_eq!(shown["slot"], "2026-11-24T11:00:00Z", "the quarter of an hour that holds the moment");
    assert_eq!((&shown["by"], &shown["made_at"]), (&json!("admin"), &json!("2026-11-24T12:00:00Z")));
    billing.clock.advance(60_000_000);
    let again = put(&billing, &ID.to_uppercase(), ADMIN, &more()).await;
    assert_eq!(
        (again.status, again.json()),
        (StatusCode::OK, shown.clone()),
        "asked again, answered as the first time"
    );
    let other = put(&billing, ID, ADMIN, &with("deltas", json!({"input": 6}))).await;
    assert_eq!(other.problem(), (409, "final".into()));
    assert_eq!(billing.get(&format!("adjustments/{ID}"), ADMIN).await.json(), shown);
    let gone = billing.send(Method::DELETE, &format!("adjustments/{ID}"), Some(ADMIN), None).await;
    assert_eq!(gone.problem().0, 405);
    assert_eq!(billing.get(&format!("adjustments/{OTHER}"), ADMIN).await.problem(), (404, "not_found".into()));
}

#[tokio::test]
async fn the_trail_is_listed_by_tenant_and_page() {
    let (billing, acme, _) = Billing::shop().await;
    for (id, tenant) in [(ID, "acme"), (OTHER, "globex")] {
        assert_eq!(put(&billing, id, ADMIN, &with("tenant", json!(tenant))).await.status, StatusCode::CREATED);
    }
    let ids = |answer: &Answer| -> Vec<String> {
        let page = answer.json();
        page["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&billing.get("adjustments", ADMIN).await), [ID, OTHER]);
    assert_eq!(ids(&billing.get("adjustments?tenant=globex", ADMIN).await), [OTHER]);
    let first = billing.get("adjustments?limit=1", ADMIN).await;
    let cursor = first.json()["next_cursor"].as_str().unwrap().to_owned();
    let rest = billing.get(&format!("adjustments?limit=1&cursor={cursor}"), ADMIN).await;
    assert_eq!(
        (ids(&first), ids(&rest), &rest.json()["next_cursor"]),
        (vec![ID.into()], vec![OTHER.into()], &Value::Null)
    );
    assert_eq!(billing.get("adjustments", &acme).await.problem(), (403, "forbidden".into()));
    assert_eq!(put(&billing, OTHER, &acme, &more()).await.problem(), (403, "forbidden".into()));
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_nothing_is_kept() {
    let (billing, ..) = Billing::shop().await;
    for (body, status, code) in [
        (with("tenant", json!("nobody")), 422, "missing_reference"),
        (with("model", json!("unknown")), 422, "missing_reference"),
        (with("deltas", json!({})), 422, "invalid_value"),
        (with("deltas", json!({"input": 1i64 << 41})), 422, "invalid_value"),
        (with("reason", json!(" ")), 422, "invalid_value"),
        (with("endpoint", json!("")), 422, "invalid_value"),
        (with("at", json!("yesterday")), 400, "invalid_body"),
        (with("deltas", json!({"audio": 1})), 400, "invalid_body"),
        (with("more", json!(1)), 400, "invalid_body"),
        // ClickHouse is away: whether so much was used cannot be known.
        (with("deltas", json!({"input": -1})), 503, "clickhouse_unavailable"),
    ] {
        assert_eq!(put(&billing, ID, ADMIN, &body).await.problem(), (status, code.into()), "{body}");
    }
    assert_eq!(put(&billing, "no-uuid", ADMIN, &more()).await.problem(), (400, "invalid_id".into()));
    assert_eq!(billing.get("adjustments", ADMIN).await.json()["data"], json!([]));
}

/// What was used of a version with a key: so many input tokens, by one request.
fn used(version: &str, key: u128, input: u64) -> RatingLine {
    RatingLine {
        tenant: "acme".parse().unwrap(),
        project: "default".parse().unwrap(),
        api_key: ApiKeyId(Uuid::from_u128(key)),
        model: "llama".parse().unwrap(),
        version: version.parse().unwrap(),
        endpoint: "chat/completions".into(),
        slot: Slot::of(Micros(NOW)),
        log_hour: None,
        tokens: TokenCounts { input, ..TokenCounts::default() },
        requests: 1,
    }
}

/// A correction of all of it, or of the part that is named.
fn adjustment(version: Option<&str>, key: Option<u128>, input: i64) -> UsageAdjustment {
    let of = Corrected {
        tenant: "acme".parse().unwrap(),
        project: "default".parse().unwrap(),
        model: "llama".parse().unwrap(),
        slot: Slot::of(Micros(NOW)),
    };
    UsageAdjustment {
        version: version.map(|version| version.parse::<ModelVersion>().unwrap()),
        api_key: key.map(|key| ApiKeyId(Uuid::from_u128(key))),
        ..UsageAdjustment::new(of, Deltas { input, ..Deltas::default() }, "counted twice")
    }
}

#[tokio::test]
async fn two_at_once_take_no_more_together_than_was_used() {
    let (billing, ..) = Billing::shop().await;
    let lines = [used("v1", 1, 10)];
    let first = |id: &str, input: i64, after: u64| {
        let document = UsageAdjustment { after: Some(after), ..adjustment(None, None, input) };
        let (kind, document) = (Kind::UsageAdjustment, Some(Document::UsageAdjustment(document)));
        billing.log.first(Write { kind, id: id.into(), expected_revision: 0, document });
    };
    // Each is checked while nothing is there, and finds another one before it in the log.
    first(OTHER, -7, 0);
    let refused = write(&billing.app, ID, adjustment(None, None, -4), &lines).await.unwrap_err();
    assert_eq!(serde_json::to_value(&refused).unwrap()["code"], "more_than_used", "{refused:?}");
    first("8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a71", -1, 1);
    let (there, kept) = write(&billing.app, ID, adjustment(None, None, -2), &lines).await.unwrap();
    assert_eq!((there, kept.after), (false, Some(2)), "what is still there beside the other one is taken");
    let (there, again) = write(&billing.app, ID, adjustment(None, None, -2), &[]).await.unwrap();
    assert_eq!((there, again), (true, kept), "asked again it is what it was");
    let state = &billing.app.control().unwrap().state;
    assert_eq!(state.adjustments().map(|(_, made)| made.deltas.input).sum::<i64>(), -10);
}

#[tokio::test]
async fn no_part_that_a_correction_is_in_comes_below_zero() {
    let (billing, ..) = Billing::shop().await;
    let lines = [used("v1", 1, 60), used("v1", 2, 40), used("v2", 1, 100)];
    for (number, (version, key, input, fits)) in (0u128..).zip([
        (Some("v2"), Some(2), -1, false),
        (Some("v1"), None, -90, true),
        (Some("v1"), Some(1), -11, false),
        (Some("v1"), Some(1), -10, true),
        (None, Some(1), -151, false),
        (None, None, -101, false),
        (None, None, 1, true),
        (None, None, -101, true),
        (Some("v2"), None, -1, false),
    ]) {
        let made = adjustment(version, key, input);
        let written = write(&billing.app, &Uuid::from_u128(number).to_string(), made, &lines).await;
        assert_eq!(written.is_ok(), fits, "{version:?} {key:?} {input}: {written:?}");
    }
}

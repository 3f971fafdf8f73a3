//! API keys: shown once, kept as a hash, and never another tenant's.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::memory::{ADMIN, Billing};
use crate::auth::sha256;

#[tokio::test]
async fn a_secret_is_shown_once_and_only_its_hash_is_kept() {
    let (billing, acme, globex) = Billing::shop().await;
    assert!(acme.starts_with("tg_") && acme.len() == 67 && acme != globex);
    let list = billing.get("tenants/acme/keys", &acme).await;
    assert!(!list.text.contains(&acme) && !list.text.contains(&sha256(&acme)), "{list:?}");
    let key = &list.json()["data"][0];
    assert_eq!((&key["tenant"], &key["project"], &key["revoked"]), (&json!("acme"), &json!("default"), &json!(false)));
    let one = billing.get(&format!("tenants/acme/keys/{}", key["id"].as_str().unwrap()), &acme).await;
    assert_eq!((one.status, one.header("etag")), (StatusCode::OK, Some("\"1\"")));
    assert_eq!(one.json(), *key);
}

#[tokio::test]
async fn a_key_of_another_tenant_is_not_there() {
    let (billing, acme, _) = Billing::shop().await;
    let id = billing.get("tenants/globex/keys", ADMIN).await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    let crossed = format!("tenants/acme/keys/{id}");
    assert_eq!(billing.get(&crossed, &acme).await.problem(), (404, "not_found".into()));
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(billing.send(method, &crossed, Some(ADMIN), None).await.problem(), (404, "not_found".into()));
    }
    let taken = json!({"project": "p", "sha256": "0a".repeat(32)});
    let moved = billing.send(Method::PUT, &crossed, Some(ADMIN), Some(&taken)).await;
    assert_eq!(moved.problem(), (404, "not_found".into()), "a key does not change hands");
}

#[tokio::test]
async fn a_key_made_elsewhere_is_put_by_its_hash() {
    let (billing, ..) = Billing::shop().await;
    let path = "tenants/acme/keys/0190a000-0000-7000-8000-00000000000A";
    let body = json!({"project": "default", "sha256": sha256("tg_demo")});
    let made = billing.put(path, &body).await;
    assert_eq!((made.status, &made.json()["id"]), (StatusCode::CREATED, &json!(path[18..].to_lowercase())));
    assert_eq!(billing.get("balances/acme", "tg_demo").await.status, StatusCode::OK);
    assert_eq!(billing.put(path, &body).await.header("etag"), Some("\"1\""), "idempotent");
    let twice = path.replace("00A", "00B");
    let same = billing.send(Method::PUT, &twice, Some(ADMIN), Some(&body)).await;
    assert_eq!(same.problem(), (409, "already_there".into()), "one secret opens for one key");
    for wrong in [json!({"project": "p", "sha256": "tg_demo"}), json!({"project": "p", "sha256": "0A".repeat(32)})] {
        assert_eq!(billing.send(Method::PUT, path, Some(ADMIN), Some(&wrong)).await.problem().1, "invalid_value");
    }
    let no_uuid = billing.send(Method::PUT, "tenants/acme/keys/mine", Some(ADMIN), Some(&body)).await;
    assert_eq!(no_uuid.problem(), (400, "invalid_id".into()));
}

#[tokio::test]
async fn a_key_for_nobody_or_of_the_past_is_not_made() {
    let (billing, ..) = Billing::shop().await;
    let make = async |path: &str, body| billing.send(Method::POST, path, Some(ADMIN), Some(&body)).await.problem();
    assert_eq!(make("tenants/nobody/keys", json!({"project": "p"})).await, (404, "not_found".into()));
    let past = json!({"project": "p", "expires_at": "2026-11-24T11:59:59Z"});
    assert_eq!(make("tenants/acme/keys", past).await, (422, "invalid_value".into()));
    assert_eq!(make("tenants/acme/keys", json!({"project": ""})).await, (400, "invalid_body".into()));
}

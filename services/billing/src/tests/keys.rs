//! API keys: shown once, kept as a hash, replaced with an overlap, and never another tenant's.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::memory::{ADMIN, Answer, Billing, NOW};
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

async fn make(billing: &Billing, body: serde_json::Value) -> Answer {
    billing.send(Method::POST, "tenants/acme/keys", Some(ADMIN), Some(&body)).await
}

#[tokio::test]
async fn scopes_and_limits_are_kept_as_they_are_said() {
    let (billing, ..) = Billing::shop().await;
    let limits = json!({"requests_per_minute": 5, "tokens_per_minute": null, "concurrent_requests": 2});
    let made =
        make(&billing, json!({"project": "p", "scopes": ["usage", "generate", "usage"], "limits": limits})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let key = made.json();
    assert_eq!((&key["scopes"], &key["limits"]), (&json!(["generate", "usage"]), &limits), "each once");
    let path = format!("tenants/acme/keys/{}", key["id"].as_str().unwrap());
    let read = billing.get(&path, ADMIN).await.json();
    assert_eq!((&read["scopes"], &read["limits"]), (&json!(["generate", "usage"]), &limits));
    assert_eq!(read.get("last_used_at"), None, "nobody knows while ClickHouse is away");
    let body = json!({"project": "p", "sha256": sha256("tg_new"), "scopes": [], "limits": {"tokens_per_minute": 9}});
    let put = billing.put(&path, &body).await.json();
    assert_eq!((&put["scopes"], &put["limits"]["tokens_per_minute"]), (&json!([]), &json!(9)));
    for wrong in [
        json!({"project": "p", "scopes": ["everything"]}),
        json!({"project": "p", "scopes": "generate"}),
        json!({"project": "p", "limits": {"requests_per_hour": 5}}),
        json!({"project": "p", "limits": {"requests_per_minute": -1}}),
    ] {
        assert_eq!(make(&billing, wrong.clone()).await.problem(), (400, "invalid_body".into()), "{wrong}");
    }
}

#[tokio::test]
async fn only_a_key_with_the_scope_usage_reads_here() {
    let (billing, ..) = Billing::shop().await;
    for (scopes, opens) in [
        (json!(["usage"]), true),
        (json!(["generate", "usage"]), true),
        (json!(null), true),
        (json!(["generate", "embed", "models"]), false),
        (json!([]), false),
    ] {
        let made = make(&billing, json!({"project": "p", "scopes": scopes})).await.json();
        let secret = made["secret"].as_str().unwrap();
        for path in ["balances/acme", "tenants/acme", "tenants/acme/keys"] {
            let answer = billing.get(path, secret).await;
            if opens {
                assert_eq!(answer.status, StatusCode::OK, "{scopes} {path}");
            } else {
                assert_eq!(answer.problem(), (403, "insufficient_scope".into()), "{scopes} {path}");
            }
        }
        assert_eq!(billing.get("balances/globex", secret).await.status, StatusCode::FORBIDDEN, "{scopes}");
    }
}

#[tokio::test]
async fn a_key_is_replaced_and_both_are_taken_until_the_overlap_ends() {
    let (billing, ..) = Billing::shop().await;
    let limits = json!({"requests_per_minute": 5, "tokens_per_minute": null, "concurrent_requests": null});
    let old = make(&billing, json!({"project": "search", "scopes": ["usage"], "limits": limits})).await.json();
    let (path, secret) =
        (format!("tenants/acme/keys/{}", old["id"].as_str().unwrap()), old["secret"].as_str().unwrap());
    let rotate = async |path: &str, body: serde_json::Value| {
        billing.send(Method::POST, &format!("{path}/rotate"), Some(ADMIN), Some(&body)).await
    };
    let made = rotate(&path, json!({"overlap_seconds": 3600})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let new = made.json();
    assert_ne!((&new["id"], &new["secret"]), (&old["id"], &old["secret"]));
    for same in ["tenant", "project", "scopes", "limits"] {
        assert_eq!(new[same], old[same], "{same}");
    }
    assert_eq!(new["expires_at"], json!(null));
    let new_secret = new["secret"].as_str().unwrap();
    let until = billing.get(&path, ADMIN).await.json()["expires_at"].clone();
    assert_eq!(until, json!("2026-11-24T13:00:00Z"));
    // A second time ends it sooner, and never later.
    assert_eq!(rotate(&path, json!({"overlap_seconds": 7200})).await.status, StatusCode::CREATED);
    assert_eq!(billing.get(&path, ADMIN).await.json()["expires_at"], until);
    for key in [secret, new_secret] {
        assert_eq!(billing.get("balances/acme", key).await.status, StatusCode::OK);
    }
    billing.clock.set(NOW + 3_600_000_000);
    assert_eq!(billing.get("balances/acme", secret).await.problem().0, 401);
    assert_eq!(billing.get("balances/acme", new_secret).await.status, StatusCode::OK);
    assert_eq!(
        rotate(&path, json!({"overlap_seconds": 0})).await.problem(),
        (422, "invalid_value".into()),
        "it is over"
    );

    let newer = format!("tenants/acme/keys/{}", new["id"].as_str().unwrap());
    let crossed = newer.replace("acme", "globex");
    assert_eq!(rotate(&crossed, json!({"overlap_seconds": 0})).await.problem(), (404, "not_found".into()));
    assert_eq!(rotate(&newer, json!({"overlap_seconds": 31_536_001})).await.problem().1, "invalid_value");
    assert_eq!(rotate(&newer, json!({})).await.problem().1, "invalid_body");
    let past = json!({"overlap_seconds": 0, "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(rotate(&newer, past).await.problem().1, "invalid_value");
    let as_tenant = billing
        .send(Method::POST, &format!("{newer}/rotate"), Some(new_secret), Some(&json!({"overlap_seconds": 0})))
        .await;
    assert_eq!(as_tenant.problem(), (403, "forbidden".into()));
    assert_eq!(rotate(&newer, json!({"overlap_seconds": 0})).await.status, StatusCode::CREATED);
    assert_eq!(billing.get("balances/acme", new_secret).await.problem().0, 401, "without an overlap it ends at once");
}

//! Who may do what: the admin everything, a tenant its own, anybody else nothing.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::memory::{ADMIN, Billing, NOW};

/// What only the admin may do, whatever is there or not.
const ADMINS: [(&str, &str); 18] = [
    ("GET", "reconciliation"),
    ("GET", "adjustments"),
    ("GET", "dead-letters"),
    ("GET", "dead-letters/tokens/0/17"),
    ("GET", "tenants"),
    ("GET", "plans"),
    ("GET", "plans/free"),
    ("GET", "prices"),
    ("GET", "prices/p1"),
    ("GET", "models"),
    ("GET", "models/llama"),
    ("GET", "replicas"),
    ("GET", "replicas/r1"),
    ("DELETE", "tenants/globex"),
    ("DELETE", "plans/free"),
    ("DELETE", "replicas/r1"),
    ("DELETE", "tenants/globex/keys/00000000-0000-0000-0000-000000000001"),
    ("DELETE", "tenants/acme/keys/00000000-0000-0000-0000-000000000001"),
];

/// What a tenant may ask of itself, with its name for {}.
const OWN: [&str; 9] = [
    "tenants/{}",
    "tenants/{}/keys",
    "balances/{}",
    "usage?tenant={}",
    "usage?tenant={}&group_by=model,class,day",
    "costs?tenant={}",
    "invoices/preview?tenant={}",
    "requests?tenant={}",
    "requests?tenant={}&limit=5",
];

#[tokio::test]
async fn without_a_valid_key_nothing_is_told() {
    let (billing, ..) = Billing::shop().await;
    let paths =
        ADMINS.iter().map(|(_, path)| (*path).to_owned()).chain(OWN.iter().map(|path| path.replace("{}", "acme")));
    for path in paths {
        for key in [None, Some("tg_wrong"), Some("")] {
            let answer = billing.send(Method::GET, &path, key, None).await;
            assert_eq!(answer.problem(), (401, "unauthorized".into()), "{path} {key:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let basic = billing.send_with(Method::GET, "tenants", None, None, &[("authorization", "Basic tg_admin")]).await;
    assert_eq!(basic.problem(), (401, "unauthorized".into()));
}

#[tokio::test]
async fn a_tenant_reads_its_own_and_learns_nothing_of_others() {
    let (billing, acme, globex) = Billing::shop().await;
    for path in OWN {
        let own = billing.get(&path.replace("{}", "acme"), &acme).await;
        // Figures that are in ClickHouse, which is away here: whoever gets this far was let in.
        let answered = own.status == StatusCode::OK || own.problem() == (503, "clickhouse_unavailable".into());
        assert!(answered, "{path}: {own:?}");
        let there = billing.get(&path.replace("{}", "globex"), &acme).await;
        let absent = billing.get(&path.replace("{}", "nobody"), &acme).await;
        assert_eq!(there.problem(), (403, "forbidden".into()), "{path}");
        assert_eq!(there.text, absent.text, "{path}: whether another tenant is there shows");
    }
    let own = billing.get("balances/globex", &globex).await.json();
    assert_eq!((&own["tokens"], &own["left"]), (&json!(11), &json!(989)));
}

#[tokio::test]
async fn a_tenant_writes_nothing_and_reads_no_document_of_the_operators() {
    let (billing, acme, _) = Billing::shop().await;
    for (method, path) in ADMINS {
        let answer = billing.send(method.parse().unwrap(), path, Some(&acme), None).await;
        assert_eq!(answer.problem(), (403, "forbidden".into()), "{method} {path}");
        assert!(!answer.text.contains("Free") && !answer.text.contains("company"), "{path}: {answer:?}");
    }
    let tenant = json!({"name": "Mine", "plan": "free", "currency": "USD", "time_zone": "UTC"});
    let bodies = [
        ("tenants/acme", tenant),
        ("plans/free", json!({"name": "Unlimited"})),
        ("models/llama", json!({"version": "v1", "served_name": "x"})),
        ("replicas/r1", json!({"model": "llama", "url": "http://127.0.0.1:1"})),
        ("tenants/acme/keys/00000000-0000-0000-0000-000000000001", json!({"project": "p", "sha256": "0a".repeat(32)})),
    ];
    for (path, body) in bodies {
        let answer = billing.send(Method::PUT, path, Some(&acme), Some(&body)).await;
        assert_eq!(answer.problem(), (403, "forbidden".into()), "{path}");
    }
    let made = billing.send(Method::POST, "tenants/acme/keys", Some(&acme), Some(&json!({"project": "p"}))).await;
    assert_eq!(made.problem(), (403, "forbidden".into()));
    assert_eq!(billing.get("plans/free", ADMIN).await.json()["tokens_per_period"], 1000);
}

#[tokio::test]
async fn a_key_ends_when_it_expires_or_is_revoked() {
    let (billing, acme, _) = Billing::shop().await;
    let body = json!({"project": "default", "expires_at": "2026-11-24T13:00:00Z"});
    let made = billing.send(Method::POST, "tenants/acme/keys", Some(ADMIN), Some(&body)).await.json();
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(billing.get("balances/acme", secret).await.status, StatusCode::OK);
    billing.clock.set(NOW + 3_600_000_000);
    assert_eq!(billing.get("balances/acme", secret).await.problem().0, 401, "it expired this moment");

    let list = billing.get("tenants/acme/keys", &acme).await.json();
    let first = list["data"].as_array().unwrap().iter().find(|key| key["expires_at"].is_null()).unwrap();
    let path = format!("tenants/acme/keys/{}", first["id"].as_str().unwrap());
    assert_eq!(billing.send(Method::DELETE, &path, Some(ADMIN), None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(billing.get("balances/acme", &acme).await.problem(), (401, "unauthorized".into()));
}

#[tokio::test]
async fn before_control_is_read_nobody_is_told_that_nothing_is_there() {
    let billing = Billing::with(Default::default(), false, Default::default());
    for key in [ADMIN, "tg_anything"] {
        let answer = billing.get("tenants/acme", key).await;
        assert_eq!(answer.problem(), (503, "kafka_unavailable".into()));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

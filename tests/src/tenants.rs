//! What the tests sell: tenants with a key each, models with a replica each, and prices.

use std::collections::BTreeMap;

use crate::system::{ADMIN, MODELS, Role, System};
use serde_json::{Value, json};

/// The tenants of most tests.
pub const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

/// Prices in millionths of a dollar per million tokens: input, cached input, output, reasoning.
pub fn prices() -> BTreeMap<&'static str, [u64; 4]> {
    BTreeMap::from([
        (MODELS[0], [250_000, 25_000, 1_500_000, 1_500_001]),
        (MODELS[1], [133_333, 13_333, 777_777, 2_000_000]),
    ])
}

/// A decimal with six places.
fn decimal(millionths: u64) -> String {
    format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

/// PUTs a document as the admin.
pub async fn put(system: &System, path: &str, body: &Value) -> Value {
    let url = system.url(Role::Billing, &format!("/api/v1/{path}"));
    system.client.put(&url, Some(ADMIN), body).await.unwrap().ok()
}

/// A new key of a tenant: its id and its secret.
pub async fn new_key(system: &System, tenant: &str) -> (String, String) {
    let url = system.url(Role::Billing, &format!("/api/v1/tenants/{tenant}/keys"));
    let key = system.client.post(&url, Some(ADMIN), &json!({"project": "default"})).await.unwrap().ok();
    (key["id"].as_str().unwrap().to_owned(), key["secret"].as_str().unwrap().to_owned())
}

/// Models and replicas, as the simulators serve them.
pub async fn models(system: &System) {
    for model in MODELS {
        put(system, &format!("models/{model}"), &json!({"version": "v1", "served_name": model})).await;
        let replica = json!({"model": model, "url": system.replica_url(model)});
        put(system, &format!("replicas/{model}-1"), &replica).await;
    }
}

/// Prices of every class of every model, from the first day on.
pub async fn price_list(system: &System) {
    for (model, prices) in prices() {
        for (class, price) in ["input", "cached_input", "output", "reasoning"].into_iter().zip(prices) {
            let body = json!({
                "model": model, "class": class, "currency": "USD", "from": "2026-01-01T00:00:00Z",
                "per_million": decimal(price),
            });
            put(system, &format!("prices/{model}-{}", class.replace('_', "-")), &body).await;
        }
    }
}

/// A tenant with a plan of its own; gives its key.
pub async fn tenant(system: &System, id: &str, plan: &Value) -> String {
    put(system, &format!("plans/{id}"), plan).await;
    let body = json!({"name": id, "plan": id, "currency": "USD", "time_zone": "Europe/Berlin"});
    put(system, &format!("tenants/{id}"), &body).await;
    new_key(system, id).await.1
}

/// Models, prices, and the tenants without limits; gives their keys.
pub async fn shop(system: &System) -> Vec<String> {
    models(system).await;
    price_list(system).await;
    let mut keys = Vec::new();
    for id in TENANTS {
        keys.push(tenant(system, id, &json!({"name": id})).await);
    }
    usable(system, &keys).await;
    keys
}

/// Returns when the gateway knows every key, and a healthy replica for every model.
pub async fn usable(system: &System, keys: &[String]) {
    usable_at(system, Role::Gateway, keys).await;
}

/// The same of any gateway.
pub async fn usable_at(system: &System, gateway: Role, keys: &[String]) {
    for key in keys {
        for model in MODELS {
            let url = system.url(gateway, &format!("/v1/models/{model}"));
            crate::wait::until("the gateway to know a key", std::time::Duration::from_secs(20), async || {
                let answer = system.client.get(&url, Some(key)).await.map_err(|error| format!("{error:?}"))?;
                if answer.status.is_success() { Ok(()) } else { Err(answer.status.to_string()) }
            })
            .await;
        }
    }
}

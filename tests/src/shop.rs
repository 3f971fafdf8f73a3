//! A tenant under every kind of limit, none of which it ever reaches: so each of them is reckoned.

use std::time::Duration;

use serde_json::{Value, json};

use crate::system::{ADMIN, MODELS, Role, System};
use crate::wait::until;

/// The tenant's id.
pub const TENANT: &str = "bench";

/// Makes the tenant, its plan, the models, and a replica of each at the address that `url` gives. Returns an API key once
/// the gateway knows it.
pub async fn open(system: &System, url: impl Fn(&str) -> String) -> String {
    let put = async |path: &str, body: Value| {
        let url = system.url(Role::Billing, &format!("/api/v1/{path}"));
        system.client.put(&url, Some(ADMIN), &body).await.expect("an answer of billing").ok()
    };
    for model in MODELS {
        put(&format!("models/{model}"), json!({"version": "v1", "served_name": model})).await;
        put(&format!("replicas/{model}-1"), json!({"model": model, "url": url(model)})).await;
    }
    let plan = json!({"name": "Bench", "requests_per_minute": 100_000_000, "tokens_per_minute": 1_000_000_000_000u64,
        "tokens_per_period": 1_000_000_000_000u64});
    put("plans/bench", plan).await;
    let tenant = json!({"name": "Bench", "plan": "bench", "currency": "USD", "time_zone": "UTC"});
    put(&format!("tenants/{TENANT}"), tenant).await;
    let url = system.url(Role::Billing, &format!("/api/v1/tenants/{TENANT}/keys"));
    let key = system.client.post(&url, Some(ADMIN), &json!({"project": "default"})).await.expect("an answer").ok();
    let key = key["secret"].as_str().expect("a secret").to_owned();
    let url = system.url(Role::Gateway, &format!("/v1/models/{}", MODELS[0]));
    until("the gateway to know the key", Duration::from_secs(20), async || {
        let answer = system.client.get(&url, Some(&key)).await.map_err(|error| format!("{error:?}"))?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.status.to_string()) }
    })
    .await;
    key
}

//! Bad input and missing room: each a clear error or alarm, none a panic, nothing lost.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use promises::client::Answer;
use promises::system::{MODELS, Role, System};
use promises::wait::until;
use serde_json::{Value, json};

use promises::tenants::{models, new_key, price_list, put, tenant, usable};

fn hello(model: &str) -> Value {
    json!({"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]})
}

async fn chat(system: &System, key: &str, body: impl Into<Bytes>) -> Answer {
    let url = system.url(Role::Gateway, "/v1/chat/completions");
    system.client.send_bytes(Method::POST, &url, Some(key), Some(body.into())).await.unwrap()
}

fn error(answer: &Answer) -> (u16, String) {
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|words| !words.is_empty()), "{error}");
    assert!(error["type"].is_string(), "{error}");
    (answer.status.as_u16(), error["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_clear_errors_and_the_gateway_goes_on() {
    let system = System::start(0).await;
    models(&system).await;
    let plan = json!({"name": "One model", "models": [MODELS[0]]});
    let key = tenant(&system, "acme", &plan).await;
    let all = tenant(&system, "globex", &json!({"name": "All"})).await;
    usable(&system, std::slice::from_ref(&all)).await;

    assert_eq!(error(&chat(&system, &all, hello("gpt-17").to_string()).await), (404, "model_not_found".into()));
    assert_eq!(error(&chat(&system, &key, hello(MODELS[1]).to_string()).await), (403, "model_not_allowed".into()));
    assert_eq!(error(&chat(&system, "tg_wrong", hello(MODELS[0]).to_string()).await), (401, "invalid_api_key".into()));
    for body in
        ["", "{", "[]", "null", "{\"model\": 7}", "{\"messages\": []}", "\u{0}", "{\"model\": \"a\", \"model\": \"b\"}"]
    {
        let answer = chat(&system, &all, body.to_owned()).await;
        assert!((400..=404).contains(&error(&answer).0), "{body:?}: {}", answer.status);
    }
    assert_eq!(error(&chat(&system, &all, vec![0xff, 0xfe]).await).0, 400);
    let url = system.url(Role::Gateway, "/v1/audio/speech");
    let answer = system.client.post(&url, Some(&all), &hello(MODELS[0])).await.unwrap();
    assert_eq!(error(&answer), (404, "unknown_url".into()), "what is not metered is not served");

    let huge = vec![b' '; 50 << 20];
    // The gateway may hang up before it has read it all: its answer, or a broken connection, but never 50 MB read.
    let url = system.url(Role::Gateway, "/v1/chat/completions");
    if let Ok(answer) = system.client.send_bytes(Method::POST, &url, Some(&all), Some(huge.into())).await {
        assert_eq!(error(&answer).0, 413);
    }
    assert!(system.runs(Role::Gateway));
    assert_eq!(chat(&system, &all, hello(MODELS[0]).to_string()).await.status.as_u16(), 200);
    assert!(!system.log_tail(Role::Gateway).contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_without_a_price_is_an_alarm_and_never_free() {
    let system = System::start(0).await;
    models(&system).await;
    let key = tenant(&system, "acme", &json!({"name": "Free"})).await;
    usable(&system, std::slice::from_ref(&key)).await;
    assert_eq!(chat(&system, &key, hello(MODELS[0]).to_string()).await.status.as_u16(), 200, "it is served");
    assert!(system.metric(Role::Gateway, "tollgate_gateway_unpriced_total").await >= 1.0);
    let range = promises::figures::around_now();
    let costs = until("the usage to be unrated", Duration::from_secs(60), async || {
        let costs = system.api(&format!("costs?tenant=acme&{range}")).await;
        if costs["unrated"].as_array().is_some_and(|lines| !lines.is_empty()) { Ok(costs) } else { Err(costs) }
    })
    .await;
    assert_eq!(costs["charged"], "0", "{costs}");
    let bill = system.api("invoices/preview?tenant=acme").await;
    assert_eq!(bill["unrated"].as_array().map(Vec::len), Some(2), "input and output: {bill}");

    price_list(&system).await;
    let costs = system.api(&format!("costs?tenant=acme&{range}")).await;
    assert_eq!(costs["unrated"].as_array().map(Vec::len), Some(0), "a price for the past rates it: {costs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_refuses_or_serves_as_the_plan_says_and_recovers() {
    let mut system = System::start(0).await;
    models(&system).await;
    price_list(&system).await;
    let refuse = tenant(&system, "acme", &json!({"name": "Refuse"})).await;
    let serve = tenant(&system, "globex", &json!({"name": "Serve", "when_spool_full": "serve"})).await;
    usable(&system, &[refuse.clone(), serve.clone()]).await;
    system.stop(Role::Gateway).await;
    system.set("SPOOL__SEGMENT_BYTES", "65536");
    system.set("SPOOL__MAX_BYTES", "262144");
    system.start_role(Role::Gateway).await;

    system.kill_kafka().await;
    let mut answered = 0;
    let full = loop {
        let answer = chat(&system, &refuse, hello(MODELS[0]).to_string()).await;
        match answer.status.as_u16() {
            200 => answered += 1,
            _ => break answer,
        }
        assert!(answered < 5000, "256 KiB hold no 5000 requests");
    };
    assert_eq!(error(&full), (503, "spool_full".into()));
    assert!(full.header("retry-after").is_some());
    assert_eq!(chat(&system, &serve, hello(MODELS[0]).to_string()).await.status.as_u16(), 200, "its plan says serve");
    assert_eq!(system.metric(Role::Gateway, "tollgate_gateway_unmetered_total").await, 1.0, "and its loss is counted");
    until("the spool's own alarm", Duration::from_secs(10), async || {
        let full = system.metric(Role::Gateway, "tollgate_spool_full").await;
        if full >= 1.0 { Ok(()) } else { Err(full) }
    })
    .await;

    system.start_kafka().await;
    until("room in the spool", Duration::from_secs(180), async || {
        let answer = chat(&system, &refuse, hello(MODELS[0]).to_string()).await;
        if answer.status.is_success() { Ok(()) } else { Err(error(&answer)) }
    })
    .await;
    until("every answered request to be billed", Duration::from_secs(180), async || {
        let raw = system.raw().await;
        let billed: u64 =
            raw.iter().filter(|((tenant, _), _)| tenant == "acme").map(|(_, counts)| counts.requests).sum();
        if billed == answered + 1 { Ok(()) } else { Err((billed, answered)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_sees_nothing_of_another() {
    let system = System::start(0).await;
    models(&system).await;
    tenant(&system, "acme", &json!({"name": "Free"})).await;
    let (_, key) = {
        tenant(&system, "globex", &json!({"name": "Free"})).await;
        new_key(&system, "globex").await
    };
    let range = promises::figures::around_now();
    let get = async |path: &str| {
        system.client.get(&system.url(Role::Billing, &format!("/api/v1/{path}")), Some(&key)).await.unwrap()
    };
    for own in
        [format!("usage?tenant=globex&{range}"), "balances/globex".into(), "invoices/preview?tenant=globex".into()]
    {
        assert_eq!(get(&own).await.status.as_u16(), 200, "{own}");
    }
    for other in [
        format!("usage?tenant=acme&{range}"),
        "balances/acme".into(),
        "balances/nobody".into(),
        "invoices/preview?tenant=acme".into(),
        "tenants".into(),
        "tenants/acme/keys".into(),
    ] {
        let answer = get(&other).await;
        assert!(matches!(answer.status.as_u16(), 403 | 404), "{other}: {}", answer.status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{other}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("Free"), "{other}");
    }
    let url = system.url(Role::Billing, "/api/v1/plans/mine");
    let answer = system.client.put(&url, Some(&key), &json!({"name": "Unlimited"})).await.unwrap();
    assert_eq!(answer.status.as_u16(), 403, "a tenant writes no plan");
    let _ = put(&system, "plans/mine", &json!({"name": "An admin does"})).await;
}

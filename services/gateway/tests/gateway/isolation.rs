//! Tenants beside each other: whatever one says, it is itself, pays for itself, and learns nothing of the other.

use embedded::vllm::SimulatorSettings;
use http::Method;
use ledger::control::{Document, Plan, Tenant};
use serde_json::json;

use crate::stub::Stub;
use crate::world::{Answer, CHAT, KEY, MODEL, Setup, World, chat, simulator, unlimited, whole};

const GLOBEX: &str = "tg_globex";

/// Beside acme there is globex, with a plan of its own.
async fn globex(world: &mut World, plan: Plan) {
    world.control.put("other-plan", Document::Plan(plan));
    let tenant = Tenant::new("Globex", "other-plan".parse().unwrap(), "USD".parse().unwrap(), chrono_tz::UTC);
    world.control.put("globex", Document::Tenant(tenant));
    world.control.key_as(GLOBEX, |key| {
        (key.tenant, key.project) = ("globex".parse().unwrap(), "secret".parse().unwrap());
    });
    world.publish();
    while models(world, GLOBEX).await.status != 200 {}
}

async fn ask(world: &World, headers: &[(&str, &str)], body: &serde_json::Value) -> Answer {
    whole(world.send(Method::POST, CHAT, headers, body.to_string()).await).await
}

async fn models(world: &World, key: &str) -> Answer {
    whole(world.send(Method::GET, "/v1/models", &[("x-api-key", key)], "").await).await
}

#[tokio::test]
async fn nothing_but_the_key_says_whose_a_request_is() {
    let replica = Stub::start(None).await;
    let mut setup = Setup::new(&[]);
    setup.replicas = vec![replica.url()];
    let mut world = setup.start().await;
    globex(&mut world, unlimited()).await;
    let mut body = chat("hello", 2);
    for (name, value) in [
        ("user", json!("globex")),
        ("tenant", json!("globex")),
        ("metadata", json!({"tenant": "globex", "project": "secret"})),
    ] {
        body[name] = value;
    }
    let foreign_id = "0190a000-0000-7000-8000-000000000001";
    let answer = ask(
        &world,
        &[
            ("authorization", &format!("Bearer {KEY}")),
            ("x-api-key", GLOBEX),
            ("openai-organization", "globex"),
            ("openai-project", "secret"),
            ("x-tenant-id", "globex"),
            ("x-request-id", foreign_id),
            ("x-forwarded-for", "10.0.0.1"),
            ("cookie", "tollgate_key=tg_globex"),
        ],
        &body,
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_ne!(answer.id(), foreign_id, "nobody chooses the id of a request, which might be another's");
    let finished = world.recorded(&answer).finished;
    assert_eq!((finished.tenant_id.as_str(), finished.project_id.as_str()), ("acme", "search"));
    let sent = replica.sent().pop().unwrap();
    let told = format!("{:?}", sent.headers);
    for secret in [KEY, GLOBEX, "openai-", "x-tenant", "cookie", "forwarded", "authorization"] {
        assert!(!told.contains(secret), "a replica is told {secret}: {told}");
    }
    assert_eq!(sent.headers["x-request-id"], answer.id().as_str());
    world.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn a_model_of_another_plan_is_neither_shown_nor_served() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut world = Setup::new(&[&replica]).start().await;
    globex(&mut world, Plan { models: Some(vec!["other".parse().unwrap()]), ..unlimited() }).await;
    let list = models(&world, GLOBEX).await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "{list}");
    for (model, status) in [(MODEL, 404), ("nobody", 404), ("other", 200)] {
        let path = format!("/v1/models/{model}");
        let one = whole(world.send(Method::GET, &path, &[("x-api-key", GLOBEX)], "").await).await;
        assert_eq!(one.status.as_u16(), status, "{model}");
    }
    let refused = ask(&world, &[("x-api-key", GLOBEX)], &chat("hello", 2)).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "model_not_allowed"));
    assert!(replica.requests().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn what_one_tenant_uses_of_its_limits_the_other_neither_feels_nor_sees() {
    let replica = simulator(SimulatorSettings::default()).await;
    let limited = || Plan { requests_per_minute: Some(3), tokens_per_period: Some(1_000), ..unlimited() };
    let mut setup = Setup::new(&[&replica]);
    setup.plan = limited();
    let mut world = setup.start().await;
    globex(&mut world, limited()).await;
    let body = chat("hello", 2);
    while ask(&world, &[("x-api-key", KEY)], &body).await.status == 200 {}
    let other = ask(&world, &[("x-api-key", GLOBEX)], &body).await;
    assert_eq!(other.status, 200, "{}", other.body);
    assert_eq!(other.header("x-ratelimit-remaining-requests"), Some("2"), "its own, whole");
    let refused = ask(&world, &[("x-api-key", KEY)], &body).await;
    assert_eq!(refused.status, 429);
    assert!(!refused.body.contains("globex"), "{}", refused.body);
    world.stop().await;
}

#[tokio::test]
async fn a_prefix_that_one_tenant_sent_is_not_warm_for_another() {
    let replica = simulator(SimulatorSettings::default()).await;
    let prompt = "the quick brown fox jumps over the lazy dog ".repeat(60);
    let cached = async |world: &World, key: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut body = chat(&prompt, 2);
        change(&mut body);
        let answer = ask(world, &[("x-api-key", key)], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
    };
    let plain = |_: &mut serde_json::Value| {};
    let mut world = Setup::new(&[&replica]).start().await;
    globex(&mut world, unlimited()).await;
    assert_eq!(cached(&world, KEY, &plain).await, 0);
    assert!(cached(&world, KEY, &plain).await > 0, "its own is");
    // Whatever the other one says, even the salt that the engine was sent.
    for salt in [json!(null), json!(""), json!("acme"), json!({"a": 1})] {
        let foreign = |body: &mut serde_json::Value| body["cache_salt"] = salt.clone();
        let seen = cached(&world, GLOBEX, &foreign).await;
        assert_eq!(seen, 0, "{salt}");
    }
    world.stop().await;

    let mut setup = Setup::new(&[&replica]);
    setup.settings.isolate_prefix_caches = false;
    let mut world = setup.start().await;
    globex(&mut world, unlimited()).await;
    cached(&world, KEY, &plain).await;
    assert!(cached(&world, GLOBEX, &plain).await > 0, "where it is not set, one warms it for all");
    world.stop().await;
}

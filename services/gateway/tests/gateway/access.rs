//! Who may do what: scopes of keys, and pages of other origins.

use embedded::vllm::SimulatorSettings;
use http::Method;
use ledger::control::Scope;

use crate::world::{Answer, CHAT, KEY, Setup, World, chat, simulator, whole};

async fn chat_with(world: &World, key: &str) -> Answer {
    whole(world.send(Method::POST, CHAT, &[("x-api-key", key)], chat("hello", 2).to_string()).await).await
}

async fn models_with(world: &World, key: &str) -> Answer {
    whole(world.send(Method::GET, "/v1/models", &[("x-api-key", key)], "").await).await
}

#[tokio::test]
async fn a_key_does_what_its_scopes_name_and_nothing_else() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut world = Setup::new(&[&replica]).start().await;
    for (key, scopes) in [
        ("tg_generate", vec![Scope::Generate]),
        ("tg_models", vec![Scope::Models]),
        ("tg_usage", vec![Scope::Usage]),
        ("tg_none", vec![]),
    ] {
        world.control.key_as(key, |document| document.scopes = Some(scopes));
    }
    world.publish();
    while chat_with(&world, "tg_generate").await.status != 200 {}
    let before = world.all().len();
    assert_eq!(models_with(&world, "tg_models").await.status, 200);
    for refused in [
        models_with(&world, "tg_generate").await,
        chat_with(&world, "tg_models").await,
        chat_with(&world, "tg_usage").await,
        models_with(&world, "tg_none").await,
        chat_with(&world, "tg_none").await,
    ] {
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "insufficient_scope"));
        assert!(refused.body.contains("scope `"), "{}", refused.body);
    }
    assert_eq!(world.all().len(), before, "a refusal leaves nothing in the spool");
    world.stop().await;
}

const PAGE: (&str, &str) = ("origin", "https://app.example.com");

async fn preflight(world: &World, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization, content-type, x-stainless-lang"),
    ];
    whole(world.send(Method::OPTIONS, CHAT, &headers, "").await).await
}

#[tokio::test]
async fn pages_of_other_origins_call_only_if_they_are_named() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.cors.allowed_origins = vec![PAGE.1.to_owned()];
    let world = setup.start().await;
    let asked = preflight(&world, PAGE.1).await;
    assert_eq!((asked.status.as_u16(), asked.body.as_str()), (204, ""), "a browser sends no key with its question");
    assert_eq!(asked.header("access-control-allow-origin"), Some(PAGE.1));
    assert_eq!(asked.header("access-control-allow-methods"), Some("GET, HEAD, POST"));
    assert_eq!(asked.header("access-control-allow-headers"), Some("authorization, content-type, x-stainless-lang"));
    assert_eq!((asked.header("access-control-max-age"), asked.header("vary")), (Some("600"), Some("origin")));
    assert_eq!(asked.header("access-control-allow-credentials"), None);
    let served =
        whole(world.send(Method::POST, CHAT, &[PAGE, ("x-api-key", KEY)], chat("hello", 2).to_string()).await).await;
    assert_eq!((served.status.as_u16(), served.header("access-control-allow-origin")), (200, Some(PAGE.1)));
    assert_eq!(served.header("access-control-expose-headers"), Some("*"));
    let refused = whole(world.send(Method::POST, CHAT, &[PAGE], "{}").await).await;
    assert_eq!((refused.status.as_u16(), refused.header("access-control-allow-origin")), (401, Some(PAGE.1)));
    for origin in ["https://evil.example.com", "https://app.example.com.evil.com", "http://app.example.com", "null"] {
        let asked = preflight(&world, origin).await;
        assert_eq!((asked.status.as_u16(), asked.header("access-control-allow-origin")), (405, None), "{origin}");
        let headers = [("origin", origin), ("x-api-key", KEY)];
        let served = whole(world.send(Method::POST, CHAT, &headers, chat("hello", 2).to_string()).await).await;
        assert_eq!(served.header("access-control-allow-origin"), None, "{origin}");
    }
    world.stop().await;
}

#[tokio::test]
async fn no_page_may_call_unless_it_is_set() {
    let replica = simulator(SimulatorSettings::default()).await;
    let world = Setup::new(&[&replica]).start().await;
    let asked = preflight(&world, PAGE.1).await;
    assert_eq!((asked.status.as_u16(), asked.header("access-control-allow-origin")), (405, None));
    world.stop().await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.cors.allowed_origins = vec!["*".to_owned()];
    let world = setup.start().await;
    assert_eq!(
        preflight(&world, "https://any.example").await.header("access-control-allow-origin"),
        Some("https://any.example")
    );
    world.stop().await;
}

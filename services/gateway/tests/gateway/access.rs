//! Who may do what: scopes of keys.

use embedded::vllm::SimulatorSettings;
use http::Method;
use ledger::control::Scope;

use crate::world::{Answer, CHAT, Setup, World, chat, simulator, whole};

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

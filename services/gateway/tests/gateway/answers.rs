//! Answers that go well: the client sees what the engine sent, and the bill is the engine's own count.

use embedded::vllm::{Simulator, SimulatorSettings};
use serde_json::{Value, json};

use crate::world::{Answer, CHAT, COMPLETIONS, MODEL, Setup, chat, simulator, stream, whole};

/// Without what differs between two runs of one simulator, and without the fingerprint, which the engine puts on another
/// chunk when usage is asked for.
pub(crate) fn comparable(body: &str, id: &str) -> String {
    let mut body = body.replace(id, "ID").replace(r#","system_fingerprint":"vllm-0.32.0-def0d56e""#, "");
    for time in [r#""created":"#, r#""created_at":"#] {
        let parts: Vec<_> =
            body.split(time).map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect();
        body = parts.join("");
    }
    body
}

/// What the replica itself answers.
pub(crate) async fn direct(replica: &Simulator, path: &str, body: &Value, id: &str) -> Answer {
    let client: hyper_util::client::legacy::Client<_, http_body_util::Full<bytes::Bytes>> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = http::Request::post(format!("{}{path}", replica.url()))
        .header("content-type", "application/json")
        .header("x-request-id", id);
    whole(client.request(request.body(body.to_string().into()).unwrap()).await.unwrap()).await
}

/// The requests that answers are compared for.
fn requests() -> Vec<(&'static str, Value)> {
    let completion = |prompt: Value| json!({"model": MODEL, "prompt": prompt, "max_tokens": 5, "temperature": 0.25});
    let mut found = vec![
        (CHAT, chat("hello é [[tokens:7]]", 20)),
        (
            CHAT,
            json!({"model": MODEL, "messages": [{"role": "user", "content": "three"}], "n": 3, "max_completion_tokens": 4}),
        ),
        (CHAT, chat("think [[reasoning:3]]", 9)),
        (CHAT, chat("a long one ".repeat(80).as_str(), 3)),
        (COMPLETIONS, completion(json!("hello"))),
        (COMPLETIONS, completion(json!(["hello", "tell me"]))),
        (COMPLETIONS, completion(json!([[1, 2, 3], [4]]))),
    ];
    found.push((COMPLETIONS, json!({"model": MODEL, "prompt": ["a", "bcdefgh"], "n": 2, "max_tokens": 3})));
    found
}

async fn compared(options: Option<Value>, settings: SimulatorSettings) {
    let (behind, beside) = (simulator(settings.clone()).await, simulator(settings).await);
    let world = Setup::new(&[&behind]).start().await;
    for (path, mut body) in requests() {
        if let Some(options) = &options {
            body["stream"] = json!(true);
            if !options.is_null() {
                body["stream_options"] = options.clone();
            }
        }
        // Twice: the second time the prompt is cached.
        for _ in 0..2 {
            let answer = world.post(path, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let direct = direct(&beside, path, &body, &answer.id()).await;
            let kind = direct.headers["content-type"].clone();
            assert_eq!(answer.headers["content-type"], kind);
            assert_eq!(comparable(&answer.body, &answer.id()), comparable(&direct.body, &answer.id()), "{body}");
            let recorded = world.recorded(&answer);
            let oracle = behind.requests().pop().unwrap();
            assert_eq!(oracle.request_id, Some(answer.id()));
            assert_eq!((recorded.reason(), recorded.requests(), recorded.estimated()), ("complete", 1, false));
            assert_eq!(recorded.sums(), (oracle.prompt_tokens, oracle.generated_tokens), "{body}");
            assert_eq!(recorded.billed().cached_input, oracle.cached_tokens);
            assert_eq!((recorded.finished.status, recorded.finished.attempts), (200, 1));
            assert_eq!(recorded.finished.stream, options.is_some());
            assert!(recorded.finished.first_byte_at.is_some());
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn whole_answers_are_the_engines_bytes_and_its_count_is_billed() {
    compared(None, SimulatorSettings::default()).await;
}

#[tokio::test]
async fn a_stream_shows_no_usage_that_was_not_asked_for() {
    compared(Some(Value::Null), SimulatorSettings::default()).await;
    compared(Some(json!({"include_usage": false, "continuous_usage_stats": true})), SimulatorSettings::default()).await;
}

#[tokio::test]
async fn a_stream_shows_the_usage_that_was_asked_for() {
    compared(Some(json!({"include_usage": true})), SimulatorSettings::default()).await;
    compared(Some(json!({"include_usage": true, "continuous_usage_stats": true})), SimulatorSettings::default()).await;
}

#[tokio::test]
async fn it_makes_no_difference_how_the_replica_cuts_its_stream() {
    for settings in [
        SimulatorSettings { split_bytes: 7, ..Default::default() },
        SimulatorSettings { events_per_chunk: 3, split_bytes: 100, ..Default::default() },
        SimulatorSettings { max_write_bytes: 11, ..Default::default() },
        SimulatorSettings { stream_interval: 4, empty_event_every: 2, ..Default::default() },
    ] {
        compared(Some(Value::Null), settings.clone()).await;
        compared(Some(json!({"include_usage": true})), settings).await;
    }
}

#[tokio::test]
async fn a_server_that_forces_usage_on_everybody_shows_it_to_who_asked() {
    let forced = SimulatorSettings { enable_force_include_usage: true, ..Default::default() };
    let replica = simulator(forced).await;
    let world = Setup::new(&[&replica]).start().await;
    let bare = world.post(CHAT, &stream("hello", 4, false)).await;
    assert!(!bare.body.contains("usage") && bare.body.ends_with("data: [DONE]\n\n"), "{}", bare.body);
    let asked = world.post(CHAT, &stream("hello", 4, true)).await;
    assert_eq!(asked.body.matches("\"usage\"").count(), 1);
    assert_eq!(world.recorded(&asked).sums().1, 4);
    world.stop().await;
}

#[tokio::test]
async fn keep_alive_comments_pass_and_are_no_answer() {
    let slow =
        SimulatorSettings { keep_alive_interval_ms: 5, time_to_first_token_us: 60_000, ..SimulatorSettings::default() };
    let replica = simulator(slow).await;
    let world = Setup::new(&[&replica]).start().await;
    let answer = world.post(CHAT, &stream("hello", 3, false)).await;
    assert!(answer.body.starts_with(": keep-alive\n\n"), "{}", answer.body);
    assert_eq!(world.recorded(&answer).sums().1, 3);
    world.stop().await;
}

#[tokio::test]
async fn a_long_stream_is_billed_in_parts_that_add_up() {
    // Tokens that come together are billed together.
    let paced = SimulatorSettings { time_per_output_token_us: 2_000, ..SimulatorSettings::default() };
    let replica = simulator(paced).await;
    let mut setup = Setup::new(&[&replica]);
    setup.spool.checkpoint_tokens = 10;
    let world = setup.start().await;
    let mut body = stream("hello", 200, true);
    body["n"] = json!(2);
    let answer = world.post(CHAT, &body).await;
    let recorded = world.recorded(&answer);
    assert!(recorded.counts.len() > 5, "{} parts", recorded.counts.len());
    assert_eq!(recorded.sums().1, 400);
    assert_eq!((recorded.requests(), recorded.estimated()), (1, false));
    let (last, parts) = recorded.counts.split_last().unwrap();
    assert!(last.last && parts.iter().all(|part| !part.last && part.input == 0));
    world.stop().await;
}

#[tokio::test]
async fn the_answer_waits_for_the_disk_where_the_settings_say_so() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.spool.durability = stream::spool::Durability::Host;
    let world = setup.start().await;
    for body in [chat("hello", 3), stream("hello", 3, false)] {
        let answer = world.post(CHAT, &body).await;
        let head = world.spool.frontier();
        assert_eq!(world.recorded(&answer).reason(), "complete");
        assert!(world.spool.flush().unwrap() == head, "all of it was durable before the client saw the end");
    }
    world.stop().await;
}

#[tokio::test]
async fn models_are_listed_as_the_plan_allows() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.models = Some(vec![MODEL.parse().unwrap()]);
    let mut world = setup.start().await;
    let list = world.get("/v1/models").await;
    assert_eq!(list.json()["object"], "list");
    assert_eq!(list.json()["data"].as_array().unwrap().len(), 1);
    assert_eq!(list.json()["data"][0]["id"], MODEL);
    assert_eq!(world.get(&format!("/v1/models/{MODEL}")).await.json()["object"], "model");
    assert_eq!(world.get("/v1/models/other").await.code(), "model_not_found");
    let mut plan = world.control.clone();
    plan.plan(crate::world::unlimited());
    world.control = plan;
    world.publish();
    let mut seen = 0;
    while seen < 2 {
        seen = world.get("/v1/models").await.json()["data"].as_array().unwrap().len();
    }
    assert_eq!(world.get("/v1/models/other").await.status, 200);
    world.stop().await;
}

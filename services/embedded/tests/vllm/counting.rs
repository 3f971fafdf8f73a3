//! The oracle and the counters: what was generated, what was sent, what was cached, who waits.

use std::time::Duration;

use embedded::vllm::{RequestRecord, Simulator, SimulatorSettings, count_chat, count_text};
use serde_json::json;

use crate::client::{Client, get, post};

const CHAT: &str = "/v1/chat/completions";

pub(crate) fn settings() -> SimulatorSettings {
    SimulatorSettings { listen: ([127, 0, 0, 1], 0).into(), ..SimulatorSettings::default() }
}

/// Polls until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 10 s: {what}");
}

fn only(simulator: &Simulator) -> RequestRecord {
    let mut requests = simulator.requests();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

fn chat(content: &str, extra: serde_json::Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body.to_string()
}

async fn metric(simulator: &Simulator, name: &str) -> f64 {
    let page = get(simulator.addr(), "/metrics").await.body;
    let line = page.lines().find(|line| line.starts_with(&format!("vllm:{name}{{"))).unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn the_oracle_tells_a_complete_request() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let answer = post(
        simulator.addr(),
        CHAT,
        &[("X-Request-Id", "r-1")],
        &chat("hello", json!({"model": "llama-3.1-8b", "max_tokens": 9, "stream": true})),
    )
    .await;
    let record = only(&simulator);
    assert_eq!(
        (record.request_id.as_deref(), record.id.as_str(), record.model.as_deref()),
        (Some("r-1"), "chatcmpl-r-1", Some("llama-3.1-8b"))
    );
    assert_eq!(
        (record.prompt_tokens, record.generated_tokens, record.wire_tokens),
        (u64::from(count_chat(["hello"])), 9, 9)
    );
    assert_eq!(
        (record.outcome.as_str(), record.status, record.wire_events),
        ("complete", 200, answer.events().len() as u64)
    );
    let listed = get(simulator.addr(), "/simulator/requests").await.json();
    assert_eq!(listed["requests"][0], serde_json::to_value(&record).unwrap());
    Client::send(simulator.addr(), "DELETE", "/simulator/requests", &[], None).await.finish().await;
    assert!(simulator.requests().is_empty());
}

#[tokio::test]
async fn repeated_prefixes_are_cached_in_full_blocks() {
    let simulator = Simulator::start(SimulatorSettings { block_size: 16, ..settings() }).await.unwrap();
    let prompt = "0123456789abcdef".repeat(16);
    let tokens = count_text(&prompt);
    assert_eq!(tokens, 64);
    let addr = simulator.addr();
    let ask = |prompt: String| async move {
        post(addr, "/v1/completions", &[], &json!({"prompt": prompt, "max_tokens": 1}).to_string()).await.json()
    };
    let cached = |answer: &serde_json::Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(&ask(prompt.clone()).await), Some(0));
    // 64 tokens are 4 full blocks, of which the last must be computed for its last token.
    assert_eq!(cached(&ask(prompt.clone()).await), Some(48));
    assert_eq!(cached(&ask(format!("{prompt}and more")).await), Some(64));
    assert_eq!(metric(&simulator, "prefix_cache_hits_total").await, 112.0);
    assert_eq!(simulator.requests().iter().map(|request| request.cached_tokens).collect::<Vec<_>>(), [0, 48, 64]);
    let streamed =
        json!({"prompt": prompt, "max_tokens": 1, "stream": true, "stream_options": {"include_usage": true}})
            .to_string();
    let answer = post(simulator.addr(), "/v1/completions", &[], &streamed).await;
    assert!(answer.body.contains(r#""prompt_tokens_details":{"cached_tokens":48}}"#), "{}", answer.body);
}

#[tokio::test]
async fn a_client_that_goes_leaves_an_overshoot() {
    let simulator =
        Simulator::start(SimulatorSettings { time_per_output_token_us: 2_000, overshoot_tokens: 5, ..settings() })
            .await
            .unwrap();
    let mut client = Client::send(
        simulator.addr(),
        "POST",
        CHAT,
        &[("Content-Type", "application/json")],
        Some(chat("hello", json!({"max_tokens": 5000, "stream": true})).as_bytes()),
    )
    .await;
    client.read_events(10).await;
    drop(client);
    until("the disconnect is noticed", || only(&simulator).outcome == "client_gone").await;
    // The engine stops within a token, and then makes its overshoot.
    let counter = async || metric(&simulator, "num_requests_running").await;
    while counter().await > 0.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let record = only(&simulator);
    assert!(record.wire_tokens >= 9 && record.wire_tokens < 5000, "{record:?}");
    let over = record.generated_tokens - record.wire_tokens;
    assert!((5..=10).contains(&over), "{record:?}");
    assert_eq!(metric(&simulator, "generation_tokens_total").await as u64, record.generated_tokens);
    assert_eq!(metric(&simulator, "request_success_total").await, 0.0);
}

#[tokio::test]
async fn a_client_that_goes_before_a_whole_answer_is_noticed() {
    let simulator =
        Simulator::start(SimulatorSettings { time_per_output_token_us: 2_000, ..settings() }).await.unwrap();
    let body = chat("hello", json!({"max_tokens": 5000}));
    let client =
        Client::send(simulator.addr(), "POST", CHAT, &[("Content-Type", "application/json")], Some(body.as_bytes()))
            .await;
    until("it runs", || simulator.requests().first().is_some_and(|request| request.generated_tokens > 3)).await;
    drop(client);
    until("the disconnect is noticed", || only(&simulator).outcome == "client_gone").await;
    assert_eq!(only(&simulator).wire_tokens, 0);
}

#[tokio::test]
async fn requests_over_the_bound_wait_and_then_are_refused() {
    let settings = SimulatorSettings {
        max_num_seqs: 1,
        max_num_queued_reqs: Some(1),
        time_per_output_token_us: 2_000,
        ..settings()
    };
    let simulator = Simulator::start(settings).await.unwrap();
    let body = chat("hello", json!({"max_tokens": 5000, "stream": true}));
    let send =
        || Client::send(simulator.addr(), "POST", CHAT, &[("Content-Type", "application/json")], Some(body.as_bytes()));
    let mut first = send().await;
    first.read_events(2).await;
    let second = send().await;
    until("the second has come", || simulator.requests().len() == 2).await;
    while metric(&simulator, "num_requests_waiting").await < 1.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(metric(&simulator, "num_requests_running").await, 1.0);
    assert!(metric(&simulator, "kv_cache_usage_perc").await > 0.0);
    let third = send().await.finish().await;
    assert_eq!(third.status(), 503);
    assert_eq!(metric(&simulator, "admission_rejections_total").await, 1.0);
    drop(first);
    let mut second = second;
    second.read_events(2).await;
}

#[tokio::test]
async fn several_choices_count_their_prompt_each_in_the_engine_and_once_in_usage() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let usage =
        post(simulator.addr(), CHAT, &[], &chat("hello", json!({"n": 3, "max_tokens": 4}))).await.json()["usage"]
            .clone();
    assert_eq!((usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()), (Some(12), Some(12)));
    assert_eq!(metric(&simulator, "prompt_tokens_total").await, 36.0);
    assert_eq!(only(&simulator).prefilled_tokens, 36);
}

#[tokio::test]
async fn the_prompt_may_ask_for_a_length_and_for_reasoning() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let answer =
        post(simulator.addr(), CHAT, &[], &chat("x [[tokens:37]] [[reasoning:10]]", json!({"max_tokens": 100})))
            .await
            .json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 37);
    assert_eq!(answer["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 10}));
    assert!(answer["choices"][0]["message"]["reasoning"].as_str().is_some_and(|text| !text.is_empty()));
    let body =
        chat("x [[tokens:6]] [[reasoning:2]]", json!({"stream": true, "stream_options": {"include_usage": true}}));
    let stream = post(simulator.addr(), CHAT, &[], &body).await;
    assert_eq!(stream.body.matches(r#""delta":{"reasoning":"#).count(), 2);
    assert!(stream.body.contains(r#""completion_tokens":6,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}"#));
}

#[tokio::test]
async fn events_may_hold_several_tokens_or_none() {
    let simulator =
        Simulator::start(SimulatorSettings { stream_interval: 4, empty_event_every: 1, ..settings() }).await.unwrap();
    let body = chat(
        "hello",
        json!({"max_tokens": 9, "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}}),
    );
    let answer = post(simulator.addr(), CHAT, &[], &body).await;
    let counts: Vec<u64> = answer
        .events()
        .iter()
        .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
        .map(|event| event["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [0, 1, 1, 5, 5, 9, 9]);
}

#[tokio::test]
async fn the_same_settings_and_requests_give_the_same_answers() {
    let mut texts = Vec::new();
    for _ in 0..2 {
        let simulator = Simulator::start(settings()).await.unwrap();
        let body = chat("hello", json!({"max_tokens": 50, "n": 2, "stream": true}));
        let answer = post(simulator.addr(), CHAT, &[], &body).await;
        let created: String =
            answer.body.split("\"created\":").skip(1).map(|rest| rest.split_once(',').unwrap().1).collect();
        texts.push(created);
    }
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_counters_are_the_sum_of_the_oracle() {
    let pace = SimulatorSettings { time_per_output_token_us: 1_000, max_num_seqs: 40, ..settings() };
    let simulator = std::sync::Arc::new(Simulator::start(pace).await.unwrap());
    let faults =
        ["", "die_mid_stream:5", "reset_mid_stream:2", "error_mid_stream:4", "no_done:3", "status:500", "abort:6"];
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..120_usize {
        let addr = simulator.addr();
        clients.spawn(async move {
            let body = chat(
                &format!("request {index}"),
                json!({"max_tokens": 20, "n": 1 + index % 2, "stream": index % 3 > 0}),
            );
            let headers = [("Content-Type", "application/json"), ("x-simulator-fault", faults[index % faults.len()])];
            let mut client = Client::send(addr, "POST", CHAT, &headers, Some(body.as_bytes())).await;
            if index % 21 == 7 {
                client.read_events(3).await;
                return;
            }
            client.finish().await;
        });
    }
    clients.join_all().await;
    while metric(&simulator, "num_requests_running").await + metric(&simulator, "num_requests_waiting").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("all have ended", || simulator.requests().iter().all(|request| request.outcome != "running")).await;
    let requests = simulator.requests();
    assert_eq!(requests.len(), 120);
    let sum = |count: fn(&RequestRecord) -> u64| requests.iter().map(count).sum::<u64>() as f64;
    assert_eq!(metric(&simulator, "generation_tokens_total").await, sum(|request| request.generated_tokens));
    assert_eq!(metric(&simulator, "prompt_tokens_total").await, sum(|request| request.prefilled_tokens));
    assert!(requests.iter().all(|request| request.wire_tokens <= request.generated_tokens));
    for outcome in [
        "complete",
        "client_gone",
        "die_mid_stream",
        "reset_mid_stream",
        "error_mid_stream",
        "no_done",
        "status",
        "abort",
    ] {
        assert!(requests.iter().any(|request| request.outcome == outcome), "{outcome}");
    }
}

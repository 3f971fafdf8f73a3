//! Every fault, by every way of arming it.

use std::time::{Duration, Instant};

use embedded::vllm::{ArmedFault, Simulator, SimulatorSettings, When};
use serde_json::json;

use crate::client::{Answer, Client, End, get, post};
use crate::counting::{settings, until};

const CHAT: &str = "/v1/chat/completions";

fn body(stream: bool) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "stream": stream});
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body.to_string()
}

async fn struck(simulator: &Simulator, fault: &str, stream: bool) -> Answer {
    let answer = post(simulator.addr(), CHAT, &[("x-simulator-fault", fault)], &body(stream)).await;
    let wanted = fault.split(':').next().unwrap();
    until("the outcome is noted", || simulator.requests().last().is_some_and(|request| request.outcome != "running"))
        .await;
    let record = simulator.requests().pop().unwrap();
    assert_eq!(record.fault.as_deref(), Some(fault));
    if !["stall", "slow_drip", "no_usage"].contains(&wanted) {
        assert_eq!(record.outcome, wanted, "{record:?}");
    } else {
        assert_eq!(record.outcome, "complete", "{record:?}");
    }
    answer
}

#[tokio::test]
async fn streams_break_as_told() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let refused = struck(&simulator, "refuse", true).await;
    assert_eq!((refused.head.as_str(), refused.end), ("", End::Closed));
    let died = struck(&simulator, "die_mid_stream:3", true).await;
    assert_eq!((died.events().len(), died.end), (3, End::Closed));
    let reset = struck(&simulator, "reset_mid_stream:2", true).await;
    assert_eq!((reset.events().len(), reset.end), (2, End::Reset));
    let early = struck(&simulator, "no_done:4", true).await;
    assert_eq!((early.events().len(), early.end), (4, End::Whole));
    assert!(!early.body.contains("[DONE]"));
    let malformed = struck(&simulator, "malformed:2", true).await;
    let broken: Vec<bool> = malformed
        .events()
        .iter()
        .map(|event| *event != "[DONE]" && serde_json::from_str::<serde_json::Value>(event).is_err())
        .collect();
    assert_eq!(broken.iter().filter(|broken| **broken).count(), 1);
    assert!(broken[2] && malformed.body.ends_with("data: [DONE]\n\n"));
    let dead = struck(&simulator, "error_mid_stream:3", true).await;
    assert_eq!((dead.events().len(), dead.status(), dead.end), (5, 200, End::Whole));
    let usageless = struck(&simulator, "no_usage", true).await;
    assert!(!usageless.body.contains("usage"));
    let aborted = struck(&simulator, "abort:2", true).await;
    assert!(aborted.body.contains(r#""finish_reason":"abort""#) && aborted.body.contains(r#""completion_tokens":2"#));
    let record = simulator.requests().into_iter().find(|record| record.outcome == "die_mid_stream").unwrap();
    assert_eq!((record.wire_events, record.wire_tokens), (3, 2));
}

#[tokio::test]
async fn whole_answers_break_as_told() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let died = struck(&simulator, "die_mid_stream:1", false).await;
    assert_eq!((died.status(), died.end), (200, End::Closed));
    assert!(!died.body.is_empty());
    let malformed = struck(&simulator, "malformed:0", false).await;
    assert_eq!(malformed.end, End::Whole);
    assert!(serde_json::from_str::<serde_json::Value>(&malformed.body).is_err());
    assert!(struck(&simulator, "no_usage", false).await.json()["usage"].is_null());
    assert_eq!(struck(&simulator, "status:500", false).await.json()["error"]["code"], 500);
    assert_eq!(struck(&simulator, "status:502", false).await.status(), 502);
    assert_eq!(struck(&simulator, "overload", false).await.status(), 503);
    assert_eq!(struck(&simulator, "error_mid_stream:3", false).await.status(), 500);
    assert_eq!(struck(&simulator, "abort:3", false).await.json()["choices"][0]["finish_reason"], "abort");
}

#[tokio::test]
async fn silence_and_drips_take_their_time() {
    let simulator = Simulator::start(settings()).await.unwrap();
    for (fault, stream) in [
        ("stall:0:80", true),
        ("stall:3:80", true),
        ("stall:0:80", false),
        ("stall:3:80", false),
        ("slow_drip:50:2", true),
        ("slow_drip:10:1", false),
    ] {
        let start = Instant::now();
        let answer = struck(&simulator, fault, stream).await;
        assert!(start.elapsed() >= Duration::from_millis(30), "{fault}");
        assert_eq!(answer.end, End::Whole, "{fault}");
        assert!(answer.chunks.iter().all(|size| !fault.starts_with("slow") || *size <= 50));
    }
}

#[tokio::test]
async fn a_stall_for_ever_ends_when_the_client_goes() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let headers = [("Content-Type", "application/json"), ("x-simulator-fault", "stall:2:0")];
    let mut client = Client::send(simulator.addr(), "POST", CHAT, &headers, Some(body(true).as_bytes())).await;
    client.read_events(2).await;
    drop(client);
    until("the disconnect is noticed", || simulator.requests()[0].outcome == "client_gone").await;
}

#[tokio::test]
async fn armed_faults_strike_by_count_and_the_prompt_can_ask_for_one() {
    let simulator = Simulator::start(SimulatorSettings {
        faults: vec![ArmedFault { fault: "status:500".parse().unwrap(), when: When::Times(1), model: None }],
        ..settings()
    })
    .await
    .unwrap();
    assert_eq!(post(simulator.addr(), CHAT, &[], &body(false)).await.status(), 500);
    assert_eq!(post(simulator.addr(), CHAT, &[], &body(false)).await.status(), 200);
    let put = async |text: &str| {
        Client::send(simulator.addr(), "PUT", "/simulator/faults", &[], Some(text.as_bytes())).await.finish().await
    };
    let armed = put(
        r#"{"faults":[{"fault":"overload","when":{"every":2}},{"fault":"refuse","when":"always","model":"other"}]}"#,
    )
    .await;
    assert_eq!(armed.status(), 200);
    assert_eq!(get(simulator.addr(), "/simulator/faults").await.json(), armed.json());
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(post(simulator.addr(), CHAT, &[], &body(false)).await.status());
    }
    assert_eq!(statuses, [200, 503, 200, 503]);
    assert_eq!(put(r#"{"faults":[{"fault":"explode"}]}"#).await.status(), 400);
    put(r#"{"faults":[{"fault":"unhealthy"}]}"#).await;
    assert_eq!(get(simulator.addr(), "/health").await.status(), 503);
    put(r#"{"faults":[]}"#).await;
    assert_eq!(get(simulator.addr(), "/health").await.status(), 200);
    let asked = body(true).replace("hello", "hello [[fault:die_mid_stream:3]]");
    assert_eq!(post(simulator.addr(), CHAT, &[], &asked).await.events().len(), 3);
}

#[tokio::test]
async fn events_may_be_cut_and_joined_anywhere() {
    let plain = post(Simulator::start(settings()).await.unwrap().addr(), CHAT, &[], &body(true)).await;
    assert_eq!(plain.chunks.len(), 9);
    for settings in [
        SimulatorSettings { split_bytes: 7, ..settings() },
        SimulatorSettings { events_per_chunk: 3, ..settings() },
        SimulatorSettings { events_per_chunk: 3, split_bytes: 100, ..settings() },
        SimulatorSettings { max_write_bytes: 5, ..settings() },
    ] {
        let simulator = Simulator::start(settings.clone()).await.unwrap();
        let answer = post(simulator.addr(), CHAT, &[], &body(true)).await;
        let untimed = |text: &str| {
            text.split("\"created\":")
                .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
                .collect::<String>()
        };
        assert_eq!(untimed(&answer.body), untimed(&plain.body));
        assert!(settings.split_bytes == 0 || answer.chunks.iter().all(|size| *size <= settings.split_bytes as usize));
        assert!(
            settings.split_bytes > 0 || answer.chunks.len() == 9_usize.div_ceil(settings.events_per_chunk as usize)
        );
        let record = simulator.requests().pop().unwrap();
        assert_eq!((record.wire_tokens, record.wire_events, record.outcome.as_str()), (6, 9, "complete"));
    }
}

#[tokio::test]
async fn a_drain_ends_streams_with_abort_and_a_kill_cuts_them() {
    let slow = SimulatorSettings { time_per_output_token_us: 2_000, ..settings() };
    let long = body(true).replace("\"max_tokens\":6", "\"max_tokens\":5000");
    let start = async || {
        let simulator = Simulator::start(slow.clone()).await.unwrap();
        let mut client = Client::send(
            simulator.addr(),
            "POST",
            CHAT,
            &[("Content-Type", "application/json")],
            Some(long.as_bytes()),
        )
        .await;
        client.read_events(5).await;
        (simulator, client)
    };
    let (simulator, client) = start().await;
    simulator.drain().await;
    let drained = client.finish().await;
    assert_eq!(drained.end, End::Whole);
    assert!(
        drained.body.contains(r#""finish_reason":"abort""#) && drained.body.ends_with("data: [DONE]\n\n"),
        "{}",
        drained.body
    );
    let (simulator, client) = start().await;
    simulator.kill().await;
    assert_ne!(client.finish().await.end, End::Whole);
}

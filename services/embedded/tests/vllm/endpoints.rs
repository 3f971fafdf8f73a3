//! Messages, responses and the tokenizer's paths against their captures; every fault on them; the oracle and the counters.

use embedded::vllm::{Simulator, SimulatorSettings, count_chat, count_text};
use serde_json::{Value, json};

use crate::client::{Answer, Client, End, get, post};
use crate::counting::{settings, until};
use crate::normal::{forms, normal};
use crate::replay::{ask, capture, flagged, plain, same};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const RESPONSES: &str = "/v1/responses";

/// A request to each path that streams, with nothing but what it needs.
fn body(path: &str, content: &str, stream: bool) -> String {
    match path {
        MESSAGES => json!({"model": "llama-3.1-8b", "max_tokens": 6, "stream": stream,
            "messages": [{"role": "user", "content": content}]}),
        _ => json!({"input": content, "max_output_tokens": 6, "stream": stream}),
    }
    .to_string()
}

/// The data of a stream's events.
fn data(answer: &Answer) -> Vec<Value> {
    let lines = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn messages_are_the_captured_bytes() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for name in ["a_messages", "a_messages_stream", "a_messages_err_model", "a_messages_err_no_max"] {
        same(name, &ask(&simulator, name, "POST", MESSAGES, &[]).await, false, false);
    }
    same("a_messages_count", &ask(&simulator, "a_messages_count", "POST", COUNT, &[]).await, false, false);
    let flagged = Simulator::start(flagged()).await.unwrap();
    let auth = ("Authorization", "Bearer key");
    for name in ["b_cached_messages", "b_cached_messages_stream"] {
        ask(&flagged, name, "POST", MESSAGES, &[auth]).await;
        same(name, &ask(&flagged, name, "POST", MESSAGES, &[auth]).await, true, true);
    }
    let named = ("x-api-key", "key");
    let refused = ask(&flagged, "b_auth_xapikey_messages", "POST", MESSAGES, &[named]).await;
    same("b_auth_xapikey_messages", &refused, false, true);
    let busy = ("x-simulator-fault", "overload");
    same("q_overload_503_messages", &ask(&flagged, "a_messages", "POST", MESSAGES, &[auth, busy]).await, false, true);
}

#[tokio::test]
async fn responses_are_the_captured_bytes() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for name in ["a_responses", "a_responses_err_model"] {
        same(name, &ask(&simulator, name, "POST", RESPONSES, &[]).await, false, false);
    }
    // The real engine was ahead of its writer: the first token alone, then five together.
    let joined = Simulator::start(SimulatorSettings { stream_interval: 5, ..plain() }).await.unwrap();
    same("a_responses_stream", &ask(&joined, "a_responses_stream", "POST", RESPONSES, &[]).await, false, false);
    same("a_responses_get", &get(simulator.addr(), "/v1/responses/resp_nope").await, false, false);
    let cancelled = post(simulator.addr(), "/v1/responses/resp_nope/cancel", &[], "{}").await;
    same("a_responses_get", &cancelled, false, false);
    assert_eq!(get(simulator.addr(), RESPONSES).await.status(), 405);
    let flagged = Simulator::start(flagged()).await.unwrap();
    let auth = ("Authorization", "Bearer key");
    ask(&flagged, "b_cached_responses", "POST", RESPONSES, &[auth]).await;
    same("b_cached_responses", &ask(&flagged, "b_cached_responses", "POST", RESPONSES, &[auth]).await, true, true);
    for (extra, status) in [(json!({"previous_response_id": "resp_x"}), 404), (json!({"background": true}), 400)] {
        let mut body = extra;
        body["input"] = json!("x");
        assert_eq!(post(simulator.addr(), RESPONSES, &[], &body.to_string()).await.status(), status);
    }
    for bad in ["{}", r#"{"input":7}"#] {
        assert_eq!(post(simulator.addr(), RESPONSES, &[], bad).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn a_generating_model_has_no_pooling_paths() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for (name, path) in [
        ("a_embeddings_on_generate", "/v1/embeddings"),
        ("a_rerank_on_generate", "/v1/rerank"),
        ("a_score_on_generate", "/score"),
    ] {
        same(name, &ask(&simulator, name, "POST", path, &[]).await, false, false);
    }
    same("a_detokenize", &ask(&simulator, "a_detokenize", "POST", "/detokenize", &[]).await, false, false);
    assert_eq!(post(simulator.addr(), "/detokenize", &[], r#"{"tokens":[128256]}"#).await.status(), 400);
    assert_eq!(post(simulator.addr(), "/detokenize", &[], "{}").await.status(), 400);
}

#[tokio::test]
async fn what_stands_in_messages_and_responses_is_counted_as_the_chat_that_it_is() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let blocks = json!({"model": "llama-3.1-8b", "max_tokens": 1, "system": [{"type": "text", "text": "be kind"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}, {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]}]});
    let items = json!({"max_output_tokens": 1, "instructions": "be kind", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}, {"role": "assistant", "content": "yes"},
        {"type": "function_call_output", "call_id": "c", "output": "42"}, {"type": "reasoning", "summary": []}]});
    let tokens = count_chat(["be kind", "hello", "yes", "42"]);
    let message = post(simulator.addr(), MESSAGES, &[], &blocks.to_string()).await.json();
    assert_eq!(message["usage"]["input_tokens"], tokens);
    let counted = post(simulator.addr(), COUNT, &[], &blocks.to_string()).await.json();
    assert_eq!(counted["input_tokens"], tokens);
    let response = post(simulator.addr(), RESPONSES, &[], &items.to_string()).await.json();
    assert_eq!(response["usage"]["input_tokens"], tokens);
    let image = json!({"model": "llama-3.1-8b", "max_tokens": 1,
        "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]});
    let refused = post(simulator.addr(), MESSAGES, &[], &image.to_string()).await;
    assert_eq!((refused.status(), refused.json()["type"].clone()), (400, json!("error")));
}

#[tokio::test]
async fn reasoning_and_stop_reasons_have_their_own_forms() {
    let simulator = Simulator::start(settings()).await.unwrap();
    let thought = "[[reasoning:3]] hello";
    let message = post(simulator.addr(), MESSAGES, &[], &body(MESSAGES, thought, false)).await.json();
    assert_eq!(
        (message["content"][0]["type"].as_str(), message["content"][1]["type"].as_str()),
        (Some("thinking"), Some("text"))
    );
    let events = data(&post(simulator.addr(), MESSAGES, &[], &body(MESSAGES, thought, true)).await);
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["delta"]["type"].as_str()).collect();
    assert_eq!(kinds[..4], ["thinking_delta", "thinking_delta", "thinking_delta", "signature_delta"]);
    let starts: Vec<&Value> = events.iter().filter(|event| event["type"] == "content_block_start").collect();
    assert_eq!((starts.len(), starts[1]["index"].as_u64()), (2, Some(1)));
    let response = post(simulator.addr(), RESPONSES, &[], &body(RESPONSES, thought, false)).await.json();
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 3);
    assert_eq!(
        (response["output"][0]["type"].as_str(), response["output"][1]["type"].as_str()),
        (Some("reasoning"), Some("message"))
    );
    let events = data(&post(simulator.addr(), RESPONSES, &[], &body(RESPONSES, thought, true)).await);
    let last = events.last().unwrap();
    assert_eq!(last["response"]["usage"]["output_tokens_details"]["reasoning_tokens"], 3);
    assert_eq!(last["response"]["output"].as_array().unwrap().len(), 2);
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    for (end, reason) in [("[[tokens:4]]", "end_turn"), ("hello", "max_tokens")] {
        let message = post(simulator.addr(), MESSAGES, &[], &body(MESSAGES, end, false)).await.json();
        assert_eq!(message["stop_reason"], reason);
    }
    let said = message_text(&simulator, json!(null)).await;
    let stop: String = said.chars().skip(5).take(4).collect();
    let mut stopping: Value = serde_json::from_str(&body(MESSAGES, "hello", false)).unwrap();
    stopping["stop_sequences"] = json!([stop]);
    let message = post(simulator.addr(), MESSAGES, &[], &stopping.to_string()).await.json();
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
}

async fn message_text(simulator: &Simulator, stop: Value) -> String {
    let mut asked: Value = serde_json::from_str(&body(MESSAGES, "hello", false)).unwrap();
    asked["stop_sequences"] = stop;
    let message = post(simulator.addr(), MESSAGES, &[], &asked.to_string()).await.json();
    message["content"][0]["text"].as_str().unwrap().to_owned()
}

async fn struck(simulator: &Simulator, path: &str, fault: &str, stream: bool) -> Answer {
    let answer = post(simulator.addr(), path, &[("x-simulator-fault", fault)], &body(path, "hello", stream)).await;
    until("the outcome is noted", || simulator.requests().last().is_some_and(|request| request.outcome != "running"))
        .await;
    let record = simulator.requests().pop().unwrap();
    assert_eq!((record.fault.as_deref(), record.endpoint.as_str()), (Some(fault), path));
    let name = fault.split(':').next().unwrap();
    let ended = if ["stall", "slow_drip", "no_usage"].contains(&name) { "complete" } else { name };
    assert_eq!(record.outcome, ended, "{path} {fault}: {record:?}");
    answer
}

#[tokio::test]
async fn every_fault_strikes_the_streams_of_messages_and_responses() {
    let simulator = Simulator::start(settings()).await.unwrap();
    for path in [MESSAGES, RESPONSES] {
        assert_eq!(struck(&simulator, path, "refuse", true).await.end, End::Closed);
        let died = struck(&simulator, path, "die_mid_stream:4", true).await;
        assert_eq!((died.events().len(), died.end), (4, End::Closed));
        assert_eq!(struck(&simulator, path, "reset_mid_stream:2", true).await.end, End::Reset);
        let early = struck(&simulator, path, "no_done:4", true).await;
        assert_eq!((early.events().len(), early.end), (4, End::Whole));
        let malformed = struck(&simulator, path, "malformed:3", true).await;
        let lines = malformed.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let broken: Vec<bool> = lines.map(|line| serde_json::from_str::<Value>(line).is_err()).collect();
        assert_eq!((broken[3], broken.iter().filter(|broken| **broken).count()), (true, 1));
        let usageless = struck(&simulator, path, "no_usage", true).await;
        assert!(!usageless.body.contains("\"output_tokens\""), "{}", usageless.body);
        for fault in ["stall:0:30", "stall:3:30", "slow_drip:50:1"] {
            assert_eq!(struck(&simulator, path, fault, true).await.end, End::Whole, "{fault}");
        }
        assert_eq!(struck(&simulator, path, "status:502", true).await.status(), 502);
        assert_eq!(struck(&simulator, path, "overload", true).await.status(), 503);
    }
    let dead = struck(&simulator, MESSAGES, "error_mid_stream:3", true).await;
    assert_eq!((dead.end, data(&dead).last().unwrap()["error"]["type"].clone()), (End::Whole, json!("internal_error")));
    assert_eq!(struck(&simulator, RESPONSES, "error_mid_stream:3", true).await.end, End::Closed);
    let aborted = data(&struck(&simulator, MESSAGES, "abort:2", true).await);
    let delta = aborted.iter().find(|event| event["type"] == "message_delta").unwrap();
    assert_eq!((&delta["delta"]["stop_reason"], &delta["usage"]["output_tokens"]), (&json!(null), &json!(2)));
    let aborted = data(&struck(&simulator, RESPONSES, "abort:2", true).await);
    let last = aborted.last().unwrap();
    assert_eq!(
        (&last["response"]["status"], &last["response"]["usage"]["output_tokens"]),
        (&json!("completed"), &json!(2))
    );
}

#[tokio::test]
async fn every_fault_strikes_whole_messages_and_responses() {
    let simulator = Simulator::start(settings()).await.unwrap();
    for path in [MESSAGES, RESPONSES] {
        assert_eq!(struck(&simulator, path, "die_mid_stream:1", false).await.end, End::Closed);
        let malformed = struck(&simulator, path, "malformed:0", false).await;
        assert!(malformed.end == End::Whole && serde_json::from_str::<Value>(&malformed.body).is_err());
        assert!(struck(&simulator, path, "no_usage", false).await.json()["usage"].is_null());
        assert_eq!(struck(&simulator, path, "error_mid_stream:3", false).await.status(), 500);
        let aborted = struck(&simulator, path, "abort:3", false).await.json();
        assert_eq!(aborted["usage"]["output_tokens"], 3);
    }
    let error = struck(&simulator, MESSAGES, "status:500", false).await.json();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("InternalServerError")));
    let counted = [("x-simulator-fault", "status:429")];
    assert_eq!(post(simulator.addr(), COUNT, &counted, &body(MESSAGES, "x", false)).await.status(), 429);
    assert_eq!(post(simulator.addr(), "/tokenize", &counted, r#"{"prompt":"x"}"#).await.status(), 429);
}

#[tokio::test]
async fn the_oracle_and_the_counters_know_messages_and_responses() {
    let simulator = Simulator::start(settings()).await.unwrap();
    for path in [MESSAGES, RESPONSES] {
        for stream in [false, true] {
            let header = [("X-Request-Id", "r-1")];
            let answer = post(simulator.addr(), path, &header, &body(path, "hello", stream)).await;
            let record = simulator.requests().pop().unwrap();
            assert_eq!((record.endpoint.as_str(), record.stream, record.outcome.as_str()), (path, stream, "complete"));
            let tokens = (record.prompt_tokens, record.generated_tokens, record.wire_tokens);
            assert_eq!(tokens, (u64::from(count_chat(["hello"])), 6, 6), "{path} {stream}");
            assert_eq!(record.wire_events as usize, if stream { answer.events().len() } else { 1 });
            assert!(answer.body.contains(&format!("\"id\":\"{}\"", record.id)), "{}", answer.body);
            assert_eq!(record.id == "chatcmpl-r-1", path == MESSAGES);
        }
    }
    post(simulator.addr(), COUNT, &[], &body(MESSAGES, "hello", false)).await;
    post(simulator.addr(), "/tokenize", &[], r#"{"prompt":"hello"}"#).await;
    let counted: Vec<u64> = simulator.requests().iter().skip(4).map(|record| record.prompt_tokens).collect();
    assert_eq!(counted, [u64::from(count_chat(["hello"])), u64::from(count_text("hello"))]);
    let page = get(simulator.addr(), "/metrics").await.body;
    assert!(page.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 24.0\n"), "{page}");
    let prompt = 4 * count_chat(["hello"]);
    assert!(
        page.contains(&format!("vllm:prompt_tokens_total{{engine=\"0\",model_name=\"llama-3.1-8b\"}} {prompt}.0\n"))
    );
}

#[tokio::test]
async fn a_client_that_goes_is_noticed_in_a_stream_of_messages() {
    let slow = SimulatorSettings { time_per_output_token_us: 2_000, ..settings() };
    let simulator = Simulator::start(slow).await.unwrap();
    let long = body(MESSAGES, "hello", true).replace("\"max_tokens\":6", "\"max_tokens\":5000");
    let headers = [("Content-Type", "application/json")];
    let mut client = Client::send(simulator.addr(), "POST", MESSAGES, &headers, Some(long.as_bytes())).await;
    client.read_events(5).await;
    drop(client);
    until("the disconnect is noticed", || simulator.requests()[0].outcome == "client_gone").await;
}

#[test]
fn streams_differ_only_in_what_varies() {
    let (_, body) = capture("a_responses_stream");
    assert_eq!(forms(&body).len(), 10);
    assert!(normal(&body, false).contains(r#""delta":~,"item_id":~,"logprobs":[]"#));
}

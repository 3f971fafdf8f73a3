//! The same requests to the simulator and to the real server: the answers must be the same bytes but for ids, times and texts.

use std::path::PathBuf;

use embedded::vllm::{ArmedFault, Simulator, SimulatorSettings, When};

use crate::client::{Answer, Client, get, post};
use crate::normal::{forms, normal, normal_head};

pub(crate) fn file(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Head and body of a capture.
pub(crate) fn capture(name: &str) -> (String, String) {
    let bytes = file(&format!("{name}.txt"));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The flags of the `a_` captures.
pub(crate) fn plain() -> SimulatorSettings {
    SimulatorSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        models: vec!["llama-3.1-8b".into(), "llama-alias".into()],
        max_model_len: 1024,
        enable_prompt_tokens_details: false,
        ..SimulatorSettings::default()
    }
}

/// The flags of the `b_` captures.
pub(crate) fn flagged() -> SimulatorSettings {
    SimulatorSettings {
        enable_prompt_tokens_details: true,
        enable_request_id_headers: true,
        enable_force_include_usage: true,
        enable_per_request_metrics: true,
        api_key: Some("key".into()),
        ..plain()
    }
}

pub(crate) async fn ask(
    simulator: &Simulator,
    name: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let request = format!("{name}.req.json");
    let body = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/captures")
        .join(&request)
        .exists()
        .then(|| file(&request));
    let mut all = headers.to_vec();
    if body.is_some() {
        all.push(("Content-Type", "application/json"));
    }
    Client::send(simulator.addr(), method, path, &all, body.as_deref()).await.finish().await
}

pub(crate) fn same(name: &str, answer: &Answer, counts_too: bool, own_id: bool) {
    let (head, body) = capture(name);
    assert_eq!(normal_head(&answer.head, own_id), normal_head(&head, own_id), "head of {name}");
    assert_eq!(normal(&answer.body, counts_too), normal(&body, counts_too), "body of {name}");
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[tokio::test]
async fn plain_answers_are_the_captured_bytes_with_the_captured_counts() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for name in [
        "a_chat",
        "a_chat_alias_model",
        "a_chat_ignore_eos",
        "a_chat_logprobs",
        "a_chat_max_completion_tokens",
        "a_chat_n3",
        "a_chat_no_max_tokens",
        "a_chat_no_model",
        "a_chat_token_ids",
        "a_chat_unknown_field",
        "a_err_priority_fcfs",
        "a_reqid_body",
        "a_session_hdr",
        "a_stream",
        "a_stream_continuous_only",
        "a_stream_interval",
        "a_stream_logprobs",
        "a_stream_usage",
        "a_stream_usage_continuous",
    ] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[]).await, false, false);
    }
    for name in [
        "a_compl",
        "a_compl_best_of",
        "a_compl_default_max",
        "a_compl_echo",
        "a_compl_max0_echo",
        "a_compl_stream_continuous",
        "a_compl_tokens",
    ] {
        same(name, &ask(&simulator, name, "POST", COMPLETIONS, &[]).await, false, false);
    }
    for name in ["a_chat_system_multi", "a_tools_none", "a_err_bad_role"] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[]).await, true, false);
    }
    same("a_compl_list", &ask(&simulator, "a_compl_list", "POST", COMPLETIONS, &[]).await, true, false);
    same("a_invocations", &ask(&simulator, "a_invocations", "POST", "/invocations", &[]).await, false, false);
    for name in ["a_tokenize", "a_tokenize_chat"] {
        same(name, &ask(&simulator, name, "POST", "/tokenize", &[]).await, false, false);
    }
}

#[tokio::test]
async fn events_are_one_http_chunk_each() {
    let simulator = Simulator::start(plain()).await.unwrap();
    let answer = ask(&simulator, "a_stream_usage", "POST", CHAT, &[]).await;
    let (_, raw) = capture("a_stream_usage_rawchunked");
    let captured: Vec<&str> = raw.split("\r\n").collect();
    let sent = String::from_utf8(answer.raw.clone()).unwrap();
    let sent: Vec<&str> = sent.split("\r\n").collect();
    assert_eq!(sent.len(), captured.len());
    for (sent, captured) in sent.iter().zip(captured).skip(1).step_by(2) {
        assert_eq!(normal(sent, false), normal(captured, false));
    }
}

#[tokio::test]
async fn small_paths_are_the_captured_bytes() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for (name, path) in [
        ("a_get_health", "/health"),
        ("a_get_ping", "/ping"),
        ("a_get_version", "/version"),
        ("a_get_load", "/load"),
        ("a_get_v1_models", "/v1/models"),
        ("a_err_get", CHAT),
    ] {
        same(name, &ask(&simulator, name, "GET", path, &[]).await, false, false);
    }
    same("a_err_404", &ask(&simulator, "a_err_404", "POST", "/v1/nope", &[]).await, false, false);
}

#[tokio::test]
async fn refusals_are_the_captured_bytes() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for name in [
        "a_chat_max_tokens_0",
        "a_err_bad_json",
        "a_err_bad_utf8",
        "a_err_ctx_too_long",
        "a_err_ctx_too_long_stream",
        "a_err_empty_messages",
        "a_err_image",
        "a_err_lone_surrogate",
        "a_err_max_too_big",
        "a_err_missing_messages",
        "a_err_model",
        "a_err_model_stream",
        "a_err_n0",
        "a_err_n_huge",
        "a_err_neg_max",
        "a_err_not_object",
        "a_err_stream_options_no_stream",
        "a_err_temperature",
        "a_err_wrong_type",
    ] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[]).await, false, false);
    }
    for name in ["a_err_model_compl", "a_err_token_id_oov"] {
        same(name, &ask(&simulator, name, "POST", COMPLETIONS, &[]).await, false, false);
    }
    same("a_err_empty_body", &post(simulator.addr(), CHAT, &[], "").await, false, false);
    let odd = Client::send(simulator.addr(), "POST", CHAT, &[("Content-Type", "text/plain")], Some(b"{}"))
        .await
        .finish()
        .await;
    same("a_err_content_type", &odd, false, false);
}

#[tokio::test]
async fn the_clients_request_id_becomes_the_answers_id() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for name in ["a_reqid", "a_reqid_stream"] {
        let answer = ask(&simulator, name, "POST", CHAT, &[("X-Request-Id", "gw-123")]).await;
        assert!(answer.body.contains(r#""id":"chatcmpl-gw-123""#), "{}", answer.body);
        same(name, &answer, false, false);
    }
}

#[tokio::test]
async fn flags_change_the_answer_as_captured() {
    let simulator = Simulator::start(flagged()).await.unwrap();
    let auth = ("Authorization", "Bearer key");
    for name in ["b_auth_ok2", "b_reqid_hdr_none", "b_stream_force_usage_off"] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[auth]).await, false, true);
    }
    for (name, id) in [("b_reqid_hdr", "gw-abc"), ("b_reqid_hdr_err", "gw-err"), ("b_reqid_hdr_stream", "gw-str")] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[auth, ("X-Request-Id", id)]).await, false, false);
    }
    for name in ["b_cached_1", "b_cached_2", "b_cached_stream", "b_cached_salt", "b_tools_auto"] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[auth]).await, true, true);
    }
    same(
        "b_cached_completions",
        &ask(&simulator, "b_cached_completions", "POST", COMPLETIONS, &[auth]).await,
        true,
        true,
    );
    same("b_load", &ask(&simulator, "b_load", "GET", "/load", &[]).await, false, true);
    for (name, header) in [
        ("b_auth_bad", ("Authorization", "Bearer no")),
        ("b_auth_basic", ("Authorization", "Basic key")),
        ("b_auth_none", ("X", "y")),
    ] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[header]).await, false, true);
    }
}

#[tokio::test]
async fn streams_of_several_choices_have_the_captured_forms() {
    let simulator = Simulator::start(plain()).await.unwrap();
    for (name, path) in [("a_stream_n2_usage", CHAT), ("a_compl_n2_list_stream", COMPLETIONS)] {
        let answer = ask(&simulator, name, "POST", path, &[]).await;
        let (captured, sent) = (forms(&capture(name).1), forms(&answer.body));
        let unindexed = |forms: Vec<String>| {
            forms
                .into_iter()
                .map(|form| form.replace(|c: char| c.is_ascii_digit(), ""))
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(unindexed(sent), unindexed(captured), "{name}");
    }
}

#[tokio::test]
async fn forced_tool_calls_are_the_captured_bytes() {
    let simulator = Simulator::start(SimulatorSettings { api_key: None, ..flagged() }).await.unwrap();
    for name in ["b_tools_named", "b_tools_named_stream", "b_tools_required", "b_tools_required_stream"] {
        same(name, &ask(&simulator, name, "POST", CHAT, &[]).await, true, true);
    }
    let without = Simulator::start(SimulatorSettings { enable_auto_tool_choice: false, ..plain() }).await.unwrap();
    for name in ["a_tools_named", "a_tools_named_stream", "a_tools_required", "a_tools_auto_disabled"] {
        same(name, &ask(&without, name, "POST", CHAT, &[]).await, false, false);
    }
}

#[tokio::test]
async fn stop_strings_end_a_choice_as_captured() {
    let simulator = Simulator::start(plain()).await.unwrap();
    let body =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&file(&format!("{name}.req.json"))).unwrap() };
    let mut open = body("a_chat_stop");
    open["stop"] = serde_json::Value::Null;
    let text = post(simulator.addr(), CHAT, &[], &open.to_string()).await.json()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let stop: String = text.chars().skip(20).take(5).collect();
    for name in ["a_chat_stop", "a_chat_stop_included"] {
        let mut asked = body(name);
        asked["stop"] = serde_json::json!([stop]);
        let answer = post(simulator.addr(), CHAT, &[], &asked.to_string()).await;
        same(name, &answer, true, false);
        let said = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let (before, _) = text.split_once(&stop).unwrap();
        assert_eq!(said, if name.ends_with("included") { format!("{before}{stop}") } else { before.to_owned() });
    }
    let mut asked = body("a_stream_stop_usage");
    asked["stop"] = serde_json::json!([stop]);
    let answer = post(simulator.addr(), CHAT, &[], &asked.to_string()).await;
    assert_eq!(forms(&answer.body), forms(&capture("a_stream_stop_usage").1));
}

#[tokio::test]
async fn broken_engines_and_drains_look_as_captured() {
    let simulator = Simulator::start(plain()).await.unwrap();
    let chat = |extra: &str| format!(r#"{{"messages":[{{"role":"user","content":"x"}}],"max_tokens":50{extra}}}"#);
    let crash = ("x-simulator-fault", "error_mid_stream:9");
    let answer = post(simulator.addr(), CHAT, &[crash], &chat(r#","stream":true"#)).await;
    assert_eq!(forms(&answer.body), forms(&capture("crash_worker_stream").1));
    same("crash_worker_nonstream", &post(simulator.addr(), CHAT, &[crash], &chat("")).await, false, false);
    let abort = ("x-simulator-fault", "abort:7");
    let settings = SimulatorSettings { api_key: None, ..flagged() };
    let flagged = Simulator::start(settings).await.unwrap();
    let answer = post(flagged.addr(), CHAT, &[abort], &chat(r#","stream":true"#)).await;
    assert_eq!(forms(&answer.body), forms(&capture("sigterm_api_stream").1));
    same("sigterm_api_nonstream", &post(flagged.addr(), CHAT, &[abort], &chat("")).await, true, true);
    flagged.arm(vec![ArmedFault { fault: "overload".parse().unwrap(), when: When::Always, model: None }]);
    same("q_overload_503", &post(flagged.addr(), CHAT, &[], &chat("")).await, false, true);
    same("q_overload_503_stream", &post(flagged.addr(), CHAT, &[], &chat(r#","stream":true"#)).await, false, true);
}

#[tokio::test]
async fn comments_keep_a_slow_start_alive() {
    let settings =
        SimulatorSettings { keep_alive_interval_ms: 5, time_to_first_token_us: 60_000, api_key: None, ..flagged() };
    let simulator = Simulator::start(settings).await.unwrap();
    let answer = post(
        simulator.addr(),
        CHAT,
        &[],
        r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":3,"stream":true}"#,
    )
    .await;
    let captured = capture("q_stream_keepalive").1.split("\r\n").skip(1).step_by(2).collect::<String>();
    assert_eq!(forms(&answer.body), forms(&captured));
}

#[tokio::test]
async fn metrics_are_lines_of_the_captured_page_in_its_order() {
    let simulator = Simulator::start(plain()).await.unwrap();
    ask(&simulator, "a_chat", "POST", CHAT, &[]).await;
    let answer = get(simulator.addr(), "/metrics").await;
    let (head, page) = capture("a_metrics_after");
    assert_eq!(normal_head(&answer.head, false), normal_head(&head, false));
    let name =
        |line: &str| if line.starts_with('#') { line.to_owned() } else { line.rsplit_once(' ').unwrap().0.to_owned() };
    let mut captured = page.lines().map(name);
    for line in answer.body.lines().map(name) {
        assert!(captured.any(|other| other == line), "not there, or out of order: {line}");
    }
    assert!(
        answer.body.contains("vllm:prompt_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 17.0\n"),
        "{}",
        answer.body
    );
    assert!(answer.body.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 16.0\n"));
}

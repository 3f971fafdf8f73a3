//! A pooling model against its captures, its faults, and its oracle.

use embedded::vllm::{Runner, Simulator, SimulatorSettings, count_text};
use serde_json::{Value, json};

use crate::client::{Answer, End, get, post};
use crate::counting::until;
use crate::replay::{ask, plain, same};

const EMBEDDINGS: &str = "/v1/embeddings";

async fn pooling() -> Simulator {
    Simulator::start(SimulatorSettings { runner: Runner::Pooling, ..plain() }).await.unwrap()
}

async fn embed(simulator: &Simulator, body: Value) -> Answer {
    post(simulator.addr(), EMBEDDINGS, &[], &body.to_string()).await
}

#[tokio::test]
async fn answers_are_the_captured_bytes() {
    let simulator = pooling().await;
    for (name, path) in [
        ("p_embeddings", EMBEDDINGS),
        ("p_embeddings_err_model", EMBEDDINGS),
        ("p_pooling", "/pooling"),
        ("p_rerank", "/v1/rerank"),
        ("p_rerank_v2", "/v2/rerank"),
        ("p_rerank", "/rerank"),
        ("p_score", "/score"),
        ("p_v1_score", "/v1/score"),
        ("p_chat_on_pooling", "/v1/chat/completions"),
    ] {
        same(name, &ask(&simulator, name, "POST", path, &[]).await, false, false);
    }
    same("p_embeddings_list", &ask(&simulator, "p_embeddings_list", "POST", EMBEDDINGS, &[]).await, true, false);
    for path in ["/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/v1/completions"] {
        assert_eq!(post(simulator.addr(), path, &[], "{}").await.status(), 404, "{path}");
    }
    assert_eq!(get(simulator.addr(), "/v1/responses/resp_x").await.json(), json!({"detail": "Not Found"}));
    assert_eq!(get(simulator.addr(), EMBEDDINGS).await.status(), 405);
}

#[tokio::test]
async fn embeddings_come_in_every_form_that_is_asked_for() {
    let simulator = pooling().await;
    let float = embed(&simulator, json!({"input": "hello", "dimensions": 16})).await.json();
    let vector: Vec<f64> = serde_json::from_value(float["data"][0]["embedding"].clone()).unwrap();
    let length: f64 = vector.iter().map(|value| value * value).sum();
    assert!(vector.len() == 16 && (length - 1.0).abs() < 1e-5, "{vector:?}");
    let coded =
        embed(&simulator, json!({"input": "hello", "dimensions": 16, "encoding_format": "base64"})).await.json();
    assert_eq!(coded["data"][0]["embedding"].as_str().unwrap().len(), (16_usize * 4).div_ceil(3) * 4);
    let ids: Value = post(simulator.addr(), "/tokenize", &[], r#"{"prompt":"hello"}"#).await.json()["tokens"].clone();
    for input in [ids.clone(), json!([ids, ids])] {
        let answer = embed(&simulator, json!({"input": input, "dimensions": 16})).await.json();
        assert_eq!(answer["data"][0]["embedding"], float["data"][0]["embedding"]);
    }
    for bad in [
        json!({}),
        json!({"input": ""}),
        json!({"input": []}),
        json!({"input": "x", "dimensions": 129}),
        json!({"input": "x", "encoding_format": "bytes"}),
        json!({"input": [128_256]}),
        json!({"input": "x".repeat(4 * 1025)}),
    ] {
        assert_eq!(embed(&simulator, bad.clone()).await.status(), 400, "{bad}");
    }
    assert_eq!(embed(&simulator, json!({"input": "x".repeat(4 * 1024)})).await.status(), 200);
}

#[tokio::test]
async fn ranks_are_sorted_and_scores_pair_up() {
    let simulator = pooling().await;
    let documents = json!(["something else", "good morning", "good"]);
    let rank = post(
        simulator.addr(),
        "/rerank",
        &[],
        &json!({"query": "good morning", "documents": documents, "top_n": 2}).to_string(),
    )
    .await
    .json();
    let order: Vec<u64> =
        rank["results"].as_array().unwrap().iter().map(|one| one["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 2]);
    for bad in [json!({"query": ["a"], "documents": ["b"]}), json!({"query": "a", "documents": ["b"], "top_n": -1})] {
        assert_eq!(post(simulator.addr(), "/rerank", &[], &bad.to_string()).await.status(), 400, "{bad}");
    }
    let score = async |body: Value| post(simulator.addr(), "/score", &[], &body.to_string()).await;
    let pairs = score(json!({"queries": ["a", "b"], "documents": ["a", "c"]})).await.json();
    assert!((pairs["data"][0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    for bad in
        [json!({"text_1": ["a", "b"], "text_2": ["c"]}), json!({"text_1": [], "text_2": "x"}), json!({"text_1": "x"})]
    {
        assert_eq!(score(bad.clone()).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn the_oracle_and_the_counters_know_prompts_without_an_output() {
    let simulator = pooling().await;
    embed(&simulator, json!({"input": ["hello world", "hello"]})).await;
    let record = simulator.requests().pop().unwrap();
    let tokens = u64::from(count_text("hello world") + count_text("hello"));
    assert_eq!((record.prompt_tokens, record.prefilled_tokens), (tokens, tokens));
    assert_eq!((record.generated_tokens, record.wire_tokens, record.outcome.as_str()), (0, 0, "complete"));
    let page = get(simulator.addr(), "/metrics").await.body;
    let line = |name: &str, value: &str| format!("vllm:{name}{{engine=\"0\",{value}\n");
    assert!(
        page.contains(&line("prompt_tokens_total", &format!("model_name=\"llama-3.1-8b\"}} {tokens}.0"))),
        "{page}"
    );
    assert!(page.contains(&line("generation_tokens_total", "model_name=\"llama-3.1-8b\"} 0.0")));
    assert!(page.contains(&line("request_success_total", "finished_reason=\"stop\",model_name=\"llama-3.1-8b\"} 2.0")));
}

#[tokio::test]
async fn every_fault_strikes_a_pooling_model() {
    let simulator = pooling().await;
    for (fault, status, end) in [
        ("refuse", 0, End::Closed),
        ("die_mid_stream:1", 200, End::Closed),
        ("reset_mid_stream:1", 200, End::Reset),
        ("malformed:0", 200, End::Whole),
        ("no_done:1", 200, End::Whole),
        ("status:429", 429, End::Whole),
        ("overload", 503, End::Whole),
        ("error_mid_stream:1", 500, End::Whole),
        ("abort:1", 500, End::Whole),
        ("no_usage", 200, End::Whole),
        ("stall:0:20", 200, End::Whole),
        ("stall:1:20", 200, End::Whole),
        ("slow_drip:100:1", 200, End::Whole),
    ] {
        for (path, body) in [(EMBEDDINGS, r#"{"input":"hello"}"#), ("/rerank", r#"{"query":"a","documents":["b"]}"#)] {
            let answer = post(simulator.addr(), path, &[("x-simulator-fault", fault)], body).await;
            assert_eq!((answer.status(), answer.end), (status, end), "{fault}");
            until("the outcome is noted", || simulator.requests().last().is_some_and(|r| r.outcome != "running")).await;
            let record = simulator.requests().pop().unwrap();
            let name = fault.split(':').next().unwrap();
            let ended = if ["stall", "slow_drip", "no_usage"].contains(&name) { "complete" } else { name };
            assert_eq!(record.outcome, ended, "{record:?}");
            assert!(fault != "no_usage" || answer.json()["usage"].is_null());
        }
    }
}

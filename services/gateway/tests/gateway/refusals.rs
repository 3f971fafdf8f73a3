//! What is refused: in OpenAI's error shape, with a stable code, and without a trace in the spool.

use bytes::Bytes;
use embedded::vllm::SimulatorSettings;
use http::Method;
use ledger::control::{Document, WhenSpoolFull};
use ledger::time::Micros;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Answer, CHAT, COMPLETIONS, KEY, MODEL, Setup, World, chat, simulator, stream, whole};

async fn with_key(world: &World, headers: &[(&str, &str)]) -> Answer {
    whole(world.send(Method::POST, CHAT, headers, chat("hello", 2).to_string()).await).await
}

#[tokio::test]
async fn who_has_no_good_key_gets_nothing() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut world = Setup::new(&[&replica]).start().await;
    world.control.key("tg_expired", false, Some(Micros(1)));
    world.control.key("tg_later", false, Some(Micros(i64::MAX)));
    world.control.key("tg_revoked", true, None);
    world.publish();
    while with_key(&world, &[("x-api-key", "tg_later")]).await.status != 200 {}
    for headers in [
        vec![],
        vec![("authorization", "Bearer tg_wrong")],
        vec![("authorization", "Basic dGdfdGVzdA==")],
        vec![("x-api-key", "tg_expired")],
        vec![("x-api-key", "tg_revoked")],
        vec![("x-api-key", "")],
    ] {
        let answer = with_key(&world, &headers).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "invalid_api_key"), "{headers:?}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        assert!(!answer.id().is_empty());
    }
    world.control.key(KEY, true, None);
    world.publish();
    while world.post(CHAT, &chat("hello", 2)).await.status != 401 {}
    assert!(world.all().iter().all(|end| end.status == 200), "a refusal leaves nothing in the spool");
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_its_code() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.models = Some(vec![MODEL.parse().unwrap()]);
    let world = setup.start().await;
    let bearer = format!("Bearer {KEY}");
    let key = [("authorization", bearer.as_str())];
    for (method, path, body, status, code) in [
        (Method::POST, CHAT, json!({"model": "gpt-9", "messages": []}).to_string(), 404, "model_not_found"),
        (Method::POST, CHAT, json!({"model": "other", "messages": []}).to_string(), 403, "model_not_allowed"),
        (Method::POST, CHAT, "{\"model\":".to_owned(), 400, "invalid_json"),
        (Method::POST, COMPLETIONS, String::new(), 400, "invalid_json"),
        (Method::POST, CHAT, "{}".to_owned(), 400, "invalid_value"),
        (Method::POST, CHAT, json!({"model": MODEL, "max_tokens": "9"}).to_string(), 400, "invalid_value"),
        (Method::GET, CHAT, String::new(), 405, "method_not_allowed"),
        (Method::POST, "/v1/models", String::new(), 405, "method_not_allowed"),
        (Method::POST, "/v1/audio/transcriptions", chat("x", 1).to_string(), 404, "unknown_url"),
        (Method::POST, "/pooling", chat("x", 1).to_string(), 404, "unknown_url"),
        (Method::POST, "/invocations", chat("x", 1).to_string(), 404, "unknown_url"),
        (Method::GET, "/v1/responses/resp_1", String::new(), 404, "unknown_url"),
        (Method::POST, "/v1/responses", json!({"model": MODEL, "background": true}).to_string(), 400, "invalid_value"),
        (Method::POST, "/v1/embeddings", "{}".to_owned(), 400, "invalid_value"),
        (Method::POST, "/v1/chat/completions/", chat("x", 1).to_string(), 404, "unknown_url"),
        (Method::POST, "/v1//chat/completions", chat("x", 1).to_string(), 404, "unknown_url"),
        (Method::GET, "/tokenize", String::new(), 405, "method_not_allowed"),
    ] {
        let answer = whole(world.send(method, path, &key, body.clone()).await).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{path} {body}");
        assert!(answer.json()["error"]["message"].as_str().is_some_and(|words| !words.is_empty()));
        assert!(!answer.id().is_empty());
    }
    assert!(world.all().is_empty() && replica.requests().is_empty());
    // A body whose kind is not told is JSON all the same; the replica is told.
    assert_eq!(world.post(CHAT, &chat("hello", 2)).await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_unread() {
    let replica = simulator(SimulatorSettings::default()).await;
    let world = Setup::new(&[&replica]).start().await;
    let huge = Bytes::from(vec![b'x'; 50_000_000]);
    let answer = whole(world.send(Method::POST, CHAT, &[("x-api-key", KEY)], huge.clone()).await).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"));
    // In chunks its length is not told: it is read as far as the limit, and forgotten.
    let mut socket = TcpStream::connect(world.addr).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    for piece in huge.chunks(1_000_000) {
        let head = format!("{:x}\r\n", piece.len());
        socket.write_all(&[head.as_bytes(), piece, b"\r\n"].concat()).await.unwrap();
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
    // Who asks first is told before it sends.
    let mut asking = TcpStream::connect(world.addr).await.unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 50000000\r\nexpect: 100-continue\r\n\r\n"
    );
    asking.write_all(head.as_bytes()).await.unwrap();
    asking.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
    // And nobody without a key fills any memory at all.
    let unknown = whole(world.send(Method::POST, CHAT, &[], Bytes::from_static(b"{")).await).await;
    assert_eq!(unknown.status, 401);
    world.stop().await;
}

#[tokio::test]
async fn a_full_spool_refuses_or_serves_as_the_plan_says_and_never_silently() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    (setup.spool.segment_bytes, setup.spool.max_bytes) = (1 << 16, 1 << 17);
    let mut world = setup.start().await;
    let mut served = 0;
    let full = loop {
        let answer = world.post(CHAT, &chat("hello", 2)).await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
    };
    assert_eq!((full.status.as_u16(), full.code().as_str()), (503, "spool_full"));
    assert!(full.header("retry-after").is_some());
    assert!(world.spool.stats().full);
    let mut plan = crate::world::unlimited();
    plan.when_spool_full = WhenSpoolFull::Serve;
    world.control.put("plan", Document::Plan(plan));
    world.publish();
    while world.post(CHAT, &stream("hello", 2, true)).await.status != 200 {}
    assert!(world.metric("tollgate_gateway_unmetered_total") >= 1.0);
    assert_eq!(world.all().len(), served, "the spool holds what was served before");
    world.stop().await;
}

#[tokio::test]
async fn a_model_without_a_price_is_served_and_raises_an_alarm() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut world = Setup::new(&[&replica]).start().await;
    let (model, url) = ("other".parse().unwrap(), replica.url());
    world.control.put("r9", Document::Replica(ledger::control::Replica::new(model, url)));
    world.publish();
    let body = json!({"model": "other", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2});
    while world.post(CHAT, &body).await.status != 200 {}
    assert!(world.metric("tollgate_gateway_unpriced_total{model=\"other\"}") >= 1.0);
    assert_eq!(world.metric("tollgate_gateway_unpriced_total{model=\"llama-3.1-8b\"}"), 0.0);
    world.stop().await;
}

#[tokio::test]
async fn health_readiness_and_metrics_stand_beside_the_api() {
    let replica = simulator(SimulatorSettings::default()).await;
    let world = Setup::new(&[&replica]).start().await;
    assert_eq!(world.get("/healthz").await.status, 200);
    assert_eq!(world.get("/readyz").await.status, 200);
    world.post(CHAT, &chat("hello", 2)).await;
    let text = world.get("/metrics").await.body;
    let line = r#"tollgate_gateway_requests_total{end_reason="complete",endpoint="/v1/chat/completions",model="llama-3.1-8b",plan="plan"} 1"#;
    assert!(text.contains(line), "{text}");
    world.stop().await;
}

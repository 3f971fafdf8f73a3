//! What an operator relies on: logs and metrics without secrets in every role, and stops that do as the page says.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::Method;
use promises::client::Client;
use promises::system::{ADMIN, MODELS, Role, System};
use promises::wait::until;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use promises::tenants::{new_key, shop};

const SOON: Duration = Duration::from_secs(180);
/// In every prompt.
const PROMPT: &str = "xyzzyprompt";
/// In every key that is none.
const WRONG: &str = "tg_xyzzykey";

/// A token as the simulator streams it.
const PIECE: &str = "\"delta\":{\"content\":\"";

fn chat(stream: bool, tokens: u32, fault: &str) -> Value {
    let content = format!("{PROMPT} {fault}");
    json!({
        "model": MODELS[0], "max_tokens": tokens, "stream": stream, "messages": [{"role": "user", "content": content}]
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_writes_a_prompt_or_a_key_into_its_log_or_its_metrics() {
    let mut system = System::parts(0).await;
    system.set("LOG__FILTER", "trace");
    system.set("LOG__FORMAT", "json");
    system.set("GATEWAY__TELEMETRY__ACCESS_LOG", "info");
    system.migrate();
    for role in [Role::Fold, Role::Billing, Role::Gateway] {
        system.start_role(role).await;
    }
    let mut keys = shop(&system).await;
    keys.push(new_key(&system, "acme").await.1);
    let url = system.url(Role::Gateway, "/v1/chat/completions");
    let mut last = None;
    for (stream, fault) in [
        (false, "[[fault:status:500]]"),
        (true, "[[fault:error_mid_stream:0]]"),
        (true, "[[fault:die_mid_stream:3]]"),
        (false, "[[fault:malformed:0]]"),
        (true, ""),
        (false, ""),
    ] {
        let answer = system.client.post(&url, Some(&keys[0]), &chat(stream, 5, fault)).await.unwrap();
        last = answer.header("x-request-id").map(str::to_owned);
    }
    system.client.post(&url, Some(WRONG), &chat(false, 5, "")).await.unwrap();
    let broken = Bytes::from(format!("{{\"model\": \"{PROMPT}"));
    system.client.send_bytes(Method::POST, &url, Some(&keys[0]), Some(broken)).await.unwrap();
    for (role, path) in [
        (Role::Gateway, "/v1/models"),
        (Role::Billing, "/api/v1/usage?tenant=acme"),
        (Role::Billing, "/api/v1/balances/acme"),
        (Role::Billing, "/api/v1/plans"),
        (Role::Billing, "/"),
        (Role::Fold, "/readyz"),
    ] {
        for key in [&keys[0], WRONG, ADMIN] {
            system.client.get(&system.url(role, path), Some(key)).await.unwrap();
        }
    }
    system.settled(&last.iter().cloned().collect::<Vec<_>>()).await;
    let id = last.unwrap();
    let log = std::fs::read_to_string(system.log(Role::Gateway)).unwrap();
    let lines = log.lines().filter(|line| line.contains("gateway::access") && line.contains(&id));
    assert_eq!(lines.count(), 1, "a request has one line");
    let secrets = keys.iter().map(String::as_str).chain([PROMPT, WRONG, ADMIN]);
    for secret in secrets {
        for role in Role::ALL {
            let log = std::fs::read_to_string(system.log(role)).unwrap();
            assert!(log.contains("\"TRACE\""), "the log of {} is whole", role.name());
            let metrics = system.client.get(&system.url(role, "/metrics"), None).await.unwrap();
            let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
            for text in [log, metrics] {
                let found = text.lines().find(|line| line.contains(secret));
                assert_eq!(found, None, "{secret} is in what {} writes", role.name());
            }
        }
    }
}

/// Reads a stream to its end, or to where it breaks; gives the tokens that were seen and whether it came to its end.
async fn read(client: &Client, url: &str, key: &str, tokens: u32, begun: oneshot::Sender<()>) -> (u64, bool) {
    let body = Bytes::from(chat(true, tokens, "").to_string());
    let answer = client.open(Method::POST, url, Some(key), Some(body)).await.unwrap();
    let mut frames = answer.into_body().into_data_stream();
    let (mut text, mut begun) = (String::new(), Some(begun));
    while let Some(Ok(frame)) = frames.next().await {
        text.push_str(std::str::from_utf8(&frame).unwrap());
        if text.contains(PIECE)
            && let Some(begun) = begun.take()
        {
            begun.send(()).unwrap();
        }
    }
    (text.matches(PIECE).count() as u64, text.ends_with("data: [DONE]\n\n"))
}

async fn billed(system: &System) -> u64 {
    system.raw().await.values().map(|counts| counts.generated()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_streams_come_to_their_end_and_a_second_signal_does_not_and_nothing_is_lost() {
    let system = System::start(20_000).await;
    let keys = shop(&system).await;
    let (client, url) = (system.client.clone(), system.url(Role::Gateway, "/v1/chat/completions"));
    let (begun, has_begun) = oneshot::channel();
    let stop = async {
        has_begun.await.unwrap();
        // It fails unless the exit code is 0.
        system.stop(Role::Gateway).await;
    };
    let (seen, ()) = tokio::join!(read(&client, &url, &keys[0], 100, begun), stop);
    assert_eq!(seen, (100, true), "the stream came to its end");
    let shipped = async || match billed(&system).await {
        100 => Ok(()),
        other => Err(other),
    };
    until("the stream to be billed, while no gateway runs", SOON, shipped).await;

    system.start_role(Role::Gateway).await;
    let (begun, has_begun) = oneshot::channel();
    let stop = async {
        has_begun.await.unwrap();
        system.stop_at_once(Role::Gateway).await
    };
    let ((seen, whole), code) = tokio::join!(read(&client, &url, &keys[0], 5000, begun), stop);
    assert_eq!((whole, code), (false, Some(130)));
    system.start_role(Role::Gateway).await;
    let recovered = async || match billed(&system).await {
        all if (100 + seen..100 + 5000).contains(&all) => Ok(()),
        other => Err(other),
    };
    until("what was cut to be billed", SOON, recovered).await;
}

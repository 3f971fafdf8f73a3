//! Slow answers and slow clients: errors that come first, signs of life, deadlines of the first token, clients that never read.

use std::net::SocketAddr;
use std::time::Duration;

use embedded::vllm::{ArmedFault, SimulatorSettings, When};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use crate::world::{CHAT, KEY, MODEL, Setup, chat, simulator, stream, until};

fn armed(fault: &str) -> Vec<ArmedFault> {
    vec![ArmedFault { fault: fault.parse().unwrap(), when: When::Always, model: None }]
}

/// So slow to the first token that no test waits for it.
fn never() -> SimulatorSettings {
    SimulatorSettings { time_to_first_token_us: 3_600_000_000, ..SimulatorSettings::default() }
}

#[tokio::test]
async fn an_engine_that_fails_at_once_inside_a_200_fails_with_its_own_status_and_words() {
    let replica = simulator(SimulatorSettings::default()).await;
    let world = Setup::new(&[&replica]).start().await;
    let answer = world.post(CHAT, &stream("hello [[fault:error_mid_stream:0]]", 20, true)).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (500, Some("application/json")));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("EngineCore"), "{}", answer.body);
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.finished.status), ("upstream_error", 500));
    assert_eq!((recorded.sums(), recorded.requests()), ((0, 0), 0));
    // Nothing at all, or nothing that is an answer, is no better.
    for fault in ["no_done:0", "malformed:0"] {
        let answer = world.post(CHAT, &stream(&format!("hello [[fault:{fault}]]"), 20, true)).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_error"), "{fault}");
    }
    world.stop().await;
}

#[tokio::test]
async fn another_replica_is_asked_when_the_first_event_is_an_error() {
    let (bad, good) = (simulator(SimulatorSettings::default()).await, simulator(SimulatorSettings::default()).await);
    let world = Setup::new(&[&bad, &good]).start().await;
    for fault in ["error_mid_stream:0", "no_done:0"] {
        bad.arm(armed(fault));
        let before = bad.requests().len();
        while bad.requests().len() == before {
            let answer = world.post(CHAT, &stream("hello", 3, false)).await;
            let recorded = world.recorded(&answer);
            assert_eq!((answer.status.as_u16(), recorded.reason(), recorded.sums().1), (200, "complete", 3), "{fault}");
            if bad.requests().len() > before {
                assert_eq!((recorded.finished.attempts, recorded.finished.replica.as_str()), (2, "r1"));
            }
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn a_client_hears_signs_of_life_while_a_prompt_is_read() {
    let slow = SimulatorSettings { time_to_first_token_us: 600_000, ..SimulatorSettings::default() };
    let replica = simulator(slow).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.manners.keepalive_interval = Duration::from_millis(50);
    let world = setup.start().await;
    let answer = world.post(CHAT, &stream("hello", 3, true)).await;
    let (before, _) = answer.body.split_once("data: ").unwrap();
    assert!(before.starts_with(": keep-alive\n\n") && before.replace(": keep-alive\n\n", "").is_empty(), "{before}");
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.sums().1, recorded.estimated()), ("complete", 3, false));
    assert!(world.metric("tollgate_gateway_keepalives_total") >= 1.0);
    // Anthropic's clients know an event for it.
    let messages = world.post("/v1/messages", &stream("hello", 3, false)).await;
    let (before, rest) = messages.body.split_once("event: message_start").unwrap();
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    assert!(before.starts_with(ping) && before.replace(ping, "").is_empty(), "{before}");
    assert!(rest.contains("message_stop") && world.recorded(&messages).reason() == "complete");
    // A whole answer has none.
    assert_eq!(world.post(CHAT, &chat("hello", 3)).await.json()["usage"]["completion_tokens"], 3);
    world.stop().await;
}

#[tokio::test]
async fn the_first_token_has_a_deadline_that_grows_with_the_prompt() {
    let slow = SimulatorSettings { time_to_first_token_us: 500_000, ..SimulatorSettings::default() };
    let replica = simulator(slow).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.deadlines.first_byte = Duration::from_millis(50);
    setup.settings.manners.first_byte_per_1000_tokens = Duration::from_secs(60);
    let world = setup.start().await;
    let short = world.post(CHAT, &stream("hello", 3, true)).await;
    assert_eq!((short.status.as_u16(), short.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(short.header("x-should-retry"), Some("false"), "it would take as long again");
    assert_eq!((world.recorded(&short).reason(), world.recorded(&short).sums()), ("deadline", (0, 0)));
    let long = world.post(CHAT, &stream(&"hello ".repeat(400), 3, true)).await;
    assert_eq!((long.status.as_u16(), world.recorded(&long).reason()), (200, "complete"));
    world.stop().await;
}

#[tokio::test]
async fn no_sign_of_life_puts_the_deadline_of_the_first_token_off() {
    let replica = simulator(SimulatorSettings { keep_alive_interval_ms: 20, ..never() }).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.deadlines.first_byte = Duration::from_millis(400);
    setup.settings.manners.keepalive_interval = Duration::from_millis(50);
    let world = setup.start().await;
    let answer = world.post(CHAT, &stream("hello", 3, true)).await;
    assert_eq!((answer.status.as_u16(), answer.ended), (200, true));
    assert!(answer.body.starts_with(": keep-alive\n\n"), "{}", answer.body);
    let (_, tail) = answer.body.rsplit_once("data: {").unwrap();
    assert!(tail.contains("deadline_exceeded") && tail.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    assert_eq!((world.recorded(&answer).reason(), world.recorded(&answer).sums()), ("deadline", (0, 0)));
    world.stop().await;
}

/// A client that sends its request and then nothing more, and reads nothing. Its system takes little for it.
async fn deaf(addr: SocketAddr, body: &str) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(addr).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(body.as_bytes()).await.unwrap();
    client
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_holds_no_more_than_a_buffer() {
    const TOKENS: u64 = 400_000;
    let replica = simulator(SimulatorSettings { max_model_len: 1_000_000, ..SimulatorSettings::default() }).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.manners.client_stall = Duration::from_millis(300);
    let world = setup.start().await;
    let client = deaf(world.addr, &stream("hello", TOKENS, false).to_string()).await;
    until("the request has its end", || !world.all().is_empty()).await;
    let id = world.all()[0].request_id.to_string();
    let recorded = world.try_recorded(&id).unwrap();
    assert_eq!((recorded.reason(), recorded.finished.status), ("client_cancelled", 200));
    assert_eq!(world.metric("tollgate_gateway_clients_stalled_total"), 1.0);
    // An event of one token is some 200 bytes: what was taken of the replica fits into the buffers of two sockets and ours.
    let taken = recorded.sums().1;
    assert!(taken > 0 && taken * 200 < 12 << 20, "{taken} tokens were read of {TOKENS} for nobody");
    until("the replica is let go", || replica.requests()[0].outcome == "client_gone").await;
    drop(client);
    // It is as before for others.
    assert_eq!(world.post(CHAT, &chat("hello", 2)).await.json()["model"], MODEL);
    world.stop().await;
}

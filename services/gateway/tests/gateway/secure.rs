//! TLS towards clients and towards replicas, with their keys; and a port of its own for what operators read.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use embedded::vllm::SimulatorSettings;
use gateway::{UpstreamKey, UpstreamSettings};
use runtime::tls::{Tls, TlsClient, TlsSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stub::Stub;
use crate::tokens::fixture;
use crate::world::{CHAT, KEY, Setup, World, chat, simulator, stream};

/// What a client reads that trusts the root of the tests.
async fn ask(address: SocketAddr, body: &str) -> std::io::Result<String> {
    let trusted = TlsClient::open(Some(&fixture("ca.pem"))).unwrap();
    let mut socket = trusted.connect("localhost", TcpStream::connect(address).await?).await?;
    let length = body.len();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn secured(replica: SimulatorSettings) -> (World, embedded::vllm::Simulator) {
    let replica = simulator(replica).await;
    let mut setup = Setup::new(&[&replica]);
    setup.tls = first().await;
    (setup.start().await, replica)
}

#[tokio::test]
async fn clients_are_answered_over_tls_and_billed_alike() {
    let (world, _replica) = secured(SimulatorSettings::default()).await;
    let whole = ask(world.addr, &chat("hello", 3).to_string()).await.unwrap();
    assert!(whole.starts_with("HTTP/1.1 200") && whole.contains("chat.completion"), "{whole}");
    let streamed = ask(world.addr, &stream("hello", 3, true).to_string()).await.unwrap();
    assert!(streamed.contains("data: [DONE]"), "{streamed}");
    assert_eq!(world.all().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_over_tls_is_seen_to_have_gone() {
    let slow = SimulatorSettings { time_per_output_token_us: 1_000, ..SimulatorSettings::default() };
    let (world, _replica) = secured(slow).await;
    let trusted = TlsClient::open(Some(&fixture("ca.pem"))).unwrap();
    let mut socket = trusted.connect("localhost", TcpStream::connect(world.addr).await.unwrap()).await.unwrap();
    let body = stream("hello", 5000, false).to_string();
    let length = body.len();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\ncontent-length: {length}\r\n\r\n");
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut begin = [0; 200];
    socket.read_exact(&mut begin).await.unwrap();
    drop(socket);
    crate::world::until("its request ends", || {
        world.all().iter().any(|end| end.end_reason.as_str() == "client_cancelled")
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn what_operators_read_is_not_on_the_port_of_clients_when_it_has_its_own() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.admin_listen = Some(([127, 0, 0, 1], 9).into());
    let world = setup.start().await;
    for path in ["/metrics", "/readyz", "/healthz"] {
        let answer = world.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "unknown_url"), "{path}");
    }
    assert_eq!(world.post(CHAT, &chat("hello", 2)).await.status, 200);
    world.stop().await;
}

async fn first() -> Option<Tls> {
    let (cert_file, key_file) = (fixture("first.pem"), fixture("first.key"));
    let reload_interval = Duration::from_secs(60);
    Some(Tls::open(TlsSettings { cert_file, key_file, reload_interval }).await.unwrap())
}

#[tokio::test]
async fn replicas_are_asked_over_tls_with_the_key_that_is_theirs() {
    let (plain, secure) = (Stub::start(None).await, Stub::start(first().await).await);
    let dir = tempfile::tempdir().unwrap();
    let (all, one) = (dir.path().join("all"), dir.path().join("one"));
    std::fs::write(&all, "for-all\n").unwrap();
    std::fs::write(&one, "for-one").unwrap();
    let mut setup = Setup::new(&[]);
    setup.replicas = vec![plain.url(), secure.url()];
    let key = |replicas: &[&str], file: &Path| UpstreamKey {
        replicas: replicas.iter().map(|id| id.parse().unwrap()).collect(),
        file: Some(file.to_owned()),
        env: None,
    };
    setup.settings.upstream =
        UpstreamSettings { ca_file: Some(fixture("ca.pem")), api_keys: vec![key(&[], &all), key(&["r1"], &one)] };
    let world = setup.start().await;
    while plain.sent().is_empty() || secure.sent().is_empty() {
        let answer = world.post(CHAT, &chat("hello", 2)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(!format!("{answer:?}").contains("for-"), "{answer:?}");
    }
    for (stub, wanted) in [(&plain, "Bearer for-all"), (&secure, "Bearer for-one")] {
        for sent in stub.everything() {
            assert_eq!(sent.headers["authorization"], wanted, "{}", sent.path);
        }
    }
    world.stop().await;
    plain.stop().await;
    secure.stop().await;
}

#[tokio::test]
async fn a_replica_with_a_certificate_of_nobody_is_not_trusted() {
    let secure = Stub::start(first().await).await;
    let mut setup = Setup::new(&[]);
    setup.replicas = vec![secure.url()];
    let world = setup.start().await;
    let answer = world.post(CHAT, &chat("hello", 2)).await;
    assert!(answer.status.is_server_error(), "{answer:?}");
    assert!(secure.everything().is_empty());
    world.stop().await;
    secure.stop().await;
}

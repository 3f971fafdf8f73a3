//! Requests that wait: who goes next, who is sent away and how, and what is shed before memory grows.

use std::time::Duration;

use embedded::vllm::SimulatorSettings;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ledger::control::{Document, Plan, Replica, ServiceTier};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Answer, CHAT, KEY, MODEL, Setup, World, chat, simulator, stream, unlimited, until, whole};

const OTHER: &str = "tg_other";

/// An engine that takes a request and never says its first token.
fn endless() -> SimulatorSettings {
    SimulatorSettings { time_to_first_token_us: 600_000_000, ..Default::default() }
}

fn gated(replicas: &[&embedded::vllm::Simulator], slots: u32) -> Setup {
    let mut setup = Setup::new(replicas);
    setup.settings.routing.max_concurrent_requests = slots;
    // The head of a stream comes with the first sign of life.
    setup.settings.manners.keepalive_interval = Duration::from_millis(20);
    setup
}

/// A world with a second tenant.
async fn with_other(setup: Setup, plan: Plan) -> World {
    let mut world = setup.start().await;
    world.control.tenant("other", plan, OTHER);
    world.publish();
    while world.send(Method::GET, "/v1/models", &[("x-api-key", OTHER)], "").await.status() != 200 {}
    world
}

async fn open_as(world: &World, key: &str, body: &Value) -> http::Response<Incoming> {
    world.send(Method::POST, CHAT, &[("x-api-key", key)], body.to_string()).await
}

async fn waiting(world: &World, count: usize) {
    until("so many wait", || world.metric("tollgate_gateway_queue_length") == count as f64).await;
}

#[tokio::test]
async fn a_flood_of_one_tenant_delays_another_by_one_request() {
    let replica = simulator(endless()).await;
    let world = with_other(gated(&[&replica], 2), unlimited()).await;
    let body = stream("hello", 50, false);
    let mut open = vec![world.open(CHAT, &body).await, world.open(CHAT, &body).await];
    let mut flood: FuturesUnordered<_> = (0..20).map(|_| open_as(&world, KEY, &body)).collect();
    tokio::select! {
        _ = flood.next() => panic!("the engine has enough to do"),
        () = waiting(&world, 20) => {}
    }
    let mut asked = Box::pin(open_as(&world, OTHER, &body));
    tokio::select! {
        _ = flood.next() => panic!("the engine has enough to do"),
        _ = &mut asked => panic!("the engine has enough to do"),
        () = waiting(&world, 21) => {}
    }
    assert_eq!(replica.requests().len(), 2, "the engine's own queue is short");
    open.remove(0);
    let other = tokio::select! {
        _ = flood.next() => panic!("one has two requests open, the other one none"),
        response = &mut asked => response,
    };
    assert_eq!((other.status(), replica.requests().len()), (http::StatusCode::OK, 3));
    // After that they take turns; of what is left, all go away while they wait: before there is room again.
    drop(open);
    let next = flood.next().await.unwrap();
    assert_eq!(next.status(), 200);
    drop((flood, asked));
    waiting(&world, 0).await;
    drop((next, other));
    until("all have ended", || world.all().len() == 23).await;
    for end in world.all() {
        let recorded = world.try_recorded(&end.request_id.to_string()).unwrap();
        assert_eq!((recorded.reason(), recorded.sums(), recorded.requests()), ("client_cancelled", (0, 0), 0));
        assert!(matches!(end.status, 0 | 200));
    }
    let left = |outcome: &str| world.metric(&format!("tollgate_gateway_queue_left_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((left("served"), left("cancelled")), (2.0, 19.0));
    assert_eq!(world.metric("tollgate_gateway_queue_seconds_count"), 4.0, "those that went at once count too");
    world.stop().await;
}

#[tokio::test]
async fn a_higher_tier_goes_first() {
    let replica = simulator(endless()).await;
    let priority = Plan { service_tier: ServiceTier::Priority, ..unlimited() };
    let world = with_other(gated(&[&replica], 1), priority).await;
    let body = stream("hello", 50, false);
    let open = open_as(&world, OTHER, &body).await;
    let mut default = Box::pin(world.open(CHAT, &body));
    tokio::select! {
        _ = &mut default => panic!("the engine has enough to do"),
        () = waiting(&world, 1) => {}
    }
    let mut asked = Box::pin(open_as(&world, OTHER, &body));
    tokio::select! {
        _ = &mut default => panic!("the engine has enough to do"),
        _ = &mut asked => panic!("the engine has enough to do"),
        () = waiting(&world, 2) => {}
    }
    drop(open);
    let higher = tokio::select! {
        _ = &mut default => panic!("it is in a lower band"),
        response = &mut asked => response,
    };
    drop((asked, higher));
    assert_eq!(default.await.status(), 200);
    world.stop().await;
}

#[tokio::test]
async fn what_may_not_wait_is_told_so_and_costs_nothing() {
    let replica = simulator(endless()).await;
    let mut setup = gated(&[&replica], 1);
    let queue = &mut setup.settings.queue;
    (queue.max_waiting, queue.max_waiting_per_tenant) = (2, 1);
    let world = with_other(setup, unlimited()).await;
    let body = stream("hello", 50, false);
    let open = world.open(CHAT, &body).await;
    let mut waits: FuturesUnordered<_> = [KEY, OTHER].map(|key| open_as(&world, key, &body)).into_iter().collect();
    tokio::select! {
        _ = waits.next() => panic!("the engine has enough to do"),
        () = waiting(&world, 2) => {}
    }
    let refused = |answer: Answer, status: u16| {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, "queue_full"), "{}", answer.body);
        assert!(answer.header("retry-after").is_some());
        assert!(world.try_recorded(&answer.id()).is_none(), "who sends too much fills no log with it");
    };
    refused(world.post(CHAT, &body).await, 429);
    drop(waits);
    waiting(&world, 0).await;
    drop(open);
    world.stop().await;

    let mut setup = gated(&[&replica], 1);
    setup.settings.queue.max_wait = Duration::from_millis(20);
    (setup.settings.queue.max_waiting, setup.settings.queue.max_waiting_per_tenant) = (1, 1);
    let world = setup.start().await;
    let open = world.open(CHAT, &body).await;
    let answer = world.post(CHAT, &body).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "queue_timeout"));
    assert!(answer.header("retry-after").is_some());
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.sums(), recorded.requests()), ("deadline", (0, 0), 0));
    drop(open);
    world.stop().await;
}

#[tokio::test]
async fn a_model_that_is_started_on_demand_answers_who_waited_for_it() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[]);
    setup.settings.queue.no_replica_wait = Duration::from_secs(600);
    let mut world = setup.start().await;
    world.control.put("late", Document::Replica(Replica::new(MODEL.parse().unwrap(), replica.url())));
    let body = chat("hello", 5);
    let mut asked = Box::pin(world.post(CHAT, &body));
    tokio::select! {
        _ = &mut asked => panic!("nobody is there to answer"),
        () = waiting(&world, 1) => {}
    }
    world.publish();
    let answer = asked.await;
    assert_eq!((answer.status.as_u16(), world.recorded(&answer).sums().1), (200, 5));
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_that_stops_sends_away_what_waits_and_ends_what_is_open() {
    let replica = simulator(SimulatorSettings { time_per_output_token_us: 2_000, ..Default::default() }).await;
    let world = gated(&[&replica], 1).start().await;
    let mut open = world.open(CHAT, &stream("hello", 200, true)).await;
    open.body_mut().frame().await.unwrap().unwrap();
    let body = chat("hello", 5);
    let mut asked = Box::pin(world.post(CHAT, &body));
    tokio::select! {
        _ = &mut asked => panic!("the engine has enough to do"),
        () = waiting(&world, 1) => {}
    }
    world.ask_to_stop();
    let sent_away = asked.await;
    assert_eq!((sent_away.status.as_u16(), sent_away.code().as_str()), (503, "draining"));
    assert_eq!(sent_away.header("retry-after"), Some("1"), "another gateway takes it at once");
    let recorded = world.recorded(&sent_away);
    assert_eq!((recorded.reason(), recorded.sums()), ("drained", (0, 0)));
    let answer = whole(open).await;
    assert!(answer.ended && answer.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(world.recorded(&answer).sums().1, 200);
    world.stop().await;
}

/// Announces a body and sends none of it.
async fn announce(world: &World, key: &str, bytes: usize) -> TcpStream {
    let mut socket = TcpStream::connect(world.addr).await.unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nexpect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

async fn said(mut socket: TcpStream) -> String {
    let mut head = vec![0; 512];
    let read = socket.read(&mut head).await.unwrap();
    String::from_utf8_lossy(&head[..read]).into_owned()
}

#[tokio::test]
async fn bodies_hold_so_much_memory_together_and_no_tenant_all_of_it() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.max_body_bytes = 60_000;
    setup.settings.overload.max_body_bytes_in_flight = 100_000;
    setup.settings.overload.tenant_percent = 70;
    let world = with_other(setup, unlimited()).await;
    // It counts from its head on: nothing of it has come.
    let mut first = announce(&world, KEY, 60_000).await;
    let mut go_on = [0; 25];
    first.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 Continue"));
    let own = said(announce(&world, KEY, 20_000).await).await;
    assert!(
        own.starts_with("HTTP/1.1 429 ") && own.contains("\"overloaded\"") && own.contains("retry-after: 1"),
        "{own}"
    );
    let all = said(announce(&world, OTHER, 60_000).await).await;
    assert!(
        all.starts_with("HTTP/1.1 503 ") && all.contains("\"overloaded\"") && all.contains("retry-after: 1"),
        "{all}"
    );
    // Nobody else is hurt, and the same tenant may send what there is room for.
    for key in [KEY, OTHER] {
        assert_eq!(whole(open_as(&world, key, &chat("hello", 2)).await).await.status, 200);
    }
    drop(first);
    loop {
        let response = open_as(&world, OTHER, &chat(&"x".repeat(50_000), 1)).await;
        if response.status() != 503 {
            break;
        }
    }
    assert!(world.metric("tollgate_gateway_refused_total{code=\"overloaded\"}") >= 2.0);
    world.stop().await;
}

#[tokio::test]
async fn what_was_really_used_decides_who_is_next() {
    let replica = simulator(SimulatorSettings::default()).await;
    let world = with_other(gated(&[&replica], 1), unlimited()).await;
    let open = world.open(CHAT, &stream("[[fault:stall:1:0]]", 200, false)).await;
    // Both ask for as much; one uses all of it, the other a twentieth.
    let (all, little) = (chat("hello [[tokens:200]]", 200), stream("hello [[tokens:10]]", 200, false));
    let mut asked = FuturesUnordered::new();
    for _ in 0..12 {
        asked.push(world.send(Method::POST, CHAT, &[("x-api-key", KEY)], all.to_string()));
        asked.push(world.send(Method::POST, CHAT, &[("x-api-key", OTHER)], little.to_string()));
    }
    tokio::select! {
        _ = asked.next() => panic!("the engine has enough to do"),
        () = waiting(&world, 24) => {}
    }
    drop(open);
    while let Some(response) = asked.next().await {
        assert_eq!(whole(response).await.status, 200);
    }
    let order: Vec<u64> = replica.requests().iter().skip(1).map(|record| record.generated_tokens).collect();
    assert_eq!(order.len(), 24);
    let first = order.iter().position(|tokens| *tokens == 200).unwrap();
    let next = &order[first + 1..][..8];
    assert_eq!(next, [10; 8], "what one request of the one used is worth many of the other: {order:?}");
    drop(asked);
    world.stop().await;
}

#[tokio::test]
async fn a_tenant_is_charged_what_its_key_is_known_to_use_and_not_what_it_asks_for() {
    const SLOTS: usize = 6;
    const THIRD: &str = "tg_third";
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = gated(&[&replica], SLOTS as u32);
    // One that comes later has no name in metrics.
    setup.settings.telemetry.max_label_values = 2;
    let mut world = with_other(setup, unlimited()).await;
    world.control.tenant("third", unlimited(), THIRD);
    world.publish();
    while world.send(Method::GET, "/v1/models", &[("x-api-key", THIRD)], "").await.status() != 200 {}
    // Both ask for as much; one uses all of it, the other a twentieth.
    for _ in 0..3 {
        for (key, tokens) in [(KEY, 10), (OTHER, 200)] {
            let answer = whole(open_as(&world, key, &chat(&format!("hello [[tokens:{tokens}]]"), 200)).await).await;
            assert_eq!(answer.status, 200);
        }
    }
    let silent = stream("hello [[fault:stall:1:0]]", 200, false);
    let mut held = Vec::new();
    for _ in 0..SLOTS {
        held.push(open_as(&world, THIRD, &silent).await);
    }
    let mut asked = FuturesUnordered::new();
    for key in [KEY, OTHER].repeat(SLOTS) {
        asked.push(open_as(&world, key, &silent));
    }
    tokio::select! {
        _ = asked.next() => panic!("the engine has enough to do"),
        () = waiting(&world, 2 * SLOTS) => {}
    }
    drop(held);
    waiting(&world, SLOTS).await;
    // While all that went is open, each one's charge is what it is expected to use.
    let left = |plan: &str| world.metric(&format!("tollgate_gateway_queue_length{{plan=\"{plan}\",tier=\"default\"}}"));
    assert_eq!((left("plan"), left("plan-other")), (1.0, 5.0));
    assert_eq!(world.metric("tollgate_gateway_queue_seconds_count{plan=\"other\"}"), SLOTS as f64);
    drop(asked);
    world.stop().await;
}

//! Answers that are cut: by a client that goes away, and by a gateway that stops.

use std::time::Duration;

use embedded::vllm::{Simulator, SimulatorSettings};
use http_body_util::BodyExt;
use serde_json::json;

use crate::world::{CHAT, Recorded, Setup, World, chat, simulator, stream, until, whole};

fn slow() -> SimulatorSettings {
    SimulatorSettings { time_per_output_token_us: 1_000, ..Default::default() }
}

async fn ended(world: &World, id: &str) -> Recorded {
    until("the request has its end", || world.try_recorded(id).is_some()).await;
    world.try_recorded(id).unwrap()
}

async fn let_go(replica: &Simulator, id: &str) -> embedded::vllm::RequestRecord {
    let of = || replica.requests().into_iter().find(|record| record.request_id.as_deref() == Some(id)).unwrap();
    until("the replica is let go", || of().outcome != "running").await;
    assert_eq!(of().outcome, "client_gone");
    of()
}

#[tokio::test]
async fn a_client_that_goes_away_pays_for_what_was_received_and_frees_the_replica() {
    let replica = simulator(slow()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.spool.checkpoint_tokens = 7;
    let world = setup.start().await;
    for (frames, n) in [(0, 1), (1, 1), (2, 1), (5, 1), (13, 1), (30, 1), (1, 3), (9, 3), (40, 2)] {
        let mut body = stream("hello", 5000, false);
        body["n"] = json!(n);
        let mut response = world.open(CHAT, &body).await;
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let mut seen = String::new();
        for _ in 0..frames {
            let data = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
            seen.push_str(std::str::from_utf8(&data).unwrap());
        }
        drop(response);
        let recorded = ended(&world, &id).await;
        let oracle = let_go(&replica, &id).await;
        let pieces = seen.matches(r#""delta":{"content":""#).count() as u64;
        let (input, output) = recorded.sums();
        assert_eq!((recorded.reason(), recorded.finished.status), ("client_cancelled", 200), "{frames} frames of {n}");
        assert!(pieces <= output && output <= oracle.generated_tokens, "{pieces} {output} {oracle:?}");
        if frames > 0 {
            assert_eq!((input, recorded.requests()), (oracle.prompt_tokens, 1));
            assert!(recorded.estimated(), "it is the last count, not the engine's last word");
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_before_any_answer_pays_nothing() {
    let replica = simulator(SimulatorSettings { time_to_first_token_us: 60_000_000, ..Default::default() }).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.manners.keepalive_interval = Duration::from_millis(20);
    let world = setup.start().await;
    // The head of a stream comes with the first sign of life; that of a whole answer with its end.
    for (body, status) in [(chat("hello", 9), 0), (stream("hello", 9, true), 200)] {
        let before = replica.requests().len();
        let arrived = until("the replica has it", || replica.requests().len() > before);
        if status == 0 {
            tokio::select! {
                _ = world.open(CHAT, &body) => panic!("no answer can come"),
                () = arrived => {}
            }
        } else {
            drop(world.open(CHAT, &body).await);
        }
        until("the request has its end", || world.all().len() > before).await;
        let id = world.all().last().unwrap().request_id.to_string();
        let recorded = ended(&world, &id).await;
        assert_eq!((recorded.reason(), recorded.finished.status), ("client_cancelled", status));
        assert_eq!((recorded.sums(), recorded.requests()), ((0, 0), 0));
        let_go(&replica, &id).await;
    }
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_that_stops_lets_answers_come_to_their_end() {
    let replica = simulator(slow()).await;
    let world = Setup::new(&[&replica]).start().await;
    let mut response = world.open(CHAT, &stream("hello", 100, true)).await;
    response.body_mut().frame().await.unwrap().unwrap();
    world.ask_to_stop();
    let answer = whole(response).await;
    assert!(answer.ended && answer.body.ends_with("data: [DONE]\n\n"));
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.sums().1, recorded.estimated()), ("complete", 100, false));
    world.stop().await;
}

#[tokio::test]
async fn what_is_open_when_the_time_to_stop_is_over_is_ended_and_billed_to_its_last_count() {
    let replica = simulator(slow()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.drain_seconds = 0;
    setup.settings.drain_notice = Duration::from_millis(10);
    let world = setup.start().await;
    let mut response = world.open(CHAT, &stream("hello", 8000, false)).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    response.body_mut().frame().await.unwrap().unwrap();
    world.ask_to_stop();
    let answer = whole(response).await;
    assert!(!answer.ended, "the client can tell that the answer was cut");
    let recorded = ended(&world, &id).await;
    let oracle = let_go(&replica, &id).await;
    let (input, output) = recorded.sums();
    assert_eq!((recorded.reason(), input), ("drained", oracle.prompt_tokens));
    assert!(
        answer.body.matches(r#""delta":{"content":""#).count() as u64 <= output && output <= oracle.generated_tokens
    );
    world.stop().await;
}

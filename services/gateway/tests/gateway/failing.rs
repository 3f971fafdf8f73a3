//! Replicas that fail, in every way that the simulator can: status, words to the client, end reason, bill.

use std::time::Duration;

use embedded::vllm::{ArmedFault, Simulator, SimulatorSettings, When};
use serde_json::json;

use crate::world::{Answer, CHAT, COMPLETIONS, MODEL, Recorded, Setup, World, chat, simulator, stream, until};

fn fault(text: &str, when: When) -> ArmedFault {
    ArmedFault { fault: text.parse().unwrap(), when, model: None }
}

/// A gateway that waits for its one replica as long as it does by default.
async fn one() -> (Simulator, World) {
    let replica = simulator(SimulatorSettings::default()).await;
    let world = Setup::new(&[&replica]).start().await;
    (replica, world)
}

/// One that loses its patience with silence.
async fn impatient() -> (Simulator, World) {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    let (soon, deadlines) = (Duration::from_millis(300), &mut setup.settings.deadlines);
    (deadlines.first_byte, deadlines.whole_answer, deadlines.idle) = (soon, soon, soon);
    let world = setup.start().await;
    (replica, world)
}

/// What the client saw of the answer: pieces of text, as the simulator makes one token a piece.
fn seen(answer: &Answer) -> u64 {
    answer.body.matches(r#""delta":{"content":""#).count() as u64
}

/// Cut short after its first byte: seen ≤ billed ≤ generated, input as the engine counted it, and flagged.
fn cut_short(replica: &Simulator, answer: &Answer, recorded: &Recorded) {
    let oracle = replica.requests().into_iter().find(|r| r.request_id == Some(answer.id())).unwrap();
    let (input, output) = recorded.sums();
    assert!(seen(answer) <= output && output <= oracle.generated_tokens, "{} {output} {oracle:?}", seen(answer));
    assert_eq!(input, oracle.prompt_tokens);
    assert_eq!((recorded.requests(), recorded.estimated()), (1, true));
}

async fn breaks(replica: &Simulator, world: &World, fault: &str, reason: &str, code: &str) {
    let answer = world.post(CHAT, &stream(&format!("hello [[fault:{fault}]]"), 20, false)).await;
    assert_eq!((answer.status.as_u16(), answer.ended), (200, true), "{fault}");
    let (_, tail) = answer.body.rsplit_once("data: {\"error\"").unwrap_or_else(|| panic!("{fault}: {}", answer.body));
    assert!(tail.contains(&format!("\"code\":\"{code}\"")) && tail.ends_with("data: [DONE]\n\n"), "{fault}: {tail}");
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.finished.status), (reason, 200), "{fault}");
    assert_eq!(recorded.finished.error_code.as_deref(), Some(code));
    // A reset may overtake the last pieces before it.
    assert!(seen(&answer) == 3 || fault.starts_with("reset"), "{fault}: {}", answer.body);
    cut_short(replica, &answer, &recorded);
    assert!(!answer.body.contains("\"usage\""), "{}", answer.body);
}

#[tokio::test]
async fn a_stream_that_breaks_is_billed_to_its_last_count_and_the_client_is_told() {
    let (replica, world) = one().await;
    for fault in ["die_mid_stream:4", "reset_mid_stream:4", "no_done:4", "malformed:4"] {
        breaks(&replica, &world, fault, "upstream_error", "upstream_error").await;
    }
    world.stop().await;
}

#[tokio::test]
async fn a_replica_that_falls_silent_is_given_up() {
    let (replica, world) = impatient().await;
    breaks(&replica, &world, "stall:4:0", "deadline", "deadline_exceeded").await;
    for (fault, streamed) in [("stall:0:0", true), ("stall:0:0", false), ("stall:1:0", false)] {
        unanswered(&world, fault, streamed, 504, "deadline", "deadline_exceeded").await;
    }
    until("the replica is let go", || replica.requests().iter().all(|r| r.outcome != "running")).await;
    world.stop().await;
}

#[tokio::test]
async fn an_engine_that_dies_says_so_in_its_own_words_inside_a_200() {
    let (replica, world) = one().await;
    let answer = world.post(CHAT, &stream("hello [[fault:error_mid_stream:4]]", 20, true)).await;
    assert!(answer.body.contains("EngineCore encountered an issue") && answer.body.ends_with("data: [DONE]\n\n"));
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.finished.error_code.as_deref()), ("upstream_error", Some("500")));
    cut_short(&replica, &answer, &recorded);
    world.stop().await;
}

#[tokio::test]
async fn an_engine_that_gives_up_is_billed_by_its_own_last_word() {
    let (_replica, world) = one().await;
    for body in [stream("hello [[fault:abort:3]]", 20, true), chat("hello [[fault:abort:3]]", 20)] {
        let answer = world.post(CHAT, &body).await;
        assert!(answer.body.contains(r#""finish_reason":"abort""#));
        let recorded = world.recorded(&answer);
        assert_eq!((recorded.reason(), recorded.sums().1, recorded.estimated()), ("upstream_error", 3, false));
    }
    world.stop().await;
}

#[tokio::test]
async fn an_answer_without_usage_is_never_free_in_silence() {
    let (_replica, world) = one().await;
    let body = stream("hello [[fault:no_usage]]", 6, false);
    let input = (body["messages"].to_string().len() as u64).div_ceil(4);
    let streamed = world.post(CHAT, &body).await;
    let recorded = world.recorded(&streamed);
    assert_eq!((recorded.reason(), recorded.sums(), recorded.estimated()), ("complete", (input, 6), true));
    let mut three = chat("hello [[fault:no_usage]]", 6);
    three["n"] = json!(3);
    let whole = world.post(CHAT, &three).await;
    let recorded = world.recorded(&whole);
    let answer = whole.json();
    let texts =
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["message"]["content"].as_str().unwrap());
    let words: Vec<&str> = texts.flat_map(str::split_whitespace).collect();
    let output = (words.len() as u64).max(words.iter().map(|word| word.len() as u64).sum::<u64>() / 8).max(3);
    assert_eq!((recorded.reason(), recorded.sums(), recorded.requests()), ("complete", (input, output), 1));
    assert!(recorded.estimated());
    assert_eq!(world.metric("tollgate_gateway_estimated_total"), 2.0);
    world.stop().await;
}

async fn unanswered(world: &World, fault: &str, streamed: bool, status: u16, reason: &str, code: &str) {
    let prompt = format!("hello [[fault:{fault}]]");
    let body = if streamed { stream(&prompt, 9, true) } else { chat(&prompt, 9) };
    let answer = world.post(CHAT, &body).await;
    assert_eq!((answer.status.as_u16(), answer.ended), (status, true), "{fault}");
    let said = answer.json()["error"]["code"].clone();
    assert_eq!(said.as_str().map_or(said.to_string(), str::to_owned), code, "{fault}: {}", answer.body);
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.finished.status), (reason, i32::from(status)), "{fault}");
    assert_eq!(recorded.finished.error_code.as_deref(), Some(code), "{fault}");
    assert_eq!((recorded.sums(), recorded.requests(), recorded.estimated()), ((0, 0), 0, false), "{fault}");
    assert_eq!(answer.header("retry-after").is_some(), status == 503, "{fault}");
    assert_eq!(answer.headers["content-type"], "application/json");
}

#[tokio::test]
async fn before_the_first_byte_nothing_is_billed_and_all_is_recorded() {
    let (_replica, world) = one().await;
    for (fault, streamed, status, reason, code) in [
        ("refuse", true, 502, "upstream_error", "upstream_error"),
        ("refuse", false, 502, "upstream_error", "upstream_error"),
        ("die_mid_stream:1", false, 502, "upstream_error", "upstream_error"),
        ("malformed:0", false, 502, "upstream_error", "upstream_error"),
        ("status:500", true, 500, "upstream_error", "500"),
        ("status:502", false, 502, "upstream_error", "502"),
        ("overload", true, 503, "upstream_error", "503"),
        ("status:429", false, 429, "complete", "429"),
        ("status:401", false, 502, "upstream_error", "upstream_error"),
        ("status:404", true, 502, "upstream_error", "upstream_error"),
    ] {
        unanswered(&world, fault, streamed, status, reason, code).await;
    }
    world.stop().await;
}

#[tokio::test]
async fn what_the_engine_refuses_passes_in_its_own_words() {
    let (_replica, world) = one().await;
    let too_much = world.post(CHAT, &chat("hello", 1_000_000)).await;
    assert_eq!((too_much.status.as_u16(), too_much.json()["error"]["code"].as_i64()), (400, Some(400)));
    assert!(too_much.body.contains("max_model_len"));
    let recorded = world.recorded(&too_much);
    assert_eq!((recorded.reason(), recorded.requests(), recorded.sums()), ("complete", 0, (0, 0)));
    let options = json!({"model": MODEL, "prompt": "x", "stream_options": {"include_usage": true}});
    assert!(world.post(COMPLETIONS, &options).await.body.contains("stream=True"));
    world.stop().await;
}

#[tokio::test]
async fn another_replica_is_asked_as_long_as_no_byte_has_come() {
    let (bad, good) = (simulator(SimulatorSettings::default()).await, simulator(SimulatorSettings::default()).await);
    let world = Setup::new(&[&bad, &good]).start().await;
    for text in ["refuse", "status:500", "overload", "status:404"] {
        bad.arm(vec![fault(text, When::Always)]);
        let before = bad.requests().len();
        // At most every second one goes to the bad one first.
        while bad.requests().len() == before {
            let body = stream("hello", 3, false);
            let answer = world.post(CHAT, &body).await;
            let recorded = world.recorded(&answer);
            assert_eq!(
                (answer.status.as_u16(), recorded.reason(), recorded.requests()),
                (200, "complete", 1),
                "{text}"
            );
            assert_eq!(recorded.finished.replica, "r1");
            if bad.requests().len() > before {
                assert_eq!(recorded.finished.attempts, 2);
                assert_eq!(recorded.counts.last().unwrap().attempt, 1);
            }
        }
    }
    bad.arm(vec![fault("die_mid_stream:3", When::Always)]);
    let before = bad.requests().len();
    while bad.requests().len() == before {
        let answer = world.post(CHAT, &stream("hello", 5, false)).await;
        if bad.requests().len() > before {
            assert_eq!(
                (world.recorded(&answer).reason(), world.recorded(&answer).finished.attempts),
                ("upstream_error", 1)
            );
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn a_replica_that_is_gone_or_unhealthy_gets_nothing() {
    let (gone, left) = (simulator(SimulatorSettings::default()).await, simulator(SimulatorSettings::default()).await);
    let mut setup = Setup::new(&[&gone, &left]);
    setup.settings.health_interval = Duration::from_millis(20);
    let world = setup.start().await;
    gone.kill().await;
    for _ in 0..4 {
        let answer = world.post(CHAT, &chat("hello", 2)).await;
        assert_eq!((answer.status.as_u16(), world.recorded(&answer).finished.replica.as_str()), (200, "r1"));
    }
    until("the one that is gone is seen to be down", || world.metric("tollgate_gateway_replica_up") == 1.0).await;
    left.arm(vec![fault("unhealthy", When::Always)]);
    until("the other one is unhealthy", || world.metric("tollgate_gateway_replica_up") == 0.0).await;
    let nobody = world.post(CHAT, &chat("hello", 2)).await;
    assert_eq!((nobody.status.as_u16(), nobody.code().as_str()), (503, "no_healthy_replica"));
    assert!(nobody.header("retry-after").is_some());
    assert_eq!((world.recorded(&nobody).reason(), world.recorded(&nobody).finished.attempts), ("upstream_error", 0));
    left.arm(vec![]);
    until("it is healthy again", || world.metric("tollgate_gateway_replica_up") == 1.0).await;
    assert_eq!(world.post(CHAT, &chat("hello", 2)).await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn the_deadline_of_the_whole_request_holds_while_pieces_still_come() {
    let slow = SimulatorSettings { time_per_output_token_us: 20_000, ..Default::default() };
    let replica = simulator(slow).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.deadlines.total = Duration::from_secs(2);
    let world = setup.start().await;
    let answer = world.post(CHAT, &stream("hello", 5000, false)).await;
    let recorded = world.recorded(&answer);
    assert_eq!((recorded.reason(), recorded.finished.error_code.as_deref()), ("deadline", Some("deadline_exceeded")));
    until("the replica is let go", || replica.requests()[0].outcome == "client_gone").await;
    cut_short(&replica, &answer, &recorded);
    world.stop().await;
}

//! Limits: per minute and per period, held under concurrency, and lifted through control.

use embedded::vllm::SimulatorSettings;
use futures_util::future::join_all;
use ledger::time::{Micros, Period};
use schemas::event::{BalanceUpdated, ModelUsage};
use serde_json::json;

use crate::world::{CHAT, MODEL, Setup, World, chat, simulator, stream, unlimited};

fn used(world: &World) -> u64 {
    world
        .all()
        .iter()
        .map(|end| {
            let (input, output) = world.try_recorded(&end.request_id.to_string()).unwrap().sums();
            input + output
        })
        .sum()
}

#[tokio::test]
async fn a_hard_limit_holds_with_32_at_once_and_lifts_at_once() {
    let slow = SimulatorSettings { time_per_output_token_us: 500, ..Default::default() };
    let replica = simulator(slow).await;
    let mut setup = Setup::new(&[&replica]);
    let limit = 1500;
    setup.plan.tokens_per_period = Some(limit);
    setup.spool.checkpoint_tokens = 5;
    setup.settings.template_overhead_tokens = 8;
    let mut world = setup.start().await;
    let mut refused = 0;
    for round in 0..4 {
        let bodies: Vec<_> =
            (0..32).map(|at| if at % 2 == 0 { stream("hello", 40, false) } else { chat("hello", 40) }).collect();
        for answer in join_all(bodies.iter().map(|body| world.post(CHAT, body))).await {
            if answer.status != 200 {
                refused += 1;
                assert_eq!(
                    (answer.status.as_u16(), answer.code().as_str()),
                    (429, "insufficient_quota"),
                    "{}",
                    answer.body
                );
                assert_eq!(answer.json()["error"]["type"], "insufficient_quota");
            }
        }
        assert!(used(&world) <= limit, "round {round}: {} tokens", used(&world));
    }
    assert!(refused >= 32, "{refused}");
    assert!(used(&world) > limit - 120, "it is used as far as a request's bound allows: {}", used(&world));
    assert_eq!(world.post(CHAT, &chat("hello", 40)).await.status, 429);
    let mut plan = unlimited();
    plan.tokens_per_period = Some(limit + 200);
    world.control.plan(plan);
    world.publish();
    while world.post(CHAT, &chat("hello", 40)).await.status != 200 {}
    world.stop().await;
}

#[tokio::test]
async fn a_balance_of_the_topic_counts_and_own_spend_in_it_counts_once() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.tokens_per_period = Some(1000);
    let world = setup.start().await;
    let now = world.spool.now();
    let period = Period::month_of(now, chrono_tz::UTC).unwrap();
    let balance = |as_of, input| BalanceUpdated {
        tenant_id: "acme".parse().unwrap(),
        period_from: period.from.start(),
        period_to: period.to.start(),
        partition: 0,
        as_of,
        control_offset: 0,
        published_at: Micros(0),
        usage: vec![ModelUsage {
            model: MODEL.parse().unwrap(),
            input,
            cached_input: 0,
            output: 10,
            reasoning: 0,
            requests: 1,
        }],
    };
    world.gateway.balance(&balance(5, 980));
    assert_eq!(world.post(CHAT, &chat("hello", 20)).await.code(), "insufficient_quota");
    world.gateway.balance(&balance(4, 0));
    assert_eq!(world.post(CHAT, &chat("hello", 20)).await.code(), "insufficient_quota", "an old balance is no news");
    world.gateway.balance(&balance(6, 100));
    assert_eq!(world.post(CHAT, &chat("hello", 20)).await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn requests_per_minute_say_when_to_come_back() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    (setup.plan.requests_per_minute, setup.plan.tokens_per_minute) = (Some(3), Some(100_000));
    let world = setup.start().await;
    for left in ["2", "1", "0"] {
        let answer = world.post(CHAT, &chat("hello", 2)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left));
        assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("100000"));
        assert!(
            answer.header("x-ratelimit-reset-requests").is_some()
                && answer.header("x-ratelimit-reset-tokens").is_some()
        );
    }
    let limited = world.post(CHAT, &chat("hello", 2)).await;
    assert_eq!((limited.status.as_u16(), limited.code().as_str()), (429, "rate_limit_exceeded"));
    assert_eq!(limited.json()["error"]["type"], "requests");
    assert!((1..=20).contains(&limited.header("retry-after").unwrap().parse::<u64>().unwrap()));
    assert_eq!(limited.header("x-ratelimit-remaining-requests"), Some("0"));
    world.stop().await;
}

#[tokio::test]
async fn tokens_per_minute_count_what_was_really_used() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.tokens_per_minute = Some(1000);
    let world = setup.start().await;
    // Each reserves most of the minute and uses little of it.
    for _ in 0..4 {
        assert_eq!(world.post(CHAT, &chat("hello [[tokens:3]]", 700)).await.status, 200);
    }
    let never = world.post(CHAT, &chat("hello", 5000)).await;
    assert_eq!((never.code().as_str(), never.header("retry-after")), ("rate_limit_exceeded", None));
    assert_eq!(never.json()["error"]["type"], "tokens");
    assert_eq!(world.post(CHAT, &chat("hello", 700)).await.status, 200);
    let limited = world.post(CHAT, &chat("hello", 700)).await;
    assert_eq!((limited.code().as_str(), limited.header("retry-after").is_some()), ("rate_limit_exceeded", true));
    world.stop().await;
}

#[tokio::test]
async fn who_names_no_bound_gets_one_that_fits_where_tokens_are_limited() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.default_max_tokens = 50;
    setup.plan.tokens_per_period = Some(400);
    let mut world = setup.start().await;
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]});
    let mut outputs = Vec::new();
    loop {
        let answer = world.post(CHAT, &body).await;
        if answer.status != 200 {
            assert_eq!(answer.code(), "insufficient_quota");
            break;
        }
        outputs.push(answer.json()["usage"]["completion_tokens"].as_u64().unwrap());
    }
    assert_eq!(outputs[0], 50);
    assert!(outputs.iter().all(|output| (16..=50).contains(output)), "{outputs:?}");
    assert!(used(&world) <= 400);
    world.control.plan(unlimited());
    world.publish();
    loop {
        let answer = world.post(CHAT, &body).await;
        if answer.status == 200 {
            let output = answer.json()["usage"]["completion_tokens"].as_u64().unwrap();
            assert!(output > 1000, "without a limit nothing is set in the client's place: {output}");
            break;
        }
    }
    world.stop().await;
}

//! Limits: per minute and per period, held under concurrency, and lifted through control.

use embedded::vllm::SimulatorSettings;
use futures_util::future::join_all;
use ledger::control::{Document, Limits, Tenant, WhenPeriodUsed};
use ledger::time::{Micros, Period};
use schemas::event::{BalanceUpdated, ModelUsage};
use serde_json::json;

use crate::world::{Answer, CHAT, KEY, MODEL, Setup, World, chat, simulator, stream, unlimited, until, whole};

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
    let mut world = setup.start().await;
    // Each could use most of the minute and uses little of it.
    for _ in 0..4 {
        assert_eq!(world.post(CHAT, &chat("hello [[tokens:3]]", 700)).await.status, 200);
    }
    assert_eq!(world.post(CHAT, &chat("hello", 990)).await.status, 200, "more than such requests usually use");
    let limited = world.post(CHAT, &chat("hello [[tokens:3]]", 700)).await;
    assert_eq!(limited.code(), "rate_limit_exceeded", "it is in debt: {}", limited.body);
    assert_eq!(limited.json()["error"]["type"], "tokens");
    assert_eq!(limited.header("x-tollgate-limited-by"), Some("plan.tokens_per_minute"));
    assert_eq!(limited.header("x-ratelimit-remaining-tokens"), Some("0"));
    assert!(limited.header("retry-after").is_some() && limited.header("retry-after-ms").is_some());
    let mut plan = unlimited();
    plan.tokens_per_minute = Some(0);
    world.control.plan(plan);
    world.publish();
    let never = loop {
        let never = world.post(CHAT, &chat("hello", 5)).await;
        if never.header("retry-after").is_none() {
            break never;
        }
    };
    assert_eq!((never.code().as_str(), never.header("x-should-retry")), ("rate_limit_exceeded", Some("false")));
    world.stop().await;
}

#[tokio::test]
async fn a_large_max_tokens_pins_nobodys_minute() {
    let slow = SimulatorSettings { time_per_output_token_us: 20_000, ..Default::default() };
    let replica = simulator(slow).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.tokens_per_minute = Some(2000);
    let world = setup.start().await;
    for _ in 0..12 {
        assert_eq!(world.post(CHAT, &chat("hello [[tokens:3]]", 3000)).await.status, 200);
    }
    // Twenty at once now, each with more room than the whole minute has; and without a bound at all.
    let mut body = stream("hello [[tokens:30]]", 3000, true);
    let mut open = Vec::new();
    for at in 0..20 {
        if at == 10 {
            body.as_object_mut().unwrap().remove("max_tokens");
        }
        open.push(world.open(CHAT, &body).await);
    }
    for response in open {
        assert_eq!(response.status(), 200);
        whole(response).await;
    }
    world.stop().await;
}

/// Another key of the same project, with these limits.
fn key(world: &mut World, name: &str, limits: Limits) {
    world.control.key_as(name, |key| key.limits = limits);
}

async fn with(world: &World, key: &str, body: &serde_json::Value) -> http::Response<hyper::body::Incoming> {
    let bearer = format!("Bearer {key}");
    world.send(http::Method::POST, CHAT, &[("authorization", &bearer)], body.to_string()).await
}

#[tokio::test]
async fn plan_project_and_key_each_have_their_limits_and_the_tightest_shows() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.requests_per_minute = Some(5);
    let mut world = setup.start().await;
    let of = |requests| Limits { requests_per_minute: Some(requests), ..Limits::default() };
    let mut tenant = Tenant::new("Acme", "plan".parse().unwrap(), "USD".parse().unwrap(), chrono_tz::UTC);
    tenant.projects.insert("search".parse().unwrap(), of(3));
    world.control.put("acme", Document::Tenant(tenant));
    key(&mut world, "tg_small", of(1));
    world.control.key_as("tg_other", |key| key.project = "other".parse().unwrap());
    world.publish();
    let ask = async |name: &str| whole(with(&world, name, &chat("hello", 2)).await).await;
    let first = loop {
        let answer = ask("tg_small").await;
        if answer.status != 401 {
            break answer;
        }
    };
    let shown = |answer: &Answer| {
        let header = |name| answer.header(name).map(str::to_owned);
        (
            header("x-ratelimit-limit-requests"),
            header("x-ratelimit-remaining-requests"),
            header("x-tollgate-limited-by"),
        )
    };
    let is = |limit: &str, left: &str, by: Option<&str>| {
        (Some(limit.to_owned()), Some(left.to_owned()), by.map(str::to_owned))
    };
    assert_eq!((first.status.as_u16(), shown(&first)), (200, is("1", "0", None)));
    let refused = ask("tg_small").await;
    assert_eq!((refused.status.as_u16(), shown(&refused)), (429, is("1", "0", Some("key.requests_per_minute"))));
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("this API key"), "{}", refused.body);
    assert!(!refused.json()["error"]["message"].as_str().unwrap().contains("plan"), "{}", refused.body);
    assert_eq!(shown(&ask(KEY).await), is("3", "1", None), "what was refused took nothing of project and plan");
    assert_eq!(shown(&ask(KEY).await), is("3", "0", None));
    assert_eq!(shown(&ask(KEY).await), is("3", "0", Some("project.requests_per_minute")));
    assert_eq!(shown(&ask("tg_other").await), is("5", "1", None));
    assert_eq!(shown(&ask("tg_other").await), is("5", "0", None));
    assert_eq!(shown(&ask("tg_other").await), is("5", "0", Some("plan.requests_per_minute")));
    assert_eq!(world.metric("tollgate_gateway_limited_total{limit=\"project.requests_per_minute\"}"), 1.0);
    world.stop().await;
}

#[tokio::test]
async fn requests_at_once_are_limited_and_whoever_leaves_makes_room() {
    let slow = SimulatorSettings { time_per_output_token_us: 20_000, ..Default::default() };
    let replica = simulator(slow).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.concurrent_requests = Some(2);
    let mut world = setup.start().await;
    key(&mut world, "tg_none", Limits { concurrent_requests: Some(0), ..Limits::default() });
    world.publish();
    let (long, short) = (stream("hello", 3000, true), chat("hello", 1));
    let (first, second) = (world.open(CHAT, &long).await, world.open(CHAT, &long).await);
    let refused = world.post(CHAT, &short).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "concurrent_requests"));
    assert_eq!(refused.header("x-tollgate-limited-by"), Some("plan.concurrent_requests"));
    assert_eq!((refused.header("retry-after"), refused.header("retry-after-ms")), (Some("1"), Some("1000")));
    // One client hangs up, the other reads to an end that the gateway makes.
    drop(first);
    until("the one that hung up made room", || world.all().len() == 1).await;
    assert_eq!(world.post(CHAT, &short).await.status, 200);
    assert_eq!(world.post(CHAT, &short).await.status, 200, "an answer that has ended holds nothing");
    drop(second);
    until("nothing is open", || world.all().len() == 4).await;
    let none = loop {
        let answer = whole(with(&world, "tg_none", &short).await).await;
        if answer.status != 401 {
            break answer;
        }
    };
    assert_eq!((none.code().as_str(), none.header("retry-after")), ("concurrent_requests", None));
    world.stop().await;
}

#[tokio::test]
async fn what_reaches_no_replica_takes_nothing() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    (setup.plan.requests_per_minute, setup.plan.tokens_per_minute) = (Some(3), Some(100_000));
    setup.plan.concurrent_requests = Some(1);
    let world = setup.start().await;
    let nobody = json!({"model": "other", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 900});
    for _ in 0..5 {
        assert_eq!(world.post(CHAT, &nobody).await.code(), "no_healthy_replica");
    }
    let served = world.post(CHAT, &chat("hello", 2)).await;
    assert_eq!((served.status.as_u16(), served.header("x-ratelimit-remaining-requests")), (200, Some("2")));
    world.stop().await;
}

#[tokio::test]
async fn a_soft_quota_serves_bills_and_says_so() {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.tokens_per_period = Some(30);
    setup.plan.when_period_used = WhenPeriodUsed::Serve;
    let world = setup.start().await;
    let mut over = 0;
    for _ in 0..4 {
        let before = used(&world);
        let answer = world.post(CHAT, &chat("hello", 20)).await;
        assert_eq!(answer.status, 200);
        let exceeded = (before >= 30).then_some("tokens_per_period");
        assert_eq!(answer.header("x-tollgate-quota-exceeded"), exceeded, "{before} were used");
        over += u32::from(exceeded.is_some());
        assert!(world.recorded(&answer).sums().1 == 20, "it is billed");
    }
    assert!(over >= 2, "{over}");
    assert_eq!(world.metric("tollgate_gateway_over_quota_total"), f64::from(over));
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

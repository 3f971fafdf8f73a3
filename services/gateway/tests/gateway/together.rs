//! Limits that two gateways keep together in a real Redis: exactly, while it is there; by shares while it is away; and
//! nothing of it hangs on when a gateway is killed.

use std::time::{Duration, Instant};

use embedded::vllm::{Simulator, SimulatorSettings};
use gateway::RedisSettings;
use http::Response;
use hyper::body::Incoming;
use ledger::control::Plan;

use crate::redis::Redis;
use crate::world::{CHAT, Setup, World, chat, simulator, stream, unlimited, until, whole};

async fn slow() -> Simulator {
    simulator(SimulatorSettings { time_per_output_token_us: 20_000, ..Default::default() }).await
}

/// A gateway that keeps its limits in this Redis, once it does.
async fn gateway(name: &str, replica: &Simulator, plan: Plan, redis: RedisSettings) -> World {
    let mut setup = Setup::new(&[replica]);
    setup.plan = plan;
    setup.settings.name = name.to_owned();
    setup.settings.redis = Some(redis);
    let world = setup.start().await;
    until("it has joined", || is_together(&world)).await;
    world
}

fn is_together(world: &World) -> bool {
    world.metric("tollgate_gateway_limits_together") == 1.0
}

/// Streams that stay open at a gateway, until it lets no more in.
async fn fill(world: &World, most: usize) -> Vec<Response<Incoming>> {
    let mut open = Vec::new();
    while open.len() < most {
        let response = world.open(CHAT, &stream("hello", 3000, true)).await;
        if response.status() != 200 {
            assert_eq!(whole(response).await.code(), "concurrent_requests");
            break;
        }
        open.push(response);
    }
    open
}

async fn is_full(world: &World) -> bool {
    let answer = world.post(CHAT, &chat("hello", 1)).await;
    if answer.status != 200 {
        assert_eq!(answer.code(), "concurrent_requests", "{}", answer.body);
    }
    answer.status != 200
}

async fn has_room(world: &World) {
    let end = Instant::now() + Duration::from_secs(120);
    while is_full(world).await {
        assert!(Instant::now() < end, "nobody is denied for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn two_gateways_keep_one_limit_exactly() {
    let (replica, redis) = (slow().await, Redis::start().await);
    let plan = Plan { concurrent_requests: Some(5), ..unlimited() };
    let one = gateway("one", &replica, plan.clone(), redis.settings()).await;
    let two = gateway("two", &replica, plan, redis.settings()).await;
    let mut first = fill(&one, 3).await;
    let second = fill(&two, 10).await;
    assert_eq!((first.len(), second.len()), (3, 2));
    assert!(is_full(&one).await && is_full(&two).await);
    // Who hangs up at one makes room at the other.
    drop(first.pop());
    has_room(&two).await;
    drop((first, second));
    for world in [&one, &two] {
        until("all have ended", || world.metric("tollgate_gateway_requests_in_flight") == 0.0).await;
    }
    has_room(&one).await;
    assert_eq!(
        one.metric("tollgate_gateway_limits_apart_total") + two.metric("tollgate_gateway_limits_apart_total"),
        0.0
    );
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn rates_are_shared_with_what_requests_really_used() {
    let (replica, redis) = (simulator(SimulatorSettings::default()).await, Redis::start().await);
    let limit = 30;
    let plan = Plan { requests_per_minute: Some(limit), tokens_per_minute: Some(100_000), ..unlimited() };
    let one = gateway("one", &replica, plan.clone(), redis.settings()).await;
    let two = gateway("two", &replica, plan, redis.settings()).await;
    let begun = Instant::now();
    let (mut served, mut refused) = (0, 0);
    while refused < 4 {
        for world in [&one, &two] {
            let answer = world.post(CHAT, &chat("hello", 2)).await;
            if answer.status == 200 {
                served += 1;
                continue;
            }
            assert_eq!(answer.header("x-tollgate-limited-by"), Some("plan.requests_per_minute"));
            let wait: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
            assert!((1..=2000).contains(&wait), "{wait}");
            refused += 1;
        }
    }
    let flowed_in = begun.elapsed().as_millis() as u64 * limit / 60_000 + 1;
    assert!((limit..=limit + flowed_in).contains(&served), "{served} of {limit} and {flowed_in}");
    one.stop().await;
    two.stop().await;
    // A debt that is made at one gateway is owed at the other, under another plan.
    let plan = Plan { tokens_per_minute: Some(2000), ..unlimited() };
    let other = RedisSettings { prefix: "other".into(), ..redis.settings() };
    let one = gateway("one", &replica, plan.clone(), other.clone()).await;
    let two = gateway("two", &replica, plan, other).await;
    assert_eq!(one.post(CHAT, &chat("hello", 3500)).await.status, 200);
    let end = Instant::now() + Duration::from_secs(180);
    loop {
        let answer = two.post(CHAT, &chat("hello", 1)).await;
        if answer.status != 200 {
            assert_eq!(answer.header("x-tollgate-limited-by"), Some("plan.tokens_per_minute"));
            break;
        }
        assert!(Instant::now() < end);
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn without_redis_each_keeps_to_its_share_and_they_come_together_again() {
    let (replica, mut redis) = (slow().await, Redis::start().await);
    let plan = Plan { concurrent_requests: Some(6), requests_per_minute: Some(40), ..unlimited() };
    let one = gateway("one", &replica, plan.clone(), redis.settings()).await;
    let two = gateway("two", &replica, plan, redis.settings()).await;
    // `one` has to hear that there is another one.
    drop(whole(one.open(CHAT, &chat("hello", 1)).await).await);
    let begun = Instant::now();
    let old = fill(&one, 1).await;
    redis.kill().await;
    for world in [&one, &two] {
        until("it keeps to its share", || !is_together(world)).await;
    }
    let shares = (fill(&one, 10).await, fill(&two, 10).await);
    assert!(shares.1.len() == 3 || shares.1.len() == 6, "{}", shares.1.len());
    assert_eq!(shares.1.len(), 3, "half of the limit each, as there were two");
    let mut served = 2 + shares.0.len() + shares.1.len();
    drop(shares.1);
    until("there is room", || two.metric("tollgate_gateway_requests_in_flight") == 0.0).await;
    loop {
        let answer = two.post(CHAT, &chat("hello", 1)).await;
        if answer.status != 200 {
            assert_eq!(answer.code(), "rate_limit_exceeded", "a share of what was left of the minute");
            assert_eq!(answer.header("x-tollgate-limited-by"), Some("plan.requests_per_minute"));
            break;
        }
        served += 1;
    }
    assert!(two.metric("tollgate_gateway_redis_failures_total") >= 1.0);
    redis.restart().await;
    for world in [&one, &two] {
        until("they are together again", || is_together(world)).await;
    }
    // What is open is counted again: 1 and what `one` let in; room is for the rest.
    let open = old.len() + shares.0.len();
    let more = fill_rate(&two, 10).await;
    served += more.len();
    assert!(open + more.len() <= 6, "{open} and {}", more.len());
    let flowed_in = begun.elapsed().as_millis() as usize * 40 / 60_000 + 2;
    assert!(served <= 40 + flowed_in, "{served}: nothing is doubled");
    drop((old, shares.0, more));
    has_room_at_last(&one).await;
    has_room_at_last(&two).await;
    one.stop().await;
    two.stop().await;
}

/// As [`fill`], where the minute may be used up first.
async fn fill_rate(world: &World, most: usize) -> Vec<Response<Incoming>> {
    let mut open = Vec::new();
    while open.len() < most {
        let response = world.open(CHAT, &stream("hello", 3000, true)).await;
        if response.status() != 200 {
            break;
        }
        open.push(response);
    }
    open
}

async fn has_room_at_last(world: &World) {
    let end = Instant::now() + Duration::from_secs(180);
    while world.post(CHAT, &chat("hello", 1)).await.status != 200 {
        assert!(Instant::now() < end, "nobody is denied for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn what_a_killed_gateway_had_open_is_soon_forgotten() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (outer, inner) = (runtime(), runtime());
    outer.block_on(async {
        let (replica, redis) = (slow().await, Redis::start().await);
        let plan = Plan { concurrent_requests: Some(2), ..unlimited() };
        let lease =
            RedisSettings { lease: Duration::from_secs(2), timeout: Duration::from_millis(600), ..redis.settings() };
        let killed = inner.handle().spawn({
            let (plan, lease, url) = (plan.clone(), lease.clone(), replica.url());
            async move {
                let mut setup = Setup::new(&[]);
                (setup.plan, setup.replicas) = (plan, vec![url]);
                setup.settings.name = "killed".to_owned();
                setup.settings.redis = Some(lease);
                let world = setup.start().await;
                until("it has joined", || is_together(&world)).await;
                let open = fill(&world, 2).await;
                assert_eq!(open.len(), 2);
                (world, open)
            }
        });
        let (world, open) = killed.await.unwrap();
        let other = gateway("other", &replica, plan, lease).await;
        assert!(is_full(&other).await, "two are open elsewhere");
        // Nothing of it runs any more, so nothing is settled and nobody says goodbye.
        inner.shutdown_background();
        has_room(&other).await;
        drop((world, open));
        other.stop().await;
    });
}

#[tokio::test]
async fn a_gateway_that_never_found_redis_serves_its_share_of_the_setting() {
    let (replica, mut redis) = (slow().await, Redis::start().await);
    redis.kill().await;
    let mut setup = Setup::new(&[&replica]);
    setup.plan.concurrent_requests = Some(6);
    setup.settings.redis = Some(RedisSettings { gateways: 3, ..redis.settings() });
    let world = setup.start().await;
    let open = fill(&world, 10).await;
    assert_eq!(open.len(), 2);
    redis.restart().await;
    until("it has joined", || is_together(&world)).await;
    assert_eq!(fill(&world, 10).await.len(), 4, "alone it has all of it, and what was open counts");
    drop(open);
    world.stop().await;
}

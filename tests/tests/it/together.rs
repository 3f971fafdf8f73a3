//! Two gateways in front of the same replicas, limits kept together in Redis: one limit, whoever is asked, also when one of
//! them or Redis is killed; and whatever either of them served is billed once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use promises::client::{Answer, Events};
use promises::redis::Redis;
use promises::system::{MODELS, Role, System};
use promises::tenants::{TENANTS, models, price_list, tenant, usable_at};
use promises::wait::until;
use serde_json::{Value, json};

use promises::oracle::{check_figures, check_money, check_requests};

const BOTH: [Role; 2] = [Role::Gateway, Role::SecondGateway];
const SOON: Duration = Duration::from_secs(180);
/// The plans' limits: of requests at once, of requests and of tokens per minute.
const AT_ONCE: usize = 6;
const REQUESTS: u64 = 20;
const TOKENS: u64 = 2000;
/// Events of a stream until its engine falls silent for good.
const EVENTS: usize = 4;

/// Both gateways, and what clients saw of what they served: the id, and the tokens that they were told.
struct Pair {
    system: System,
    redis: Redis,
    /// Of a tenant that may have so many requests open, and of two with limits per minute.
    keys: [String; 3],
    served: Vec<(String, u64)>,
}

/// A stream that stays open until it is dropped.
struct Held {
    _body: Incoming,
}

fn id_of(headers: &hyper::HeaderMap) -> String {
    headers["x-request-id"].to_str().unwrap().to_owned()
}

/// Refused, and by that limit: with what a client needs to know.
fn refused(answer: &Answer, code: &str, by: &str) {
    assert_eq!((answer.status.as_u16(), answer.json()["error"]["code"].as_str()), (429, Some(code)));
    assert_eq!(answer.header("x-tollgate-limited-by"), Some(by));
    let wait = |name| answer.header(name).unwrap().parse::<u64>().unwrap();
    assert_eq!(wait("retry-after"), wait("retry-after-ms").div_ceil(1000));
    assert!((1..=60_000).contains(&wait("retry-after-ms")), "{}", wait("retry-after-ms"));
    assert_eq!(answer.header("x-should-retry"), None, "waiting helps");
}

impl Pair {
    async fn start() -> Self {
        let mut system = System::parts(0).await;
        let redis = Redis::start(&mut system).await;
        // Longer than any of these streams is held.
        system.set("GATEWAY__DEADLINES__IDLE", "10m");
        system.start_all(&[Role::Fold, Role::Billing, Role::Gateway, Role::SecondGateway]).await;
        models(&system).await;
        price_list(&system).await;
        let plans = [
            json!({"name": "At once", "concurrent_requests": AT_ONCE}),
            json!({"name": "Requests", "requests_per_minute": REQUESTS}),
            json!({"name": "Tokens", "tokens_per_minute": TOKENS}),
        ];
        let mut keys = Vec::new();
        for (id, plan) in TENANTS.into_iter().zip(&plans) {
            keys.push(tenant(&system, id, plan).await);
        }
        for role in BOTH {
            usable_at(&system, role, &keys).await;
        }
        let pair = Self { system, redis, keys: keys.try_into().unwrap(), served: Vec::new() };
        pair.are_together(true).await;
        pair
    }

    /// Returns when both gateways say that limits are kept together, or that they are not.
    async fn are_together(&self, together: bool) {
        for role in BOTH {
            until("a gateway to join or to part", SOON, async || {
                let said = self.system.metric(role, "tollgate_gateway_limits_together").await;
                if (said > 0.5) == together { Ok(()) } else { Err(said) }
            })
            .await;
        }
    }

    fn url(&self, at: Role) -> String {
        self.system.url(at, "/v1/chat/completions")
    }

    /// A stream whose engine falls silent after some tokens, all of which have come.
    async fn hold(&mut self, at: Role) -> Result<Held, Answer> {
        let prompt = format!("hold [[tokens:20]] [[fault:stall:{EVENTS}]]");
        let body = json!({
            "model": MODELS[0], "max_tokens": 20, "messages": [{"role": "user", "content": prompt}],
            "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        });
        let body = Some(Bytes::from(body.to_string()));
        let answer = self.system.client.open(Method::POST, &self.url(at), Some(&self.keys[0]), body).await.unwrap();
        let (head, mut body) = answer.into_parts();
        if head.status != 200 {
            let body = body.collect().await.unwrap().to_bytes();
            return Err(Answer { status: head.status, headers: head.headers, body });
        }
        let (mut events, mut came) = (Events::default(), Vec::new());
        while came.len() < EVENTS {
            let frame = body.frame().await.expect("a stream that goes on").unwrap();
            came.extend(frame.data_ref().map(|data| events.push(data)).unwrap_or_default());
        }
        let last: Value = serde_json::from_str(came.last().unwrap()).unwrap();
        self.served.push((id_of(&head.headers), last["usage"]["completion_tokens"].as_u64().unwrap()));
        Ok(Held { _body: body })
    }

    /// The same once there is room: who has left a moment ago may still be counted.
    async fn hold_soon(&mut self, at: Role) -> Held {
        until("room", SOON, async || self.hold(at).await.map_err(|answer| answer.json())).await
    }

    /// Nobody is let in any more, whoever is asked.
    async fn are_full(&mut self) {
        for role in BOTH {
            self.is_full(role).await;
        }
    }

    async fn is_full(&mut self, at: Role) {
        let answer = self.hold(at).await.err().expect("no room for one more");
        refused(&answer, "concurrent_requests", "plan.concurrent_requests");
    }

    async fn chat(&mut self, at: Role, key: usize, tokens: u64) -> Answer {
        let prompt = format!("tell me [[tokens:{tokens}]]");
        let body = json!({"model": MODELS[0], "max_tokens": tokens, "messages": [{"role": "user", "content": prompt}]});
        let answer = self.system.client.post(&self.url(at), Some(&self.keys[key]), &body).await.unwrap();
        if answer.status == 200 {
            let told = answer.json()["usage"]["completion_tokens"].as_u64().unwrap();
            self.served.push((id_of(&answer.headers), told));
        }
        answer
    }

    /// However open requests are spread over the gateways, six are let in and the seventh is not.
    async fn open_requests_are_shared(&mut self) {
        for first in 0..=AT_ONCE {
            let mut held = Vec::new();
            for at in 0..AT_ONCE {
                held.push(self.hold_soon(BOTH[usize::from(at >= first)]).await);
            }
            self.are_full().await;
            // Who hangs up at one makes room at the other.
            held.swap_remove(AT_ONCE - 1);
            held.push(self.hold_soon(BOTH[usize::from(first > 2)]).await);
            self.are_full().await;
        }
    }

    /// What a killed gateway had open counts until its lease ends, and no longer.
    async fn a_killed_gateway_is_soon_forgotten(&mut self) {
        let mut held = Vec::new();
        for role in [BOTH[0], BOTH[0], BOTH[1], BOTH[1], BOTH[1], BOTH[1]] {
            held.push(self.hold_soon(role).await);
        }
        self.system.kill(Role::SecondGateway);
        self.is_full(Role::Gateway).await;
        for _ in 2..AT_ONCE {
            held.push(self.hold_soon(Role::Gateway).await);
        }
        self.is_full(Role::Gateway).await;
        self.system.start_role(Role::SecondGateway).await;
        usable_at(&self.system, Role::SecondGateway, &self.keys).await;
        self.are_together(true).await;
        self.are_full().await;
    }

    /// Asked in turns, both let through one minute's worth and what flows in meanwhile.
    async fn requests_per_minute_are_shared(&mut self) {
        let (began, mut served, mut refusals) = (Instant::now(), 0, [0, 0]);
        let flowed = || began.elapsed().as_millis() as u64 * REQUESTS / 60_000 + 1;
        while refusals.contains(&0) {
            for (at, refusals) in BOTH.into_iter().zip(&mut refusals) {
                let answer = self.chat(at, 1, 1).await;
                assert_eq!(answer.header("x-ratelimit-limit-requests"), Some(REQUESTS.to_string().as_str()));
                let left: u64 = answer.header("x-ratelimit-remaining-requests").unwrap().parse().unwrap();
                if answer.status == 200 {
                    served += 1;
                    assert!(left + served <= REQUESTS + flowed(), "{left} are left after {served}");
                } else {
                    refused(&answer, "rate_limit_exceeded", "plan.requests_per_minute");
                    assert_eq!(left, 0);
                    *refusals += 1;
                }
            }
        }
        assert!((REQUESTS..=REQUESTS + flowed()).contains(&served), "{served} of {REQUESTS} and {}", flowed());
    }

    /// What was used above what was expected, at one of them, is owed at both.
    async fn tokens_per_minute_are_shared(&mut self) {
        assert_eq!(self.chat(Role::Gateway, 2, TOKENS + 1500).await.status, 200, "it takes what is usual, and passes");
        for role in [Role::SecondGateway, Role::Gateway] {
            let answer = until("the debt to be known", SOON, async || {
                let answer = self.chat(role, 2, 1).await;
                if answer.status == 429 { Ok(answer) } else { Err(answer.status) }
            })
            .await;
            refused(&answer, "rate_limit_exceeded", "plan.tokens_per_minute");
            assert_eq!(answer.header("x-ratelimit-remaining-tokens"), Some("0"));
        }
    }

    /// Without Redis each keeps to its half, and says so; when it is back, all that is open is counted once.
    async fn redis_dies_and_comes_back(&mut self) {
        // Each has to hear that there are two.
        let mut held = vec![self.hold_soon(BOTH[0]).await, self.hold_soon(BOTH[1]).await];
        self.redis.kill();
        self.are_together(false).await;
        for role in BOTH {
            for _ in 1..AT_ONCE / 2 {
                held.push(self.hold(role).await.map_err(|answer| answer.json()).expect("half of it"));
            }
            self.is_full(role).await;
            assert!(self.system.metric(role, "tollgate_gateway_redis_failures_total").await >= 1.0);
            let log = std::fs::read_to_string(self.system.log(role)).unwrap();
            assert!(log.contains("this gateway keeps to its share of them"), "it says so");
        }
        self.redis.restart().await;
        self.are_together(true).await;
        self.are_full().await;
        // Three and three were open. Three go at one of them: room for three at the other.
        assert_eq!(held.len(), AT_ONCE);
        held.remove(0);
        held.drain(1..3);
        for _ in 0..3 {
            held.push(self.hold_soon(Role::SecondGateway).await);
        }
        self.are_full().await;
    }

    /// Every request is billed once, and no less than its client saw.
    async fn everything_is_billed_once(&self) {
        let ids: Vec<String> = self.served.iter().map(|(id, _)| id.clone()).collect();
        self.system.settled(&ids).await;
        check_requests(&self.system, &[]).await;
        let billed = self.system.billed().await;
        for (id, tokens) in &self.served {
            let billed = billed.get(id).copied().unwrap_or_default();
            assert_eq!((billed.requests, billed.generated()), (1, *tokens), "{id}");
        }
        let usage = check_figures(&self.system).await;
        check_money(&self.system, &usage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_keep_one_limit_whatever_dies_and_all_they_served_is_billed_once() {
    let mut pair = Pair::start().await;
    pair.open_requests_are_shared().await;
    pair.requests_per_minute_are_shared().await;
    pair.a_killed_gateway_is_soon_forgotten().await;
    pair.tokens_per_minute_are_shared().await;
    pair.redis_dies_and_comes_back().await;
    pair.everything_is_billed_once().await;
}

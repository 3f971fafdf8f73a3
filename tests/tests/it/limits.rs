//! Limits hold under concurrency, and what an admin changes is felt within a second.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use promises::client::Answer;
use promises::system::{MODELS, Role, System};
use promises::wait::until;
use serde_json::{Value, json};

use promises::tenants::{models, new_key, price_list, put, tenant, usable};

/// What an admin changes holds after so long.
const SOON: Duration = Duration::from_secs(1);

async fn chat(system: &System, key: &str, tokens: u32) -> Answer {
    let prompt = format!("tell me [[tokens:{tokens}]]");
    let body = json!({"model": MODELS[0], "max_tokens": tokens, "messages": [{"role": "user", "content": prompt}]});
    let url = system.url(Role::Gateway, "/v1/chat/completions");
    system.client.post(&url, Some(key), &body).await.unwrap()
}

fn used(answer: &Answer) -> u64 {
    answer.json()["usage"]["total_tokens"].as_u64().unwrap()
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_token_limit_holds_under_concurrency_and_rises_at_once() {
    let system = System::start(500).await;
    models(&system).await;
    price_list(&system).await;
    let limit = 3000u64;
    let plan = |limit: u64| json!({"name": "Hard", "tokens_per_period": limit});
    let key = tenant(&system, "hard", &plan(limit)).await;
    usable(&system, std::slice::from_ref(&key)).await;

    let mut spent = 0;
    let mut refused = 0;
    for _ in 0..4 {
        for answer in join_all((0..32).map(|_| chat(&system, &key, 20))).await {
            match code(&answer) {
                (200, _) => spent += used(&answer),
                (429, code) => {
                    assert_eq!(code, "insufficient_quota", "{}", answer.json());
                    assert_eq!(answer.json()["error"]["type"], "insufficient_quota");
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(spent <= limit, "{spent} were used of {limit}");
    assert!(refused > 0, "the limit was reached");
    assert!(spent > limit / 2, "the limit can be used: {spent} of {limit}");
    assert_eq!(code(&chat(&system, &key, 1000).await).0, 429, "a large one does not fit any more");

    let raised = Instant::now();
    put(&system, "plans/hard", &plan(limit + 5000)).await;
    until("the raised limit to be felt", SOON.saturating_sub(raised.elapsed()), async || {
        let answer = chat(&system, &key, 20).await;
        if answer.status.is_success() { Ok(()) } else { Err(code(&answer)) }
    })
    .await;

    // A gateway that is started again knows what was spent before.
    let spent = until("the balance to be all that was spent", Duration::from_secs(60), async || {
        let balance = system.api("balances/hard").await;
        let sum = |row: &Value| {
            ["input", "cached_input", "output", "reasoning"]
                .iter()
                .map(|class| row[class].as_u64().unwrap())
                .sum::<u64>()
        };
        let total: u64 = balance["models"].as_array().unwrap().iter().map(sum).sum();
        if total > spent { Ok(total) } else { Err(balance) }
    })
    .await;
    put(&system, "plans/hard", &plan(spent)).await;
    let system = system;
    system.stop(Role::Gateway).await;
    system.start_role(Role::Gateway).await;
    until("the gateway to refuse", SOON * 10, async || {
        let answer = chat(&system, &key, 20).await;
        if code(&answer) == (429, "insufficient_quota".into()) { Ok(()) } else { Err(code(&answer)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_are_limited_with_the_headers_that_clients_know() {
    let system = System::start(0).await;
    models(&system).await;
    let few = tenant(&system, "few", &json!({"name": "Few", "requests_per_minute": 3})).await;
    usable(&system, std::slice::from_ref(&few)).await;

    let first = chat(&system, &few, 5).await;
    assert_eq!(first.status.as_u16(), 200);
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("3"));
    let answers = join_all((0..6).map(|_| chat(&system, &few, 5))).await;
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status.as_u16() == 429).collect();
    assert_eq!(refused.len(), 4, "three a minute, of seven");
    for answer in refused {
        assert_eq!(code(answer).1, "rate_limit_exceeded");
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
}

/// A rate is asked for what is usual, so that a large `max_tokens` pins nobody's minute: an answer may be larger than was
/// taken for it, or than a whole minute's worth. All that it used is owed, and the next one waits until that has flowed in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_above_what_is_usual_is_owed_to_the_last_token() {
    // Taken for a key that was never seen: so much output, and what its prompt may be.
    const FIRST: u64 = 512;
    const LIMIT: u64 = 6000;
    let millis_of = |tokens: u64| (tokens * 60_000).div_ceil(LIMIT);
    let system = System::start(0).await;
    models(&system).await;
    let key = tenant(&system, "small", &json!({"name": "Small", "tokens_per_minute": LIMIT})).await;
    usable(&system, std::slice::from_ref(&key)).await;

    let began = Instant::now();
    let large = chat(&system, &key, 7000).await;
    assert_eq!(large.status.as_u16(), 200);
    let number = |answer: &Answer, name: &str| answer.header(name).unwrap().parse::<u64>().unwrap();
    let taken = LIMIT - number(&large, "x-ratelimit-remaining-tokens");
    assert!((FIRST + 1..FIRST + 200).contains(&taken), "{taken} were taken");
    assert!(used(&large) > 7000, "and more than a minute's worth was used");

    let owing = chat(&system, &key, 5).await;
    assert_eq!(code(&owing), (429, "rate_limit_exceeded".into()));
    assert_eq!(number(&owing, "x-ratelimit-remaining-tokens"), 0);
    // It waits for what is owed and for what it takes itself, less what has flowed in since.
    let words = owing.json()["error"]["message"].as_str().unwrap().to_owned();
    let asked: u64 = words.split_once("this request needs ").unwrap().1.split('.').next().unwrap().parse().unwrap();
    assert!((6..200).contains(&asked), "what its prompt may be, and its own max_tokens: {words}");
    let due = millis_of(used(&large) + asked - LIMIT);
    let wait = number(&owing, "retry-after-ms");
    let flowed = u64::try_from(began.elapsed().as_millis()).unwrap();
    assert!((due.saturating_sub(flowed + 1)..=due).contains(&wait), "{wait} of {due}, {flowed} later");

    until("what is owed to have flowed in", Duration::from_secs(180), async || {
        let answer = chat(&system, &key, 5).await;
        if answer.status.is_success() { Ok(()) } else { Err(code(&answer)) }
    })
    .await;
    assert!(began.elapsed() >= Duration::from_millis(due - 1), "and not sooner: {:?} of {due}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_refused_within_a_second() {
    let system = System::start(0).await;
    models(&system).await;
    let kept = tenant(&system, "acme", &json!({"name": "Free"})).await;
    let (id, secret) = new_key(&system, "acme").await;
    usable(&system, &[kept.clone(), secret.clone()]).await;
    assert_eq!(chat(&system, &secret, 3).await.status.as_u16(), 200);

    let url = system.url(Role::Billing, &format!("/api/v1/tenants/acme/keys/{id}"));
    let revoked = Instant::now();
    system.client.send(hyper::Method::DELETE, &url, Some(promises::system::ADMIN), None).await.unwrap().ok();
    until("the key to be refused", SOON.saturating_sub(revoked.elapsed()), async || {
        let answer = chat(&system, &secret, 3).await;
        if code(&answer) == (401, "invalid_api_key".into()) { Ok(()) } else { Err(code(&answer)) }
    })
    .await;
    assert_eq!(chat(&system, &kept, 3).await.status.as_u16(), 200, "the other key of the tenant is as good as before");
}

//! The real vLLM behind the gateway: answers are the engine's own, and what is billed is what the engine counted.
//! `make test-vllm` fetches the engine and runs this.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, its helpers too; this one is read by people while it runs"
)]

mod account;
mod calls;
mod engine;
mod hanging;
mod tap;
mod wire;
mod world;

use futures_util::future::join_all;
use promises::figures::Counts;
use promises::wait::until;
use serde_json::{Value, json};

use account::{Account, Why};
use calls::{Call, EMBEDDER, Refused};
use engine::Totals;
use tap::Answered;
use world::{Asked, PATIENCE, TENANTS, World};

/// All of it in one run: an engine takes a minute to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_real_engine_counts_is_what_is_billed() {
    let mut world = World::start().await;
    let began = world.totals().await;
    let mut account = Account::default();
    println!("gauges");
    gauges(&world).await;
    println!("whole answers");
    whole_answers(&world, &mut account).await;
    println!("refused");
    refused(&world, &mut account).await;
    println!("free");
    free(&world, &mut account).await;
    println!("who goes before whom");
    priority(&world, &mut account).await;
    println!("many at once");
    many_at_once(&world, &mut account).await;
    println!("hung up");
    hanging::one_by_one(&world, &mut account).await;
    println!("all of it is one figure");
    one_figure(&world, &account, began).await;
    account.print();
    println!("an engine is killed");
    hanging::killed(&mut world).await;
}

/// What the gateway reads of an engine's load is there under these names, and the gateway has read it.
async fn gauges(world: &World) {
    for engine in &world.engines {
        let text = engine.metrics(&world.system.client).await;
        for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
            assert!(text.contains(&format!("# TYPE {name} gauge\n{name}{{")), "no {name} in\n{text}");
        }
    }
    let url = world.system.url(promises::system::Role::Gateway, "/metrics");
    until("the gateway to have read every engine's metrics", PATIENCE, async || {
        let answer = world.system.client.get(&url, None).await.map_err(|error| format!("{error:?}"))?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let age = |replica: &str| text.contains(&format!("metrics_age_seconds{{replica=\"{replica}\"}} 0"));
        if ["vllm-0", "vllm-1", "vllm-2"].into_iter().all(age) { Ok(()) } else { Err(text) }
    })
    .await;
}

/// One after the other, each held to the bytes and the counters of the engine.
async fn whole_answers(world: &World, account: &mut Account) {
    let mut asked = Vec::new();
    for call in calls::whole() {
        asked.push(complete(world, 0, call).await);
    }
    enter(world, account, &asked).await;
}

/// A request that was answered to its end while the engines did nothing else.
struct Complete {
    call: Call,
    id: String,
    engine: Answered,
    counted: Totals,
}

async fn complete(world: &World, tenant: usize, call: Call) -> Complete {
    let before = world.totals().await;
    let Asked { id, status, text } = world.ask_as(tenant, &call).await;
    assert_eq!(status, 200, "{}: {text}", call.name);
    let engine = world.answered(&id);
    assert_eq!(text, wire::expected(&call, &engine.body), "{}: the answer is the engine's own", call.name);
    let counted = world.totals().await - before;
    println!("  {}: engine {counted:?}", call.name);
    Complete { call, id, engine, counted }
}

/// Enters what the engine told of each of them, which is what is billed.
async fn enter(world: &World, account: &mut Account, asked: &[Complete]) {
    let ids: Vec<String> = asked.iter().map(|asked| asked.id.clone()).collect();
    for (Complete { call, engine, counted, .. }, billed) in asked.iter().zip(world.billed(&ids).await) {
        let name = call.name;
        let told = wire::told(&engine.body).unwrap_or_else(|| panic!("{name}: the engine told no usage"));
        assert_eq!((billed.prompt(), billed.generated()), (told.prompt, told.generated), "{name}: {billed:?}");
        assert_eq!(billed.requests, 1, "{name}");
        let each = (call.prompts - 1) * told.prompt;
        account.enter((call.path, "complete"), billed, *counted, &[(Why::EachChoice, each.cast_signed())]);
    }
}

/// What the engine refuses is told in its own words, what the gateway refuses would be refused by the engine too, and all of
/// it costs nothing.
async fn refused(world: &World, account: &mut Account) {
    let before = world.totals().await;
    let mut by_engine = Vec::new();
    for Refused { call, status, engine, passed_on } in calls::refused() {
        let at = if call.body["model"] == EMBEDDER { 2 } else { 0 };
        let direct = world.ask_engine(at, &call).await;
        let asked = world.ask(&call).await;
        println!("  {}: engine {} {}", call.name, direct.status, direct.text);
        println!("  {}: gateway {} {}", call.name, asked.status, asked.text);
        assert_eq!((asked.status.as_u16(), direct.status.as_u16()), (status, engine), "{}", call.name);
        let answered = world.answered(&asked.id);
        if passed_on {
            assert_eq!((answered.status, answered.body), (status, asked.text.into_bytes()), "{}", call.name);
            by_engine.push((call.path, asked.id));
        } else {
            let error: Value = serde_json::from_str(&asked.text).unwrap();
            assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string(), "{}", asked.text);
            assert!(!asked.text.contains("127.0.0.1"), "{}", asked.text);
        }
    }
    assert_eq!(world.totals().await, before, "nothing of it made the engine count");
    enter_free(world, account, "refused", by_engine).await;
}

async fn enter_free(world: &World, account: &mut Account, outcome: &'static str, asked: Vec<(&'static str, String)>) {
    let (paths, ids): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    for (path, billed) in paths.into_iter().zip(world.billed(&ids).await) {
        account.enter((path, outcome), billed, Totals::default(), &[]);
    }
}

/// What generates nothing is passed on and costs nothing.
async fn free(world: &World, account: &mut Account) {
    let before = world.totals().await;
    let mut answered = Vec::new();
    for call in calls::free() {
        let asked = world.ask(&call).await;
        assert_eq!(asked.status, 200, "{}: {}", call.name, asked.text);
        assert_eq!(asked.text.as_bytes(), world.answered(&asked.id).body, "{}", call.name);
        answered.push((call.path, asked.id));
    }
    assert_eq!(world.totals().await, before, "nothing of it made the engine count");
    enter_free(world, account, "free", answered).await;
}

/// The engine takes the band of the tenant's plan for its own queue, and nothing that a client says of it.
async fn priority(world: &World, account: &mut Account) {
    let mut call = calls::whole().remove(0);
    call.body["priority"] = json!(-100);
    let mut asked = Vec::new();
    for (tenant, wanted) in [(0, 0), (1, 1)] {
        let complete = complete(world, tenant, call.clone()).await;
        let question: Value = serde_json::from_slice(&complete.engine.question).unwrap();
        assert_eq!(question["priority"], wanted, "{}", TENANTS[tenant]);
        asked.push(complete);
    }
    enter(world, account, &asked).await;
}

/// Whole answers and streams at the same time, on both replicas: each is what the engine told of it, and all of them are
/// what the engines counted.
async fn many_at_once(world: &World, account: &mut Account) {
    let before = world.totals().await;
    let calls = calls::whole();
    let many: Vec<&Call> = calls.iter().cycle().take(3 * calls.len()).collect();
    let answers = join_all(many.iter().map(|call| world.ask(call))).await;
    let counted = world.totals().await - before;
    let ids: Vec<String> = answers.iter().map(|asked| asked.id.clone()).collect();
    let billed = world.billed(&ids).await;
    let mut sum = Totals::default();
    for ((call, asked), billed) in many.iter().zip(&answers).zip(billed) {
        assert_eq!(asked.status, 200, "{}: {}", call.name, asked.text);
        let engine = world.answered(&asked.id);
        assert_eq!(asked.text, wire::expected(call, &engine.body), "{}", call.name);
        let told = wire::told(&engine.body).unwrap();
        let counted = Totals { prompt: told.prompt * call.prompts, generated: told.generated };
        let each = (call.prompts - 1) * told.prompt;
        account.enter((call.path, "complete, many at once"), billed, counted, &[(Why::EachChoice, each.cast_signed())]);
        sum = sum + counted;
    }
    assert_eq!(sum, counted, "what the engines told is what they counted");
    let shares: Vec<usize> =
        world.taps.iter().map(|tap| ids.iter().filter(|id| tap.answered(id).is_some()).count()).collect();
    println!("  requests by replica: {shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "each replica had its share: {shares:?}");
}

/// The sum of all requests is the same wherever it is asked for, and with what the account explains it is what the engines
/// have counted since the test began.
async fn one_figure(world: &World, account: &Account, began: Totals) {
    let (requests, billed, counted) = account.sum();
    assert_eq!(world.totals().await - began, counted, "the engines counted nothing else");
    let system = &world.system;
    let raw = system.raw().await;
    let mut sum = Counts::default();
    raw.values().for_each(|counts| sum += *counts);
    assert_eq!(Totals { prompt: sum.prompt(), generated: sum.generated() }, billed, "nothing else was billed");
    println!("  {requests} requests, {sum:?}");
    assert_eq!(system.aggregates().await, raw);
    until("usage and balances to be the rows", PATIENCE, async || {
        let (usage, balances) = (system.usage(&TENANTS).await, system.balances(&TENANTS).await);
        if usage == raw && balances == raw { Ok(()) } else { Err((usage, balances, raw.clone())) }
    })
    .await;
}

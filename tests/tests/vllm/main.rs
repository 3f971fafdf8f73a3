//! The real vLLM behind the gateway: answers are the engine's own, and what is billed is what the engine counted.
//! `make test-vllm` fetches the engine and runs this.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod calls;
mod engine;
mod tap;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::Method;
use promises::client::Answer;
use promises::figures::Counts;
use promises::system::{Role, System};
use promises::tenants::{put, tenant};
use promises::wait::until;
use serde_json::{Value, json};

use calls::{ADAPTER, Call, EMBEDDER, MODEL};
use engine::{Engine, Runs, Totals};
use tap::{Answered, Tap};

const TENANT: &str = "acme";
/// How long a client of these tests waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// A Tollgate before three engines: two that generate the same, and one that embeds.
struct World {
    system: System,
    engines: Vec<Engine>,
    taps: Vec<Tap>,
    key: String,
}

impl World {
    async fn start() -> Self {
        let mut system = System::start(1000).await;
        let kinds = [("a", Runs::Generate), ("b", Runs::Generate), ("embed", Runs::Pool)];
        let mut engines: Vec<Engine> =
            kinds.iter().map(|(name, runs)| Engine::spawn(name, *runs, system.dir())).collect();
        let client = system.client.clone();
        join_all(engines.iter_mut().map(|engine| engine.ready(&client))).await;
        let mut taps = Vec::new();
        for engine in &engines {
            taps.push(Tap::before(engine.port).await);
        }
        let key = shop(&mut system, &taps).await;
        Self { system, engines, taps, key }
    }

    /// What all engines have counted, when none of them works any more.
    async fn totals(&self) -> Totals {
        let client = &self.system.client;
        join_all(self.engines.iter().map(|engine| engine.settled(client)))
            .await
            .into_iter()
            .fold(Totals::default(), |a, b| a + b)
    }

    async fn ask(&self, call: &Call) -> Answer {
        let url = self.system.url(Role::Gateway, call.path);
        let answer = tokio::time::timeout(PATIENCE, self.system.client.post(&url, Some(&self.key), &call.body)).await;
        answer
            .unwrap_or_else(|_| panic!("{}: no answer", call.name))
            .unwrap_or_else(|error| panic!("{}: {error:?}", call.name))
    }

    /// Reads so many pieces of an answer and hangs up; gives the request's id and what was read.
    async fn hang_up(&self, call: &Call, reads: usize) -> (String, Vec<u8>) {
        let url = self.system.url(Role::Gateway, call.path);
        let body = Bytes::from(call.body.to_string());
        let read = async {
            let answer = self.system.client.open(Method::POST, &url, Some(&self.key), Some(body)).await.unwrap();
            let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
            let (mut seen, mut body) = (Vec::new(), answer.into_body());
            for _ in 0..reads {
                seen.extend_from_slice(&body.frame().await.expect("more").unwrap().into_data().unwrap());
            }
            (id, seen)
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{}: no answer", call.name))
    }

    fn answered(&self, id: &str) -> Answered {
        self.taps.iter().find_map(|tap| tap.answered(id)).unwrap_or_default()
    }

    async fn billed(&self, ids: &[String]) -> Vec<Counts> {
        self.system.settled(ids).await;
        let billed = self.system.billed().await;
        ids.iter().map(|id| billed.get(id).copied().unwrap_or_default()).collect()
    }
}

/// Models, replicas and a tenant without limits; gives its key.
async fn shop(system: &mut System, taps: &[Tap]) -> String {
    for model in [MODEL, EMBEDDER] {
        put(system, &format!("models/{model}"), &json!({"version": "v1", "served_name": model})).await;
    }
    let adapter = json!({"version": "v1", "served_name": ADAPTER, "base": MODEL});
    put(system, &format!("models/{ADAPTER}"), &adapter).await;
    for (at, tap) in taps.iter().enumerate() {
        let model = if at < 2 { MODEL } else { EMBEDDER };
        put(system, &format!("replicas/vllm-{at}"), &json!({"model": model, "url": tap.url})).await;
    }
    let key = tenant(system, TENANT, &json!({"name": "Acme"})).await;
    for model in [MODEL, ADAPTER, EMBEDDER] {
        let url = system.url(Role::Gateway, &format!("/v1/models/{model}"));
        until("the gateway to know the key", PATIENCE, async || {
            let answer = system.client.get(&url, Some(&key)).await.map_err(|error| format!("{error:?}"))?;
            if answer.status.is_success() { Ok(()) } else { Err(answer.status.to_string()) }
        })
        .await;
    }
    key
}

/// All of it in one run: an engine takes a minute to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_real_engine_counts_is_what_is_billed() {
    let mut world = World::start().await;
    println!("whole answers");
    whole_answers(&world).await;
    println!("refused and free");
    refused_and_free(&world).await;
    println!("many at once");
    many_at_once(&world).await;
    println!("hung up");
    hung_up(&world).await;
    println!("usage, balances and rows are one");
    one_figure(&world).await;
    println!("an engine is killed");
    killed(&mut world).await;
}

/// One after the other, each held to the bytes and the counters of the engine.
async fn whole_answers(world: &World) {
    for call in calls::whole() {
        let before = world.totals().await;
        let answer = world.ask(&call).await;
        let name = call.name;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status, 200, "{name}: {text}");
        let id = answer.header("x-request-id").unwrap().to_owned();
        let engine = world.answered(&id);
        assert_eq!(text, wire::expected(&call, &engine.body), "{name}: the answer is the engine's own");
        let counted = world.totals().await - before;
        let billed = world.billed(&[id]).await[0];
        let told = wire::told(&engine.body).unwrap_or_else(|| panic!("{name}: the engine told no usage: {text}"));
        println!("  {name}: engine {counted:?}, told {told:?}, billed {billed:?}");
        assert_eq!((billed.prompt(), billed.generated()), (told.prompt, told.generated), "{name}");
        assert_eq!(billed.generated(), counted.generated, "{name}: the engine counted other tokens");
        assert_eq!(billed.prompt() * call.prompts, counted.prompt, "{name}: the engine counted another prompt");
        assert_eq!(billed.requests, 1, "{name}");
    }
}

/// What the engine refuses is told in its own words and costs nothing; neither does what it answers without generating.
async fn refused_and_free(world: &World) {
    let before = world.totals().await;
    let mut ids = Vec::new();
    for (call, status) in calls::refused() {
        let answer = world.ask(&call).await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status.as_u16(), status, "{}: {text}", call.name);
        let id = answer.header("x-request-id").unwrap().to_owned();
        let engine = world.answered(&id);
        if engine.status != 0 {
            assert_eq!((text, status), (String::from_utf8(engine.body).unwrap(), engine.status), "{}", call.name);
            ids.push(id);
        }
    }
    assert!(!ids.is_empty(), "the engine itself refused some");
    for counts in world.billed(&ids).await {
        assert_eq!((counts.prompt(), counts.generated()), (0, 0));
    }
    for call in calls::free() {
        let answer = world.ask(&call).await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status, 200, "{}: {text}", call.name);
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(text, String::from_utf8(world.answered(id).body).unwrap(), "{}", call.name);
    }
    assert_eq!(world.totals().await, before, "nothing of it made the engine count");
}

/// Whole answers and streams at the same time, on both replicas.
async fn many_at_once(world: &World) {
    let before = world.totals().await;
    // What counts its prompt more than once was looked at alone.
    let calls: Vec<Call> = calls::whole().into_iter().filter(|call| call.prompts == 1).collect();
    let many: Vec<&Call> = calls.iter().cycle().take(96).collect();
    let answers = join_all(many.iter().map(|call| world.ask(call))).await;
    let mut ids = Vec::new();
    for (call, answer) in many.iter().zip(&answers) {
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status, 200, "{}: {text}", call.name);
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!(text, wire::expected(call, &world.answered(&id).body), "{}", call.name);
        ids.push(id);
    }
    let shares: Vec<usize> =
        world.taps.iter().map(|tap| ids.iter().filter(|id| tap.answered(id).is_some()).count()).collect();
    println!("  requests by replica: {shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "each replica had its share: {shares:?}");
    let counted = world.totals().await - before;
    let billed = world.billed(&ids).await;
    assert_eq!(billed.iter().map(Counts::generated).sum::<u64>(), counted.generated);
    assert_eq!(billed.iter().map(Counts::prompt).sum::<u64>(), counted.prompt);
}

/// A client that hangs up pays for what the gateway received, which is at least what it got and at most what was made. The
/// engine makes a few tokens more before it learns of it: they are listed, and they are on nobody's bill.
async fn hung_up(world: &World) {
    let mut unbilled = 0;
    for (call, reads) in calls::cut() {
        let before = world.totals().await;
        let (id, seen) = world.hang_up(&call, reads).await;
        let counted = world.totals().await - before;
        let engine = world.answered(&id);
        let billed = world.billed(std::slice::from_ref(&id)).await[0];
        let sent = wire::told(&engine.body).map_or(0, |told| told.generated);
        let name = call.name;
        println!(
            "  {name} after {reads} reads ({} bytes): billed {} + {}, the engine made {} (in flight: {}), last count sent {sent}",
            seen.len(),
            billed.prompt(),
            billed.generated(),
            counted.generated,
            counted.generated - billed.generated(),
        );
        assert!(engine.body.starts_with(&seen[..seen.len().min(6)]), "{name}: what was read is the engine's");
        assert!(billed.generated() <= counted.generated, "{name}: more was billed than was made");
        assert!(billed.generated() < 800, "{name}: it was cut short");
        assert!(billed.prompt() == 0 || billed.prompt() * call.prompts == counted.prompt, "{name}: the prompt");
        assert!(billed.generated() == 0 || billed.prompt() > 0, "{name}: output is billed with its input");
        unbilled += counted.generated - billed.generated();
    }
    println!("  {unbilled} tokens were in flight in all");
}

/// The sum of all requests is the same wherever it is asked for.
async fn one_figure(world: &World) {
    let system = &world.system;
    let raw = system.raw().await;
    assert_eq!(system.aggregates().await, raw);
    until("usage and balances to be the rows", PATIENCE, async || {
        let (usage, balances) = (system.usage(&[TENANT]).await, system.balances(&[TENANT]).await);
        if usage == raw && balances == raw { Ok(()) } else { Err((usage, balances, raw.clone())) }
    })
    .await;
}

/// An engine that dies in the middle of a stream: the client is told, what it got is billed, and the other replica goes on.
async fn killed(world: &mut World) {
    let (call, _) = calls::cut().remove(0);
    let url = world.system.url(Role::Gateway, call.path);
    let body = Bytes::from(call.body.to_string());
    let answer = world.system.client.open(Method::POST, &url, Some(&world.key), Some(body)).await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let (mut seen, mut body) = (Vec::new(), answer.into_body());
    while seen.windows(6).filter(|six| six == b"data: ").count() < 20 {
        seen.extend_from_slice(&body.frame().await.expect("more").unwrap().into_data().unwrap());
    }
    let at = world.taps.iter().position(|tap| tap.answered(&id).is_some()).expect("a replica answered");
    world.engines[at].kill();
    while let Some(Ok(frame)) = body.frame().await {
        seen.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    let text = String::from_utf8(seen).unwrap();
    let last: Vec<&str> = text.trim_end().rsplit("\n\n").take(2).collect();
    let error: Value = serde_json::from_str(last[1].trim_start_matches("data: ")).unwrap();
    assert_eq!((last[0], &error["error"]["code"]), ("data: [DONE]", &json!("upstream_error")), "{text}");
    let billed = world.billed(std::slice::from_ref(&id)).await[0];
    let sent = text.matches("\"delta\":{\"content\":").count() as u64;
    println!("  billed {} + {}, the client saw {sent} pieces", billed.prompt(), billed.generated());
    assert!(billed.prompt() > 0 && billed.generated() > 0 && billed.generated() < 800);
    let (call, _) = (calls::whole().remove(0), ());
    for _ in 0..4 {
        assert_eq!(world.ask(&call).await.status, 200, "the other replica answers");
    }
}

//! Who answers: versions, canaries, adapters, pools; replicas that are busy, fail, drain, come and go.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use embedded::vllm::{ArmedFault, Simulator, SimulatorSettings, When};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use ledger::control::{Canary, Document, Kind, Model, Pool, Replica};
use schemas::event::TokensCounted;
use serde_json::json;

use crate::world::{Answer, CHAT, Control, MODEL, Setup, World, chat, simulator, stream, until, whole};

fn model(version: &str, served: &str) -> Model {
    Model::new(version.parse().unwrap(), served)
}

fn canary(version: &str, served: &str, percent: u8) -> Canary {
    Canary { version: version.parse().unwrap(), served_name: served.into(), percent }
}

fn replica(of: &Simulator, change: impl FnOnce(&mut Replica)) -> Document {
    let mut document = Replica::new(MODEL.parse().unwrap(), of.url());
    change(&mut document);
    Document::Replica(document)
}

fn version(version: &str) -> impl FnOnce(&mut Replica) {
    |replica| replica.version = Some(version.parse().unwrap())
}

async fn serving(name: &str) -> Simulator {
    let models = vec![name.to_owned()];
    simulator(SimulatorSettings { models, time_per_output_token_us: 300, ..SimulatorSettings::default() }).await
}

/// A gateway without replicas yet, that asks those it gets for health and metrics all the time.
async fn eager() -> World {
    let mut setup = Setup::new(&[]);
    setup.settings.health_interval = Duration::from_millis(20);
    // A machine that is busy is no replica that is down.
    setup.settings.health_timeout = Duration::from_secs(20);
    setup.settings.routing.guard.interval = Duration::from_millis(20);
    setup.start().await
}

fn served(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.ended), (200, true), "{}", answer.body);
    let complete =
        answer.body.ends_with("data: [DONE]\n\n") || answer.json()["choices"][0]["finish_reason"] == "length";
    assert!(complete && !answer.body.contains("\"error\""), "{}", answer.body);
}

type Change = Box<dyn FnOnce(&mut Control)>;

/// What people change, one thing after the other, while requests come and go: each is seen by so many of them.
async fn change(world: &World, answered: &Cell<usize>, changes: Vec<Change>) {
    let mut control = world.control.clone();
    for change in changes {
        let before = answered.get();
        until("requests are answered", || answered.get() >= before + 20).await;
        change(&mut control);
        world.tell(&control);
    }
}

#[tokio::test]
async fn versions_are_swapped_under_load_and_every_request_is_answered_and_booked_where_it_was_served() {
    let (old, new) =
        ([serving("llama-1").await, serving("llama-1").await], [serving("llama-2").await, serving("llama-2").await]);
    let mut world = eager().await;
    world.control.put(MODEL, Document::Model(model("v1", "llama-1")));
    world.control.put("old-0", replica(&old[0], version("v1")));
    world.control.put("old-1", replica(&old[1], version("v1")));
    world.publish();
    let put = |id: &'static str, document: Document| -> Change { Box::new(move |control| control.put(id, document)) };
    let delete = |id: &'static str| -> Change { Box::new(move |control| control.delete(Kind::Replica, id)) };
    let with = |canaries: Vec<Canary>| Document::Model(Model { canaries, ..model("v1", "llama-1") });
    let draining = |of: &Simulator, name: &str| {
        let name = name.to_owned();
        replica(of, move |replica| (replica.draining, replica.version) = (true, Some(name.parse().unwrap())))
    };
    let pool = Pool { gpu_class: "h100".parse().unwrap(), plans: Some(vec!["plan".parse().unwrap()]) };
    let pooled = |of: &Simulator| {
        replica(of, |replica| {
            (replica.pool, replica.version) = (Some("mine".parse().unwrap()), Some("v2".parse().unwrap()))
        })
    };
    let changes = vec![
        put(MODEL, with(vec![canary("v2", "llama-2", 30)])),
        put("new-0", replica(&new[0], version("v2"))),
        put(MODEL, with(vec![canary("v2", "llama-2", 100)])),
        put(MODEL, Document::Model(model("v2", "llama-2"))),
        put("old-0", draining(&old[0], "v1")),
        delete("old-0"),
        delete("old-1"),
        put("new-1", replica(&new[1], version("v2"))),
        put("mine", Document::Pool(pool)),
        put("new-1", pooled(&new[1])),
        put("new-0", draining(&new[0], "v2")),
        // Moved to another address, and back.
        put("new-0", replica(&new[1], version("v2"))),
        delete("new-1"),
        // Back to the version before.
        put("old-0", replica(&old[0], version("v1"))),
        put(MODEL, with(vec![])),
        delete("new-0"),
        put("old-1", replica(&old[1], version("v1"))),
    ];
    let (answered, over) = (Cell::new(0), Cell::new(false));
    let client = |number: usize| {
        let (world, answered, over) = (&world, &answered, &over);
        async move {
            let mut round = number;
            while !over.get() {
                let prompt = format!("{} of {number}", "hello ".repeat(1 + round % 7));
                let tokens = 1 + (round % 9) as u64;
                let streamed = round.is_multiple_of(2);
                let body =
                    if streamed { stream(&prompt, tokens, round.is_multiple_of(4)) } else { chat(&prompt, tokens) };
                served(&world.post(CHAT, &body).await);
                answered.set(answered.get() + 1);
                round += 1;
            }
        }
    };
    let operator = async {
        change(&world, &answered, changes).await;
        over.set(true);
    };
    tokio::join!(join_all((0..8).map(client)), operator);
    let mut engines = BTreeMap::new();
    for (version, engine) in [("v1", &old[0]), ("v1", &old[1]), ("v2", &new[0]), ("v2", &new[1])] {
        for request in engine.requests() {
            let tokens = (request.prompt_tokens, request.generated_tokens);
            engines.insert(request.request_id.unwrap(), (version.to_owned(), tokens));
        }
    }
    let mut billed: BTreeMap<String, (String, (u64, u64))> = BTreeMap::new();
    for record in world.records().into_iter().filter(|record| record.topic == stream::spool::TOKENS) {
        let count: TokensCounted = schemas::codec::decode(&record.value.unwrap()).unwrap();
        let delta = count.delta().unwrap();
        let entry = billed.entry(count.request_id.to_string()).or_default();
        assert!(entry.0.is_empty() || entry.0 == count.version.as_str(), "one version");
        entry.0 = count.version.to_string();
        entry.1.0 += delta.input + delta.cached_input;
        entry.1.1 += delta.output + delta.reasoning;
    }
    assert_eq!(billed.len(), answered.get());
    assert!(billed == engines, "what is booked is what each version has served");
    assert!(["v1", "v2"].iter().all(|version| billed.values().any(|(of, _)| of == version)));
    assert!(world.all().iter().all(|end| end.end_reason.as_str() == "complete"));
    world.stop().await;
}

#[tokio::test]
async fn a_replica_that_drains_ends_what_it_has_and_gets_no_more() {
    let slow = SimulatorSettings { time_per_output_token_us: 1_000, ..SimulatorSettings::default() };
    let (leaving, staying) = (simulator(slow.clone()).await, simulator(slow).await);
    let mut world = eager().await;
    world.control.put("leaving", replica(&leaving, |_| {}));
    world.publish();
    let mut open = world.open(CHAT, &stream("hello", 300, true)).await;
    open.body_mut().frame().await.unwrap().unwrap();
    world.control.put("leaving", replica(&leaving, |replica| replica.draining = true));
    world.control.put("staying", replica(&staying, |_| {}));
    world.publish();
    until("the other one is asked", || world.metric("tollgate_gateway_replica_up{replica=\"staying\"}") == 1.0).await;
    for _ in 0..5 {
        served(&world.post(CHAT, &chat("hello", 2)).await);
    }
    world.control.delete(Kind::Replica, "leaving");
    world.publish();
    let answer = whole(open).await;
    served(&answer);
    assert_eq!(world.recorded(&answer).sums().1, 300);
    assert_eq!((leaving.requests().len(), staying.requests().len()), (1, 5));
    world.stop().await;
}

#[tokio::test]
async fn names_canaries_and_adapters_are_served_under_their_own_names_and_booked_under_the_models() {
    let models = ["llama-1", "llama-2", "sql-lora"].map(str::to_owned).to_vec();
    let engine = simulator(SimulatorSettings { models, ..SimulatorSettings::default() }).await;
    let mut world = eager().await;
    let llama = Model {
        aliases: vec!["fast".parse().unwrap()],
        canaries: vec![canary("v2", "llama-2", 100)],
        ..model("v1", "llama-1")
    };
    world.control.put(MODEL, Document::Model(llama));
    world.control.put("sql", Document::Model(Model { base: Some(MODEL.parse().unwrap()), ..model("s1", "sql-lora") }));
    let kept = Model { plans: Some(vec!["another".parse().unwrap()]), ..model("v1", "llama-1") };
    world.control.put("kept", Document::Model(kept));
    world.control.put("r0", replica(&engine, |_| {}));
    world.publish();
    for (asked, booked, version, served) in
        [(MODEL, MODEL, "v2", "llama-2"), ("fast", MODEL, "v2", "llama-2"), ("sql", "sql", "s1", "sql-lora")]
    {
        let mut body = chat("hello", 3);
        body["model"] = json!(asked);
        let answer = world.post(CHAT, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let count = world.recorded(&answer).counts.pop().unwrap();
        assert_eq!((count.model.as_str(), count.version.as_str()), (booked, version));
        assert_eq!(engine.requests().pop().unwrap().model.as_deref(), Some(served));
    }
    let list = world.get("/v1/models").await.json();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["fast", MODEL, "other", "sql"]);
    assert_eq!(world.get("/v1/models/fast").await.json()["id"], "fast");
    assert_eq!(world.get("/v1/models/kept").await.code(), "model_not_found");
    let mut body = chat("hello", 3);
    body["model"] = json!("kept");
    assert_eq!(world.post(CHAT, &body).await.code(), "model_not_allowed");
    world.stop().await;
}

#[tokio::test]
async fn an_engine_that_dies_behind_a_healthy_front_is_left_alone() {
    let (broken, well) = (simulator(SimulatorSettings::default()).await, simulator(SimulatorSettings::default()).await);
    broken.arm(vec![ArmedFault { fault: "error_mid_stream:2".parse().unwrap(), when: When::Always, model: None }]);
    let mut world = eager().await;
    world.control.put("broken", replica(&broken, |_| {}));
    world.control.put("well", replica(&well, |_| {}));
    world.publish();
    let mut asked = 0;
    while broken.requests().len() < 5 {
        world.post(CHAT, &stream("hello", 5, false)).await;
        asked += 1;
        assert!(asked < 1000, "it is asked again and again");
    }
    for _ in 0..20 {
        served(&world.post(CHAT, &stream("hello", 5, false)).await);
    }
    assert_eq!(broken.requests().len(), 5);
    assert_eq!(world.metric("tollgate_gateway_replica_ejected{replica=\"broken\"}"), 1.0);
    assert_eq!(world.metric("tollgate_gateway_replica_up{replica=\"broken\"}"), 1.0, "its health check answers");
    world.stop().await;
}

#[tokio::test]
async fn a_replica_that_others_keep_busy_is_spared_by_what_its_metrics_say() {
    let slow =
        SimulatorSettings { max_num_seqs: 1, time_to_first_token_us: 60_000_000, ..SimulatorSettings::default() };
    let (busy, free) = (simulator(slow).await, simulator(SimulatorSettings::default()).await);
    let mut other = eager().await;
    other.control.put("busy", replica(&busy, |_| {}));
    other.publish();
    let mut world = eager().await;
    world.control.put("busy", replica(&busy, |replica| replica.max_concurrent_requests = Some(20)));
    world.control.put("free", replica(&free, |_| {}));
    world.publish();
    let theirs: Vec<_> = (0..10).map(|_| stream("hello", 5, false)).collect();
    let held = join_all(theirs.iter().map(|body| other.open(CHAT, body))).await;
    let waiting = 9.0;
    until("the busy one says so", || {
        world.metric("tollgate_gateway_replica_waiting_requests{replica=\"busy\"}") == waiting
    })
    .await;
    for _ in 0..20 {
        served(&world.post(CHAT, &chat("hello", 2)).await);
    }
    assert_eq!(free.requests().len(), 20);
    drop(held);
    other.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn an_outage_is_not_multiplied_by_retries() {
    let replicas = [simulator(SimulatorSettings::default()).await, simulator(SimulatorSettings::default()).await];
    for replica in &replicas {
        replica.arm(vec![ArmedFault { fault: "status:500".parse().unwrap(), when: When::Always, model: None }]);
    }
    let mut setup = Setup::new(&[&replicas[0], &replicas[1]]);
    setup.settings.routing.retry_percent = 10;
    let world = setup.start().await;
    for _ in 0..300 {
        assert_eq!(world.post(CHAT, &chat("hello", 2)).await.status, 500);
    }
    let asked: usize = replicas.iter().map(|replica| replica.requests().len()).sum();
    assert!((320..=350).contains(&asked), "{asked}: what was saved up and a tenth");
    assert!(world.metric("tollgate_gateway_retries_refused_total") > 200.0);
    world.stop().await;
}

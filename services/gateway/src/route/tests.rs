//! Picks by what control says: pools, versions, adapters, plans, health, room.

use super::*;
use ledger::control::{
    Canary, Document, Kind, Model, Plan, Pool as PoolDocument, Replica as ReplicaDocument, ReplicaKind, ServiceTier,
    Write,
};
use ledger::ids::GpuClass;
use runtime::Metrics;
use uuid::Uuid;

/// A pool, what control says, and what is asked of it.
struct World {
    metrics: Metrics,
    pool: Pool,
    state: ControlState,
}

fn model(served: &str) -> Model {
    Model::new("v1".parse().unwrap(), served)
}

fn gpu_pool(class: &str, plans: Option<&[&str]>) -> Document {
    let plans = plans.map(|plans| plans.iter().map(|plan| plan.parse().unwrap()).collect());
    Document::Pool(PoolDocument { gpu_class: class.parse::<GpuClass>().unwrap(), plans })
}

fn plan(pools: Option<&[&str]>) -> Document {
    let pools = pools.map(|pools| pools.iter().map(|pool| pool.parse().unwrap()).collect());
    Document::Plan(Plan { name: "P".into(), pools, ..Plan::default() })
}

impl World {
    fn new() -> Self {
        Self::with(Routing::default())
    }

    fn with(settings: Routing) -> Self {
        let metrics = Metrics::new();
        let pool = Pool::new(settings, RouteMetrics::new(&metrics).unwrap());
        let mut world = Self { metrics, pool, state: ControlState::default() };
        world.put("llama", Document::Model(model("llama")));
        world
    }

    fn put(&mut self, id: &str, document: Document) {
        let expected_revision = self.state.revision(document.kind(), id);
        let write = Write { kind: document.kind(), id: id.into(), expected_revision, document: Some(document) };
        self.state.apply(&write).unwrap();
        self.pool.take(&self.state);
    }

    fn delete(&mut self, kind: Kind, id: &str) {
        let expected_revision = self.state.revision(kind, id);
        self.state.apply(&Write { kind, id: id.into(), expected_revision, document: None }).unwrap();
        self.pool.take(&self.state);
    }

    /// A replica of llama.
    fn replica(&mut self, id: &str, change: impl FnOnce(&mut ReplicaDocument)) {
        let mut document = ReplicaDocument::new("llama".parse().unwrap(), format!("http://{id}:8000"));
        change(&mut document);
        self.put(id, Document::Replica(document));
    }

    /// Everybody answers health checks.
    fn all_up(&self) {
        self.pool.all().iter().for_each(|replica| replica.seen(true, ""));
    }

    fn down(&self, id: &str) {
        self.pool.all().iter().find(|replica| replica.id.as_str() == id).unwrap().seen(false, "test");
    }

    fn pick(&self, model: &str, plan: &str, request: u128, text: &str, tried: &[&str]) -> Picked {
        let (model, plan) = (model.parse().unwrap(), plan.parse().unwrap());
        let tried: Vec<ReplicaId> = tried.iter().map(|id| id.parse().unwrap()).collect();
        let prefix = Prefix::new(&["acme"], vec![text.to_owned().into()], text.len() as u64 / 4);
        let request = RequestId(Uuid::from_u128(request));
        let want = Want { model: &model, plan: &plan, request, prefix: &prefix, stream: true };
        self.pool.pick(&want, &tried)
    }

    fn lease(&self, model: &str, plan: &str) -> Lease {
        match self.pick(model, plan, 99, "", &[]) {
            Picked::Lease(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    /// Everybody whom a plan's requests for llama go to, one after the other, until nobody has room.
    fn all_for(&self, plan: &str) -> (Vec<String>, Picked) {
        let mut leases = Vec::new();
        loop {
            match self.pick("llama", plan, 99, "", &[]) {
                Picked::Lease(lease) => leases.push(lease),
                other => return (leases.iter().map(|lease| lease.id.to_string()).collect(), other),
            }
        }
    }

    fn shown(&self, begin: &str) -> f64 {
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with(begin));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

#[test]
fn the_least_loaded_that_is_up_is_asked_and_none_twice() {
    let mut world = World::new();
    world.replica("a", |_| {});
    world.replica("b", |_| {});
    let (first, second) = (world.lease("llama", "p"), world.lease("llama", "p"));
    assert_ne!(first.id, second.id);
    let free = first.id.to_string();
    drop(first);
    assert_eq!(world.lease("llama", "p").id.as_str(), free);
    world.all_up();
    world.down(&free);
    assert_eq!(world.lease("llama", "p").id, second.id);
    assert!(matches!(world.pick("llama", "p", 1, "", &[second.id.as_str()]), Picked::NoReplica));
    assert!(matches!(world.pick("other", "p", 1, "", &[]), Picked::NoReplica));
}

#[tokio::test]
async fn a_replica_with_enough_to_do_gets_no_more_until_something_ends() {
    let mut world = World::new();
    world.replica("a", |replica| replica.max_concurrent_requests = Some(1));
    world.pool.changed().notified().await;
    let lease = world.lease("llama", "p");
    assert!(matches!(world.pick("llama", "p", 1, "", &[]), Picked::Saturated));
    assert!(matches!(world.pick("llama", "p", 1, "", &["a"]), Picked::NoReplica));
    drop(lease);
    world.pool.changed().notified().await;
    drop(world.lease("llama", "p"));
    let held = world.lease("llama", "p");
    world.replica("a", |replica| replica.draining = true);
    world.pool.changed().notified().await;
    assert!(matches!(world.pick("llama", "p", 1, "", &[]), Picked::NoReplica));
    drop(held);
    world.pool.changed().notified().await;
}

#[test]
fn what_is_open_is_known_after_control_changes_and_a_replica_that_is_gone_has_no_metrics() {
    let mut world = World::new();
    world.replica("a", |_| {});
    world.replica("b", |_| {});
    let lease = world.lease("llama", "p");
    for (id, url) in [("c", "ftp://h:3"), ("d", "http://h:1/x"), ("e", "h")] {
        world.replica(id, |replica| replica.url = url.into());
    }
    assert_eq!(world.pool.all().len(), 2);
    assert_ne!(world.lease("llama", "p").id, lease.id);
    assert_eq!(lease.address().authority.as_str(), format!("{}:8000", lease.id));
    assert_eq!(world.shown("tollgate_gateway_replica_active_requests"), 1.0);
    lease.attempts().came_to("broken");
    assert_eq!(world.shown("tollgate_gateway_attempts_total"), 1.0);
    ["a", "b", "c", "d", "e"].iter().for_each(|id| world.delete(Kind::Replica, id));
    lease.attempts().came_to("client_cancelled");
    drop(lease);
    assert_eq!(world.metrics.text().matches("replica=\"").count(), 0, "{}", world.metrics.text());
}

#[test]
fn a_plan_goes_to_its_pools_in_order_and_others_keep_out() {
    let mut world = World::new();
    world.put("gold-only", gpu_pool("h100", Some(&["gold"])));
    world.put("shared", gpu_pool("l40s", None));
    world.put("spare", gpu_pool("l40s", None));
    for (id, pool) in [("d", Some("gold-only")), ("s", Some("shared")), ("x", Some("spare")), ("n", None)] {
        world.replica(id, |replica| {
            replica.pool = pool.map(|pool| pool.parse().unwrap());
            replica.max_concurrent_requests = Some(2);
        });
    }
    world.put("gold", plan(Some(&["gold-only", "spare"])));
    world.put("thief", plan(Some(&["gold-only", "shared"])));
    world.put("free", plan(None));
    assert_eq!(world.all_for("gold").0, ["d", "d", "x", "x"], "the second when the first is full");
    assert_eq!(world.shown("tollgate_gateway_picks_total{reason=\"spill_over\"}"), 2.0);
    assert_eq!(world.all_for("thief").0, ["s", "s"], "a pool that is kept for others is closed");
    let (mut all, end) = world.all_for("free");
    all.sort();
    assert_eq!(all, ["n", "n", "s", "s", "x", "x"]);
    assert!(matches!(end, Picked::Saturated));
    world.put("gold", plan(None));
    assert_eq!(world.all_for("gold").0[..2], ["d", "d"], "its own first, then all that are shared");
    assert_eq!(world.all_for("gold").0.len(), 8);
    world.all_up();
    world.down("d");
    world.put("gold", plan(Some(&["gold-only", "spare"])));
    assert_eq!(world.all_for("gold").0, ["x", "x"], "the next one too when nobody answers in the first");
}

#[test]
fn a_model_that_needs_a_class_of_gpu_gets_no_other() {
    let mut world = World::new();
    world.put("big", gpu_pool("h100", None));
    world.put("small", gpu_pool("l40s", None));
    for (id, pool) in [("a", Some("big")), ("b", Some("small")), ("c", None)] {
        world.replica(id, |replica| {
            replica.pool = pool.map(|pool| pool.parse().unwrap());
            replica.max_concurrent_requests = Some(1);
        });
    }
    world.put("llama", Document::Model(Model { gpu_class: Some("h100".parse().unwrap()), ..model("llama") }));
    assert_eq!(world.all_for("p").0, ["a"]);
    let adapter = Model { base: Some("llama".parse().unwrap()), ..model("sql") };
    world.put("sql", Document::Model(adapter));
    assert_eq!(world.lease("sql", "p").id.as_str(), "a", "as its base does");
}

#[test]
fn a_canary_gets_its_share_and_nobody_loses_when_it_is_away() {
    let mut world = World::new();
    let canary =
        |version: &str, percent| Canary { version: version.parse().unwrap(), served_name: version.into(), percent };
    let with = |canaries: Vec<Canary>| Document::Model(Model { canaries, ..model("llama") });
    world.put("llama", with(vec![canary("v2", 10), canary("v3", 5)]));
    for (id, version) in [("old", "v1"), ("new", "v2"), ("newest", "v3")] {
        world.replica(id, |replica| replica.version = Some(version.parse().unwrap()));
    }
    world.all_up();
    let served = |world: &World, request: u128| match world.pick("llama", "p", request, "", &[]) {
        Picked::Lease(lease) => (lease.version().to_string(), lease.served_name().to_owned(), lease.id.to_string()),
        other => panic!("{other:?}"),
    };
    let count = |world: &World, version: &str| (0..100).filter(|request| served(world, *request).0 == version).count();
    assert_eq!(["v1", "v2", "v3"].map(|version| count(&world, version)), [85, 10, 5]);
    assert_eq!(served(&world, 3), ("v2".into(), "v2".into(), "new".into()));
    assert_eq!(served(&world, 50), ("v1".into(), "llama".into(), "old".into()));
    let id = RequestId(Uuid::from_u128(3));
    assert_eq!(world.pool.version(&"llama".parse().unwrap(), id), Some("v2".parse().unwrap()));
    world.down("new");
    assert_eq!(["v1", "v2", "v3"].map(|version| count(&world, version)), [95, 0, 5]);
    world.down("old");
    assert!(
        matches!(world.pick("llama", "p", 50, "", &[]), Picked::NoReplica),
        "all requests are too many for a canary"
    );
    world.put("llama", with(vec![canary("v2", 100)]));
    world.all_up();
    assert_eq!(count(&world, "v2"), 100);
}

#[test]
fn an_adapter_is_answered_by_the_replicas_of_its_base() {
    let mut world = World::new();
    let canaries = vec![Canary { version: "v2".parse().unwrap(), served_name: "llama-2".into(), percent: 50 }];
    world.put("llama", Document::Model(Model { canaries, ..model("llama") }));
    world.put("sql", Document::Model(Model { base: Some("llama".parse().unwrap()), ..model("sql-lora") }));
    world.replica("a", |replica| replica.version = Some("v1".parse().unwrap()));
    world.replica("b", |replica| replica.version = Some("v2".parse().unwrap()));
    for _ in 0..4 {
        let lease = world.lease("sql", "p");
        assert_eq!((lease.id.as_str(), lease.served_name(), lease.is_of_adapter()), ("a", "sql-lora", true));
    }
}

#[test]
fn a_prompt_goes_to_who_has_read_its_beginning_until_that_one_is_busy() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.replica(id, |replica| replica.max_concurrent_requests = Some(20));
    }
    world.all_up();
    let system = "You are a helpful assistant. ".repeat(200);
    let ask = |n: usize| match world.pick("llama", "p", 99, &format!("{system}{n}"), &[]) {
        Picked::Lease(lease) => lease,
        other => panic!("{other:?}"),
    };
    let first = ask(0).id.to_string();
    let mut open: Vec<_> = (0..20).map(ask).collect();
    assert!(open.iter().all(|lease| lease.id.as_str() == first), "{open:?}");
    assert_eq!(world.shown("tollgate_gateway_picks_total{reason=\"sticky\"}"), 20.0);
    let other = ask(21);
    assert_ne!(other.id.as_str(), first, "it is full");
    open.clear();
    assert!([first.as_str(), other.id.as_str()].contains(&ask(22).id.as_str()));
}

#[test]
fn one_whose_requests_fail_is_left_alone_while_others_are_there() {
    let mut world = World::new();
    world.replica("a", |_| {});
    world.replica("b", |_| {});
    world.all_up();
    let failing = |id: &str| {
        for _ in 0..5 {
            let tried = if id == "a" { "b" } else { "a" };
            match world.pick("llama", "p", 99, "", &[tried]) {
                Picked::Lease(lease) => lease.failed("test"),
                other => panic!("{other:?}"),
            }
        }
    };
    failing("a");
    assert!((0..20).all(|_| world.lease("llama", "p").id.as_str() == "b"));
    assert_eq!(world.shown("tollgate_gateway_replica_ejected"), 1.0);
    failing("b");
    assert_eq!(world.shown("tollgate_gateway_replica_ejected"), 1.0, "never more than half of them");
    assert_eq!(world.lease("llama", "p").id.as_str(), "b");
    world.down("b");
    assert_eq!(world.lease("llama", "p").id.as_str(), "a", "one that fails is better than none");
}

#[test]
fn a_new_replica_is_asked_once_it_was_seen_to_be_up_or_when_there_is_no_other() {
    let mut world = World::new();
    world.replica("a", |replica| replica.max_concurrent_requests = Some(2));
    assert_eq!(world.lease("llama", "p").id.as_str(), "a", "at the start nobody was seen yet");
    world.all_up();
    world.replica("b", |_| {});
    let (_first, _second) = (world.lease("llama", "p"), world.lease("llama", "p"));
    assert!(matches!(world.pick("llama", "p", 1, "", &[]), Picked::Saturated));
    world.all_up();
    assert_eq!(world.lease("llama", "p").id.as_str(), "b");
}

#[test]
fn vllm_is_told_the_band_if_that_was_set() {
    let bands = [ServiceTier::Priority, ServiceTier::Default, ServiceTier::Flex];
    let mut world = World::with(Routing { send_priority: true, ..Routing::default() });
    world.replica("a", |_| {});
    assert_eq!(bands.map(|band| world.lease("llama", "p").priority(band)), [Some(0), Some(0), Some(1)]);
    world.replica("a", |replica| replica.kind = ReplicaKind::Sglang);
    assert_eq!(world.lease("llama", "p").priority(ServiceTier::Flex), None);
    let mut world = World::new();
    world.replica("a", |_| {});
    assert_eq!(world.lease("llama", "p").priority(ServiceTier::Flex), None);
}

#[test]
fn room_is_never_given_twice() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.replica(id, |replica| replica.max_concurrent_requests = Some(100));
    }
    world.all_up();
    let world = &world;
    let got: Vec<Lease> = std::thread::scope(|scope| {
        let one = || {
            (0..200)
                .filter_map(|_| match world.pick("llama", "p", 99, "", &[]) {
                    Picked::Lease(lease) => Some(lease),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let at = |id: &str| got.iter().filter(|lease| lease.id.as_str() == id).count();
    assert_eq!([at("a"), at("b"), at("c")], [100, 100, 100]);
}

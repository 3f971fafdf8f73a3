//! No lease is lost: requests that give up at any moment, over a real pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ledger::control::{ControlState, Document, Model, Plan, Replica, ServiceTier, Write};
use ledger::ids::RequestId;
use runtime::Metrics;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Need, NoTurn, Over, Queue};
use crate::admit::policy::Tenant;
use crate::labels::Labels;
use crate::route::metrics::RouteMetrics;
use crate::route::{Pool, Prefix, Want};
use crate::settings::{Overload, QueueSettings, Routing};

const SOON: Duration = Duration::from_secs(30);

struct Bench {
    pool: Arc<Pool>,
    queue: Arc<Queue>,
    metrics: Metrics,
}

fn state(slots: u32) -> ControlState {
    let mut state = ControlState::default();
    let mut put = |id: &str, document: Document| {
        let write = Write { kind: document.kind(), id: id.into(), expected_revision: 0, document: Some(document) };
        state.apply(&write).unwrap();
    };
    put("llama", Document::Model(Model::new("v1".parse().unwrap(), "llama")));
    let mut replica = Replica::new("llama".parse().unwrap(), "http://h:1");
    replica.max_concurrent_requests = Some(slots);
    put("r", Document::Replica(replica));
    state
}

fn bench(settings: QueueSettings, slots: u32) -> Bench {
    let metrics = Metrics::new();
    let pool = Arc::new(Pool::new(Routing::default(), RouteMetrics::new(&metrics).unwrap()));
    if slots > 0 {
        pool.take(&state(slots));
    }
    let queue = Queue::new(settings, &Overload::default(), Arc::clone(&pool), &metrics, Labels::new(9)).unwrap();
    let queue = Arc::new(queue);
    Bench { pool, queue, metrics }
}

impl Bench {
    fn left(&self, outcome: &str) -> u64 {
        let begin = format!("tollgate_gateway_queue_left_total{{outcome=\"{outcome}\"}} ");
        let text = self.metrics.text();
        text.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |count| count.parse().unwrap())
    }

    fn sum(&self, name: &str) -> i64 {
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum()
    }
}

fn tenant(at: usize) -> Tenant {
    let tier = ServiceTier::ALL[at % 3];
    Tenant {
        id: format!("t{at}").parse().unwrap(),
        plan_id: format!("p{}", at % 3).parse().unwrap(),
        plan: Plan { service_tier: tier, weight: Some(1 + at as u32 % 2), ..Plan::default() },
        currency: "USD".parse().unwrap(),
        time_zone: chrono_tz::UTC,
        projects: BTreeMap::new(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Failed {
    Full(Over),
    NoTurn(NoTurn),
}

async fn turn(queue: &Queue, tenant: &Tenant, total: Instant) -> Result<super::Turn, Failed> {
    let model = "llama".parse().unwrap();
    let prefix = Prefix::default();
    let request = RequestId(Uuid::nil());
    let want = Want { model: &model, plan: &tenant.plan_id, request, prefix: &prefix, stream: true };
    let need = Need { tenant, base: &model, want, tokens: 10, bytes: 100, total };
    let entry = queue.enter(&need).map_err(Failed::Full)?;
    queue.turn(&need, entry).await.map_err(Failed::NoTurn)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_turn_is_had_or_given_to_the_next_whenever_requests_give_up() {
    const SLOTS: u32 = 3;
    const REQUESTS: usize = 3_000;
    let Bench { pool, queue, metrics } = bench(QueueSettings::default(), SLOTS);
    let bench = Bench { pool, queue: queue.clone(), metrics };
    let mut running = JoinSet::new();
    running.spawn(queue.clone().run());
    let (open, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut requests = JoinSet::new();
    let mut given_up = 0;
    for at in 0..REQUESTS {
        let (queue, open, served) = (queue.clone(), open.clone(), served.clone());
        let handle = requests.spawn(async move {
            let tenant = tenant(at % 7);
            let mut turn = turn(&queue, &tenant, Instant::now() + SOON).await.unwrap();
            let now = open.fetch_add(1, SeqCst) + 1;
            for step in 0..at % 5 {
                tokio::task::yield_now().await;
                turn.charge.used(step as u64);
            }
            served.fetch_add(1, SeqCst);
            open.fetch_sub(1, SeqCst);
            now
        });
        // Two in five give up: some before they are asked for, some in the queue, some as their turn comes.
        if at % 5 < 2 {
            for _ in 0..at % 11 {
                tokio::task::yield_now().await;
            }
            handle.abort();
            given_up += 1;
        }
    }
    let ended = async {
        let (mut whole, mut cut) = (0, 0);
        while let Some(ended) = requests.join_next().await {
            match ended {
                Ok(_) => whole += 1,
                Err(error) => {
                    assert!(error.is_cancelled(), "{error}");
                    cut += 1;
                }
            }
        }
        (whole, cut)
    };
    let (whole, cut) = timeout(SOON, ended).await.expect("nobody waits for ever");
    assert_eq!(whole + cut, REQUESTS);
    assert!(cut <= given_up && served.load(SeqCst) >= whole, "{cut} of {given_up}, {whole}");
    assert_eq!(bench.sum("tollgate_gateway_replica_active_requests"), 0, "no lease is lost");
    assert_eq!(bench.sum("tollgate_gateway_queue_length"), 0);
    assert_eq!((queue.requests.held(), queue.bytes.held()), (0, 0));
    // All the room is there still.
    let tenant = tenant(0);
    let again = async {
        (turn(&queue, &tenant, Instant::now() + SOON).await, turn(&queue, &tenant, Instant::now() + SOON).await)
    };
    let (first, second) = timeout(SOON, again).await.unwrap();
    assert!(first.is_ok() && second.is_ok());
    queue.stop();
    running.join_next().await.unwrap().unwrap().unwrap();
}

fn late() -> Instant {
    Instant::now() + SOON * 10
}

#[tokio::test]
async fn who_waited_long_enough_is_told_why() {
    let max_wait = Duration::from_millis(50);
    let bounds = QueueSettings { max_waiting_per_tenant: 2, max_waiting: 3, max_wait, ..QueueSettings::default() };
    let bench = bench(bounds, 1);
    let mut running = JoinSet::new();
    running.spawn(bench.queue.clone().run());
    let [a, b, c] = [0, 1, 2].map(tenant);
    let held = turn(&bench.queue, &a, late()).await.unwrap();
    // Two of one tenant may wait, and three of all.
    let many = tokio::join!(
        turn(&bench.queue, &a, late()),
        turn(&bench.queue, &a, Instant::now()),
        turn(&bench.queue, &a, late()),
        turn(&bench.queue, &b, late()),
        turn(&bench.queue, &c, late()),
    );
    assert_eq!(many.0.err(), Some(Failed::NoTurn(NoTurn::Expired)));
    assert_eq!(many.1.err(), Some(Failed::NoTurn(NoTurn::Deadline)), "its own time is over first");
    assert_eq!(many.2.err(), Some(Failed::Full(Over::Own)));
    assert_eq!(many.3.err(), Some(Failed::NoTurn(NoTurn::Expired)));
    assert_eq!(many.4.err(), Some(Failed::Full(Over::All)));
    let outcomes = ["timeout", "deadline", "full", "served", "cancelled"].map(|outcome| bench.left(outcome));
    assert_eq!(outcomes, [2, 1, 2, 0, 0]);
    let waiting = async {
        let next = turn(&bench.queue, &b, late()).await;
        assert_eq!(next.map(|_| ()), Err(Failed::NoTurn(NoTurn::Draining)));
    };
    tokio::join!(waiting, async { bench.queue.close() });
    drop(held);
    let served = turn(&bench.queue, &a, late()).await;
    assert!(served.is_ok(), "what need not wait is served to the end");
    assert_eq!(turn(&bench.queue, &a, late()).await.map(|_| ()), Err(Failed::NoTurn(NoTurn::Draining)));
    bench.queue.stop();
}

#[tokio::test]
async fn a_model_without_a_replica_has_a_patience_of_its_own() {
    let (max_wait, no_replica_wait) = (SOON * 10, Duration::from_millis(20));
    let short = bench(QueueSettings { max_wait, no_replica_wait, ..QueueSettings::default() }, 1);
    let long =
        bench(QueueSettings { max_wait: no_replica_wait, no_replica_wait: SOON * 10, ..QueueSettings::default() }, 0);
    let mut running = JoinSet::new();
    running.spawn(short.queue.clone().run());
    running.spawn(long.queue.clone().run());
    let tenant = tenant(0);
    let held = turn(&short.queue, &tenant, late()).await.unwrap();
    // The last replica is gone while one waits for room there.
    let (none, ()) =
        tokio::join!(turn(&short.queue, &tenant, late()), async { short.pool.take(&ControlState::default()) });
    assert_eq!(none.map(|_| ()), Err(Failed::NoTurn(NoTurn::NoReplica)));
    drop(held);
    // One comes while one waits for it, longer than for room.
    let comes = async {
        tokio::time::sleep(no_replica_wait * 3).await;
        long.pool.take(&state(1));
    };
    let (taken, ()) = tokio::join!(turn(&long.queue, &tenant, late()), comes);
    assert!(taken.is_ok());
    assert_eq!([short.left("no_replica"), long.left("served")], [1, 1]);
    short.queue.stop();
    long.queue.stop();
}

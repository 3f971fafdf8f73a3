//! A running system, what its clients saw of it, and the proof that every figure is that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use promises::figures::{execute, select};
use promises::host::Host;
use promises::network::Network;
use promises::oracle::{admitted, check_figures, check_money, check_requests};
use promises::process::writes_fail_beyond_limits;
use promises::system::{MODELS, Role, System};
use promises::tenants::shop;
use promises::traffic::{Dice, Seen, plan, run_at};
use promises::wait::until;
use tokio::sync::Mutex;

use crate::fault::{Fault, Part};
use crate::strike::tables;
use crate::topics::delete;

/// Requests of a wave; waves go on as long as faults do.
const WAVE: usize = 16;
const AT_ONCE: usize = 8;
/// Between two waves, so that clients do not take the processors from what is to start again.
const PAUSE: Duration = Duration::from_millis(100);
/// Faults that are drawn together strike within so many milliseconds.
const SPREAD: u64 = 1500;
pub(crate) const SOON: Duration = Duration::from_secs(180);

pub(crate) struct World {
    pub(crate) system: System,
    pub(crate) to_broker: Network,
    pub(crate) to_clickhouse: Network,
    pub(crate) to_engines: Vec<Network>,
    pub(crate) hosts: RefCell<BTreeMap<&'static str, Host>>,
    pub(crate) partitions: i32,
    pub(crate) keys: Vec<String>,
    seen: Vec<Seen>,
    /// Folds that run, beside the first.
    pub(crate) folds: RefCell<BTreeSet<Role>>,
    pub(crate) second_gateway: Cell<bool>,
    pub(crate) backed_up: Cell<bool>,
    /// Since figures agreed last. The engine may have said yes to what it did not write, and forgotten tokens since.
    pub(crate) clickhouse_was_full: Cell<bool>,
    /// Held by the fault that a part is under.
    parts: BTreeMap<Part, Mutex<()>>,
    traffic: Dice,
}

/// A fault that was drawn, with what it will draw itself: so the next ones do not depend on how this one goes.
pub(crate) struct Drawn {
    pub(crate) fault: Fault,
    dice: Dice,
}

impl Drawn {
    pub(crate) fn new(fault: Fault, dice: &mut Dice) -> Self {
        Self { fault, dice: Dice::new(dice.below(u64::MAX)) }
    }
}

impl World {
    pub(crate) async fn new(partitions: i32, seed: u64) -> Self {
        writes_fail_beyond_limits();
        let mut way = None;
        let mut system = System::parts_on_hosts(1500, |kafka| {
            let network = Network::to(kafka.listen);
            // Clients go where the broker says that it is.
            let there = format!("PLAINTEXT://{}", network.listen());
            kafka.properties.insert("advertised.listeners".into(), there);
            way = Some(network);
        })
        .await;
        let to_broker = way.unwrap();
        let to_clickhouse = Network::to(system.clickhouse_address());
        system.set("KAFKA__BROKERS", &to_broker.listen().to_string());
        system.set("CLICKHOUSE__URL", &format!("http://{}", to_clickhouse.listen()));
        system.set("KAFKA__PARTITIONS", &partitions.to_string());
        let mut to_engines = Vec::new();
        for model in MODELS {
            let network = Network::to(system.simulators[model].addr());
            system.lead(model, format!("http://{}", network.listen()));
            to_engines.push(network);
        }
        system.start_all(&Role::ALL).await;
        let keys = shop(&system).await;
        Self {
            system,
            to_broker,
            to_clickhouse,
            to_engines,
            hosts: RefCell::default(),
            partitions,
            keys,
            seen: Vec::new(),
            folds: RefCell::default(),
            second_gateway: Cell::new(false),
            backed_up: Cell::new(false),
            clickhouse_was_full: Cell::new(false),
            parts: Part::ALL.into_iter().map(|part| (part, Mutex::default())).collect(),
            traffic: Dice::new(seed),
        }
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.len()
    }

    /// Sends waves while faults strike, each at its moment, or once its part is through with another one.
    pub(crate) async fn suffer(&mut self, faults: Vec<Drawn>) {
        let mut traffic = self.traffic.clone();
        let world = &*self;
        let over = Cell::new(false);
        let striking = async {
            join_all(faults.into_iter().map(async |Drawn { fault, mut dice }| {
                tokio::time::sleep(Duration::from_millis(dice.below(SPREAD))).await;
                let mut held = Vec::new();
                for part in fault.parts() {
                    held.push(world.parts[part].lock().await);
                }
                world.strike(fault, &mut dice).await;
            }))
            .await;
            over.set(true);
        };
        let sending = async {
            let mut seen = Vec::new();
            while !over.get() {
                seen.extend(world.wave(&mut traffic).await);
                tokio::time::sleep(PAUSE).await;
            }
            seen
        };
        let (seen, ()) = tokio::join!(sending, striking);
        self.seen.extend(seen);
        self.traffic = traffic;
    }

    /// Sends it to one gateway, and to the other where that one is away.
    async fn wave(&self, dice: &mut Dice) -> Vec<Seen> {
        let plans = plan(WAVE, self.keys.len(), dice.below(u64::MAX));
        let mut gateways = vec![self.system.url(Role::Gateway, "")];
        if self.second_gateway.get() && dice.below(3) == 0 {
            gateways.insert(0, self.system.url(Role::SecondGateway, ""));
        }
        run_at(&self.system.client, &gateways, &self.keys, plans, AT_ONCE).await
    }

    /// Everything comes back by itself, and every figure is what was seen. What died for a while is there again: its spool has
    /// to be shipped by somebody.
    pub(crate) async fn settle(&self) {
        let watched = async {
            loop {
                self.broker_runs().await;
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = self.comes_to_rest() => {}
            () = watched => {}
        }
    }

    async fn comes_to_rest(&self) {
        if !self.second_gateway.get() && self.system.dir().join("second-spool").exists() {
            self.other_gateway().await;
        }
        if self.clickhouse_was_full.take() {
            self.whole_or_dropped().await;
        }
        for role in Role::ALL {
            self.system.ready(role).await;
        }
        let folds = self.folds.borrow().clone();
        for fold in folds {
            self.system.ready(fold).await;
        }
        let system = &self.system;
        until("no request to be open", SOON, async || {
            let open = system.metric(Role::Gateway, "tollgate_gateway_requests_in_flight").await;
            if open == 0.0 { Ok(()) } else { Err(open) }
        })
        .await;
        system.settled(&admitted(&self.seen)).await;
        check_requests(system, &self.seen).await;
        let usage = check_figures(system).await;
        check_money(system, &usage).await;
    }

    /// Rows that a full disk broke never pass in silence: a line stands still, and people drop the tables.
    async fn whole_or_dropped(&self) {
        for fold in self.all_folds() {
            self.answers(fold).await;
        }
        tables(&self.system).await;
        let mut why = self.settles_or_stands_still().await;
        if why.is_none() && self.is_uneven().await {
            why = Some(until("a line to stand still", SOON, async || self.stands_still().await.ok_or(())).await);
        }
        if let Some(why) = why {
            println!("a line stands still, as it may after ClickHouse's disk was full: {why}");
            self.drop_tables().await;
        }
    }

    /// Whether the chunks of some line do not hold each offset once, as the rows themselves say.
    async fn is_uneven(&self) -> bool {
        let of = |table: &str| {
            format!(
                "SELECT kafka_partition FROM {table} WHERE kind = 'chunk' GROUP BY kafka_partition HAVING \
                 max(chunk_end) != sum(chunk_end - chunk_first) OR min(chunk_first) != 0"
            )
        };
        let sql = format!("{} UNION ALL {} SETTINGS optimize_use_projections = 0", of("tokens"), of("requests"));
        !select(&self.system.client, &self.system.clickhouse_url(), &sql).await.is_empty()
    }

    /// The next insert pushes the last token out.
    pub(crate) async fn shrink_window(&self) {
        for sql in [
            "ALTER TABLE tokens MODIFY SETTING non_replicated_deduplication_window = 1",
            "ALTER TABLE requests MODIFY SETTING non_replicated_deduplication_window = 1",
        ] {
            execute(&self.system.client, &self.system.clickhouse_url(), sql).await;
        }
    }

    /// A second fold works on all partitions from now on.
    pub(crate) async fn two_owners(&self) {
        if self.folds.borrow_mut().insert(Role::SecondFold) {
            self.system.spawn(Role::SecondFold);
        }
        self.answers(Role::SecondFold).await;
    }

    /// Every fold that runs.
    pub(crate) fn all_folds(&self) -> Vec<Role> {
        [Role::Fold].into_iter().chain(self.folds.borrow().iter().copied()).collect()
    }

    /// Returns when a fold answers. It may never be ready: what doubles stops it.
    async fn answers(&self, fold: Role) {
        let (client, url) = (&self.system.client, self.system.url(fold, "/healthz"));
        until("a fold to answer", SOON, async || client.get(&url, None).await.map(drop)).await;
    }

    /// Why a line stands still, if one does.
    pub(crate) async fn stands_still(&self) -> Option<String> {
        for fold in self.all_folds() {
            if self.system.metric(fold, "tollgate_fold_stopped").await > 0.0 {
                let ready = self.system.client.get(&self.system.url(fold, "/readyz"), None).await;
                return Some(
                    ready.map_or_else(|broken| broken.why, |ready| String::from_utf8_lossy(&ready.body).into()),
                );
            }
        }
        None
    }

    /// Why a line stands still; none when all requests are there instead.
    pub(crate) async fn settles_or_stands_still(&self) -> Option<String> {
        let admitted = admitted(&self.seen);
        let standstill = async {
            loop {
                if let Some(why) = self.stands_still().await {
                    return why;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = self.system.settled(&admitted) => None,
            why = standstill => Some(why),
        }
    }

    /// The log of the tokens is deleted and made anew, empty, while everything runs: says why a line stands still then. What was
    /// counted stays as it was.
    pub(crate) async fn lose_the_log(&mut self) -> String {
        let before = self.system.raw().await;
        delete(&self.system.brokers()).await;
        self.system.migrate();
        let mut traffic = self.traffic.clone();
        let sent = self.wave(&mut traffic).await;
        assert!(!admitted(&sent).is_empty(), "gateways serve on");
        let why = until("a line to stand still", SOON, async || self.stands_still().await.ok_or(())).await;
        assert_eq!(self.system.raw().await, before, "nothing of another log was counted: {why}");
        why
    }

    /// What people are told to do: the log is folded anew.
    pub(crate) async fn drop_tables(&self) {
        for sql in ["DROP TABLE tokens", "DROP TABLE requests"] {
            execute(&self.system.client, &self.system.clickhouse_url(), sql).await;
        }
    }
}

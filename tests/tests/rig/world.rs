//! A running system, what its clients saw of it, and what each fault does to it.

use std::collections::BTreeSet;
use std::time::Duration;

use promises::figures::execute;
use promises::network::{Network, Weather};
use promises::process::{limit_files, signal, writes_fail_beyond_limits};
use promises::system::{Role, System};
use promises::tenants::{shop, usable_at};
use promises::traffic::{Dice, Seen, plan, run};
use promises::wait::until;

use crate::fault::Fault;
use promises::oracle::{admitted, check_figures, check_money, check_requests};

/// Requests that are sent while a fault strikes.
const WAVE: usize = 24;
const AT_ONCE: usize = 8;
const SOON: Duration = Duration::from_secs(120);

pub(crate) struct World {
    system: System,
    to_broker: Network,
    to_clickhouse: Network,
    keys: Vec<String>,
    seen: Vec<Seen>,
    /// Folds that run, beside the first.
    folds: BTreeSet<Role>,
    second_gateway: bool,
    backed_up: bool,
    wave: u64,
}

impl World {
    pub(crate) async fn new(partitions: i32) -> Self {
        writes_fail_beyond_limits();
        let mut way = None;
        let mut system = System::parts_with(1500, |kafka| {
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
        system.start_all(&Role::ALL).await;
        let keys = shop(&system).await;
        let folds = BTreeSet::new();
        Self {
            system,
            to_broker,
            to_clickhouse,
            keys,
            seen: Vec::new(),
            folds,
            second_gateway: false,
            backed_up: false,
            wave: 0,
        }
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.len()
    }

    fn served(&self) -> usize {
        self.system.simulators.values().map(|simulator| simulator.requests().len()).sum()
    }

    /// Sends a wave, and lets the fault strike once engines have seen a part of it.
    pub(crate) async fn suffer(&mut self, fault: Fault, dice: &mut Dice) {
        self.wave += 1;
        let plans = plan(WAVE, self.keys.len(), dice.below(u64::MAX));
        let other = self.second_gateway && dice.below(3) == 0;
        let role = if other { Role::SecondGateway } else { Role::Gateway };
        let (client, gateway) = (self.system.client.clone(), self.system.url(role, ""));
        let (keys, middle) = (self.keys.clone(), self.served() + WAVE / 4);
        let sending = run(&client, &gateway, &keys, plans, AT_ONCE);
        let striking = async {
            until(
                "the middle of a wave",
                SOON,
                async || {
                    if self.served() >= middle { Ok(()) } else { Err(self.served()) }
                },
            )
            .await;
            self.strike(fault, dice).await;
        };
        let (seen, ()) = tokio::join!(sending, striking);
        self.seen.extend(seen);
    }

    async fn strike(&mut self, fault: Fault, dice: &mut Dice) {
        let system = &mut self.system;
        match fault {
            Fault::Gateway => {
                system.kill(Role::Gateway);
                system.start_role(Role::Gateway).await;
            }
            Fault::GatewayAgainAndAgain => {
                for _ in 0..3 + dice.below(4) {
                    system.kill(Role::Gateway);
                    system.spawn(Role::Gateway);
                    tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
                }
                system.ready(Role::Gateway).await;
            }
            Fault::GatewaySleeps => sleep(system, Role::Gateway, dice.below(1500)).await,
            Fault::GatewayStops => {
                system.stop(Role::Gateway).await;
                system.start_role(Role::Gateway).await;
            }
            Fault::GatewayStopsWithoutBroker => {
                system.kill_kafka().await;
                system.stop(Role::Gateway).await;
                system.start_role(Role::Gateway).await;
                system.start_kafka().await;
            }
            Fault::OtherGateway => self.other_gateway().await,
            Fault::Fold => {
                system.kill(Role::Fold);
                system.spawn(Role::Fold);
            }
            Fault::FoldSleeps => {
                // One in four beyond its session of ten seconds.
                let beyond = if dice.below(4) == 0 { 10_500 } else { 0 };
                sleep(system, Role::Fold, beyond + dice.below(1500)).await;
            }
            Fault::FoldsJoinAndLeave => {
                let number = 2 + u8::try_from(dice.below(3)).unwrap();
                self.toggle(Role::SharingFold(number));
            }
            Fault::FoldTwice => self.toggle(Role::SecondFold),
            Fault::Broker => {
                system.kill_kafka().await;
                system.start_kafka().await;
            }
            Fault::BrokerAway => {
                system.kill_kafka().await;
                tokio::time::sleep(Duration::from_millis(500 + dice.below(3000))).await;
                system.start_kafka().await;
            }
            Fault::ClickHouse => {
                system.kill_clickhouse().await;
                system.start_clickhouse().await;
            }
            Fault::ClickHouseAway => {
                system.kill_clickhouse().await;
                tokio::time::sleep(Duration::from_millis(500 + dice.below(3000))).await;
                system.start_clickhouse().await;
            }
            Fault::ClickHouseLosesItsDisk => {
                system.kill_clickhouse().await;
                system.drop_clickhouse_data();
                system.start_clickhouse().await;
            }
            Fault::ClickHouseRestored => self.back_up_or_restore().await,
            Fault::TableDropped => {
                let sql = if dice.below(2) == 0 { "DROP TABLE requests" } else { "DROP TABLE tokens" };
                // Another fault may have left it being made anew.
                tables(system).await;
                execute(&system.client, &system.clickhouse_url(), sql).await;
            }
            Fault::Billing => {
                system.kill(Role::Billing);
                system.start_role(Role::Billing).await;
            }
            // From nothing at all to some records.
            Fault::SpoolFull => full(system.pid(Role::Gateway), dice.below(3) * dice.below(8_000), dice).await,
            Fault::BrokerSleeps => asleep(system.kafka_pid(), dice.below(4_000)).await,
            Fault::ClickHouseSleeps => asleep(system.clickhouse_pid(), dice.below(4_000)).await,
            Fault::BrokerUnreachable => storm(&self.to_broker, dice).await,
            Fault::ClickHouseUnreachable => storm(&self.to_clickhouse, dice).await,
        }
    }

    fn toggle(&mut self, fold: Role) {
        if self.folds.remove(&fold) {
            self.system.kill(fold);
        } else {
            self.folds.insert(fold);
            self.system.spawn(fold);
        }
    }

    async fn other_gateway(&mut self) {
        if self.second_gateway {
            self.system.kill(Role::SecondGateway);
        } else {
            self.system.start_role(Role::SecondGateway).await;
            usable_at(&self.system, Role::SecondGateway, &self.keys).await;
        }
        self.second_gateway = !self.second_gateway;
    }

    async fn back_up_or_restore(&mut self) {
        self.system.kill_clickhouse().await;
        if self.backed_up {
            self.system.restore_clickhouse();
        } else {
            self.system.back_up_clickhouse();
        }
        self.backed_up = !self.backed_up;
        self.system.start_clickhouse().await;
    }

    /// Everything comes back by itself, and every figure is what was seen. What died for a while is there again: its spool has
    /// to be shipped by somebody.
    pub(crate) async fn settle(&mut self) {
        if !self.second_gateway && self.system.dir().join("second-spool").exists() {
            self.other_gateway().await;
        }
        for role in Role::ALL {
            self.system.ready(role).await;
        }
        for fold in &self.folds {
            self.system.ready(*fold).await;
        }
        let system = &self.system;
        system.settled(&admitted(&self.seen)).await;
        check_requests(system, &self.seen).await;
        let usage = check_figures(system).await;
        check_money(system, &usage).await;
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

    /// Why a line stands still; none when all requests are there instead.
    pub(crate) async fn settles_or_stands_still(&mut self, limit: Duration) -> Option<String> {
        let wanted = admitted(&self.seen).len() as u64;
        let system = &self.system;
        until("figures, or a line that stands still", limit, async || {
            for fold in [Role::Fold, Role::SecondFold] {
                if system.metric(fold, "tollgate_fold_stopped").await > 0.0 {
                    let ready =
                        system.client.get(&system.url(fold, "/readyz"), None).await.map_err(|e| format!("{e:?}"))?;
                    return Ok(Some(String::from_utf8_lossy(&ready.body).into_owned()));
                }
            }
            let there = system.endings().await.len() as u64;
            let lag = system.metric(Role::Fold, "tollgate_fold_lag").await;
            if there >= wanted && lag == 0.0 { Ok(None) } else { Err(format!("{there} of {wanted}, lag {lag}")) }
        })
        .await
    }

    /// What people are told to do: the log is folded anew.
    pub(crate) async fn drop_tables(&self) {
        for sql in ["DROP TABLE tokens", "DROP TABLE requests"] {
            execute(&self.system.client, &self.system.clickhouse_url(), sql).await;
        }
    }
}

async fn sleep(system: &System, role: Role, millis: u64) {
    asleep(system.pid(role), millis).await;
}

async fn asleep(pid: u32, millis: u64) {
    signal(pid, libc::SIGSTOP);
    tokio::time::sleep(Duration::from_millis(millis)).await;
    signal(pid, libc::SIGCONT);
}

async fn full(pid: u32, bytes: u64, dice: &mut Dice) {
    limit_files(pid, Some(bytes));
    tokio::time::sleep(Duration::from_millis(200 + dice.below(2_000))).await;
    limit_files(pid, None);
}

async fn storm(network: &Network, dice: &mut Dice) {
    let weathers = [Weather::Cut, Weather::Stalled, Weather::Deaf];
    network.turn(weathers[usize::try_from(dice.below(3)).unwrap()]);
    tokio::time::sleep(Duration::from_millis(200 + dice.below(4_000))).await;
    network.turn(Weather::Fair);
}

/// Returns when both tables are there.
async fn tables(system: &System) {
    until("the tables to be there", SOON, async || {
        let (client, url) = (&system.client, system.clickhouse_url());
        let sql =
            "SELECT count() AS n FROM system.tables WHERE database = 'tollgate' AND name IN ('tokens', 'requests')";
        let rows = promises::figures::select(client, &url, sql).await;
        if rows[0]["n"].as_u64() == Some(2) { Ok(()) } else { Err(rows) }
    })
    .await;
}

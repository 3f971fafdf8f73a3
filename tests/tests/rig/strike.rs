//! What each fault does.

use std::time::Duration;

use promises::figures::execute;
use promises::host::{BROKER, CLICKHOUSE, Host, Room};
use promises::network::{Network, Weather};
use promises::process::{limit_files, signal};
use promises::system::{Role, System};
use promises::tenants::usable_at;
use promises::traffic::Dice;
use promises::wait::until;

use crate::fault::{Fault, Part};
use crate::topics::reset;
use crate::world::{SOON, World};

impl World {
    pub(crate) async fn strike(&self, fault: Fault, dice: &mut Dice) {
        let system = &self.system;
        if fault.parts().contains(&Part::Broker) {
            self.broker_runs().await;
        }
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
            Fault::EngineUnreachable => {
                let engine = usize::try_from(dice.below(self.to_engines.len() as u64)).unwrap();
                storm(&self.to_engines[engine], dice).await;
            }
            Fault::ClockSteps => {
                let hosts = ["gateway", "second-gateway", "fold", "second-fold", "billing"];
                let clock_seconds = any(&[-3600, -47, 0, 47, 3600], dice);
                self.on_host(any(&hosts, dice), |host| host.clock_seconds = clock_seconds);
            }
            Fault::SlowDisk => {
                let disk = any(&["gateway", BROKER, CLICKHOUSE], dice);
                self.on_host(disk, |host| host.sync = Duration::from_millis(50 + dice.below(500)));
                tokio::time::sleep(Duration::from_millis(500 + dice.below(4_000))).await;
                self.on_host(disk, |host| host.sync = Duration::ZERO);
            }
            Fault::BrokerFull => self.without_room(BROKER, dice).await,
            Fault::ClickHouseFull => {
                self.without_room(CLICKHOUSE, dice).await;
                self.clickhouse_was_full.set(true);
                // A part of which a file stayed empty is set aside when the engine starts, and only then.
                system.kill_clickhouse().await;
                self.start_clickhouse_or_empty_it().await;
            }
            Fault::OffsetsReset => self.offsets_reset(dice).await,
        }
    }

    /// A broker whose disk was full ends itself, at once or half a minute later: whoever runs it starts it again.
    pub(crate) async fn broker_runs(&self) {
        if !self.system.kafka_runs() {
            self.system.kill_kafka().await;
            self.system.start_kafka().await;
        }
    }

    fn on_host(&self, name: &'static str, change: impl FnOnce(&mut Host)) {
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.entry(name).or_default();
        change(host);
        self.system.turn_host(name, *host);
    }

    async fn without_room(&self, host: &'static str, dice: &mut Dice) {
        self.on_host(host, |host| host.room = Room::None);
        tokio::time::sleep(Duration::from_millis(200 + dice.below(2_500))).await;
        self.on_host(host, |host| host.room = Room::Enough);
    }

    /// Where its disk was full while the database was being made, it left an empty file on which it does not start: what people
    /// are told to do then.
    async fn start_clickhouse_or_empty_it(&self) {
        if let Err(error) = self.system.try_start_clickhouse().await {
            assert!(error.to_string().contains("Empty query"), "{error}");
            self.system.drop_clickhouse_data();
            self.system.start_clickhouse().await;
        }
    }

    /// Kafka takes new offsets only of a group without members.
    async fn offsets_reset(&self, dice: &mut Dice) {
        let folds: Vec<Role> = self.all_folds().into_iter().filter(|fold| *fold != Role::SecondFold).collect();
        folds.iter().for_each(|fold| self.system.kill(*fold));
        reset(&self.system.brokers(), self.partitions, dice).await;
        folds.iter().for_each(|fold| self.system.spawn(*fold));
    }

    fn toggle(&self, fold: Role) {
        if self.folds.borrow_mut().remove(&fold) {
            self.system.kill(fold);
        } else {
            self.folds.borrow_mut().insert(fold);
            self.system.spawn(fold);
        }
    }

    pub(crate) async fn other_gateway(&self) {
        // Clients hear of it before it goes, and after it came.
        if self.second_gateway.replace(false) {
            self.system.kill(Role::SecondGateway);
        } else {
            self.system.start_role(Role::SecondGateway).await;
            usable_at(&self.system, Role::SecondGateway, &self.keys).await;
            self.second_gateway.set(true);
        }
    }

    async fn back_up_or_restore(&self) {
        self.system.kill_clickhouse().await;
        if self.backed_up.replace(!self.backed_up.get()) {
            self.system.restore_clickhouse();
        } else {
            self.system.back_up_clickhouse();
        }
        self.system.start_clickhouse().await;
    }
}

fn any<T: Copy>(of: &[T], dice: &mut Dice) -> T {
    of[usize::try_from(dice.below(of.len() as u64)).unwrap()]
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
    network.turn(any(&[Weather::Cut, Weather::Stalled, Weather::Deaf, Weather::Slow], dice));
    tokio::time::sleep(Duration::from_millis(200 + dice.below(4_000))).await;
    network.turn(Weather::Fair);
}

/// Returns when both tables are there.
pub(crate) async fn tables(system: &System) {
    until("the tables to be there", SOON, async || {
        let (client, url) = (&system.client, system.clickhouse_url());
        let sql =
            "SELECT count() AS n FROM system.tables WHERE database = 'tollgate' AND name IN ('tokens', 'requests')";
        let rows = promises::figures::select_in("default", client, &url, sql).await;
        if rows[0]["n"].as_u64() == Some(2) { Ok(()) } else { Err(rows) }
    })
    .await;
}

//! The faults that can be drawn.

use promises::traffic::Dice;

/// See `World::strike` for what each does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9 of the gateway, with requests open.
    Gateway,
    /// Killed while it recovers, and while it recovers from that.
    GatewayAgainAndAgain,
    /// SIGSTOP, and SIGCONT a while later.
    GatewaySleeps,
    /// SIGTERM: drains, and starts again.
    GatewayStops,
    /// A clean stop while the broker is away.
    GatewayStopsWithoutBroker,
    /// Another gateway joins, or the one that joined is killed and its spool taken up again later.
    OtherGateway,
    /// kill -9 of a fold.
    Fold,
    /// A fold sleeps for a moment, or beyond its session, and does not know it.
    FoldSleeps,
    /// Another fold of the group joins, or one dies for good.
    FoldsJoinAndLeave,
    /// A fold that works on all partitions, whoever else does, comes or goes.
    FoldTwice,
    /// kill -9 of the broker; it comes back at once.
    Broker,
    /// The broker is away while clients go on.
    BrokerAway,
    /// kill -9 of ClickHouse; it comes back at once.
    ClickHouse,
    /// ClickHouse is away while clients go on.
    ClickHouseAway,
    /// Everything that ClickHouse held is lost.
    ClickHouseLosesItsDisk,
    /// ClickHouse comes back with what it held some faults ago.
    ClickHouseRestored,
    /// One table is dropped beneath the fold.
    TableDropped,
    /// Billing dies.
    Billing,
    /// The gateway's files do not grow: its disk is full in the middle of a record, and has room again later.
    SpoolFull,
    /// The broker does nothing for a while, and does not know it.
    BrokerSleeps,
    /// ClickHouse does nothing for a while, and goes on with what it was asked then.
    ClickHouseSleeps,
    /// The network to the broker is cut, stalls, is slow, or loses answers.
    BrokerUnreachable,
    /// The network to ClickHouse is cut, stalls, is slow, or loses answers.
    ClickHouseUnreachable,
    /// The network to an engine is cut, stalls, is slow, or loses answers, amid its streams.
    EngineUnreachable,
    /// A clock steps by up to an hour, and is right again some day: a gateway's, a fold's, billing's.
    ClockSteps,
    /// Each sync of a gateway's disk, the broker's or ClickHouse's takes long.
    SlowDisk,
    /// No file of the broker has room: it may end by itself, and is started again when there is room.
    BrokerFull,
    /// No file of ClickHouse has room, until there is again and somebody starts it anew.
    ClickHouseFull,
    /// While no fold runs, an operator resets what the group committed, to anywhere.
    OffsetsReset,
}

/// All of them, the common ones more often.
const ALL: [(Fault, usize); 29] = [
    (Fault::Gateway, 4),
    (Fault::GatewayAgainAndAgain, 1),
    (Fault::GatewaySleeps, 2),
    (Fault::GatewayStops, 2),
    (Fault::GatewayStopsWithoutBroker, 1),
    (Fault::OtherGateway, 2),
    (Fault::Fold, 4),
    (Fault::FoldSleeps, 3),
    (Fault::FoldsJoinAndLeave, 3),
    (Fault::FoldTwice, 2),
    (Fault::Broker, 2),
    (Fault::BrokerAway, 1),
    (Fault::ClickHouse, 4),
    (Fault::ClickHouseAway, 1),
    (Fault::ClickHouseLosesItsDisk, 1),
    (Fault::ClickHouseRestored, 2),
    (Fault::TableDropped, 1),
    (Fault::Billing, 1),
    (Fault::SpoolFull, 3),
    (Fault::BrokerSleeps, 2),
    (Fault::ClickHouseSleeps, 2),
    (Fault::BrokerUnreachable, 3),
    (Fault::ClickHouseUnreachable, 3),
    (Fault::EngineUnreachable, 3),
    (Fault::ClockSteps, 4),
    (Fault::SlowDisk, 3),
    (Fault::BrokerFull, 1),
    (Fault::ClickHouseFull, 2),
    (Fault::OffsetsReset, 1),
];

/// What is under one fault at a time. Faults of different parts overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Gateway,
    OtherGateway,
    Fold,
    OtherFolds,
    Billing,
    Broker,
    WayToBroker,
    ClickHouse,
    WayToClickHouse,
    WayToEngines,
}

impl Part {
    pub(crate) const ALL: [Self; 10] = [
        Self::Gateway,
        Self::OtherGateway,
        Self::Fold,
        Self::OtherFolds,
        Self::Billing,
        Self::Broker,
        Self::WayToBroker,
        Self::ClickHouse,
        Self::WayToClickHouse,
        Self::WayToEngines,
    ];
}

/// Faults are drawn as cards: each is there as often as its weight, and comes back when all were drawn.
pub(crate) struct Deck {
    cards: Vec<Fault>,
    left: Vec<Fault>,
}

impl Deck {
    /// Those whose name has one of the words of `only` in it, which stand between bars.
    pub(crate) fn of(only: &str) -> Self {
        let some = ALL.into_iter().filter(|(fault, _)| only.split('|').any(|word| fault.name().contains(word)));
        let cards: Vec<Fault> = some.flat_map(|(fault, weight)| std::iter::repeat_n(fault, weight)).collect();
        assert!(!cards.is_empty(), "no fault is called {only:?}");
        Self { cards, left: Vec::new() }
    }

    pub(crate) fn draw(&mut self, dice: &mut Dice) -> Fault {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
        }
        let at = dice.below(self.left.len() as u64);
        self.left.swap_remove(usize::try_from(at).unwrap())
    }
}

impl Fault {
    /// Whom it hurts, in the order of the parts.
    pub(crate) const fn parts(self) -> &'static [Part] {
        match self {
            Self::Gateway | Self::GatewayAgainAndAgain | Self::GatewaySleeps | Self::GatewayStops | Self::SpoolFull => {
                &[Part::Gateway]
            }
            Self::GatewayStopsWithoutBroker => &[Part::Gateway, Part::Broker],
            Self::OtherGateway => &[Part::OtherGateway],
            Self::Fold | Self::FoldSleeps => &[Part::Fold],
            Self::FoldsJoinAndLeave | Self::FoldTwice => &[Part::OtherFolds],
            Self::Broker | Self::BrokerAway | Self::BrokerSleeps | Self::BrokerFull => &[Part::Broker],
            Self::BrokerUnreachable => &[Part::WayToBroker],
            Self::ClickHouse
            | Self::ClickHouseAway
            | Self::ClickHouseLosesItsDisk
            | Self::ClickHouseRestored
            | Self::ClickHouseSleeps
            | Self::ClickHouseFull
            | Self::TableDropped => &[Part::ClickHouse],
            Self::ClickHouseUnreachable => &[Part::WayToClickHouse],
            Self::Billing => &[Part::Billing],
            Self::EngineUnreachable => &[Part::WayToEngines],
            Self::OffsetsReset => &[Part::Fold, Part::OtherFolds, Part::Broker],
            Self::ClockSteps | Self::SlowDisk => &[],
        }
    }

    /// As the summary calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway killed",
            Self::GatewayAgainAndAgain => "gateway killed while it recovers",
            Self::GatewaySleeps => "gateway stopped and woken",
            Self::GatewayStops => "gateway drained and started",
            Self::GatewayStopsWithoutBroker => "gateway drained without a broker",
            Self::OtherGateway => "gateway joins, or is killed for a while",
            Self::Fold => "fold killed",
            Self::FoldSleeps => "fold stopped and woken",
            Self::FoldsJoinAndLeave => "fold joins the group, or dies",
            Self::FoldTwice => "a second owner of everything comes, or goes",
            Self::Broker => "broker killed",
            Self::BrokerAway => "broker away",
            Self::ClickHouse => "ClickHouse killed",
            Self::ClickHouseAway => "ClickHouse away",
            Self::ClickHouseLosesItsDisk => "ClickHouse lost its disk",
            Self::ClickHouseRestored => "ClickHouse restored from a backup",
            Self::TableDropped => "a table dropped",
            Self::Billing => "billing killed",
            Self::SpoolFull => "gateway's disk full",
            Self::BrokerSleeps => "broker stopped and woken",
            Self::ClickHouseSleeps => "ClickHouse stopped and woken",
            Self::BrokerUnreachable => "network to the broker cut, stalled, slow or deaf",
            Self::ClickHouseUnreachable => "network to ClickHouse cut, stalled, slow or deaf",
            Self::EngineUnreachable => "network to an engine cut, stalled, slow or deaf",
            Self::ClockSteps => "a clock steps",
            Self::SlowDisk => "a slow disk",
            Self::BrokerFull => "broker's disk full",
            Self::ClickHouseFull => "ClickHouse's disk full",
            Self::OffsetsReset => "committed offsets reset",
        }
    }
}

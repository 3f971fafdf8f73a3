//! The steps of a run: what may happen, drawn from a seed, and how it is told.

use std::fmt;

use stream::simulation::disk::Fault;
use stream::simulation::{Chance, Death};

use super::world::WINDOW_MS;

/// One thing that happens. Numbers choose among what is there, so a step means something wherever it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    // Gateways: which one, and what.
    Start(usize),
    Admit(usize, usize),
    /// So many requests at once.
    Crowd(usize, usize),
    Frame(usize, usize, u64, u64, Option<Death>),
    Checkpoint(usize, usize),
    Finish(usize, usize, usize),
    Flush(usize),
    Ship(usize),
    /// A whole request, synced and shipped.
    Serve(usize, usize, u64),
    Kill(usize),
    CrashHost(usize),
    WriteBack(usize),
    GatewayClock(usize, i64),
    DiskFault(usize, u64, Fault),
    Room(usize, Option<u64>),
    Copy(usize),
    Restore(usize, bool),
    Clone(usize),
    Damage(usize, usize),
    // The log.
    FailRecord,
    Away(bool),
    Disconnect,
    Narrow(bool),
    BrokerClock(i64),
    Hole(usize),
    /// Something that is no gateway's, and of which kind.
    Garbage(usize, usize),
    LoseTail(usize, usize),
    // Folds: which one, which line, and what.
    Read(usize, usize, usize),
    Ask(usize, usize),
    Answer(usize, usize, Outcome),
    /// Reads, waits until a chunk is due, and asks.
    Work(usize, usize),
    /// Works on, up to the next insert and through it.
    Drive(usize, usize, Outcome),
    KillFold(usize),
    Rebalance(usize),
    Publish(usize, usize, Published),
    PublishHeld,
    // ClickHouse.
    Block(usize),
    Land(usize, bool),
    Forget,
    EngineClock(i64),
    EngineKill,
    Lose(usize, bool),
    Drop,
    Pass(u64),
}

impl Step {
    /// How far it puts ClickHouse's clock back.
    pub(super) fn puts_clock_back_ms(self) -> u64 {
        match self {
            Self::EngineClock(by) => u64::try_from(-by).unwrap_or(0),
            _ => 0,
        }
    }
}

/// What somebody else may write.
const GARBAGE: [&str; 5] = [
    "no event",
    "a count below 0",
    "an event under another's number",
    "an event once more",
    "an event under another's key",
];

/// What comes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// It never came there.
    NeverThere,
    /// It was done, and its answer was lost.
    DoneUnheard,
    /// ClickHouse was killed between the token and the part, or between two parts.
    Torn(bool),
    /// The caller gave up; the statement may run yet.
    GivenUp,
    /// The statement has begun, and the caller waits.
    Begun,
    /// It was done, said so, and ClickHouse lost it.
    DoneAndLost(bool),
}

/// What comes of publishing balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    Done,
    Failed,
    /// It is on its way in a process that stopped to work, and may arrive much later.
    Held,
}

/// A step with the chance that its inside draws from: leaving out other steps changes nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) step: Step,
    pub(super) chance: u64,
}

/// What may happen in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) gateways: usize,
    pub(super) folds: usize,
    /// Steps.
    pub(super) length: usize,
    /// `spool.max_bytes`.
    pub(super) spool_bytes: u64,
    /// `spool.segment_bytes`.
    pub(super) segment_bytes: u64,
    /// Weights of whole groups of steps.
    pub(super) disks: u32,
    pub(super) volumes: u32,
    pub(super) brokers: u32,
    pub(super) clocks: u32,
    pub(super) fold_faults: u32,
    pub(super) engine_faults: u32,
    pub(super) rebalances: u32,
    pub(super) drops: u32,
    /// Faults that no rule can undo: what they break must be found, and stop the line.
    pub(super) beyond: Beyond,
}

/// See [`Scenario::beyond`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    Nothing,
    /// The window of tokens is absurdly small.
    SmallWindow,
    /// ClickHouse loses what it had said was written, or is restored from an older backup.
    LostParts,
    /// Brokers lose records that they had acknowledged.
    LostRecords,
}

/// A number of each group of steps, out of all of them.
fn groups(s: &Scenario) -> [u32; 12] {
    let beyond = if s.beyond == Beyond::Nothing { 0 } else { 3 };
    [60, s.disks, s.volumes, s.brokers, s.clocks, 60, s.fold_faults, s.engine_faults, s.rebalances, s.drops, beyond, 12]
}

/// The actions of a seed.
pub(super) fn draw(seed: u64, scenario: &Scenario) -> Vec<Action> {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678);
    (0..scenario.length)
        .map(|_| {
            let step = one(&mut chance, scenario);
            Action { step, chance: chance.below(1 << 30) as u64 }
        })
        .collect()
}

fn one(c: &mut Chance, s: &Scenario) -> Step {
    let groups = groups(s);
    let mut at = c.below(groups.iter().sum::<u32>() as usize) as u32;
    let group = groups.iter().position(|&weight| {
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    });
    // Copies of gateways come after them.
    let g = c.below(s.gateways + usize::from(s.volumes > 0));
    let (f, p) = (c.below(s.folds), c.below(2));
    match group.unwrap_or(11) {
        0 if s.spool_bytes < 1 << 20 && c.below(6) == 0 => Step::Crowd(g, 8 + c.below(17)),
        0 => gateway(c, g),
        1 => disk(c, g),
        2 => [Step::Copy(g), Step::Restore(g, c.below(3) > 0), Step::Clone(g), Step::Damage(g, c.below(4000))]
            [c.below(4)],
        3 => broker(c, p),
        4 => {
            let by = c.below(7_200_000) as i64 - 3_600_000;
            [Step::GatewayClock(g, by), Step::BrokerClock(by), Step::EngineClock(by / 4)][c.below(3)]
        }
        5 => fold(c, f, p),
        6 => match c.below(8) {
            0 => Step::KillFold(f),
            1 => Step::Pass(70_000),
            2 => Step::Answer(f, p, outcome(c)),
            _ => Step::Drive(f, p, outcome(c)),
        },
        7 => match c.below(8) {
            0 => Step::EngineKill,
            1 | 2 => Step::Forget,
            3 => Step::Block(c.below(4)),
            4 => Step::Pass(WINDOW_MS),
            _ => Step::Land(c.below(4), c.below(5) > 0),
        },
        8 => Step::Rebalance(c.below(256)),
        9 => Step::Drop,
        10 => match s.beyond {
            Beyond::SmallWindow | Beyond::Nothing => Step::Forget,
            Beyond::LostParts if c.below(2) == 0 => Step::Drive(f, p, Outcome::DoneAndLost(c.below(2) == 0)),
            Beyond::LostParts => Step::Lose(1 + c.below(3), c.below(2) == 0),
            Beyond::LostRecords => Step::LoseTail(p, 1 + c.below(3)),
        },
        _ => match c.below(6) {
            0 => Step::Publish(f, p, Published::Failed),
            1 | 2 => Step::Publish(f, p, Published::Held),
            3 => Step::PublishHeld,
            _ => Step::Publish(f, p, Published::Done),
        },
    }
}

fn gateway(c: &mut Chance, g: usize) -> Step {
    let nth = c.below(4);
    match c.below(24) {
        0..3 => Step::Admit(g, c.below(3)),
        3..8 => {
            let death = (c.below(30) == 0).then(|| match c.below(3) {
                0 => Death::BeforeHanding,
                _ => Death::InStores(c.below(6) as u32),
            });
            Step::Frame(g, nth, 1 + c.below(8) as u64, c.below(12) as u64, death)
        }
        8..10 => Step::Checkpoint(g, nth),
        10..13 => Step::Finish(g, nth, c.below(4)),
        13..15 => Step::Flush(g),
        15..18 => Step::Ship(g),
        18..21 => Step::Serve(g, c.below(3), 1 + c.below(9) as u64),
        21 => Step::Kill(g),
        _ => Step::Start(g),
    }
}

fn disk(c: &mut Chance, g: usize) -> Step {
    let fault = match c.below(5) {
        0 => Fault::Error,
        1 => Fault::Short(c.below(60)),
        2 => Fault::Full(c.below(60)),
        3 => Fault::Crash(c.below(200)),
        _ => Fault::CrashAfter,
    };
    match c.below(6) {
        0 => Step::CrashHost(g),
        1 => Step::WriteBack(g),
        2 => Step::Room(g, (c.below(2) == 0).then(|| c.below(8_000) as u64)),
        _ => Step::DiskFault(g, c.below(12) as u64, fault),
    }
}

fn broker(c: &mut Chance, p: usize) -> Step {
    match c.below(13) {
        0..3 => Step::FailRecord,
        3 => Step::Away(c.below(2) == 0),
        4..6 => Step::Disconnect,
        6..8 => Step::Narrow(c.below(2) == 0),
        8 => Step::Hole(p),
        _ => Step::Garbage(p, c.below(5)),
    }
}

fn fold(c: &mut Chance, f: usize, p: usize) -> Step {
    match c.below(12) {
        0..2 => Step::Read(f, p, 1 + c.below(9)),
        2..4 => Step::Ask(f, p),
        4..7 => Step::Answer(f, p, Outcome::Done),
        7..9 => Step::Work(f, p),
        9..11 => Step::Drive(f, p, Outcome::Done),
        _ => Step::Pass(c.below(256) as u64 * 7),
    }
}

fn outcome(c: &mut Chance) -> Outcome {
    match c.below(6) {
        0 => Outcome::NeverThere,
        1 => Outcome::DoneUnheard,
        2 => Outcome::Torn(c.below(2) == 0),
        3 => Outcome::GivenUp,
        _ => Outcome::Begun,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Start(g) => write!(f, "gateway {g} starts"),
            Self::Admit(g, tenant) => {
                write!(f, "gateway {g} lets a request of tenant {} in", ["a", "b", "c"][tenant % 3])
            }
            Self::Crowd(g, n) => write!(f, "gateway {g} lets {n} requests in"),
            Self::Frame(g, nth, tokens, shift, None) => {
                write!(
                    f,
                    "gateway {g} hands {tokens} tokens of open request {nth} on ({shift} turn out to be reasoning)"
                )
            }
            Self::Frame(g, nth, tokens, _, Some(Death::BeforeHanding)) => {
                write!(
                    f,
                    "gateway {g} is killed between storing {tokens} tokens of open request {nth} and handing them on"
                )
            }
            Self::Frame(g, nth, tokens, _, Some(Death::InStores(n))) => {
                write!(f, "gateway {g} is killed after {n} of the stores of {tokens} tokens of open request {nth}")
            }
            Self::Checkpoint(g, nth) => write!(f, "gateway {g} bills open request {nth} so far"),
            Self::Finish(g, nth, how) => {
                write!(
                    f,
                    "gateway {g} ends open request {nth} ({})",
                    ["engine's last word", "nothing", "cut short", "a whole answer"][how % 4]
                )
            }
            Self::Flush(g) => write!(f, "gateway {g} syncs"),
            Self::Ship(g) => write!(f, "gateway {g} ships"),
            Self::Serve(g, tenant, tokens) => {
                write!(
                    f,
                    "gateway {g} serves {tokens} tokens to tenant {}, syncs and ships",
                    ["a", "b", "c"][tenant % 3]
                )
            }
            Self::Kill(g) => write!(f, "gateway {g} is killed"),
            Self::CrashHost(g) => write!(f, "the host of gateway {g} crashes"),
            Self::WriteBack(g) => write!(f, "the host of gateway {g} writes mapped memory back"),
            Self::GatewayClock(g, ms) => write!(f, "the clock of gateway {g} steps by {ms} ms"),
            Self::DiskFault(g, n, fault) => write!(f, "call {n} from now to the disk of gateway {g} meets {fault:?}"),
            Self::Room(g, Some(room)) => write!(f, "the disk of gateway {g} has room for {room} more bytes"),
            Self::Room(g, None) => write!(f, "the disk of gateway {g} has room"),
            Self::Copy(g) => write!(f, "the volume of gateway {g} is copied"),
            Self::Restore(g, true) => write!(f, "the volume of gateway {g} is restored from its copy"),
            Self::Restore(g, false) => write!(f, "the volume of gateway {g} is lost"),
            Self::Clone(g) => write!(f, "gateway {g} is killed, and another gateway gets a copy of its volume"),
            Self::Damage(g, at) => write!(f, "gateway {g} is killed, and a byte of its last segment changes ({at})"),
            Self::FailRecord => write!(f, "the brokers refuse the next record"),
            Self::Away(true) => write!(f, "the brokers are away"),
            Self::Away(false) => write!(f, "the brokers are back"),
            Self::Disconnect => write!(f, "the next producer that looks finds its connection gone"),
            Self::Narrow(true) => write!(f, "producers have room for 3 records"),
            Self::Narrow(false) => write!(f, "producers have room again"),
            Self::BrokerClock(ms) => write!(f, "the brokers' clock steps by {ms} ms"),
            Self::Hole(p) => write!(f, "an offset of partition {p} holds no record"),
            Self::Garbage(p, kind) => write!(f, "somebody writes {} into partition {p}", GARBAGE[kind % GARBAGE.len()]),
            Self::LoseTail(p, n) => write!(f, "the brokers lose the last {n} records of partition {p}"),
            Self::Read(fold, p, n) => write!(f, "fold {fold} reads up to {n} records of partition {p}"),
            Self::Ask(fold, p) => write!(f, "fold {fold} asks what partition {p} needs next"),
            Self::Answer(fold, p, outcome) => write!(f, "the call of fold {fold} for partition {p}: {outcome:?}"),
            Self::Work(fold, p) => write!(f, "fold {fold} reads partition {p}, waits 400 ms and asks"),
            Self::Drive(fold, p, outcome) => {
                write!(f, "fold {fold} works on partition {p}, through its next insert: {outcome:?}")
            }
            Self::KillFold(fold) => write!(f, "fold {fold} is killed and starts again"),
            Self::Rebalance(n) => write!(f, "partitions are divided anew ({n})"),
            Self::Publish(fold, p, how) => write!(f, "fold {fold} publishes balances of partition {p}: {how:?}"),
            Self::PublishHeld => write!(f, "a balance that was held up arrives"),
            Self::Block(nth) => write!(f, "the block of late statement {nth} comes"),
            Self::Land(nth, true) => write!(f, "late statement {nth} runs"),
            Self::Land(nth, false) => write!(f, "late statement {nth} runs, and ClickHouse is killed in it"),
            Self::Forget => write!(f, "ClickHouse forgets the tokens that its window lets go"),
            Self::EngineClock(ms) => write!(f, "ClickHouse's clock steps by {ms} ms"),
            Self::EngineKill => write!(f, "ClickHouse is killed and starts again"),
            Self::Lose(n, true) => write!(f, "ClickHouse loses its last {n} parts and keeps their tokens"),
            Self::Lose(n, false) => write!(f, "ClickHouse is restored from a backup that lacks its last {n} parts"),
            Self::Drop => write!(f, "the tables are dropped and made anew"),
            Self::Pass(ms) => write!(f, "{ms} ms pass"),
        }
    }
}

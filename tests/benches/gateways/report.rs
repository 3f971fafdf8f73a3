//! The tables: medians over rounds, and every figure beside nginx's.

use std::collections::BTreeMap;

use crate::load::{Kind, Seen};

/// What one round of one contender came to.
pub(crate) struct Round {
    pub seen: Seen,
    /// Microseconds of the processor that the gateway's process used for each request.
    pub cpu_us: f64,
}

/// Every round of one contender with one load.
#[derive(Default)]
pub(crate) struct Rounds(Vec<Round>);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Rounds {
    pub(crate) fn push(&mut self, round: Round) {
        self.0.push(round);
    }

    /// Answers of all rounds, and those that failed.
    pub(crate) fn answers(&self) -> (u64, u64) {
        (self.0.iter().map(|round| round.seen.requests).sum(), self.failed())
    }

    fn per_second(&self) -> f64 {
        median(self.0.iter().map(|round| round.seen.requests as f64 / round.seen.seconds).collect())
    }

    fn cpu_us(&self) -> f64 {
        median(self.0.iter().map(|round| round.cpu_us).collect())
    }

    fn failed(&self) -> u64 {
        self.0.iter().map(|round| round.seen.failed).sum()
    }

    /// Milliseconds at a percentile of all rounds together.
    fn percentile(&self, of: impl Fn(&Seen) -> &Vec<u32>, percent: usize) -> f64 {
        let mut all: Vec<u32> = self.0.iter().flat_map(|round| of(&round.seen).iter().copied()).collect();
        all.sort_unstable();
        let at = (all.len() * percent / 100).min(all.len().saturating_sub(1));
        all.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

/// All of them, by load and contender.
pub(crate) type Measured = BTreeMap<(usize, &'static str), Rounds>;

/// `x` beside `of`, where there is one.
fn beside(x: f64, of: Option<f64>) -> String {
    of.filter(|of| *of > 0.0).map_or("–".to_owned(), |of| format!("{:.2}", x / of))
}

/// The load that came as fast as it could.
pub(crate) fn full_speed(kind: Kind, at_once: &[usize], names: &[&'static str], measured: &Measured) {
    println!("\n{}\n", if kind == Kind::Plain { "Plain requests:" } else { "Streams of 20 frames:" });
    println!(
        "| at once | gateway | requests/s | ÷ nginx | CPU µs each | ÷ nginx | p50 / p90 / p99 ms | added p50 / p90 / p99 ms | added p99 ÷ nginx | first byte p50 / p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for &at_once in at_once {
        for &name in names {
            let Some(rounds) = measured.get(&(at_once, name)) else { continue };
            let nginx = measured.get(&(at_once, "nginx"));
            let percentiles =
                |rounds: &Rounds| [50, 90, 99].map(|percent| rounds.percentile(|seen| &seen.whole, percent));
            let direct = measured.get(&(at_once, "direct")).map(&percentiles);
            let added = |rounds: &Rounds| {
                let all = percentiles(rounds);
                direct.map(|direct| [0, 1, 2].map(|at| all[at] - direct[at]))
            };
            let three = |values: [f64; 3]| values.map(|value| format!("{value:.2}")).join(" / ");
            let own = added(rounds).filter(|_| name != "direct");
            let nginx_p99 = nginx.and_then(&added).map(|added| added[2]);
            println!(
                "| {at_once} | {name}{} | {:.0} | {} | {:.0} | {} | {} | {} | {} | {:.2} / {:.2} |",
                if rounds.failed() > 0 { format!(" ({} failed)", rounds.failed()) } else { String::new() },
                rounds.per_second(),
                beside(rounds.per_second(), nginx.map(Rounds::per_second)),
                rounds.cpu_us(),
                beside(rounds.cpu_us(), nginx.map(Rounds::cpu_us)),
                three(percentiles(rounds)),
                own.map_or("–".to_owned(), three),
                own.map_or("–".to_owned(), |own| beside(own[2], nginx_p99)),
                rounds.percentile(|seen| &seen.first, 50),
                rounds.percentile(|seen| &seen.first, 99),
            );
        }
    }
}

/// The load whose frames came 10 ms apart, as an engine's do.
pub(crate) fn paced(at_once: &[usize], names: &[&'static str], measured: &Measured) {
    println!("\nStreams of 20 frames, 10 ms apart:\n");
    println!(
        "| at once | gateway | CPU µs each | first byte p50 / p99 ms | frame lag p50 / p90 / p99 ms | added p99 of lag ms |"
    );
    println!("|---|---|---|---|---|---|");
    for &at_once in at_once {
        for &name in names {
            let Some(rounds) = measured.get(&(at_once, name)) else { continue };
            let lag = |rounds: &Rounds, percent| rounds.percentile(|seen| &seen.lag, percent);
            let direct = measured.get(&(at_once, "direct")).map(|rounds| lag(rounds, 99));
            println!(
                "| {at_once} | {name} | {:.0} | {:.2} / {:.2} | {:.3} / {:.3} / {:.3} | {} |",
                rounds.cpu_us(),
                rounds.percentile(|seen| &seen.first, 50),
                rounds.percentile(|seen| &seen.first, 99),
                lag(rounds, 50),
                lag(rounds, 90),
                lag(rounds, 99),
                direct.map_or("–".to_owned(), |direct| format!("{:.3}", lag(rounds, 99) - direct)),
            );
        }
    }
}

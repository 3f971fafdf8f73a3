//! The account of the whole run: what was billed and what the engines counted, by endpoint and outcome, and why they differ.

use std::collections::BTreeMap;

use promises::figures::Counts;

use crate::engine::Totals;

/// Why an engine counted other tokens of a request than were billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Input: its counter takes a prompt once for each choice; its usage and the bill take it once.
    EachChoice,
    /// Input: it tells its count at the end only, and the request was cut before.
    Estimated,
    /// Input: the request was cut before anything of its answer reached the gateway.
    Unanswered,
    /// Output: made after the last count that the gateway received, until the engine knew that nobody wants it.
    InFlight,
}

impl Why {
    const ALL: [Self; 4] = [Self::EachChoice, Self::Estimated, Self::Unanswered, Self::InFlight];

    const fn of_input(self) -> bool {
        !matches!(self, Self::InFlight)
    }

    const fn said(self) -> &'static str {
        match self {
            Self::EachChoice => "input once per choice",
            Self::Estimated => "input estimated",
            Self::Unanswered => "input unanswered",
            Self::InFlight => "output in flight",
        }
    }
}

/// Requests of one endpoint that came to the same.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    requests: u64,
    billed: Totals,
    engine: Totals,
    why: [i64; Why::ALL.len()],
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Account {
    lines: BTreeMap<(&'static str, &'static str), Line>,
}

impl Account {
    /// Enters a request. What the engine counted beyond the bill must be what the reasons say, to the token.
    pub(crate) fn enter(
        &mut self,
        (endpoint, outcome): (&'static str, &'static str),
        billed: Counts,
        engine: Totals,
        why: &[(Why, i64)],
    ) {
        let billed = Totals { prompt: billed.prompt(), generated: billed.generated() };
        let of = |input: bool| why.iter().filter(|(why, _)| why.of_input() == input).map(|(_, tokens)| tokens).sum();
        let beyond = |engine: u64, billed: u64| engine.cast_signed() - billed.cast_signed();
        let differences = (beyond(engine.prompt, billed.prompt), beyond(engine.generated, billed.generated));
        assert_eq!(differences, (of(true), of(false)), "{endpoint}, {outcome}: billed {billed:?}, engine {engine:?}");
        let line = self.lines.entry((endpoint, outcome)).or_default();
        line.requests += 1;
        (line.billed, line.engine) = (line.billed + billed, line.engine + engine);
        for (why, tokens) in why {
            line.why[*why as usize] += tokens;
        }
    }

    /// Everything: requests, billed, counted.
    pub(crate) fn sum(&self) -> (u64, Totals, Totals) {
        let none = (0, Totals::default(), Totals::default());
        self.lines.values().fold(none, |(requests, billed, engine), line| {
            (requests + line.requests, billed + line.billed, engine + line.engine)
        })
    }

    /// For people.
    pub(crate) fn print(&self) {
        let row = |cells: [&str; 8]| {
            let [endpoint, outcome, requests, billed_in, engine_in, billed_out, engine_out, why] = cells;
            println!(
                "{endpoint:<25} {outcome:<22} {requests:>8} {billed_in:>9} {engine_in:>9} {billed_out:>10} {engine_out:>10}  {why}"
            );
        };
        row(["endpoint", "outcome", "requests", "billed in", "engine in", "billed out", "engine out", "difference"]);
        for ((endpoint, outcome), line) in &self.lines {
            let why: Vec<String> = Why::ALL
                .into_iter()
                .filter(|why| line.why[*why as usize] != 0)
                .map(|why| format!("{:+} {}", line.why[why as usize], why.said()))
                .collect();
            let Line { requests, billed, engine, .. } = line;
            let numbers = [*requests, billed.prompt, engine.prompt, billed.generated, engine.generated];
            let [requests, billed_in, engine_in, billed_out, engine_out] = numbers.map(|number| number.to_string());
            row([endpoint, outcome, &requests, &billed_in, &engine_in, &billed_out, &engine_out, &why.join(", ")]);
        }
        let (requests, billed, engine) = self.sum();
        let numbers = [requests, billed.prompt, engine.prompt, billed.generated, engine.generated];
        let [requests, billed_in, engine_in, billed_out, engine_out] = numbers.map(|number| number.to_string());
        row(["all", "", &requests, &billed_in, &engine_in, &billed_out, &engine_out, ""]);
    }
}

//! The replicas' own counters: taken by the running reconciler, sample by sample, and compared with what their requests are
//! counted as.
//!
//! An engine is never at rest, so that a counter is not compared with a sum but with two: requests whose whole life lies between
//! two samples are in the engine's counters with all their tokens, and no other requests than those that were there at any
//! moment between them can be.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use ledger::control::{ControlState, Document, ReplicaKind};
use ledger::time::Micros;
use runtime::exposition;
use runtime::http::client;
use sql::{ReplicaCounters, ReplicaUsage};

use super::report::{Check, Difference, Place, Report, Side};

/// The clocks of gateways and of who takes the samples may be so far apart, in microseconds; a counter is moved after the
/// token was sent.
pub(crate) const SKEW: i64 = 5_000_000;
/// A request of an engine that is never idle is over after so long.
pub(super) const LONGEST: i64 = 3_600_000_000;
/// For a request that was cut, an engine may have made so many tokens that nobody received.
const CUT_TOKENS: u64 = 1_024;
/// Counters are floating point numbers: up to here they are exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Asks every vLLM of control for its counters. One that does not answer has no sample.
pub(crate) async fn sample(state: &ControlState, now: Micros) -> Vec<ReplicaCounters> {
    let mut engines = BTreeMap::<&str, (Vec<String>, bool)>::new();
    for (id, document) in state.iter() {
        let Document::Replica(replica) = document else { continue };
        let (replicas, counts) = engines.entry(&replica.url).or_default();
        replicas.push(id.to_owned());
        *counts |= replica.kind == ReplicaKind::Vllm;
    }
    let engines = engines.into_iter().filter(|(_, (_, counts))| *counts);
    let asked = engines.map(async |(url, (replicas, _))| match client::get(&format!("{url}/metrics")).await {
        Ok(answer) if answer.is_success() => read(&answer.text, url, replicas, now),
        Ok(answer) => {
            tracing::debug!(?replicas, status = answer.status, "no counters");
            None
        }
        Err(error) => {
            tracing::debug!(?replicas, %error, "no counters");
            None
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What a page of metrics says; none if a counter is not on it.
fn read(page: &str, url: &str, replicas: Vec<String>, now: Micros) -> Option<ReplicaCounters> {
    let whole = |value: f64| (0.0..=EXACT).contains(&value).then_some(value as u64);
    let sum = |name: &str| exposition::sum(page, name).and_then(whole);
    Some(ReplicaCounters {
        at: now.0.div_euclid(1_000),
        url: url.to_owned(),
        replicas,
        started: exposition::max(page, "process_start_time_seconds").map_or(0, |seconds| (seconds * 1e3) as i64),
        prompt_tokens: sum("vllm:prompt_tokens_total")?,
        generation_tokens: sum("vllm:generation_tokens_total")?,
        open: sum("vllm:num_requests_running")? + sum("vllm:num_requests_waiting")?,
    })
}

fn at(sample: &ReplicaCounters) -> Micros {
    Micros(sample.at.saturating_mul(1_000))
}

/// Two samples of one life of an engine. All requests that were there before the second have ended, and are counted.
pub(crate) type Life<'a> = (&'a ReplicaCounters, &'a ReplicaCounters);

/// The lives of one engine, out of its samples by ascending time. What occurred before `vouched` is in the tables. An engine
/// that began anew counts from nothing: what it made between its last sample and its end is not compared.
pub(crate) fn lives(samples: &[ReplicaCounters], vouched: Micros, now: Micros) -> Vec<Life<'_>> {
    let is_counted = |sample: &ReplicaCounters| at(sample).0.saturating_add(SKEW) <= vouched.0;
    // Whoever was there before it had ended then.
    let idle = samples.iter().filter(|sample| sample.open == 0 && is_counted(sample)).map(|sample| sample.at).max();
    let has_ended = |sample: &ReplicaCounters| {
        idle.is_some_and(|idle| sample.at <= idle) || now.0.saturating_sub(at(sample).0) > LONGEST
    };
    let same_life = |one: &ReplicaCounters, next: &ReplicaCounters| {
        (one.started, &one.replicas) == (next.started, &next.replicas)
            && one.prompt_tokens <= next.prompt_tokens
            && one.generation_tokens <= next.generation_tokens
    };
    let life = |samples: &'_ [ReplicaCounters]| {
        let last = samples.iter().rposition(|sample| is_counted(sample) && has_ended(sample))?;
        (last > 0).then_some((0, last))
    };
    let mut lives = Vec::new();
    for samples in samples.chunk_by(same_life) {
        if let Some((first, last)) = life(samples) {
            lives.push((&samples[first], &samples[last]));
        }
    }
    lives
}

/// A life up to a sample at which both sides agreed: what its requests were counted as that had ended by then is not asked again.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    pub(crate) first: ReplicaCounters,
    pub(crate) upto: ReplicaCounters,
    pub(crate) usage: ReplicaUsage,
}

impl Settled {
    /// Whether it is a beginning of this life, whose samples before it may be out of sight meanwhile.
    pub(crate) fn is_of(&self, (first, last): Life<'_>) -> bool {
        (first.at..=last.at).contains(&self.upto.at)
            && (self.upto.started, &self.upto.replicas) == (last.started, &last.replicas)
    }
}

/// What is asked for a life.
pub(crate) struct Asked {
    pub(crate) span: (Micros, Micros),
    /// Of requests that ended from then on.
    pub(crate) ended_from: Micros,
}

pub(crate) fn asked(life: Life<'_>, settled: Option<&Settled>) -> Asked {
    let from = settled.map_or(life.0, |settled| &settled.upto);
    Asked { span: span(life), ended_from: Micros(at(from).0 - SKEW) }
}

/// The moments between which a life is compared.
fn span((first, last): Life<'_>) -> (Micros, Micros) {
    (at(first), at(last))
}

/// What cannot be compared of an engine.
pub(crate) fn pending(report: &mut Report, replicas: &[String]) {
    let said = "there are no two samples of its counters yet before which all requests had ended, and are folded";
    report.pending(Check::Replicas, Place::replica(replicas), said.to_owned());
}

/// An engine's counters beside what its requests are counted as.
pub(crate) fn compare(report: &mut Report, life: Life<'_>, usage: &ReplicaUsage) {
    let (first, last) = life;
    let (from, to) = span(life);
    let place = Place::replica(&last.replicas);
    let prompt = last.prompt_tokens - first.prompt_tokens;
    let generation = last.generation_tokens - first.generation_tokens;
    let cut = usage.cuts.saturating_mul(CUT_TOKENS);
    for (figure, made, sure, maybe, beyond) in [
        // How often a request's prompt was taken is not in its counts.
        ("prompt tokens", prompt, usage.sure_prompt, usage.maybe_prompt, u64::MAX),
        ("generated tokens", generation, usage.sure_generation, usage.maybe_generation, cut),
    ] {
        report.compared(Check::Replicas, 1);
        let counted = if made < sure { sure } else { maybe };
        if (sure..=maybe.max(sure)).contains(&made) {
            continue;
        }
        let sides = [made, counted].map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
        let (one, other) = (Side { of: "the engine says", is: sides[0] }, Side { of: "counted are", is: sides[1] });
        let found = Difference::between(Check::Replicas, place.clone(), figure, one, other);
        let when = format!("from {from} to {to}");
        let cuts = usage.cuts;
        if made < sure {
            report.differs(found.saying(format!("{when}; more is counted than the engine made")));
        } else if made - maybe <= beyond {
            let of = match figure {
                "prompt tokens" => "it takes a prompt once for each choice, and of requests that were cut",
                _ => "it made them for requests that were cut",
            };
            let said = format!("{when} the engine made {} {figure} more than are counted: {of} ({cuts})", made - maybe);
            report.pending(Check::Replicas, place.clone(), said);
        } else {
            let said =
                format!("{when}, {cuts} requests cut; it was asked past the gateway, or what it made was not counted");
            report.differs(found.saying(said));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(seconds: i64, started: i64, tokens: [u64; 2], open: u64) -> ReplicaCounters {
        let [prompt_tokens, generation_tokens] = tokens;
        let (url, replicas) = ("http://a".to_owned(), vec!["r".to_owned()]);
        ReplicaCounters { at: seconds * 1_000, url, replicas, started, prompt_tokens, generation_tokens, open }
    }

    fn seconds(seconds: i64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    #[test]
    fn counters_are_read_as_vllm_writes_them() {
        let page = include_str!("../../tests/data/vllm/metrics.txt")
            .replace(
                "prompt_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 0.0",
                "prompt_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 1.7e+01",
            )
            .replace(
                "generation_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 0.0",
                "generation_tokens_total{engine=\"0\",model_name=\"llama-3.1-8b\"} 16.0",
            );
        let at = |page: &str| read(page, "http://a", vec!["r".to_owned()], seconds(7));
        let said = at(&page).unwrap();
        assert_eq!((said.prompt_tokens, said.generation_tokens, said.open, said.at), (17, 16, 0, 7_000));
        assert_eq!(said.started, 1_795_324_228_940);
        let two = format!("{page}vllm:generation_tokens_total{{engine=\"1\"}} 3.0\n");
        assert_eq!(at(&two).unwrap().generation_tokens, 19, "of all its engines");
        assert_eq!(at("vllm:prompt_tokens_total 3\n"), None);
        assert_eq!(at(&format!("{page}vllm:prompt_tokens_total{{engine=\"1\"}} -9e9\n")), None, "absurd");
    }

    #[test]
    fn a_life_ends_where_all_have_ended_and_are_counted() {
        let at = |samples: &[ReplicaCounters], vouched: i64, now: i64| -> Vec<(i64, i64)> {
            let lives = lives(samples, seconds(vouched), seconds(now));
            lives.iter().map(|(first, last)| (first.at / 1_000, last.at / 1_000)).collect()
        };
        let busy =
            [taken(0, 1, [0, 0], 0), taken(60, 1, [5, 5], 3), taken(120, 1, [9, 9], 0), taken(180, 1, [9, 10], 1)];
        assert_eq!(at(&busy, 1_000, 200), [(0, 120)], "after it somebody is there");
        assert_eq!(at(&busy, 124, 200), [], "it may not all be counted, and before it nobody was gone");
        assert_eq!(at(&busy, 125, 200), [(0, 120)]);
        assert_eq!(at(&busy[..2], 1_000, 200), []);
        assert_eq!(at(&busy[..2], 10_000, 3_700), [(0, 60)], "nobody is there for so long");
        assert_eq!(at(&busy[..1], 1_000, 200), []);
        let anew =
            [taken(0, 1, [5, 5], 2), taken(60, 1, [9, 9], 2), taken(120, 2, [20, 20], 0), taken(180, 2, [30, 20], 0)];
        assert_eq!(at(&anew, 1_000, 200), [(0, 60), (120, 180)]);
        let silent = [taken(0, 0, [5, 5], 0), taken(60, 0, [9, 9], 0), taken(120, 0, [2, 20], 0)];
        assert_eq!(at(&silent, 1_000, 200), [(0, 60)], "a counter that goes back began anew");
    }

    #[test]
    fn what_is_settled_is_the_beginning_of_its_own_life_alone() {
        let (first, upto) = (taken(0, 1, [0, 0], 0), taken(60, 1, [5, 5], 0));
        let settled = Settled { first, upto: upto.clone(), usage: ReplicaUsage::default() };
        let (early, late) = (taken(30, 1, [2, 2], 0), taken(120, 1, [9, 9], 0));
        assert!(settled.is_of((&early, &late)) && settled.is_of((&upto, &upto)));
        assert!(!settled.is_of((&taken(90, 1, [7, 7], 0), &late)), "where it agreed is out of sight");
        assert!(!settled.is_of((&early, &taken(120, 2, [9, 9], 0))), "it began anew");
        let asked = asked((&settled.first, &late), Some(&settled));
        assert_eq!((asked.span, asked.ended_from), ((seconds(0), seconds(120)), seconds(55)));
    }

    #[test]
    fn what_was_counted_lies_between_what_must_be_and_what_may_be() {
        let (first, last) = (taken(0, 1, [100, 100], 0), taken(60, 1, [150, 130], 0));
        let usage = |sure: [u64; 2], maybe: [u64; 2], cuts| ReplicaUsage {
            sure_prompt: sure[0],
            sure_generation: sure[1],
            maybe_prompt: maybe[0],
            maybe_generation: maybe[1],
            requests: 1,
            cuts,
            ..ReplicaUsage::default()
        };
        let report = |usage: ReplicaUsage| {
            let mut report = Report::begin(seconds(60), sql::LogHours::default());
            compare(&mut report, (&first, &last), &usage);
            (report.differences.iter().map(|found| (found.figure, found.by)).collect::<Vec<_>>(), report.pending.len())
        };
        assert_eq!(report(usage([50, 30], [50, 30], 0)), (vec![], 0));
        assert_eq!(report(usage([0, 0], [50, 30], 0)), (vec![], 0), "all of them at the edges");
        assert_eq!(report(usage([51, 31], [60, 40], 0)).0, [("prompt tokens", 1), ("generated tokens", 1)]);
        assert_eq!(report(usage([0, 0], [50, 29], 0)).0, [("generated tokens", -1)]);
        assert_eq!(
            report(usage([0, 0], [49, 29], 1)),
            (vec![], 2),
            "one was cut, and prompts are taken more than once"
        );
        let (first, last) = (taken(0, 1, [0, 0], 0), taken(60, 1, [0, 1_025], 0));
        let mut report = Report::begin(seconds(60), sql::LogHours::default());
        compare(&mut report, (&first, &last), &usage([0, 0], [0, 0], 1));
        assert_eq!(report.differences[0].by, -1_025, "so much is not made for one that was cut");
    }
}

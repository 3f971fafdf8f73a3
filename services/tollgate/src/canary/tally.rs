//! What is held to what: the requests that were answered, and what billing shows of them. Pure.
//!
//! Two figures must agree, since one alone could not be judged. A tenant's usage is a sum, in which anybody's late request looks like
//! one that was counted twice; the list of its requests names each with its own tokens. So each request of this process must be in the
//! list with exactly what its answer told, and the sum must have grown by exactly what the list has grown by: a request of before a
//! restart, of another canary or of `--once` beside it explains itself, whenever it comes.

use std::collections::BTreeMap;
use std::time::Instant;

use ledger::time::Micros;
use uuid::Uuid;

use super::counts::Counts;

/// What billing shows of the tenant since some moment. The list is read before the sum, so the sum has all that the list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The requests that have ended, each with what is billed for it.
    pub(crate) listed: BTreeMap<Uuid, Counts>,
    /// The sum, without corrections by hand.
    pub(crate) usage: Counts,
}

impl Reading {
    /// What the sum has and the list has not.
    fn unexplained(&self) -> Counts {
        self.listed.values().fold(self.usage, |left, listed| left.minus(*listed))
    }
}

/// A request of this process that was answered to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) id: Uuid,
    pub(crate) stream: bool,
    /// What the answer told.
    pub(crate) counts: Counts,
    pub(crate) at: Instant,
    /// The same by the clock of this host.
    pub(crate) moment: Micros,
}

/// How far the requests of a round are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are there, they alone, and once.
    Billed,
    /// Something is missing: what.
    Missing(String),
    /// They are there, and something beside them that is no request which has ended: what. It may be one that is about to end.
    Unexplained(String),
}

/// The requests of this process that are still looked at.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<Uuid, (Answered, bool)>);

impl Tally {
    pub(crate) fn add(&mut self, answered: Answered) {
        self.0.insert(answered.id, (answered, false));
    }

    /// Those that are older are not in readings any more.
    pub(crate) fn forget_before(&mut self, from: Micros) {
        self.0.retain(|_, (answered, _)| answered.moment >= from);
    }

    /// Those that are whole in this reading and were in none before.
    pub(crate) fn arrived(&mut self, reading: &Reading) -> Vec<Answered> {
        let mut arrived = Vec::new();
        for (answered, known) in self.0.values_mut().filter(|(_, known)| !known) {
            *known = reading.listed.get(&answered.id) == Some(&answered.counts);
            arrived.extend(known.then_some(*answered));
        }
        arrived
    }

    /// Whether a request is billed for more than its answer told: said once, since it stays so.
    pub(crate) fn excess(&mut self, reading: &Reading) -> Option<String> {
        let more = |answered: &Answered| {
            let listed = reading.listed.get(&answered.id)?;
            listed.minus(answered.counts).any_above_zero().then_some(*listed)
        };
        let (id, told, billed) =
            self.0.values().find_map(|(answered, _)| Some((answered.id, answered.counts, more(answered)?)))?;
        self.0.remove(&id);
        Some(format!("request {id} used {told}, and is billed {billed}"))
    }
}

/// How far a round is whose requests were sent after `base` was read.
pub(crate) fn verdict(base: &Reading, now: &Reading, round: &[Answered]) -> Verdict {
    for answered in round {
        let Answered { id, counts, .. } = answered;
        match now.listed.get(id) {
            None => return Verdict::Missing(format!("request {id} is not there")),
            Some(listed) if listed != counts => {
                return Verdict::Missing(format!("request {id} used {counts}, and is billed {listed}"));
            }
            Some(_) => {}
        }
    }
    let more = now.unexplained().minus(base.unexplained());
    if more.any_above_zero() {
        return Verdict::Unexplained(format!("usage has grown by {more} more than by the requests that have ended"));
    }
    Verdict::Billed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(input: i64, output: i64) -> Counts {
        Counts { input, output, requests: 1, ..Counts::default() }
    }

    fn answered(id: u128, of: Counts) -> Answered {
        Answered { id: Uuid::from_u128(id), stream: false, counts: of, at: Instant::now(), moment: Micros(100) }
    }

    /// A reading in which the sum is that of the list, and `beside`.
    fn reading(listed: &[(u128, Counts)], beside: Counts) -> Reading {
        let usage = listed.iter().fold(beside, |sum, (_, counts)| sum.plus(*counts));
        Reading { listed: listed.iter().map(|(id, counts)| (Uuid::from_u128(*id), *counts)).collect(), usage }
    }

    const NONE: Counts = Counts { input: 0, cached_input: 0, output: 0, reasoning: 0, requests: 0 };

    #[test]
    fn a_request_is_billed_when_list_and_sum_have_it_whole() {
        let (base, mine) = (reading(&[(1, counts(9, 9))], counts(5, 5)), [answered(2, counts(12, 4))]);
        let now = |listed: &[(u128, Counts)], beside| verdict(&base, &reading(listed, beside), &mine);
        let old = (1, counts(9, 9));
        assert!(matches!(now(&[old], counts(5, 5)), Verdict::Missing(said) if said.contains("is not there")));
        assert!(
            matches!(now(&[old, (2, NONE)], counts(5, 5)), Verdict::Missing(said) if said.contains("billed nothing"))
        );
        let part = Counts { output: 3, ..counts(12, 0) };
        assert!(matches!(now(&[old, (2, part)], counts(5, 5)), Verdict::Missing(said) if said.contains("output 3")));
        assert_eq!(now(&[old, (2, counts(12, 4))], counts(5, 5)), Verdict::Billed);
    }

    #[test]
    fn what_others_sent_explains_itself_whenever_it_comes() {
        let mine = [answered(2, counts(12, 4))];
        // Of before the restart: one that had counts and no end in the base, one that was nowhere.
        let base = reading(&[], counts(7, 1));
        let then = reading(&[(2, counts(12, 4)), (3, counts(7, 1)), (4, counts(8, 8))], NONE);
        assert_eq!(verdict(&base, &then, &mine), Verdict::Billed);
        // What used tokens and has not ended may be about to end.
        let open = reading(&[(2, counts(12, 4))], counts(7, 9));
        assert!(matches!(verdict(&base, &open, &mine), Verdict::Unexplained(said) if said.contains("output 8")));
    }

    #[test]
    fn a_request_that_is_billed_twice_is_said_once_also_after_its_round() {
        let mut tally = Tally::default();
        tally.add(answered(2, counts(12, 4)));
        tally.add(answered(3, counts(1, 1)));
        let once = reading(&[(2, counts(12, 4))], NONE);
        assert_eq!(tally.arrived(&once).iter().map(|answered| answered.id.as_u128()).collect::<Vec<_>>(), [2]);
        assert!(tally.arrived(&once).is_empty() && tally.excess(&once).is_none());
        let twice = reading(&[(2, Counts { requests: 1, ..counts(24, 8) })], NONE);
        let said = tally.excess(&twice).unwrap();
        assert!(said.contains("used input 12, output 4") && said.contains("billed input 24, output 8"), "{said}");
        assert_eq!(tally.excess(&twice), None);
        // The other one is late, and is still known until it is too old to be read.
        assert_eq!(tally.arrived(&reading(&[(3, counts(1, 1))], NONE)).len(), 1);
        tally.forget_before(Micros(101));
        assert_eq!(tally.excess(&reading(&[(3, counts(2, 2))], NONE)), None);
    }

    #[test]
    fn a_sum_with_a_row_twice_is_seen_although_the_list_has_it_once() {
        let (base, mine) = (reading(&[], NONE), [answered(2, counts(12, 4))]);
        let doubled = reading(&[(2, counts(12, 4))], counts(12, 4));
        assert!(matches!(verdict(&base, &doubled, &mine), Verdict::Unexplained(said) if said.contains("requests 1")));
    }
}

//! The choice between replicas that have room: a pure function of what is known of them.

use crate::settings::{Routing, RoutingPolicy};

/// What is known of a replica when a request is to be placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// Tokens of prompts that it has been given and has not read yet.
    pub unread: u64,
    /// Tokens of this prompt that it would have to read.
    pub uncached: u64,
    /// Whether it has read enough of this prompt before.
    pub warm: bool,
    /// Requests open there.
    pub active: u32,
    /// Requests that it works on well at once.
    pub limit: u32,
    /// Tokens of prompts that it reads in a second.
    pub rate: f64,
    /// Taken only when all others are too: it comes back from a time without requests, and this one is not for it.
    pub reluctant: bool,
}

impl Candidate {
    /// Seconds until the first token, as far as prompts decide.
    fn first_token(&self) -> f64 {
        self.unread.saturating_add(self.uncached) as f64 / self.rate
    }

    /// How full it is.
    fn load(&self) -> f64 {
        f64::from(self.active) / f64::from(self.limit.max(1))
    }
}

/// Why this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It has read the beginning of the prompt before.
    Sticky,
    /// It has the least to do.
    Least,
}

/// The best so far, with what stands for it.
type Best<T> = Option<(T, Candidate)>;

/// First tokens that are expected within the same so many seconds count as equally early: then open requests decide.
const SAME: f64 = 0.02;

/// Which one of the candidates, each with what stands for it. None of none.
pub(super) fn choose<T: Copy>(
    routing: &Routing,
    candidates: impl Iterator<Item = (T, Candidate)>,
) -> Option<(T, Reason)> {
    let (mut least, mut warm): (Best<T>, Best<T>) = (None, None);
    for (which, candidate) in candidates {
        let wins =
            |best: &Best<T>| best.as_ref().is_none_or(|(_, best)| cost(routing, &candidate) < cost(routing, best));
        if candidate.warm && wins(&warm) {
            warm = Some((which, candidate));
        }
        if wins(&least) {
            least = Some((which, candidate));
        }
    }
    let (which, least) = least?;
    let stays = |warm: &Candidate| {
        let leave = routing.leave_warm_after.as_secs_f64();
        warm.reluctant == least.reluctant && warm.first_token() - least.first_token() <= leave
    };
    match warm.filter(|(_, warm)| routing.policy == RoutingPolicy::PrefixSticky && stays(warm)) {
        Some((warm, _)) => Some((warm, Reason::Sticky)),
        None => Some((which, Reason::Least)),
    }
}

/// What is compared, the most important first.
fn cost(routing: &Routing, candidate: &Candidate) -> (bool, f64, f64) {
    let first_token = candidate.first_token();
    let (first, second) = match routing.policy {
        RoutingPolicy::LeastActive => (candidate.load(), first_token),
        RoutingPolicy::PrefixSticky | RoutingPolicy::LeastPrefill => ((first_token / SAME).floor(), candidate.load()),
    };
    (candidate.reluctant, first, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const IDLE: Candidate =
        Candidate { unread: 0, uncached: 1000, warm: false, active: 0, limit: 100, rate: 1000.0, reluctant: false };
    const WARM: Candidate = Candidate { uncached: 100, warm: true, ..IDLE };

    fn by(policy: RoutingPolicy) -> Routing {
        Routing { policy, leave_warm_after: Duration::from_millis(500), ..Routing::default() }
    }

    fn chosen(routing: &Routing, candidates: &[Candidate]) -> Option<(usize, Reason)> {
        choose(routing, candidates.iter().copied().enumerate())
    }

    fn sticky(candidates: &[Candidate]) -> Option<(usize, Reason)> {
        chosen(&by(RoutingPolicy::PrefixSticky), candidates)
    }

    #[test]
    fn a_warm_replica_is_kept_until_a_cold_one_answers_sooner_by_what_was_set() {
        assert_eq!(sticky(&[]), None);
        assert_eq!(sticky(&[IDLE, WARM]), Some((1, Reason::Sticky)));
        let busy = |unread| Candidate { unread, ..WARM };
        assert_eq!(sticky(&[IDLE, busy(1400)]), Some((1, Reason::Sticky)), "0.5 s later");
        assert_eq!(sticky(&[IDLE, busy(1401)]), Some((0, Reason::Least)), "more than 0.5 s later");
        assert_eq!(
            sticky(&[busy(900), IDLE, busy(200), busy(300)]),
            Some((2, Reason::Sticky)),
            "the least busy warm one"
        );
        let slow = Candidate { rate: 100.0, ..busy(200) };
        assert_eq!(sticky(&[IDLE, slow]), Some((0, Reason::Least)), "it reads too slowly");
    }

    #[test]
    fn without_a_warm_one_the_least_prompt_decides_then_open_requests() {
        let busy = |unread, active| Candidate { unread, active, ..IDLE };
        assert_eq!(sticky(&[busy(500, 0), busy(100, 9)]), Some((1, Reason::Least)));
        assert_eq!(sticky(&[busy(100, 9), busy(100, 3), busy(100, 4)]), Some((1, Reason::Least)));
        let some_read = Candidate { uncached: 600, ..busy(100, 0) };
        assert_eq!(
            sticky(&[busy(0, 0), some_read]),
            Some((1, Reason::Least)),
            "what it has read counts although it is not enough"
        );
        let small = Candidate { active: 2, limit: 4, ..IDLE };
        let least_active = by(RoutingPolicy::LeastActive);
        let large = busy(5000, 10);
        assert_eq!(chosen(&least_active, &[small, large]), Some((1, Reason::Least)), "10 of 100 is less than 2 of 4");
        let least_prefill = by(RoutingPolicy::LeastPrefill);
        assert_eq!(chosen(&least_prefill, &[Candidate { unread: 950, ..WARM }, IDLE]), Some((1, Reason::Least)));
    }

    #[test]
    fn a_reluctant_one_is_taken_only_alone() {
        let reluctant = Candidate { reluctant: true, ..WARM };
        assert_eq!(sticky(&[reluctant, Candidate { unread: 99_999, ..IDLE }]), Some((1, Reason::Least)));
        assert_eq!(sticky(&[reluctant]), Some((0, Reason::Sticky)));
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u64..20_000, 0u64..5_000, any::<bool>(), 0u32..50, 1u32..100, 1u32..20_000, any::<bool>());
        prop::collection::vec(
            one.prop_map(|(unread, uncached, warm, active, limit, rate, reluctant)| {
                let rate = f64::from(rate);
                Candidate { unread, uncached, warm, active, limit, rate, reluctant }
            }),
            1..12,
        )
    }

    proptest! {
        /// Nobody waits for a warm cache longer than was set, whoever is there; a sticky choice is a warm one; and among
        /// warm ones it is (nearly) the earliest.
        #[test]
        fn sticking_costs_at_most_what_was_set(candidates in candidates(), leave in 0u64..2_000) {
            let routing = Routing { leave_warm_after: Duration::from_millis(leave), ..by(RoutingPolicy::PrefixSticky) };
            let (place, reason) = chosen(&routing, &candidates).unwrap();
            let taken = candidates[place];
            let willing = candidates.iter().any(|candidate| !candidate.reluctant);
            prop_assert!(!taken.reluctant || !willing);
            let peers = candidates.iter().filter(|candidate| candidate.reluctant == taken.reluctant);
            let earliest = peers.map(Candidate::first_token).fold(f64::INFINITY, f64::min);
            let most = if reason == Reason::Sticky { leave as f64 / 1000.0 + SAME } else { SAME };
            prop_assert!(taken.first_token() - earliest <= most + 1e-9, "{taken:?} {earliest}");
            prop_assert!(reason == Reason::Least || taken.warm);
        }

        /// The order in which replicas are looked at decides between equals only.
        #[test]
        fn order_decides_between_equals_only(candidates in candidates(), policy in 0..3, by_places in any::<prop::sample::Index>()) {
            let routing = by([RoutingPolicy::PrefixSticky, RoutingPolicy::LeastPrefill, RoutingPolicy::LeastActive][policy as usize]);
            let mut turned = candidates.clone();
            turned.rotate_left(by_places.index(candidates.len()));
            let (a, why_a) = chosen(&routing, &candidates).unwrap();
            let (b, why_b) = chosen(&routing, &turned).unwrap();
            if why_a == why_b {
                prop_assert_eq!(cost(&routing, &candidates[a]), cost(&routing, &turned[b]));
            }
        }
    }
}

//! What clients got compared with what the log says, folded by the real line.

use std::collections::BTreeMap;

use ledger::ids::{EventId, TenantId};
use ledger::tokens::TokenCounts;
use schemas::event::{Event, RequestFinished, TokensCounted};
use schemas::mark::Mark;
use schemas::topic::{REQUESTS, TOKENS};

use crate::consume::Record;
use crate::line::{LineState, Outcome};
use crate::simulation::{Counted, FOREVER, Gateway, SimLog, check};

/// One gateway and a log whose chance begins with `seed`.
pub(crate) fn world(seed: u64) -> Gateway {
    Gateway::new(0, SimLog::new(seed))
}

/// What must hold of the log as it stands.
pub(crate) trait Promises {
    /// Every promise to clients.
    fn check(&self);
    /// The own spend that no balance shows is all there is; a balance up to the log's end takes all of it.
    fn check_spend(&self, exact: bool);
}

impl Promises for Gateway {
    fn check(&self) {
        let folded = fold(&self.log);
        let counted = |event: &TokensCounted| Counted {
            request: event.request_id.0.as_u128(),
            delta: event.delta().unwrap(),
            cumulative: event.cumulative().unwrap(),
            requests: event.requests as u64,
            last: event.last,
        };
        let counted: Vec<_> = folded.tokens.iter().map(counted).collect();
        assert_eq!(check(&self.truth, &counted), Ok(()));
        for id in self.truth.keys() {
            let ends = folded.requests.iter().filter(|event| event.request_id.0.as_u128() == *id).count();
            assert_eq!(ends, counted.iter().filter(|count| count.request == *id && count.last).count(), "{id}");
        }
    }

    fn check_spend(&self, exact: bool) {
        let folded = fold(&self.log);
        let spool = self.spool().unwrap();
        for tenant in ["a", "b", "c"] {
            let tenant: TenantId = tenant.parse().unwrap();
            let mut sum = TokenCounts::default();
            for event in folded.tokens.iter().filter(|event| event.tenant_id == tenant) {
                sum = sum.checked_add(event.delta().unwrap()).unwrap();
            }
            let spend = spool.total_spend(&tenant, FOREVER.0, FOREVER.1).counts;
            let total = |counts: TokenCounts| counts.input + counts.cached_input + counts.output + counts.reasoning;
            if exact {
                assert_eq!(spend, sum, "{tenant}");
            } else {
                assert!(total(spend) >= total(sum), "{tenant}: {spend:?} is less than {sum:?}");
            }
            spool.balance_seen(&tenant, FOREVER.0, FOREVER.1, i64::MAX);
            assert_eq!(total(spool.total_spend(&tenant, FOREVER.0, FOREVER.1).counts), 0, "{tenant}");
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub tokens: Vec<TokensCounted>,
    pub requests: Vec<RequestFinished>,
    pub marks: Vec<(String, i32, Mark)>,
    pub duplicates: usize,
}

/// Folds the whole log with the real line; a hole or a conflict fails.
pub(crate) fn fold(log: &SimLog) -> Folded {
    let mut folded = Folded::default();
    for ((topic, partition), log) in &log.lock().partitions {
        let (marks, duplicates) = match topic.as_str() {
            TOKENS => line(&log.records, &mut folded.tokens),
            REQUESTS => line(&log.records, &mut folded.requests),
            other => panic!("{other}"),
        };
        folded.marks.extend(marks.into_iter().map(|mark| (topic.clone(), *partition, mark)));
        folded.duplicates += duplicates;
    }
    folded
}

fn line<E: Event + std::fmt::Debug>(records: &[Record], into: &mut Vec<E>) -> (Vec<Mark>, usize) {
    let mut line = LineState::default();
    let mut seen = BTreeMap::<(_, u64), EventId>::new();
    let (mut marks, mut duplicates) = (Vec::new(), 0);
    for record in records {
        let taken = record.lend(|lent| line.step::<E>(lent));
        match taken.expect("no hole").outcome {
            Outcome::Folded(event) => {
                let envelope = event.envelope();
                let watermark = line.sources[&envelope.source].watermark;
                assert!(envelope.occurred_at >= watermark, "a watermark was broken");
                assert!(seen.insert((envelope.source, envelope.seq as u64), envelope.event_id).is_none());
                into.push(event);
            }
            Outcome::Duplicate { source, seq, event_id } => {
                duplicates += 1;
                assert_eq!(seen.get(&(source, seq)).copied(), event_id, "a resend is the same event");
            }
            Outcome::Dead(reason) => panic!("{reason}"),
            Outcome::Mark(mark) => marks.push(mark),
        }
    }
    (marks, duplicates)
}

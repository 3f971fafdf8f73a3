//! What the answers to a driver's calls mean.

use sql::{Position, Proof};

use super::{
    BACKOFF_MS, Base, Cut, Driver, INSERT_WITHIN_MS, Phase, RETRIES, RETRY_MARGIN_MS, STOPPED_MS, other_chain, same,
};
use crate::call::{Answer, Event, Refused, Standstill, StoreError};
use crate::chunk::{OpenChunk, proven};
use crate::event::FoldEvent;

impl<E: FoldEvent> Driver<E> {
    /// Takes what came of the call.
    pub(crate) fn on(&mut self, answer: Answer, now_ms: u64) -> Event<E::Row> {
        self.asked = false;
        match answer {
            Answer::Proof(Ok(proof)) => self.proven(&proof, now_ms),
            Answer::Proof(Err(StoreError::Damaged(why))) => {
                self.stand_still(Standstill::Damaged(why.clone()));
                self.begin_anew = true;
                self.doubt(now_ms, STOPPED_MS);
                Event::Failed("damaged", why)
            }
            Answer::EventIds(Ok(found)) => {
                if let Some(mut closed) = self.closed.take() {
                    closed.settle(&found);
                    self.cut(closed);
                }
                Event::Nothing
            }
            Answer::Copied(Ok(())) => {
                if let Some(cut) = &mut self.cut {
                    cut.copied = true;
                }
                self.phase = Phase::Insert;
                Event::Nothing
            }
            Answer::Copied(Err(why)) => self.failed("dead_letters", why, now_ms),
            Answer::Inserted(Ok(())) if left_out!(ReadBack) => self.believe(now_ms),
            Answer::Inserted(Err(Refused::Unknown(_))) if left_out!(DoubtAfterError) => self.believe(now_ms),
            Answer::Inserted(Ok(())) => {
                self.phase = Phase::ReadBack;
                Event::Nothing
            }
            Answer::Position(Ok(position)) => self.read_back(position, now_ms),
            Answer::Inserted(Err(Refused::Malformed(why))) => {
                self.stand_still(Standstill::Damaged(format!("a chunk contradicts itself (a bug in Tollgate): {why}")));
                self.begin_anew = true;
                self.doubt(now_ms, STOPPED_MS);
                Event::Failed("malformed", why)
            }
            Answer::Inserted(Err(refused)) => {
                let kind = if refused == Refused::Fence { "fence" } else { "insert" };
                self.failed(kind, refused.to_string(), now_ms)
            }
            Answer::EventIds(Err(_)) if left_out!(NoOutcomeOfTheMoment) => {
                self.on(Answer::EventIds(Ok(vec![])), now_ms)
            }
            Answer::EventIds(Err(error)) => {
                // What was closed is read again: it is not known what of it counts.
                self.begin_anew = true;
                self.closed = None;
                self.failed("event_ids", error.to_string(), now_ms)
            }
            Answer::Proof(Err(error)) => self.failed("proof", error.to_string(), now_ms),
            Answer::Position(Err(error)) => self.failed("read_back", error.to_string(), now_ms),
        }
    }

    fn failed(&mut self, kind: &'static str, why: String, now_ms: u64) -> Event<E::Row> {
        let (first, last) = BACKOFF_MS;
        let wait = first.saturating_mul(1 << self.failures.min(10)).min(last);
        self.failures = self.failures.saturating_add(1);
        self.doubt(now_ms, wait);
        Event::Failed(kind, why)
    }

    fn proven(&mut self, proof: &Proof, now_ms: u64) -> Event<E::Row> {
        let Some(base) = self.base.filter(|_| !self.begin_anew) else {
            return self.begin(proof, now_ms);
        };
        if proof.position < base.position {
            // Dropped, or restored from an older backup: what is missing is read again.
            return self.begin(proof, now_ms);
        }
        if proof.position == base.position {
            if !same(proof.chain, base.chain) {
                return self.differs(proof.position, now_ms);
            }
            self.heard(proof.position, proof.chain, proof.now_ms, now_ms);
            match &mut self.cut {
                Some(cut) => {
                    cut.retry = 0;
                    self.phase = Phase::Copy;
                }
                None => {
                    self.failures = 0;
                    self.phase = Phase::Read;
                }
            }
            return Event::Proven(proof.position);
        }
        match self.cut.take_if(|cut| cut.rows.end == proof.position) {
            Some(cut) if same(cut.rows.chain, proof.chain) => self.written(cut, proof.now_ms, now_ms),
            Some(_) => self.differs(proof.position, now_ms),
            None => self.foreign(proof, now_ms),
        }
    }

    fn differs(&mut self, position: i64, now_ms: u64) -> Event<E::Row> {
        let why = other_chain(position);
        let said = why.to_string();
        self.stand_still(why);
        self.begin_anew = true;
        self.doubt(now_ms, STOPPED_MS);
        Event::Failed("chain", said)
    }

    /// Another's cut won: what it covers is dropped here.
    fn foreign(&mut self, proof: &Proof, now_ms: u64) -> Event<E::Row> {
        // A line that another one always outruns has nothing of its own that would end its failures.
        self.failures = 0;
        if proof.position < self.tip.position || self.blocked.is_some() {
            self.begin(proof, now_ms);
        } else {
            (self.cut, self.closed) = (None, None);
            self.open = OpenChunk::at(proof.position);
            self.heard(proof.position, proof.chain, proof.now_ms, now_ms);
            self.phase = Phase::Read;
            if self.tip.position == proof.position && !same(self.tip.chain.0, proof.chain) {
                return self.differs(proof.position, now_ms);
            }
        }
        Event::Foreign(proof.position)
    }

    fn read_back(&mut self, position: Position, now_ms: u64) -> Event<E::Row> {
        let Some((first, end)) = self.cut.as_ref().map(|cut| (cut.rows.first, cut.rows.end)) else {
            self.looked(position, now_ms);
            return Event::Nothing;
        };
        // Where data were dropped or restored beneath this line, a chunk may be the last one and not follow the others.
        let is_mine = position.position == end || (left_out!(ForeignCut) && position.position > first);
        if is_mine
            && (position.offsets == end || left_out!(ForeignCut))
            && let Some(cut) = self.cut.take()
        {
            return self.written(cut, position.now_ms, now_ms);
        }
        if position.position != first {
            self.phase = Phase::Doubt { not_before_ms: now_ms };
            return Event::Nothing;
        }
        let deadline = self.base.map_or(i64::MIN, |base| base.now_ms.saturating_add(INSERT_WITHIN_MS));
        let lasts = position.now_ms.saturating_add(RETRY_MARGIN_MS) < deadline;
        match &mut self.cut {
            Some(cut) if lasts && cut.retry < RETRIES && !left_out!(RetryToken) => {
                cut.retry += 1;
                self.phase = Phase::Insert;
            }
            _ => self.phase = Phase::Doubt { not_before_ms: now_ms },
        }
        Event::Torn
    }

    /// What no real line does: takes its chunk for written without looking.
    fn believe(&mut self, now_ms: u64) -> Event<E::Row> {
        match (self.cut.take(), self.base) {
            (Some(cut), Some(base)) => self.written(cut, base.now_ms, now_ms),
            _ => Event::Nothing,
        }
    }

    /// ClickHouse was asked before an insert.
    fn looked(&mut self, found: Position, now_ms: u64) {
        match self.base {
            Some(base) if (found.position, found.offsets) == (base.position, base.position) => {
                self.heard(base.position, base.chain, found.now_ms, now_ms);
                self.phase = Phase::Read;
            }
            _ => self.phase = Phase::Doubt { not_before_ms: now_ms },
        }
    }

    fn written(&mut self, cut: Cut<E::Row>, clickhouse_ms: i64, now_ms: u64) -> Event<E::Row> {
        self.heard(cut.rows.end, cut.rows.chain, clickhouse_ms, now_ms);
        self.failures = 0;
        self.phase = Phase::Read;
        Event::Written(cut.rows)
    }

    fn heard(&mut self, position: i64, chain: [u8; 32], clickhouse_ms: i64, now_ms: u64) {
        self.base = Some(Base { position, chain, now_ms: clickhouse_ms, heard_ms: now_ms });
    }

    /// Begins with what was proven; the log is read from there.
    fn begin(&mut self, proof: &Proof, now_ms: u64) -> Event<E::Row> {
        if E::BALANCED && !self.asked_totals && proof.position > self.counted {
            self.reload_balances();
            self.doubt(now_ms, 0);
            return Event::Nothing;
        }
        self.counted = self.counted.max(proof.position);
        self.heard(proof.position, proof.chain, proof.now_ms, now_ms);
        self.tip = proven(proof);
        self.open = OpenChunk::at(proof.position);
        (self.cut, self.closed, self.blocked) = (None, None, None);
        // Totals that were asked for since are another proof's.
        self.with_totals &= !self.asked_totals;
        self.begin_anew = self.with_totals;
        self.seek = Some(proof.position);
        self.phase = Phase::Read;
        Event::Proven(proof.position)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemas::event::TokensCounted;
    use sql::OutcomeCounts;

    use super::*;
    use crate::driver::IDLE_MS;
    use crate::settings::Settings;

    #[test]
    fn a_line_that_another_one_always_outruns_does_not_fail_for_ever() {
        let mut driver = Driver::<TokensCounted>::new(0, Settings::default().cuts(1));
        let proof = |position| Proof {
            position,
            log_time_ms: 0,
            chain: [0; 32],
            sources: BTreeMap::new(),
            counts: OutcomeCounts::default(),
            now_ms: 0,
        };
        let mut now_ms = 0;
        let made = Err(StoreError::Unavailable("the tables were missing and have been made".into()));
        for (answer, fails) in [(made, true), (Ok(proof(0)), true), (Ok(proof(7)), false)] {
            assert!(driver.next(now_ms).is_some());
            driver.on(Answer::Proof(answer), now_ms);
            assert_eq!(driver.has_failed(), fails);
            now_ms += IDLE_MS;
        }
    }
}

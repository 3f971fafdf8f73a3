//! A simulated log, and what must come of it.

use std::collections::{BTreeMap, BTreeSet};

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId, SpoolId};
use schemas::codec::encode;
use schemas::event::TokensCounted;
use schemas::mark::Mark;
use stream::consume::Record;
use uuid::Uuid;

use super::{NOW, START_MS};

pub(super) fn source(n: u8) -> SourceId {
    SourceId(Uuid::from_u128(u128::from(n) + 1))
}

pub(super) fn count(of: u8, seq: i64, event: u128, output: i64) -> TokensCounted {
    TokensCounted {
        event_id: EventId(Uuid::from_u128(event)),
        source: source(of),
        seq,
        occurred_at: NOW,
        tenant_id: if of == 0 { "acme" } else { "bolt" }.parse().unwrap(),
        request_id: RequestId(Uuid::from_u128(9)),
        attempt: 0,
        project_id: "search".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(4)),
        model: "llama".parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "gpu-1".into(),
        endpoint: "completions".into(),
        input: 0,
        cached_input: 0,
        output,
        reasoning: 0,
        input_cumulative: 0,
        cached_input_cumulative: 0,
        output_cumulative: output,
        reasoning_cumulative: 0,
        requests: 1,
        last: false,
        estimated: false,
        end_reason: None,
    }
}

/// A log, and what must come of it.
#[derive(Debug, Default, Clone)]
pub(super) struct Log {
    pub(super) records: Vec<Record>,
    pub(super) next: i64,
    pub(super) folded: BTreeSet<i64>,
    pub(super) dead: BTreeMap<i64, &'static str>,
    pub(super) output: i64,
}

impl Log {
    pub(super) fn push(&mut self, key: Option<&str>, value: Option<Vec<u8>>, headers: Vec<(String, Vec<u8>)>) -> i64 {
        let offset = self.next;
        let log_time_ms = START_MS + (offset * 37) % 1000 + offset;
        self.records.push(Record { offset, log_time_ms, key: key.map(|k| k.as_bytes().to_vec()), value, headers });
        self.next = offset + 1;
        offset
    }

    pub(super) fn put(&mut self, event: &TokensCounted) -> i64 {
        self.push(Some(event.tenant_id.as_str()), Some(encode(event).unwrap()), vec![])
    }

    /// Each step: which source, and what it does.
    pub(super) fn of(steps: &[(u8, u8)]) -> Self {
        let mut log = Self::default();
        let mut sent: BTreeMap<u8, Vec<TokensCounted>> = BTreeMap::new();
        for (at, &(of, what)) in steps.iter().enumerate() {
            let of = of % 3;
            let before = sent.entry(of).or_default();
            let seq = before.len() as i64 + 1;
            let earlier = before.get(at % before.len().max(1)).cloned();
            match (what % 10, earlier) {
                // A resend.
                (0 | 1, Some(event)) => _ = log.put(&event),
                (2, Some(event)) => {
                    let offset = log.put(&TokensCounted { event_id: EventId(Uuid::from_u128(7 << 64)), ..event });
                    log.dead.insert(offset, "seq_conflict");
                }
                (3, _) => {
                    let offset = log.push(Some("acme"), Some(b"not avro".to_vec()), vec![]);
                    log.dead.insert(offset, "undecodable");
                }
                (4, _) => {
                    let spool = SpoolId(Uuid::nil());
                    let mark =
                        Mark::Heartbeat { spool, source: source(of), watermark: NOW, seq_high: before.len() as u64 };
                    let headers = mark.headers().into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes()));
                    log.push(None, None, headers.collect());
                }
                // A transaction's mark: an offset without a record.
                (5, _) if !log.records.is_empty() => log.next += 1,
                (6, _) => {
                    // It takes its number all the same: a resend of it is known.
                    let event = count(of, seq, at as u128 + 1000, -1);
                    let offset = log.put(&event);
                    log.dead.insert(offset, "out_of_bounds");
                    before.push(event);
                }
                _ => {
                    let event = count(of, seq, at as u128 + 1000, at as i64 + 1);
                    let offset = log.put(&event);
                    log.folded.insert(offset);
                    log.output += event.output;
                    before.push(event);
                }
            }
        }
        // An offset without a record is seen only when one follows.
        log.push(Some("acme"), Some(b"the end".to_vec()), vec![]);
        log.dead.insert(log.next - 1, "undecodable");
        log
    }

    pub(super) fn from(&self, offset: i64) -> Option<&Record> {
        self.records.get(self.records.partition_point(|record| record.offset < offset))
    }
}

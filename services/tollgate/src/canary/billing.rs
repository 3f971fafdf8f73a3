//! A client of billing, as a tenant would write one: its requests and its usage since some moment.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use ledger::time::{HOUR_MICROS, Micros, Slot, TimeError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::client::Client;
use super::counts::Counts;
use super::tally::Reading;

/// So far back a reading reaches at least: the clocks of gateways may be behind, and what comes late is still looked at.
const BACK: i64 = HOUR_MICROS;
/// And so far ahead: those of gateways may be ahead.
const AHEAD: i64 = 24 * HOUR_MICROS;
/// The list reaches a little further back than the sum, since it is by the ends of requests: what has an end has its counts.
const MARGIN: i64 = 60_000_000;
/// The most requests of one page.
const PAGE: usize = 500;
/// The most pages of one reading: that many requests within an hour are no canary's.
const PAGES: usize = 20;

/// A span of whole slots around a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Its first moment.
    pub(crate) from: Micros,
    to: Micros,
}

impl Span {
    /// Periods, their ends and time zones do not matter: both ends are said.
    pub(crate) fn around(now: Micros) -> Self {
        let slot = |time: i64| Slot::of(Micros(time)).start();
        Self { from: slot(now.0.saturating_sub(BACK)), to: slot(now.0.saturating_add(AHEAD)) }
    }

    fn query(self) -> Result<String, TimeError> {
        let text = |time: Micros| Ok(time.to_utc()?.to_rfc3339_opts(SecondsFormat::Secs, true));
        Ok(format!("from={}&to={}", text(self.from)?, text(self.to)?))
    }
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Ended>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Ended {
    id: Uuid,
    ended_at: DateTime<Utc>,
    /// None while none of its counts is folded: they are all zero then.
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Deserialize)]
struct Usage {
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(flatten)]
    counts: Counts,
    /// The correction that it is.
    adjustment: Option<serde::de::IgnoredAny>,
}

/// Reads what there is: the list first, so that the sum has all that it has.
pub(crate) async fn read(client: &Client, base: &str, span: Span) -> Result<Reading, String> {
    let api = format!("{}/api/v1", base.trim_end_matches('/'));
    let listed = requests(client, &api, Micros(span.from.0.saturating_sub(MARGIN))).await?;
    let query = span.query().map_err(|error| error.to_string())?;
    let usage: Usage = ask(client, &format!("{api}/usage?{query}")).await?;
    let metered = usage.data.iter().filter(|row| row.adjustment.is_none());
    Ok(Reading { listed, usage: metered.fold(Counts::default(), |sum, row| sum.plus(row.counts)) })
}

async fn requests(client: &Client, api: &str, from: Micros) -> Result<BTreeMap<Uuid, Counts>, String> {
    let mut listed = BTreeMap::new();
    let mut url = format!("{api}/requests?limit={PAGE}");
    for _ in 0..PAGES {
        let page: Page = ask(client, &url).await?;
        let all = page.data.len();
        let wanted = page.data.into_iter().filter(|ended| Micros::from(ended.ended_at) >= from);
        let before = listed.len();
        listed.extend(wanted.map(|ended| (ended.id, used(ended.counts))));
        match page.next_cursor {
            // They come the latest first.
            Some(cursor) if listed.len() == before + all => {
                url = format!("{api}/requests?limit={PAGE}&cursor={cursor}")
            }
            _ => return Ok(listed),
        }
    }
    Err(format!(
        "its tenant has more than {} requests within an hour: give the canary a tenant of its own",
        PAGE * PAGES
    ))
}

/// One that used nothing is not counted among requests, here as in usage.
fn used(tokens: Counts) -> Counts {
    Counts { requests: i64::from(tokens.any_above_zero()), ..tokens }
}

async fn ask<T: DeserializeOwned>(client: &Client, url: &str) -> Result<T, String> {
    let answer = client.get(url).await.map_err(|why| format!("billing: {why}"))?;
    if answer.status != 200 {
        let problem: Option<serde_json::Value> = serde_json::from_str(&answer.text).ok();
        let code = problem.and_then(|problem| problem["code"].as_str().map(|code| format!(" {code}")));
        return Err(format!("billing answered {}{}", answer.status, code.unwrap_or_default()));
    }
    serde_json::from_str(&answer.text).map_err(|error| format!("billing's answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Micros {
        text.parse::<DateTime<Utc>>().unwrap().into()
    }

    #[test]
    fn a_span_is_whole_slots_and_does_not_mind_ends_of_months() {
        let span = Span::around(at("2026-12-01T00:07:13.000001Z"));
        assert_eq!(span.query().unwrap(), "from=2026-11-30T23:00:00Z&to=2026-12-02T00:00:00Z");
        let span = Span::around(at("2026-12-01T00:15:00Z"));
        assert_eq!(span.query().unwrap(), "from=2026-11-30T23:15:00Z&to=2026-12-02T00:15:00Z");
        assert!(Span::around(Micros(i64::MAX)).query().is_err());
    }

    #[test]
    fn rows_are_read_as_billing_writes_them() {
        let usage = r#"{"tenant":"canary","data":[{"tokens":9,"input":5,"cached_input":0,"output":4,"reasoning":0,"requests":1},
                       {"tokens":-3,"input":-3,"cached_input":0,"output":0,"reasoning":0,"requests":0,"adjustment":{"id":"a","reason":"r"}}]}"#;
        let usage: Usage = serde_json::from_str(usage).unwrap();
        assert_eq!(usage.data.iter().map(|row| row.adjustment.is_some()).collect::<Vec<_>>(), [false, true]);
        assert_eq!(usage.data[1].counts.input, -3);
        let page = r#"{"data":[{"id":"00000000-0000-0000-0000-000000000001","ended_at":"2026-12-01T00:00:00.5Z","input":5,"cached_input":0,"output":4,"reasoning":0},
                      {"id":"00000000-0000-0000-0000-000000000002","ended_at":"2026-12-01T00:00:00Z"}],"next_cursor":null}"#;
        let page: Page = serde_json::from_str(page).unwrap();
        let used: Vec<_> = page.data.iter().map(|ended| super::used(ended.counts)).collect();
        assert_eq!(used, [Counts { input: 5, output: 4, requests: 1, ..Counts::default() }, Counts::default()]);
    }
}

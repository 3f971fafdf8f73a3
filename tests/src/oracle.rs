//! The oracle: what clients saw and what engines did, held to what was billed and what every interface says.

use std::collections::BTreeMap;
use std::time::Duration;

use embedded::vllm::RequestRecord;
use rust_decimal::Decimal;

use crate::figures::{ByModel, Counts, cost};
use crate::system::System;
use crate::tenants::{TENANTS, prices};
use crate::traffic::{Seen, Shape};
use crate::wait::until;

/// What each engine knows of each request, by the gateway's id of it: the id that the gateway sent along.
pub fn engines(system: &System) -> BTreeMap<String, Vec<RequestRecord>> {
    let mut engines = BTreeMap::<String, Vec<RequestRecord>>::new();
    for record in system.simulators.values().flat_map(|simulator| simulator.requests()) {
        let id = record.request_id.clone().expect("the gateway sends an id");
        // Each attempt has the request's id in front.
        engines.entry(id.chars().take(36).collect()).or_default().push(record);
    }
    engines
}

/// Holds one request to what its client saw and its engine did.
fn check_request(seen: &Seen, billed: Counts, engine: &[RequestRecord]) {
    let shown = || format!("{seen:?}\nbilled {billed:?}\nengine {engine:?}");
    let generated: u64 = engine.iter().map(|record| record.generated_tokens).sum();
    let wire: u64 = engine.iter().map(|record| record.wire_tokens).sum();
    assert!(seen.tokens <= billed.generated(), "a client saw more than was billed: {}", shown());
    assert!(billed.generated() <= wire, "more was billed than reached the gateway: {}", shown());
    assert!(wire <= generated, "{}", shown());
    let last = engine.last();
    let complete = last.is_some_and(|record| record.outcome == "complete" && record.fault.is_none());
    if seen.whole && complete && seen.status == Some(200) && seen.code.is_none() {
        let record = last.expect("an engine answered");
        assert_eq!(billed.requests, 1, "{}", shown());
        assert_eq!(billed.generated(), record.generated_tokens, "{}", shown());
        assert_eq!(billed.prompt(), record.prompt_tokens, "{}", shown());
        if let Some(told) = seen.usage {
            assert_eq!(billed.prompt(), told.prompt, "{}", shown());
            assert_eq!(billed.cached_input, told.cached, "{}", shown());
            assert_eq!(billed.generated(), told.completion, "{}", shown());
            assert_eq!(billed.reasoning, told.reasoning, "{}", shown());
        }
    } else if seen.tokens > 0 && !matches!(seen.plan.shape, Shape::Fault("no_usage", _)) {
        // Cut short after its first byte: its input is billed too.
        assert_eq!(billed.prompt(), engine.iter().map(|record| record.prompt_tokens).max().unwrap_or(0), "{}", shown());
    }
    if wire == 0 && seen.status.is_none_or(|status| status >= 400) {
        assert_eq!(billed.generated() + billed.prompt(), 0, "no answer, no bill: {}", shown());
    }
}

/// Holds every request to what was seen of it, and gives the ids of those that were admitted.
pub async fn check_requests(system: &System, seen: &[Seen]) {
    let (billed, endings, engines) = (system.billed().await, system.endings().await, engines(system));
    for (id, reasons) in &endings {
        assert_eq!(reasons.len(), 1, "the request {id} ended {reasons:?}");
    }
    for seen in seen.iter().filter(|seen| seen.request_id.is_some() && !seen.is_refused()) {
        let id = seen.request_id.as_deref().expect("an id");
        let engine = engines.get(id).map(Vec::as_slice).unwrap_or_default();
        check_request(seen, billed.get(id).copied().unwrap_or_default(), engine);
        assert!(engine.is_empty() || endings.contains_key(id), "{id} was served and is not recorded: {seen:?}");
    }
    // Also those whose client never learned their id.
    for (id, records) in &engines {
        let billed = billed.get(id).copied().unwrap_or_default();
        let wire: u64 = records.iter().map(|record| record.wire_tokens).sum();
        assert!(billed.generated() <= wire, "{id}: billed {billed:?}, engine {records:?}");
        assert!(endings.contains_key(id), "{id} was served and is not recorded: {records:?}");
    }
    // A request that was let in and had not reached an engine when the gateway was killed is recorded, and costs nothing.
    for (id, counts) in billed.iter().filter(|(id, _)| !engines.contains_key(*id)) {
        assert_eq!(*counts, Counts::default(), "{id} was billed, and no engine knows it");
    }
}

/// Raw rows = aggregates = balances = usage, and each offset has one outcome; gives them.
pub async fn check_figures(system: &System) -> ByModel {
    let raw = system.raw().await;
    assert_eq!(system.aggregates().await, raw, "aggregates and rows differ");
    let usage = until("usage to be the rows", Duration::from_secs(120), async || {
        let usage = system.usage(&TENANTS).await;
        if usage == raw { Ok(usage) } else { Err(usage) }
    })
    .await;
    until("balances to be the rows", Duration::from_secs(120), async || {
        let balances = system.balances(&TENANTS).await;
        if balances == raw { Ok(()) } else { Err((balances, raw.clone())) }
    })
    .await;
    let (offsets, outcomes) = system.outcomes().await;
    assert_eq!(offsets, outcomes, "each offset has one outcome");
    usage
}

/// The cost of it all, calculated by integers in the test, is what the API charges; and the previews add up to it.
pub async fn check_money(system: &System, usage: &ByModel) {
    let expected = cost(usage, &prices());
    let (mut charged, mut previewed) = (Decimal::ZERO, Decimal::ZERO);
    for tenant in TENANTS {
        let range = crate::figures::around_now();
        let costs = system.api(&format!("costs?tenant={tenant}&{range}")).await;
        assert_eq!(costs["unrated"].as_array().map(Vec::len), Some(0), "{costs}");
        charged += costs["charged"].as_str().unwrap().parse::<Decimal>().unwrap();
        let bill = system.api(&format!("invoices/preview?tenant={tenant}")).await;
        let amount = |value: &serde_json::Value| value.as_str().unwrap().parse::<Decimal>().unwrap();
        let lines: Decimal = bill["lines"].as_array().unwrap().iter().map(|line| amount(&line["amount"])).sum();
        assert_eq!(lines + amount(&bill["rounding"]), amount(&bill["total"]), "{bill}");
        previewed += amount(&bill["exact"]);
    }
    assert_eq!(charged.normalize(), expected);
    assert_eq!(previewed.normalize(), expected);
}

/// The ids that clients were given of requests which are to be recorded.
pub fn admitted(seen: &[Seen]) -> Vec<String> {
    seen.iter().filter(|seen| !seen.is_refused()).filter_map(|seen| seen.request_id.clone()).collect()
}

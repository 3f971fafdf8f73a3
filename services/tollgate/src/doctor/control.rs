//! What doctor says of the documents in `control`: models that nobody serves or that have no price, replicas that are not well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ledger::control::{ControlState, Document, Kind, Model, Tenant};
use ledger::ids::ModelId;
use ledger::money::Currency;
use ledger::price::PriceKey;
use ledger::time::{Micros, Slot};
use ledger::tokens::TokenClass;
use runtime::{Shutdown, SystemClock};
use stream::control::ControlReader;
use stream::kafka::KafkaSettings;

use super::report::Report;
use crate::web;

/// How long reading the whole log may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Reads the control log to its end.
pub(crate) async fn read(kafka: &KafkaSettings) -> Result<ControlState, String> {
    let (reader, view) = ControlReader::open(kafka, None, Arc::new(SystemClock)).map_err(|error| error.to_string())?;
    let stop = Shutdown::new();
    let waiting = async {
        let read = tokio::time::timeout(LIMIT, view.wait_caught_up()).await;
        stop.trigger();
        read.map_err(|_| format!("it was not read to its end within {} s", LIMIT.as_secs()))
    };
    let (ran, read) = tokio::join!(reader.run(stop.clone()), waiting);
    ran.map_err(|error| error.to_string())?;
    read.map(|()| view.load().state.clone())
}

/// Looks at prices and replicas of every model.
pub(crate) async fn check(report: &mut Report, state: &ControlState, now: i64) {
    let kinds = |wanted: fn(&Document) -> bool| state.iter().filter(|(_, document)| wanted(document)).count();
    report.ok(format!(
        "control is read: {} tenants, {} keys, {} models, {} replicas",
        kinds(|d| matches!(d, Document::Tenant(_))),
        kinds(|d| matches!(d, Document::ApiKey(_))),
        kinds(|d| matches!(d, Document::Model(_))),
        kinds(|d| matches!(d, Document::Replica(_))),
    ));
    prices(report, state, Slot::of(Micros(now)));
    replicas(report, state).await;
}

/// Every class of every model has a price in every currency that a tenant which may use it is charged in: usage without one is an
/// unrated line.
fn prices(report: &mut Report, state: &ControlState, now: Slot) {
    let book = match state.price_book() {
        Ok(book) => book,
        Err(error) => {
            report
                .fail(format!("the prices cannot be used: {error}"), "correct them by the billing API: /api/v1/prices");
            return;
        }
    };
    let mut missing = Vec::new();
    let models =
        state.iter().filter_map(|(id, of)| if let Document::Model(model) = of { Some((id, model)) } else { None });
    for (id, model) in models.filter_map(|(id, model)| Some((id.parse::<ModelId>().ok()?, model))) {
        for currency in currencies(state, &id, model) {
            for class in TokenClass::ALL {
                let key = PriceKey { model: id.clone(), class, currency };
                if book.price(&key, now).is_none() {
                    missing.push(format!("{} {} {}", key.model.as_str(), class.as_str(), currency.code()));
                }
            }
        }
    }
    if missing.is_empty() {
        report.ok("every model has a price for each token class, in the currency of each tenant that may use it");
    } else {
        report.fail(
            format!("prices are missing: {}", missing.join(", ")),
            "set them by the billing API (/api/v1/prices): until then this usage is served and stays unrated",
        );
    }
}

/// What tenants are charged in that may use a model.
fn currencies(state: &ControlState, id: &ModelId, model: &Model) -> BTreeSet<Currency> {
    let may_use = |tenant: &Tenant| {
        let by_model = model.plans.as_ref().is_none_or(|plans| plans.contains(&tenant.plan));
        let by_plan = match state.get(Kind::Plan, tenant.plan.as_str()) {
            Some(Document::Plan(plan)) => plan.models.as_ref().is_none_or(|models| models.contains(id)),
            _ => true,
        };
        by_model && by_plan
    };
    let tenants =
        state.iter().filter_map(|(_, of)| if let Document::Tenant(tenant) = of { Some(tenant) } else { None });
    tenants.filter(|tenant| may_use(tenant)).map(|tenant| tenant.currency).collect()
}

async fn replicas(report: &mut Report, state: &ControlState) {
    for (id, document) in state.iter() {
        let served = |model: &str| {
            state.iter().any(|(_, d)| matches!(d, Document::Replica(replica) if replica.model.as_str() == model))
        };
        match document {
            Document::Model(_) if !served(id) => report.fail(
                format!("model {id} has no replica"),
                "add one by the billing API (/api/v1/replicas), or delete the model: its requests are refused with 503",
            ),
            Document::Replica(replica) => {
                let url = format!("{}/health", replica.url.trim_end_matches('/'));
                match web::answers(&url).await {
                    Ok(()) => {
                        report.ok(format!("replica {id} ({}) is well at {}", replica.model.as_str(), replica.url))
                    }
                    Err(reason) => report.fail(
                        format!("replica {id} ({}) is not well: {url}: {reason}", replica.model.as_str()),
                        "start vLLM there, or correct the replica's url by the billing API (/api/v1/replicas)",
                    ),
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;
    use ledger::control::Write;

    #[tokio::test]
    async fn missing_prices_and_sick_replicas_are_named() {
        let mut state = ControlState::default();
        let mut put = |kind: Kind, id: &str, json: &str| {
            let document = Some(serde_json::from_str(json).unwrap());
            state.apply(&Write { kind, id: id.into(), expected_revision: 0, document }).unwrap();
        };
        put(Kind::Model, "m", r#"{"kind": "model", "version": "v1", "served_name": "m"}"#);
        put(Kind::Model, "alone", r#"{"kind": "model", "version": "v1", "served_name": "m"}"#);
        put(Kind::Replica, "r", r#"{"kind": "replica", "model": "m", "url": "http://127.0.0.1:1"}"#);
        put(
            Kind::Plan,
            "p",
            r#"{"kind": "plan", "name": "P", "requests_per_minute": null, "tokens_per_minute": null, "tokens_per_period": null, "models": null}"#,
        );
        put(
            Kind::Tenant,
            "t",
            r#"{"kind": "tenant", "name": "T", "plan": "p", "currency": "EUR", "time_zone": "UTC"}"#,
        );
        put(
            Kind::Plan,
            "one",
            r#"{"kind": "plan", "name": "P", "requests_per_minute": null, "tokens_per_minute": null, "tokens_per_period": null, "models": ["m"]}"#,
        );
        put(
            Kind::Tenant,
            "canary",
            r#"{"kind": "tenant", "name": "C", "plan": "one", "currency": "XTS", "time_zone": "UTC"}"#,
        );
        put(
            Kind::Price,
            "m-in",
            r#"{"kind": "price", "key": {"model": "m", "class": "input", "currency": "EUR"}, "from": 0, "per_million": "1"}"#,
        );
        let mut report = Report::quiet();
        check(&mut report, &state, 1_790_000_000_000_000).await;
        let said = report.text();
        assert!(
            said.contains("m output EUR") && !said.contains("m input EUR") && said.contains("alone input EUR"),
            "{said}"
        );
        assert!(said.contains("m input XTS") && !said.contains("alone input XTS"), "one may not use it: {said}");
        assert!(said.contains("replica r (m) is not well: http://127.0.0.1:1/health"), "{said}");
        assert!(said.contains("model alone has no replica"), "{said}");
        assert_eq!(report.count(Level::Fail), 3, "{said}");
    }
}

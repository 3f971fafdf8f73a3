//! The trial balance by command, over what real gateways wrote: nothing false in the midst of traffic, what is tampered with, and
//! what engines counted themselves.

use std::time::Duration;

use promises::figures::{execute, select};
use promises::oracle::admitted;
use promises::system::{MODELS, Role, System};
use promises::tenants::shop;
use promises::traffic::{plan, run};
use promises::wait::until;
use serde_json::{Value, json};

/// Long for what takes some ten seconds: clocks may be five apart, and gateways vouch now and then.
const LONG: Duration = Duration::from_secs(300);

fn report(said: &str) -> Value {
    serde_json::from_str(said).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_are_the_same_amid_traffic_and_after_it_and_a_changed_count_is_named() {
    let system = System::start(300).await;
    let keys = shop(&system).await;
    let gateway = system.url(Role::Gateway, "");
    let traffic = run(&system.client, &gateway, &keys, plan(120, keys.len(), 47), 16);
    let amid = async {
        for _ in 0..3 {
            let (code, said) = system.command(&["reconcile", "--json"]).await;
            assert_eq!(code, Some(0), "{said}");
        }
    };
    let (seen, ()) = tokio::join!(traffic, amid);
    system.settled(&admitted(&seen)).await;
    let (code, said) = system.command(&["reconcile"]).await;
    assert_eq!((code, said.matches("OK   ").count()), (Some(0), 9), "{said}");
    assert!(said.contains("nothing differs"), "{said}");

    system.stop(Role::Fold).await;
    let changed = "ALTER TABLE tokens UPDATE output = output + 1000 WHERE kind = 'data' AND requests = 1 AND output > 0 \
                   AND kafka_offset = (SELECT max(kafka_offset) FROM tokens WHERE kind = 'data' AND requests = 1 AND output > 0) \
                   SETTINGS mutations_sync = 2, allow_nondeterministic_mutations = 1";
    execute(&system.client, &system.clickhouse_url(), changed).await;
    let (code, said) = system.command(&["reconcile", "--json"]).await;
    assert_eq!(code, Some(1), "{said}");
    let report = report(&said);
    let found = report["differences"].as_array().expect("differences");
    let of = |check: &str| found.iter().find(|found| found["check"] == check).expect("the check found it");
    assert_eq!((&report["ok"], &of("counts")["by"]), (&false.into(), &1000.into()), "{said}");
    assert_eq!(of("counts")["request_ids"].as_array().map(Vec::len), Some(1), "{said}");
    assert_eq!((&of("balances")["figure"], &of("balances")["by"]), (&"output".into(), &(-1000).into()), "{said}");

    let backward = ["reconcile", "--from", "2026-11-02T00:00:00Z", "--to", "2026-11-01T00:00:00Z"];
    let (code, said) = system.command(&backward).await;
    assert_eq!(code, Some(2), "{said}");
    system.kill_clickhouse().await;
    let (code, said) = system.command(&["reconcile"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("ClickHouse"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_counted_what_is_billed_and_one_that_is_asked_past_the_gateway_is_named() {
    let mut system = System::parts(300).await;
    system.set("FOLD__RECONCILE_SECONDS", "1");
    system.start_all(&Role::ALL).await;
    let keys = shop(&system).await;
    until("a sample of each engine", LONG, async || {
        let engines = "SELECT url FROM tollgate.replica_counters GROUP BY url";
        let engines = select(&system.client, &system.clickhouse_url(), engines).await.len();
        if engines == MODELS.len() { Ok(()) } else { Err(engines) }
    })
    .await;
    let ask = async |url: String, key: Option<&str>, model: &str, words: &str| {
        let messages = json!([{"role": "user", "content": words}]);
        let body = json!({"model": model, "messages": messages, "max_tokens": 40, "n": 2});
        system.client.post(&format!("{url}/v1/chat/completions"), key, &body).await.expect("an answer").ok()["usage"]
            .clone()
    };
    for n in 0..12 {
        ask(system.url(Role::Gateway, ""), Some(&keys[0]), MODELS[n % 2], &format!("request {n}")).await;
    }
    // Nobody pays for this one.
    let past = ask(system.simulators[MODELS[0]].url(), None, MODELS[0], "past the gateway").await;
    let report = until("the difference", LONG, async || {
        let (code, said) = system.command(&["reconcile", "--json"]).await;
        if code == Some(1) { Ok(report(&said)) } else { Err(said) }
    })
    .await;
    // The other engine's samples are of the same moments: there all is counted.
    let found = report["differences"].as_array().expect("differences");
    assert_eq!(found.len(), 1, "{report:#}");
    let by = -past["completion_tokens"].as_i64().expect("tokens");
    assert_eq!((&found[0]["check"], &found[0]["figure"]), (&json!("replicas"), &json!("generated tokens")));
    assert_eq!((&found[0]["replica"], &found[0]["by"]), (&json!("llama-3.1-8b-1"), &json!(by)), "{report:#}");
    // Each prompt was taken twice, which is told and is no difference.
    let told = report["pending"].as_array().expect("pending");
    let told: Vec<_> = told.iter().filter(|told| told["check"] == "replicas").collect();
    assert_eq!(told.len(), MODELS.len(), "{report:#}");
    assert!(told.iter().all(|told| told["said"].as_str().is_some_and(|said| said.contains("once for each choice"))));
}

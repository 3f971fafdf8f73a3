//! The trial balance by command, over what real gateways wrote: nothing false in the midst of traffic, and what is tampered with.

use promises::figures::execute;
use promises::oracle::admitted;
use promises::system::{Role, System};
use promises::tenants::shop;
use promises::traffic::{plan, run};
use serde_json::Value;

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
    assert_eq!((code, said.matches("OK   ").count()), (Some(0), 8), "{said}");
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

//! What an auditor does: replays the log, and finds what somebody changed behind Tollgate's back.

use ledger::time::{Micros, Period};
use promises::figures::execute;
use promises::system::{Role, System};
use promises::tenants::{TENANTS, shop};
use promises::traffic::{plan, run};
use serde_json::Value;

use promises::oracle::admitted;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_says_what_a_tenant_used_and_which_row_is_not_as_the_log_says() {
    let system = System::start(0).await;
    let keys = shop(&system).await;
    let seen = run(&system.client, &system.url(Role::Gateway, ""), &keys, plan(80, keys.len(), 31), 16).await;
    system.settled(&admitted(&seen)).await;

    let (code, said) = system.command(&["audit"]).await;
    assert_eq!((code, said.matches("OK   tollgate.").count()), (Some(0), 8), "{said}");
    // Tokens of this month, by the log, are those of the usage API.
    let month = month();
    for tenant in TENANTS {
        let (code, said) = system.command(&["audit", tenant, &month, "--json"]).await;
        assert_eq!(code, Some(0), "{said}");
        let audit: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((audit["identical"].as_bool(), audit["lines"].as_array().map(Vec::len)), (Some(true), Some(2)));
        let used = audit["usage"]["models"].as_array().expect("models");
        let by_api = system.usage(&[tenant]).await;
        assert_eq!(used.len(), by_api.len(), "{used:?} {by_api:?}");
        for model in used {
            let counts = by_api[&(tenant.to_owned(), model["model"].as_str().expect("a model").to_owned())];
            let of = |class: &str| model[class].as_u64().expect("a count");
            assert_eq!(
                [of("input"), of("cached_input"), of("output"), of("reasoning"), of("requests")],
                [counts.input, counts.cached_input, counts.output, counts.reasoning, counts.requests]
            );
        }
    }
    for wrong in [["audit", "nobody", &month], ["audit", TENANTS[0], "2026-13"], ["audit", "--partition", "4"]] {
        let (code, said) = system.command(&wrong).await;
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }

    // A rebuild beside it, twice: the second one has little or nothing left to fold.
    for _ in 0..2 {
        let (code, said) = system.command(&["rebuild"]).await;
        assert_eq!((code, said.matches("OK   tollgate.").count()), (Some(0), 8), "{said}");
    }
    let (code, said) = system.command(&["rebuild", "--into", "no-name"]).await;
    assert_eq!(code, Some(2), "{said}");

    // The log into an archive, twice; held to what is said of its files, and a changed byte of one is found.
    for _ in 0..2 {
        let (code, said) = system.command(&["archive", "archive"]).await;
        assert_eq!((code, said.matches("OK   tollgate.").count()), (Some(0), 8), "{said}");
    }
    let (code, said) = system.command(&["audit", "--archive", "archive"]).await;
    assert_eq!((code, said.matches("OK   tollgate.").count()), (Some(0), 8), "{said}");
    let (code, said) = system.command(&["archive", "archive", "--check", "--json"]).await;
    let checked: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, checked["whole"].as_bool()), (Some(0), Some(true)), "{said}");
    let folder = std::fs::read_dir(system.dir().join("archive/tollgate.tokens.v1/0")).expect("a folder");
    let mut files = folder.map(|entry| entry.expect("a file").path());
    let file =
        files.find(|path| path.extension().is_some_and(|kind| kind == "parquet")).expect("a file of partition 0");
    let mut bytes = std::fs::read(&file).expect("a file");
    bytes[8] ^= 1;
    std::fs::write(&file, bytes).expect("a file");
    let (code, said) = system.command(&["archive", "archive", "--check"]).await;
    assert!(code == Some(1) && said.contains("is damaged"), "{said}");

    system.stop(Role::Fold).await;
    let more = "ALTER TABLE tokens UPDATE output = output + 1000 WHERE kind = 'data' AND requests = 1 AND output > 0 \
                AND kafka_offset = (SELECT max(kafka_offset) FROM tokens WHERE kind = 'data' AND requests = 1 AND output > 0) \
                SETTINGS mutations_sync = 2, allow_nondeterministic_mutations = 1";
    execute(&system.client, &system.clickhouse_url(), more).await;
    let (code, said) = system.command(&["audit"]).await;
    assert_eq!(code, Some(1), "{said}");
    for wanted in
        ["FAIL tollgate.tokens.v1/", "the data row of offset", ", request ", "has output = 10", "the aggregates of"]
    {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let (code, said) = system.command(&["rebuild", "--json"]).await;
    assert_eq!(code, Some(1), "{said}");
    let rebuilt: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(rebuilt["identical"].as_bool(), Some(false));
    assert!(said.contains("the first sums that differ"), "{said}");
    system.kill_clickhouse().await;
    let (code, said) = system.command(&["audit"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("ClickHouse"), "{said}");
}

/// This month, as its tenants write it.
fn month() -> String {
    let now = Micros(runtime::Clock::now(&runtime::SystemClock));
    let period = Period::month_of(now, "Europe/Berlin".parse().expect("a zone")).expect("a month");
    let middle = Micros(period.from.start().0.midpoint(period.to.start().0));
    middle.to_utc().expect("a time").format("%Y-%m").to_string()
}

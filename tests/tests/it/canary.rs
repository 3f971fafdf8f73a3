//! The canary on real processes: what it sends is in the usage API in time; that it is not, or is twice, or is refused, it says.

use std::time::Duration;

use promises::figures::execute;
use promises::system::{MODELS, Role, System};
use promises::tenants::{models, new_key, put, usable};
use promises::wait::until;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(180);
const ROUNDS: &str = "tollgate_canary_rounds_total";

/// The canary's tenant, as docs/canary.md makes it; gives its key.
async fn tenant(system: &mut System) -> String {
    models(system).await;
    for model in MODELS {
        for class in ["input", "cached_input", "output", "reasoning"] {
            let from = "2026-01-01T00:00:00Z";
            let price = json!({"model": model, "class": class, "currency": "XTS", "from": from, "per_million": "0"});
            put(system, &format!("prices/{model}-{}-xts", class.replace('_', "-")), &price).await;
        }
    }
    put(system, "plans/canary", &json!({"name": "Canary"})).await;
    let body = json!({"name": "Canary", "plan": "canary", "currency": "XTS", "time_zone": "UTC"});
    put(system, "tenants/canary", &body).await;
    let key = new_key(system, "canary").await.1;
    usable(system, std::slice::from_ref(&key)).await;
    let at = [("GATEWAY", system.url(Role::Gateway, "")), ("BILLING", system.url(Role::Billing, ""))];
    for (name, url) in &at {
        system.set(&format!("CANARY__{name}"), url);
    }
    for (name, value) in [("KEY", key.as_str()), ("MODEL", MODELS[0]), ("INTERVAL_SECONDS", "1")] {
        system.set(&format!("CANARY__{name}"), value);
    }
    key
}

/// So many rounds that ended so.
async fn rounds(system: &System, outcome: &str) -> u64 {
    let text = system.client.get(&system.url(Role::Canary, "/metrics"), None).await.unwrap().body;
    let text = String::from_utf8(text.to_vec()).unwrap();
    let name = format!("{ROUNDS}{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
}

/// Returns when there are more of them than `so_far`; gives how many.
async fn more_rounds(system: &System, outcome: &str, so_far: u64) -> u64 {
    until(&format!("a round that ends as {outcome}"), SOON, async || match rounds(system, outcome).await {
        now if now > so_far => Ok(now),
        now => Err(now),
    })
    .await
}

async fn not_ready(system: &System) -> String {
    let answer = system.client.get(&system.url(Role::Canary, "/readyz"), None).await.unwrap();
    assert_eq!(answer.status, 503);
    String::from_utf8(answer.body.to_vec()).unwrap()
}

/// One round by command: its exit code and what it saw.
async fn once(system: &System) -> (Option<i32>, Value) {
    let (code, said) = system.command(&["canary", "--once", "--json"]).await;
    (code, serde_json::from_str(&said).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_there_in_time_and_a_fold_that_stands_is_said_until_it_goes_on() {
    let mut system = System::start(0).await;
    tenant(&mut system).await;
    let (code, seen) = once(&system).await;
    assert_eq!((code, &seen["outcome"]), (Some(0), &"billed".into()), "{seen:#}");
    let forms: Vec<_> = seen["requests"].as_array().unwrap().iter().map(|one| one["form"].as_str().unwrap()).collect();
    assert_eq!(forms, ["whole", "streamed"], "{seen:#}");

    // While the role sends, others of the same tenant explain themselves.
    system.set("CANARY__BOUND_SECONDS", "8");
    system.start_role(Role::Canary).await;
    system.set("CANARY__BOUND_SECONDS", "30");
    let (code, seen) = once(&system).await;
    assert_eq!(code, Some(0), "{seen:#}");

    // Nothing is folded any more.
    system.pause(Role::Fold);
    more_rounds(&system, "late", 0).await;
    let said = not_ready(&system).await;
    assert!(said.contains("late: request ") && said.contains("after 8 s"), "{said}");
    let (code, seen) = once(&system).await;
    assert_eq!((code, &seen["outcome"]), (Some(1), &"late".into()), "{seen:#}");
    system.set("CANARY__BOUND_SECONDS", "8");
    // Its next start finds what it had sent before on the way: that is no excess, whenever it comes.
    system.kill(Role::Canary);
    system.spawn(Role::Canary);
    until("the canary to send again", SOON, async || {
        let answer = system
            .client
            .get(&system.url(Role::Canary, "/readyz"), None)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        if said.contains("late: ") { Ok(()) } else { Err(said) }
    })
    .await;

    system.resume(Role::Fold);
    system.ready(Role::Canary).await;
    let billed = rounds(&system, "billed").await;
    more_rounds(&system, "billed", billed + 2).await;
    assert_eq!((rounds(&system, "excess").await, rounds(&system, "refused").await), (0, 0));
    assert!(system.metric(Role::Canary, "tollgate_canary_last_success_timestamp_seconds").await > 0.0);
    let observed = system.metric(Role::Canary, "tollgate_canary_billed_after_seconds_count").await as u64;
    assert!(observed > rounds(&system, "billed").await, "those that were late are observed too: {observed}");
    // Nobody pays for it, and it is priced.
    assert_eq!(system.metric(Role::Gateway, "tollgate_gateway_unpriced_total").await, 0.0);
    let bill = system.api("invoices/preview?tenant=canary").await;
    assert_eq!((&bill["total"], &bill["currency"]), (&"0.00".into(), &"XTS".into()), "{bill:#}");
    system.stop(Role::Canary).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_twice_is_noticed_and_so_are_a_gateway_that_refuses_and_a_billing_that_is_away() {
    let mut system = System::start(0).await;
    tenant(&mut system).await;
    system.start_role(Role::Canary).await;
    more_rounds(&system, "billed", 1).await;

    // A row of one of its requests, once more: it is billed twice, long after its round.
    let twice = "INSERT INTO tokens SELECT * FROM tokens WHERE kind = 'data' ORDER BY kafka_offset DESC LIMIT 1";
    execute(&system.client, &system.clickhouse_url(), twice).await;
    more_rounds(&system, "excess", 0).await;
    let log = std::fs::read_to_string(system.log(Role::Canary)).unwrap();
    let said = log.lines().find(|line| line.contains("excess")).unwrap();
    assert!(said.contains("used input ") && said.contains("is billed input "), "{said}");
    // It is said once: what is there stays there.
    let billed = rounds(&system, "billed").await;
    more_rounds(&system, "billed", billed + 1).await;
    assert_eq!(rounds(&system, "excess").await, 1);

    // Usage of a request that never ends: only the sum shows it.
    system.stop(Role::Canary).await;
    system.set("CANARY__BOUND_SECONDS", "20");
    system.pause(Role::Fold);
    let before = system.simulators[MODELS[0]].requests().len();
    let waiting = once(&system);
    let beside = async {
        let strange = "INSERT INTO tokens SELECT * REPLACE (generateUUIDv4() AS request_id) FROM tokens \
                       WHERE kind = 'data' ORDER BY kafka_offset DESC LIMIT 1";
        until("the two requests to be sent", SOON, async || match system.simulators[MODELS[0]].requests().len() {
            sent if sent >= before + 2 => Ok(()),
            sent => Err(sent),
        })
        .await;
        execute(&system.client, &system.clickhouse_url(), strange).await;
        system.resume(Role::Fold);
    };
    let ((code, seen), ()) = tokio::join!(waiting, beside);
    assert_eq!((code, &seen["outcome"]), (Some(1), &"excess".into()), "{seen:#}");

    put(&system, "plans/canary", &json!({"name": "Canary", "tokens_per_period": 1})).await;
    until("the gateway to know the limit", SOON, async || {
        let (code, seen) = once(&system).await;
        match seen["outcome"].as_str() {
            Some("refused") => {
                assert_eq!(code, Some(1));
                Ok(())
            }
            _ => Err(seen),
        }
    })
    .await;
    let (_, seen) = once(&system).await;
    assert!(seen["said"].as_str().unwrap().contains("429 insufficient_quota"), "{seen:#}");

    system.kill(Role::Billing);
    let (code, seen) = once(&system).await;
    assert_eq!((code, &seen["outcome"]), (Some(2), &"unread".into()), "{seen:#}");
}

//! What clients saw, what engines did, what was billed, and what every interface says are the same figures.

use promises::oracle::{admitted, check_figures, check_money, check_requests};
use promises::system::{Role, System};
use promises::tenants::shop;
use promises::traffic::{Seen, Shape, plan, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_mixed_requests_add_up() {
    let system = System::start(4000).await;
    let keys = shop(&system).await;
    let gateway = system.url(Role::Gateway, "");
    let seen = run(&system.client, &gateway, &keys, plan(500, keys.len(), 1), 16).await;

    let count = |what: fn(&Seen) -> bool| seen.iter().filter(|seen| what(seen)).count();
    assert!(count(|seen| seen.usage.is_some()) > 150, "most answers are whole");
    assert!(count(|seen| matches!(seen.plan.shape, Shape::HangUp { .. }) && !seen.whole) > 40, "many clients hung up");
    assert!(count(|seen| matches!(seen.plan.shape, Shape::Fault(..))) > 40, "many upstreams failed");
    for seen in &seen {
        let status = seen.status.expect("the gateway answers whatever happens");
        match seen.plan.shape {
            Shape::UnknownModel => assert_eq!((status, seen.code.as_deref()), (404, Some("model_not_found"))),
            Shape::BadJson => assert_eq!(status, 400),
            Shape::BadKey => assert_eq!((status, seen.code.as_deref()), (401, Some("invalid_api_key"))),
            Shape::Fault(..) | Shape::HangUp { .. } => {}
            _ => assert!(status == 200 && seen.whole, "{seen:?}"),
        }
    }
    system.settled(&admitted(&seen)).await;
    check_requests(&system, &seen).await;
    let usage = check_figures(&system).await;
    check_money(&system, &usage).await;
}

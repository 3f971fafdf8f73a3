//! What doctor says of the roles on this host: each is asked whether it is ready.

use std::net::SocketAddr;

use super::report::Report;
use crate::roles::reachable;
use crate::web::{self, Unready};

/// Asks the role that the settings place at `listen`. One that does not run here may run elsewhere.
pub(crate) async fn check(report: &mut Report, name: &str, listen: SocketAddr) {
    let at = reachable(listen);
    match web::ready(&format!("http://{at}/readyz")).await {
        Ok(()) => report.ok(format!("the {name} is ready at {at}")),
        Err(Unready::Absent(reason)) => report.warn(
            format!("the {name} does not answer on this host at {at}: {reason}"),
            "start it if it belongs here; a role on another host is asked there",
        ),
        Err(Unready::Waits(reasons)) => {
            report.fail(format!("the {name} at {at} is not ready: {reasons}"), "mend what it names; its log says more");
        }
    }
}

/// Asks the canary, which is no part of the service: what it says of the others is a hint at one of them.
pub(crate) async fn check_canary(report: &mut Report, listen: SocketAddr) {
    let at = reachable(listen);
    match web::ready(&format!("http://{at}/readyz")).await {
        Ok(()) => report.ok(format!("the canary at {at} is billed as it is answered")),
        Err(Unready::Absent(reason)) => report.warn(
            format!("the canary does not answer on this host at {at}: {reason}"),
            "start it if it belongs here; a role on another host is asked there",
        ),
        Err(Unready::Waits(reasons)) => report.warn(
            format!("the canary at {at} says: {reasons}"),
            "docs/canary.md says what each outcome means; tollgate canary --once looks again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;
    use runtime::{Metrics, Readiness, Shutdown};

    #[tokio::test]
    async fn a_role_that_waits_is_a_fault_with_its_reasons_and_an_absent_one_is_none() {
        let (readiness, stop) = (Readiness::new(), Shutdown::new());
        let kafka = readiness.condition("kafka", "no broker answers");
        let listener = runtime::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let at = listener.local_addr().unwrap();
        let routes = runtime::http::routes(Metrics::new(), readiness);
        let serving = runtime::http::serve(listener, routes, stop.clone(), std::time::Duration::from_secs(5));
        let asking = async {
            let mut report = Report::quiet();
            check(&mut report, "fold", at).await;
            assert!(report.text().contains("kafka: no broker answers"), "{}", report.text());
            kafka.ready();
            check(&mut report, "fold", at).await;
            stop.trigger();
            (report.count(Level::Fail), report.count(Level::Ok))
        };
        let (served, found) = tokio::join!(serving, asking);
        served.unwrap();
        assert_eq!(found, (1, 1));
        let mut report = Report::quiet();
        check(&mut report, "fold", ([127, 0, 0, 1], 1).into()).await;
        assert_eq!(report.count(Level::Warn), 1, "{}", report.text());
    }
}

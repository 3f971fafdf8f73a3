//! What doctor says of ClickHouse itself: whether it answers, and how far its clock is off.

use std::time::Duration;

use hyper::Method;
use runtime::Clock;

use super::report::Report;
use crate::web::{self, Question};

/// Where ClickHouse is and who asks.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    pub(crate) url: &'a str,
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

/// The fence of an insert is a minute wide; clocks that differ by this much eat a good part of it.
const SKEW_LIMIT_MICROS: i64 = 2_000_000;

/// Asks one query, as text.
pub(crate) async fn query(server: &Server<'_>, sql: &str) -> Result<String, String> {
    let headers = [("x-clickhouse-user", server.user), ("x-clickhouse-key", server.password)];
    let body = Some(("text/plain", sql.to_owned()));
    let question =
        Question { method: Method::POST, url: server.url, headers: &headers, body, limit: Duration::from_secs(5) };
    let answer = web::ask(question).await?;
    if answer.is_success() {
        Ok(answer.text.trim().to_owned())
    } else {
        Err(format!("{}: {}", answer.status, answer.text.lines().next().unwrap_or_default()))
    }
}

/// Whether it answers, and its clock against this host's. True when it answers.
pub(crate) async fn check(report: &mut Report, server: &Server<'_>, clock: &dyn Clock) -> bool {
    let before = clock.now();
    let answer = query(server, "SELECT version(), toUnixTimestamp64Micro(now64(6))").await;
    let after = clock.now();
    let text = match answer {
        Ok(text) => text,
        Err(reason) => {
            report.fail(
                format!("ClickHouse at {} does not answer: {reason}", server.url),
                "start it, or correct url, user and password in [clickhouse]",
            );
            return false;
        }
    };
    let mut columns = text.split('\t');
    let version = columns.next().unwrap_or_default();
    let Some(theirs) = columns.next().and_then(|micros| micros.parse::<i64>().ok()) else {
        report.fail(
            format!("what answers at {} is not ClickHouse: {text:?}", server.url),
            "correct url in [clickhouse]: it is the HTTP interface, port 8123 by default",
        );
        return false;
    };
    report.ok(format!("ClickHouse {version} answers at {}", server.url));
    skew(report, "ClickHouse", theirs - before.midpoint(after), (after - before) / 2);
    true
}

/// Says how far a clock is from this host's, given how exactly that could be measured.
pub(crate) fn skew(report: &mut Report, whose: &str, micros: i64, exact_to: i64) {
    let millis = micros / 1_000;
    if micros.abs() - exact_to > SKEW_LIMIT_MICROS {
        let way = if micros > 0 { "ahead of" } else { "behind" };
        report.fail(
            format!("the clock of {whose} is {} ms {way} this host's", millis.abs()),
            "let every host take its time from NTP; periods, watermarks and the fence of inserts rest on it",
        );
    } else {
        report.ok(format!("the clock of {whose} agrees with this host's ({millis:+} ms)"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_said_with_its_address() {
        let mut report = Report::quiet();
        let server = Server { url: "http://127.0.0.1:1", user: "u", password: "hunter2" };
        assert!(!check(&mut report, &server, &runtime::SystemClock).await);
        let said = report.text();
        assert!(said.contains("http://127.0.0.1:1") && said.contains("[clickhouse]"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_clock_far_off_fails_and_one_measured_badly_does_not() {
        let mut report = Report::quiet();
        skew(&mut report, "x", -3_000_000, 0);
        skew(&mut report, "x", 3_000_000, 2_000_000);
        assert_eq!((report.count(Level::Fail), report.count(Level::Ok)), (1, 1));
        assert!(report.text().contains("3000 ms behind"));
    }
}

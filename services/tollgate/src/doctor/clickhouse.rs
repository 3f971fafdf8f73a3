//! What doctor says of ClickHouse: whether it answers, how far it is migrated, and how far its clock is off.

use runtime::Clock;
use sql::ClickHouseSettings;

use super::report::Report;

/// The fence of an insert is a minute wide; clocks that differ by this much eat a good part of it.
const SKEW_LIMIT_MICROS: i64 = 2_000_000;

/// Asks it.
pub(crate) async fn check(report: &mut Report, settings: &ClickHouseSettings, clock: &dyn Clock) {
    let before = clock.now();
    let asked = settings.status().await;
    let after = clock.now();
    let status = match asked {
        Ok(status) => status,
        Err(error) => {
            report.fail(
                format!("ClickHouse at {}: {error}", settings.url),
                "start it, or correct url, user and password in [clickhouse]",
            );
            return;
        }
    };
    report.ok(format!("ClickHouse {} answers at {}", status.server_version, settings.url));
    skew(report, "ClickHouse", status.now.0 - before.midpoint(after), (after - before) / 2);
    let (database, known) = (&settings.database, sql::version());
    match status.migration {
        Some(found) if found == known => report.ok(format!("the tables of {database} are at version {found}")),
        Some(found) if found > known => report.fail(
            format!("the tables of {database} are at version {found}, this binary knows {known}"),
            "run the newer Tollgate that migrated it",
        ),
        found => report.fail(
            format!("the tables of {database} are at version {}, this binary needs {known}", found.unwrap_or_default()),
            "run tollgate migrate with these settings",
        ),
    }
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
    use runtime::config::Secret;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_said_with_its_address() {
        let mut report = Report::quiet();
        let settings = ClickHouseSettings {
            url: "http://127.0.0.1:1".into(),
            password: Secret::new("hunter2"),
            ..ClickHouseSettings::default()
        };
        check(&mut report, &settings, &runtime::SystemClock).await;
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

//! `tollgate reconcile`: the trial balance, once, for people or for programs.

use std::io::Write as _;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use fold::reconcile::{Check, Report};
use runtime::{Clock as _, SystemClock};
use sql::{LogHour, LogHours};

use crate::cli::Reconcile;
use crate::settings::{For, Section, Uses};

const HOURS: i64 = 24;
/// It could not look.
const NO_ANSWER: u8 = 2;

struct ReconcileRole;

impl Uses for ReconcileRole {
    const SECTIONS: &'static [Section] = &[Section::Kafka, Section::ClickHouse];
}

/// Compares everything; the exit code says whether something differs.
pub(crate) async fn run(options: Reconcile) -> ExitCode {
    let hours = match hours(options.from, options.to, SystemClock.now()) {
        Ok(hours) => hours,
        Err(wrong) => return no_answer(&wrong),
    };
    let settings = match runtime::config::load::<For<ReconcileRole>>(options.settings.config.as_deref()) {
        Ok(settings) => settings.all,
        Err(wrong) => return no_answer(&wrong),
    };
    match fold::reconcile::reconcile(&settings.kafka, &settings.clickhouse, hours).await {
        Ok(report) => {
            let mut out = std::io::stdout().lock();
            let text = if options.json { json(&report) } else { text(&report) };
            let _ = out.write_all(text.as_bytes());
            if report.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => no_answer(&format!("{error}; tollgate doctor says more")),
    }
}

fn no_answer(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("tollgate: {error}");
    ExitCode::from(NO_ANSWER)
}

/// The hours of the log that are asked for.
fn hours(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>, now: i64) -> Result<LogHours, String> {
    let hour = |time: DateTime<Utc>| LogHour::of_ms(time.timestamp_millis());
    let from = from.map_or(LogHour(LogHour::of_ms(now / 1_000).0 - HOURS), hour);
    // The broker's clock may be ahead of this one.
    let before = to.map_or(LogHour(LogHour::of_ms(now / 1_000).0 + HOURS), hour);
    if from < before {
        return Ok(LogHours { from, before });
    }
    Err("--to must lie in a later hour than --from".to_owned())
}

fn json(report: &Report) -> String {
    let mut whole = serde_json::json!(report);
    whole["ok"] = report.agrees().into();
    format!("{whole:#}\n")
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!("hours of the log from {} to {}", report.from, report.before)];
    for check in Check::ALL {
        let word = if report.count(check) == 0 { "OK  " } else { "FAIL" };
        let compared = report.compared.get(&check).copied().unwrap_or(0);
        lines.push(format!("{word}   {:<10} {} ({compared} compared)", check.as_str(), check.said()));
        let found = report.differences.iter().filter(|difference| difference.check == check);
        lines.extend(found.map(|difference| format!("       {difference}")));
        let waiting = report.pending.iter().filter(|pending| pending.check == check);
        lines.extend(waiting.map(|pending| format!("       not yet: {}: {}", pending.place, pending.said)));
    }
    lines.push(match report.differences.len() {
        0 => "\nnothing differs".to_owned(),
        1 => "\n1 difference".to_owned(),
        n => format!("\n{n} differences"),
    });
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_whole_and_forward() {
        let at = |text: &str| Some(text.parse::<DateTime<Utc>>().unwrap());
        let asked = hours(at("1970-01-01T05:30:00Z"), at("1970-01-01T07:00:00Z"), 0);
        assert_eq!(asked, Ok(LogHours { from: LogHour(5), before: LogHour(7) }));
        assert!(hours(at("1970-01-01T05:30:00Z"), at("1970-01-01T05:45:00Z"), 0).is_err());
        let now = 100 * 3_600_000_000;
        assert_eq!(hours(None, None, now), Ok(LogHours { from: LogHour(76), before: LogHour(124) }));
    }
}

//! `tollgate canary --once`: one round, for people, scripts and timers.

use std::io::Write as _;
use std::process::ExitCode;

use runtime::Metrics;
use serde_json::{Value, json};

use super::round::{Outcome, Report};
use super::settings::CanarySettings;
use super::tally::Answered;
use super::{Error, canary};

/// It could not look.
pub(crate) const NO_ANSWER: u8 = 2;

/// A request that is not streamed and one that is. The exit code says whether they are billed.
///
/// # Errors
/// When it could not begin.
pub(crate) async fn once(settings: CanarySettings, in_json: bool) -> Result<ExitCode, Error> {
    let report = canary(settings, &Metrics::new())?.round(&[false, true]).await;
    let said = if in_json { format!("{:#}\n", as_json(&report)) } else { as_text(&report) };
    let _ = std::io::stdout().lock().write_all(said.as_bytes());
    Ok(match report.outcome {
        Outcome::Billed => ExitCode::SUCCESS,
        Outcome::Late | Outcome::Excess | Outcome::Refused => ExitCode::FAILURE,
        Outcome::Unread => ExitCode::from(NO_ANSWER),
    })
}

const fn form(answered: &Answered) -> &'static str {
    if answered.stream { "streamed" } else { "whole" }
}

fn as_json(report: &Report) -> Value {
    let request = |answered: &Answered| json!({"id": answered.id, "form": form(answered), "answered": answered.counts});
    json!({
        "ok": report.outcome == Outcome::Billed,
        "outcome": report.outcome,
        "said": report.said,
        "requests": report.sent.iter().map(request).collect::<Vec<_>>(),
        "billed_after_ms": report.billed_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    })
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    for answered in &report.sent {
        text.push_str(&format!("{:<9}request {}: {}\n", form(answered), answered.id, answered.counts));
    }
    text.push_str(&match report.billed_after {
        Some(after) => format!("OK       in the usage API, once, {} ms after the last answer\n", after.as_millis()),
        None => format!("FAIL     {}: {}\n", report.outcome.as_str(), report.said),
    });
    text
}

//! `tollgate doctor`: in plain words, what is wrong with settings and connections, and what to do.

mod clickhouse;
pub(crate) mod control;
mod host;
mod kafka;
mod report;
mod roles;
mod tools;

use std::process::ExitCode;

use runtime::{Clock as _, SystemClock};
use schemas::topic;
use stream::topics::{self, TopicsError};

use crate::cli::Doctor;
use crate::settings::{For, Section, Settings, Uses};
use report::{Form, Report};

/// Doctor looks at everything.
struct Everything;

impl Uses for Everything {
    const SECTIONS: &'static [Section] = Section::ALL;
}

/// Looks at everything; the exit code says whether something is wrong.
pub(crate) async fn run(options: Doctor) -> ExitCode {
    let mut report = Report::new(if options.json { Form::Json } else { Form::Text });
    match runtime::config::load::<For<Everything>>(options.settings.config.as_deref()) {
        Ok(settings) => {
            report.ok("the settings are sound");
            connections(&mut report, &settings.all).await;
        }
        Err(wrong) => {
            for problem in wrong.problems() {
                report.fail(problem.to_string(), "correct the settings, then ask again: nothing else can be checked");
            }
        }
    }
    if report.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn connections(report: &mut Report, settings: &Settings) {
    let clock = SystemClock;
    tools::check(report, &settings.dev.tools_dir).await;
    host::spool(report, &settings.spool.dir, settings.spool.max_bytes);
    for (name, listen) in
        [("gateway", settings.gateway.listen), ("fold", settings.fold.listen), ("billing", settings.billing.listen)]
    {
        roles::check(report, name, listen).await;
    }
    if settings.canary.is_there() {
        roles::check_canary(report, settings.canary.listen).await;
    }
    clickhouse::check(report, &settings.clickhouse, &clock).await;
    let kafka = &settings.kafka;
    let mut client = kafka.client("doctor");
    // The client's own words on standard error would stand between the lines.
    client.set("log_level", "0");
    if !kafka::check(report, &client, &kafka.brokers) {
        return;
    }
    match topics::verify(kafka).await {
        Ok(()) => report.ok("the topics are as exact counting needs them"),
        Err(TopicsError::Wrong(lines)) => {
            for line in lines {
                report.fail(line, "run tollgate migrate for what is missing; change the rest by Kafka's own tools");
            }
            return;
        }
        Err(error) => {
            report.fail(error.to_string(), "correct [kafka], or start Kafka");
            return;
        }
    }
    kafka::clock(report, &client, topic::TOKENS, kafka.partitions, &clock);
    match control::read(kafka).await {
        Ok(state) => control::check(report, &state, clock.now()).await,
        Err(reason) => report.fail(format!("control cannot be read: {reason}"), "see what is said of Kafka above"),
    }
}

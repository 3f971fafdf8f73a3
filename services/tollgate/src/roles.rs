//! The roles as processes: settings, log, and a line when they are ready.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use runtime::{Shutdown, telemetry};

use crate::cli;
use crate::migrate::{self, Scope};
use crate::settings::{For, Section, Settings, Uses};

/// How long `migrate` waits for servers that do not answer yet.
const PATIENCE: Duration = Duration::from_secs(60);

struct MigrateRole;

impl Uses for MigrateRole {
    const SECTIONS: &'static [Section] = &[Section::Kafka, Section::ClickHouse];
}

/// `tollgate migrate`.
pub(crate) async fn migrate(options: cli::Migrate) -> Result<ExitCode, Box<dyn Error>> {
    let Some(settings) = settings::<MigrateRole>("migrate", &options.role)? else { return Ok(ExitCode::SUCCESS) };
    telemetry::init(&settings.log)?;
    let scope = if options.tables_only { Scope::Tables } else { Scope::All };
    let shutdown = Shutdown::from_signals()?;
    migrate::run(&settings.kafka, &settings.clickhouse, scope, PATIENCE, &shutdown, |line| say(&line)).await?;
    Ok(ExitCode::SUCCESS)
}

/// The settings of a role; none when they were only to be checked.
fn settings<U: Uses>(name: &str, role: &cli::Role) -> Result<Option<Settings>, Box<dyn Error>> {
    let settings: For<U> = runtime::config::load(role.settings.config.as_deref())?;
    if role.validate {
        say(&format!("the settings of tollgate {name} are sound"));
        return Ok(None);
    }
    Ok(Some(settings.all))
}

/// A line on standard output, for people and for whoever started the process.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

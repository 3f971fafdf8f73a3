//! The roles as processes: settings, log, and a line when they are ready.

use std::error::Error;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use runtime::{Shutdown, telemetry};

use crate::canary;
use crate::cli;
use crate::migrate::{self, Scope};
use crate::settings::{For, Section, Settings, Uses, in_section};
use crate::web;

/// How long `migrate` waits for servers that do not answer yet.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a starting role is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);

struct GatewayRole;

impl Uses for GatewayRole {
    const SECTIONS: &'static [Section] = &[Section::Telemetry, Section::Kafka, Section::Spool, Section::Gateway];
}

/// `tollgate gateway`.
pub(crate) async fn gateway(role: cli::Role) -> Result<ExitCode, Box<dyn Error>> {
    serve::<GatewayRole, _>("gateway", &role, |all, shutdown| {
        let Settings { gateway, telemetry, spool, kafka, .. } = all;
        (gateway.listen, Box::pin(gateway::run(gateway::RunSettings { gateway, telemetry, spool, kafka }, shutdown)))
    })
    .await
}

struct FoldRole;

impl Uses for FoldRole {
    const SECTIONS: &'static [Section] = &[Section::Kafka, Section::ClickHouse, Section::Fold];
}

/// `tollgate fold`.
pub(crate) async fn fold(role: cli::Role) -> Result<ExitCode, Box<dyn Error>> {
    serve::<FoldRole, _>("fold", &role, |all, shutdown| {
        let Settings { fold, kafka, clickhouse, .. } = all;
        (fold.listen, Box::pin(fold::run(fold::RunSettings { fold, kafka, clickhouse }, shutdown)))
    })
    .await
}

struct BillingRole;

impl Uses for BillingRole {
    const SECTIONS: &'static [Section] = &[Section::Kafka, Section::ClickHouse, Section::Billing];
}

/// `tollgate billing`.
pub(crate) async fn billing(role: cli::Role) -> Result<ExitCode, Box<dyn Error>> {
    serve::<BillingRole, _>("billing", &role, |all, shutdown| {
        let Settings { billing, kafka, clickhouse, .. } = all;
        (billing.listen, Box::pin(billing::run(billing::RunSettings { billing, kafka, clickhouse }, shutdown)))
    })
    .await
}

struct CanaryRole;

impl Uses for CanaryRole {
    const SECTIONS: &'static [Section] = &[Section::Canary];

    fn missing(settings: &Settings) -> Vec<String> {
        in_section("canary", settings.canary.missing())
    }
}

/// `tollgate canary`.
pub(crate) async fn canary(options: cli::Canary) -> Result<ExitCode, Box<dyn Error>> {
    if options.once {
        return Ok(canary_once(&options).await.unwrap_or_else(|error| {
            eprintln!("tollgate: {error}");
            canary::NO_ANSWER.into()
        }));
    }
    serve::<CanaryRole, _>("canary", &options.role, |all, shutdown| {
        (all.canary.listen, Box::pin(canary::run(all.canary, shutdown)))
    })
    .await
}

/// Its log would stand between the lines.
async fn canary_once(options: &cli::Canary) -> Result<ExitCode, Box<dyn Error>> {
    let Some(settings) = settings::<CanaryRole>("canary", &options.role)? else { return Ok(ExitCode::SUCCESS) };
    Ok(canary::once(settings.canary, options.json).await?)
}

/// Runs a role until a signal, or until it fails; says when it is ready. `start` gives its address and its work.
async fn serve<U: Uses, E: Error + 'static>(
    name: &str,
    role: &cli::Role,
    start: impl FnOnce(Settings, Shutdown) -> (SocketAddr, Pin<Box<dyn Future<Output = Result<(), E>>>>),
) -> Result<ExitCode, Box<dyn Error>> {
    let Some(settings) = settings::<U>(name, role)? else { return Ok(ExitCode::SUCCESS) };
    telemetry::init(&settings.log)?;
    let shutdown = Shutdown::from_signals()?;
    let (listen, mut running) = start(settings, shutdown.clone());
    tokio::select! {
        ended = &mut running => ended?,
        () = announce(name, listen, &shutdown) => running.await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Says that the role is ready, once it is. Gives up at shutdown.
async fn announce(name: &str, listen: SocketAddr, shutdown: &Shutdown) {
    let at = reachable(listen);
    let url = format!("http://{at}/readyz");
    while web::ready(&url).await.is_err() {
        if !shutdown.sleep(POLL).await {
            return;
        }
    }
    say(&format!("tollgate {name} is ready on http://{at}"));
}

/// Where this host reaches what listens there.
pub(crate) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

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
pub(crate) fn settings<U: Uses>(name: &str, role: &cli::Role) -> Result<Option<Settings>, Box<dyn Error>> {
    let settings: For<U> = runtime::config::load(role.settings.config.as_deref())?;
    if role.validate {
        say(&format!("the settings of tollgate {name} are sound"));
        return Ok(None);
    }
    Ok(Some(settings.all))
}

/// A line on standard output, for people and for whoever started the process.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

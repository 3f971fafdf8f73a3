//! `tollgate dev`: the whole system on one machine, as supervised children; in order up and in order down.

mod child;
mod children;
mod config;
mod demo;
mod layout;
mod lock;
mod logs;
pub(crate) mod ports;
mod roles;
mod servers;
pub(crate) mod settings;
mod table;
mod terminal;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::{Shutdown, SystemClock, Tasks};
use stream::control::{ControlReader, ControlWriter};
use stream::kafka::KafkaSettings;

use crate::cli::Dev;
use crate::migrate::{self, Scope};
use crate::settings::{For, Section, Settings, Uses};
use children::{Children, STOP};
use config::Put;
use layout::Layout;
use lock::Lock;
use ports::Part;
use terminal::{Step, say, seconds};

/// How long Kafka and ClickHouse, which serve, may take for the first topics, tables and documents.
const PATIENCE: Duration = Duration::from_secs(30);

/// `dev` runs every role, and is held to all that they are held to.
struct DevRole;

impl Uses for DevRole {
    const SECTIONS: &'static [Section] = Section::ALL;
}

/// Runs until Ctrl-C. Must be called on the main thread, in a runtime of that one thread: children are bound to the
/// thread that starts them.
pub(crate) async fn run(options: Dev) -> ExitCode {
    match develop(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("tollgate dev: {why}"));
            ExitCode::FAILURE
        }
    }
}

async fn develop(options: Dev) -> Result<(), String> {
    let file = options.role.settings.config.as_deref();
    let settings: For<DevRole> = runtime::config::load(file).map_err(|wrong| wrong.to_string())?;
    let section = settings.all.dev.with(&options)?;
    let wrong = section.validate();
    if !wrong.is_empty() {
        return Err(wrong.join("\n  "));
    }
    let layout = Layout::new(section)
        .map_err(|error| format!("this program, the folder it runs in or a free port cannot be found: {error}"))?;
    let table = config::composed(config::own(file)?, &puts(&layout), |name| std::env::var_os(name).is_some())
        .map_err(|refused| refused.join("\n  "))?;
    if options.role.validate {
        say("the settings of tollgate dev are sound");
        return Ok(());
    }
    // Held to the end of this function: the last thing that goes.
    let _lock = Lock::take(&layout.data).map_err(|error| error.to_string())?;
    if let Some(why) = layout.ports.taken().await {
        return Err(why);
    }
    let unwritable = |error: std::io::Error| format!("{} cannot be written: {error}", layout.data.display());
    std::fs::create_dir_all(layout.data.join("logs")).map_err(unwritable)?;
    config::write(&table, &layout.config()).map_err(unwritable)?;
    // As the roles will read it, the environment's variables included.
    let settings: For<DevRole> = runtime::config::load(Some(&layout.config())).map_err(|wrong| wrong.to_string())?;
    supervise(&layout, &settings.all).await
}

/// What the roles, and doctor, must be told of this machine.
fn puts(layout: &Layout) -> Vec<Put> {
    let ports = &layout.ports;
    let path = |path: &Path| path.display().to_string();
    let mut puts = vec![
        Put::decided("kafka", "brokers", ports.address(Part::Kafka), "--kafka-port"),
        Put::decided("kafka", "single_node", true, "a cluster of your own, without tollgate dev"),
        Put::proposed("kafka", "partitions", 4),
        Put::decided("clickhouse", "url", ports.url(Part::ClickHouse), "--clickhouse-port"),
        Put::decided("gateway", "listen", ports.address(Part::Gateway), "--gateway-port"),
        // Within the ten seconds that everything has to stop.
        Put::proposed("gateway", "drain_seconds", 3),
        Put::decided("fold", "listen", ports.address(Part::Fold), "--fold-port"),
        Put::decided("billing", "listen", ports.address(Part::Billing), "--billing-port"),
        Put::decided("billing", "dir", path(&layout.data.join("billing")), "--data-dir"),
        Put::proposed("billing", "admin_key_sha256", demo::sha256(demo::ADMIN_KEY)),
        Put::decided("canary", "listen", ports.address(Part::Canary), "--canary-port"),
        Put::decided("canary", "gateway", ports.url(Part::Gateway), "--gateway-port"),
        Put::decided("canary", "billing", ports.url(Part::Billing), "--billing-port"),
        Put::proposed("canary", "key", demo::CANARY_KEY),
        Put::proposed("canary", "model", layout::LLAMA),
        // Often enough to be seen on the first day.
        Put::proposed("canary", "interval_seconds", 300),
        Put::decided("spool", "dir", path(&layout.data.join("spool")), "--data-dir"),
        Put::proposed("log", "format", "human"),
        Put::resolved("dev", "data_dir", path(&layout.data)),
        Put::resolved("dev", "tools_dir", path(&layout.tools)),
    ];
    puts.extend(ports.iter().map(|(part, port)| Put::resolved("dev", part.key(), i64::from(port))));
    puts
}

async fn supervise(layout: &Layout, settings: &Settings) -> Result<(), String> {
    let shutdown = Shutdown::from_signals().map_err(|error| format!("signals cannot be listened for: {error}"))?;
    let tasks = Tasks::new(shutdown.clone());
    let children = Arc::new(Children::new(tasks.clone()));
    let stopping = (children.clone(), shutdown.clone());
    tasks.spawn("stopping in order", STOP, async move {
        let (children, shutdown) = stopping;
        shutdown.cancelled().await;
        children.stop().await;
        Ok::<_, String>(())
    });

    say(&format!("Starting Tollgate in {} (Ctrl-C stops it)", layout.data.display()));
    let began = Instant::now();
    let started = tokio::select! {
        started = start(layout, settings, &children) => started,
        () = shutdown.cancelled() => Ok(()),
    };
    match started {
        Ok(()) if !shutdown.is_cancelled() => say(&table::table(layout, settings, began.elapsed())),
        Ok(()) => {}
        Err(why) => {
            shutdown.trigger();
            let _ = tasks.run().await;
            return Err(why);
        }
    }
    let asked = wait_for(&shutdown);
    let (ended, asked) = tokio::join!(tasks.run(), asked);
    say(&format!("Stopped in {}. The data stays in {}", seconds(asked.elapsed()), layout.data.display()));
    ended.map_err(|error| error.to_string())
}

async fn start(layout: &Layout, settings: &Settings, children: &Children) -> Result<(), String> {
    servers::start(layout, children).await?;
    let (kafka, clickhouse) = (&settings.kafka, &settings.clickhouse);
    let step = Step::begin("topics and tables");
    migrate::run(kafka, clickhouse, Scope::All, PATIENCE, &Shutdown::new(), drop)
        .await
        .map_err(|error| error.to_string())?;
    step.done();
    let step = Step::begin("demo tenant, key, models, replicas and prices");
    let left = bootstrap(layout, kafka).await?;
    step.done();
    if !left.is_empty() {
        say(&format!("    left as you changed them: {}", left.join(", ")));
    }
    roles::start(layout, children).await
}

/// Writes the demo documents, beside a reader of the control log that lives as long as that takes.
async fn bootstrap(layout: &Layout, kafka: &KafkaSettings) -> Result<Vec<String>, String> {
    let (reader, view) = ControlReader::open(kafka, None, Arc::new(SystemClock)).map_err(|error| error.to_string())?;
    let writer = ControlWriter::new(kafka, view.clone()).map_err(|error| error.to_string())?;
    let wanted = demo::wanted(&layout.ports.url(Part::Llama), &layout.ports.url(Part::Mistral))?;
    let stop = Shutdown::new();
    let writing = async {
        let written = match tokio::time::timeout(PATIENCE, view.wait_caught_up()).await {
            Ok(()) => {
                demo::bootstrap(&writer, || view.load().state.clone(), &wanted, &layout.data.join("demo.json")).await
            }
            Err(_) => Err(format!("the control log was not read within {} s", PATIENCE.as_secs())),
        };
        stop.trigger();
        written
    };
    let (read, written) = tokio::join!(reader.run(stop.clone()), writing);
    read.map_err(|error| error.to_string())?;
    written
}

/// When stopping began.
async fn wait_for(shutdown: &Shutdown) -> Instant {
    shutdown.cancelled().await;
    say("Stopping ...");
    Instant::now()
}

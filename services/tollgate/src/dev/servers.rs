//! Starts the servers that the roles need, and waits until each serves.

use std::time::Duration;

use super::child::Spec;
use super::children::{Children, Stage};
use super::layout::{LLAMA, Layout, MISTRAL};
use super::ports::Part;
use super::terminal::Step;
use crate::web;

/// How long a server may take on a cold, busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Starts all of them at once.
pub(crate) async fn start(layout: &Layout, children: &Children) -> Result<(), String> {
    let (kafka, others) = tokio::join!(start_kafka(layout, children), start_others(layout, children));
    kafka.and(others)
}

async fn start_kafka(layout: &Layout, children: &Children) -> Result<(), String> {
    let settings = layout.kafka();
    let listen = settings.listen;
    let what = if settings.data_dir.exists() { "Kafka" } else { "Kafka (its first start makes its store)" };
    let step = Step::begin(what);
    let launch = embedded::kafka::prepare(&settings).await.map_err(|error| error.to_string())?;
    let kafka = Spec {
        name: "kafka",
        program: launch.program,
        arguments: launch.arguments,
        folder: launch.folder,
        log: layout.log("kafka"),
    };
    let started = children.start(Stage::Log, kafka).also_logs_to(launch.log);
    let serves = async || embedded::kafka::probe(listen).await.map_err(|error| error.to_string());
    started.until_ready(LIMIT, serves).await?;
    step.done();
    Ok(())
}

async fn start_others(layout: &Layout, children: &Children) -> Result<(), String> {
    let library = layout.clickhouse_library();
    if !library.exists() {
        return Err(format!("the ClickHouse engine is not at {}: run make setup", library.display()));
    }
    let step = Step::begin("ClickHouse, schema registry, two simulated vLLM");
    for (spec, part, path) in [
        (layout.clickhouse(), Part::ClickHouse, "/?query=SELECT%201"),
        (layout.registry(), Part::Registry, "/subjects"),
        (layout.vllm("vllm-llama", LLAMA, Part::Llama), Part::Llama, "/health"),
        (layout.vllm("vllm-mistral", MISTRAL, Part::Mistral), Part::Mistral, "/health"),
    ]
    .map(|(spec, part, path)| (children.start(Stage::Servers, spec), part, path))
    {
        let url = format!("{}{path}", layout.ports.url(part));
        spec.until_ready(LIMIT, async || web::answers(&url).await).await?;
    }
    step.done();
    Ok(())
}

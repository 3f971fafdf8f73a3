//! The servers of `dev` as processes of their own: simulated vLLM, ClickHouse engine, schema registry.

use std::error::Error;
use std::time::Duration;

use embedded::clickhouse::ClickHouseSettings;
use embedded::vllm::{Runner, SimulatorError, SimulatorSettings};
use runtime::Shutdown;
use tokio::net::TcpListener;

use crate::cli::{EmbeddedClickhouse, EmbeddedRegistry, EmbeddedVllm};

/// How long statements of ClickHouse may take to end; `dev` as a whole has ten seconds.
const CLICKHOUSE_DRAIN: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT; then running requests end with `abort`, as vLLM ends them.
pub(crate) async fn vllm(options: EmbeddedVllm, shutdown: Shutdown) -> Result<(), Box<dyn Error>> {
    let failed = |source| SimulatorError::Listen { addr: options.listen, source };
    let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
    let listen = listener.local_addr().map_err(failed)?;
    tracing::info!(%listen, models = ?options.models, "the simulated vLLM serves");
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let settings = SimulatorSettings {
        listen,
        models: options.models,
        runner: if options.pooling { Runner::Pooling } else { Runner::Generate },
        time_to_first_token_us: micros(options.time_to_first_token),
        time_per_output_token_us: micros(options.time_per_output_token),
        default_output_tokens: options.output_tokens,
        ..SimulatorSettings::default()
    };
    Ok(embedded::vllm::serve(settings, listener, shutdown.cancelled_owned()).await?)
}

/// Serves until asked to stop, then ends the process: the engine allows no other way.
pub(crate) async fn clickhouse(options: EmbeddedClickhouse, shutdown: Shutdown) -> Result<(), Box<dyn Error>> {
    let mut settings = ClickHouseSettings::new(options.data_dir, options.library, options.listen.port());
    settings.listen = options.listen;
    settings.drain = CLICKHOUSE_DRAIN;
    match embedded::clickhouse::serve(settings, shutdown).await? {}
}

/// Serves until asked to stop.
pub(crate) async fn registry(options: EmbeddedRegistry, shutdown: Shutdown) -> Result<(), Box<dyn Error>> {
    Ok(embedded::registry::serve(options.listen, shutdown).await?)
}

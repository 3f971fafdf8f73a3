//! ClickHouse's own HTTP interface over its engine as a library (chDB), for a process of its own.
//!
//! The engine is ClickHouse's code, so statements, formats, MergeTree, projections, constraints and deduplication are the
//! real ones. Not there: users and quotas, Replicated tables, query_log, the native protocol.

mod child;
mod connection;
mod error;
mod ffi;
mod frames;
mod input;
mod insert;
mod probe;
mod request;
mod select;
mod server;
mod settings;
mod statement;

use std::convert::Infallible;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::Shutdown;
use tokio::sync::Semaphore;

pub use child::ClickHouseChild;
pub use error::ClickHouseError;
pub use probe::{ProbeError, probe, until_ready};
pub use settings::{ClickHouseSettings, library_in};

use connection::{Connection, Engine};
use server::Server;

/// How long the engine may take to close. What was acknowledged is on disk before that.
const CLOSE: Duration = Duration::from_secs(2);

/// Opens the engine and serves until shutdown; then lets open statements end for at most `settings.drain`, closes the
/// engine and **ends the process** (code 0): the library's own exit handlers do not end reliably. So it is for a process
/// that does nothing else, and returns only errors.
///
/// # Errors
/// What is missing, taken or locked.
pub async fn serve(settings: ClickHouseSettings, shutdown: Shutdown) -> Result<Infallible, ClickHouseError> {
    // Clients that come while the engine opens its data wait in the socket's queue; a taken port is seen before that.
    let listener = runtime::http::bind(settings.listen).await?;
    let began = Instant::now();
    let (library, data_dir) = (settings.library.clone(), settings.data_dir.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let engine = Engine::load(&library, &data_dir)?;
        engine.open(&data_dir).map(|boot| (engine, boot))
    });
    let (engine, boot) = opened.await.map_err(|error| ClickHouseError::Thread(error.to_string()))??;
    tracing::info!(
        version = engine.version(),
        listen = %listener.local_addr().unwrap_or(settings.listen),
        data = %settings.data_dir.display(),
        after = ?began.elapsed(),
        "the ClickHouse engine is open"
    );
    let server = Server {
        engine,
        places: Arc::new(Semaphore::new(settings.concurrency)),
        password: settings.password.map(Arc::from),
        patience: settings.patience,
    };
    let served = runtime::http::serve(listener, server::router(server), shutdown, settings.drain).await;
    if let Err(error) = &served {
        tracing::error!(%error, "the ClickHouse interface broke");
    }
    close(boot).await;
    end_process(i32::from(served.is_err()))
}

/// Closes the connection that kept the engine running, and with it the engine.
async fn close(boot: Connection) {
    let closed = tokio::task::spawn_blocking(move || drop(boot));
    match tokio::time::timeout(CLOSE, closed).await {
        Ok(_) => tracing::info!("the ClickHouse engine is closed"),
        Err(_) => tracing::warn!("the ClickHouse engine did not close within {} s", CLOSE.as_secs()),
    }
}

/// Ends the process without its exit handlers.
fn end_process(code: i32) -> ! {
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: ends the process at once; nothing of it is used afterwards.
    unsafe { libc::_exit(code) }
}

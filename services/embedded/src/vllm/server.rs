//! Listens, serves connections, and ends: drained as by SIGTERM, or killed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use runtime::Shutdown;
use runtime::http::{Accepted, Connections, Listener};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::faults::ArmedFault;
use super::record::RequestRecord;
use super::routes::{State, handle};
use super::settings::SimulatorSettings;
use super::socket::{Socket, SocketControl};

/// How long answers may take to leave once the engine has drained.
const LINGER: Duration = Duration::from_secs(5);

/// The simulator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorError {
    /// The address is not to be had.
    #[error("the simulated vLLM cannot listen on {addr}: {source}; is the port taken?")]
    Listen {
        /// Where it was to listen.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The settings make no sense.
    #[error("settings of the simulated vLLM: {}", .0.join("; "))]
    Settings(
        /// Each thing that is wrong.
        Vec<String>,
    ),
}

/// Serves on the listener until `shutdown` resolves; then running requests end with `finish_reason` `abort`, as after SIGTERM.
///
/// # Errors
/// When the settings make no sense.
pub async fn serve(
    settings: SimulatorSettings,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), SimulatorError> {
    let state = checked(settings)?;
    run(state, listener, shutdown).await;
    Ok(())
}

fn checked(settings: SimulatorSettings) -> Result<Arc<State>, SimulatorError> {
    let wrong = settings.validate();
    if wrong.is_empty() { Ok(Arc::new(State::new(settings))) } else { Err(SimulatorError::Settings(wrong)) }
}

async fn run(state: Arc<State>, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
    let (listener, mut connections, never) = (Listener::from(listener), Connections::new(), Shutdown::new());
    let start = |tasks: &mut JoinSet<()>, accepted| drop(tasks.spawn(connection(Arc::clone(&state), accepted)));
    tokio::select! {
        biased;
        () = shutdown => {}
        () = listener.accept(&mut connections, &never, start) => {}
    }
    drop(listener);
    state.engine.drain().await;
    connections.drain(LINGER).await;
}

async fn connection(state: Arc<State>, accepted: Accepted) {
    let control = Arc::new(SocketControl::default());
    let max_write = usize::try_from(state.settings.max_write_bytes).unwrap_or(0);
    let Some(opened) = accepted.open().await else { return };
    let opened = opened.around(|socket| Socket::new(socket, Arc::clone(&control), max_write));
    opened.serve(service_fn(move |request| handle(Arc::clone(&state), Arc::clone(&control), request))).await;
}

/// A running simulator, for tests in the same process. Dropping it kills it.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    /// The one task that serves; dropped, it and its connections end.
    task: JoinSet<()>,
}

impl Simulator {
    /// Starts on `settings.listen` (port 0: a free one).
    ///
    /// # Errors
    /// When the settings make no sense or the address is taken.
    pub async fn start(settings: SimulatorSettings) -> Result<Self, SimulatorError> {
        let addr = settings.listen;
        let state = checked(settings)?;
        let failed = |source| SimulatorError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let mut task = JoinSet::new();
        task.spawn(run(Arc::clone(&state), listener, shutdown));
        Ok(Self { addr, state, stop: Some(stop), task })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://host:port`, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The oracle: every request so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.state.ledger.read()
    }

    /// Forgets the requests so far; those running are no longer listed.
    pub fn forget_requests(&self) {
        self.state.ledger.clear();
    }

    /// Arms these faults in the place of all that were armed.
    pub fn arm(&self, faults: Vec<ArmedFault>) {
        self.state.faults.replace(faults);
    }

    /// Drains as vLLM does on SIGTERM: no new connections, running requests end with `abort`, then it is gone.
    pub async fn drain(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        while self.task.join_next().await.is_some() {}
    }

    /// Dies as by kill -9: every connection is cut at once.
    pub async fn kill(mut self) {
        self.task.shutdown().await;
    }
}

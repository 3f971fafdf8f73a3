//! The wish to stop, known to everything in the process.

use tokio_util::sync::CancellationToken;

/// Cheap to clone; once triggered it stays so. Work that should stop waits on [`Shutdown::cancelled`].
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that only [`Shutdown::trigger`] triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGINT or SIGTERM triggers too. A second signal ends the process at once (exit code 130), so that a
    /// hung drain never holds the terminal.
    ///
    /// # Errors
    /// When the process cannot listen for signals.
    pub fn from_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = Self::new();
        let triggered = shutdown.clone();
        // Not a supervised task: it holds nothing to drain and lives as long as the process. It exits the process only
        // when the user has asked twice.
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(async move {
            for already in [false, true] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if already {
                    tracing::warn!("a second signal: stopping without draining");
                    std::process::exit(130);
                }
                tracing::info!("stopping on a signal");
                triggered.trigger();
            }
        });
        Ok(shutdown)
    }

    /// Asks everything to stop. Harmless to repeat.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    /// True once triggered.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns once triggered.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// The same as [`Shutdown::cancelled`], as a future that borrows nothing.
    pub fn cancelled_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }

    /// Triggers it when the guard is dropped: however the work ends that holds it.
    pub fn drop_guard(&self) -> impl Drop + Send + Sync + 'static {
        self.0.clone().drop_guard()
    }

    /// One that is triggered with this one, and alone by itself.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Sleeps for `time`, or until triggered. True if it slept to the end.
    pub async fn sleep(&self, time: std::time::Duration) -> bool {
        tokio::select! {
            () = self.0.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_stops_with_its_parent_and_not_the_other_way() {
        let parent = Shutdown::new();
        let (first, second) = (parent.child(), parent.child());
        first.trigger();
        assert!(first.is_cancelled() && !parent.is_cancelled() && !second.is_cancelled());
        parent.trigger();
        second.cancelled().await;
        assert!(!parent.sleep(std::time::Duration::from_secs(3600)).await);
    }
}

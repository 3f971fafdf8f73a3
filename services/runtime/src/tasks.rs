//! Named, supervised tasks: none dies unseen, each has so long to drain.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Shutdown;

/// Why a process stops although nobody asked it to, or could not stop in time.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The task gave up with an error.
    #[error("task {name} failed: {reason}")]
    Failed {
        /// The task's name.
        name: Cow<'static, str>,
        /// What it said.
        reason: String,
    },
    /// The task panicked. A bug: the log has the message and the place.
    #[error("task {name} panicked: {reason} (a bug in Tollgate; please report it with the log)")]
    Panicked {
        /// The task's name.
        name: Cow<'static, str>,
        /// The panic's message.
        reason: String,
    },
    /// The task returned although the process is to go on.
    #[error("task {name} ended before it was asked to (a bug in Tollgate; please report it with the log)")]
    EndedEarly {
        /// The task's name.
        name: Cow<'static, str>,
    },
    /// The task was still busy when its time to drain was over, and was dropped.
    #[error("task {name} did not finish within its {budget:?} to drain and was stopped")]
    Overran {
        /// The task's name.
        name: Cow<'static, str>,
        /// How long it had.
        budget: Duration,
    },
}

/// How a task came to its end.
enum End {
    Returned,
    Failed(String),
    Panicked(String),
    Aborted,
}

struct Running {
    name: Cow<'static, str>,
    drain: Duration,
    may_end: bool,
    abort: Option<AbortHandle>,
}

struct Inner {
    shutdown: Shutdown,
    next: AtomicU64,
    running: Mutex<HashMap<u64, Running>>,
    ended: mpsc::UnboundedSender<(u64, End)>,
    ends: Mutex<Option<mpsc::UnboundedReceiver<(u64, End)>>>,
}

/// The tasks of a process. Cheap to clone: whoever needs one spawns it here, by name and with its time to drain;
/// [`Tasks::run`] then holds the process to it.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("running", &self.names()).finish()
    }
}

impl Tasks {
    /// No tasks yet. They are asked to stop through `shutdown`, which a dying task triggers.
    pub fn new(shutdown: Shutdown) -> Self {
        let (ended, ends) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            shutdown,
            next: AtomicU64::new(0),
            running: Mutex::default(),
            ended,
            ends: Mutex::new(Some(ends)),
        }))
    }

    /// The wish to stop that these tasks follow.
    pub fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    /// Starts a task that runs until shutdown. If it returns earlier, fails or panics, the process stops. After shutdown
    /// it has `drain` to finish, then it is dropped.
    pub fn spawn<F, E>(&self, name: impl Into<Cow<'static, str>>, drain: Duration, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.start(name.into(), drain, false, task);
    }

    /// Starts a task that may return whenever its work is done. Failing or panicking stops the process all the same.
    pub fn spawn_finite<F, E>(&self, name: impl Into<Cow<'static, str>>, drain: Duration, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.start(name.into(), drain, true, task);
    }

    /// Starts work that blocks, on a thread of its own, until shutdown (see [`Tasks::spawn`]). A thread cannot be dropped:
    /// one that overruns its `drain` is left to the end of the process.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn spawn_thread<F, E>(
        &self,
        name: impl Into<Cow<'static, str>>,
        drain: Duration,
        work: F,
    ) -> std::io::Result<()>
    where
        F: FnOnce() -> Result<(), E> + Send + 'static,
        E: Display,
    {
        let name = name.into();
        let id = self.register(name.clone(), drain, false);
        let ended = self.0.ended.clone();
        let spawned = std::thread::Builder::new().name(name.into_owned()).spawn(move || {
            let end = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                Ok(Ok(())) => End::Returned,
                Ok(Err(error)) => End::Failed(error.to_string()),
                Err(panic) => End::Panicked(message_of(&*panic)),
            };
            let _ = ended.send((id, end));
        });
        if let Err(error) = spawned {
            lock(&self.0.running).remove(&id);
            return Err(error);
        }
        Ok(())
    }

    fn register(&self, name: Cow<'static, str>, drain: Duration, may_end: bool) -> u64 {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.running).insert(id, Running { name, drain, may_end, abort: None });
        id
    }

    // The one place where tasks start: everything else goes through it and has a name.
    #[allow(clippy::disallowed_methods)]
    fn start<F, E>(&self, name: Cow<'static, str>, drain: Duration, may_end: bool, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let id = self.register(name, drain, may_end);
        let handle = tokio::spawn(task);
        if let Some(running) = lock(&self.0.running).get_mut(&id) {
            running.abort = Some(handle.abort_handle());
        }
        let ended = self.0.ended.clone();
        tokio::spawn(async move {
            let end = match handle.await {
                Ok(Ok(())) => End::Returned,
                Ok(Err(error)) => End::Failed(error.to_string()),
                Err(stopped) => match stopped.try_into_panic() {
                    Ok(panic) => End::Panicked(message_of(&*panic)),
                    Err(_) => End::Aborted,
                },
            };
            let _ = ended.send((id, end));
        });
    }

    /// The names of what runs now, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = lock(&self.0.running).values().map(|r| r.name.to_string()).collect();
        names.sort();
        names
    }

    /// Waits until shutdown, or until a task dies (which triggers shutdown); then gives each task its time to drain.
    /// Call it once per process.
    ///
    /// # Errors
    /// The first thing that went wrong; later ones are logged.
    pub async fn run(&self) -> Result<(), TaskError> {
        let Some(mut ends) = lock(&self.0.ends).take() else {
            // Somebody else supervises already; it is enough to wait with them.
            self.0.shutdown.cancelled().await;
            return Ok(());
        };
        let mut first = None;
        while !self.0.shutdown.is_cancelled() {
            let (id, end) = tokio::select! {
                () = self.0.shutdown.cancelled() => break,
                Some(ended) = ends.recv() => ended,
            };
            if let Some(error) = self.settle(id, end) {
                tracing::error!(%error, "stopping the process");
                first = Some(error);
                self.0.shutdown.trigger();
            }
        }
        self.drain(&mut ends, &mut first).await;
        first.map_or(Ok(()), Err)
    }

    async fn drain(&self, ends: &mut mpsc::UnboundedReceiver<(u64, End)>, first: &mut Option<TaskError>) {
        let asked = Instant::now();
        loop {
            // The task whose time is over first; no task left: done.
            let next = lock(&self.0.running).iter().map(|(id, r)| (asked + r.drain, *id)).min();
            let Some((deadline, id)) = next else { return };
            let error = tokio::select! {
                Some((id, end)) = ends.recv() => self.settle(id, end),
                () = tokio::time::sleep_until(deadline) => self.overrun(id),
            };
            if let Some(error) = error {
                tracing::error!(%error, "while stopping");
                first.get_or_insert(error);
            }
        }
    }

    fn overrun(&self, id: u64) -> Option<TaskError> {
        let running = lock(&self.0.running).remove(&id)?;
        if let Some(abort) = &running.abort {
            abort.abort();
        }
        Some(TaskError::Overran { name: running.name, budget: running.drain })
    }

    /// Takes an ended task off the list; says what was wrong with its end.
    fn settle(&self, id: u64, end: End) -> Option<TaskError> {
        let Running { name, may_end, .. } = lock(&self.0.running).remove(&id)?;
        match end {
            End::Failed(reason) => Some(TaskError::Failed { name, reason }),
            End::Panicked(reason) => Some(TaskError::Panicked { name, reason }),
            End::Returned if may_end || self.0.shutdown.is_cancelled() => None,
            End::Returned => Some(TaskError::EndedEarly { name }),
            End::Aborted => Some(TaskError::Failed { name, reason: "it was aborted".into() }),
        }
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// Nothing here can leave the data half changed, so a lock poisoned by a panic elsewhere is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const SOON: Duration = Duration::from_secs(5);

    async fn waits(shutdown: Shutdown) -> Result<(), Infallible> {
        shutdown.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn ends_well_when_asked_to() {
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("a", SOON, waits(tasks.shutdown().clone()));
        tasks.spawn_finite("b", SOON, async { Ok::<_, Infallible>(()) });
        let shutdown = tasks.shutdown().clone();
        tasks
            .spawn_thread("c", SOON, move || {
                while !shutdown.is_cancelled() {
                    std::thread::yield_now();
                }
                Ok::<_, Infallible>(())
            })
            .unwrap();
        assert_eq!(tasks.names().first().map(String::as_str), Some("a"));
        tasks.shutdown().trigger();
        tasks.run().await.unwrap();
        assert_eq!(tasks.names(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_task_that_dies_stops_the_process_and_is_named() {
        for (kind, wanted) in [(0, "ended before"), (1, "failed: no luck"), (2, "panicked: oh")] {
            let tasks = Tasks::new(Shutdown::new());
            tasks.spawn("steady", SOON, waits(tasks.shutdown().clone()));
            tasks.spawn("weak", SOON, async move {
                match kind {
                    0 => Ok(()),
                    1 => Err("no luck"),
                    _ => panic!("oh"),
                }
            });
            let said = tasks.run().await.unwrap_err().to_string();
            assert!(said.contains("weak") && said.contains(wanted), "{said}");
            assert!(tasks.shutdown().is_cancelled());
        }
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_named() {
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn_thread("weak", SOON, || -> Result<(), Infallible> { panic!("oh") }).unwrap();
        assert!(matches!(tasks.run().await, Err(TaskError::Panicked { .. })));
    }

    #[tokio::test]
    async fn a_task_that_does_not_drain_is_dropped_after_its_own_budget() {
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("quick", SOON * 2, waits(tasks.shutdown().clone()));
        tasks.spawn("slow", Duration::from_millis(20), std::future::pending::<Result<(), Infallible>>());
        tasks.shutdown().trigger();
        let said = tasks.run().await.unwrap_err();
        assert!(matches!(&said, TaskError::Overran { name, .. } if name == "slow"), "{said}");
        assert_eq!(tasks.names(), Vec::<String>::new());
    }
}

//! Threads that serve connections, each with a runtime of its own: what belongs to a connection stays on one thread, so
//! that no frame of it waits for another thread to wake up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};

use crate::Shutdown;

/// See the module. Dropped, its threads end, and what still runs on them is dropped.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    stop: Shutdown,
}

/// One of them.
#[derive(Debug)]
pub struct Worker {
    number: usize,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    open: Arc<AtomicUsize>,
}

/// Something that a worker has open; no longer so when dropped.
#[derive(Debug)]
pub struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// So many threads, one at least; for 0 as many as the host has cores for this process.
    ///
    /// # Errors
    /// When the host has no thread or no file handle left.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = if count == 0 { cores() } else { count };
        let mut workers = Self { workers: Vec::with_capacity(count), stop: Shutdown::new() };
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, stop) = (runtime.handle().clone(), workers.stop.clone());
            let run = move || {
                runtime.block_on(stop.cancelled());
                // A name that is being looked up is not waited for.
                runtime.shutdown_background();
            };
            let thread = std::thread::Builder::new().name(format!("worker {number}")).spawn(run)?;
            workers.workers.push(Worker { number, handle, thread: Some(thread), open: Arc::default() });
        }
        Ok(workers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// The one that has the least open. It has one more until the second value is dropped.
    pub fn least_busy(&self) -> Option<(&Worker, Open)> {
        let worker = self.workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed))?;
        worker.open.fetch_add(1, Ordering::Relaxed);
        Some((worker, Open(Arc::clone(&worker.open))))
    }
}

impl Worker {
    /// Its place, counted from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where to spawn what it runs.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.trigger();
        for worker in &mut self.workers {
            // What panicked there was a task, and has been told of.
            let _ = worker.thread.take().map(JoinHandle::join);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn connections_are_shared_out_and_stay_on_their_thread() {
        let workers = Workers::start(2).unwrap();
        let mut tasks = JoinSet::new();
        let mut held = Vec::new();
        for _ in 0..4 {
            let (worker, open) = workers.least_busy().unwrap();
            held.push(open);
            let number = worker.number();
            let run = async move { (number, std::thread::current().name().map(str::to_owned)) };
            tasks.spawn_on(run, worker.handle());
        }
        let mut seen = tasks.join_all().await;
        seen.sort();
        let threads = [0, 0, 1, 1].map(|number| (number, Some(format!("worker {number}"))));
        assert_eq!(seen, threads);
        held.truncate(3);
        assert_eq!(workers.least_busy().unwrap().0.number(), 1);
        tokio::task::spawn_blocking(|| drop(workers)).await.unwrap();
    }
}

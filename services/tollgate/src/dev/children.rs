//! All children of `dev`, in stages: what is started last is stopped first.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::{Shutdown, Tasks};
use tokio::sync::watch;

use super::child::{Spec, keep, last_lines};
use super::terminal::say;
use crate::web;

/// In the order of stopping: roles write until the end, so what they write to goes after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Gateway, fold, billing.
    Roles,
    /// Simulated vLLM, ClickHouse, the registry.
    Servers,
    /// Kafka.
    Log,
}

const STAGES: [Stage; 3] = [Stage::Roles, Stage::Servers, Stage::Log];

/// How much longer than its own drain a child's supervisor may take.
const SLACK: Duration = Duration::from_secs(3);

/// The children and their supervisors.
pub(crate) struct Children {
    tasks: Tasks,
    stops: [Shutdown; STAGES.len()],
    /// One receiver per child; it closes when the child is gone for good.
    running: Mutex<Vec<(Stage, watch::Receiver<()>)>>,
}

impl Children {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { tasks, stops: Default::default(), running: Mutex::default() }
    }

    /// Starts a child and keeps it running until its stage is stopped.
    pub(crate) fn start(&self, stage: Stage, spec: Spec) {
        let (alive, gone) = watch::channel(());
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push((stage, gone));
        let stop = self.stops[stage as usize].clone();
        // The stages before it have drained before this one is asked to, so each supervisor is given time for all.
        let budget = STAGES.len() as u32 * (spec.drain + SLACK);
        self.tasks.spawn(spec.name, budget, async move {
            let kept = keep(spec, stop).await;
            drop(alive);
            kept
        });
    }

    /// Stops stage after stage.
    pub(crate) async fn stop(&self) {
        for stage in STAGES {
            self.stops[stage as usize].trigger();
            let gone: Vec<_> = {
                let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                running.extract_if(.., |(of, _)| *of == stage).map(|(_, gone)| gone).collect()
            };
            for mut gone in gone {
                while gone.changed().await.is_ok() {}
            }
        }
    }
}

/// Waits until `url` answers 200.
pub(crate) async fn until_ready(name: &str, url: &str, log: &Path, limit: Duration) -> Result<(), String> {
    let began = Instant::now();
    let mut told = Instant::now();
    loop {
        let why = match web::get(url).await {
            Ok(answer) if answer.is_success() => return Ok(()),
            Ok(answer) => format!("{} {}", answer.status, answer.text.trim()),
            Err(reason) => reason,
        };
        if began.elapsed() > limit {
            return Err(format!(
                "{name} is not ready after {} s ({why}); the end of {}:\n{}",
                limit.as_secs(),
                log.display(),
                last_lines(log, 15)
            ));
        }
        if told.elapsed() > Duration::from_secs(5) {
            say(&format!("    still waiting for {name} ({why})"));
            told = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn roles_are_gone_before_what_they_write_to() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let children = std::sync::Arc::new(Children::new(tasks.clone()));
        let order = folder.path().join("order");
        let spec = |name: &'static str| Spec {
            name,
            program: "/bin/sh".into(),
            // The shell runs the trap only after the sleep it waits for, so the sleep is short.
            arguments: vec![
                "-c".into(),
                format!(
                    "trap 'echo {name} >> {}; exit 0' TERM; echo up; while :; do sleep 0.02; done",
                    order.display()
                )
                .into(),
            ],
            folder: folder.path().to_owned(),
            environment: Vec::new(),
            log: folder.path().join(format!("{name}.log")),
            drain: Duration::from_secs(5),
        };
        for (stage, name) in [(Stage::Log, "kafka"), (Stage::Servers, "clickhouse"), (Stage::Roles, "gateway")] {
            children.start(stage, spec(name));
        }
        let stopping = children.clone();
        let asked = shutdown.clone();
        tasks.spawn("stop in order", SLACK * 10, async move {
            asked.cancelled().await;
            stopping.stop().await;
            Ok::<_, String>(())
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        for name in ["kafka", "clickhouse", "gateway"] {
            let log = folder.path().join(format!("{name}.log"));
            while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("up")) {
                assert!(Instant::now() < deadline);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        shutdown.trigger();
        tasks.run().await.unwrap();
        assert_eq!(std::fs::read_to_string(order).unwrap(), "gateway\nclickhouse\nkafka\n");
    }
}

//! All children of `dev`, in stages: what is started last is stopped first, all within one deadline.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::Tasks;
use tokio::sync::watch;

use super::child::{Spec, Stop, keep, last_lines};
use super::terminal::say;

/// How long everything together may take to stop.
pub(crate) const STOP: Duration = Duration::from_millis(9_500);
/// How much longer a supervisor may take than its child, which it kills in time.
const SLACK: Duration = Duration::from_secs(3);
/// A child that died so often before it was ready will not get ready.
const HOPELESS: u32 = 3;

/// In the order of stopping: what writes to another goes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Drains its clients, and ships what is in its spool.
    Gateway,
    /// Folds what was shipped.
    Fold,
    Billing,
    /// Simulated vLLM, ClickHouse, the registry.
    Servers,
    /// Kafka. A killed broker loses nothing that it acknowledged, but its next start is slower.
    Log,
}

const STAGES: [Stage; 5] = [Stage::Gateway, Stage::Fold, Stage::Billing, Stage::Servers, Stage::Log];

impl Stage {
    /// What is kept for this stage, however long those before it took.
    const fn at_least(self) -> Duration {
        Duration::from_millis(match self {
            Self::Gateway => 3_000,
            Self::Fold | Self::Servers => 1_000,
            Self::Billing => 500,
            Self::Log => 2_000,
        })
    }
}

/// What each stage may take of the time that is left.
fn grace(stage: Stage, left: Duration) -> Duration {
    let later = STAGES.into_iter().skip(stage as usize + 1).map(Stage::at_least).sum();
    left.saturating_sub(later)
}

/// A started child, for whoever waits until it is ready.
#[derive(Debug)]
pub(crate) struct Started {
    name: &'static str,
    logs: Vec<PathBuf>,
    deaths: watch::Receiver<u32>,
}

/// The children and their supervisors.
pub(crate) struct Children {
    tasks: Tasks,
    stops: [Stop; STAGES.len()],
    /// One receiver per child; it closes when the child is gone for good.
    running: Mutex<Vec<(Stage, watch::Receiver<u32>)>>,
}

impl Children {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { tasks, stops: Default::default(), running: Mutex::default() }
    }

    /// Starts a child and keeps it running until its stage is stopped.
    pub(crate) fn start(&self, stage: Stage, spec: Spec) -> Started {
        let (alive, deaths) = watch::channel(0);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push((stage, deaths.clone()));
        let started = Started { name: spec.name, logs: vec![spec.log.clone()], deaths };
        self.tasks.spawn(spec.name, STOP + SLACK, keep(spec, self.stops[stage as usize].clone(), alive));
        started
    }

    /// Stops stage after stage.
    pub(crate) async fn stop(&self) {
        let deadline = Instant::now() + STOP;
        for stage in STAGES {
            self.stops[stage as usize].ask(grace(stage, deadline.saturating_duration_since(Instant::now())));
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

impl Started {
    /// Names another file that holds its words.
    pub(crate) fn also_logs_to(mut self, log: PathBuf) -> Self {
        self.logs.push(log);
        self
    }

    /// Asks until the child is ready, and says now and then what it is waited for. Gives up after `limit`, or when the child
    /// only dies.
    pub(crate) async fn until_ready<P>(self, limit: Duration, probe: impl Fn() -> P) -> Result<(), String>
    where
        P: Future<Output = Result<(), String>>,
    {
        let began = Instant::now();
        let mut told = Instant::now();
        loop {
            let Err(why) = probe().await else { return Ok(()) };
            let deaths = *self.deaths.borrow();
            if deaths >= HOPELESS {
                return Err(self.with_last_words(format!("{} died {deaths} times and was never ready", self.name)));
            }
            if began.elapsed() > limit {
                let so_long = limit.as_secs();
                return Err(self.with_last_words(format!("{} is not ready after {so_long} s ({why})", self.name)));
            }
            if told.elapsed() > Duration::from_secs(5) {
                say(&format!("    still waiting for {} ({why})", self.name));
                told = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn with_last_words(&self, mut said: String) -> String {
        for log in &self.logs {
            let words = last_lines(log, 12);
            if !words.is_empty() {
                said.push_str(&format!("; the end of {}:\n{words}", log.display()));
            }
        }
        said.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Shutdown;
    use std::path::Path;

    fn shell(folder: &Path, name: &'static str, script: &str) -> Spec {
        Spec {
            name,
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            folder: folder.to_owned(),
            log: folder.join(format!("{name}.log")),
        }
    }

    /// Runs `work` beside the supervision of `children`, then stops them.
    async fn supervised<F: Future<Output = ()>>(work: impl FnOnce(std::sync::Arc<Children>) -> F) {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let children = std::sync::Arc::new(Children::new(tasks.clone()));
        let (stopping, asked) = (children.clone(), shutdown.clone());
        tasks.spawn("stop in order", STOP + SLACK, async move {
            asked.cancelled().await;
            stopping.stop().await;
            Ok::<_, String>(())
        });
        let working = async {
            work(children).await;
            shutdown.trigger();
        };
        let (ended, ()) = tokio::join!(tasks.run(), working);
        ended.unwrap();
    }

    #[tokio::test]
    async fn what_writes_is_gone_before_what_it_writes_to() {
        let folder = tempfile::tempdir().unwrap();
        let order = folder.path().join("order");
        let stages =
            [(Stage::Log, "kafka"), (Stage::Servers, "clickhouse"), (Stage::Fold, "fold"), (Stage::Gateway, "gateway")];
        supervised(async |children| {
            for (stage, name) in stages {
                // The shell runs the trap only after the sleep it waits for, so the sleep is short.
                let script = format!(
                    "trap 'echo {name} >> {}; exit 0' TERM; echo up; while :; do sleep 0.02; done",
                    order.display()
                );
                let log = folder.path().join(format!("{name}.log"));
                let started = children.start(stage, shell(folder.path(), name, &script));
                let up = async || match std::fs::read_to_string(&log) {
                    Ok(text) if text.contains("up") => Ok(()),
                    _ => Err("not up".to_owned()),
                };
                started.until_ready(Duration::from_secs(30), up).await.unwrap();
            }
        })
        .await;
        assert_eq!(std::fs::read_to_string(&order).unwrap(), "gateway\nfold\nclickhouse\nkafka\n");
    }

    #[tokio::test]
    async fn a_child_that_only_dies_is_given_up_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        supervised(async |children| {
            let started = children.start(Stage::Fold, shell(folder.path(), "fold", "echo no such setting; exit 1"));
            let said =
                started.until_ready(Duration::from_secs(60), async || Err("refused".to_owned())).await.unwrap_err();
            assert!(said.contains("died 3 times") && said.contains("no such setting"), "{said}");
        })
        .await;
    }

    #[test]
    fn stages_that_dawdle_leave_the_others_their_time() {
        let mut left = STOP;
        for stage in STAGES {
            let taken = grace(stage, left);
            assert!(taken >= stage.at_least(), "{stage:?} has {taken:?}");
            left -= taken;
        }
        assert_eq!(left, Duration::ZERO);
    }
}

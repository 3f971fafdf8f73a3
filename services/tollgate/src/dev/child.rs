//! One supervised child process: started, restarted when it dies, stopped when asked, dead when its parent is.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use runtime::Shutdown;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::logs::Log;
use super::terminal::say;

/// The first wait before a restart; it doubles up to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = Duration::from_secs(8);
/// A child that lived so long starts again at the first wait.
const STEADY: Duration = Duration::from_secs(20);
/// How long a dead child's outputs are read on: a grandchild may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What to run and how to treat it.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
}

/// The wish that a child stops, with how long it may take before it is killed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    asked: Shutdown,
    grace: Arc<OnceLock<Duration>>,
}

impl Stop {
    /// Asks. Only the first asking counts.
    pub(crate) fn ask(&self, grace: Duration) {
        let _ = self.grace.set(grace);
        self.asked.trigger();
    }

    fn grace(&self) -> Duration {
        self.grace.get().copied().unwrap_or_default()
    }
}

/// Why a child cannot be supervised at all.
#[derive(Debug, thiserror::Error)]
#[error("the log {log} cannot be written: {source}")]
pub(crate) struct LogError {
    log: String,
    source: std::io::Error,
}

/// Keeps the child running until it is asked to stop, then stops it. Counts its deaths.
pub(crate) async fn keep(spec: Spec, stop: Stop, deaths: watch::Sender<u32>) -> Result<(), LogError> {
    let mut backoff = FIRST_BACKOFF;
    while !stop.asked.is_cancelled() {
        let log = Log::open(&spec.log).await;
        let log = log.map_err(|source| LogError { log: spec.log.display().to_string(), source })?;
        let began = Instant::now();
        let how = match live(&spec, &stop, log).await {
            End::Stopped => return Ok(()),
            End::Died(how) => how,
        };
        if began.elapsed() >= STEADY {
            backoff = FIRST_BACKOFF;
        }
        deaths.send_modify(|count| *count += 1);
        say(&format!(
            "! {} {how}; starting it again in {:.1} s (its last words: {})",
            spec.name,
            backoff.as_secs_f64(),
            spec.log.display()
        ));
        stop.asked.sleep(backoff).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
    Ok(())
}

/// How one life of a child came to its end.
enum End {
    /// It was asked to.
    Stopped,
    /// By itself, or it never began.
    Died(String),
}

/// One life: from its start to its death, or to its stop when asked.
async fn live(spec: &Spec, stop: &Stop, mut log: Log) -> End {
    let mut child = match start(spec) {
        Ok(child) => child,
        // A program that is just being built anew cannot be started for a moment.
        Err(error) => return End::Died(format!("cannot be started: {}: {error}", spec.program.display())),
    };
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return End::Died("has no outputs".to_owned());
    };
    let followed = AtomicBool::new(false);
    let mut following = std::pin::pin!(async {
        log.follow(out, err).await;
        followed.store(true, Ordering::Relaxed);
    });
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        never = forever(following.as_mut()) => match never {},
        () = stop.asked.cancelled() => None,
    };
    if ended.is_none() {
        // Its output is read on while it stops: it must not hang on a full pipe, and its last words matter most.
        tokio::select! {
            () = halt(spec, &mut child, stop.grace()) => {}
            never = forever(following.as_mut()) => match never {},
        }
    }
    last_words(&followed, following).await;
    match ended {
        Some(ended) if !stop.asked.is_cancelled() => End::Died(ended.map_or_else(|error| error.to_string(), describe)),
        _ => End::Stopped,
    }
}

/// Follows the outputs and, when they have ended, waits for ever.
async fn forever(following: impl Future<Output = ()>) -> Infallible {
    following.await;
    std::future::pending().await
}

async fn last_words(followed: &AtomicBool, following: impl Future<Output = ()>) {
    if !followed.load(Ordering::Relaxed) {
        let _ = tokio::time::timeout(LAST_WORDS, following).await;
    }
}

/// "was killed by signal 9", "ended with code 1".
pub(crate) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn start(spec: &Spec) -> std::io::Result<Child> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .current_dir(&spec.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: Ctrl-C reaches only the parent, which then stops the children in order.
        .process_group(0)
        .kill_on_drop(true);
    // Children are started from the main thread only (a current-thread runtime): none outlives a parent that was killed.
    embedded::die_with_parent(command.as_std_mut());
    command.spawn()
}

/// Asks the child to stop, waits as long as it may take, then kills it.
async fn halt(spec: &Spec, child: &mut Child, grace: Duration) {
    signal(child, libc::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        say(&format!("! {} did not stop within {:.1} s and is killed", spec.name, grace.as_secs_f64()));
        let _ = child.kill().await;
    }
}

fn signal(child: &Child, signal: i32) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: kill takes no pointers; the pid is our own child's, not waited for yet, so it cannot be another's.
        unsafe {
            libc::kill(pid, signal);
        }
    }
}

/// The end of a log file, for an error at start.
pub(crate) fn last_lines(log: &Path, count: usize) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(folder: &Path, script: &str) -> Spec {
        Spec {
            name: "child",
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            folder: folder.to_owned(),
            log: folder.join("child.log"),
        }
    }

    async fn until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < deadline, "waited too long");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_dead_child_is_started_again_and_its_words_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec(folder.path(), "echo started >&2; kill -9 $$");
        let (stop, log) = (Stop::default(), spec.log.clone());
        let (deaths, counted) = watch::channel(0);
        let words = || std::fs::read_to_string(&log).unwrap_or_default().matches("started").count();
        let (kept, ()) = tokio::join!(keep(spec, stop.clone(), deaths), async {
            until(|| words() >= 2).await;
            stop.ask(Duration::from_secs(5));
        });
        kept.unwrap();
        assert!(*counted.borrow() >= 1);
        assert!(last_lines(&log, 1).contains("started"));
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_signal_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec(folder.path(), "trap '' TERM; echo pid=$$; while :; do sleep 0.05; done");
        let (stop, log) = (Stop::default(), spec.log.clone());
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        let (kept, ()) = tokio::join!(keep(spec, stop.clone(), watch::channel(0).0), async {
            until(|| text().contains("pid=")).await;
            stop.ask(Duration::from_millis(200));
        });
        kept.unwrap();
        let pid = text().split("pid=").nth(1).unwrap().lines().next().unwrap().to_owned();
        assert!(!Path::new("/proc").join(pid).exists(), "it is gone when its supervisor returns");
    }
}

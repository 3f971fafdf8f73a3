//! A child process that is waited for by a thread of its own, so that it dies with this process and never becomes a zombie.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::watch;

/// Whether a child may outlive the process that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// The kernel kills it when this process dies, however this process dies; dropping [`Process`] kills it too.
    Bound,
    /// It goes on alone.
    Detached,
}

/// A running (or ended) child.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    lifetime: Lifetime,
    /// Held while a signal is sent and while the child is reaped: a pid must not be signalled once it may be another's.
    alive: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts the command. `PR_SET_PDEATHSIG` follows the *thread* that forked, so a thread is made that lives as long as
    /// the child does and waits for it.
    ///
    /// # Errors
    /// What the system says when the program cannot be started.
    pub(crate) fn spawn(mut command: Command, lifetime: Lifetime) -> std::io::Result<Self> {
        // A group of its own: Ctrl-C in the terminal reaches only us, and we stop children in order.
        command.process_group(0);
        if lifetime == Lifetime::Bound {
            die_with_parent(&mut command);
        }
        let alive = Arc::new(Mutex::new(true));
        let (exited, exit) = watch::channel(None);
        let (started, start) = mpsc::sync_channel(1);
        let reaped = alive.clone();
        std::thread::Builder::new().name("child".to_owned()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(child.id()));
            wait_without_reaping(child.id());
            let mut alive = reaped.lock().unwrap_or_else(PoisonError::into_inner);
            *alive = false;
            if let Ok(status) = child.wait() {
                exited.send_replace(Some(status));
            }
        })?;
        let pid = start.recv().map_err(std::io::Error::other)??;
        Ok(Self { pid, lifetime, alive, exit })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end. `None` only if the system could not tell how it ended.
    pub(crate) async fn wait(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        ended.or_else(|| self.exit_status())
    }

    /// Sends a signal; false if it has ended.
    pub(crate) fn signal(&self, signal: libc::c_int) -> bool {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(pid) = libc::pid_t::try_from(self.pid) else { return false };
        // SAFETY: kill takes no pointers. `alive` is held and true, so the child is not reaped and the pid is still its own.
        *alive && unsafe { libc::kill(pid, signal) } == 0
    }

    /// Asks it to stop, waits at most `grace`, then kills it. True if it stopped by itself in time.
    pub(crate) async fn stop(&self, grace: Duration) -> bool {
        self.signal(libc::SIGTERM);
        if tokio::time::timeout(grace, self.wait()).await.is_ok() {
            return true;
        }
        self.kill().await;
        false
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub(crate) async fn kill(&self) {
        self.signal(libc::SIGKILL);
        self.wait().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Bound {
            self.signal(libc::SIGKILL);
        }
    }
}

/// Returns when the child has ended, leaving it to be reaped.
fn wait_without_reaping(pid: u32) {
    loop {
        // SAFETY: an all-zero siginfo_t is valid, it lives through the call, and waitid writes only into it.
        let ended = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if ended == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

/// Has the kernel kill the child when the thread that starts it ends, however it ends. So that thread must live as long as
/// the child is to.
pub fn die_with_parent(command: &mut Command) {
    signal_with_parent(command, libc::SIGKILL);
}

/// The same with another signal, for a program that has children of its own to end.
pub fn signal_with_parent(command: &mut Command, signal: libc::c_int) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid), and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died in between: then the signal will never come.
            if libc::getppid().cast_unsigned() != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// How a child ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
    }
}

/// The last `count` lines of what a child wrote, indented.
pub(crate) fn tail(text: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_child_outlives_the_thread_that_asked_for_it() {
        let process = std::thread::scope(|scope| {
            scope.spawn(|| Process::spawn(shell("exec sleep 600"), Lifetime::Bound).unwrap()).join().unwrap()
        });
        assert!(tokio::time::timeout(Duration::from_millis(100), process.wait()).await.is_err());
        assert!(process.stop(Duration::from_secs(10)).await);
        assert_eq!(process.exit_status().unwrap().signal(), Some(libc::SIGTERM));
        assert!(!process.signal(libc::SIGTERM), "an ended child is never signalled");
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_request_is_killed() {
        let mut command = shell("trap '' TERM; echo up; while :; do sleep 0.05; done");
        let (mut up, output) = std::io::pipe().unwrap();
        command.stdout(output);
        let process = Process::spawn(command, Lifetime::Bound).unwrap();
        std::io::Read::read_exact(&mut up, &mut [0; 2]).unwrap();
        assert!(!process.stop(Duration::from_millis(50)).await);
        assert_eq!(process.exit_status().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_an_error() {
        assert!(Process::spawn(Command::new("/nowhere/at/all"), Lifetime::Detached).is_err());
    }
}

//! A Redis of its own for a test, on a socket in a temporary directory; it can be killed and come back.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use gateway::RedisSettings;
use runtime::config::Secret;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::world::until;

/// See the module.
pub(crate) struct Redis {
    child: Child,
    dir: TempDir,
}

fn server() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tools = std::env::var_os("TOLLGATE_TOOLS").map_or(root.join(".tools"), PathBuf::from);
    let server = tools.join("redis/redis-server");
    assert!(server.exists(), "there is no {}: run make setup", server.display());
    server
}

async fn start(dir: &TempDir) -> Child {
    let socket = dir.path().join("redis.sock");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new(server());
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(dir.path());
    command.arg("--unixsocket").arg(&socket);
    let child = command.stdout(Stdio::null()).kill_on_drop(true).spawn().expect("a Redis server");
    until("Redis listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    child
}

impl Redis {
    /// An empty one.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { child: start(&dir).await, dir }
    }

    /// Settings of a gateway that uses it. They are patient: the machine of a test may be busy.
    pub(crate) fn settings(&self) -> RedisSettings {
        RedisSettings {
            url: Secret::new(format!("unix://{}", self.dir.path().join("redis.sock").display())),
            timeout: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            ..RedisSettings::default()
        }
    }

    /// `kill -9`: all that it knew is lost.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// An empty one again, in the same place.
    pub(crate) async fn restart(&mut self) {
        self.child = start(&self.dir).await;
    }
}

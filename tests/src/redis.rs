//! A Redis for gateways that keep limits together, on a socket of its own; it can be killed and come back empty.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::servers::tools;
use crate::system::System;
use crate::wait::until;

const START: Duration = Duration::from_secs(30);

/// A running Redis. Dropping it kills it.
#[derive(Debug)]
pub struct Redis {
    dir: PathBuf,
    child: Child,
}

impl Redis {
    /// An empty one in a system's folder. The gateways of it that are started from now on keep their limits there.
    pub async fn start(system: &mut System) -> Self {
        let dir = system.dir().join("redis");
        std::fs::create_dir(&dir).expect("a folder");
        let child = spawn(&dir).await;
        system.set("GATEWAY__REDIS__URL", &format!("unix://{}", socket(&dir).display()));
        // The machine of a test may be busy: an answer that is late is no failure there, and no lease ends by itself.
        system.set("GATEWAY__REDIS__TIMEOUT", "4s");
        system.set("GATEWAY__REDIS__LEASE", "12s");
        Self { dir, child }
    }

    /// kill -9: all that it knew is lost.
    pub fn kill(&mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("its end");
    }

    /// An empty one again, in the same place.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.dir).await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("redis.sock")
}

async fn spawn(dir: &Path) -> Child {
    let server = tools().join("redis/redis-server");
    assert!(server.exists(), "there is no {}: run make setup", server.display());
    let socket = socket(dir);
    // What was killed has left it behind.
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new(server);
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(dir);
    command.arg("--unixsocket").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
    embedded::die_with_parent(&mut command);
    let child = command.spawn().expect("a Redis server");
    until("Redis to listen", START, async || UnixStream::connect(&socket)).await;
    child
}

//! The hosts of the processes of a system: each has a clock that can step, and a disk that can be slow, almost full or full.
//!
//! A small library in front of the C library (`host.c`, built by the C compiler that building Tollgate needs anyway) asks a file
//! what the host does. The ClickHouse engine brings a clock of its own, which is not reached.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The host that the broker is on.
pub const BROKER: &str = "broker";
/// The host that ClickHouse is on. A role is on the one of its name.
pub const CLICKHOUSE: &str = "clickhouse";

/// The room of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Room {
    /// What it really has.
    #[default]
    Enough,
    /// 64 MiB, as it says; what is written finds room.
    Little,
    /// None, as it says: each write to a file fails with `ENOSPC`.
    None,
}

/// What a host does to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host {
    /// How far its clock is ahead of the real one, or behind.
    pub clock_seconds: i64,
    /// How much longer each sync of a file takes.
    pub sync: Duration,
    /// The room of its disk. Java asks for it in a way that is not reached.
    pub room: Room,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hosts {
    library: PathBuf,
    dir: PathBuf,
}

impl Hosts {
    /// In a folder of their own.
    pub(crate) fn new(dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).expect("a folder");
        let library = dir.join("host.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/host.c");
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(compiler.status().expect("a C compiler").success(), "{compiler:?}");
        Self { library, dir }
    }

    /// What a process is started with, to be on a host of this name.
    pub(crate) fn variables(&self, name: &str) -> [(&'static str, PathBuf); 2] {
        let file = self.dir.join(name);
        if !file.exists() {
            self.turn(name, Host::default());
        }
        [("LD_PRELOAD", self.library.clone()), ("TOLLGATE_TEST_HOST", file)]
    }

    /// A program that starts another one on a host of this name.
    pub(crate) fn wrapped(&self, program: &Path, name: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let [(preload, library), (host, file)] = self.variables(name);
        let (library, file, program) = (library.display(), file.display(), program.display());
        let script = self.dir.join(format!("{name}.sh"));
        let text = format!("#!/bin/sh\n{preload}='{library}' {host}='{file}' exec '{program}' \"$@\"\n");
        std::fs::write(&script, text).expect("a script");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a program");
        script
    }

    /// From now on, for a process that runs too.
    pub(crate) fn turn(&self, name: &str, host: Host) {
        let sync = i64::try_from(host.sync.as_micros()).expect("not for ever");
        let told = [host.clock_seconds, sync, host.room as i64].map(i64::to_ne_bytes).concat();
        let path = self.dir.join(name);
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).expect("a file");
        file.write_all_at(&told, 0).expect("its few bytes");
    }
}

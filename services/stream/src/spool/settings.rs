//! The settings of a spool.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// When the end of an answer may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// When the end is written: a crash of the process loses nothing, one of the host at most what fsync had not covered.
    #[default]
    Process,
    /// When fsync has covered it: a crash of the host loses nothing either.
    Host,
}

/// `[spool]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolSettings {
    /// The directory; one process at a time, on a disk of this host.
    pub dir: PathBuf,
    /// No request is admitted that could take the spool beyond so many bytes.
    pub max_bytes: u64,
    /// A new segment is begun after so many bytes.
    pub segment_bytes: u64,
    /// Requests that can be open at once.
    pub slots: u32,
    /// Writes are gathered so long before an fsync, in milliseconds; at most 20.
    pub fsync_interval_ms: u64,
    /// See [`Durability`].
    pub durability: Durability,
    /// A running stream is billed again after so many milliseconds.
    pub checkpoint_interval_ms: u64,
    /// A running stream is billed again after so many tokens.
    pub checkpoint_tokens: u64,
    /// Every partition gets a heartbeat after so many milliseconds.
    pub heartbeat_interval_ms: u64,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self {
            dir: PathBuf::from(".tollgate/spool"),
            max_bytes: 4 << 30,
            segment_bytes: 64 << 20,
            slots: 4096,
            fsync_interval_ms: 10,
            durability: Durability::Process,
            checkpoint_interval_ms: 2000,
            checkpoint_tokens: 256,
            heartbeat_interval_ms: 1000,
        }
    }
}

impl SpoolSettings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("spool.{said}"));
            }
        };
        check(!self.dir.as_os_str().is_empty(), "dir must name a directory");
        check(self.segment_bytes >= 1 << 16, "segment_bytes must be at least 65536");
        check(self.segment_bytes <= 1 << 30, "segment_bytes must be at most 1073741824");
        check(
            self.max_bytes >= self.segment_bytes.saturating_mul(2),
            "max_bytes must be at least twice segment_bytes, so that a full segment can go while another fills",
        );
        check((1..=1 << 20).contains(&self.slots), "slots must be 1 to 1048576");
        check((1..=20).contains(&self.fsync_interval_ms), "fsync_interval_ms must be 1 to 20");
        check(self.checkpoint_interval_ms >= 100, "checkpoint_interval_ms must be at least 100");
        check(self.checkpoint_tokens >= 1, "checkpoint_tokens must be at least 1");
        check(
            (100..=60_000).contains(&self.heartbeat_interval_ms),
            "heartbeat_interval_ms must be 100 to 60000: periods close only when heartbeats come",
        );
        wrong
    }
}

//! The section `[fold]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use stream::cut::CutPolicy;

use crate::driver::Cuts;

/// What one block holds at most, in memory and in one insert.
const BLOCK: CutPolicy =
    CutPolicy { max_age_ms: u64::MAX, max_quiet_ms: u64::MAX, max_offsets: 500_000, max_bytes: 128 << 20 };

/// Which partitions a process folds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitions {
    /// Those that a consumer group gives it, so that several processes share the work.
    #[default]
    Group,
    /// All of them, whoever else does too: figures stay exact, and the work is done twice.
    All,
}

/// `[fold]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub listen: SocketAddr,
    /// Which partitions this process folds.
    pub partitions: Partitions,
    /// The name of this process in the group of folds, its own among them and the same after a restart. Without one it is made
    /// of the host's name and `listen`.
    pub name: Option<String>,
    /// How long a record waits for others before its chunk is written, milliseconds. Heartbeats alone wait for five seconds.
    pub chunk_ms: u64,
    /// Offsets after which a chunk is written at once. More are taken while another one is on its way.
    pub chunk_offsets: u64,
    /// Bytes of keys and values after which a chunk is written at once.
    pub chunk_bytes: u64,
    /// Bytes of keys and values that all lines of the process together hold at most until they are written, however far
    /// behind they are: half of it waits, half is on its way. In memory an event takes some three times its bytes.
    pub memory_bytes: u64,
    /// Without progress for so many seconds, while there is something to fold, the process is not ready.
    pub stall_seconds: u64,
    /// So many seconds lie between two runs of the reconciler, in the process that folds partition 0; 0 for none.
    pub reconcile_seconds: u64,
    /// So many hours of the log are compared in each run, that of this moment among them.
    pub reconcile_hours: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let CutPolicy { max_age_ms, max_offsets, max_bytes, .. } = CutPolicy::default();
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8082)),
            partitions: Partitions::default(),
            name: None,
            chunk_ms: max_age_ms,
            chunk_offsets: max_offsets,
            chunk_bytes: max_bytes,
            memory_bytes: 256 << 20,
            stall_seconds: 10,
            reconcile_seconds: 60,
            reconcile_hours: 3,
        }
    }
}

impl Settings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let bounds: [(&str, u64, u64, u64); 7] = [
            ("chunk_ms", self.chunk_ms, 1, 10_000),
            ("chunk_offsets", self.chunk_offsets, 1, BLOCK.max_offsets),
            ("chunk_bytes", self.chunk_bytes, 1, BLOCK.max_bytes),
            ("memory_bytes", self.memory_bytes, 16 << 20, 64 << 30),
            ("stall_seconds", self.stall_seconds, 1, 3600),
            ("reconcile_seconds", self.reconcile_seconds, 0, 86_400),
            ("reconcile_hours", self.reconcile_hours, 1, 24 * 31),
        ];
        let wrong = |(name, is, low, high): &(&str, u64, u64, u64)| {
            (!(*low..=*high).contains(is)).then(|| format!("fold.{name} must be {low} to {high}, not {is}"))
        };
        let named = self.name.as_ref().is_none_or(|name| !name.trim().is_empty());
        let unnamed = (!named).then(|| "fold.name must not be empty: leave it out for the host's name".to_owned());
        bounds.iter().filter_map(wrong).chain(unnamed).collect()
    }

    /// Where the chunks of each of so many lines end.
    pub(crate) fn cuts(&self, lines: u64) -> Cuts {
        // A chunk waits while another one is on its way.
        let share = self.memory_bytes / (2 * lines.max(1));
        let bytes = |most: u64| most.min(share);
        let due = CutPolicy {
            max_age_ms: self.chunk_ms,
            // Well before it would look like a standstill.
            max_quiet_ms: CutPolicy::default().max_quiet_ms.min(self.stall_seconds * 500).max(self.chunk_ms),
            max_offsets: self.chunk_offsets,
            max_bytes: bytes(self.chunk_bytes),
        };
        Cuts { due, block: CutPolicy { max_bytes: bytes(BLOCK.max_bytes), ..BLOCK } }
    }

    /// See [`Settings::name`].
    pub(crate) fn name(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.name.clone().unwrap_or_else(|| format!("{} {}", host().trim(), self.listen))
    }

    pub(crate) const fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named_all_at_once() {
        assert_eq!(Settings::default().validate(), Vec::<String>::new());
        let wrong = Settings {
            chunk_ms: 0,
            chunk_offsets: 1 << 40,
            chunk_bytes: 0,
            memory_bytes: 0,
            stall_seconds: 0,
            reconcile_seconds: 90_000,
            reconcile_hours: 0,
            ..Settings::default()
        };
        assert_eq!(wrong.validate().len(), 7, "{:?}", wrong.validate());
    }

    #[test]
    fn all_lines_together_hold_no_more_than_they_may() {
        let settings = Settings::default();
        for lines in [1, 8, 24, 2000] {
            let Cuts { due, block } = settings.cuts(lines);
            assert!(2 * lines * block.max_bytes <= settings.memory_bytes, "{lines}: {block:?}");
            assert!(due.max_bytes <= block.max_bytes, "{lines}: {due:?}");
        }
    }
}

//! One `tollgate dev` per data directory.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error(
        "another tollgate dev ({holder}) runs on {directory}; stop it, or give this one its own --data-dir and its own ports"
    )]
    Held { directory: String, holder: String },
    #[error("the data directory {directory} cannot be used: {source}; give another with --data-dir")]
    Unusable { directory: String, source: std::io::Error },
}

/// Held as long as it lives; the kernel gives it up when the process dies, however it dies.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    pub(crate) fn take(directory: &Path) -> Result<Self, LockError> {
        let name = || directory.display().to_string();
        let unusable = |source| LockError::Unusable { directory: name(), source };
        std::fs::create_dir_all(directory).map_err(unusable)?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(directory.join("lock"))
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let holder = match pid.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(LockError::Held { directory: name(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(unusable)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let said = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(said.contains(&format!("process {}", std::process::id())) && said.contains("--data-dir"), "{said}");
        drop(first);
        Lock::take(folder.path()).unwrap();
    }
}

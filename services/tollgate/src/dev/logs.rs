//! What a child writes, kept in a file that does not grow for ever.

use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// A full file becomes `NAME.log.1`, the one before it goes: a child's logs take at most twice this on disk.
const FULL: u64 = 8 << 20;

/// The log file of one child, appended to from start to start.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    pub(crate) async fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path).await?;
        let length = file.metadata().await?.len();
        Ok(Self { path: path.to_owned(), file, length })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.length > 0 && self.length + bytes.len() as u64 > FULL {
            self.file.flush().await?;
            tokio::fs::rename(&self.path, self.path.with_extension("log.1")).await?;
            *self = Self::open(&self.path).await?;
        }
        self.file.write_all(bytes).await?;
        self.file.flush().await?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Writes everything that comes from a child's two outputs, until both end.
    pub(crate) async fn follow(&mut self, mut out: impl AsyncRead + Unpin, mut err: impl AsyncRead + Unpin) {
        let (mut from_out, mut from_err) = (vec![0; 16 << 10], vec![0; 16 << 10]);
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            let written = tokio::select! {
                read = out.read(&mut from_out), if out_open => match read {
                    Ok(n @ 1..) => self.write(&from_out[..n]).await,
                    _ => { out_open = false; Ok(()) }
                },
                read = err.read(&mut from_err), if err_open => match read {
                    Ok(n @ 1..) => self.write(&from_err[..n]).await,
                    _ => { err_open = false; Ok(()) }
                },
            };
            // A full disk must not stop the child, which would block on a full pipe: its words are dropped instead.
            if let Err(error) = written {
                tracing::warn!(path = %self.path.display(), %error, "a log line could not be kept");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_outputs_are_kept_and_the_size_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("child.log");
        let mut log = Log::open(&path).await.unwrap();
        log.follow(&b"from out\n"[..], &b"from err\n"[..]).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("from out\n") && text.contains("from err\n"), "{text}");
        let block = vec![b'x'; 3 << 20];
        for _ in 0..6 {
            log.write(&block).await.unwrap();
        }
        let sizes: Vec<_> =
            ["child.log", "child.log.1"].map(|n| folder.path().join(n).metadata().unwrap().len()).into_iter().collect();
        assert!(sizes.iter().all(|size| *size <= FULL), "{sizes:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

//! A file that holds a state durably: replaced as a whole, and checked when it is read.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why a file is no snapshot that can be used.
#[derive(Debug, Error)]
pub(crate) enum Unusable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("its first line is not that of this kind and version of snapshot ({0:?})")]
    Header(String),
    #[error("its checksum does not fit its content")]
    Checksum,
    #[error("its content is not what it should be: {0}")]
    Content(#[from] serde_json::Error),
}

/// Where a snapshot lies, and which kind and version it is of.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
    format: &'static str,
}

impl SnapshotFile {
    /// Makes the folder of the file if it is not there.
    pub(crate) fn at(path: PathBuf, format: &'static str) -> io::Result<Self> {
        fs::create_dir_all(folder(&path))?;
        Ok(Self { path, format })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The state that was stored last; none if none ever was.
    pub(crate) fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Unusable> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
        let (header, body) = bytes.split_at(end);
        let body = body.strip_prefix(b"\n").unwrap_or_default();
        let header = String::from_utf8_lossy(&header[..header.len().min(200)]).into_owned();
        let checksum = header.strip_prefix(self.format).and_then(|rest| rest.strip_prefix(' '));
        match checksum {
            None => Err(Unusable::Header(header)),
            Some(checksum) if checksum == hash(body) => Ok(Some(serde_json::from_slice(body)?)),
            Some(_) => Err(Unusable::Checksum),
        }
    }

    /// Puts the state in the place of the one before. Whatever happens, one of the two is there whole.
    pub(crate) fn store<T: Serialize>(&self, state: &T) -> io::Result<()> {
        let body = serde_json::to_vec(state).map_err(io::Error::other)?;
        let next = self.path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(format!("{} {}\n", self.format, hash(&body)).as_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        File::open(folder(&self.path))?.sync_all()
    }

    /// Puts an unusable file aside, so that a person can look at it.
    pub(crate) fn put_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.with_extension("unusable");
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn hash(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: &str = "tollgate-test 1";

    #[test]
    fn what_was_stored_last_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::at(folder.path().join("deep/er/state"), FORMAT).unwrap();
        assert!(file.load::<Vec<u32>>().unwrap().is_none());
        file.store(&vec![1, 2]).unwrap();
        file.store(&vec![3]).unwrap();
        assert_eq!(file.load::<Vec<u32>>().unwrap(), Some(vec![3]));
        let newer = SnapshotFile::at(file.path().to_owned(), "tollgate-test 2").unwrap();
        assert!(matches!(newer.load::<Vec<u32>>(), Err(Unusable::Header(_))));
    }

    #[test]
    fn a_write_that_was_cut_short_leaves_the_state_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::at(folder.path().join("state"), FORMAT).unwrap();
        file.store(&"before").unwrap();
        fs::write(file.path().with_extension("next"), "tollgate-te").unwrap();
        assert_eq!(file.load::<String>().unwrap().as_deref(), Some("before"));
        file.store(&"after").unwrap();
        assert_eq!(file.load::<String>().unwrap().as_deref(), Some("after"));
    }

    proptest! {
        #[test]
        fn no_damaged_byte_goes_unseen(at in 0usize..200, flip in 1u8..=255, cut in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let file = SnapshotFile::at(folder.path().join("state"), FORMAT).unwrap();
            file.store(&(0..40).collect::<Vec<u32>>()).unwrap();
            let mut bytes = fs::read(file.path()).unwrap();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            fs::write(file.path(), bytes).unwrap();
            prop_assert!(file.load::<Vec<u32>>().is_err());
        }
    }
}

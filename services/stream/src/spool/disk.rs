//! The few things a spool asks of a disk, so that a test can fail, tear or lose any of them.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// One directory of files. Every method is one step at which a process may die.
pub trait Disk: Debug + Send + Sync {
    /// The names of all files, in any order.
    ///
    /// # Errors
    /// What the file system says.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new, empty file of this name (an old one is emptied), for writing and reading.
    ///
    /// # Errors
    /// What the file system says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file, for reading and syncing.
    ///
    /// # Errors
    /// What the file system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames, replacing what bears the name.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_dir(&self) -> io::Result<()>;
    /// A file's bytes as shared memory: what is stored outlives the process, but not the host.
    ///
    /// # Errors
    /// What the file system says.
    fn map(&self, name: &str) -> io::Result<Arc<dyn Memory>>;
}

/// One file of a [`Disk`].
pub trait DiskFile: Debug + Send + Sync {
    /// One write(2): may write less than asked for.
    ///
    /// # Errors
    /// What the file system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// One read: may read less than asked for, 0 at the end.
    ///
    /// # Errors
    /// What the file system says.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes the bytes durable. After an error nothing written since the last success may be relied on, even if a later
    /// call succeeds.
    ///
    /// # Errors
    /// What the file system says.
    fn sync(&self) -> io::Result<()>;
    /// The length in bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn len(&self) -> io::Result<u64>;
    /// True if there are no bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Shared memory in words of 64 bits.
pub trait Memory: Debug + Send + Sync {
    /// All of it.
    fn words(&self) -> &[AtomicU64];
}

/// A directory of this host.
#[derive(Debug)]
pub struct HostDisk {
    dir: PathBuf,
    directory: File,
}

impl HostDisk {
    /// The directory `dir`, made if absent.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), directory: File::open(dir)? })
    }
}

impl Disk for HostDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(HostFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HostFile(OpenOptions::new().read(true).write(true).open(self.dir.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn map(&self, name: &str) -> io::Result<Arc<dyn Memory>> {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        // SAFETY: the file lies in a directory that this process holds locked, is not truncated while mapped (it is only
        // ever replaced by renaming), and is accessed through atomics only.
        let map = unsafe { memmap2::MmapMut::map_mut(&file)? };
        Ok(Arc::new(HostMemory(map)))
    }
}

#[derive(Debug)]
struct HostFile(File);

impl DiskFile for HostFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(into, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

#[derive(Debug)]
struct HostMemory(memmap2::MmapMut);

impl Memory for HostMemory {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, lives as long as `self`, is long enough for `len / 8` words, and is accessed
        // by nobody except through these atomics, for which every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<AtomicU64>(), self.0.len() / 8) }
    }
}

/// Writes all of `bytes` at `offset`, or says why not. A write that makes no progress is an error.
///
/// # Errors
/// What the file system says; `StorageFull` when it writes nothing without saying why.
pub(crate) fn write_all(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::StorageFull.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The whole file.
///
/// # Errors
/// What the file system says.
pub(crate) fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(|_| io::ErrorKind::OutOfMemory)?];
    let read = read_up_to(file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Reads until `into` is full or the file ends; returns how much was read.
///
/// # Errors
/// What the file system says.
pub(crate) fn read_up_to(file: &dyn DiskFile, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Replaces a small file so that after a crash either the old or the new bytes are there, never a mixture.
///
/// # Errors
/// What the file system says; the old file is then still there.
pub(crate) fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    let file = disk.create(&temporary)?;
    write_all(&*file, bytes, 0)?;
    file.sync()?;
    disk.rename(&temporary, name)?;
    disk.sync_dir()
}

//! The files of one line on disk: their names, what lies there, and how a new one gets its name.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::{Archive, ArchiveError, unusable};

/// What is being written. Only one process writes, so what a killed one left of it is written over.
const PART: &str = "writing.part";

/// The files of a topic's partition, by their offsets.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    pub(super) files: Vec<Manifest>,
}

impl Folder {
    /// Reads what is said of each file; not the files.
    pub(super) fn read(archive: &Archive, topic: &str, partition: i32) -> Result<Self, ArchiveError> {
        let path = archive.dir.join(topic).join(partition.to_string());
        let mut folder = Self { path, files: Vec::new() };
        let entries = match std::fs::read_dir(&folder.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A directory that is not there at all is a slip of the pen, and not an archive without files.
                std::fs::metadata(&archive.dir).map_err(unusable(&archive.dir))?;
                return Ok(folder);
            }
            Err(error) => return Err(unusable(&folder.path)(error)),
        };
        for entry in entries {
            let path = entry.map_err(unusable(&folder.path))?.path();
            if path.extension().is_some_and(|kind| kind == "json") {
                folder.files.push(manifest(&path, topic, partition)?);
            }
        }
        folder.files.sort_by_key(|file| (file.from.offset, file.to.offset));
        if let Some(pair) = folder.files.windows(2).find(|pair| pair[1].from.offset < pair[0].to.offset) {
            let why = format!("holds offsets that {} holds too", pair[0].stem());
            return Err(ArchiveError::Damaged { file: folder.file(&pair[1]), why });
        }
        Ok(folder)
    }

    /// The file that holds an offset.
    pub(super) fn holding(&self, offset: i64) -> Option<&Manifest> {
        self.files.iter().find(|file| file.from.offset <= offset && offset < file.to.offset)
    }

    /// The first offset at or behind this one that a file holds.
    pub(super) fn next_held(&self, offset: i64) -> Option<i64> {
        self.files.iter().map(|file| file.from.offset).find(|first| *first >= offset)
    }

    /// Where a file lies.
    pub(super) fn file(&self, manifest: &Manifest) -> PathBuf {
        self.path.join(manifest.stem()).with_extension("parquet")
    }

    /// Keeps a file for good. Killed at any moment, it is there whole or not at all.
    pub(super) fn keep(&mut self, manifest: Manifest, parquet: &[u8]) -> Result<(), ArchiveError> {
        let new = !self.path.exists();
        std::fs::create_dir_all(&self.path).map_err(unusable(&self.path))?;
        if new {
            // The names of the folders themselves.
            self.path.ancestors().skip(1).take(3).try_for_each(sync)?;
        }
        let file = self.file(&manifest);
        let said = serde_json::to_vec_pretty(&manifest).map_err(|error| unusable(&file)(error.into()))?;
        self.write(&file, parquet)?;
        self.write(&file.with_extension("json"), &said)?;
        self.files.push(manifest);
        self.files.sort_by_key(|file| file.from.offset);
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ArchiveError> {
        let part = self.path.join(PART);
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&part, path)
        };
        write().map_err(unusable(path))?;
        sync(&self.path)
    }
}

fn sync(folder: &Path) -> Result<(), ArchiveError> {
    // The parent of a relative path's first name has none itself.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unusable(folder))
}

fn manifest(path: &Path, topic: &str, partition: i32) -> Result<Manifest, ArchiveError> {
    let text = std::fs::read(path).map_err(unusable(path))?;
    let damaged = |why| ArchiveError::Damaged { file: path.to_owned(), why };
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("cannot be read: {error}")))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match manifest.wrong(topic, partition, &stem) {
        Some(why) => Err(damaged(why)),
        None => Ok(manifest),
    }
}

#[cfg(test)]
mod tests {
    use sql::ClickHouseSettings;

    use super::super::Point;
    use super::*;

    const TOPIC: &str = "tollgate.tokens.v1";

    fn file(from: i64, to: i64) -> Manifest {
        let point = |offset| Point { offset, ..Point::BEGINNING };
        Manifest::new(TOPIC, 3, point(from), point(to), 1, b"PAR1")
    }

    fn read(dir: &Path) -> Result<Vec<i64>, String> {
        let archive = Archive::new(dir, &ClickHouseSettings::default());
        let folder = Folder::read(&archive, TOPIC, 3).map_err(|error| error.to_string())?;
        Ok(folder.files.iter().map(|file| file.from.offset).collect())
    }

    #[test]
    fn a_file_is_there_with_its_manifest_alone_and_leftovers_of_a_killed_run_are_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), Ok(vec![]), "an archive without files");
        assert!(read(&dir.path().join("other")).unwrap_err().contains("other"), "no archive at all");
        let archive = Archive::new(dir.path(), &ClickHouseSettings::default());
        let mut folder = Folder::read(&archive, TOPIC, 3).unwrap();
        folder.keep(file(0, 10), b"PAR1").unwrap();
        folder.keep(file(20, 30), b"PAR1").unwrap();
        std::fs::write(folder.path.join(PART), b"half a fi").unwrap();
        std::fs::write(folder.file(&file(10, 20)), b"whole, and not yet said to be").unwrap();
        assert_eq!(read(dir.path()), Ok(vec![0, 20]));
        folder.keep(file(10, 20), b"PAR1").unwrap();
        assert_eq!(read(dir.path()), Ok(vec![0, 10, 20]));
        assert_eq!(std::fs::read(folder.file(&file(10, 20))).unwrap(), b"PAR1");
        assert_eq!(
            (folder.holding(19).unwrap().from.offset, folder.holding(30), folder.next_held(11)),
            (10, None, Some(20))
        );
    }

    #[test]
    fn files_that_overlap_are_not_read_and_neither_is_a_manifest_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::new(dir.path(), &ClickHouseSettings::default());
        let mut folder = Folder::read(&archive, TOPIC, 3).unwrap();
        folder.keep(file(0, 10), b"PAR1").unwrap();
        folder.keep(file(9, 12), b"PAR1").unwrap();
        let said = read(dir.path()).unwrap_err();
        assert!(said.contains("9-00000000000000000012.parquet") && said.contains("holds too"), "{said}");
        let json = folder.file(&file(9, 12)).with_extension("json");
        std::fs::rename(&json, folder.file(&file(10, 12)).with_extension("json")).unwrap();
        let said = read(dir.path()).unwrap_err();
        assert!(said.contains("than its name"), "{said}");
    }
}

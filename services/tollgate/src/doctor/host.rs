//! What doctor says of this host: the spool's directory, its room.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::report::Report;

const MEBIBYTE: u64 = 1 << 20;

/// Checks that the spool can be written, and that the disk has the room that the settings promise it.
pub(crate) fn spool(report: &mut Report, directory: &Path, capacity: u64) {
    let shown = directory.display();
    let mut existing = directory;
    while !existing.exists() {
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => existing = Path::new("."),
        }
    }
    let probe = existing.join(format!(".tollgate-doctor-{}", std::process::id()));
    let written = std::fs::write(&probe, b"x").and_then(|()| std::fs::remove_file(&probe));
    if let Err(error) = written {
        report.fail(
            format!("the spool directory {shown} cannot be written: {error}"),
            "give the user that runs the gateway the right to write there, or set [spool] dir to another place",
        );
        return;
    }
    match free_bytes(existing) {
        Ok(free) if free.saturating_add(used(directory)) < capacity => report.fail(
            format!("the spool may use {} MiB, its disk has {} MiB free", capacity / MEBIBYTE, free / MEBIBYTE),
            "free some room, or let the spool use less: when the disk is full first, requests are refused early",
        ),
        Ok(free) => report.ok(format!("spool directory {shown} can be written, {} MiB free", free / MEBIBYTE)),
        Err(error) => report.warn(
            format!("the room on the disk of {shown} cannot be read: {error}"),
            "check by hand that the disk has the room the spool may use",
        ),
    }
}

/// What the spool itself has on the disk already.
fn used(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

fn free_bytes(directory: &Path) -> std::io::Result<u64> {
    let path = CString::new(directory.as_os_str().as_bytes()).map_err(std::io::Error::other)?;
    // SAFETY: statvfs writes into the zeroed struct we own and reads a NUL-terminated path that outlives the call.
    let found = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &mut found) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        found
    };
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::quiet();
        spool(&mut report, &folder.path().join("a/b"), 1);
        assert_eq!(report.count(Level::Ok), 1, "{}", report.text());
        spool(&mut report, folder.path(), u64::MAX);
        assert!(report.text().contains("MiB free"), "{}", report.text());
        assert_eq!(report.count(Level::Fail), 1);
        spool(&mut report, Path::new("/proc/nowhere"), 1);
        assert!(report.text().contains("cannot be written"), "{}", report.text());
    }
}

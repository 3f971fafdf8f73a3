//! How the allocator treats what is freed.

/// What is freed stays with the process, up to half a gigabyte in each of four arenas, and is not given back to be faulted in
/// again: for a process whose work is large vectors that come and go. The most that it has at once stays the same. To be called
/// before there are threads. Another allocator than glibc's does as it likes.
pub(crate) fn keep_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const KEPT: libc::c_int = 512 << 20;
        const ARENAS: libc::c_int = 4;
        for (parameter, value) in
            [(libc::M_MMAP_THRESHOLD, KEPT), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_ARENA_MAX, ARENAS)]
        {
            // SAFETY: mallopt takes two numbers. One that it does not take leaves it as it was.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

//! Memory that is freed goes back to the system.
//!
//! glibc gives threads that meet in `malloc` arenas of their own, up to eight for each core, and what is freed in one of them serves no
//! other. Backups of files allocate on a dozen threads: that alone held 20 MiB more at a million files.

/// Two threads still allocate at the same time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: std::os::raw::c_int = 2;

/// Bounds the arenas, unless the environment does. To be called before the first thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn bound() {
    let tuned = |name: &str, what: &str| {
        std::env::var_os(name).is_some_and(|value| value.to_string_lossy().contains(what))
    };
    if tuned("MALLOC_ARENA_MAX", "") || tuned("GLIBC_TUNABLES", "glibc.malloc.arena_max") {
        return;
    }
    // SAFETY: takes and returns integers only; `M_ARENA_MAX` is glibc's own name and any positive number is valid for it. It is called
    // from the only thread of the process, so no `malloc` of another runs meanwhile. What was allocated before stays valid.
    // It fails for parameters that glibc does not know; then memory is as it was.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Other allocators have no such arenas.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn bound() {}

/// Gives what was freed back to the system: between two parts of a run that each hold much, the second must not come on top of what is left
/// of the first in other arenas.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: takes and returns integers only and may be called by any thread at any time; it touches nothing that is allocated.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators are not asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}

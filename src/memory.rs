//! Memory that is free inside of the process and nowhere else.

/// Gives free pages back to the kernel.
///
/// The last resort after a burst: twenty thousand intents that came and went leave ten megabytes of free pages between what
/// stays (glibc gives back only what is free at the end of its heap), and nothing would ever use them. Takes some milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back() {
    // SAFETY: takes a number, may be called at any time from any thread, and touches only what malloc itself holds as free
    // (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Has all threads share a few heaps. By itself each thread that reads a disk would get one of its own, a few hundred kilobytes
/// that stay when it ends; they do not allocate enough to get in each other's way. To be called first.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn few_heaps() {
    const HEAPS: i32 = 2;
    // SAFETY: takes two numbers and sets a limit of malloc's own (mallopt(3)); refused, nothing has changed.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}

/// Other C libraries have no such limit.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn few_heaps() {}

/// Other C libraries do so by themselves, or cannot.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

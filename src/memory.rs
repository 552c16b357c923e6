//! Returns free memory to the kernel, and limits malloc's heaps.

/// Gives free pages back to the kernel.
///
/// This is for the time after a burst, or after the start. Twenty thousand intents that came and went leave ten megabytes of free pages
/// between used ones, and glibc gives back only the free end of its heap. Takes some milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back() {
    // SAFETY: the function takes a number, may be called at any time from any thread, and touches only memory that
    // malloc holds as free (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Makes all threads share a few heaps. Otherwise each thread that reads a disk would get its own heap, some hundred
/// kilobytes that remain when the thread ends. The threads allocate too little to wait for each other. Must be called
/// first.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn few_heaps() {
    const HEAPS: i32 = 2;
    // SAFETY: the function takes two numbers and sets a limit of malloc (mallopt(3)); if it fails, nothing has
    // changed.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}

/// Other C libraries have no such limit.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn few_heaps() {}

/// Other C libraries do this by themselves, or cannot do it.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

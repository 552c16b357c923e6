//! Finds the system limit behind an error, how much of it is used, and how to raise it. The text "Too many open
//! files" alone does not show which limit it is.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Making an inotify instance.
    Watch,
    /// Adding a folder to an inotify instance.
    WatchFolder,
    /// Starting a thread.
    Thread,
    /// Any other operation, which needs a descriptor.
    Open,
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Instances,
    Watches,
    Descriptors,
    Files,
    Tasks,
}

/// Adds to an error which limit it is about; other errors stay unchanged.
pub fn explained(call: Attempt, error: io::Error) -> io::Error {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let found = errno.and_then(|errno| of(call, errno, descriptors()));
    match found {
        Some(limit) => io::Error::new(error.kind(), format!("{error}: {}", words(limit))),
        None => error,
    }
}

/// Makes an inotify instance; an error says which limit it is about.
pub fn inotify() -> io::Result<OwnedFd> {
    let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
    instance.map_err(|error| explained(Attempt::Watch, error.into()))
}

/// Watches a folder; an error says which limit it is about.
pub fn watch(instance: &OwnedFd, folder: &Path, events: WatchFlags) -> io::Result<i32> {
    inotify::add_watch(instance, folder, events).map_err(|error| explained(Attempt::WatchFolder, error.into()))
}

/// Adds to the error that ends the daemon which limit it is about, unless the error says so already.
pub fn explained_end(error: anyhow::Error) -> anyhow::Error {
    let errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    let errno = errors.filter_map(io::Error::raw_os_error).map(Errno::from_raw_os_error).last();
    match errno.and_then(|errno| of(Attempt::Open, errno, descriptors())) {
        Some(limit) => error.context(words(limit)),
        None => error,
    }
}

/// Returns the limit behind an error. `descriptors` is how many this process has and how many it may have.
fn of(call: Attempt, errno: Errno, (have, may): (u64, u64)) -> Option<Limit> {
    match (call, errno) {
        // Two limits have the same error. It is the process's own limit if that one is used up.
        (Attempt::Watch, Errno::MFILE) if have < may => Some(Limit::Instances),
        (_, Errno::MFILE) => Some(Limit::Descriptors),
        (_, Errno::NFILE) => Some(Limit::Files),
        (Attempt::WatchFolder, Errno::NOSPC) => Some(Limit::Watches),
        (Attempt::Thread, Errno::AGAIN) => Some(Limit::Tasks),
        _ => None,
    }
}

fn words(limit: Limit) -> String {
    match limit {
        Limit::Instances => {
            let may = number("/proc/sys/fs/inotify/max_user_instances");
            let (used, most) = instances();
            let most = most.map_or(String::new(), |(name, count)| format!(", {count} of them by {name}"));
            format!(
                "the user has used up fs.inotify.max_user_instances ({may}; {used} seen{most}). Raise it with `sysctl \
                 fs.inotify.max_user_instances=1024`, for good in a file in /etc/sysctl.d"
            )
        }
        Limit::Watches => {
            let may = number("/proc/sys/fs/inotify/max_user_watches");
            format!(
                "the user has used up fs.inotify.max_user_watches ({may}). Raise it with `sysctl fs.inotify.max_user_watches=…`, \
                 for good in a file in /etc/sysctl.d"
            )
        }
        Limit::Descriptors => {
            let (have, may) = descriptors();
            format!(
                "this process has {have} of the {may} descriptors that it may have. Raise it with LimitNOFILE= in the unit \
                 (`systemctl edit attachd`)"
            )
        }
        Limit::Files => {
            let used = read("/proc/sys/fs/file-nr");
            let used = used.split_whitespace().next().unwrap_or("?").to_owned();
            format!(
                "the host has used up fs.file-max ({used} of {}). Raise it with sysctl",
                number("/proc/sys/fs/file-max")
            )
        }
        Limit::Tasks => {
            let (used, may) = tasks();
            format!(
                "no more threads: the unit has {used} of {may} tasks (TasksMax=, `systemctl edit attachd`), or the user has used up \
                 its own (RLIMIT_NPROC, LimitNPROC=)"
            )
        }
    }
}

/// Returns how many descriptors this process has and how many it may have.
fn descriptors() -> (u64, u64) {
    let may = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // If no descriptor is left to list them, all are used.
    let have = fs::read_dir("/proc/self/fd").map_or(may, |list| list.count() as u64);
    (have, may)
}

/// Counts the inotify instances of the visible processes (in a sandbox, those of the same user), and finds the
/// process with the most.
fn instances() -> (usize, Option<(String, usize)>) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let counted = processes.filter_map(|process| {
        let list = fs::read_dir(process.path().join("fd")).ok()?;
        let targets = list.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let count = targets.filter(|target| target.as_os_str() == "anon_inode:inotify").count();
        let name = fs::read(process.path().join("comm")).unwrap_or_default();
        let number = process.file_name().to_string_lossy().into_owned();
        (count > 0).then(|| (format!("{} (process {number})", String::from_utf8_lossy(&name).trim()), count))
    });
    let counted: Vec<(String, usize)> = counted.filter(|(name, _)| !name.contains("(process self)")).collect();
    let sum = counted.iter().map(|(_, count)| count).sum();
    (sum, counted.into_iter().max_by_key(|(_, count)| *count))
}

/// Returns how many tasks this process's unit has, and how many it may have.
fn tasks() -> (String, String) {
    let group = read("/proc/self/cgroup");
    let path = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let value = |file: &str| number(&format!("/sys/fs/cgroup{}/{file}", path.trim_end_matches('/')));
    (value("pids.current"), value("pids.max"))
}

fn number(path: &str) -> String {
    let text = read(path);
    if text.trim().is_empty() { "unknown".to_owned() } else { text.trim().to_owned() }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_names_the_limit_that_is_used_up() {
        for (call, errno, used, expected) in [
            (Attempt::Watch, Errno::MFILE, (10, 1024), Some(Limit::Instances)),
            (Attempt::Watch, Errno::MFILE, (1024, 1024), Some(Limit::Descriptors)),
            (Attempt::Open, Errno::MFILE, (10, 1024), Some(Limit::Descriptors)),
            (Attempt::Open, Errno::NFILE, (10, 1024), Some(Limit::Files)),
            (Attempt::WatchFolder, Errno::NOSPC, (10, 1024), Some(Limit::Watches)),
            // This error means a full disk.
            (Attempt::Open, Errno::NOSPC, (10, 1024), None),
            (Attempt::Thread, Errno::AGAIN, (10, 1024), Some(Limit::Tasks)),
            (Attempt::Open, Errno::AGAIN, (10, 1024), None),
            (Attempt::Open, Errno::ACCESS, (10, 1024), None),
        ] {
            assert_eq!(of(call, errno, used), expected, "{call:?} {errno}");
        }
    }

    #[test]
    fn each_limit_says_its_name_and_how_to_raise_it() {
        for (limit, name) in [
            (Limit::Instances, "fs.inotify.max_user_instances"),
            (Limit::Watches, "fs.inotify.max_user_watches"),
            (Limit::Descriptors, "LimitNOFILE="),
            (Limit::Files, "fs.file-max"),
            (Limit::Tasks, "TasksMax="),
        ] {
            let words = words(limit);
            assert!(words.contains(name) && words.contains("aise it") | words.contains("systemctl edit"), "{words}");
        }
    }

    #[test]
    fn an_inotify_instance_of_this_process_is_counted_and_its_process_named() {
        let _watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
        let (seen, most) = instances();
        assert!(seen > 0 && most.is_some_and(|(name, _)| name.contains("process")));
    }

    #[test]
    fn other_errors_stay_unchanged() {
        let denied = explained(Attempt::Open, Errno::ACCESS.into());
        assert_eq!(denied.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    }
}

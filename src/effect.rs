//! The one point every effect passes: a commit, a claim, a link, an answer.
//!
//! In a release this compiles to the call itself. With the feature `kill-points`, used by the tests alone, each passage
//! is appended to the file named by `ATTACHD_EFFECT_LOG`, and the process kills itself at the passage that
//! `ATTACHD_KILL_AT` names (`before:link.make:1`, `after:commit.intent:2`), so that a test can enumerate the points
//! of an undisturbed run and stop the daemon before and after each. At the points that `ATTACHD_PANIC_AT` names (several
//! with commas between) the task panics, and so do the steps of the engine that it names (`step.record`).

/// Runs an effect at its named point.
pub fn at<T>(name: &'static str, effect: impl FnOnce() -> T) -> T {
    passage("before", name);
    let result = effect();
    passage("after", name);
    result
}

/// Runs several at their named points: they are one system call for all.
pub fn all<T>(names: &[&'static str], effect: impl FnOnce() -> T) -> T {
    for name in names {
        passage("before", name);
    }
    let result = effect();
    for name in names {
        passage("after", name);
    }
    result
}

/// Runs an asynchronous effect at its named points: one commit can carry out several.
pub async fn at_all<T>(names: &[&'static str], effect: impl Future<Output = T>) -> T {
    for name in names {
        passage("before", name);
    }
    let result = effect.await;
    for name in names {
        passage("after", name);
    }
    result
}

/// A step of the engine begins.
pub fn step(name: &str) {
    panic_at(name);
}

#[cfg(not(feature = "kill-points"))]
fn passage(_side: &str, _name: &str) {}

#[cfg(not(feature = "kill-points"))]
fn panic_at(_name: &str) {}

/// Panics the first time that it comes by a name in `ATTACHD_PANIC_AT`.
#[cfg(feature = "kill-points")]
fn panic_at(name: &str) {
    use std::collections::HashSet;
    use std::sync::Mutex;

    static DONE: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Ok(wanted) = std::env::var("ATTACHD_PANIC_AT") else { return };
    if wanted.split(',').any(|wanted| wanted == name) {
        let first = {
            let mut done = DONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            done.get_or_insert_default().insert(name.to_owned())
        };
        assert!(!first, "asked for by ATTACHD_PANIC_AT={name}");
    }
}

#[cfg(feature = "kill-points")]
fn passage(side: &str, name: &str) {
    use std::collections::HashMap;
    use std::io::Write;
    use std::sync::Mutex;

    static PASSED: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);
    let point = format!("{side}:{name}");
    let count = {
        let mut passed = PASSED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = passed.get_or_insert_default().entry(point.clone()).or_insert(0);
        *count += 1;
        *count
    };
    let point = format!("{point}:{count}");
    if let Some(path) = std::env::var_os("ATTACHD_EFFECT_LOG") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // One write for the whole line: other threads pass their points at the same time, and `writeln!` makes two.
        let _ = file.and_then(|mut file| file.write_all(format!("{point}\n").as_bytes()));
    }
    if std::env::var("ATTACHD_KILL_AT").is_ok_and(|wanted| wanted == point) {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
    if side == "before" {
        panic_at(name);
    }
}

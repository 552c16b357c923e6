//! The one function that every effect passes: a commit, a claim, a link, an answer.
//!
//! In a release it is only the call itself. With the feature `kill-points`, for tests only, each passage is appended
//! to the file that `ATTACHD_EFFECT_LOG` names. The process kills itself at the passage that `ATTACHD_KILL_AT` names
//! (`before:link.make:1`, `after:commit.intent:2`). So a test can list the points of an undisturbed run and then kill
//! the daemon before and after each of them. At the points that `ATTACHD_PANIC_AT` names (separated by commas) the
//! task panics; this works for steps of the engine too (`step.record`).

/// Runs an effect at its named point.
pub fn at<T>(name: &'static str, effect: impl FnOnce() -> T) -> T {
    passage("before", name);
    let result = effect();
    passage("after", name);
    result
}

/// Runs one system call that carries out several effects, at all their named points.
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

/// Runs an asynchronous effect at its named points; one commit can carry out several.
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

/// Marks the beginning of a step of the engine.
pub fn step(name: &str) {
    panic_at(name);
}

#[cfg(not(feature = "kill-points"))]
fn passage(_side: &str, _name: &str) {}

#[cfg(not(feature = "kill-points"))]
fn panic_at(_name: &str) {}

/// Panics at the first passage of each name in `ATTACHD_PANIC_AT`.
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
        // The line is one write, because other threads write at the same time; `writeln!` would make two writes.
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

//! The one point every effect passes: a commit, a claim, a link, an answer.
//!
//! In a release this compiles to the call itself. With the feature `kill-points`, used by the tests alone, each passage
//! is appended to the file named by `ATTACHD_EFFECT_LOG`, and the process kills itself at the passage that
//! `ATTACHD_KILL_AT` names (`before:link.make:1`, `after:commit.intent:2`), so that a test can enumerate the points
//! of an undisturbed run and stop the daemon before and after each.

/// Runs an effect at its named point.
pub fn at<T>(name: &'static str, effect: impl FnOnce() -> T) -> T {
    passage("before", name);
    let result = effect();
    passage("after", name);
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

#[cfg(not(feature = "kill-points"))]
fn passage(_side: &str, _name: &str) {}

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
        let _ = file.and_then(|mut file| writeln!(file, "{point}"));
    }
    if std::env::var("ATTACHD_KILL_AT").is_ok_and(|wanted| wanted == point) {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}

//! The key and its secret. Both are read from files, together, and again when a file changes. They appear in no message.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;

use super::settings::SecretFile;
use crate::blocking::blocking;
use crate::place::secret_file;
use crate::stamp::Stamp;

/// The size limit of a file with a key.
const SIZE: u64 = 4096;

/// How long one file may be newer than the other while somebody replaces both.
const A_MOMENT: SignedDuration = SignedDuration::from_secs(5);

/// The pauses before files that may be changing are looked at again.
const ROTATION: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2)];

/// How often both files are read if one changes meanwhile.
const READINGS: usize = 5;

/// A key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    /// The key, which is sent with each call.
    pub(super) key: String,
    /// The secret, which signs each call and is never sent.
    pub(super) secret: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

/// Both files, and what was last read from them.
#[derive(Debug)]
pub(super) struct KeyFiles {
    files: [SecretFile; 2],
    last: Mutex<Option<(Stamps, Arc<Keys>)>>,
}

type Stamps = [Option<Stamp>; 2];

impl KeyFiles {
    pub(super) fn new(key: SecretFile, secret: SecretFile) -> Self {
        Self { files: [key, secret], last: Mutex::default() }
    }

    /// Returns the keys as they are in the files now. An error says which file cannot be used, and why.
    pub(super) async fn current(self: &Arc<Self>) -> Result<Arc<Keys>, String> {
        let this = Arc::clone(self);
        blocking(move || this.fresh()).await.map_err(|error| error.to_string())?
    }

    /// Returns other keys than these, if the files have changed. If one of the files was written a moment ago, only one of the two
    /// may have been replaced so far: then they are looked at again after a pause, which `wait` makes.
    pub(super) async fn other_than(self: &Arc<Self>, used: &Keys, wait: impl AsyncFn(Duration)) -> Option<Arc<Keys>> {
        for pause in ROTATION.into_iter().map(Some).chain([None]) {
            match self.current().await {
                Ok(now) if *now != *used => return Some(now),
                _ if self.may_be_changing().await => wait(pause?).await,
                _ => return None,
            }
        }
        None
    }

    /// Returns whether a file was written a moment ago.
    async fn may_be_changing(self: &Arc<Self>) -> bool {
        let paths = self.files.each_ref().map(SecretFile::path);
        let is_new =
            move || paths.iter().filter_map(|path| Stamp::of(path)).any(|stamp| stamp.is_younger_than(A_MOMENT));
        blocking(is_new).await.unwrap_or_default()
    }

    fn fresh(&self) -> Result<Arc<Keys>, String> {
        let paths = self.files.each_ref().map(SecretFile::path);
        let stamps = || paths.each_ref().map(|path| Stamp::of(path));
        let mut before = stamps();
        if let Some((read, keys)) = &*self.lock()
            && *read == before
        {
            return Ok(Arc::clone(keys));
        }
        // Both are read while neither changes, so that a key is not combined with another key's secret.
        for _ in 0..READINGS {
            let [key, secret] = paths.each_ref().map(|path| read(path));
            let after = stamps();
            if before != after {
                before = after;
                continue;
            }
            let [key, secret] = [key, secret].map(|read| read.map_err(|why| self.explained(&why)));
            let keys = Arc::new(Keys { key: key?, secret: secret? });
            *self.lock() = Some((before, Arc::clone(&keys)));
            return Ok(keys);
        }
        Err(format!("{} and {} change all the time", paths[0].display(), paths[1].display()))
    }

    /// Adds to the message what to do about a credential that systemd does not have.
    fn explained(&self, why: &str) -> String {
        let missing = self.files.iter().find_map(|file| match file {
            SecretFile::Credential(name) if why.contains(name) => Some(name),
            _ => None,
        });
        missing.map_or(why.to_owned(), |name| {
            format!(
                "{why}: put it into /etc/attachd/{name} (root's, mode 0400) and restart attachd, or name a file in [cloudstack]"
            )
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Stamps, Arc<Keys>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns why a file with a secret cannot be used, if it cannot.
pub fn judge_secret_file(path: &Path) -> Result<(), String> {
    read(path).map(drop)
}

/// Reads a file. No error repeats its content.
fn read(path: &Path) -> Result<String, String> {
    let failed = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let bytes = secret_file(path, SIZE)?;
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return Err(failed(&"it is empty"));
    }
    match std::str::from_utf8(text) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(failed(&"it takes one line of letters and digits, as CloudStack shows the key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            files.write("key", "the-key\n", 0o600);
            files.write("secret", "the-secret\n", 0o640);
            files
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) {
            fs::write(self.at("new"), text).unwrap();
            fs::set_permissions(self.at("new"), fs::Permissions::from_mode(mode)).unwrap();
            fs::rename(self.at("new"), self.at(name)).unwrap();
        }

        fn keys(&self) -> Arc<KeyFiles> {
            let [key, secret] = ["key", "secret"].map(|name| SecretFile::Named(self.at(name)));
            Arc::new(KeyFiles::new(key, secret))
        }
    }

    #[tokio::test]
    async fn the_keys_are_read_again_when_a_file_has_changed_and_only_then() {
        let files = Files::new();
        let keys = files.keys();
        let first = keys.current().await.unwrap();
        assert_eq!((&*first.key, &*first.secret), ("the-key", "the-secret"));
        assert!(Arc::ptr_eq(&first, &keys.current().await.unwrap()), "nothing was read");
        files.write("secret", "another", 0o600);
        assert_eq!(keys.current().await.unwrap().secret, "another");
        fs::remove_file(files.at("key")).unwrap();
        assert!(keys.current().await.unwrap_err().contains("/key: No such file"));
        files.write("key", "third", 0o600);
        assert_eq!(keys.current().await.unwrap().key, "third", "it heals by itself");
    }

    #[test]
    fn a_file_that_cannot_hold_a_secret_is_refused_by_name_and_nothing_in_it_is_shown() {
        let files = Files::new();
        assert_eq!(read(&files.at("secret")).as_deref(), Ok("the-secret"), "the control");
        for (text, mode, why) in [
            ("hunter2", 0o644, "chmod 0640"),
            ("hunter2", 0o604, "chmod 0600"),
            ("hunter2", 0o602, "chmod 0600"),
            ("", 0o600, "empty"),
            (" \n", 0o600, "empty"),
            ("hunter2 hunter2", 0o600, "one line"),
            ("hunter2\nhunter2", 0o600, "one line"),
            ("hünter2", 0o600, "one line"),
            (&"hunter2".repeat(1000), 0o600, "larger than"),
        ] {
            files.write("bad", text, mode);
            let told = read(&files.at("bad")).unwrap_err();
            assert!(told.contains("/bad") && told.contains(why) && !told.contains("unter2"), "{mode:o}: {told}");
        }
        files.write("bad", [0xff, 0xfe], 0o600);
        assert!(read(&files.at("bad")).unwrap_err().contains("one line"));
        assert!(read(files.0.path()).unwrap_err().contains("not a file"));
        let shown = format!("{:?} {:?}", Keys { key: "hunter2".into(), secret: "hunter2".into() }, files.keys());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    /// A script replaces one file after the other. The pause is where it writes the second one.
    #[tokio::test]
    async fn a_pair_of_which_one_file_is_new_is_looked_at_again_until_the_other_is_new_too() {
        let files = Files::new();
        let keys = files.keys();
        files.write("key", "new-key", 0o600);
        let half = keys.current().await.unwrap();
        assert_eq!((&*half.key, &*half.secret), ("new-key", "the-secret"), "the control: half of the rotation");
        let pauses = std::cell::Cell::new(0);
        let second = async |_| {
            pauses.set(pauses.get() + 1);
            if pauses.get() == 2 {
                files.write("secret", "new-secret", 0o600);
            }
        };
        let whole = keys.other_than(&half, second).await.unwrap();
        assert_eq!((&*whole.key, &*whole.secret, pauses.get()), ("new-key", "new-secret", 2));
        assert_eq!(keys.other_than(&whole, async |_| ()).await, None, "the second file does not come: an end");

        for name in ["key", "secret"] {
            let file = fs::File::options().write(true).open(files.at(name)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        let old = keys.current().await.unwrap();
        let never = async |_| panic!("nothing changes: nobody waits");
        assert_eq!(keys.other_than(&old, never).await, None);
    }

    /// Both files are replaced again and again, one after the other, while they are read: no pair is ever read that goes half
    /// with the old and half with the new, once a rotation is done.
    #[tokio::test]
    async fn a_pair_that_is_read_while_it_changes_is_read_again() {
        let files = Files::new();
        let keys = files.keys();
        for round in 0..50 {
            files.write("key", format!("k{round}"), 0o600);
            let reading = {
                let keys = Arc::clone(&keys);
                std::thread::spawn(move || keys.fresh())
            };
            files.write("secret", format!("s{round}"), 0o600);
            let _ = reading.join().unwrap();
            let now = keys.current().await.unwrap();
            assert_eq!((now.key.clone(), now.secret.clone()), (format!("k{round}"), format!("s{round}")));
        }
    }
}

//! The lab's attachd-helper, as root and behind its socket, as its units run it.

use crate::child::Proc;
use crate::people;
use crate::watch::{FolderWatch, readable};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The path of the helper's socket.
pub const SOCKET: &str = "/run/attachd/helper.sock";

/// The file for its standard error; it is unlinked after it is opened.
const SAID: &str = "/run/lab/helper.said";

const START: Duration = Duration::from_secs(20);

/// A running helper. It ends with the thread that started it, even if that thread is killed.
#[derive(Debug)]
pub struct Helper {
    process: Proc,
    /// Its messages, shown only with a failed test, so that they are not mixed with those of other tests.
    said: Option<File>,
}

impl Helper {
    /// Starts it and returns when it answers.
    pub fn start(program: &Path) -> Result<Helper> {
        let said = File::options().read(true).write(true).create_new(true).open(SAID)?;
        fs::remove_file(SAID)?;
        let mut helper = Helper::start_with(program, said.try_clone()?.into())?;
        helper.said = Some(said);
        Ok(helper)
    }

    /// As [`Helper::start`], with another standard error.
    pub fn start_with(program: &Path, stderr: Stdio) -> Result<Helper> {
        let _ = fs::remove_file(SOCKET);
        let folder = FolderWatch::new(Path::new("/run/attachd"))?;
        let mut command = Command::new(program);
        command.args(["--socket", SOCKET]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let process = Proc::spawn("attachd-helper", &mut command)?;
        while !Path::new(SOCKET).exists() {
            ensure!(readable(&[folder.fd()], START)?, "the helper has made no socket");
            folder.take();
        }
        // The same owner as in attachd-helper.socket.
        chown(SOCKET, Some(people::ATTACHD.id), None).context("the helper's socket")?;
        // The socket's file exists a moment before it can be connected to, and no event reports when.
        let begun = Instant::now();
        while UnixStream::connect(SOCKET).is_err() {
            ensure!(begun.elapsed() < START, "the helper does not listen");
            std::thread::yield_now();
        }
        Ok(Helper { process, said: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(said) = self.said.as_mut().filter(|_| std::thread::panicking()) {
            let mut text = String::new();
            let _ = said.rewind().and_then(|()| said.read_to_string(&mut text));
            println!("the helper said:\n{text}");
        }
    }
}

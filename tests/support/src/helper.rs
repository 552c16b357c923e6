//! The box's attachd-helper, as root and behind its socket, as its units run it.

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

/// Where it listens.
pub const SOCKET: &str = "/run/attachd/helper.sock";

/// Where what it says is kept, without a name.
const SAID: &str = "/run/lab/helper.said";

const START: Duration = Duration::from_secs(20);

/// A running helper. Ends with the thread that has started it, also when that is killed.
#[derive(Debug)]
pub struct Helper {
    process: Proc,
    /// What it said is shown with a test that fails, not between the lines of the others.
    said: Option<File>,
}

impl Helper {
    /// Starts it; returns when it answers.
    pub fn start(program: &Path) -> Result<Helper> {
        let said = File::options().read(true).write(true).create_new(true).open(SAID)?;
        fs::remove_file(SAID)?;
        let mut helper = Helper::start_with(program, said.try_clone()?.into())?;
        helper.said = Some(said);
        Ok(helper)
    }

    /// The same with another place for what it says.
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
        // As attachd-helper.socket has it.
        chown(SOCKET, Some(people::ATTACHD.id), None).context("the helper's socket")?;
        // The file is there a moment before it can be connected to, and nothing tells when.
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

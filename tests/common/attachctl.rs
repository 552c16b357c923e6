//! attachctl, as a person or a script runs it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_attachctl"))
}

/// The result of a run of attachctl.
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { status: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Returns the result if the exit status is the expected one.
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "stdout:\n{}stderr:\n{}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// Returns the output as JSON.
    pub(crate) fn json(self) -> Value {
        let Ran { out, err, .. } = self.expect(0);
        assert_eq!((out.lines().count(), err.as_str()), (1, ""), "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// Returns the error as JSON; standard output must be empty.
    pub(crate) fn json_error(self, status: i32) -> Value {
        let Ran { out, err, .. } = self.expect(status);
        assert_eq!((out.as_str(), err.lines().count()), ("", 1), "{err}");
        serde_json::from_str(&err).unwrap()
    }
}

pub(crate) fn ctl(arguments: &[&str]) -> Ran {
    Ran::of(&Command::new(program()).args(arguments).stdin(Stdio::null()).output().unwrap())
}

/// attachctl in the background, with its first lines not read yet.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) out: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::of(program(), arguments)
    }

    /// Another program, which runs attachctl.
    pub(crate) fn of(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What it has written since the last call; waits until that is something.
    pub(crate) fn some(&mut self) -> String {
        let some = self.out.fill_buf().unwrap().to_vec();
        assert!(!some.is_empty(), "it has ended");
        self.out.consume(some.len());
        String::from_utf8_lossy(&some).into_owned()
    }

    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        lab::child::Held::open(self.child.id()).unwrap().signal(signal);
    }

    pub(crate) fn end(mut self) -> Ran {
        let mut out = String::new();
        self.out.read_to_string(&mut out).unwrap();
        let ended = Ran::of(&self.child.wait_with_output().unwrap());
        Ran { out, ..ended }
    }
}

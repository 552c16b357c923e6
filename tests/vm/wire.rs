//! JSON over a Unix socket, one value per line, for QMP and the guest agent.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab::child::Proc;
use lab::watch::readable;
use serde_json::Value;

/// A socket to which QEMU connects. It is bound before QEMU starts, so no polling is needed.
pub(crate) struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    pub(crate) fn new(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        Self { listener: UnixListener::bind(path).unwrap(), path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Waits for QEMU's connection. `None` if QEMU ended instead.
    pub(crate) fn accept(&self, qemu: &Proc, limit: Duration) -> Option<Wire> {
        assert!(readable(&[self.listener.as_fd(), qemu.exited_fd()], limit).unwrap(), "QEMU does not connect");
        self.listener.set_nonblocking(true).unwrap();
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).unwrap();
        Some(Wire { reader: BufReader::new(stream), line: Vec::new() })
    }
}

pub(crate) struct Wire {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Wire {
    pub(crate) fn send(&mut self, value: &Value) -> std::io::Result<()> {
        self.reader.get_mut().write_all(format!("{value}\n").as_bytes())
    }

    /// Returns the next value; `None` if none came within the limit, an error if the other side is gone.
    pub(crate) fn next(&mut self, limit: Duration) -> std::io::Result<Option<Value>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.reader.buffer().is_empty() && !readable(&[self.reader.get_ref().as_fd()], left).unwrap() {
                return Ok(None);
            }
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffer.len(), |end| end + 1);
            self.line.extend(&buffer[..length]);
            self.reader.consume(length);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                // The agent's port may begin with half an answer to a request of the previous boot.
                if let Ok(value) = serde_json::from_slice(&line) {
                    return Ok(Some(value));
                }
            }
        }
    }
}

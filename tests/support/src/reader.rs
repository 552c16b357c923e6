//! The independent reader: libnbd's tools, which know nothing of attachd.

use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::{Command, Output};

/// The address of the lab's NBD server.
pub const ADDRESS: &str = "127.0.0.1:10809";

impl Lab {
    /// Copies the whole export with nbdcopy and compares it with `file`, byte by byte.
    pub fn nbdcopy_equals(&self, export: &str, file: &Path) -> Result<()> {
        self.nbdcopy_uri_equals(&uri(export), file)
    }

    /// As [`Lab::nbdcopy_equals`], with a URI: for another address, or TLS.
    pub fn nbdcopy_uri_equals(&self, uri: &str, file: &Path) -> Result<()> {
        let copy = tempfile::NamedTempFile::new_in(self.dir())?;
        run("nbdcopy", &[uri, &copy.path().to_string_lossy()])?;
        same(copy.path(), file).with_context(|| format!("{uri} against {}", file.display()))
    }

    /// The names the server lists.
    pub fn nbd_list(&self) -> Result<Vec<String>> {
        crate::nbd::list(ADDRESS)
    }

    /// Returns whether a new client can open the export. For nbdkit only: `nbdinfo` gets an answer about an export
    /// that nbd-server remembers, even if no client is let in.
    pub fn nbd_connects(&self, export: &str) -> bool {
        run("nbdinfo", &["--size", &uri(export)]).is_ok()
    }

    /// A client that stays connected.
    pub fn nbd_client(&self, export: &str) -> Result<crate::NbdClient> {
        crate::NbdClient::connect(ADDRESS, export)
    }
}

fn uri(export: &str) -> String {
    format!("nbd://{ADDRESS}/{export}")
}

fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("running {program} (package libnbd-bin)"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output)
}

/// Compares two files.
pub(crate) fn same(one: &Path, other: &Path) -> Result<()> {
    let open = |path: &Path| std::fs::File::open(path).with_context(|| format!("opening {}", path.display()));
    let (one, other) = (open(one)?, open(other)?);
    let sizes = (one.metadata()?.len(), other.metadata()?.len());
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            break;
        }
        let got = other.read_exact(&mut b[..length]);
        ensure!(got.is_ok(), "sizes differ: {} and {} bytes", sizes.0, sizes.1);
        ensure!(a[..length] == b[..length], "the bytes differ within {length} bytes from {at}");
        at += length;
    }
    ensure!(other.read(&mut b)? == 0, "sizes differ: {} and {} bytes", sizes.0, sizes.1);
    Ok(())
}

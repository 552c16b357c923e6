//! Checks whether nbd-server would accept its files. The check runs before each signal: one bad file blocks every new
//! export, makes some versions die, and keeps every version from starting.
//!
//! What the server refuses is refused here too; `tests/nbd_server.rs` compares both with the real server. In addition
//! this check refuses what [`super::keyfile`] lists, and a section `generic` in an included file, which is always a
//! mistake.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::keyfile::{self, Bad, Group};
use crate::place::{small_file, small_file_of_root};

/// The size limit of a file; thousands of sections fit.
const SIZE: u64 = 1 << 20;

/// One export as a file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The export's name.
    pub name: String,
    /// The line at which the section begins.
    pub line: usize,
    /// The path that the section serves.
    pub exportname: String,
    /// Settings that the server accepts but that an operator should know of.
    pub remarks: Vec<SectionRemark>,
}

/// A setting that the server accepts but that an operator should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SectionRemark {
    /// `flush` is missing.
    #[error("no `flush = true`: its clients cannot make their data durable")]
    NoFlush,
    /// The path ends in a blank.
    #[error("exportname ends in a blank, which belongs to the path: it cannot be opened")]
    BlankAtEnd,
    /// The path contains `%`.
    #[error("exportname has a %, for which the server puts in the client's address")]
    Percent,
    /// `maxconnections` is set.
    #[error("maxconnections counts all connections there ever were: the export ends when the number is reached")]
    MaxConnections,
}

/// The content of the main file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Main {
    /// The folder of included files.
    pub includedir: Option<String>,
    /// The addresses to listen on; `None` means all.
    pub listenaddr: Option<String>,
    /// The port; `Some("0")` means socket activation.
    pub port: Option<String>,
    /// The sections in the main file itself.
    pub sections: Vec<Section>,
}

impl Main {
    /// Returns whether the server listens only on loopback addresses.
    pub fn is_local(&self) -> bool {
        let is_local = |address: &str| {
            address == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        self.listenaddr.as_deref().unwrap_or_default().split(',').map(str::trim).all(is_local)
    }
}

/// A file that would stop the server from starting and from reading new exports.
#[derive(Debug, thiserror::Error)]
pub enum BadFile {
    /// The server would not understand the file.
    #[error("{}, line {line}: {why}; correct the file or move it away", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The reason, in words.
        why: String,
    },
    /// The file cannot be read by the server's user, or by anybody.
    #[error("{} cannot be read by the NBD server: {why}; chmod 0644, or move it away", path.display())]
    Unreadable {
        /// The file or the folder.
        path: PathBuf,
        /// The reason, in words.
        why: String,
    },
}

/// The user that the NBD server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerUser {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

/// A folder whose files the server would all accept.
#[derive(Debug, Default)]
pub struct CheckedFolder {
    /// The sections of each file.
    pub files: BTreeMap<PathBuf, Vec<Section>>,
}

impl CheckedFolder {
    /// Returns the export names that more than one file has. Which file the server uses depends on the folder's
    /// order, on the kind of request, and on what was there when the server started.
    pub fn duplicate_names(&self) -> BTreeMap<&str, Vec<&Path>> {
        let mut by_name: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
        for (file, sections) in &self.files {
            for section in sections {
                by_name.entry(&section.name).or_default().push(file);
            }
        }
        by_name.retain(|_, files| files.len() > 1);
        by_name
    }
}

/// Returns whether the server reads this entry: a regular file whose name ends in `.conf`, hidden files included. The
/// server skips folders and symlinks.
pub(super) fn is_read(entry: &fs::DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().ends_with(b".conf") && entry.file_type().is_ok_and(|kind| kind.is_file())
}

/// Checks every file in this folder that the server would read.
pub fn folder(path: &Path, server: ServerUser) -> Result<CheckedFolder, BadFile> {
    let unreadable = |path: &Path, why: io::Error| BadFile::Unreadable { path: path.to_owned(), why: why.to_string() };
    may(path, server, 0o5).map_err(|why| unreadable(path, why))?;
    let mut checked = CheckedFolder::default();
    for entry in fs::read_dir(path).map_err(|why| unreadable(path, why))? {
        let entry = entry.map_err(|why| unreadable(path, why))?;
        let file = entry.path();
        if !is_read(&entry) {
            continue;
        }
        may(&file, server, 0o4).map_err(|why| unreadable(&file, why))?;
        let bytes = small_file(&file, SIZE).map_err(|why| unreadable(&file, why))?;
        let sections = sections(&bytes).map_err(|(line, why)| BadFile::Malformed { file: file.clone(), line, why })?;
        checked.files.insert(file, sections);
    }
    Ok(checked)
}

/// Checks the main file.
pub fn main_file(path: &Path, server: ServerUser) -> Result<Main, BadFile> {
    let unreadable = |why: io::Error| BadFile::Unreadable { path: path.to_owned(), why: why.to_string() };
    may(path, server, 0o4).map_err(unreadable)?;
    let bytes = small_file_of_root(path, SIZE).map_err(unreadable)?;
    main(&bytes).map_err(|(line, why)| BadFile::Malformed { file: path.to_owned(), line, why })
}

/// Checks that the file's mode gives the server these rights (access lists are not read).
fn may(path: &Path, server: ServerUser, rights: u32) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    let shift = match (meta.uid() == server.uid, meta.gid() == server.gid) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    if meta.mode() >> shift & rights == rights {
        return Ok(());
    }
    Err(io::Error::other(format!("its mode is {:04o}, its owner {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid())))
}

/// Parses an included file and returns its sections. An error gives the line that the server would refuse, counted
/// from 1, and the reason.
pub fn sections(bytes: &[u8]) -> Result<Vec<Section>, (usize, String)> {
    keyfile::parse(bytes)?.iter().map(included).collect()
}

/// Parses the main file, with the same errors as [`sections`].
pub fn main(bytes: &[u8]) -> Result<Main, (usize, String)> {
    let groups = keyfile::parse(bytes)?;
    let Some((generic, exports)) = groups.split_first().filter(|(first, _)| first.name == "generic") else {
        return Err((1, "the first section of a main file must be [generic]".to_owned()));
    };
    for key in ["oldstyle", "allowlist", "duallisten", "force_tls"] {
        if read(generic, key, keyfile::boolean)? == Some(true) && key == "oldstyle" {
            return Err((generic.line, "oldstyle is no longer supported".to_owned()));
        }
    }
    read(generic, "max_threads", keyfile::integer)?;
    for key in ["user", "group", "unixsock", "certfile", "keyfile", "cacertfile", "tlsprio"] {
        read(generic, key, keyfile::string)?;
    }
    Ok(Main {
        includedir: read(generic, "includedir", keyfile::string)?,
        listenaddr: read(generic, "listenaddr", keyfile::string)?,
        port: read(generic, "port", keyfile::string)?,
        sections: exports.iter().map(export).collect::<Result<_, _>>()?,
    })
}

fn included(group: &Group) -> Result<Section, Bad> {
    if group.name == "generic" {
        return Err((group.line, "[generic] belongs into the main file".to_owned()));
    }
    export(group)
}

fn export(group: &Group) -> Result<Section, Bad> {
    let bad = |why: &str| Err((group.line, why.to_owned()));
    let Some(exportname) = read(group, "exportname", keyfile::string)? else {
        return bad("the section has no exportname");
    };
    for key in ["authfile", "prerun", "postrun", "transactionlog", "cowdir", "listenaddr"] {
        read(group, key, keyfile::string)?;
    }
    read(group, "filesize", keyfile::long)?;
    let max_connections = read(group, "maxconnections", keyfile::integer)?;
    let plain = ["readonly", "multifile", "treefiles", "sparse_cow", "sync", "rotational", "temporary", "trim", "fua"];
    for key in plain.into_iter().chain(["force_tls"]) {
        read(group, key, keyfile::boolean)?;
    }
    let is_on = |key| read(group, key, keyfile::boolean).map(Option::unwrap_or_default);
    let (copy_on_write, wait, splice, datalog) =
        (is_on("copyonwrite")?, is_on("waitfile")?, is_on("splice")?, is_on("datalog")?);
    if is_on("sdp")? {
        return bad("sdp is not supported");
    }
    if copy_on_write && (splice || wait) || datalog && splice {
        return bad("copyonwrite goes with neither splice nor waitfile, and datalog not with splice");
    }
    if let Some(style) = read(group, "virtstyle", keyfile::string)? {
        let known = ["none", "ipliteral", "iphash"].iter().any(|known| style.starts_with(known));
        let with_number = style.starts_with("cidrhash") && style.len() >= 10;
        if !known && !with_number {
            return bad("virtstyle can be none, ipliteral, iphash or cidrhash and a number");
        }
    }
    let remarks = [
        (!is_on("flush")?, SectionRemark::NoFlush),
        (exportname.ends_with(|c: char| c.is_ascii_whitespace()), SectionRemark::BlankAtEnd),
        (exportname.contains('%'), SectionRemark::Percent),
        (max_connections.is_some_and(|limit| limit != 0), SectionRemark::MaxConnections),
    ];
    let remarks = remarks.into_iter().filter_map(|(holds, remark)| holds.then_some(remark)).collect();
    Ok(Section { name: group.name.clone(), line: group.line, exportname, remarks })
}

/// Reads one setting; `None` if it is absent.
fn read<T>(group: &Group, key: &str, how: impl Fn(&[u8]) -> Result<T, &'static str>) -> Result<Option<T>, Bad> {
    let Some((value, line)) = group.value(key) else { return Ok(None) };
    how(value).map(Some).map_err(|why| (line, format!("{key}: {why}")))
}

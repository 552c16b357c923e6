//! The users and groups of the lab. Their numbers are fixed and used by no distribution, so that a file's owner reads
//! the same in every lab and on the host.

use anyhow::{Context, Result};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::fs;

/// A user with a group of the same name and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    /// The name of the user and of the group.
    pub name: &'static str,
    /// The number of the user and of the group.
    pub id: u32,
}

/// attachd itself. Its group is the group of the API socket.
pub const ATTACHD: Person = Person { name: "attachd", id: 61801 };
/// The NBD servers; claimed disks belong to this group.
pub const NBD: Person = Person { name: "attachd-nbd", id: 61802 };

/// Adds both to the lab's own `/etc/passwd` and `/etc/group`, and replaces the host's entries with these names.
pub(crate) fn add_to_etc() -> Result<()> {
    rewrite("/etc/passwd", |p| format!("{0}:x:{1}:{1}::/nonexistent:/usr/sbin/nologin\n", p.name, p.id))?;
    rewrite("/etc/group", |p| format!("{}:x:{}:\n", p.name, p.id))
}

fn rewrite(path: &str, line: impl Fn(Person) -> String) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let mut new = String::new();
    for kept in old.lines().filter(|l| !is_named(l, ATTACHD) && !is_named(l, NBD)) {
        new.push_str(kept);
        new.push('\n');
    }
    new.push_str(&line(ATTACHD));
    new.push_str(&line(NBD));
    fs::write(path, new).with_context(|| format!("writing the box's {path}"))
}

fn is_named(line: &str, person: Person) -> bool {
    line.split(':').next() == Some(person.name)
}

/// Permanently changes the calling thread's user; it gets attachd's group and no other.
pub(crate) fn become_user(uid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(ATTACHD.id));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Returns the command line that runs a program as `person`: only with that group, without capabilities, and with no
/// way to get any.
///
/// setpriv sets `--pdeathsig` itself, because the kernel clears it when the user changes.
pub fn run_as(person: Person) -> Vec<String> {
    [
        "setpriv",
        "--reuid",
        person.name,
        "--regid",
        person.name,
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--pdeathsig",
        "KILL",
        "--",
    ]
    .map(str::to_owned)
    .to_vec()
}

//! Looks up users and groups by name. attachd's package makes them in `/etc/passwd` and `/etc/group`; no other source
//! is asked. The files are read as bytes, because names in them may not be UTF-8.

use std::collections::BTreeSet;
use std::io;

/// Returns the id of a user or group, from a file in the format of `/etc/passwd`.
pub(crate) fn id_of(file: &str, name: &str) -> io::Result<u32> {
    let bytes = std::fs::read(file)?;
    number_of(&bytes, name.as_bytes()).ok_or_else(|| io::Error::other(format!("there is no {name} in {file}")))
}

fn number_of(file: &[u8], name: &[u8]) -> Option<u32> {
    entries(file).find_map(|entry| (*entry.first()? == name).then(|| number(entry.get(2)?)).flatten())
}

fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn number(field: &[u8]) -> Option<u32> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// Returns the users who have a group as their own or as a further one, from the contents of `/etc/passwd` and
/// `/etc/group`. `None`: there is no such group.
pub(crate) fn members(passwd: &[u8], group: &[u8], name: &str) -> Option<BTreeSet<u32>> {
    let gid = number_of(group, name.as_bytes())?;
    // A group can have several names; the kernel knows only its number.
    let groups = entries(group).filter(|entry| entry.get(2).and_then(|field| number(field)) == Some(gid));
    let named: BTreeSet<&[u8]> =
        groups.filter_map(|entry| Some(entry.get(3)?.split(|byte| *byte == b','))).flatten().collect();
    let is_member = |entry: &Vec<&[u8]>| {
        let primary = entry.get(3).and_then(|field| number(field)) == Some(gid);
        primary || entry.first().is_some_and(|user| !user.is_empty() && named.contains(user))
    };
    Some(entries(passwd).filter(is_member).filter_map(|entry| number(entry.get(2)?)).collect())
}

/// Returns the name of a user; its number, if it has no name.
pub(crate) fn name_of(uid: u32) -> String {
    let number = uid.to_string();
    let users = std::fs::read("/etc/passwd").unwrap_or_default();
    let name = String::from_utf8_lossy(&users).lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&number.as_str())).then(|| fields[0].to_owned())
    });
    name.unwrap_or_else(|| format!("user {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_name_is_a_number() {
        assert_eq!(name_of(0), "root");
        assert_eq!(name_of(3_999_999_999), "user 3999999999");
    }

    #[test]
    fn an_id_is_found_only_by_the_whole_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("group");
        std::fs::write(&file, "attachd-nbd-x:x:1:\nattachd-nbd:x:990:\nbroken\nattachd-nbd:x:991:\n").unwrap();
        assert_eq!(id_of(file.to_str().unwrap(), "attachd-nbd").unwrap(), 990);
        assert!(id_of(file.to_str().unwrap(), "attachd").is_err());
        assert!(id_of(file.to_str().unwrap(), "broken").is_err());
    }

    #[test]
    fn members_have_the_group_as_their_own_or_as_a_further_one_under_any_of_its_names() {
        let passwd = b"root:x:0:0::/:\nren\xe9:x:1000:1000::/:\nown:x:1001:990::/:\nother:x:1002:100::/:\n\
            alias:x:1003:100::/:\nbroken\n:x:1004:100::/:\nwrong:x:nobody:990::/:\n";
        let group = b"users:x:100:alias,other\nattachd:x:990:ren\xe9,gone,,\nsame:x:990:alias\nattachd-x:x:991:other\n";
        assert_eq!(members(passwd, group, "attachd"), Some(BTreeSet::from([1000, 1001, 1003])));
        assert_eq!(members(passwd, group, "attachd-x"), Some(BTreeSet::from([1002])), "the control");
        assert_eq!(members(passwd, group, "none"), None);
    }

    #[test]
    fn a_name_that_is_not_utf_8_does_not_hide_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwd");
        std::fs::write(&file, b"ren\xe9:x:1000:1000:Ren\xe9:/:/bin/sh\nattachd:x:990:990:\xff:/:/bin/sh\n").unwrap();
        assert_eq!(id_of(file.to_str().unwrap(), "attachd").unwrap(), 990);
    }
}

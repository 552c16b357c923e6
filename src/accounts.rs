//! Looks up users and groups by name. attachd's package makes them in `/etc/passwd` and `/etc/group`; no other source
//! is asked.

use std::io;

/// Returns the id of a user or group, from a file in the format of `/etc/passwd`.
pub(crate) fn id_of(file: &str, name: &str) -> io::Result<u32> {
    // The file is read as bytes, because names in it may not be UTF-8.
    let bytes = std::fs::read(file)?;
    let found = bytes.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let number = |field: &[u8]| str::from_utf8(field).ok()?.parse().ok();
        (fields.next()? == name.as_bytes()).then(|| fields.nth(1).and_then(number)).flatten()
    });
    found.ok_or_else(|| io::Error::other(format!("there is no {name} in {file}")))
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
    fn a_name_that_is_not_utf_8_does_not_hide_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwd");
        std::fs::write(&file, b"ren\xe9:x:1000:1000:Ren\xe9:/:/bin/sh\nattachd:x:990:990:\xff:/:/bin/sh\n").unwrap();
        assert_eq!(id_of(file.to_str().unwrap(), "attachd").unwrap(), 990);
    }
}

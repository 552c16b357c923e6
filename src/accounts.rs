//! Users and groups by name. The package makes ours in `/etc/passwd` and `/etc/group`; no other place is asked.

use std::io;

/// The id of a user or group, from a file in the shape of `/etc/passwd`.
pub(crate) fn id_of(file: &str, name: &str) -> io::Result<u32> {
    let found = std::fs::read_to_string(file)?.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| io::Error::other(format!("there is no {name} in {file}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_the_whole_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("group");
        std::fs::write(&file, "attachd-nbd-x:x:1:\nattachd-nbd:x:990:\nbroken\nattachd-nbd:x:991:\n").unwrap();
        assert_eq!(id_of(file.to_str().unwrap(), "attachd-nbd").unwrap(), 990);
        assert!(id_of(file.to_str().unwrap(), "attachd").is_err());
        assert!(id_of(file.to_str().unwrap(), "broken").is_err());
    }
}

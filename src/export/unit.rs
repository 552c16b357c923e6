//! Explains from unit files why a server is down. The daemon has no permission to ask systemd.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::clients;
use crate::accounts;

/// The folders of unit files, in systemd's order of precedence.
const PLACES: [&str; 3] = ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system"];

/// The parameters of an explanation of why a server is down.
#[derive(Debug, Clone, Copy)]
pub struct Explain {
    /// The server's unit.
    pub unit: &'static str,
    /// The server's program.
    pub program: &'static str,
    /// The address at which the server should listen.
    pub listen: SocketAddr,
}

/// What is wrong with a unit, as far as files show it.
#[derive(Debug, PartialEq, Eq)]
enum UnitTrouble {
    NoProgram(PathBuf),
    Masked,
    Disabled,
    Nothing,
}

impl Explain {
    /// Describes what is wrong; empty if nothing is found. Blocks for milliseconds.
    pub fn words(&self) -> String {
        let Self { unit, program, listen } = self;
        let found = match found("/".as_ref(), unit, program) {
            UnitTrouble::NoProgram(path) => {
                Some(format!("{} is not installed (`apt install {program}`)", path.display()))
            }
            UnitTrouble::Masked => Some(format!("{unit} is masked (`systemctl unmask {unit}`)")),
            UnitTrouble::Disabled => Some(format!("{unit} is not enabled (`systemctl enable --now {unit}`)")),
            UnitTrouble::Nothing => None,
        };
        let listeners = clients::listeners(*listen).unwrap_or_default();
        // The user 0 is systemd, which holds the socket until the server starts.
        let others: Vec<String> = listeners.into_iter().filter(|uid| *uid != 0).map(accounts::name_of).collect();
        let taken = (!others.is_empty()).then(|| format!("{listen} is taken by a program of {}", others.join(", ")));
        found.into_iter().chain(taken).collect::<Vec<_>>().join("; ")
    }
}

fn found(root: &Path, unit: &str, program: &str) -> UnitTrouble {
    let at = |place: &str| root.join(place).join(unit);
    let there = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    // A host without attachd's units runs the server in its own way.
    let Some(path) = PLACES.iter().map(|place| at(place)).find(there) else { return UnitTrouble::Nothing };
    if fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/null")) {
        return UnitTrouble::Masked;
    }
    let binary = root.join("usr/bin").join(program);
    if !there(&binary) {
        return UnitTrouble::NoProgram(binary);
    }
    let folders = fs::read_dir(root.join(PLACES[0])).into_iter().flatten().flatten();
    let wants = folders.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "wants"));
    if wants.map(|wants| wants.join(unit)).any(|link| there(&link)) {
        UnitTrouble::Nothing
    } else {
        UnitTrouble::Disabled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn each_trouble_is_seen_in_the_files() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let look = || found(root, "x.service", "server");
        assert_eq!(look(), UnitTrouble::Nothing, "no unit of ours");
        for folder in ["usr/bin", "usr/lib/systemd/system", "etc/systemd/system/multi-user.target.wants"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("usr/lib/systemd/system/x.service"), "").unwrap();
        assert_eq!(look(), UnitTrouble::NoProgram(root.join("usr/bin/server")));
        fs::write(root.join("usr/bin/server"), "").unwrap();
        assert_eq!(look(), UnitTrouble::Disabled);
        symlink("/usr/lib/systemd/system/x.service", root.join("etc/systemd/system/multi-user.target.wants/x.service"))
            .unwrap();
        assert_eq!(look(), UnitTrouble::Nothing);
        symlink("/dev/null", root.join("etc/systemd/system/x.service")).unwrap();
        assert_eq!(look(), UnitTrouble::Masked);
    }
}

//! Which nbd-server version is installed, and whether it survives SIGHUP. Pure.

use std::fmt;
use std::str::FromStr;

/// An upstream version. A missing last number counts as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The nbd-server that is installed on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The upstream version.
    pub version: Version,
    /// The Debian revision (`6.1` of `1:3.26.1-6.1`), if it comes from a package.
    pub revision: Option<String>,
}

/// How the server reacts to SIGHUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It reads new exports, even if another file in its folder is bad.
    Allowed,
    /// It reads new exports if it can read every file, and dies otherwise.
    WhileFilesAreValid,
    /// It dies.
    Refused,
}

impl Installed {
    /// Parses the output of `nbd-server -V`: `This is nbd-server version 3.26.1`.
    pub fn from_output(output: &str) -> Option<Self> {
        let (_, version) = output.trim().rsplit_once(' ')?;
        Some(Self { version: version.parse().ok()?, revision: None })
    }

    /// Parses the version of a Debian or Ubuntu package: `1:3.26.1-6.1`.
    pub fn from_package(version: &str) -> Option<Self> {
        let version = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
        let (upstream, revision) = version.rsplit_once('-')?;
        Some(Self { version: upstream.parse().ok()?, revision: Some(revision.to_owned()) })
    }

    /// Parses the text of `/var/lib/dpkg/status`, so that no program has to be run. `None`: the package is not
    /// installed.
    pub fn from_dpkg_status(status: &str) -> Option<Self> {
        let package = status.split("\n\n").find(|package| package.lines().any(|line| line == "Package: nbd-server"))?;
        let field = |name| package.lines().find_map(|line| line.strip_prefix(name));
        field("Status: ").filter(|status| status.ends_with(" installed"))?;
        Self::from_package(field("Version: ")?)
    }

    /// Returns how this version reacts to SIGHUP. Socket mode needs no signal and works with every version.
    pub fn signal(&self) -> Signal {
        match self.version {
            // Versions from 3.20 write reference counts into memory that they do not own; fixed in 3.25.
            version if version < Version(3, 25, 0) => Signal::Refused,
            // Version 3.26 frees an unparsable file's data twice; fixed by Debian in 3.26.1-2, upstream in 3.27.
            Version(3, 26, _) if !self.is_repaired() => Signal::WhileFilesAreValid,
            _ => Signal::Allowed,
        }
    }

    fn is_repaired(&self) -> bool {
        let revision = self.revision.as_deref().unwrap_or_default();
        let digits = revision.find(|c: char| !c.is_ascii_digit()).unwrap_or(revision.len());
        self.version == Version(3, 26, 1) && revision[..digits].parse().is_ok_and(|revision: u32| revision >= 2)
    }

    /// Explains why this version is not signalled, and the alternative; `None` if there is nothing to say.
    pub fn advice(&self) -> Option<String> {
        match self.signal() {
            Signal::Allowed => None,
            Signal::WhileFilesAreValid => Some(format!(
                "nbd-server {self} dies of a signal when one file of its folder is malformed or unreadable: attachd checks \
                 all before each signal, but cannot keep others from writing; upgrade it (Debian's 3.26.1-2, upstream's \
                 3.27), or use mode = \"socket\" or backend = \"nbdkit\""
            )),
            Signal::Refused => Some(format!(
                "nbd-server {self} dies of the signal that makes it read its files again (3.20 to 3.24 do; earlier ones are \
                 not known): use mode = \"socket\" (attachd-nbd-server.socket), which needs no signal, \
                 backend = \"nbdkit\", or nbd-server 3.25 or later"
            )),
        }
    }
}

impl FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = text.splitn(3, '.');
        let mut next = || numbers.next().unwrap_or("0").parse();
        Ok(Self(next()?, next()?, next()?))
    }
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version(major, minor, patch) = self.version;
        write!(f, "{major}.{minor}")?;
        if patch != 0 {
            write!(f, ".{patch}")?;
        }
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "-{revision}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_version_gets_its_verdict() {
        for (package, verdict) in [
            ("1:3.21-1", Signal::Refused),
            ("1:3.23-3ubuntu1", Signal::Refused),
            ("1:3.24-1.1", Signal::Refused),
            ("1:3.25-1", Signal::Allowed),
            ("1:3.26-1", Signal::WhileFilesAreValid),
            ("1:3.26.1-1", Signal::WhileFilesAreValid),
            ("1:3.26.1-1build1", Signal::WhileFilesAreValid),
            ("1:3.26.1-1ubuntu0.1", Signal::WhileFilesAreValid),
            ("1:3.26.1-2", Signal::Allowed),
            ("1:3.26.1-6.1", Signal::Allowed),
            ("1:3.26.1-10", Signal::Allowed),
            ("1:3.27.1-4", Signal::Allowed),
            ("1:4.0-1", Signal::Allowed),
        ] {
            let installed = Installed::from_package(package).unwrap();
            assert_eq!(installed.signal(), verdict, "{package}");
            assert_eq!(installed.advice().is_some(), verdict != Signal::Allowed, "{package}");
            assert_eq!(installed.to_string(), package[2..]);
        }
    }

    #[test]
    fn version_output_has_no_revision_so_the_unrepaired_one_is_assumed() {
        let says = |version: &str| Installed::from_output(&format!("This is nbd-server version {version}\n"));
        assert_eq!(says("3.24").unwrap().signal(), Signal::Refused);
        assert_eq!(says("3.26.1").unwrap().signal(), Signal::WhileFilesAreValid);
        assert_eq!(says("3.27").unwrap().signal(), Signal::Allowed);
        assert_eq!(says("unknown"), None);
        assert_eq!(Installed::from_output(""), None);
    }

    #[test]
    fn the_dpkg_status_counts_only_for_an_installed_package() {
        let status = |state: &str| {
            format!(
                "Package: nbd-client\nStatus: install ok installed\nVersion: 1:3.24-1\n\n\
                 Package: nbd-server\nStatus: {state}\nArchitecture: amd64\nVersion: 1:3.26.1-6.1\n\nPackage: z\n"
            )
        };
        let installed = Installed::from_dpkg_status(&status("install ok installed")).unwrap();
        assert_eq!(installed, Installed { version: Version(3, 26, 1), revision: Some("6.1".into()) });
        assert_eq!(Installed::from_dpkg_status(&status("deinstall ok config-files")), None);
        assert_eq!(Installed::from_dpkg_status(""), None);
    }
}

//! The file of one export: what attachd writes, to the byte, and how it knows it again. Pure.

use std::path::{Path, PathBuf};

use super::check;
use crate::identity::VolumeId;

/// The first line of every file that attachd writes; a file without it is somebody else's.
const MARK: &str = "# Written by attachd, and written again as it needs: leave it alone.\n";

/// What the names of files end in that the server reads.
const READ: &str = ".conf";

/// The export of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Whose.
    pub volume: VolumeId,
    /// The by-id path it serves.
    pub link: String,
    /// The file that says who may connect.
    pub authfile: PathBuf,
}

/// A path that cannot be said in the server's configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be written into nbd-server's configuration: {1}")]
pub struct NotWritable(pub PathBuf, pub &'static str);

impl Section {
    /// The whole file.
    ///
    /// Without `flush` and `fua` no client could make its data durable. The rest is what the predecessor wrote, and the
    /// server's defaults: said, because nobody should have to look them up.
    pub fn render(&self) -> Result<String, NotWritable> {
        let (link, authfile) = (writable(Path::new(&self.link))?, writable(&self.authfile)?);
        // The server would put the client's address in its place.
        if link.contains('%') {
            return Err(NotWritable(link.into(), "there is a % in it"));
        }
        Ok(format!(
            "{MARK}[{}]\nexportname = {link}\nreadonly = false\nmultifile = false\ncopyonwrite = false\n\
             flush = true\nfua = true\nauthfile = {authfile}\n",
            self.volume.export_name()
        ))
    }

    /// A section from the bytes of a file that attachd has written; `None` when it has not.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.strip_prefix(MARK.as_bytes())?;
        let [section] = <[check::Section; 1]>::try_from(check::sections(bytes).ok()?).ok()?;
        let volume = VolumeId::from_export_name(&section.name)?;
        Some(Self { volume, link: section.exportname, authfile: section.authfile?.into() })
    }
}

/// The name of a volume's file.
pub fn file_name(volume: VolumeId) -> String {
    volume.export_name() + READ
}

/// The volume a file is named after.
pub fn volume_of(file_name: &str) -> Option<VolumeId> {
    VolumeId::from_export_name(file_name.strip_suffix(READ)?)
}

/// The path as text that the server reads back as it is.
fn writable(path: &Path) -> Result<&str, NotWritable> {
    let bad = |why| Err(NotWritable(path.to_owned(), why));
    let Some(text) = path.to_str() else { return bad("it is not UTF-8") };
    if !path.is_absolute() {
        return bad("it is not absolute");
    }
    if text.contains(|c: char| c == '\\' || c.is_control()) {
        return bad(r"there is a \ or a control character in it");
    }
    if text.ends_with(char::is_whitespace) {
        return bad("it ends in a blank");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn section(link: &str, authfile: &str) -> Section {
        Section { volume: VOLUME.parse().unwrap(), link: link.to_owned(), authfile: authfile.into() }
    }

    #[test]
    fn the_file_is_this_to_the_byte() {
        let section = section("/dev/disk/by-id/virtio-b3bb93101b594f6297e8", "/run/x/migration-vol-a.clients");
        let expected = "\
# Written by attachd, and written again as it needs: leave it alone.
[migration-vol-b3bb9310-1b59-4f62-97e8-cefffdfe3804]
exportname = /dev/disk/by-id/virtio-b3bb93101b594f6297e8
readonly = false
multifile = false
copyonwrite = false
flush = true
fua = true
authfile = /run/x/migration-vol-a.clients
";
        assert_eq!(section.render().unwrap(), expected);
        assert_eq!(Section::parse(expected.as_bytes()), Some(section));
        let [checked] = <[check::Section; 1]>::try_from(check::sections(expected.as_bytes()).unwrap()).unwrap();
        assert_eq!((checked.flush, checked.remarks), (true, vec![]));
    }

    #[test]
    fn the_predecessors_file_and_a_copy_of_ours_without_the_mark_are_not_ours() {
        let ours = section("/dev/disk/by-id/virtio-b3bb93101b594f6297e8", "/run/x/a.clients").render().unwrap();
        let predecessors = format!(
            "[migration-vol-{VOLUME}]\nexportname = /dev/disk/by-id/virtio-b3bb93101b594f6297e8\nreadonly = false\n\
             multifile = false\ncopyonwrite = false\n"
        );
        assert!(Section::parse(ours.as_bytes()).is_some(), "the control");
        assert_eq!(Section::parse(predecessors.as_bytes()), None);
        assert_eq!(Section::parse(&ours.as_bytes()[MARK.len()..]), None);
        assert_eq!(Section::parse(format!("{ours}[another]\nexportname = /dev/null\n").as_bytes()), None);
        assert_eq!(Section::parse(&ours.as_bytes()[..MARK.len()]), None);
    }

    #[test]
    fn a_path_the_server_would_read_as_another_is_not_written() {
        for link in ["/dev/a%sb", "dev/a", "/dev/a ", "/dev/a\\sb", "/dev/a\nreadonly = true", "/dev/a\t", ""] {
            assert!(section(link, "/run/a").render().is_err(), "{link:?}");
            assert!(link.contains('%') || section("/dev/a", link).render().is_err(), "{link:?}");
        }
        assert!(section("/dev/a b", "/run/100%/a").render().is_ok(), "the control");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(link in "/.{0,40}", authfile in "/.{0,40}") {
            let section = section(&link, &authfile);
            if let Ok(text) = section.render() {
                prop_assert_eq!(Section::parse(text.as_bytes()), Some(section));
            }
        }
    }

    #[test]
    fn a_files_name_tells_the_volume() {
        let volume = VOLUME.parse().unwrap();
        assert_eq!(volume_of(&file_name(volume)), Some(volume));
        for name in
            ["migration-vol-.conf", "dummy.conf", ".migration-vol-x.conf.tmp", &format!("migration-vol-{VOLUME}")]
        {
            assert_eq!(volume_of(name), None, "{name}");
        }
    }
}

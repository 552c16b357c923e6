//! Checks the folders and files that settings name: whether they overlap (by their paths alone), and whether the
//! files at these paths are attachd's.

use std::io;
use std::path::{Path, PathBuf};

use super::{LINKS_FOLDER, SECTIONS_FOLDER, ServerSettings, Settings};
use crate::accounts::id_of;
use crate::export::links::STAGING_FOLDER;
use crate::folder::Names;
use crate::identity::{Serial, VolumeId};
use crate::place::{self, Inode, Kind, NotOurs, ROOT};
use crate::store;

/// A path that a setting names, or that attachd always uses.
struct NamedPath {
    /// Section and key; `None` for a path that no key names.
    key: Option<(&'static str, &'static str)>,
    path: PathBuf,
    role: PathRole,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PathRole {
    /// The folder of claims; attachd's.
    Claims,
    /// The folder of links; attachd's.
    Links,
    /// The folder of nbd-server's sections; attachd's, but others may have files in it.
    Sections,
    /// The folder in which new links are made; attachd's.
    Staging,
    /// The folder of the host's own disks; root's.
    HostDisks,
    /// The database; attachd's.
    Store,
    /// A socket that attachd makes, unless systemd passes one.
    OwnSocket,
    /// Another program's socket.
    OtherSocket,
    /// Another owner's file, which attachd reads.
    Other,
}

impl PathRole {
    /// Returns whether it is a folder in which every file has a meaning.
    fn is_folder(self) -> bool {
        matches!(self, Self::Claims | Self::Links | Self::Sections | Self::Staging | Self::HostDisks)
    }
}

impl NamedPath {
    fn name(&self) -> String {
        let path = self.path.display();
        match self.key {
            Some((section, key)) => format!("[{section}] {key} ({path})"),
            None => path.to_string(),
        }
    }
}

fn places(settings: &Settings) -> Vec<NamedPath> {
    let place = |section, key, path: &Path, role| NamedPath { key: Some((section, key)), path: path.to_owned(), role };
    let exports = match settings.export.server {
        ServerSettings::Nbdkit => PathRole::Links,
        ServerSettings::NbdServer { .. } => PathRole::Sections,
    };
    let mut places = vec![
        place("store", "claims", &settings.store.claims, PathRole::Claims),
        place("export", "folder", &settings.export.folder, exports),
        place("device", "host_disks", &settings.device.host_disks, PathRole::HostDisks),
        place("store", "path", &settings.store.path, PathRole::Store),
        place("api", "socket", &settings.api.socket, PathRole::OwnSocket),
        place("helper", "socket", &settings.helper.socket, PathRole::OtherSocket),
        place("export", "pid_file", &settings.export.pid_file, PathRole::Other),
    ];
    if let ServerSettings::NbdServer { main_file, .. } = &settings.export.server {
        places.push(place("export", "main_file", main_file, PathRole::Other));
    }
    // attachd looks here for exports that earlier settings made.
    let staging = settings.export.links_folder().with_file_name(STAGING_FOLDER);
    let own = [
        (LINKS_FOLDER.into(), PathRole::Links),
        (SECTIONS_FOLDER.into(), PathRole::Sections),
        (staging, PathRole::Staging),
    ];
    for (path, role) in own {
        if !places.iter().any(|place| place.path == path && place.role == role) {
            places.push(NamedPath { key: None, path, role });
        }
    }
    places
}

/// Returns settings whose paths overlap, each with the keys to report.
pub(super) fn overlaps(settings: &Settings) -> Vec<(Vec<(&'static str, &'static str)>, String)> {
    let places = places(settings);
    let mut found = Vec::new();
    for (index, one) in places.iter().enumerate() {
        for other in &places[index + 1..] {
            // The outer path is the folder that would contain the inner one.
            let (outer, inner) = if one.path.starts_with(&other.path) { (other, one) } else { (one, other) };
            let both_default = one.key.is_none() && other.key.is_none();
            if both_default || !inner.path.starts_with(&outer.path) {
                continue;
            }
            let why = if outer.path == inner.path {
                "are the same"
            } else if outer.role.is_folder() {
                "lie one in the other"
            } else {
                continue;
            };
            let keys = [inner.key, outer.key].into_iter().flatten().collect();
            let message = format!("{} and {} {why}: give each a place of its own", one.name(), other.name());
            found.push((keys, message));
        }
    }
    found
}

/// Returns the user that the daemon runs as: this process's user or, for root (who only checks), the user `attachd`.
pub(super) fn daemons_user() -> Option<u32> {
    let me = rustix::process::geteuid().as_raw();
    let named = id_of("/etc/passwd", "attachd").ok();
    if me == ROOT { named } else { named.or(Some(me)) }
}

/// Returns whether the file may be right although this process cannot read it: credentials from systemd exist only while
/// attachd runs, and other users' secrets can be read only by their owner.
pub(super) fn is_unseen(path: &Path) -> bool {
    match std::fs::File::open(path).map_err(|error| error.kind()) {
        Err(io::ErrorKind::NotFound) => path.starts_with("/run/credentials"),
        Err(io::ErrorKind::PermissionDenied) => daemons_user() != Some(rustix::process::geteuid().as_raw()),
        _ => false,
    }
}

/// Returns what is wrong with each path. `owner` is the user that the daemon runs as, if known.
pub(super) fn wrong(settings: &Settings, owner: Option<u32>) -> Vec<Wrong> {
    let wrong = |place: NamedPath| {
        let why = judge(&place, owner)?;
        Some(Wrong {
            is_default: is_default(&place, settings),
            why: format!("{}: {why}", place.name()),
            key: place.key,
        })
    };
    places(settings).into_iter().filter_map(wrong).collect()
}

/// A path with a problem.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Section and key.
    pub(super) key: Option<(&'static str, &'static str)>,
    /// The problem in words, with the path.
    pub(super) why: String,
    /// Whether the path is a default.
    pub(super) is_default: bool,
}

fn is_default(place: &NamedPath, settings: &Settings) -> bool {
    let default = Settings::default();
    match place.role {
        PathRole::Claims => place.path == default.store.claims,
        PathRole::Links => place.path == Path::new(LINKS_FOLDER),
        PathRole::Sections => place.path == Path::new(SECTIONS_FOLDER),
        PathRole::Staging => settings.export.links_folder() == Path::new(LINKS_FOLDER),
        PathRole::HostDisks => place.path == default.device.host_disks,
        PathRole::Store => place.path == default.store.path,
        PathRole::OwnSocket => place.path == default.api.socket,
        PathRole::OtherSocket => place.path == default.helper.socket,
        // This default path depends on the server, and the server's folder is not attachd's.
        PathRole::Other => true,
    }
}

/// Returns why the file at the path cannot be used; `None` if it can, or if there is no file.
fn judge(place: &NamedPath, owner: Option<u32>) -> Option<String> {
    let found = match Inode::at(&place.path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return above(place, owner),
        Err(error) => return Some(format!("it cannot be looked at: {error}")),
    };
    let plain = |judged: Result<(), NotOurs>| judged.err().map(|why| why.to_string());
    match place.role {
        PathRole::Claims => {
            plain(found.is_folder_of(owner)).or_else(|| strangers(place, |name| name.parse::<Serial>().is_ok()))
        }
        PathRole::Links => plain(found.is_folder_of(owner))
            .or_else(|| strangers(place, |name| VolumeId::from_export_name(name).is_some())),
        PathRole::Sections | PathRole::Staging => plain(found.is_folder_of(owner)),
        PathRole::HostDisks => plain(found.is_folder_of(Some(ROOT))),
        PathRole::Store => {
            above(place, owner).or_else(|| plain(found.is_file_of(owner))).or_else(|| no_database(&place.path))
        }
        PathRole::OwnSocket => plain(found.is(Kind::Socket).and_then(|()| root_or(&found, owner))),
        PathRole::OtherSocket => plain(found.is(Kind::Socket)),
        // This path may be a symlink, because it is root's own.
        PathRole::Other => place.path.is_dir().then(|| "it is a folder, not a file".to_owned()),
    }
}

/// Checks the folder in which the database will be made.
fn above(place: &NamedPath, owner: Option<u32>) -> Option<String> {
    if place.role != PathRole::Store {
        return None;
    }
    let above = place.path.parent()?;
    // The folder may be a mount point or a symlink's target.
    let found = std::fs::metadata(above).and_then(|_| Inode::at(&above.canonicalize()?));
    let why = match found.map(|found| found.is_folder_of(owner)) {
        Ok(Ok(())) => return None,
        Ok(Err(why)) => why.to_string(),
        // The package makes its folder when it is installed; a configuration may be checked before that.
        Err(error) if error.kind() == io::ErrorKind::NotFound && place.path == Settings::default().store.path => {
            return None;
        }
        Err(error) => error.to_string(),
    };
    Some(format!("its folder {}: {why}", above.display()))
}

/// Accepts root too: systemd makes sockets for other programs and may leave them to root.
fn root_or(found: &Inode, owner: Option<u32>) -> Result<(), NotOurs> {
    if found.owner == ROOT { Ok(()) } else { found.belongs_to(owner) }
}

/// Names the files in a folder that attachd was pointed to and has never used: other files and none of attachd's.
fn strangers(place: &NamedPath, ours: impl Fn(&str) -> bool) -> Option<String> {
    let entries = match std::fs::read_dir(&place.path) {
        Ok(entries) => entries,
        Err(error) => return Some(format!("it cannot be looked into: {error}")),
    };
    let mut others = Names::default();
    for entry in entries {
        let name = match entry {
            Ok(entry) => entry.file_name().to_string_lossy().into_owned(),
            Err(error) => return Some(format!("it cannot be looked into: {error}")),
        };
        if ours(&name) {
            return None;
        }
        others.add(name);
    }
    let own = [Settings::default().store.claims, LINKS_FOLDER.into()].contains(&place.path);
    if others.is_empty() || own { None } else { Some(format!("it holds other things already: {others}")) }
}

/// Returns why a file is not a database of attachd's, if it is not.
fn no_database(path: &Path) -> Option<String> {
    match store::judge_at_once(path) {
        // This process is not attachd; the daemon's start will check the file.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(error) => Some(format!("it cannot be read: {error}")),
        Ok(why) => why,
    }
}

/// Checks that the path is a socket of `owner` on which no process listens any more.
pub fn is_dead_socket_of(path: &Path, owner: u32) -> io::Result<()> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{}: {why}", path.display())));
    let found = Inode::at(path)?;
    if let Err(why) = found.is(Kind::Socket).and_then(|()| found.belongs_to(Some(owner))) {
        return refuse(format!("{why}; move it away"));
    }
    if place::somebody_listens(path)? { refuse("another program listens there".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parsed, problems};
    use super::super::{ApiSettings, DeviceSettings, ExportSettings, HelperSettings, StoreSettings};
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_default_settings_do_not_overlap() {
        assert_eq!(problems(""), Vec::<String>::new());
        assert!(parsed("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"3.26.1\"").is_ok());
    }

    #[test]
    fn settings_with_overlapping_paths_are_refused_with_line_and_column() {
        for (text, at, words) in [
            (
                "[store]\nclaims = \"/var/lib/attachd\"",
                "(2, 10)",
                "[store] path (/var/lib/attachd/attachd.db) lie one in",
            ),
            ("[store]\nclaims = \"/run/attachd/exports\"", "(2, 10)", "are the same"),
            ("[store]\nclaims = \"/run/attachd/exports/\"", "(2, 10)", "are the same"),
            ("[store]\nclaims = \"/run/attachd/exports/claims\"", "(2, 10)", "lie one in the other"),
            ("[export]\nfolder = \"/var/lib/attachd/claims\"", "(2, 10)", "are the same"),
            ("[export]\nfolder = \"/etc/attachd/host-disks\"", "(2, 10)", "are the same"),
            ("[store]\nclaims = \"/run/attachd/exports.new\"", "(2, 10)", "are the same"),
            ("[api]\nsocket = \"/run/attachd/exports/api\"", "(2, 10)", "lie one in the other"),
            ("[api]\nsocket = \"/run/attachd/helper.sock\"", "(2, 10)", "are the same"),
            ("[store]\npath = \"/run/attachd/nbd-server.d/x.conf\"", "(2, 8)", "lie one in the other"),
            ("[store]\nclaims = \"/var/lib/attachd/x/../claims\"", "(2, 10)", "without .."),
        ] {
            let told = problems(text);
            assert!(told.iter().any(|told| told.contains(at) && told.contains(words)), "{text}: {told:#?}");
        }
        assert!(parsed("[store]\nclaims = \"/var/lib/attachd/other\"").is_ok(), "the control");
    }

    /// Paths in a private folder.
    struct Host {
        dir: tempfile::TempDir,
        settings: Settings,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let settings = Settings {
                api: ApiSettings { socket: at("api"), ..ApiSettings::default() },
                store: StoreSettings { path: at("attachd.db"), claims: at("claims") },
                device: DeviceSettings { host_disks: at("host-disks"), ..DeviceSettings::default() },
                export: ExportSettings { folder: at("exports"), ..ExportSettings::default() },
                helper: HelperSettings { socket: at("helper") },
                ..Settings::default()
            };
            Self { dir, settings }
        }

        /// Returns the problem with the path of this name.
        fn wrong(&self, name: &str) -> Option<String> {
            let place = self.at(name).display().to_string();
            let owner = Some(rustix::process::geteuid().as_raw());
            let mut wrong = wrong(&self.settings, owner).into_iter().filter(|wrong| wrong.why.contains(&place));
            wrong.next().map(|wrong| wrong.why)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }
    }

    #[test]
    fn a_folder_with_foreign_files_is_refused_and_the_files_are_named() {
        let host = Host::new();
        for (folder, ours) in
            [("claims", "b3bb93101b594f6297e8"), ("exports", "migration-vol-b3bb9310-1b59-4f62-97e8-cefffdfe3804")]
        {
            fs::create_dir(host.at(folder)).unwrap();
            assert_eq!(host.wrong(folder), None, "the control: an empty one");
            fs::write(host.at(folder).join("precious"), "").unwrap();
            let why = host.wrong(folder).unwrap();
            assert!(why.contains("other things already: precious"), "{why}");
            fs::write(host.at(folder).join(ours), "").unwrap();
            assert_eq!(host.wrong(folder), None, "it is in use: a stranger's file there is told by health");
        }
    }

    #[test]
    fn a_path_with_another_kind_owner_or_mode_is_refused() {
        let host = Host::new();
        let folder = host.at("folder");
        fs::create_dir(&folder).unwrap();
        for name in ["claims", "exports", "host-disks"] {
            symlink(&folder, host.at(name)).unwrap();
            assert!(host.wrong(name).unwrap().contains("it is a link, not a folder"));
            fs::remove_file(host.at(name)).unwrap();
            fs::write(host.at(name), "").unwrap();
            assert!(host.wrong(name).unwrap().contains("it is a file, not a folder"));
            fs::remove_file(host.at(name)).unwrap();
            fs::create_dir(host.at(name)).unwrap();
            fs::set_permissions(host.at(name), fs::Permissions::from_mode(0o777)).unwrap();
            assert!(host.wrong(name).unwrap().contains("others may write it"));
            fs::remove_dir(host.at(name)).unwrap();
        }
        for name in ["api", "helper"] {
            fs::write(host.at(name), "").unwrap();
            assert!(host.wrong(name).unwrap().contains("it is a file, not a socket"));
        }
        fs::write(host.at("attachd.db"), "a letter to somebody").unwrap();
        assert!(host.wrong("attachd.db").unwrap().contains("it is not a database"));
        fs::write(host.at("attachd.db"), [b"SQLite format 3\0", &[0; 52][..], b"attd", &[0; 28]].concat()).unwrap();
        assert_eq!(host.wrong("attachd.db"), None, "the control");
        fs::hard_link(host.at("attachd.db"), host.at("second")).unwrap();
        assert!(host.wrong("attachd.db").unwrap().contains("2 names"));
    }

    #[test]
    fn only_a_dead_socket_of_this_user_may_be_removed() {
        let host = Host::new();
        let (api, me) = (host.at("api"), rustix::process::geteuid().as_raw());
        let listener = std::os::unix::net::UnixListener::bind(&api).unwrap();
        let refused = is_dead_socket_of(&api, me).unwrap_err();
        assert!(refused.to_string().contains("another program listens there"), "{refused}");
        drop(listener);
        is_dead_socket_of(&api, me).unwrap();
        assert!(is_dead_socket_of(&api, me + 1).unwrap_err().to_string().contains("belongs to the user"));
        fs::remove_file(&api).unwrap();
        fs::write(&api, "").unwrap();
        assert!(is_dead_socket_of(&api, me).unwrap_err().to_string().contains("a file, not a socket"));
    }
}

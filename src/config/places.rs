//! The folders and files that settings name: whether they get in each other's way (by their names alone), and whether what
//! is there is attachd's.

use std::io;
use std::path::{Path, PathBuf};

use super::{LINKS_FOLDER, SECTIONS_FOLDER, ServerSettings, Settings};
use crate::accounts::id_of;
use crate::export::links::STAGING_FOLDER;
use crate::folder::Names;
use crate::identity::{Serial, VolumeId};
use crate::place::{self, Inode, Kind, NotOurs, ROOT};
use crate::store;

/// A place that a setting names, or that is attachd's in any case.
struct Place {
    /// `[section]` and key; none for a place that no key names.
    key: Option<(&'static str, &'static str)>,
    path: PathBuf,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The claims; attachd's.
    Claims,
    /// The links that are served; attachd's.
    Links,
    /// nbd-server's sections; attachd's, but others may have files in it.
    Sections,
    /// Where links are made; attachd's.
    Staging,
    /// The host's own disks; root's.
    HostDisks,
    /// The database; attachd's.
    Store,
    /// A socket that attachd makes, if nobody hands it over.
    OwnSocket,
    /// Somebody else's socket.
    OtherSocket,
    /// Somebody else's file, which is read.
    Other,
}

impl Role {
    /// A folder whose every file means something.
    fn is_folder(self) -> bool {
        matches!(self, Self::Claims | Self::Links | Self::Sections | Self::Staging | Self::HostDisks)
    }
}

impl Place {
    fn name(&self) -> String {
        let path = self.path.display();
        match self.key {
            Some((section, key)) => format!("[{section}] {key} ({path})"),
            None => path.to_string(),
        }
    }
}

fn places(settings: &Settings) -> Vec<Place> {
    let place = |section, key, path: &Path, role| Place { key: Some((section, key)), path: path.to_owned(), role };
    let exports = match settings.export.server {
        ServerSettings::Nbdkit => Role::Links,
        ServerSettings::NbdServer { .. } => Role::Sections,
    };
    let mut places = vec![
        place("store", "claims", &settings.store.claims, Role::Claims),
        place("export", "folder", &settings.export.folder, exports),
        place("device", "host_disks", &settings.device.host_disks, Role::HostDisks),
        place("store", "path", &settings.store.path, Role::Store),
        place("api", "socket", &settings.api.socket, Role::OwnSocket),
        place("helper", "socket", &settings.helper.socket, Role::OtherSocket),
        place("export", "pid_file", &settings.export.pid_file, Role::Other),
    ];
    if let ServerSettings::NbdServer { main_file, .. } = &settings.export.server {
        places.push(place("export", "main_file", main_file, Role::Other));
    }
    // What other settings have served before is looked for here.
    let staging = settings.export.links_folder().with_file_name(STAGING_FOLDER);
    let own = [(LINKS_FOLDER.into(), Role::Links), (SECTIONS_FOLDER.into(), Role::Sections), (staging, Role::Staging)];
    for (path, role) in own {
        if !places.iter().any(|place| place.path == path && place.role == role) {
            places.push(Place { key: None, path, role });
        }
    }
    places
}

/// Settings that get in each other's way: each with the keys to complain of.
pub(super) fn overlaps(settings: &Settings) -> Vec<(Vec<(&'static str, &'static str)>, String)> {
    let places = places(settings);
    let mut found = Vec::new();
    for (index, one) in places.iter().enumerate() {
        for other in &places[index + 1..] {
            // Of two, the folder that would hold the other.
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

/// Whom the daemon runs as: this process's user, or for root, who only asks, the user of that name.
pub(super) fn daemons_user() -> Option<u32> {
    let me = rustix::process::geteuid().as_raw();
    let named = id_of("/etc/passwd", "attachd").ok();
    if me == ROOT { named } else { named.or(Some(me)) }
}

/// What is at each place and should not be, by the key that names it. `owner`: whom the daemon runs as, if that is known.
pub(super) fn wrong(settings: &Settings, owner: Option<u32>) -> Vec<Wrong> {
    let wrong = |place: Place| {
        let why = judge(&place, owner)?;
        Some(Wrong {
            is_default: is_default(&place, settings),
            why: format!("{}: {why}", place.name()),
            key: place.key,
        })
    };
    places(settings).into_iter().filter_map(wrong).collect()
}

/// A place that is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// `[section]` and key.
    pub(super) key: Option<(&'static str, &'static str)>,
    /// In words, with the place.
    pub(super) why: String,
    /// It is where attachd has it unless told otherwise.
    pub(super) is_default: bool,
}

fn is_default(place: &Place, settings: &Settings) -> bool {
    let default = Settings::default();
    match place.role {
        Role::Claims => place.path == default.store.claims,
        Role::Links => place.path == Path::new(LINKS_FOLDER),
        Role::Sections => place.path == Path::new(SECTIONS_FOLDER),
        Role::Staging => settings.export.links_folder() == Path::new(LINKS_FOLDER),
        Role::HostDisks => place.path == default.device.host_disks,
        Role::Store => place.path == default.store.path,
        Role::OwnSocket => place.path == default.api.socket,
        Role::OtherSocket => place.path == default.helper.socket,
        // Its path by default depends on the server, and the server's folder is not attachd's.
        Role::Other => true,
    }
}

/// Why what is there cannot be used; `None` when it can, or when there is nothing.
fn judge(place: &Place, owner: Option<u32>) -> Option<String> {
    let found = match Inode::at(&place.path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return above(place, owner),
        Err(error) => return Some(format!("it cannot be looked at: {error}")),
    };
    let plain = |judged: Result<(), NotOurs>| judged.err().map(|why| why.to_string());
    match place.role {
        Role::Claims => {
            plain(found.is_folder_of(owner)).or_else(|| strangers(place, |name| name.parse::<Serial>().is_ok()))
        }
        Role::Links => plain(found.is_folder_of(owner))
            .or_else(|| strangers(place, |name| VolumeId::from_export_name(name).is_some())),
        Role::Sections | Role::Staging => plain(found.is_folder_of(owner)),
        Role::HostDisks => plain(found.is_folder_of(Some(ROOT))),
        Role::Store => {
            above(place, owner).or_else(|| plain(found.is_file_of(owner))).or_else(|| no_database(&place.path))
        }
        Role::OwnSocket => plain(found.is(Kind::Socket).and_then(|()| root_or(&found, owner))),
        Role::OtherSocket => plain(found.is(Kind::Socket)),
        // A link may lead to it: it is root's own.
        Role::Other => place.path.is_dir().then(|| "it is a folder, not a file".to_owned()),
    }
}

/// The folder that a database is to be made in.
fn above(place: &Place, owner: Option<u32>) -> Option<String> {
    if place.role != Role::Store {
        return None;
    }
    let above = place.path.parent()?;
    // It may be a mount point, or be linked to.
    let found = std::fs::metadata(above).and_then(|_| Inode::at(&above.canonicalize()?));
    let why = match found.map(|found| found.is_folder_of(owner)) {
        Ok(Ok(())) => return None,
        Ok(Err(why)) => why.to_string(),
        // The package's folder is made when it is installed; a configuration may be checked before.
        Err(error) if error.kind() == io::ErrorKind::NotFound && place.path == Settings::default().store.path => {
            return None;
        }
        Err(error) => error.to_string(),
    };
    Some(format!("its folder {}: {why}", above.display()))
}

/// systemd makes sockets for others, and may be told to leave them root's.
fn root_or(found: &Inode, owner: Option<u32>) -> Result<(), NotOurs> {
    if found.owner == ROOT { Ok(()) } else { found.belongs_to(owner) }
}

/// Names what is in a folder that attachd was pointed to and has never used: other things, and nothing of attachd's.
fn strangers(place: &Place, ours: impl Fn(&str) -> bool) -> Option<String> {
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

/// Why a file is no database of attachd's.
fn no_database(path: &Path) -> Option<String> {
    match store::judge_at_once(path) {
        // Whoever asks is not attachd: its start tells.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(error) => Some(format!("it cannot be read: {error}")),
        Ok(why) => why,
    }
}

/// Says that a socket of attachd's name is left behind by a dead one, and whose.
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
    fn the_settings_of_an_empty_file_do_not_get_in_each_others_way() {
        assert_eq!(problems(""), Vec::<String>::new());
        assert!(parsed("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"3.26.1\"").is_ok());
    }

    #[test]
    fn settings_that_name_one_place_or_one_in_the_other_are_refused_where_they_stand() {
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

    /// Places of one's own in a folder of one's own.
    struct Host {
        dir: tempfile::TempDir,
        settings: Settings,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let settings = Settings {
                api: ApiSettings { socket: at("api") },
                store: StoreSettings { path: at("attachd.db"), claims: at("claims") },
                device: DeviceSettings { host_disks: at("host-disks"), ..DeviceSettings::default() },
                export: ExportSettings { folder: at("exports"), ..ExportSettings::default() },
                helper: HelperSettings { socket: at("helper") },
                ..Settings::default()
            };
            Self { dir, settings }
        }

        /// What is wrong with the place of that name.
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
    fn a_folder_that_holds_other_things_is_refused_and_they_are_named() {
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
    fn a_place_is_refused_by_kind_owner_and_mode() {
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
    fn only_a_dead_socket_of_ones_own_may_be_taken_away() {
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

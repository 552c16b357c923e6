//! The section `[export]`: which NBD server serves, what it reads, and how attachd connects to it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::changes::Changes;
use super::places::is_unseen;
use super::text::{Setting, TomlSection, text_of};
use crate::export::nbd_server::mode::{self, ChosenMode, Mode};
use crate::export::nbd_server::version::Installed;
use crate::export::tls::{Tls, TlsFiles, TlsKey, TlsSettings};

/// The default folder of links, used with nbdkit.
pub const LINKS_FOLDER: &str = "/run/attachd/exports";

/// The default folder of nbd-server's sections.
pub const SECTIONS_FOLDER: &str = "/run/attachd/nbd-server.d";

/// A file that exists while `attachd-nbd-server.socket` holds the port.
const SOCKET_HELD: &str = "/run/attachd-nbd-server/listening";

/// Which NBD server serves, with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSettings {
    /// nbdkit.
    Nbdkit,
    /// nbd-server.
    NbdServer {
        /// The mode, which follows from `[export] mode` and from what is known of this host.
        chosen: ChosenMode,
        /// `[export] main_file`: nbd-server's configuration file.
        main_file: PathBuf,
    },
}

impl ServerSettings {
    /// Returns the server's name in the configuration, which is also the program's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdServer { .. } => "nbd-server",
        }
    }
}

impl ServerSettings {
    /// Returns how nbd-server learns of a change; `None` for nbdkit.
    pub fn mode(&self) -> Option<Mode> {
        match self {
            Self::Nbdkit => None,
            Self::NbdServer { chosen, .. } => Some(chosen.mode),
        }
    }

    /// Returns nbd-server's configuration file; `None` for nbdkit.
    pub fn main_file(&self) -> Option<&Path> {
        match self {
            Self::Nbdkit => None,
            Self::NbdServer { main_file, .. } => Some(main_file),
        }
    }

    /// Returns the package's unit that runs the server.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Nbdkit => "attachd-nbdkit.service",
            Self::NbdServer { chosen, .. } if chosen.mode == Mode::Signal => "attachd-nbd-server.service",
            Self::NbdServer { .. } => "attachd-nbd-server.socket",
        }
    }
}

/// The facts about this host that decide nbd-server's mode.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The installed Debian package, if any.
    pub nbd_server: Option<Installed>,
    /// Whether systemd holds the port for socket mode.
    pub held: bool,
}

impl HostFacts {
    /// Reads the facts about this host.
    pub fn of_this_host() -> Self {
        // If the file is unreadable or absent, the version is unknown, and a remark says what that means. Names in
        // the file may have any encoding.
        let status = std::fs::read("/var/lib/dpkg/status").unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        Self { nbd_server: Installed::from_dpkg_status(&status), held: Path::new(SOCKET_HELD).exists() }
    }
}

/// The settings of the NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSettings {
    /// `backend`, and for nbd-server `mode`, `nbd_server_version` and `main_file`: which NBD server serves.
    pub server: ServerSettings,
    /// `folder`: the folder that the server reads: with nbdkit the links, with nbd-server its sections.
    pub folder: PathBuf,
    /// `listen`: the address at which the server listens.
    pub listen: SocketAddr,
    /// `pid_file`: the server's pid file. For an nbd-server that systemd starts for each connection: a file that
    /// exists while systemd would start it.
    pub pid_file: PathBuf,
    /// `tls_ca`, `tls_certificate`, `tls_key`, `tls_name`, or `tls_psk_file`, `tls_psk_identity`: TLS towards the
    /// server; `None`: no TLS.
    pub tls: Option<TlsSettings>,
    /// `insecure`: whether `listen` may be an address that other hosts reach, without TLS.
    pub insecure: bool,
}

impl Default for ExportSettings {
    fn default() -> Self {
        Self {
            server: ServerSettings::Nbdkit,
            folder: LINKS_FOLDER.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 10809)),
            pid_file: "/run/attachd-nbdkit/nbdkit.pid".into(),
            tls: None,
            insecure: false,
        }
    }
}

impl ExportSettings {
    /// Returns the folder of links, with either server.
    pub fn links_folder(&self) -> &Path {
        match self.server {
            ServerSettings::Nbdkit => &self.folder,
            ServerSettings::NbdServer { .. } => Path::new(LINKS_FOLDER),
        }
    }

    pub(super) fn read(&mut self, export: &mut TomlSection<'_, '_>, host: impl FnOnce() -> HostFacts) {
        self.read_server(export, host);
        export.set("folder", &mut self.folder);
        export.set("pid_file", &mut self.pid_file);
        export.set("insecure", &mut self.insecure);
        let at = export.set("listen", &mut self.listen);
        self.tls = tls(export);
        if !self.listen.ip().is_loopback() && self.tls.is_none() && !self.insecure {
            let advice = "listen on 127.0.0.1, give it TLS (tls_ca or tls_psk_file), or say insecure = true";
            export.complain(at, &format!("other hosts reach this address without TLS: {advice}"));
        }
    }

    /// Reads the keys that choose the NBD server, and the paths that follow from them.
    fn read_server(&mut self, export: &mut TomlSection<'_, '_>, host: impl FnOnce() -> HostFacts) {
        let (mut program, mut wanted) = (Program::Nbdkit, WantedMode::Auto);
        let (mut version, mut main_file) = (None, PathBuf::new());
        export.set("backend", &mut program);
        let at = export.set("mode", &mut wanted);
        let known = export.set("nbd_server_version", &mut version);
        let main = export.set("main_file", &mut main_file);
        if program == Program::Nbdkit {
            if let Some(at) = at.or(known).or(main) {
                export.complain(Some(at), "goes with backend = \"nbd-server\"");
            }
            return;
        }
        let wanted = match wanted {
            WantedMode::Auto => None,
            WantedMode::Is(mode) => Some(mode),
        };
        let host = host();
        let chosen = match mode::choose(wanted, version.or(host.nbd_server).as_ref(), host.held) {
            Ok(chosen) => chosen,
            Err(why) => return export.complain(at, &why),
        };
        let (pid_file, shipped) = match chosen.mode {
            Mode::Signal => ("/run/attachd-nbd-server/nbd-server.pid", "/etc/attachd/nbd-server/signal.conf"),
            Mode::Socket => (SOCKET_HELD, "/etc/attachd/nbd-server/socket.conf"),
        };
        self.folder = SECTIONS_FOLDER.into();
        self.pid_file = pid_file.into();
        let main_file = if main.is_some() { main_file } else { shipped.into() };
        self.server = ServerSettings::NbdServer { chosen, main_file };
    }

    /// Returns why the TLS files cannot be used, and the key that names the first bad file; `None` if they can.
    pub(super) fn unusable_tls(&self) -> Option<(&'static str, String)> {
        let error = Tls::new(self.tls.clone(), self.listen.ip()).err()?;
        let path = error.path();
        let unseen = is_unseen(path);
        let key = match &self.tls {
            Some(TlsSettings::Certificates(TlsFiles { ca, .. })) if ca == path => "tls_ca",
            Some(TlsSettings::Certificates(TlsFiles { identity: Some((_, key)), .. })) if key == path => "tls_key",
            Some(TlsSettings::Certificates(_)) => "tls_certificate",
            _ => "tls_psk_file",
        };
        (!unseen).then(|| (key, format!("[export] {key}: {error}")))
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { server, folder, listen, pid_file, tls, insecure } = self;
        let other = server.name() != new.server.name();
        changes.restart("[export] backend", other);
        changes.restart("[export] mode", !other && server.mode() != new.server.mode());
        changes.restart("[export] main_file", !other && server.main_file() != new.server.main_file());
        changes.restart("[export] folder", *folder != new.folder);
        changes.restart("[export] listen", *listen != new.listen);
        changes.restart("[export] pid_file", *pid_file != new.pid_file);
        let key = match new.tls.as_ref().or(tls.as_ref()) {
            Some(TlsSettings::Key(_)) => "[export] tls_psk_file",
            _ => "[export] tls_ca",
        };
        changes.at_once(key, *tls != new.tls);
        changes.at_once("[export] insecure", *insecure != new.insecure);
    }
}

/// Reads the TLS keys: certificates or a pre-shared key.
fn tls(export: &mut TomlSection<'_, '_>) -> Option<TlsSettings> {
    let (certificates, by_certificates) = certificates(export);
    let (mut file, mut identity) = (PathBuf::new(), String::new());
    let (given_file, given_identity) =
        (export.set("tls_psk_file", &mut file), export.set("tls_psk_identity", &mut identity));
    if let (Some(at), true) = (given_file.or(given_identity), by_certificates) {
        export.complain(Some(at), "takes certificates (tls_ca) or a shared key (tls_psk_file), not both");
    }
    if let (Some(at), None) = (given_identity, given_file) {
        export.complain(Some(at), "tls_psk_file is missing: the key of that name is looked for in it");
    }
    let identity = given_identity.map(|_| identity);
    certificates.map(TlsSettings::Certificates).or(given_file.map(|_| TlsSettings::Key(TlsKey { file, identity })))
}

/// Reads the keys about certificates, which are only valid together, and returns whether any is set.
fn certificates(export: &mut TomlSection<'_, '_>) -> (Option<TlsFiles>, bool) {
    let [mut ca, mut certificate, mut key] = [const { PathBuf::new() }; 3];
    let mut name = String::new();
    let given = [
        export.set("tls_ca", &mut ca),
        export.set("tls_certificate", &mut certificate),
        export.set("tls_key", &mut key),
        export.set("tls_name", &mut name),
    ];
    let any = given.into_iter().flatten().next();
    if given[1].is_some() != given[2].is_some() {
        export.complain(given[1].or(given[2]), "tls_certificate and tls_key belong together");
    }
    if given[0].is_none() {
        if any.is_some() {
            export.complain(any, "tls_ca is missing: it says whose certificates the NBD server may show");
        }
        return (None, any.is_some());
    }
    let identity = given[1].and(given[2]).map(|_| (certificate, key));
    (Some(TlsFiles { ca, identity, name: given[3].map(|_| name) }), true)
}

/// An NBD server, by its program's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Program {
    /// nbdkit.
    Nbdkit,
    /// nbd-server.
    NbdServer,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdServer => "nbd-server",
        })
    }
}

impl Setting for Program {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        match text_of(value)? {
            "nbdkit" => Ok(Self::Nbdkit),
            "nbd-server" => Ok(Self::NbdServer),
            _ => Err("takes \"nbdkit\" or \"nbd-server\"".to_owned()),
        }
    }
}

enum WantedMode {
    Auto,
    Is(Mode),
}

impl Setting for WantedMode {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        match text_of(value)? {
            "auto" => Ok(Self::Auto),
            "signal" => Ok(Self::Is(Mode::Signal)),
            "socket" => Ok(Self::Is(Mode::Socket)),
            _ => Err("takes \"auto\", \"signal\" or \"socket\"".to_owned()),
        }
    }
}

/// The setting `nbd_server_version`.
impl Setting for Installed {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let text = text_of(value)?;
        let version = Installed::from_package(text).or_else(|| Installed::from_output(&format!("version {text}")));
        version.ok_or_else(|| "takes a version, like \"3.26.1\" or \"3.26.1-6\"".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parsed, problems};
    use super::super::{ConfigMistake, parse};
    use super::*;

    #[test]
    fn an_address_that_other_hosts_reach_needs_tls_or_insecure() {
        assert!(problems("[export]\nlisten = \"0.0.0.0:10809\"")[0].contains("insecure = true"));
        assert!(parsed("[export]\nlisten = \"[::1]:10809\"").is_ok());
        assert!(parsed("[export]\nlisten = \"10.0.0.1:10809\"\ninsecure = true").unwrap().export.insecure);
    }

    #[test]
    fn tls_takes_an_authority_and_a_whole_identity() {
        let whole =
            "[export]\nlisten = \"10.0.0.1:10809\"\ntls_ca = \"/ca\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"";
        let identity = Some(("/c".into(), "/k".into()));
        let files = TlsFiles { ca: "/ca".into(), identity, name: None };
        assert_eq!(parsed(whole).unwrap().export.tls, Some(TlsSettings::Certificates(files)));
        assert!(problems("[export]\ntls_ca = \"/ca\"\ntls_key = \"/k\"")[0].contains("belong together"));
        assert!(problems("[export]\ntls_name = \"x\"")[0].contains("tls_ca is missing"));
    }

    #[test]
    fn tls_takes_a_shared_key_in_place_of_certificates() {
        let key = "[export]\nlisten = \"10.0.0.1:10809\"\ntls_psk_file = \"/keys\"\n";
        let settings = |identity| Some(TlsSettings::Key(TlsKey { file: "/keys".into(), identity }));
        assert_eq!(parsed(key).unwrap().export.tls, settings(None));
        assert_eq!(
            parsed(&format!("{key}tls_psk_identity = \"x\"")).unwrap().export.tls,
            settings(Some("x".to_owned()))
        );
        assert!(problems(&format!("{key}tls_ca = \"/ca\""))[0].contains("not both"));
        assert!(problems("[export]\ntls_psk_identity = \"x\"")[0].contains("tls_psk_file is missing"));
    }

    #[test]
    fn nbd_servers_mode_follows_from_its_version_unless_the_configuration_names_one() {
        let host = |version: &str, held| HostFacts { nbd_server: Installed::from_package(version), held };
        let mode_of = |text: &str, host: HostFacts| {
            let settings = parse(&format!("[export]\nbackend = \"nbd-server\"\n{text}"), || host)?;
            let ServerSettings::NbdServer { chosen, main_file } = settings.export.server else { panic!("nbdkit") };
            assert_eq!(settings.export.folder, PathBuf::from("/run/attachd/nbd-server.d"));
            Ok::<_, Vec<ConfigMistake>>((chosen.mode, main_file, settings.export.pid_file))
        };
        let (mode, main_file, pid_file) = mode_of("", host("1:3.26.1-6", false)).unwrap();
        assert_eq!(mode, Mode::Signal);
        assert!(main_file.ends_with("signal.conf") && pid_file.ends_with("nbd-server.pid"));
        let (mode, main_file, _) = mode_of("", host("1:3.24-1.1", false)).unwrap();
        assert_eq!(mode, Mode::Socket);
        assert!(main_file.ends_with("socket.conf"));
        let refused = mode_of("mode = \"signal\"", host("1:3.24-1.1", false)).unwrap_err();
        assert_eq!((refused[0].place, refused.len()), (Some((3, 8)), 1), "{refused:?}");
        let own = "mode = \"signal\"\nnbd_server_version = \"3.27.1\"\nmain_file = \"/etc/nbd-server/config\"";
        assert_eq!(mode_of(own, HostFacts::default()).unwrap().1, PathBuf::from("/etc/nbd-server/config"));
        assert!(problems("[export]\nmode = \"signal\"")[0].contains("goes with backend"));
        assert!(
            problems("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"x\"")[0].contains("takes a version")
        );
    }
}

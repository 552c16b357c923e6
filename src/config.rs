//! The configuration: as written, then checked. Every key is optional; every mistake is told, with line and column.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::device::scheme::{self, Scheme};
use crate::export::nbd_server::version::Installed;
use crate::export::nbd_server::way::{self, Mode, Way};

/// Where the configuration is unless another place is named.
pub const DEFAULT_PATH: &str = "/etc/attachd/attachd.toml";

/// The links; with nbdkit, unless another place is named.
pub const LINKS_FOLDER: &str = "/run/attachd/exports";

/// nbd-server's sections, unless another place is named.
pub const SECTIONS_FOLDER: &str = "/run/attachd/nbd-server.d";

/// There while `attachd-nbd-server.socket` holds the port.
const SOCKET_HELD: &str = "/run/attachd-nbd-server/listening";

/// What the daemon works by. [`Settings::default`] is the configuration of an empty file.
#[derive(Clone)]
pub struct Settings {
    /// `[api] socket`: the API's Unix socket.
    pub socket: PathBuf,
    /// `[store] path`: the SQLite file.
    pub store: PathBuf,
    /// `[store] claims`: the folder of claims.
    pub claims: PathBuf,
    /// `[device] schemes`: which kinds of disk are matched.
    pub schemes: Vec<&'static dyn Scheme>,
    /// `[device] nbd_group`: the group whose members may open claimed disks.
    pub nbd_group: String,
    /// `[device] host_disks`: a folder of files named after the serials of this host's own disks.
    pub host_disks: PathBuf,
    /// `[export] backend`: which NBD server serves.
    pub server: ServerSettings,
    /// `[export] folder`: what the NBD server reads: nbdkit the links, nbd-server its sections.
    pub exports: PathBuf,
    /// `[export] listen`: where the NBD server listens.
    pub listen: SocketAddr,
    /// `[export] pid_file`: the NBD server's. For an nbd-server that systemd starts for each connection: a file that is
    /// there while it would be started.
    pub pid_file: PathBuf,
    /// `[export] tls_ca`, `tls_certificate`, `tls_key`, `tls_name`, or `tls_psk_file`, `tls_psk_identity`: TLS towards
    /// the NBD server; `None`: in the clear.
    pub tls: Option<TlsSettings>,
    /// `[export] insecure`: `listen` may be an address other hosts reach, without TLS.
    pub insecure: bool,
    /// `[helper] socket`: where attachd-helper listens.
    pub helper: PathBuf,
    /// `[host] vm_id`: this host's own VM in CloudStack, for intents that name none; empty while unknown.
    pub vm_id: String,
    /// `[history] days`: how long the timeline of a withdrawn volume is kept.
    pub history_days: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: "/run/attachd/attachd.sock".into(),
            store: "/var/lib/attachd/attachd.db".into(),
            claims: "/var/lib/attachd/claims".into(),
            schemes: scheme::by_name("virtio").into_iter().collect(),
            nbd_group: "attachd-nbd".into(),
            host_disks: "/etc/attachd/host-disks".into(),
            server: ServerSettings::Nbdkit,
            exports: LINKS_FOLDER.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 10809)),
            pid_file: "/run/attachd-nbdkit/nbdkit.pid".into(),
            tls: None,
            insecure: false,
            helper: "/run/attachd/helper.sock".into(),
            vm_id: String::new(),
            history_days: 90,
        }
    }
}

/// Which NBD server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSettings {
    /// nbdkit.
    Nbdkit,
    /// nbd-server.
    NbdServer {
        /// `[export] mode` and what is known of this host have decided this.
        way: Way,
        /// `[export] main_file`: its configuration.
        main_file: PathBuf,
    },
}

impl ServerSettings {
    /// The name in the configuration; also the name of the program.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdServer { .. } => "nbd-server",
        }
    }
}

/// What the choice of nbd-server's way needs to know of this host.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The Debian package, if there is one.
    pub nbd_server: Option<Installed>,
    /// systemd holds the port for the socket-activated way.
    pub held: bool,
}

/// How the two sides of a TLS connection know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSettings {
    /// By certificates.
    Certificates(TlsFiles),
    /// By a key that both have.
    Key(TlsKey),
}

/// Which key is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsKey {
    /// Lines `name:key`, as the NBD server has them.
    pub file: PathBuf,
    /// The name of attachd's key; `None`: the file has but one.
    pub identity: Option<String>,
}

/// Which certificates are used; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that has signed the server's certificate.
    pub ca: PathBuf,
    /// attachd's own certificate and key, for a server that verifies its clients.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate; `None`: its address.
    pub name: Option<String>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line and column, both from 1; `None` for the file as a whole.
    pub place: Option<(usize, usize)>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// The configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// Every mistake, in the file's order.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", self.path.display())?;
            if let Some((line, column)) = problem.place {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": {}", problem.message)?;
        }
        Ok(())
    }
}

/// Reads the file. A file that is not there counts as empty at the default place only.
pub fn load(path: &Path) -> Result<Settings, Invalid> {
    let whole = |message| Invalid { path: path.to_owned(), problems: vec![Problem { place: None, message }] };
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => String::new(),
        Err(error) => return Err(whole(format!("cannot be read: {error}"))),
        Ok(text) => text,
    };
    parse(&text, host_facts).map_err(|problems| Invalid { path: path.to_owned(), problems })
}

/// Checks the file, prints the result and returns the exit status: what `check-config` does in both programs.
pub fn report(path: &Path) -> ExitCode {
    // Nobody reading the words changes nothing about the status.
    match load(path) {
        Ok(_) => {
            let _ = writeln!(std::io::stdout(), "{}: valid", path.display());
            ExitCode::SUCCESS
        }
        Err(invalid) => {
            let _ = writeln!(std::io::stderr(), "{invalid}");
            ExitCode::FAILURE
        }
    }
}

fn host_facts() -> HostFacts {
    let status = std::fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    HostFacts { nbd_server: Installed::from_dpkg_status(&status), held: Path::new(SOCKET_HELD).exists() }
}

/// Checks a configuration text. The host is only asked about nbd-server when that is to serve.
pub fn parse(text: &str, host: impl FnOnce() -> HostFacts) -> Result<Settings, Vec<Problem>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| Problem {
            place: error.span().map(|span| place(text, span.start)),
            message: error.message().to_owned(),
        };
        return Err(errors.iter().map(problem).collect());
    }
    let mut file = File { text, root: root.into_inner(), problems: Vec::new() };
    let mut settings = Settings::default();
    file.section("api", |api| api.set("socket", &mut settings.socket));
    file.section("store", |store| {
        store.set("path", &mut settings.store);
        store.set("claims", &mut settings.claims);
    });
    file.section("device", |device| {
        device.set("schemes", &mut settings.schemes);
        device.set("nbd_group", &mut settings.nbd_group);
        device.set("host_disks", &mut settings.host_disks);
    });
    file.section("export", |export| {
        server(export, &mut settings, host);
        export.set("folder", &mut settings.exports);
        export.set("pid_file", &mut settings.pid_file);
        export.set("insecure", &mut settings.insecure);
        let at = export.set("listen", &mut settings.listen);
        settings.tls = tls(export);
        if !settings.listen.ip().is_loopback() && settings.tls.is_none() && !settings.insecure {
            let advice = "listen on 127.0.0.1, give it TLS (tls_ca or tls_psk_file), or say insecure = true";
            export.complain(at, &format!("other hosts reach this address without TLS: {advice}"));
        }
    });
    file.section("helper", |helper| helper.set("socket", &mut settings.helper));
    file.section("host", |host| host.set("vm_id", &mut settings.vm_id));
    file.section("history", |history| history.set("days", &mut settings.history_days));
    file.finish()?;
    Ok(settings)
}

/// The keys that say which NBD server serves, and the places that follow from it.
fn server(export: &mut Section<'_, '_>, settings: &mut Settings, host: impl FnOnce() -> HostFacts) {
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
    let way = match way::choose(wanted, version.or(host.nbd_server).as_ref(), host.held) {
        Ok(way) => way,
        Err(why) => return export.complain(at, &why),
    };
    let (pid_file, shipped) = match way.mode {
        Mode::Signal => ("/run/attachd-nbd-server/nbd-server.pid", "/etc/attachd/nbd-server/signal.conf"),
        Mode::Socket => (SOCKET_HELD, "/etc/attachd/nbd-server/socket.conf"),
    };
    settings.exports = SECTIONS_FOLDER.into();
    settings.pid_file = pid_file.into();
    let main_file = if main.is_some() { main_file } else { shipped.into() };
    settings.server = ServerSettings::NbdServer { way, main_file };
}

/// The keys about TLS: certificates, or a shared key.
fn tls(export: &mut Section<'_, '_>) -> Option<TlsSettings> {
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

/// The keys about certificates, which only make sense together, and whether there is any.
fn certificates(export: &mut Section<'_, '_>) -> (Option<TlsFiles>, bool) {
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

/// The file being checked; what was understood is taken out of it.
struct File<'a> {
    text: &'a str,
    root: DeTable<'a>,
    problems: Vec<Problem>,
}

/// One table of the file.
struct Section<'a, 'f> {
    name: &'static str,
    table: DeTable<'a>,
    known: Vec<&'static str>,
    text: &'a str,
    problems: &'f mut Vec<Problem>,
}

impl<'a> File<'a> {
    fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Section<'a, '_>) -> T) {
        let table = match self.root.remove(name) {
            None => DeTable::new(),
            Some(value) => {
                let at = value.span().start;
                match value.into_inner() {
                    DeValue::Table(table) => table,
                    other => {
                        let message = format!("{name} is a section, not a {}: write [{name}]", other.type_str());
                        return self.problems.push(Problem { place: Some(place(self.text, at)), message });
                    }
                }
            }
        };
        let mut section = Section { name, table, known: Vec::new(), text: self.text, problems: &mut self.problems };
        read(&mut section);
        section.finish();
    }

    fn finish(mut self) -> Result<(), Vec<Problem>> {
        let sections = ["api", "store", "device", "export", "helper", "host", "history"];
        for (key, _) in &self.root {
            let message = format!("there is no section [{}]; there are {}", key.get_ref(), sections.join(", "));
            self.problems.push(Problem { place: Some(place(self.text, key.span().start)), message });
        }
        self.problems.sort_by_key(|problem| problem.place);
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

impl Section<'_, '_> {
    /// Takes a key's value, if it is there, and returns its offset in the text.
    fn set<T: Setting>(&mut self, key: &'static str, target: &mut T) -> Option<usize> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let at = value.span().start;
        match T::read(&value) {
            Ok(value) => *target = value,
            Err(message) => self.complain(Some(at), &format!("{key}: {message}")),
        }
        Some(at)
    }

    fn complain(&mut self, at: Option<usize>, message: &str) {
        let place = at.map(|at| place(self.text, at));
        self.problems.push(Problem { place, message: format!("[{}] {message}", self.name) });
    }

    fn finish(self) {
        for (key, _) in &self.table {
            let known = self.known.join(", ");
            let message = format!("[{}] has no key {:?}; it has {known}", self.name, key.get_ref());
            self.problems.push(Problem { place: Some(place(self.text, key.span().start)), message });
        }
    }
}

/// Line and column of an offset, both from 1, columns in characters.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// A kind of value.
trait Setting: Sized {
    /// Reads it, or says what would be right.
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String>;
}

fn text_of<'v>(value: &'v Spanned<DeValue<'_>>) -> Result<&'v str, String> {
    let value = value.get_ref();
    value.as_str().ok_or_else(|| format!("takes text in quotes, not a {}", value.type_str()))
}

impl Setting for String {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        text_of(value).map(str::to_owned)
    }
}

impl Setting for PathBuf {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let path = PathBuf::from(text_of(value)?);
        if path.is_absolute() { Ok(path) } else { Err("takes a path that begins with /".to_owned()) }
    }
}

impl Setting for SocketAddr {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        text_of(value)?.parse().map_err(|_| "takes an address with a port, like \"127.0.0.1:10809\"".to_owned())
    }
}

impl Setting for bool {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        value.get_ref().as_bool().ok_or_else(|| "takes true or false".to_owned())
    }
}

impl Setting for u32 {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let number = value.get_ref().as_integer().map(|number| (number.as_str(), number.radix()));
        number
            .and_then(|(digits, radix)| u32::from_str_radix(digits, radix).ok())
            .ok_or_else(|| format!("takes a whole number from 0 to {}", u32::MAX))
    }
}

/// The NBD servers there are.
#[derive(PartialEq)]
enum Program {
    Nbdkit,
    NbdServer,
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

/// A version of nbd-server.
impl Setting for Option<Installed> {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let text = text_of(value)?;
        let version = Installed::from_package(text).or_else(|| Installed::from_output(&format!("version {text}")));
        version.map(Some).ok_or_else(|| "takes a version, like \"3.26.1\" or \"3.26.1-6\"".to_owned())
    }
}

impl Setting for Vec<&'static dyn Scheme> {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let names: Vec<&str> = scheme::ALL.iter().map(|scheme| scheme.name()).collect();
        let wrong = || format!("takes a list of {}, like [\"virtio\"]", names.join(", "));
        let list = value.get_ref().as_array().ok_or_else(wrong)?;
        let schemes: Option<Self> = list.iter().map(|name| name.get_ref().as_str().and_then(scheme::by_name)).collect();
        schemes.filter(|schemes| !schemes.is_empty()).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Settings, Vec<Problem>> {
        parse(text, HostFacts::default)
    }

    fn problems(text: &str) -> Vec<String> {
        parsed(text)
            .err()
            .unwrap_or_default()
            .iter()
            .map(|problem| format!("{:?} {}", problem.place, problem.message))
            .collect()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let settings = parsed("").unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:10809");
        assert_eq!(settings.schemes.len(), 1);
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_place() {
        let told = problems(
            "[api]\nsockett = \"/x\"\n[export]\nlisten = \"localhost\"\n  insecure = \"yes\"\n[hist]\ndays = 1\n[history]\ndays = -1\n",
        );
        assert_eq!(told.len(), 5, "{told:#?}");
        assert!(told[0].starts_with("Some((2, 1)) [api] has no key \"sockett\"; it has socket"), "{}", told[0]);
        assert!(told[1].starts_with("Some((4, 10)) [export] listen: takes an address"), "{}", told[1]);
        assert!(told[2].starts_with("Some((5, 14)) [export] insecure: takes true or false"), "{}", told[2]);
        assert!(told[3].starts_with("Some((6, 2)) there is no section [hist]"), "{}", told[3]);
        assert!(told[4].starts_with("Some((9, 8)) [history] days: takes a whole number"), "{}", told[4]);
    }

    #[test]
    fn a_line_that_is_not_toml_is_told_with_its_place() {
        let told = problems("[api]\nsocket = /run/x\n");
        assert!(told[0].starts_with("Some((2, "), "{told:?}");
    }

    #[test]
    fn an_address_that_others_reach_takes_the_word_insecure() {
        assert!(problems("[export]\nlisten = \"0.0.0.0:10809\"")[0].contains("insecure = true"));
        assert!(parsed("[export]\nlisten = \"[::1]:10809\"").is_ok());
        assert!(parsed("[export]\nlisten = \"10.0.0.1:10809\"\ninsecure = true").unwrap().insecure);
    }

    #[test]
    fn tls_takes_an_authority_and_a_whole_identity() {
        let whole =
            "[export]\nlisten = \"10.0.0.1:10809\"\ntls_ca = \"/ca\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"";
        let identity = Some(("/c".into(), "/k".into()));
        let files = TlsFiles { ca: "/ca".into(), identity, name: None };
        assert_eq!(parsed(whole).unwrap().tls, Some(TlsSettings::Certificates(files)));
        assert!(problems("[export]\ntls_ca = \"/ca\"\ntls_key = \"/k\"")[0].contains("belong together"));
        assert!(problems("[export]\ntls_name = \"x\"")[0].contains("tls_ca is missing"));
    }

    #[test]
    fn tls_takes_a_shared_key_in_place_of_certificates() {
        let key = "[export]\nlisten = \"10.0.0.1:10809\"\ntls_psk_file = \"/keys\"\n";
        let settings = |identity| Some(TlsSettings::Key(TlsKey { file: "/keys".into(), identity }));
        assert_eq!(parsed(key).unwrap().tls, settings(None));
        assert_eq!(parsed(&format!("{key}tls_psk_identity = \"x\"")).unwrap().tls, settings(Some("x".to_owned())));
        assert!(problems(&format!("{key}tls_ca = \"/ca\""))[0].contains("not both"));
        assert!(problems("[export]\ntls_psk_identity = \"x\"")[0].contains("tls_psk_file is missing"));
    }

    #[test]
    fn nbd_servers_way_follows_from_its_version_unless_one_is_named() {
        let host = |version: &str, held| HostFacts { nbd_server: Installed::from_package(version), held };
        let way = |text: &str, host: HostFacts| {
            let settings = parse(&format!("[export]\nbackend = \"nbd-server\"\n{text}"), || host)?;
            let ServerSettings::NbdServer { way, main_file } = settings.server else { panic!("nbdkit") };
            assert_eq!(settings.exports, PathBuf::from("/run/attachd/nbd-server.d"));
            Ok::<_, Vec<Problem>>((way.mode, main_file, settings.pid_file))
        };
        let (mode, main_file, pid_file) = way("", host("1:3.26.1-6", false)).unwrap();
        assert_eq!(mode, Mode::Signal);
        assert!(main_file.ends_with("signal.conf") && pid_file.ends_with("nbd-server.pid"));
        let (mode, main_file, _) = way("", host("1:3.24-1.1", false)).unwrap();
        assert_eq!(mode, Mode::Socket);
        assert!(main_file.ends_with("socket.conf"));
        let refused = way("mode = \"signal\"", host("1:3.24-1.1", false)).unwrap_err();
        assert_eq!((refused[0].place, refused.len()), (Some((3, 8)), 1), "{refused:?}");
        let own = "mode = \"signal\"\nnbd_server_version = \"3.27.1\"\nmain_file = \"/etc/nbd-server/config\"";
        assert_eq!(way(own, HostFacts::default()).unwrap().1, PathBuf::from("/etc/nbd-server/config"));
        assert!(problems("[export]\nmode = \"signal\"")[0].contains("goes with backend"));
        assert!(
            problems("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"x\"")[0].contains("takes a version")
        );
    }

    #[test]
    fn schemes_are_named_from_the_list() {
        assert_eq!(parsed("[device]\nschemes = [\"virtio\", \"loop\"]").unwrap().schemes.len(), 2);
        for wrong in ["[]", "\"virtio\"", "[\"scsi2\"]", "[1]"] {
            assert!(
                problems(&format!("[device]\nschemes = {wrong}"))[0].contains("takes a list of virtio, scsi, loop")
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(\\[?[a-z]{0,6}\\]? ?=? ?[\"\\[]?[ -~]{0,8}\n?){0,6}") {
            let _ = parsed(&text);
        }
    }
}

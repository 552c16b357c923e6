//! The configuration: as written, then checked. Every key is optional; every mistake is told, with line and column.
//!
//! Here is the file as a whole; [`export`] reads the keys of the NBD server.

mod export;
mod places;

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::device::scheme::{self, Scheme};
use crate::place;
pub use export::{HostFacts, LINKS_FOLDER, Program, SECTIONS_FOLDER, ServerSettings, TlsFiles, TlsKey, TlsSettings};
pub use places::{STAGING_FOLDER, is_dead_socket_of};

/// Where the configuration is unless another place is named.
pub const DEFAULT_PATH: &str = "/etc/attachd/attachd.toml";

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
    /// `[limits]`: how many intents there may be.
    pub limits: Limits,
    /// `[history] days`: how long the timeline of a withdrawn volume is kept.
    pub history_days: u32,
}

impl Settings {
    /// The links that are served, with either server.
    pub fn links_folder(&self) -> &Path {
        match self.server {
            ServerSettings::Nbdkit => &self.exports,
            ServerSettings::NbdServer { .. } => Path::new(LINKS_FOLDER),
        }
    }
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
            limits: Limits { intents: 100_000, intents_per_user: 50_000 },
        }
    }
}

/// How many intents there may be. Each takes about a kilobyte of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `[limits] intents`: of all users together.
    pub intents: u32,
    /// `[limits] intents_per_user`: of each user but root.
    pub intents_per_user: u32,
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

/// How much a configuration may be.
const SIZE: u64 = 1 << 20;

/// Reads the file, and looks at the places that it names. A file that is not there counts as empty at the default place only.
///
/// What is wrong with a place where attachd has things unless told otherwise keeps nobody from starting: exports are to be
/// revoked all the same, and health says it.
pub fn load(path: &Path) -> Result<Settings, Invalid> {
    look(path, false)
}

/// The same, and nothing that is wrong is passed over.
pub fn check(path: &Path) -> Result<Settings, Invalid> {
    look(path, true)
}

fn look(path: &Path, everything: bool) -> Result<Settings, Invalid> {
    let invalid = |problems| Invalid { path: path.to_owned(), problems };
    let whole = |message| invalid(vec![Problem { place: None, message }]);
    let bytes = match place::small_file_of_root(path, SIZE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => Vec::new(),
        Err(error) => return Err(whole(format!("cannot be read: {error}"))),
        Ok(bytes) => bytes,
    };
    let text = String::from_utf8(bytes).map_err(|error| whole(format!("is not UTF-8: {error}")))?;
    let (settings, offsets) = read(&text, HostFacts::of_this_host).map_err(invalid)?;
    let owner = if everything { places::daemons_user() } else { Some(rustix::process::geteuid().as_raw()) };
    let wrong = places::wrong(&settings, owner);
    let counts = |wrong: &places::Wrong| everything || !wrong.is_default;
    let problem = |wrong: places::Wrong| {
        let at = wrong.key.and_then(|key| offsets.get(&key));
        Problem { place: at.map(|at| line_and_column(&text, *at)), message: wrong.why }
    };
    let mut problems: Vec<Problem> = wrong.into_iter().filter(counts).map(problem).collect();
    problems.sort_by_key(|problem| problem.place);
    if problems.is_empty() { Ok(settings) } else { Err(invalid(problems)) }
}

/// Checks the file, prints the result and returns the exit status: what `check-config` does in both programs.
pub fn report(path: &Path) -> ExitCode {
    // Nobody reading the words changes nothing about the status.
    match check(path) {
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

/// Checks a configuration text. The host is only asked about nbd-server when that is to serve.
pub fn parse(text: &str, host: impl FnOnce() -> HostFacts) -> Result<Settings, Vec<Problem>> {
    read(text, host).map(|(settings, _)| settings)
}

/// Where in the text each key's value is.
type Offsets = HashMap<(&'static str, &'static str), usize>;

fn read(text: &str, host: impl FnOnce() -> HostFacts) -> Result<(Settings, Offsets), Vec<Problem>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| Problem {
            place: error.span().map(|span| line_and_column(text, span.start)),
            message: error.message().to_owned(),
        };
        return Err(errors.iter().map(problem).collect());
    }
    let mut file = File { text, root: root.into_inner(), problems: Vec::new(), offsets: Offsets::new() };
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
    file.section("export", |section| export::read(section, &mut settings, host));
    file.section("helper", |helper| helper.set("socket", &mut settings.helper));
    file.section("host", |host| host.set("vm_id", &mut settings.vm_id));
    file.section("history", |history| history.set("days", &mut settings.history_days));
    file.section("limits", |limits| {
        limits.set("intents", &mut settings.limits.intents);
        limits.set("intents_per_user", &mut settings.limits.intents_per_user);
    });
    for (keys, message) in places::overlaps(&settings) {
        // The one that is written down.
        let at = keys.iter().find_map(|key| file.offsets.get(key));
        file.problems.push(Problem { place: at.map(|at| line_and_column(text, *at)), message });
    }
    let offsets = std::mem::take(&mut file.offsets);
    file.finish()?;
    Ok((settings, offsets))
}

/// The file being checked; what was understood is taken out of it.
struct File<'a> {
    text: &'a str,
    root: DeTable<'a>,
    problems: Vec<Problem>,
    offsets: Offsets,
}

/// One table of the file.
struct Section<'a, 'f> {
    name: &'static str,
    table: DeTable<'a>,
    known: Vec<&'static str>,
    text: &'a str,
    problems: &'f mut Vec<Problem>,
    offsets: &'f mut Offsets,
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
                        return self.problems.push(Problem { place: Some(line_and_column(self.text, at)), message });
                    }
                }
            }
        };
        let mut section = Section {
            name,
            table,
            known: Vec::new(),
            text: self.text,
            problems: &mut self.problems,
            offsets: &mut self.offsets,
        };
        read(&mut section);
        section.finish();
    }

    fn finish(mut self) -> Result<(), Vec<Problem>> {
        let sections = ["api", "store", "device", "export", "helper", "host", "history", "limits"];
        for (key, _) in &self.root {
            let message = format!("there is no section [{}]; there are {}", key.get_ref(), sections.join(", "));
            self.problems.push(Problem { place: Some(line_and_column(self.text, key.span().start)), message });
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
        self.offsets.insert((self.name, key), at);
        match T::read(&value) {
            Ok(value) => *target = value,
            Err(message) => self.complain(Some(at), &format!("{key}: {message}")),
        }
        Some(at)
    }

    fn complain(&mut self, at: Option<usize>, message: &str) {
        let place = at.map(|at| line_and_column(self.text, at));
        self.problems.push(Problem { place, message: format!("[{}] {message}", self.name) });
    }

    fn finish(self) {
        for (key, _) in &self.table {
            let known = self.known.join(", ");
            let message = format!("[{}] has no key {:?}; it has {known}", self.name, key.get_ref());
            self.problems.push(Problem { place: Some(line_and_column(self.text, key.span().start)), message });
        }
    }
}

/// Line and column of an offset, both from 1, columns in characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
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
        let up = path.components().any(|part| part == std::path::Component::ParentDir);
        if path.is_absolute() && !up { Ok(path) } else { Err("takes a path that begins with /, without ..".to_owned()) }
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

    pub(super) fn parsed(text: &str) -> Result<Settings, Vec<Problem>> {
        parse(text, HostFacts::default)
    }

    pub(super) fn problems(text: &str) -> Vec<String> {
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

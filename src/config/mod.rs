//! The configuration: as written, then checked. Every key is optional; every mistake is told, with line and column.
//!
//! Here is the file as a whole; each section has a file with its settings, [`text`] knows how values are written, [`places`]
//! looks at what they name, and [`changes`] tells what a reload changes.

mod api;
mod changes;
mod cloudstack;
mod device;
mod export;
mod helper;
mod history;
mod host;
mod limits;
mod places;
mod projection;
mod store;
mod text;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cloud::{CloudSettings, VmId};
use crate::place;
use crate::projection::DatabaseSettings;
pub use api::{ApiSettings, is_loopback};
pub use changes::Changes;
pub use device::DeviceSettings;
pub use export::{ExportSettings, HostFacts, LINKS_FOLDER, Program, SECTIONS_FOLDER, ServerSettings};
pub use helper::HelperSettings;
pub use history::HistorySettings;
pub use host::HostSettings;
pub use limits::Limits;
pub use places::is_dead_socket_of;
pub use store::StoreSettings;
pub use text::ConfigMistake;
use text::{File, Offsets, line_and_column};

/// The default path of the configuration file.
pub const DEFAULT_PATH: &str = "/etc/attachd/attachd.toml";

/// What the daemon works by. [`Settings::default`] is the configuration of an empty file.
#[derive(Clone, Default)]
pub struct Settings {
    /// `[api]`.
    pub api: ApiSettings,
    /// `[store]`.
    pub store: StoreSettings,
    /// `[device]`.
    pub device: DeviceSettings,
    /// `[export]`.
    pub export: ExportSettings,
    /// `[helper]`.
    pub helper: HelperSettings,
    /// `[host]`.
    pub host: HostSettings,
    /// `[cloudstack]`; `None`: CloudStack is not called.
    pub cloudstack: Option<CloudSettings>,
    /// `[projection]`; `None`: the predecessor's tables are in the store's own file alone.
    pub projection: Option<DatabaseSettings>,
    /// `[history]`.
    pub history: HistorySettings,
    /// `[limits]`.
    pub limits: Limits,
}

/// Why the configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// Every mistake, in the file's order.
    pub problems: Vec<ConfigMistake>,
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

/// The size limit of a configuration file, in bytes.
const SIZE: u64 = 1 << 20;

/// Reads the file and checks the paths that it names. A missing file counts as empty only at the default path.
///
/// A problem with a default path does not stop the daemon from starting: exports must be revoked all the same, and
/// health reports the problem.
pub fn load(path: &Path) -> Result<Settings, Invalid> {
    read_and_check(path, false)
}

/// As [`load`], but every problem is an error.
pub fn check(path: &Path) -> Result<Settings, Invalid> {
    read_and_check(path, true)
}

fn read_and_check(path: &Path, everything: bool) -> Result<Settings, Invalid> {
    let invalid = |problems| Invalid { path: path.to_owned(), problems };
    let whole = |message| invalid(vec![ConfigMistake { place: None, message }]);
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
        ConfigMistake { place: at.map(|at| line_and_column(&text, *at)), message: wrong.why }
    };
    let mut problems: Vec<ConfigMistake> = wrong.into_iter().filter(counts).map(problem).collect();
    if everything && let Some((key, message)) = settings.export.unusable_tls() {
        let at = offsets.get(&("export", key));
        problems.push(ConfigMistake { place: at.map(|at| line_and_column(&text, *at)), message });
    }
    if everything && let Some((key, message)) = api::unusable_file(&settings.api) {
        let at = offsets.get(&("api", key)).or_else(|| offsets.get(&("api", "tls_certificate")));
        problems.push(ConfigMistake { place: at.map(|at| line_and_column(&text, *at)), message });
    }
    if everything && let Some(cloudstack) = &settings.cloudstack {
        for (key, message) in cloudstack::unusable_files(cloudstack) {
            let at = offsets.get(&("cloudstack", key));
            problems.push(ConfigMistake { place: at.map(|at| line_and_column(&text, *at)), message });
        }
    }
    if everything && let Some(database) = &settings.projection {
        for (key, message) in projection::unusable_files(database) {
            let at = offsets.get(&("projection", key));
            problems.push(ConfigMistake { place: at.map(|at| line_and_column(&text, *at)), message });
        }
    }
    problems.sort_by_key(|problem| problem.place);
    if problems.is_empty() { Ok(settings) } else { Err(invalid(problems)) }
}

/// Checks the file, prints the result and returns the exit status, for `check-config` in both programs.
pub fn report(path: &Path) -> ExitCode {
    // A failed print does not change the exit status.
    match check(path).and_then(|settings| judged(path, &settings)) {
        Ok(note) => {
            if let Some(note) = note {
                let _ = writeln!(std::io::stderr(), "{}: {note}", path.display());
            }
            let _ = writeln!(std::io::stdout(), "{}: valid", path.display());
            ExitCode::SUCCESS
        }
        Err(invalid) => {
            let _ = writeln!(std::io::stderr(), "{invalid}");
            ExitCode::FAILURE
        }
    }
}

/// Asks the database, if there is one. Returns a note about what could not be checked.
fn judged(path: &Path, settings: &Settings) -> Result<Option<String>, Invalid> {
    let judged = settings.projection.as_ref().map(projection::judge).transpose().map(Option::flatten);
    judged.map_err(|message| Invalid { path: path.to_owned(), problems: vec![ConfigMistake { place: None, message }] })
}

/// Parses a configuration text. `host` is called only if nbd-server should serve.
pub fn parse(text: &str, host: impl FnOnce() -> HostFacts) -> Result<Settings, Vec<ConfigMistake>> {
    read(text, host).map(|(settings, _)| settings)
}

fn read(text: &str, host: impl FnOnce() -> HostFacts) -> Result<(Settings, Offsets), Vec<ConfigMistake>> {
    let mut file = File::parse(text)?;
    let mut settings = Settings::default();
    file.section("api", |api| settings.api.read(api));
    file.section("store", |store| settings.store.read(store));
    file.section("device", |device| settings.device.read(device));
    file.section("export", |export| settings.export.read(export, host));
    file.section("helper", |helper| settings.helper.read(helper));
    file.section("host", |host| settings.host.read(host));
    file.section("cloudstack", |cloudstack| settings.cloudstack = cloudstack::read(cloudstack));
    file.section("projection", |projection| settings.projection = projection::read(projection));
    file.section("history", |history| settings.history.read(history));
    file.section("limits", |limits| settings.limits.read(limits));
    for (keys, message) in places::overlaps(&settings) {
        // The first of these keys that is set in the file.
        let at = keys.iter().find_map(|key| file.offsets.get(key));
        file.problems.push(ConfigMistake { place: at.map(|at| line_and_column(text, *at)), message });
    }
    // Without CloudStack the id is only a text that intents carry.
    if settings.cloudstack.is_some()
        && !settings.host.vm_id.is_empty()
        && let Err(error) = settings.host.vm_id.parse::<VmId>()
    {
        let place = file.offsets.get(&("host", "vm_id")).map(|at| line_and_column(text, *at));
        file.problems.push(ConfigMistake { place, message: format!("[host] vm_id: {error}") });
    }
    let offsets = std::mem::take(&mut file.offsets);
    file.finish()?;
    Ok((settings, offsets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn parsed(text: &str) -> Result<Settings, Vec<ConfigMistake>> {
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
        assert_eq!(settings.export.listen.to_string(), "127.0.0.1:10809");
        assert_eq!(settings.device.schemes.len(), 1);
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_line_and_column() {
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
    fn a_line_that_is_not_toml_is_reported_with_line_and_column() {
        let told = problems("[api]\nsocket = /run/x\n");
        assert!(told[0].starts_with("Some((2, "), "{told:?}");
    }

    #[test]
    fn schemes_are_named_from_the_list() {
        assert_eq!(parsed("[device]\nschemes = [\"virtio\", \"loop\"]").unwrap().device.schemes.len(), 2);
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

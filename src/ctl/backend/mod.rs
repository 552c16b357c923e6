//! `attachctl backend`: replaces the NBD server that serves. It makes the whole change or none of it.

mod edit;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::ApiClient;
use super::failure::{FAILED, Failure};
use super::output::Output;
use super::systemd::{Unit, systemctl};
use crate::accounts;
use crate::config::{self, Program, ServerSettings};
use crate::export::clients;
use crate::reason::Code;
use crate::volume::{State, counted};
use crate::wire::{BackendState, Health};

/// The time limit for attachd to find the new server.
const LIMIT: Duration = Duration::from_mins(1);
/// The pause between two requests for health.
const PAUSE: Duration = Duration::from_millis(200);

/// The units of nbdkit, and of nbd-server.
const NBDKIT: [&str; 2] = ["attachd-nbdkit.socket", "attachd-nbdkit.service"];
const NBD_SERVER: [&str; 2] = ["attachd-nbd-server.service", "attachd-nbd-server.socket"];
/// The unit of Debian's nbd-server package, which uses the same port.
const DEBIANS: &str = "nbd-server.service";

/// The options of `attachctl backend`.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The NBD server that should serve.
    #[arg(value_enum)]
    server: Program,
    /// Change the server even while clients are connected. Their connections are cut.
    #[arg(long)]
    force: bool,
    /// attachd's configuration file.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// The steps done so far, and how to undo them.
struct Change<'a> {
    output: &'a Output,
    steps: Vec<String>,
    undo: Vec<Undo>,
}

/// How one step is undone.
enum Undo {
    File(PathBuf, String),
    Systemctl(Vec<&'static str>),
}

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<ExitCode, Failure> {
    let text = before(options)?;
    let edited = edit::choose(&text, options.server).map_err(|key| {
        let text = format!(
            "{} sets [export] {key}, which belongs to the server that serves now: remove it, or change the server by hand \
             (\"nbd-server in nbdkit's place\" in /usr/share/doc/attachd/security.md)",
            options.config.display()
        );
        Failure::with(FAILED, Code::SettingInTheWay, text, json!({ "key": key }))
    })?;
    // The parser chooses nbd-server's mode as attachd will do when systemd holds the port for neither mode.
    let settings = config::parse(&edited, config::HostFacts::of_this_host).map_err(|problems| {
        let problems: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        Failure::new(
            Code::InvalidConfig,
            format!("the changed configuration would not be valid: {}", problems.join("; ")),
        )
    })?;
    if settings.export.server.name() != options.server.to_string() {
        let text = format!(
            "{} names its server in a way that attachctl does not understand: change it by hand",
            options.config.display()
        );
        return Err(Failure::new(Code::EditByHand, text));
    }
    let units = units(&settings.export.server);
    if edited == text && units.iter().all(|unit| Unit::ask(unit).is_some_and(|unit| unit.is_in_use())) {
        let answer = json!({ "backend": settings.export.server.name(), "unit": settings.export.server.unit(), "changed": false, "steps": [] });
        let words = format!("{} serves already; nothing to do\n", settings.export.server.name());
        if output.is_json() {
            output.json(&answer.to_string())?;
        } else {
            output.text(&words)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // attachd's own handshakes are not clients. `u32::MAX` is no user's id.
    let attachd = accounts::id_of("/etc/passwd", "attachd").unwrap_or(u32::MAX);
    let connected = clients::connected_but(settings.export.listen, attachd).map_err(|error| {
        Failure::new(
            Code::ClientsUnknown,
            format!("who is connected cannot be read ({error}); --force continues anyway"),
        )
    });
    let connected = if options.force { connected.unwrap_or_default() } else { connected? };
    if !connected.is_empty() && !options.force {
        let text = format!(
            "{} NBD client(s) are connected and would be cut: {}. End them, or cut them with --force",
            connected.len(),
            connected.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        );
        return Err(Failure::with(FAILED, Code::ClientsConnected, text, json!({ "clients": connected })));
    }
    let mut change = Change { output, steps: Vec::new(), undo: Vec::new() };
    match change.all(client, &options.config, (&text, &edited), &settings.export.server, units).await {
        Ok(()) => {
            let answer = json!({
                "backend": settings.export.server.name(), "unit": settings.export.server.unit(), "changed": true, "steps": change.steps
            });
            if output.is_json() {
                output.json(&answer.to_string())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => Err(change.undone(&why)),
    }
}

/// Reads the configuration, after checking every condition that must hold before a change.
fn before(options: &Options) -> Result<String, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(Code::NotRoot, "changing the NBD server takes root: run it with sudo"));
    }
    let program = Path::new("/usr/bin").join(options.server.to_string());
    if !program.exists() {
        let text = format!("{} is not installed: `apt install {}`", program.display(), options.server);
        return Err(Failure::new(Code::NotInstalled, text));
    }
    match fs::read_to_string(&options.config) {
        Ok(text) => Ok(text),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && options.config == Path::new(config::DEFAULT_PATH) =>
        {
            Ok(String::new())
        }
        Err(error) => {
            let text = format!("{} cannot be read: {error}", options.config.display());
            Err(Failure::new(Code::InvalidConfig, text))
        }
    }
}

/// Returns the units that run this server.
fn units(server: &ServerSettings) -> &'static [&'static str] {
    match server {
        ServerSettings::Nbdkit => &NBDKIT,
        ServerSettings::NbdServer { .. } if server.unit() == NBD_SERVER[0] => &NBD_SERVER[..1],
        ServerSettings::NbdServer { .. } => &NBD_SERVER[1..],
    }
}

impl Change<'_> {
    async fn all(
        &mut self,
        client: &ApiClient,
        config: &Path,
        (old, new): (&str, &str),
        server: &ServerSettings,
        units: &'static [&'static str],
    ) -> Result<(), String> {
        // This step is undone last, after everything else is restored.
        self.undo.push(Undo::Systemctl(vec!["restart", "attachd.service"]));
        self.say(format!("{}: backend = \"{}\"", config.display(), server.name()));
        write(config, new).map_err(|error| format!("{} cannot be written: {error}", config.display()))?;
        self.undo.push(Undo::File(config.to_owned(), old.to_owned()));
        let others = NBDKIT.iter().chain(&NBD_SERVER).chain([&DEBIANS]).copied().filter(|unit| !units.contains(unit));
        let in_use: Vec<&'static str> =
            others.filter(|unit| Unit::ask(unit).is_some_and(|unit| unit.is_in_use())).collect();
        if !in_use.is_empty() {
            self.undo.push(Undo::Systemctl([&["enable", "--now"], &*in_use].concat()));
            self.systemctl(&[&["disable", "--now"], &*in_use].concat())?;
            // In socket mode each client has a server process, which outlives the socket.
            let _ = systemctl(&["stop", "attachd-nbd-server@*.service"]);
        }
        self.undo.push(Undo::Systemctl([&["disable", "--now"], units].concat()));
        self.systemctl(&[&["enable", "--now"], units].concat())?;
        self.systemctl(&["restart", "attachd.service"])?;
        self.say("waiting until attachd finds it".to_owned());
        let volumes = until_up(client, server).await?;
        self.say(format!("{} serves ({}); volumes: {volumes}", server.name(), server.unit()));
        Ok(())
    }

    fn systemctl(&mut self, arguments: &[&str]) -> Result<(), String> {
        self.say(format!("systemctl {}", arguments.join(" ")));
        systemctl(arguments)
    }

    fn say(&mut self, step: String) {
        if !self.output.is_json() {
            let _ = self.output.text(&format!("{step}\n"));
        }
        self.steps.push(step);
    }

    /// Undoes all steps, and returns a failure that says why and whether everything was undone.
    fn undone(mut self, why: &str) -> Failure {
        let mut left = Vec::new();
        while let Some(step) = self.undo.pop() {
            let undone = match &step {
                Undo::File(path, text) => write(path, text).map_err(|error| format!("{}: {error}", path.display())),
                Undo::Systemctl(arguments) => systemctl(arguments),
            };
            left.extend(undone.err());
        }
        let end = if left.is_empty() {
            "everything is as it was before".to_owned()
        } else {
            format!("undoing failed too: {}", left.join("; "))
        };
        let details = json!({ "steps": self.steps, "undone": left.is_empty() });
        Failure::with(FAILED, Code::BackendNotChanged, format!("the NBD server is not changed: {why}; {end}"), details)
    }
}

/// Waits until attachd has found the server. Returns the number of volumes in each state.
async fn until_up(client: &ApiClient, server: &ServerSettings) -> Result<String, String> {
    let begun = Instant::now();
    let mut last = "attachd does not answer".to_owned();
    while begun.elapsed() < LIMIT {
        if let Ok(answer) = client.get_any("health", &[], Duration::ZERO).await
            && let Ok(Health { backend, volumes, .. }) = answer.read()
        {
            let count = |state| volumes.get(&state).copied().unwrap_or(0);
            let waits = count(State::Exporting);
            if backend.name == server.name() && backend.state == BackendState::Up && waits == 0 {
                let counts = counted(count);
                return Ok(if counts.is_empty() { "none".to_owned() } else { counts });
            }
            last = format!("{} is {}, {waits} volume(s) are not served yet", backend.name, backend.state);
            if let Some(why) = backend.why {
                last = format!("{last}: {why}");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("after {} s {last}", LIMIT.as_secs()))
}

/// Replaces a file in one step, with the owner and the mode of the old file.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut half = path.clone().into_os_string();
    half.push(".new");
    let mut file = fs::File::create(&half)?;
    file.write_all(text.as_bytes())?;
    let mode = match fs::metadata(path) {
        Ok(old) => {
            use std::os::unix::fs::MetadataExt as _;
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
            old.mode() & 0o7777
        }
        Err(_) => 0o644,
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&half, path)
}

//! The lab's nbd-servers: those of Debian 12 and Debian 13, in both of their modes, each in the root folder of its
//! own release.
//!
//! Every server runs as attachd-nbd without a capability, sees the lab's `/dev` and `/run`, and dies with the test: a
//! daemon and its children are in a pid namespace that ends with the test.

use crate::child::{Held, Proc, children_of};
use crate::{Lab, debian, people};
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::mount_bind;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The pid file of the signalled server, as its unit writes it.
pub const PID_FILE: &str = "/run/attachd-nbd-server/nbd-server.pid";
/// The file that exists while the port of socket mode is held, as its unit writes it.
pub const HELD: &str = "/run/attachd-nbd-server/listening";
/// The folder of sections.
pub const FOLDER: &str = "/run/attachd/nbd-server.d";
/// The main file of signal mode.
pub const MAIN: &str = "/run/lab/nbd-server/signal.conf";
/// The main file of socket mode.
pub const MAIN_SOCKET: &str = "/run/lab/nbd-server/socket.conf";

const ADDRESS: &str = "127.0.0.1:10809";
/// The pid file that the daemon writes itself, with its number inside the pid namespace.
const INNER_PID_FILE: &str = "/run/attachd-nbd-server/inner.pid";
/// The time limit of a start. Debian 13's server needs up to three seconds for its Diffie-Hellman parameters, and
/// more on a busy machine.
const START: Duration = Duration::from_secs(30);
/// The pause between two checks of something that causes no event.
const PAUSE: Duration = Duration::from_millis(5);

/// The release of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12: nbd-server 3.24, which dies of SIGHUP.
    Bookworm,
    /// Debian 13: nbd-server 3.26.1 with Debian's patches.
    Trixie,
}

/// Both releases.
pub const RELEASES: [Release; 2] = [Release::Bookworm, Release::Trixie];

impl Release {
    fn suite(self) -> &'static str {
        match self {
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }
}

/// An installed nbd-server, whose root folder has the lab's mounts.
#[derive(Debug, Clone)]
pub struct Installed {
    root: PathBuf,
    log: PathBuf,
}

impl Installed {
    /// Unpacks it if necessary, and mounts the lab's `/dev`, `/run` and `/proc` into it.
    pub fn new(lab: &Lab, release: Release) -> Result<Installed> {
        let root = debian::unpacked(release.suite(), "nbd-server")?;
        for dir in ["dev", "run", "proc"] {
            let inside = root.join(dir);
            mount_bind(Path::new("/").join(dir), &inside).with_context(|| format!("binding {}", inside.display()))?;
        }
        fs::create_dir_all("/run/lab/nbd-server")?;
        Ok(Installed { root, log: lab.dir().join(format!("nbd-server-{}.log", release.suite())) })
    }

    /// Mounts a folder of the disk at this path, for the server and for the lab.
    pub fn lay_in(&self, folder: &Path, place: &Path) -> Result<()> {
        fs::create_dir_all(place)?;
        let inside = self.root.join(place.strip_prefix("/")?);
        for place in [place, &inside] {
            mount_bind(folder, place).with_context(|| format!("binding {}", place.display()))?;
        }
        Ok(())
    }

    /// Returns the output of `nbd-server -V`.
    pub fn version(&self) -> Result<String> {
        let output = self.command(&[], &["-V"]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Debian's version of the package, `1:3.26.1-6.1`.
    pub fn package_version(&self) -> Result<String> {
        let changes = self.root.join("usr/share/doc/nbd-server/changelog.Debian.gz");
        let output = Command::new("zcat").arg(&changes).output().context("zcat")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(version, _)| version);
        Ok(version.with_context(|| format!("no version in {}", changes.display()))?.to_owned())
    }

    /// Starts the server with this main file and returns whether it accepts its configuration; the error is its
    /// message. The main file must name an address on which listening is impossible, so that a started server ends at
    /// once.
    pub fn accepts(&self, main: &Path) -> Result<std::result::Result<(), String>> {
        // It runs in a pid namespace, so that every process of it has ended with the command.
        let space = ["unshare", "--pid", "--fork", "--kill-child=KILL"];
        let pid_file = "/run/attachd-nbd-server/never.pid";
        let output = self.command(&space, &["-C", text(main)?, "-p", pid_file]).output()?;
        match output.status.code() {
            Some(0) => Ok(Ok(())),
            Some(1) => Ok(Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())),
            _ => bail!("nbd-server ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Returns the command for nbd-server as user attachd-nbd in its own root folder, behind the wrapper.
    fn command(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let person = people::NBD.id;
        let line = wrapper.iter().map(ToString::to_string).chain([
            "setpriv".into(),
            "--no-new-privs".into(),
            "--inh-caps=-all".into(),
            "--bounding-set=-all,+sys_chroot,+setuid,+setgid".into(),
            "--".into(),
            "chroot".into(),
            format!("--userspec={person}:{person}"),
            "--groups=".into(),
            self.root.to_string_lossy().into_owned(),
            "/usr/bin/nbd-server".into(),
        ]);
        let line: Vec<String> = line.collect();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).args(args).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn log(&self) -> Result<File> {
        File::options().create(true).append(true).open(&self.log).context("opening nbd-server's log")
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of the lab is text")
}

/// The server in signal mode: one main process, which reads its files again at SIGHUP.
#[derive(Debug)]
pub struct NbdServer {
    installed: Installed,
    main: Option<Main>,
    /// The pid namespaces of all starts: a main process that was killed leaves its clients' children running.
    spaces: Vec<Proc>,
}

#[derive(Debug)]
struct Main {
    pid: u32,
    held: Held,
}

impl NbdServer {
    /// Makes the server; not started yet.
    pub fn new(installed: Installed) -> NbdServer {
        NbdServer { installed, main: None, spaces: Vec::new() }
    }

    /// Starts it with the main file [`MAIN`] and returns when it greets clients. Then its pid is in [`PID_FILE`].
    pub fn start(&mut self) -> Result<()> {
        ensure!(!self.is_alive(), "nbd-server runs already: kill it first");
        // The shell stays as the first process of the namespace and the daemon's parent; it reports when the daemon
        // runs.
        let stay = r#""$@" || exit; echo runs; exec sleep infinity"#;
        let space = ["unshare", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", stay, "sh"];
        let mut command = self.installed.command(&space, &["-C", MAIN, "-p", INNER_PID_FILE]);
        command.stdout(Stdio::piped()).stderr(self.installed.log()?);
        let mut unshare = Proc::spawn("nbd-server", &mut command)?;
        let mut said = String::new();
        BufReader::new(unshare.take_stdout().context("piped")?).read_line(&mut said)?;
        ensure!(said == "runs\n", "nbd-server does not start: {}", self.installed.log_text());
        let first = *children_of(unshare.pid()).first().context("the space has a first process")?;
        let daemons: Vec<u32> = children_of(first).into_iter().filter(|pid| is_nbd_server(*pid)).collect();
        let [pid] = daemons[..] else { bail!("nbd-server has ended at once: {}", self.installed.log_text()) };
        let held = Held::open(pid).context("nbd-server has ended at once")?;
        self.spaces.push(unshare);
        self.main = Some(Main { pid, held });
        self.greets()?;
        // As the unit does, the file is written when the server serves.
        Ok(fs::write(PID_FILE, format!("{pid}\n"))?)
    }

    /// Waits until a new client is greeted. No event reports that the server listens, so this tries to connect.
    fn greets(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Ok(mut stream) = TcpStream::connect(ADDRESS) {
                stream.set_read_timeout(Some(START))?;
                let mut greeting = [0; 18];
                return stream.read_exact(&mut greeting).context("nbd-server does not greet");
            }
            ensure!(self.is_alive(), "nbd-server has ended: {}", self.installed.log_text());
            ensure!(Instant::now() < deadline, "nbd-server does not listen after {START:?}");
            // This returns early if the server ends.
            let _ = self.wait_death(PAUSE);
        }
    }

    /// Sends SIGHUP to the main process.
    pub fn reload(&self) -> Result<()> {
        self.main.as_ref().context("nbd-server was not started")?.held.signal(Signal::HUP);
        Ok(())
    }

    /// Sends SIGKILL to the main process. Its clients' children and its pid file stay. Returns when the port is free:
    /// a child whose client has not chosen an export yet also holds the port, until the child sees that the client is
    /// gone.
    pub fn kill(&mut self) -> Result<()> {
        let main = self.main.take().context("nbd-server was not started")?;
        main.held.signal(Signal::KILL);
        main.held.wait_gone(START)?;
        let deadline = Instant::now() + START;
        while let Err(error) = TcpListener::bind(ADDRESS) {
            ensure!(Instant::now() < deadline, "the port is still taken after {START:?}: {error}");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Kills and starts it.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// Whether the main process lives.
    pub fn is_alive(&self) -> bool {
        self.main.as_ref().is_some_and(|main| main.held.wait_gone(Duration::ZERO).is_err())
    }

    /// Waits for the main process to end; false if it still runs after the limit.
    pub fn wait_death(&self, limit: Duration) -> bool {
        self.main.as_ref().is_none_or(|main| main.held.wait_gone(limit).is_ok())
    }

    /// Returns the main process.
    pub fn pid(&self) -> Option<u32> {
        self.main.as_ref().map(|main| main.pid)
    }
}

fn is_nbd_server(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("usr/bin/nbd-server"))
}

/// The server in socket mode, as systemd's `Accept=yes` runs it: one process for each connection, which reads the
/// main file [`MAIN_SOCKET`] again.
#[derive(Debug)]
pub struct NbdServerPerConnection {
    stop: Arc<AtomicBool>,
    started: Arc<Mutex<Vec<u32>>>,
    accepting: Option<JoinHandle<()>>,
}

impl NbdServerPerConnection {
    /// Listens on the NBD port.
    pub fn start(installed: Installed) -> Result<NbdServerPerConnection> {
        let listener = TcpListener::bind(ADDRESS).with_context(|| format!("listening on {ADDRESS}"))?;
        fs::write(HELD, "").with_context(|| format!("writing {HELD}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let started = Arc::new(Mutex::new(Vec::new()));
        let (stopped, pids) = (Arc::clone(&stop), Arc::clone(&started));
        let accepting = std::thread::spawn(move || {
            let mut servers = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let server = stream.map_err(Into::into).and_then(|stream| serve(&installed, stream));
                // The test sees only a client that is not greeted, and this message in its output.
                match server {
                    Ok(server) => {
                        pids.lock().expect("no panic holds it").push(server.pid());
                        servers.push(server);
                    }
                    Err(error) => eprintln!("lab: no nbd-server for a connection: {error:#}"),
                }
                servers.retain_mut(|server: &mut Proc| !matches!(server.try_wait(), Ok(Some(_))));
            }
        });
        Ok(NbdServerPerConnection { stop, started, accepting: Some(accepting) })
    }

    /// Returns the processes started so far, one for each connection.
    pub fn pids(&self) -> Vec<u32> {
        self.started.lock().expect("no panic holds it").clone()
    }
}

fn serve(installed: &Installed, stream: TcpStream) -> Result<Proc> {
    // `-d`: no daemon, whose standard input would be /dev/null, and no child.
    let mut command = installed.command(&[], &["-d", "-C", MAIN_SOCKET]);
    command.stdin(OwnedFd::from(stream)).stdout(installed.log()?).stderr(installed.log()?);
    Proc::spawn("nbd-server", &mut command)
}

impl Drop for NbdServerPerConnection {
    fn drop(&mut self) {
        let _ = fs::remove_file(HELD);
        self.stop.store(true, Ordering::Release);
        // This connection wakes the thread.
        if let Ok(stream) = TcpStream::connect(ADDRESS) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

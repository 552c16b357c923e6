//! The box's nbd-servers: Debian 12's and Debian 13's, in both of their ways, each in the root of its own release.
//!
//! Every server runs as attachd-nbd without a capability, sees the lab's `/dev` and `/run`, and dies with the test:
//! a daemon and its children are kept in a process id space of their own, whose end is the test's end.

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

/// Where the signalled server's own pid is written, as its unit does it.
pub const PID_FILE: &str = "/run/attachd-nbd-server/nbd-server.pid";
/// There while the port of the socket-activated way is held, as its unit does it.
pub const HELD: &str = "/run/attachd-nbd-server/listening";
/// The folder of export files.
pub const FOLDER: &str = "/run/attachd/nbd-server.d";
/// The main file of the signalled way.
pub const MAIN: &str = "/run/lab/nbd-server/signal.conf";
/// The main file of the socket-activated way.
pub const MAIN_SOCKET: &str = "/run/lab/nbd-server/socket.conf";

const ADDRESS: &str = "127.0.0.1:10809";
/// The pid file the daemon writes itself: its number inside of its process id space.
const INNER_PID_FILE: &str = "/run/attachd-nbd-server/inner.pid";
/// Debian 13's needs up to three seconds to make its Diffie-Hellman parameters, more when the machine is busy.
const START: Duration = Duration::from_secs(30);
/// Between two looks at what nothing tells of.
const PAUSE: Duration = Duration::from_millis(5);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12: nbd-server 3.24, which dies of SIGHUP.
    Bookworm,
    /// Debian 13: nbd-server 3.26.1 with Debian's repairs.
    Trixie,
}

/// Both.
pub const RELEASES: [Release; 2] = [Release::Bookworm, Release::Trixie];

impl Release {
    fn suite(self) -> &'static str {
        match self {
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }
}

/// An nbd-server's program, its root laid into the lab's world.
#[derive(Debug, Clone)]
pub struct Installed {
    root: PathBuf,
    log: PathBuf,
}

impl Installed {
    /// Unpacks it if nobody has, and gives it the lab's `/dev`, `/run` and `/proc`.
    pub fn new(lab: &Lab, release: Release) -> Result<Installed> {
        let root = debian::unpacked(release.suite(), "nbd-server")?;
        for dir in ["dev", "run", "proc"] {
            let inside = root.join(dir);
            mount_bind(Path::new("/").join(dir), &inside).with_context(|| format!("binding {}", inside.display()))?;
        }
        fs::create_dir_all("/run/lab/nbd-server")?;
        Ok(Installed { root, log: lab.dir().join(format!("nbd-server-{}.log", release.suite())) })
    }

    /// Puts a folder of the disk in this place, for the server and for the lab.
    pub fn lay_in(&self, folder: &Path, place: &Path) -> Result<()> {
        fs::create_dir_all(place)?;
        let inside = self.root.join(place.strip_prefix("/")?);
        for place in [place, &inside] {
            mount_bind(folder, place).with_context(|| format!("binding {}", place.display()))?;
        }
        Ok(())
    }

    /// What `nbd-server -V` says.
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

    /// Whether the server, started cold with this main file, accepts its configuration; what it says when it does not.
    /// The main file must name an address that nobody can listen on, so that a server that starts ends at once.
    pub fn accepts(&self, main: &Path) -> Result<std::result::Result<(), String>> {
        // In a process id space, so that what was started has ended when the command has.
        let space = ["unshare", "--pid", "--fork", "--kill-child=KILL"];
        let pid_file = "/run/attachd-nbd-server/never.pid";
        let output = self.command(&space, &["-C", text(main)?, "-p", pid_file]).output()?;
        match output.status.code() {
            Some(0) => Ok(Ok(())),
            Some(1) => Ok(Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())),
            _ => bail!("nbd-server ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// nbd-server as user attachd-nbd in its own root; the wrapper goes in front.
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

/// The server in its signalled way: one main process, SIGHUP makes it read the files again.
#[derive(Debug)]
pub struct NbdServer {
    installed: Installed,
    main: Option<Main>,
    /// The process id spaces of all starts: a main process that was killed leaves its clients' children running.
    spaces: Vec<Proc>,
}

#[derive(Debug)]
struct Main {
    pid: u32,
    held: Held,
}

impl NbdServer {
    /// Not started yet.
    pub fn new(installed: Installed) -> NbdServer {
        NbdServer { installed, main: None, spaces: Vec::new() }
    }

    /// Starts it with the main file [`MAIN`], returns when it greets clients. Its pid is in [`PID_FILE`] then.
    pub fn start(&mut self) -> Result<()> {
        ensure!(!self.is_alive(), "nbd-server runs already: kill it first");
        // The shell stays as the space's first process, and the daemon's parent; it says when the daemon runs.
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
        // As the unit does it: written when it serves.
        Ok(fs::write(PID_FILE, format!("{pid}\n"))?)
    }

    /// Returns when a new client is greeted. Nothing tells when the server listens: only connecting does.
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
            // Ends early when the server does.
            let _ = self.wait_death(PAUSE);
        }
    }

    /// SIGHUP to the main process.
    pub fn reload(&self) -> Result<()> {
        self.main.as_ref().context("nbd-server was not started")?.held.signal(Signal::HUP);
        Ok(())
    }

    /// SIGKILL to the main process; its clients' children live on, and its pid file stays behind. Returns when the port
    /// is free: a child whose client has not chosen an export yet holds it, too, until it sees that the client is gone.
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

    /// Waits for the main process to end; false when it lives on.
    pub fn wait_death(&self, limit: Duration) -> bool {
        self.main.as_ref().is_none_or(|main| main.held.wait_gone(limit).is_ok())
    }

    /// The main process.
    pub fn pid(&self) -> Option<u32> {
        self.main.as_ref().map(|main| main.pid)
    }
}

fn is_nbd_server(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("usr/bin/nbd-server"))
}

/// The server in its socket-activated way, as systemd's `Accept=yes` runs it: one process for each connection, with the
/// main file [`MAIN_SOCKET`], which it reads anew.
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
                // A test sees a client that is not greeted, and this in its output.
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

    /// The processes started so far, one for each connection.
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
        // Wakes it.
        if let Ok(stream) = TcpStream::connect(ADDRESS) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

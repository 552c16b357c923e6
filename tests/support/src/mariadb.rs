//! A MariaDB of the test's own: its own folder, socket and user, and no TCP port.

use crate::child::Proc;
use crate::watch::{FolderWatch, readable};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The time limit for a start or an end on a loaded machine.
const SOON: Duration = Duration::from_secs(60);

/// The user that the server runs as, and that owns its files: nobody.
const OWNER: (&str, u32) = ("nobody", 65534);

/// The server and its client, from Debian's packages `mariadb-server-core` and `mariadb-client-core`, which start nothing.
const SERVER: &str = "/usr/sbin/mariadbd";
const INSTALL: &str = "/usr/bin/mariadb-install-db";
const CLIENT: &str = "/usr/bin/mariadb";

/// Small, so that a start is quick.
const SMALL: [&str; 3] =
    ["--innodb-log-file-size=4M", "--innodb-data-file-path=ibdata1:4M:autoextend", "--innodb-undo-tablespaces=0"];

/// A running MariaDB. Killed when dropped; its folder goes with it.
#[derive(Debug)]
pub struct MariaDb {
    server: Option<Proc>,
    folder: tempfile::TempDir,
    options: Vec<String>,
}

/// A client that stays connected, so that it can hold locks.
#[derive(Debug)]
pub struct Session {
    /// Ends the client when dropped.
    _client: Proc,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl MariaDb {
    /// Starts a server without any database of its own.
    pub fn start() -> Result<MariaDb> {
        MariaDb::start_with(&[])
    }

    /// As [`MariaDb::start`], with more options, which hold for each start.
    pub fn start_with(options: &[&str]) -> Result<MariaDb> {
        let folder = tempfile::Builder::new().prefix("attachd-mariadb-").tempdir()?;
        // Programs of other users reach the socket.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let data = folder.path().join("data");
        let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(template()?).arg(&data).status()?;
        ensure!(copied.success(), "copying MariaDB's empty data folder failed");
        chown(folder.path(), Some(OWNER.1), None)?;
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut mariadb = MariaDb { server: None, folder, options };
        mariadb.start_again()?;
        Ok(mariadb)
    }

    /// Starts the server that was stopped or killed.
    pub fn start_again(&mut self) -> Result<()> {
        let socket = self.socket();
        let _ = fs::remove_file(&socket);
        let watch = FolderWatch::new(self.folder.path())?;
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = Command::new(SERVER);
        command.args(["--no-defaults", "--skip-networking", "--skip-name-resolve", "--performance-schema=OFF"]);
        command.args(["--innodb-buffer-pool-size=8M", "--innodb-fast-shutdown=2", "--skip-log-bin"]).args(SMALL);
        command.arg(format!("--user={}", OWNER.0)).arg(format!("--datadir={}", self.data().display()));
        command.arg(format!("--socket={}", socket.display()));
        command.arg(format!("--pid-file={}", self.folder.path().join("pid").display())).args(&self.options);
        command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = Proc::spawn("mariadbd", &mut command)?;
        let begun = Instant::now();
        while !socket.exists() {
            readable(&[watch.fd(), server.exited_fd()], SOON)?;
            if server.try_wait()?.is_some() || begun.elapsed() > SOON {
                bail!("mariadbd did not start:\n{}", self.log());
            }
            watch.take();
        }
        self.server = Some(server);
        // The socket is there a moment before the server listens. A client that is connected waits for the end of the start.
        while let Err(error) = self.sql("", "SELECT 1") {
            if !error.to_string().contains("ERROR 2002") || begun.elapsed() > SOON {
                return Err(error.context(self.log()));
            }
        }
        Ok(())
    }

    /// Ends the server in order.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        server.signal(Signal::TERM)?;
        server.wait(SOON).map(drop)
    }

    /// Kills the server.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), |mut server| server.kill())
    }

    /// Stops the server's threads, or lets them run again: a server that does not answer.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let server = self.server.as_ref().context("it does not run")?;
        server.signal(if frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Where the server listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The address of the server as attachd's configuration has it.
    pub fn url(&self) -> String {
        format!("mysql://{}", self.socket().display())
    }

    /// What the server has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn client(&self, user: &str, database: &str) -> Command {
        let mut command = Command::new(CLIENT);
        command.args(["--no-defaults", "--batch", "--skip-column-names", "--unbuffered"]).arg(format!("--user={user}"));
        command.arg(format!("--socket={}", self.socket().display())).arg(format!("--database={database}"));
        command
    }

    /// Runs statements as MariaDB's root, and returns what they show: a line for each row, tabs between columns.
    pub fn sql(&self, database: &str, text: &str) -> Result<String> {
        let mut command = self.client("root", database);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        client.stdin.take().context("it is piped")?.write_all(text.as_bytes())?;
        let output = client.wait_with_output()?;
        ensure!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Connects a client that stays, as MariaDB's root.
    pub fn session(&self, database: &str) -> Result<Session> {
        self.connected(self.client("root", database))
    }

    /// Connects a client that stays, as another user.
    pub fn session_of(&self, user: &str, password: &str, database: &str) -> Result<Session> {
        let mut command = self.client(user, database);
        command.env("MYSQL_PWD", password);
        self.connected(command)
    }

    #[expect(clippy::unused_self, reason = "a client lives no longer than its server")]
    fn connected(&self, mut command: Command) -> Result<Session> {
        let mut client = Proc::spawn("mariadb", command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let input = client.take_stdin().context("it is piped")?;
        let output = BufReader::new(client.take_stdout().context("it is piped")?);
        Ok(Session { _client: client, input, output })
    }

    /// The number of statements that the server has been sent since its start, and of connections.
    pub fn counted(&self) -> Result<(u64, u64)> {
        let shown = self.sql("", "SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Connections')")?;
        let number = |name: &str| {
            let line = shown.lines().find_map(|line| line.strip_prefix(name)).context("it is counted")?;
            line.trim().parse::<u64>().context("a number")
        };
        Ok((number("Questions")?, number("Connections")?))
    }
}

impl Session {
    /// Runs a statement and returns when it is done.
    pub fn run(&mut self, text: &str) -> Result<()> {
        writeln!(self.input, "{text}; SELECT 'done';")?;
        self.input.flush()?;
        let mut line = String::new();
        while line.trim_end() != "done" {
            line.clear();
            ensure!(self.output.read_line(&mut line)? > 0, "{text}: the client has ended");
        }
        Ok(())
    }
}

/// Returns an empty data folder, made once on this machine for each version.
fn template() -> Result<PathBuf> {
    let version = Command::new(SERVER).arg("--version").output();
    let version = version.context("MariaDB is not installed: `make setup` installs mariadb-server-core")?;
    let version = String::from_utf8(version.stdout)?;
    let version = version.split_whitespace().nth(2).context("mariadbd tells its version")?;
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/mariadb");
    fs::create_dir_all(&base)?;
    let made = base.join(version);
    let lock = File::create(base.join("lock"))?;
    lock.lock()?;
    if !made.exists() {
        // A folder that a killed test has left is half of one. The server's user cannot reach the folder of the sources.
        let new = tempfile::tempdir()?;
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755))?;
        let data = new.path().join("data");
        let mut install = Command::new(INSTALL);
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]).args(SMALL);
        let output =
            install.arg(format!("--user={}", OWNER.0)).arg(format!("--datadir={}", data.display())).output()?;
        ensure!(output.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&output.stdout));
        let beside = base.join(format!("{version}.new"));
        let _ = fs::remove_dir_all(&beside);
        let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(&data).arg(&beside).status()?;
        ensure!(copied.success(), "copying to {}", beside.display());
        fs::rename(&beside, &made)?;
    }
    Ok(made)
}

//! A cable to another host, which can be cut without either side noticing.

use crate::child::Proc;
use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

/// The address of this host's end.
pub const NEAR: &str = "10.77.0.1";

/// The other host: a network namespace at the other end of the cable.
#[derive(Debug)]
pub struct Cable {
    far: Proc,
    network: File,
}

impl Cable {
    /// Makes the other host and connects it.
    pub fn new() -> Result<Cable> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo up; exec sleep infinity"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut far = Proc::spawn("the other host", &mut command)?;
        BufReader::new(far.take_stdout().context("piped")?).read_line(&mut String::new())?;
        let pid = far.pid().to_string();
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        let cable = Cable { far, network };
        ip(&["link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns", &pid])?;
        ip(&["address", "add", &format!("{NEAR}/24"), "dev", "near0"])?;
        ip(&["link", "set", "near0", "up"])?;
        cable.far_ip(&["address", "add", "10.77.0.2/24", "dev", "far0"])?;
        cable.far_ip(&["link", "set", "far0", "up"])?;
        Ok(cable)
    }

    /// Runs `what` on the other host, for instance to open a connection, which then belongs to that host.
    ///
    /// # Panics
    /// If `what` panics.
    pub fn from_there<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let there = || {
            move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
            what()
        };
        std::thread::scope(|scope| scope.spawn(there).join().expect("what is done there"))
    }

    /// Cuts the cable: from now on no packet passes, not even the end of a connection.
    pub fn cut(&self) -> Result<()> {
        self.far_ip(&["link", "set", "far0", "down"])
    }

    fn far_ip(&self, arguments: &[&str]) -> Result<()> {
        let pid = self.far.pid().to_string();
        run("nsenter", &[&["-t", &pid, "-n", "ip"], arguments].concat())
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| format!("is {program} installed?"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

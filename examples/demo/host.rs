//! The host of the daemon: users, nodes, mounts, ports.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::Disk;
use lab::people::{ATTACHD, NBD, Person};

use crate::stage::Stage;

const NBD_PORT: &str = "10809";

/// Shows the users of the processes, as the kernel sees them.
pub(crate) fn users_are_unprivileged(stage: &mut Stage) -> Result<()> {
    let nbdkit = stage.lab.nbdkit_pid().context("nbdkit does not run")?;
    for (name, pid, person) in [("attachd", stage.attachd.pid()?, ATTACHD), ("nbdkit", nbdkit, NBD)] {
        let result = unprivileged(pid, name, person);
        stage.checks.add(&format!("{name} runs as {}, without capabilities", person.name), result);
    }
    Ok(())
}

fn unprivileged(pid: u32, name: &str, person: Person) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(|values| values.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    };
    println!("     /proc/{pid}/status of {}:", field("Name"));
    for keys in [["Uid", "Gid", "Groups"], ["CapPrm", "CapEff", "CapBnd"], ["CapInh", "CapAmb", "NoNewPrivs"]] {
        println!("       {}", keys.map(|key| format!("{key}: {}", field(key))).join("  "));
    }
    ensure!(field("Name") == name, "pid {pid} is {}", field("Name"));
    // The real, effective, saved and file system ids.
    let four = [person.id.to_string().as_str(); 4].join(" ");
    ensure!(field("Uid") == four && field("Gid") == four, "uid {}, gid {}", field("Uid"), field("Gid"));
    ensure!(field("Groups").is_empty(), "it is in further groups: {}", field("Groups"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(field(set).chars().all(|digit| digit == '0'), "{set} is {}", field(set));
    }
    ensure!(field("NoNewPrivs") == "1", "it could gain privileges");
    Ok(format!("uid and gid {}", person.id))
}

/// Checks that udev's rule has given the claimed disk to the NBD server's group, and to nobody else.
pub(crate) fn check_marked(stage: &mut Stage, disk: &Disk) {
    let node = disk.node();
    let marked = || -> Result<String> {
        let meta = std::fs::metadata(&node)?;
        ensure!(meta.file_type().is_block_device(), "{} is no block device", node.display());
        let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        ensure!((uid, gid, mode) == (0, NBD.id, 0o660), "{} is {uid}:{gid} {mode:o}", node.display());
        Ok(format!("{} root:{} mode 0{mode:o}", node.display(), NBD.name))
    };
    let result = marked();
    stage.checks.add("udev's rule gives the claimed disk to the NBD server", result);
}

/// Runs `ss -ltn` in the network namespace of both programs.
pub(crate) fn nbd_port_on_loopback_only(stage: &mut Stage) {
    let result = listeners();
    stage.checks.add("the NBD port is open on loopback only", result);
}

fn listeners() -> Result<String> {
    let text = run("ss", &["-ltn"], "")?;
    text.lines().for_each(|line| println!("     {}", line.trim_end()));
    // State, Recv-Q, Send-Q, local address, peer address.
    let local: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3)).collect();
    let nbd: Vec<&str> = local.into_iter().filter(|at| at.rsplit(':').next() == Some(NBD_PORT)).collect();
    ensure!(!nbd.is_empty(), "nobody listens on port {NBD_PORT}");
    let outside = nbd.iter().find(|at| !at.starts_with("127.") && !at.starts_with("[::1]"));
    ensure!(outside.is_none(), "{outside:?} can be reached from outside");
    Ok(nbd.join(", "))
}

/// Writes a GPT label with two partitions into the disk's file, before the disk is attached.
pub(crate) fn write_partition_table(image: &Path) -> Result<()> {
    let table = "label: gpt\nstart=1MiB, size=4MiB\nstart=6MiB, size=4MiB\n";
    run("sfdisk", &["--quiet", &image.to_string_lossy()], table).map(drop)
}

/// Makes a file system in the disk's file, before the disk is attached.
pub(crate) fn make_ext4(image: &Path) -> Result<()> {
    run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()], "").map(drop)
}

/// A mounted disk. It is unmounted when this is dropped, even if a scene fails.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(node: &Path, place: &Path) -> Result<Self> {
        std::fs::create_dir_all(place)?;
        run("mount", &[&node.to_string_lossy(), &place.to_string_lossy()], "")?;
        Ok(Self(place.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[&self.0.to_string_lossy()], "") {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a program with an input and returns its output.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("running {program}: is it installed?"))?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

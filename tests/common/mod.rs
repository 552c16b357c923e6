//! What the system tests share: a lab with nbdkit and the daemon in it, and the words they use.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::child::Proc;
use lab::nbd_server::{Installed, MAIN, NbdServer, Release};
use lab::{Api, Attachd, AttachdOptions, Disk, Lab, Volume};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longer than anything takes that works; a test that waits as long has failed.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const MIB: u64 = 1 << 20;

/// The daemon under test.
pub(crate) fn bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_attachd"))
}

/// The configuration of every lab: loop devices in place of virtio disks.
pub(crate) const CONFIG: &str = "[device]\nschemes = [\"loop\"]\n";

/// A lab whose NBD server runs.
pub(crate) fn with_nbdkit() -> Lab {
    let mut lab = Lab::new();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    lab
}

/// A lab whose NBD server and daemon run.
pub(crate) fn up() -> (Lab, Attachd, Api) {
    let lab = with_nbdkit();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, attachd, api)
}

/// An nbd-server that is told by a signal, in nbdkit's place, and the configuration for it.
pub(crate) fn signalled(lab: &Lab) -> NbdServer {
    let installed = Installed::new(lab, Release::Trixie).unwrap();
    std::fs::write(MAIN, include_str!("../../packaging/nbd-server/signal.conf")).unwrap();
    let version = installed.package_version().unwrap();
    let version = version.split_once(':').map_or(version.as_str(), |(_, rest)| rest);
    let export = format!("backend = \"nbd-server\"\nmode = \"signal\"\nnbd_server_version = \"{version}\"");
    lab.attachd_config(&format!("{CONFIG}[export]\n{export}\nmain_file = \"{MAIN}\"\n")).unwrap();
    let mut server = NbdServer::new(installed);
    server.start().unwrap();
    server
}

pub(crate) fn start(lab: &Lab) -> Attachd {
    lab.attachd_start(bin(), &AttachdOptions::default()).unwrap()
}

/// A start that cannot succeed: what the daemon says.
pub(crate) fn start_fails(lab: &Lab) -> String {
    let options = AttachdOptions { wait_ready: false, ..Default::default() };
    let mut attachd = lab.attachd_start(bin(), &options).unwrap();
    let status = attachd.wait_exit(SOON).unwrap();
    assert!(!status.success());
    attachd.stderr_text()
}

/// Announces a volume.
pub(crate) fn intend(api: &Api, volume: &Volume) -> Value {
    api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap().expect(201).unwrap()
}

/// Waits for a state and returns the volume.
pub(crate) fn wait(api: &Api, volume: &Volume, state: &str) -> Value {
    api.wait_volume(&volume.id, state, SOON).unwrap()
}

/// Waits until a volume has this reason for not being served, and returns it.
pub(crate) fn wait_reason(api: &Api, volume: &Volume, code: &str) -> Value {
    let mut events = api.events().unwrap();
    let shown = show(api, volume);
    if shown["reason"]["code"] == code {
        return shown;
    }
    let told = |event: &Value| event["volume_id"] == volume.id && event["reason"]["code"] == code;
    events.wait_for(told, SOON).unwrap_or_else(|error| panic!("{code}: {error:#}\n{:#}", show(api, volume)));
    show(api, volume)
}

pub(crate) fn show(api: &Api, volume: &Volume) -> Value {
    api.get(&format!("/api/v1/volumes/{}", volume.id)).unwrap().expect(200).unwrap()
}

pub(crate) fn withdraw(api: &Api, volume: &Volume) -> Value {
    api.delete(&format!("/api/v1/intents/{}", volume.id)).unwrap().expect(200).unwrap()
}

pub(crate) fn health(api: &Api) -> Value {
    api.get("/api/v1/health").unwrap().json
}

pub(crate) fn resync(api: &Api) {
    api.post("/api/v1/resync", &json!({})).unwrap().expect(200).unwrap();
}

/// A volume that is announced and attached.
pub(crate) fn attached(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let volume = lab.volume();
    intend(api, &volume);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    (volume, disk)
}

/// A volume that is announced when its disk is there already.
pub(crate) fn announced_late(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let volume = lab.volume();
    let disk = lab.settled_disk(&volume.serial, MIB).unwrap();
    intend(api, &volume);
    (volume, disk)
}

/// A volume that is announced, attached and served.
pub(crate) fn served(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let (volume, disk) = attached(lab, api);
    wait(api, &volume, "ready");
    (volume, disk)
}

/// The names of the steps in a volume's story.
pub(crate) fn story(volume: &Value) -> Vec<String> {
    let timeline = volume["timeline"].as_array().unwrap();
    timeline.iter().map(|entry| entry["event"].as_str().unwrap().to_owned()).collect()
}

pub(crate) const HELPER_SOCKET: &str = "/run/attachd/helper.sock";

/// The helper, as root, as its unit starts it. Ends with the test, also with one that is killed.
pub(crate) struct Helper {
    process: Proc,
    /// What it said is shown with a test that fails, not between the lines of the others.
    said: Option<File>,
}

impl Helper {
    pub(crate) fn start() -> Self {
        let said = tempfile::tempfile().unwrap();
        let mut helper = Self::start_with(said.try_clone().unwrap().into());
        helper.said = Some(said);
        helper
    }

    /// The same with another place for what it says.
    pub(crate) fn start_with(stderr: Stdio) -> Self {
        let _ = std::fs::remove_file(HELPER_SOCKET);
        let folder = lab::watch::FolderWatch::new(std::path::Path::new("/run/attachd")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_attachd-helper"));
        command.args(["--socket", HELPER_SOCKET]).stderr(stderr);
        let child = Proc::spawn("attachd-helper", &mut command).unwrap();
        while !std::path::Path::new(HELPER_SOCKET).exists() {
            assert!(lab::watch::readable(&[folder.fd()], SOON).unwrap(), "the helper has made no socket");
            folder.take();
        }
        // As attachd-helper.socket has it.
        std::os::unix::fs::chown(HELPER_SOCKET, Some(lab::people::ATTACHD.id), None).unwrap();
        // The file is there a moment before it can be connected to, and nothing tells when.
        let begun = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(HELPER_SOCKET).is_err() {
            assert!(begun.elapsed() < SOON);
            std::thread::yield_now();
        }
        Self { process: child, said: None }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(said) = self.said.as_mut().filter(|_| std::thread::panicking()) {
            let mut text = String::new();
            let _ = said.rewind().and_then(|()| said.read_to_string(&mut text));
            println!("the helper said:\n{text}");
        }
    }
}

/// The same with the helper there from the start.
pub(crate) fn up_with_helper() -> (Lab, Attachd, Api, Helper) {
    let lab = with_nbdkit();
    let helper = Helper::start();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, attachd, api, helper)
}

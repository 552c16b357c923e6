//! What the system tests share: a lab with nbdkit and the daemon in it, and common helpers.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

pub(crate) mod attachctl;
pub(crate) mod cloud;
pub(crate) mod predecessor;

use std::io::Read;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::child::Proc;
use lab::nbd_server::{Installed, MAIN, NbdServer, Release};
use lab::{Api, Attachd, AttachdOptions, Certificates, Disk, Lab, Volume, people};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longer than anything that works takes; a test that waits this long has failed.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const MIB: u64 = 1 << 20;

/// The daemon under test.
pub(crate) fn bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_attachd"))
}

/// The configuration of every lab: loop devices in place of virtio disks.
pub(crate) const CONFIG: &str = "[device]\nschemes = [\"loop\"]\n";

/// Makes a lab whose NBD server runs.
pub(crate) fn with_nbdkit() -> Lab {
    let mut lab = Lab::new();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    lab
}

/// Makes a lab whose NBD server and daemon run.
pub(crate) fn up() -> (Lab, Attachd, Api) {
    let lab = with_nbdkit();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, attachd, api)
}

/// Starts an nbd-server in signal mode in place of nbdkit, with the configuration for it.
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

/// Starts a daemon that must fail, and returns its messages.
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

/// Waits until a volume has this reason for not being served, and returns the volume.
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

/// Makes a volume that is announced and then attached.
pub(crate) fn attached(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let volume = lab.volume();
    intend(api, &volume);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    (volume, disk)
}

/// Makes a volume that is announced after its disk is attached.
pub(crate) fn announced_late(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let volume = lab.volume();
    let disk = lab.settled_disk(&volume.serial, MIB).unwrap();
    intend(api, &volume);
    (volume, disk)
}

/// Makes a volume that is announced, attached and served.
pub(crate) fn served(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let (volume, disk) = attached(lab, api);
    wait(api, &volume, "ready");
    (volume, disk)
}

/// Returns the names of the steps in a volume's story.
pub(crate) fn story(volume: &Value) -> Vec<String> {
    let timeline = volume["timeline"].as_array().unwrap();
    timeline.iter().map(|entry| entry["event"].as_str().unwrap().to_owned()).collect()
}

/// Mounts a disk in a mount namespace of its own, until the returned process ends.
pub(crate) fn mounted_elsewhere(node: &Path) -> Proc {
    let script = format!("mount {} /mnt && echo mounted && exec cat", node.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let mut process = Proc::spawn("mount", command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    process.take_stdout().unwrap().read_exact(&mut [0; 7]).unwrap();
    process
}

pub(crate) const HELPER_SOCKET: &str = lab::helper::SOCKET;

/// A helper that ends when this is dropped.
pub(crate) struct Helper(lab::Helper);

impl Helper {
    pub(crate) fn start() -> Self {
        Self(lab::Helper::start(helper_bin()).unwrap())
    }

    /// As [`Helper::start`], with another standard error.
    pub(crate) fn start_with(stderr: Stdio) -> Self {
        Self(lab::Helper::start_with(helper_bin(), stderr).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.0.signal(signal).unwrap();
    }
}

fn helper_bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_attachd-helper"))
}

/// Makes a lab whose NBD server and daemon run, without a helper.
pub(crate) fn up_without_helper() -> (Lab, Attachd, Api) {
    let lab = with_nbdkit();
    lab.without_helper();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, attachd, api)
}

/// The same, with a helper that the test controls.
pub(crate) fn up_with_helper() -> (Lab, Attachd, Api, Helper) {
    let lab = with_nbdkit();
    let helper = Helper::start();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, attachd, api, helper)
}

/// Makes certificates of one authority, for the NBD server and for attachd.
pub(crate) fn certificates(lab: &Lab, name: &str) -> Certificates {
    let all = Certificates::make(&lab.dir().join(name), "127.0.0.1").unwrap();
    chown(all.file("server-key.pem"), Some(people::NBD.id), None).unwrap();
    chown(all.file("client-key.pem"), Some(people::ATTACHD.id), None).unwrap();
    all
}

/// Starts nbdkit with these certificates, for clients that have one.
pub(crate) fn serve_with(lab: &mut Lab, certificates: &Certificates) {
    let folder = format!("--tls-certificates={}", certificates.folder().display());
    lab.nbdkit_start_with(&["--tls=require", "--tls-verify-peer", &folder]).unwrap();
}

/// Returns a configuration with these certificates.
pub(crate) fn config_with(certificates: &Certificates) -> String {
    let [ca, certificate, key] =
        ["ca-cert.pem", "client-cert.pem", "client-key.pem"].map(|name| certificates.file(name));
    format!("{CONFIG}[export]\ntls_ca = {ca:?}\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n")
}

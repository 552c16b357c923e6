//! attachd-helper: what it does for attachd, and every request that it refuses.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use lab::child::Proc;
use lab::people::{ATTACHD, NBD};
use lab::{Disk, DiskOptions, Lab};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::thread::set_thread_res_uid;
use serde_json::{Value, json};

const SOCKET: &str = "/run/attachd/helper.sock";
const PID_FILE: &str = "/run/attachd-nbd-server/nbd-server.pid";
const HOST_DISKS: &str = "/etc/attachd/host-disks";

/// The helper as its units run it. The test holds its socket, as systemd does.
struct Helper {
    socket: UnixListener,
    process: Proc,
    log: PathBuf,
}

impl Helper {
    fn start(lab: &Lab) -> Self {
        let socket = UnixListener::bind(SOCKET).unwrap();
        // Every user may connect, so the helper itself must refuse other users.
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o666)).unwrap();
        let log = lab.dir().join("helper.log");
        let process = activate(&socket, &log);
        Self { socket, process, log }
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

fn activate(socket: &UnixListener, log: &Path) -> Proc {
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    // LISTEN_PID must be the service's own pid, so the shell sets it and then becomes the service.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec setpriv --no-new-privs --inh-caps=-all \
        --bounding-set=-all,+sys_ptrace,+dac_read_search,+kill -- \"$0\" 3<&0 0</dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_attachd-helper")]);
    command.stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap())).stdout(Stdio::null()).stderr(log);
    Proc::spawn("attachd-helper", &mut command).unwrap()
}

/// Sends a request as attachd does.
fn ask(line: &str) -> Value {
    ask_as(ATTACHD.id, format!("{line}\n").as_bytes())
}

fn ask_as(uid: u32, bytes: &[u8]) -> Value {
    as_user(uid, || exchange(bytes))
}

/// Runs this in a thread of another user: on Linux each thread has its own user id.
fn as_user<T: Send>(uid: u32, what: impl FnOnce() -> T + Send) -> T {
    let become_user = move || {
        let uid = rustix::process::Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid).unwrap();
    };
    thread::scope(|scope| {
        scope
            .spawn(move || {
                become_user();
                what()
            })
            .join()
            .unwrap()
    })
}

fn exchange(bytes: &[u8]) -> Value {
    let mut stream = UnixStream::connect(SOCKET).unwrap();
    // The request may be longer than the helper reads; then it closes the connection early.
    let _ = stream.write_all(bytes);
    receive(&mut stream)
}

/// Returns the answer, which must be one line and nothing more.
fn receive(stream: &mut UnixStream) -> Value {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = Vec::new();
    // Unread bytes of the request reset the connection after the answer.
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8(answer).unwrap();
    serde_json::from_str(text.strip_suffix('\n').unwrap_or_else(|| panic!("not a line: {text:?}"))).unwrap()
}

fn group(disk: &Disk) -> u32 {
    fs::metadata(disk.node()).unwrap().gid()
}

fn number(disk: &Disk) -> String {
    let (major, minor) = disk.devnum();
    format!("{major}:{minor}")
}

/// Asks for a retrigger and returns when udevd has finished with the disks.
fn retriggered(lab: &Lab, disks: &[&Disk]) {
    let ear = lab.bare_listener().unwrap();
    let answer = ask(&format!("retrigger {}", disks[0].serial()));
    let numbers: Vec<String> = disks.iter().map(|disk| number(disk)).collect();
    assert_eq!(answer, json!({ "ok": true, "devices": numbers }));
    let mut missing: Vec<PathBuf> = disks.iter().map(|disk| disk.node()).collect();
    while !missing.is_empty() {
        let is_ours = |heard: &lab::Heard| heard.get("ACTION") == "add" && heard.get("DEVTYPE") == "disk";
        let heard = ear.wait_for(SOON, is_ours).unwrap();
        missing.retain(|node| node != Path::new(heard.get("DEVNAME")));
    }
}

fn attached(lab: &Lab) -> Disk {
    let mut disk = lab.disk(&lab.volume().serial, MIB).unwrap();
    lab.attach_settled(&mut disk).unwrap();
    disk
}

#[test]
fn a_disk_claimed_late_is_marked_and_gets_its_old_group_back_when_the_claim_is_gone() {
    let lab = Lab::new();
    let helper = Helper::start(&lab);
    let disk = attached(&lab);
    let old = group(&disk);
    assert_ne!(old, NBD.id);
    lab.claim(disk.serial()).unwrap();
    retriggered(&lab, &[&disk]);
    assert_eq!(group(&disk), NBD.id);
    lab.unclaim(disk.serial()).unwrap();
    retriggered(&lab, &[&disk]);
    assert_eq!(group(&disk), old);
    // The claim is gone, so a retrigger is refused.
    assert_eq!(ask(&format!("retrigger {}", disk.serial()))["code"], "NOT_CLAIMED");
    let story = helper.log_text();
    let done = format!("uid {} pid {} asked \"retrigger {}\"", ATTACHD.id, std::process::id(), disk.serial());
    assert_eq!(story.lines().filter(|line| line.starts_with(&done)).count(), 3, "{story}");
}

#[test]
fn a_disk_that_is_unclaimed_absent_or_the_hosts_is_not_touched() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    let code = |serial: &str| ask(&format!("retrigger {serial}"))["code"].clone();
    assert_eq!(code(disk.serial()), "NOT_CLAIMED");
    lab.claim(disk.serial()).unwrap();
    lab.host_disk(disk.serial()).unwrap();
    assert_eq!(code(disk.serial()), "IN_USE_BY_HOST");
    let absent = lab.volume();
    assert_eq!(code(&absent.serial), "NOT_CLAIMED");
    lab.claim(&absent.serial).unwrap();
    assert_eq!(code(&absent.serial), "NOT_PRESENT");
    assert_ne!(group(&disk), NBD.id);
}

#[test]
fn a_claimed_disk_that_is_mounted_is_not_given_to_the_nbd_servers() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let mut disk = lab.disk(&lab.volume().serial, 8 * MIB).unwrap();
    lab.attach_settled(&mut disk).unwrap();
    let place = lab.dir().join("mounted");
    fs::create_dir(&place).unwrap();
    run("mkfs.ext4", &["-q", "-F", disk.node().to_str().unwrap()]);
    run("mount", &[disk.node().to_str().unwrap(), place.to_str().unwrap()]);
    lab.claim(disk.serial()).unwrap();
    let refused = ask(&format!("retrigger {}", disk.serial()));
    assert_eq!(refused["code"], "IN_USE_BY_HOST");
    assert!(refused["error"].as_str().unwrap().contains(place.to_str().unwrap()), "{refused}");
    assert_ne!(group(&disk), NBD.id);
    run("umount", &[place.to_str().unwrap()]);
    retriggered(&lab, &[&disk]);
}

#[test]
fn two_disks_with_one_serial_are_not_marked_but_both_are_unmarked() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    let old = group(&disk);
    let mut twin = lab.disk_with(disk.serial(), MIB, DiskOptions { seed: Some(7), ..Default::default() }).unwrap();
    lab.attach_settled(&mut twin).unwrap();
    lab.claim(disk.serial()).unwrap();
    let refused = ask(&format!("retrigger {}", disk.serial()));
    assert_eq!(refused["code"], "DUPLICATE");
    for name in [disk.node(), twin.node()] {
        assert!(refused["error"].as_str().unwrap().contains(name.file_name().unwrap().to_str().unwrap()), "{refused}");
    }
    lab.retrigger(&disk).unwrap();
    lab.retrigger(&twin).unwrap();
    assert_eq!([group(&disk), group(&twin)], [NBD.id; 2]);
    lab.unclaim(disk.serial()).unwrap();
    let mut both = [&disk, &twin];
    both.sort_by_key(|disk| disk.devnum());
    retriggered(&lab, &both);
    assert_eq!([group(&disk), group(&twin)], [old; 2]);
}

#[test]
fn the_helper_answers_only_attachd_and_root() {
    let lab = Lab::new();
    let helper = Helper::start(&lab);
    let disk = attached(&lab);
    lab.claim(disk.serial()).unwrap();
    let line = format!("retrigger {}\n", disk.serial());
    for stranger in [65534, NBD.id] {
        let refused = ask_as(stranger, line.as_bytes());
        assert_eq!((&refused["ok"], &refused["code"]), (&json!(false), &json!("NOT_ALLOWED")));
        assert!(helper.log_text().contains(&format!("uid {stranger} ")), "{}", helper.log_text());
    }
    assert_ne!(group(&disk), NBD.id);
    assert_eq!(ask_as(0, line.as_bytes())["ok"], true);
}

#[test]
fn the_client_of_an_export_is_named_and_mere_candidates_are_marked() {
    let mut lab = Lab::new();
    lab.nbdkit_start().unwrap();
    let _helper = Helper::start(&lab);
    let [(busy, busy_export), (other, other_export)] = [(); 2].map(|()| {
        let volume = lab.volume();
        lab.claim(&volume.serial).unwrap();
        let mut disk = lab.disk(&volume.serial, MIB).unwrap();
        lab.attach_settled(&mut disk).unwrap();
        lab.publish(&volume.export(), &disk.link()).unwrap();
        (disk, volume.export())
    });
    let holders = |disk: &Disk| ask(&format!("holders {}", number(disk)));
    assert_eq!(holders(&busy)["code"], "NOT_OPEN");

    let first = lab.nbd_client(&busy_export).unwrap();
    let address = connected();
    assert_eq!(holders(&busy), json!({ "ok": true, "open": 1, "clients": address, "exact": true }));
    assert_eq!(holders(&other)["code"], "NOT_OPEN");
    let second = lab.nbd_client(&busy_export).unwrap();
    let both = holders(&busy);
    assert_eq!((&both["open"], &both["exact"]), (&json!(2), &json!(true)));
    assert_eq!(both["clients"].as_array().unwrap().len(), 2);

    let third = lab.nbd_client(&other_export).unwrap();
    let candidates = holders(&other);
    assert_eq!((&candidates["open"], &candidates["exact"]), (&json!(1), &json!(false)));
    assert_eq!(candidates["clients"].as_array().unwrap().len(), 3);
    drop((first, second, third));
    eventually(|| holders(&busy)["code"] == "NOT_OPEN");
    assert_eq!(ask("holders 1:3")["code"], "NOT_OPEN", "a number no disk has");
}

/// Every process of an NBD server counts: one that outlived its main process has no pid file and still has its
/// client. attachd proves exports by connecting as any client does.
#[test]
fn attachds_own_handshakes_do_not_count_as_clients() {
    let mut lab = Lab::new();
    let _helper = Helper::start(&lab);
    lab.nbdkit_start().unwrap();
    let disk = attached(&lab);
    lab.claim(disk.serial()).unwrap();
    retriggered(&lab, &[&disk]);
    lab.publish("x", &disk.node()).unwrap();
    let handshake = as_user(ATTACHD.id, || lab.nbd_client("x").unwrap());
    let request = format!("holders {}", number(&disk));
    assert_eq!(ask(&request)["code"], "NOT_OPEN");
    let client = lab.nbd_client("x").unwrap();
    let answer = ask(&request);
    assert_eq!(answer["clients"].as_array().unwrap().len(), 1, "{answer}");
    drop((handshake, client));
}

#[test]
fn an_nbd_server_without_a_pid_file_is_seen_holding_a_disk() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    let script = format!("exec 7<>{}; echo open; read", disk.node().display());
    let (mut server, _said) = nbd_server(&lab, &script);
    let held = json!({ "ok": true, "open": 1, "clients": [], "exact": false });
    assert_eq!(ask(&format!("holders {}", number(&disk))), held);
    server.kill().unwrap();
    assert_eq!(ask(&format!("holders {}", number(&disk)))["code"], "NOT_OPEN");
}

/// Returns the helper's answer to `exclusive` for a disk.
fn exclusive(disk: &Disk) -> Value {
    ask(&format!("exclusive {} {}", number(disk), disk.serial()))
}

/// Makes a disk that is claimed and marked.
fn marked(lab: &Lab, size: u64) -> Disk {
    let volume = lab.volume();
    lab.claim(&volume.serial).unwrap();
    let mut disk = lab.disk(&volume.serial, size).unwrap();
    lab.attach_settled(&mut disk).unwrap();
    assert_eq!(group(&disk), NBD.id);
    disk
}

/// Opens a device exclusively, in a way that no table shows.
fn opened_alone(node: &Path) -> fs::File {
    let exclusively = rustix::fs::OFlags::EXCL.bits().cast_signed();
    fs::File::options().read(true).custom_flags(exclusively).open(node).unwrap()
}

#[test]
fn a_marked_disk_is_free_unless_it_or_a_partition_is_open_exclusively() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = marked(&lab, 16 * MIB);
    let partition = disk.add_partition(1, MIB, 12 * MIB).unwrap();
    let diskseq = disk.diskseq().unwrap();
    let free = json!({ "ok": true, "diskseq": diskseq });
    assert_eq!(exclusive(&disk), free);
    let plainly = [disk.node(), partition.clone()].map(|node| fs::File::open(node).unwrap());
    assert_eq!(exclusive(&disk), free, "the control: as an NBD server has it open");
    for node in [disk.node(), partition] {
        let somebody = opened_alone(&node);
        let used = exclusive(&disk);
        assert_eq!(used["code"], "IN_USE_BY_HOST", "{used}");
        drop(somebody);
        assert_eq!(exclusive(&disk), free, "{} is let go", node.display());
    }
    drop(plainly);
}

/// No table that can be read from outside shows the mount.
#[test]
fn a_disk_that_is_mounted_in_another_namespace_is_not_free() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = marked(&lab, 8 * MIB);
    run("mkfs.ext4", &["-q", "-F", disk.node().to_str().unwrap()]);
    let elsewhere = mounted_elsewhere(&disk.node());
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!table.contains(disk.node().to_str().unwrap()), "the control: {table}");
    assert_eq!(exclusive(&disk)["code"], "IN_USE_BY_HOST");
    drop(elsewhere);
    eventually(|| exclusive(&disk)["ok"] == true);
}

/// A compromised attachd can ask only about claimed and marked disks, and the helper opens no other disk, even for a
/// moment.
#[test]
fn a_disk_is_opened_only_if_it_is_claimed_marked_and_not_the_hosts() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = marked(&lab, 16 * MIB);
    let code = |number: &str, serial: &str| ask(&format!("exclusive {number} {serial}"))["code"].clone();
    let here = number(&disk);
    assert_eq!(exclusive(&disk)["ok"], true, "the control");

    let other = marked(&lab, MIB);
    assert_eq!(code(&number(&other), disk.serial()), "NOT_PRESENT", "another disk's number");
    assert_eq!(code("1:3", disk.serial()), "NOT_PRESENT", "a number no disk has");
    let partition = disk.add_partition(1, MIB, 8 * MIB).unwrap();
    let part = fs::metadata(&partition).unwrap().rdev();
    let part = format!("{}:{}", rustix::fs::major(part), rustix::fs::minor(part));
    assert_eq!(code(&part, disk.serial()), "NOT_PRESENT", "a partition");

    // Another file at the node's path is never opened, whatever its kind. A pipe would block the program that opens
    // it.
    let aside = disk.node().with_extension("aside");
    fs::rename(disk.node(), &aside).unwrap();
    run("mknod", &[disk.node().to_str().unwrap(), "p"]);
    assert_eq!(code(&here, disk.serial()), "NODE_ELSEWHERE", "a pipe");
    fs::remove_file(disk.node()).unwrap();
    run("mknod", &[disk.node().to_str().unwrap(), "c", "1", "3"]);
    assert_eq!(code(&here, disk.serial()), "NODE_ELSEWHERE", "a character device");
    fs::remove_file(disk.node()).unwrap();
    symlink(&aside, disk.node()).unwrap();
    assert_eq!(code(&here, disk.serial()), "NODE_ELSEWHERE", "a link, wherever it leads");
    fs::remove_file(disk.node()).unwrap();
    assert_eq!(code(&here, disk.serial()), "NOT_PRESENT");
    fs::rename(&aside, disk.node()).unwrap();

    let claim = Path::new("/var/lib/attachd/claims").join(disk.serial());
    fs::remove_file(&claim).unwrap();
    assert_eq!(code(&here, disk.serial()), "NOT_CLAIMED");
    symlink("/etc/shadow", &claim).unwrap();
    assert_eq!(code(&here, disk.serial()), "NOT_CLAIMED", "a link is no claim, and tells nothing of what it leads to");
    fs::remove_file(&claim).unwrap();
    lab.claim(disk.serial()).unwrap();
    lab.host_disk(disk.serial()).unwrap();
    assert_eq!(code(&here, disk.serial()), "IN_USE_BY_HOST");
    fs::remove_file(Path::new(HOST_DISKS).join(disk.serial())).unwrap();
    std::os::unix::fs::chown(disk.node(), None, Some(6)).unwrap();
    assert_eq!(code(&here, disk.serial()), "NOT_MARKED");
}

/// The descriptors of such a process are not read, whatever it has open and however much.
#[test]
fn another_users_process_with_a_servers_name_and_program_is_not_examined() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    let ask_with = |user: u32, group: u32| {
        // A process that may open the disk passed it this descriptor.
        let open = File::options().read(true).write(true).open(disk.node()).unwrap();
        let _server = stopped_server(&lab, &[&format!("--reuid={user}"), &format!("--regid={group}")], open.into());
        ask(&format!("holders {}", number(&disk)))
    };
    let held = json!({ "ok": true, "open": 1, "clients": [], "exact": false });
    assert_eq!(ask_with(65534, 65534)["code"], "NOT_OPEN");
    assert_eq!(ask_with(NBD.id, 65534), held, "the control: the servers' user");
    assert_eq!(ask_with(65534, NBD.id), held, "and whoever has their group");
    assert_eq!(ask_with(0, 0), held, "and root");
}

/// A FUSE file system can delay each answer for ever.
#[test]
fn a_servers_descriptor_in_a_hanging_file_system_delays_no_answer() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    let place = lab.dir().join("fuse");
    fs::create_dir(&place).unwrap();
    let fuse = lab.dir().join("dev-fuse");
    let device = rustix::fs::makedev(10, 229);
    rustix::fs::mknodat(CWD, &fuse, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device).unwrap();
    let nobody_reads = File::options().read(true).write(true).open(&fuse).unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", nobody_reads.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    rustix::mount::mount("none", &place, "fuse", rustix::mount::MountFlags::empty(), data.as_c_str()).unwrap();
    let root = rustix::fs::open(&place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let script = format!("exec 7<>{}; ", disk.node().display());
    let server = stopped_server_that(&lab, &script, &[], root);

    let begun = Instant::now();
    let held = json!({ "ok": true, "open": 1, "clients": [], "exact": false });
    assert_eq!(ask(&format!("holders {}", number(&disk))), held);
    assert!(begun.elapsed() < Duration::from_secs(3));

    let (told, ended) = std::sync::mpsc::channel();
    let descriptor = format!("/proc/{}/fd/0", server.pid());
    thread::spawn(move || told.send(fs::metadata(descriptor).map(drop)));
    let moment = Duration::from_millis(200);
    assert!(ended.recv_timeout(moment).is_err(), "the control: who asks the file system waits");
    drop(nobody_reads);
    assert!(ended.recv_timeout(SOON).unwrap().is_err());
}

/// The helper may read every folder and attachd may not, so attachd must not learn from it which files exist.
#[test]
fn a_symlink_or_a_foreign_file_is_no_claim_and_reveals_nothing() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let serial = lab.volume().serial;
    let claim = Path::new("/var/lib/attachd/claims").join(&serial);
    let secret = lab.dir().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(secret.join("there"), "").unwrap();
    let code = || ask(&format!("retrigger {serial}"))["code"].clone();
    for target in ["there", "missing"] {
        symlink(secret.join(target), &claim).unwrap();
        assert_eq!(code(), "NOT_CLAIMED", "{target}");
        fs::remove_file(&claim).unwrap();
    }
    fs::write(&claim, "").unwrap();
    assert_eq!(code(), "NOT_CLAIMED", "root's");
    lab.claim(&serial).unwrap();
    assert_eq!(code(), "NOT_PRESENT", "the control: a claim of attachd's");
}

#[test]
fn only_an_nbd_server_that_catches_sighup_is_signalled() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let code = || ask("reload")["code"].clone();
    assert_eq!(code(), "NO_SERVER", "no pid file");
    fs::write(PID_FILE, "not a number").unwrap();
    assert_eq!(code(), "NO_SERVER");
    fs::write(PID_FILE, std::process::id().to_string()).unwrap();
    let refused = ask("reload");
    assert_eq!(refused["code"], "NO_SERVER", "some other process");
    assert!(refused["error"].as_str().unwrap().contains("helper-"), "names it: {refused}");

    let (deaf, _said) = nbd_server(&lab, "echo up; read");
    fs::write(PID_FILE, deaf.pid().to_string()).unwrap();
    assert_eq!(code(), "NOT_LISTENING");

    let (mut server, mut said) = nbd_server(&lab, "trap 'echo reloaded' HUP; echo up; while :; do read -t 60; done");
    fs::write(PID_FILE, format!("{}\n", server.pid())).unwrap();
    assert_eq!(ask("reload"), json!({ "ok": true, "pid": server.pid() }));
    let mut heard = [0; 8];
    said.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"reloaded");
    server.kill().unwrap();
    assert_eq!(code(), "NO_SERVER", "a stale pid file");
}

/// The server owns the folder. What it puts there must neither block the helper nor make it read another file.
#[test]
fn a_pid_file_that_is_a_pipe_a_link_or_holds_no_number_of_a_process_is_refused_at_once() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    run("mkfifo", &[PID_FILE]);
    let begun = Instant::now();
    assert_eq!(ask("reload")["code"], "NO_SERVER");
    assert!(begun.elapsed() < Duration::from_secs(3));
    fs::remove_file(PID_FILE).unwrap();
    symlink("/etc/shadow", PID_FILE).unwrap();
    assert_eq!(ask("reload")["code"], "NO_SERVER");
    fs::remove_file(PID_FILE).unwrap();
    for number in ["0", "-1", "-2147483648", "99999999999"] {
        fs::write(PID_FILE, number).unwrap();
        assert_eq!(ask("reload")["code"], "NO_SERVER", "{number}");
    }
}

#[test]
fn malformed_requests_are_answered_and_change_nothing() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    lab.claim(disk.serial()).unwrap();
    let serial = disk.serial();
    for line in [
        "",
        "retrigger ../x",
        &format!("retrigger {serial}0"),
        &format!("retrigger {}", serial.to_uppercase()),
        &format!("retrigger /dev/disk/by-id/loop-{serial}"),
        &format!("retrigger {serial} {serial}"),
        &format!("retrigger {serial}\nretrigger {serial}"),
        "holders /dev/loop0",
        "holders 7:-1",
        &format!("exclusive {serial}"),
        &format!("exclusive 7:1 {serial} {serial}"),
        "exclusive 7:1 ../x",
        "reload now",
        "{\"verb\":\"reload\"}",
        "GET / HTTP/1.1\r",
        &"x".repeat(300),
        &"x".repeat(100_000),
    ] {
        assert_eq!(ask(line)["code"], "BAD_REQUEST", "{line:.80}");
    }
    assert_eq!(ask_as(ATTACHD.id, &[0, 0xff, 0xfe, b'\n'])["code"], "BAD_REQUEST");
    assert_ne!(group(&disk), NBD.id);
    retriggered(&lab, &[&disk]);
}

#[test]
fn callers_that_send_half_a_line_are_answered_in_time_and_delay_no_other() {
    let lab = Lab::new();
    let helper = Helper::start(&lab);
    let halves = |count: usize| -> Vec<UnixStream> {
        (0..count)
            .map(|_| {
                let mut stream = UnixStream::connect(SOCKET).unwrap();
                stream.write_all(b"retrig").unwrap();
                stream
            })
            .collect()
    };
    let begun = Instant::now();
    let mut few = halves(15);
    assert_eq!(ask("holders 1:1")["code"], "NOT_OPEN");
    assert!(begun.elapsed() < Duration::from_secs(3), "one place is left, and is used at once");
    // When all slots are taken, the next caller waits until the time limit of a half line passes, without polling.
    let waits = sleeps(helper.process.pid());
    let mut many = halves(10);
    assert_eq!(ask("holders 1:1")["code"], "NOT_OPEN");
    assert!(begun.elapsed() < Duration::from_secs(12));
    let waits = sleeps(helper.process.pid()) - waits;
    assert!((1..100).contains(&waits), "it went to sleep {waits} times for 26 callers");
    for stream in few.iter_mut().chain(&mut many) {
        assert_eq!(receive(stream)["code"], "BAD_REQUEST");
    }
    // Sending slowly does not extend the time limit.
    let begun = Instant::now();
    let mut dripping = UnixStream::connect(SOCKET).unwrap();
    while dripping.write_all(b"r").is_ok() && begun.elapsed() < SOON {
        thread::sleep(Duration::from_millis(100));
    }
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[test]
fn ten_thousand_requests_at_once_are_all_answered() {
    const CALLERS: usize = 100;
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let disk = attached(&lab);
    let lines = [
        format!("retrigger {}\n", disk.serial()),
        "retrigger ../x\n".into(),
        "holders 1:1\n".into(),
        "reload\n".into(),
    ];
    let expected = ["NOT_CLAIMED", "BAD_REQUEST", "NOT_OPEN", "NO_SERVER"];
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                for request in 0..10_000 / CALLERS {
                    assert_eq!(exchange(lines[request % 4].as_bytes())["code"], expected[request % 4]);
                }
            });
        }
    });
    lab.claim(disk.serial()).unwrap();
    retriggered(&lab, &[&disk]);
}

#[test]
fn the_hosts_own_disks_are_recorded_and_kept() {
    let lab = Lab::new();
    let _helper = Helper::start(&lab);
    let mut disk = lab.disk(&lab.volume().serial, 16 * MIB).unwrap();
    lab.attach_settled(&mut disk).unwrap();
    let partition = disk.add_partition(1, MIB, 12 * MIB).unwrap();
    run("mkfs.ext4", &["-q", "-F", partition.to_str().unwrap()]);
    run("mount", &[partition.to_str().unwrap(), "/boot"]);
    // The list was removed by hand, with its folder.
    fs::remove_dir(HOST_DISKS).unwrap();
    let answer = ask("host-disks");
    let has = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|entry| entry == name);
    assert!(has(&answer["serials"], disk.serial()) && has(&answer["added"], disk.serial()), "{answer}");
    assert_eq!(ask("host-disks")["added"], json!([]), "it is there");
    assert!(has(&answer["disks"], disk.node().file_name().unwrap().to_str().unwrap()), "{answer}");
    let file = Path::new(HOST_DISKS).join(disk.serial());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&file), mode(Path::new(HOST_DISKS)), fs::metadata(&file).unwrap().uid()), (0o644, 0o755, 0));
    run("umount", &["/boot"]);
    let answer = ask("host-disks");
    assert!(!has(&answer["serials"], disk.serial()), "{answer}");
    assert!(file.exists(), "once a host disk, always one, until somebody removes the file");
    lab.claim(disk.serial()).unwrap();
    assert_eq!(ask(&format!("retrigger {}", disk.serial()))["code"], "IN_USE_BY_HOST");
}

/// No process runs while there is no work; systemd keeps the socket and starts the program again.
#[test]
fn without_work_it_ends_and_the_socket_starts_it_again() {
    let lab = Lab::new();
    let mut helper = Helper::start(&lab);
    assert_eq!(ask("holders 1:1")["code"], "NOT_OPEN");
    let status = helper.process.wait(Duration::from_secs(40)).unwrap();
    assert!(status.success(), "{}", helper.log_text());
    let waiting = thread::spawn(|| ask("holders 1:1"));
    helper.process = activate(&helper.socket, &helper.log);
    assert_eq!(waiting.join().unwrap()["code"], "NOT_OPEN");
}

#[test]
fn without_a_socket_from_systemd_the_helper_fails_or_uses_the_given_path() {
    let lab = Lab::new();
    let program = env!("CARGO_BIN_EXE_attachd-helper");
    for arguments in [&[][..], &["--socket"], &["--socket", "a", "b"], &["reload"]] {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("attachd-helper cannot serve: "));
    }
    let _helper = Proc::spawn("attachd-helper", Command::new(program).args(["--socket", SOCKET])).unwrap();
    eventually(|| UnixStream::connect(SOCKET).is_ok());
    assert_eq!(ask_as(0, b"holders 1:1\n")["code"], "NOT_OPEN");
    drop(lab);
}

/// Starts a process with nbd-server's name; returns when it has written its first line.
fn nbd_server(lab: &Lab, script: &str) -> (Proc, std::process::ChildStdout) {
    // A shell cannot trap a signal that was ignored when it started, as under nohup.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(server_program(lab)).args(["-c", script]).stdin(Stdio::piped());
    started(command)
}

fn server_program(lab: &Lab) -> PathBuf {
    let program = lab.dir().join("nbd-server");
    if !program.exists() {
        fs::copy("/bin/bash", &program).unwrap();
    }
    program
}

/// Starts one as another user (options of setpriv) with this as standard input, which it does not read, and stops it.
fn stopped_server(lab: &Lab, user: &[&str], input: OwnedFd) -> Proc {
    stopped_server_that(lab, "", user, input)
}

fn stopped_server_that(lab: &Lab, script: &str, user: &[&str], input: OwnedFd) -> Proc {
    let mut command = Command::new("setpriv");
    command.args(user).arg("--keep-groups").arg(server_program(lab));
    command.args(["-c", &format!("{script}echo up; kill -STOP $$")]).stdin(input);
    started(command).0
}

fn started(mut command: Command) -> (Proc, std::process::ChildStdout) {
    command.stdout(Stdio::piped());
    let mut server = Proc::spawn("nbd-server", &mut command).unwrap();
    let mut said = server.take_stdout().unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        said.read_exact(&mut byte).unwrap();
    }
    (server, said)
}

/// Returns the client ends of this lab's connections to the NBD server.
fn connected() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let port = |end: &str| u16::from_str_radix(end.rsplit(':').next().unwrap(), 16).unwrap();
    table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| port(fields[1]) == 10809 && fields[3] == "01")
        .map(|fields| format!("127.0.0.1:{}", port(fields[2])))
        .collect()
}

/// Returns how often the thread that accepts connections has waited.
fn sleeps(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

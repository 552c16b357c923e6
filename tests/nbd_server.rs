//! The real nbd-server in both modes and in both of Debian's versions: the facts that the backend relies on.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use attachd::export::links::Links;
use attachd::export::nbd_server::check;
use attachd::export::nbd_server::sections::Sections;
use attachd::export::nbd_server::version::{self, Signal, Version};
use attachd::identity::VolumeId;
use lab::nbd::{self, REP_ACK, REP_ERR_POLICY, REP_ERR_UNKNOWN};
use lab::nbd_server::{FOLDER, Installed, MAIN, MAIN_SOCKET, NbdServer, NbdServerPerConnection, RELEASES, Release};
use lab::people::NBD;
use lab::{Disk, DiskOptions, Lab, NbdClient, Volume};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const MIB: u64 = 1 << 20;
const ADDRESS: &str = "127.0.0.1:10809";
/// Longer than anything that works takes.
const SOON: Duration = Duration::from_secs(20);

/// Makes a lab with this server's program and attachd's main files, as shipped.
fn lab_with(release: Release) -> (Lab, Installed) {
    let lab = Lab::new();
    let installed = Installed::new(&lab, release).unwrap();
    fs::write(MAIN, include_str!("../packaging/nbd-server/signal.conf")).unwrap();
    fs::write(MAIN_SOCKET, include_str!("../packaging/nbd-server/socket.conf")).unwrap();
    // In these tests the test itself takes attachd's place.
    for folder in [FOLDER, "/run/attachd", "/run/attachd/exports"] {
        std::os::unix::fs::chown(folder, Some(0), Some(0)).unwrap();
    }
    (lab, installed)
}

/// The same, started in signal mode.
fn signalled(release: Release) -> (Lab, NbdServer) {
    let (lab, installed) = lab_with(release);
    let mut server = NbdServer::new(installed);
    server.start().unwrap();
    (lab, server)
}

/// Runs a test for both versions. A lab belongs to its thread.
fn with_both(test: fn(Release)) {
    for release in RELEASES {
        println!("{release:?}");
        thread::spawn(move || test(release)).join().unwrap();
    }
}

fn links() -> Links {
    Links::new("/run/attachd/exports".into())
}

fn sections() -> Sections {
    Sections::new(FOLDER.into(), links())
}

fn id(volume: &Volume) -> VolumeId {
    volume.id.parse().unwrap()
}

/// Attaches a volume's disk; udev gives the node to the NBD server's group.
fn attached(lab: &Lab) -> (Volume, Disk) {
    attached_with(lab, MIB, DiskOptions::default())
}

fn attached_with(lab: &Lab, size: u64, options: DiskOptions) -> (Volume, Disk) {
    let volume = lab.volume();
    lab.claim(&volume.serial).unwrap();
    let mut disk = lab.disk_with(&volume.serial, size, options).unwrap();
    lab.attach_settled(&mut disk).unwrap();
    (volume, disk)
}

fn prepare(volume: &Volume) -> bool {
    sections().write(id(volume)).unwrap()
}

fn publish(volume: &Volume) {
    links().make(id(volume), volume.link().to_str().unwrap()).unwrap();
}

fn revoke(volume: &Volume) {
    links().remove(id(volume)).unwrap();
}

fn forget(volume: &Volume) {
    revoke(volume);
    sections().remove(id(volume)).unwrap();
}

fn info(volume: &Volume) -> u32 {
    nbd::info(ADDRESS, &volume.export()).unwrap()
}

fn go(volume: &Volume) -> u32 {
    nbd::go(ADDRESS, &volume.export()).unwrap()
}

/// Signals the server and waits until it knows the volume. Only a new connection can show that.
fn reload_until_known(server: &NbdServer, volume: &Volume) {
    server.reload().unwrap();
    let begun = Instant::now();
    while info(volume) != REP_ACK {
        assert!(begun.elapsed() < SOON, "the server does not take up the export");
    }
}

#[test]
fn debians_versions_are_recognised_and_judged() {
    let verdict = |release, version, signal| {
        thread::spawn(move || {
            let (_lab, installed) = lab_with(release);
            let says = version::Installed::from_output(&installed.version().unwrap()).unwrap();
            let package = version::Installed::from_package(&installed.package_version().unwrap()).unwrap();
            println!("{package}: {:?}; {}", package.signal(), package.advice().unwrap_or_default());
            assert_eq!((says.version, package.version, package.signal()), (version, version, signal));
        })
        .join()
        .unwrap();
    };
    verdict(Release::Bookworm, Version(3, 24, 0), Signal::Refused);
    verdict(Release::Trixie, Version(3, 26, 1), Signal::Allowed);
}

#[test]
fn a_signalled_server_takes_up_an_export_and_serves_it_byte_for_byte_and_durably() {
    let (lab, server) = signalled(Release::Trixie);
    let (volume, disk) = attached(&lab);
    assert_eq!(info(&volume), REP_ERR_UNKNOWN);
    assert!(prepare(&volume));
    reload_until_known(&server, &volume);
    assert_eq!(go(&volume), REP_ERR_POLICY, "it is known, and nobody gets in");
    publish(&volume);
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    let mut client = lab.nbd_client(&volume.export()).unwrap();
    let durable = nbd::FLAG_SEND_FLUSH | nbd::FLAG_SEND_FUA;
    assert_eq!((client.size(), client.flags() & durable), (MIB, durable));
    client.write(4096, &[7; 512]).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(4096, 512).unwrap(), [7; 512]);
    assert!(lab.nbd_list().unwrap().contains(&volume.export()));
}

/// The server never forgets a section and opens its path for each new client, so removing the link revokes the
/// export.
#[test]
fn an_export_is_revoked_and_published_at_once_without_a_signal_while_its_disk_stays() {
    with_both(|release| {
        let (lab, installed) = lab_with(release);
        let [(volume, disk), (neighbour, _disk)] = [attached(&lab), attached(&lab)];
        for volume in [&volume, &neighbour] {
            prepare(volume);
            publish(volume);
        }
        let mut server = NbdServer::new(installed);
        server.start().unwrap();
        let mut inside = lab.nbd_client(&volume.export()).unwrap();
        for _ in 0..3 {
            assert_eq!(go(&volume), REP_ACK);
            revoke(&volume);
            assert_eq!((info(&volume), go(&volume)), (REP_ACK, REP_ERR_POLICY));
            assert_eq!(go(&neighbour), REP_ACK, "the control: a neighbour stays served");
            assert_eq!(inside.read(0, 512).unwrap().len(), 512, "who is inside stays");
            publish(&volume);
        }
        forget(&volume);
        assert_eq!((info(&volume), go(&volume)), (REP_ACK, REP_ERR_POLICY), "known, although its section is gone");
        assert!(disk.is_attached() && server.is_alive());
        // The volume is announced again: refused until the link is made.
        assert!(prepare(&volume));
        assert_eq!(go(&volume), REP_ERR_POLICY);
        publish(&volume);
        let mut client = lab.nbd_client(&volume.export()).unwrap();
        client.write(4096, &[7; 512]).unwrap();
        assert_eq!(client.read(4096, 512).unwrap(), [7; 512], "a link to a link is opened for writing");
        forget(&volume);
        server.restart().unwrap();
        assert_eq!((info(&volume), go(&neighbour)), (REP_ERR_UNKNOWN, REP_ACK), "a new server does not know it");
        assert_eq!(inside.read(0, 512).unwrap().len(), 512, "who was inside before the restart stays");
    });
}

/// This is why attachd leaves a section alone that leads elsewhere, and asks for a restart.
#[test]
fn a_changed_sections_path_is_served_until_a_restart_even_after_the_section_is_rewritten() {
    let (lab, mut server) = signalled(Release::Trixie);
    let (volume, _disk) = attached(&lab);
    let (other, _other_disk) = attached_with(&lab, 2 * MIB, DiskOptions::default());
    prepare(&volume);
    let place = Path::new(FOLDER).join(format!("{}.conf", volume.export()));
    let ours = fs::read_to_string(&place).unwrap();
    let link = links().place(id(&volume));
    fs::write(&place, ours.replace(link.to_str().unwrap(), other.link().to_str().unwrap())).unwrap();
    reload_until_known(&server, &volume);
    assert!(sections().write(id(&volume)).is_err(), "it is left alone");
    fs::write(&place, &ours).unwrap();
    let next = lab.volume();
    prepare(&next);
    reload_until_known(&server, &next);
    publish(&volume);
    assert_eq!(lab.nbd_client(&volume.export()).unwrap().size(), 2 * MIB, "the other's disk");
    server.restart().unwrap();
    assert_eq!(lab.nbd_client(&volume.export()).unwrap().size(), MIB);
}

#[test]
fn a_server_for_each_connection_adds_changes_and_removes_exports_without_a_signal() {
    with_both(|release| {
        let (lab, installed) = lab_with(release);
        let server = NbdServerPerConnection::start(installed).unwrap();
        let (volume, disk) = attached(&lab);
        assert_eq!(info(&volume), REP_ERR_UNKNOWN);
        prepare(&volume);
        assert_eq!((info(&volume), go(&volume)), (REP_ACK, REP_ERR_POLICY));
        publish(&volume);
        lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
        let mut client = lab.nbd_client(&volume.export()).unwrap();
        let durable = nbd::FLAG_SEND_FLUSH | nbd::FLAG_SEND_FUA;
        assert_eq!((client.size(), client.flags() & durable), (MIB, durable));

        // The link leads to another disk, so every new client gets that one.
        let (other, _other_disk) = attached_with(&lab, 2 * MIB, DiskOptions::default());
        links().make(id(&volume), other.link().to_str().unwrap()).unwrap();
        assert_eq!(lab.nbd_client(&volume.export()).unwrap().size(), 2 * MIB);

        revoke(&volume);
        assert_eq!((info(&volume), go(&volume)), (REP_ACK, REP_ERR_POLICY));
        forget(&volume);
        assert_eq!(info(&volume), REP_ERR_UNKNOWN);
        assert_eq!(client.read(0, 512).unwrap().len(), 512, "who is inside stays");
        assert!(server.pids().len() > 5, "one process each: {:?}", server.pids());
    });
}

/// With the placeholder a server can start without exports; the placeholder itself serves nothing.
#[test]
fn the_placeholder_of_the_shipped_main_files_is_known_and_never_served() {
    with_both(|release| {
        let (lab, installed) = lab_with(release);
        let mut server = NbdServer::new(installed);
        server.start().unwrap();
        assert_eq!(lab.nbd_list().unwrap(), ["attachd-placeholder"]);
        assert_eq!(nbd::info(ADDRESS, "attachd-placeholder").unwrap(), REP_ACK);
        assert_eq!(nbd::go(ADDRESS, "attachd-placeholder").unwrap(), REP_ERR_POLICY);
        server.kill().unwrap();
        let per_connection = NbdServerPerConnection::start(Installed::new(&lab, release).unwrap()).unwrap();
        assert_eq!(nbd::go(ADDRESS, "attachd-placeholder").unwrap(), REP_ERR_POLICY);
        drop(per_connection);
        let server = check::ServerUser { uid: NBD.id, gid: NBD.id };
        for (main, port) in [(MAIN, "10809"), (MAIN_SOCKET, "0")] {
            let checked = check::main_file(Path::new(main), server).unwrap();
            assert_eq!((checked.port.as_deref(), checked.listenaddr.as_deref()), (Some(port), Some("127.0.0.1")));
            assert_eq!((checked.includedir.as_deref(), checked.sections.len()), (Some(FOLDER), 1));
        }
    });
}

/// Why signals are refused: the control for `version`. Each signal damages the server's memory, so the results
/// differ: mostly it dies, sometimes it hangs.
#[test]
fn debian_12s_server_dies_of_being_signalled_and_debian_13s_does_not() {
    const SIGNALS: usize = 60;
    const PATIENCE: Duration = Duration::from_secs(10);
    let end = |release| {
        let run = move || {
            let (lab, server) = signalled(release);
            for signal in 1..=SIGNALS {
                let volume = lab.volume();
                prepare(&volume);
                server.reload().unwrap();
                let begun = Instant::now();
                while nbd::info(ADDRESS, &volume.export()).ok() != Some(REP_ACK) {
                    if server.wait_death(Duration::ZERO) {
                        return Some(format!("died of signal {signal}"));
                    }
                    if begun.elapsed() > PATIENCE {
                        return Some(format!("lives, and does not take up an export since signal {signal}"));
                    }
                }
            }
            None
        };
        thread::spawn(run).join().unwrap()
    };
    let [bookworm, trixie] = RELEASES.map(end);
    println!("3.24: {bookworm:?}; 3.26.1: {trixie:?}");
    assert!(bookworm.is_some());
    assert_eq!(trixie, None);
}

/// A defect of every version, of which `attachctl health` warns: the rest keeps its old bytes, and the client gets a
/// success.
#[test]
fn a_request_for_more_than_64_mib_of_zeroes_is_half_done_by_nbd_server_and_done_by_nbdkit() {
    const SIZE: u64 = 80 * MIB;
    const BEYOND: u64 = 70 * MIB;
    const BEFORE: u64 = 60 * MIB;
    fn disk_with_marks(lab: &Lab) -> (Volume, Disk) {
        let (volume, disk) = attached_with(lab, SIZE, DiskOptions { blank: true, ..DiskOptions::default() });
        let node = fs::File::options().write(true).open(disk.node()).unwrap();
        for place in [BEFORE, BEYOND] {
            std::os::unix::fs::FileExt::write_all_at(&node, &[7; 4096], place).unwrap();
        }
        node.sync_all().unwrap();
        (volume, disk)
    }
    fn zeroed(mut client: NbdClient) -> [bool; 2] {
        assert_ne!(client.flags() & nbd::FLAG_SEND_WRITE_ZEROES, 0);
        client.write_zeroes(0, u32::try_from(SIZE).unwrap()).unwrap();
        [BEFORE, BEYOND].map(|place| client.read(place, 4096).unwrap() == [0; 4096])
    }
    with_both(|release| {
        let (lab, mut server) = signalled(release);
        let (volume, _disk) = disk_with_marks(&lab);
        prepare(&volume);
        publish(&volume);
        server.restart().unwrap();
        assert_eq!(zeroed(lab.nbd_client(&volume.export()).unwrap()), [true, false], "and it said that it was done");
    });
    let mut lab = Lab::new();
    lab.nbdkit_start().unwrap();
    let (volume, _disk) = disk_with_marks(&lab);
    lab.publish(&volume.export(), &volume.link()).unwrap();
    assert_eq!(zeroed(lab.nbd_client(&volume.export()).unwrap()), [true, true], "the control");
}

const GOOD: &str =
    "[good]\nexportname = /dev/null\nreadonly = true\nfilesize = 4096\nmaxconnections = 3\nauthfile = /dev/null\n";

/// A server whose start decides whether one file is good.
struct Judge {
    installed: Installed,
    _lab: Lab,
}

impl Judge {
    fn new() -> Self {
        let (lab, installed) = lab_with(Release::Trixie);
        // Listening at this address is impossible, so a server that accepts its files ends all the same.
        let main = include_str!("../packaging/nbd-server/signal.conf").replace("127.0.0.1", "192.0.2.1");
        fs::write(MAIN, main).unwrap();
        Self { installed, _lab: lab }
    }

    /// Returns what nbd-server reports about a folder with this one file in it.
    fn says(&self, bytes: &[u8]) -> Result<(), String> {
        fs::write(Path::new(FOLDER).join("judged.conf"), bytes).unwrap();
        self.installed.accepts(Path::new(MAIN)).unwrap()
    }
}

/// Errors for which the check is stricter than the server, which is right because nobody writes such files on
/// purpose.
const STRICTER: [&str; 5] = [
    "there is a NUL byte in it",
    "the [section] is not UTF-8",
    "the key is not UTF-8",
    "there is no key before the =, or a bracket in it",
    "[generic] belongs into the main file",
];

/// Compares the check with the server, and reports a difference.
fn compare(judge: &Judge, bytes: &[u8]) -> Result<bool, String> {
    let shown = String::from_utf8_lossy(bytes);
    match (check::sections(bytes), judge.says(bytes)) {
        (Ok(_), Ok(())) => Ok(true),
        (Err(_), Err(_)) => Ok(false),
        (Ok(_), Err(said)) => Err(format!("accepted, and the server would not start: {shown:?}: {said}")),
        (Err((_, why)), Ok(())) if STRICTER.contains(&why.as_str()) => Ok(false),
        (Err(why), Ok(())) => Err(format!("refused {why:?}, and the server takes it: {shown:?}")),
    }
}

#[test]
fn the_check_refuses_every_file_that_keeps_the_real_server_from_starting() {
    let judge = Judge::new();
    let good = |line: &str| format!("{GOOD}{line}\n").into_bytes();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("no exportname", b"[x]\nreadonly = true\n".to_vec()),
        ("boolean yes", good("flush = yes")),
        ("boolean True", good("flush = True")),
        ("an unknown escape", good(r"authfile = /a\q")),
        ("an escape at the end", good("authfile = /a\\")),
        ("a value that is not UTF-8", [GOOD.as_bytes(), b"authfile = /\xff\n"].concat()),
        ("a second [generic]", b"[generic]\nport = 1\n".to_vec()),
        ("a line that is nothing", good("half a li")),
        ("no section", b"exportname = /dev/null\n".to_vec()),
        ("a ; comment", good("; x")),
        ("a byte order mark", [b"\xef\xbb\xbf", GOOD.as_bytes()].concat()),
        ("a section without a name", good("[]\nexportname = /a")),
        ("brackets in a name", good("[a[b]\nexportname = /a")),
        ("a tab in a name", good("[a\tb]\nexportname = /a")),
        ("something after the ]", good("[a] # x\nexportname = /a")),
        ("cut in the header", good("[a")),
        ("no key", good("= 1")),
        ("a setting after a byte order mark", b"\xef\xbb\xbfexportname = /a\n".to_vec()),
        ("a number that is none", good("maxconnections = many")),
        ("a number too large", good("maxconnections = 2147483648")),
        ("a size with a blank after it", good("filesize = 1 ")),
        ("sdp", good("sdp = true")),
        ("splice and copyonwrite", good("splice = true\ncopyonwrite = true")),
        ("waitfile and copyonwrite", good("waitfile = true\ncopyonwrite = true")),
        ("splice and datalog", good("splice = true\ndatalog = true")),
        ("an unknown virtstyle", good("virtstyle = x")),
        ("cidrhash without a number", good("virtstyle = cidrhash")),
        ("another encoding", good("Encoding = latin1")),
        ("a carriage return at the end of the last line", b"[x]\nexportname = /a\n[y]\r".to_vec()),
    ];
    for (what, bytes) in &bad {
        assert_eq!(compare(&judge, bytes), Ok(false), "{what}");
        assert!(judge.says(bytes).is_err(), "{what}: the server takes it");
    }
    let fine: Vec<(&str, Vec<u8>)> = vec![
        ("a good file", GOOD.into()),
        ("an empty one", Vec::new()),
        ("comments only", b"# x\n\n  # y\n".to_vec()),
        ("a path cut short", b"[x]\nexportname = /dev/disk/by-i".to_vec()),
        ("an unknown key", good("bind = yes")),
        ("an unknown key with any bytes", [GOOD.as_bytes(), b"bind = \xff\\q\n"].concat()),
        ("blanks around a boolean", good("  flush=  true \t")),
        ("blanks at the end of a path", good("authfile = /a  ")),
        ("DOS line ends", GOOD.replace('\n', "\r\n").into()),
        ("the same section twice", format!("{GOOD}{GOOD}").into()),
        ("a bad value before a good one", good("flush = yes\nflush = true")),
        ("a name with blanks and umlauts", "[a ö b]\nexportname = /a\n".into()),
        ("blanks after the ]", b"[a] \t\nexportname = /a\n".to_vec()),
        ("%", b"[a]\nexportname = /a%sb\n".to_vec()),
        ("cidrhash with a number", good("virtstyle = cidrhash 24")),
        ("a number with something after a blank", good("maxconnections = 3 x")),
        ("an encoding", good("Encoding = utf-8")),
        ("a key that begins with ;", good("; x = 1")),
        ("a byte order mark within", good("\u{feff}x = 1")),
    ];
    for (what, bytes) in &fine {
        assert_eq!(compare(&judge, bytes), Ok(true), "{what}");
    }
}

#[test]
fn the_check_and_the_real_server_agree_on_damaged_files() {
    const CASES: u32 = 400;
    let judge = Judge::new();
    let whole = format!(
        "# x\n{GOOD}flush = true\n\n[migration-vol-x]\r\nexportname = /dev/a\\sb\nvirtstyle = none\nbind = 1\n"
    );
    let piece = prop_oneof![
        prop::sample::select(vec![
            "[",
            "]",
            "=",
            ";",
            "#",
            "\\",
            "\n",
            "\r",
            "\r\n",
            " ",
            "\t",
            "\0",
            "\u{b}",
            "\u{c}",
            "\u{feff}",
            "[generic]\n",
            "[x]\n",
            "true",
            "1",
            "-",
            "exportname=",
            "flush",
            "[de]",
            "é",
            "%s",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
    ];
    // Cuts a part out and puts a piece in its place, one to three times.
    let length = whole.len();
    let damage = prop::collection::vec((0..=length, prop_oneof![Just(0), 0..4_usize, 0..60_usize], piece), 1..4);
    let taken = Cell::new(0);
    let outcome = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() }).run(
        &damage,
        |damage| {
            let mut bytes = whole.clone().into_bytes();
            for (at, cut, piece) in damage {
                let at = at.min(bytes.len());
                let end = (at + cut).min(bytes.len());
                bytes.splice(at..end, piece);
            }
            let was_taken = compare(&judge, &bytes).map_err(TestCaseError::fail)?;
            taken.set(taken.get() + u32::from(was_taken));
            Ok(())
        },
    );
    outcome.unwrap();
    println!("{} of {CASES} damaged files are taken by both", taken.get());
    assert!((CASES / 10..CASES * 9 / 10).contains(&taken.get()), "the control: there are many of both kinds");
}

/// Two servers may read the files in different orders, so it is undefined which of two exports of one name is served.
#[test]
fn a_folder_with_one_bad_or_unreadable_file_is_refused_and_duplicate_names_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let server = check::ServerUser { uid: NBD.id, gid: NBD.id };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let write = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
    };
    write("a.conf", GOOD);
    write(".hidden.conf", GOOD);
    write("passed-over.conf.tmp", "half a li");
    fs::create_dir(dir.path().join("folder.conf")).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.path().join("link.conf")).unwrap();
    let checked = check::folder(dir.path(), server).unwrap();
    assert_eq!((checked.files.len(), checked.duplicate_names()["good"].len()), (2, 2));
    write("b.conf", "[b]\nexportname = /a\n; x\n");
    let refused = check::folder(dir.path(), server).unwrap_err().to_string();
    assert!(refused.contains("b.conf, line 3: comments begin with #"), "{refused}");
    write("b.conf", "");
    fs::set_permissions(dir.path().join("b.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    let refused = check::folder(dir.path(), server).unwrap_err().to_string();
    assert!(refused.contains("b.conf cannot be read by the NBD server: its mode is 0600"), "{refused}");
    fs::set_permissions(dir.path().join("b.conf"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(check::folder(dir.path(), server).is_err(), "the folder itself");
}

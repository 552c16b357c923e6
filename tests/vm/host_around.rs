//! attachd's surroundings on a host: limits, hardening, programs that restart services.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

const CONNECTIONS: &str = include_str!("connections.pl");
const NBDKIT: &str = "attachd-nbdkit.service";

fn served(guest: &Guest) -> (Volume, Disk) {
    let volume = Volume::random();
    let disk = guest.disk(&volume, 4 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    (volume, disk)
}

fn property(guest: &Guest, unit: &str, name: &str) -> String {
    guest.run(&format!("systemctl show -P {name} {unit}")).trim().to_owned()
}

/// Starts to open connections; the program's output is in /run/said.
fn open_connections(guest: &Guest, volume: &Volume, open: usize, silent: usize) {
    guest
        .run(&format!("cat >/run/connections.pl <<'END'\n{CONNECTIONS}\nEND\nrm -f /run/said /run/go; mkfifo /run/go"));
    let script = format!("ulimit -n 65536; exec perl /run/connections.pl {} {open} {silent}", volume.export());
    guest.run(&format!("systemd-run -q --unit=connections sh -c '{script} <>/run/go >/run/said 2>&1'"));
    guest.eventually("test -s /run/said");
}

fn close_connections(guest: &Guest) -> String {
    guest.run("echo go >/run/go");
    guest.eventually("! systemctl -q is-active connections");
    guest.run("cat /run/said")
}

#[test]
fn a_guest_of_1_gb_serves_the_200th_client_and_refuses_clients_above_the_limit() {
    let guest = Guest::up("a_guest_of_1_gb_serves_the_200th_client_and_refuses_clients_above_the_limit", Machine::Q35);
    let (volume, disk) = served(&guest);
    let process = property(&guest, NBDKIT, "MainPID");
    open_connections(&guest, &volume, 200, 0);
    assert_eq!(guest.run("cat /run/said"), "200 served, 0 greeted\n");
    let tasks = property(&guest, NBDKIT, "TasksCurrent");
    println!("{tasks} tasks, {} bytes of memory", property(&guest, NBDKIT, "MemoryCurrent"));
    let common: u64 = property(&guest, "systemd-journald.service", "TasksMax").parse().unwrap();
    assert!(tasks.parse::<u64>().unwrap() > common, "the control: more than a unit may usually have, {common}");
    assert!(guest.is_served(&volume));
    close_connections(&guest);

    // More silent connections than the limit of threads.
    open_connections(&guest, &volume, 100, 5000);
    let said = guest.run("cat /run/said");
    let greeted: u32 = said.trim().trim_start_matches("100 served, ").trim_end_matches(" greeted").parse().unwrap();
    assert!((1000..4500).contains(&greeted), "{said}");
    assert_eq!(close_connections(&guest).lines().last(), Some("100 served"), "those before are served on");
    guest.eventually(&format!("nbdcopy nbd://127.0.0.1/{} - >/dev/null", volume.export()));
    guest.export_equals(&volume, &disk);
    assert_eq!(property(&guest, NBDKIT, "MainPID"), process, "it was not started anew");
}

#[test]
fn a_host_that_forbids_namespaces_to_users_is_served() {
    let guest = Guest::up("a_host_that_forbids_namespaces_to_users_is_served", Machine::Q35);
    guest.run("echo user.max_user_namespaces=0 >/etc/sysctl.d/hardened.conf");
    guest.reboot();
    let control = guest.output("systemd-run -q --wait -p PrivateUsers=yes true");
    assert_ne!(control.code, 0, "the control: {}", guest.run("sysctl user.max_user_namespaces"));
    let (volume, disk) = served(&guest);
    guest.export_equals(&volume, &disk);
    guest.withdraw(&volume);
    let failed = guest.run("systemctl list-units --failed --plain --no-legend 'attachd*'");
    assert_eq!(failed, "");
}

/// The limit belongs to the user, whichever program has used it up.
#[test]
fn a_start_without_inotify_instances_names_the_limit_and_the_program_that_uses_them() {
    let guest =
        Guest::up("a_start_without_inotify_instances_names_the_limit_and_the_program_that_uses_them", Machine::Q35);
    let (volume, disk) = served(&guest);
    // inotify_init1, until it fails.
    let hog = "$| = 1; for (1..1000) { last if syscall(294, 0) < 0 } open my $done, '>', '/tmp/done'; sleep 1000";
    guest.run(&format!("cat >/run/hog.pl <<'END'\n{hog}\nEND\nsystemctl stop attachd.socket attachd"));
    guest.run("systemd-run -q --unit=hog -p User=attachd perl /run/hog.pl");
    guest.eventually("test -e /tmp/done");
    assert_ne!(guest.output("systemctl start attachd").code, 0, "the control: it cannot start");
    let said = guest.run("journalctl -b --no-pager -o cat -u attachd | grep 'cannot go on' | tail -1");
    println!("{said}");
    assert!(said.contains("fs.inotify.max_user_instances (") && said.contains("by perl"), "{said}");
    assert!(said.contains("sysctl fs.inotify.max_user_instances=") && !said.contains("LimitNOFILE"), "{said}");
    guest.export_equals(&volume, &disk);
    guest.run("systemctl stop hog");
    guest.eventually("systemctl start attachd.socket attachd");
    guest.wait(&volume, "ready");
}

#[test]
fn needrestart_leaves_the_nbd_server_and_its_clients_alone() {
    let guest = Guest::up("needrestart_leaves_the_nbd_server_and_its_clients_alone", Machine::Q35);
    let (volume, _disk) = served(&guest);
    open_connections(&guest, &volume, 3, 0);
    let pid = || property(&guest, NBDKIT, "MainPID");
    let before = pid();
    // As in an update: another file takes the library's path.
    guest.run("cd /usr/lib/x86_64-linux-gnu/nbdkit/plugins && cp -a nbdkit-file-plugin.so new && mv new nbdkit-file-plugin.so");
    let said = guest.run("needrestart -l -r a 2>&1");
    println!("{said}");
    assert!(said.contains("attachd-nbdkit.service"), "it is named: {said}");
    assert_eq!(pid(), before);
    assert_eq!(close_connections(&guest).lines().last(), Some("3 served"));
    // The control.
    guest.run("mv /etc/needrestart/conf.d/attachd.conf /root/");
    guest.run("needrestart -l -r a 2>&1");
    assert_ne!(pid(), before);
}

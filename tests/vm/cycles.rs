//! Volumes come and go, one after the other, while clients copy from another export.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::image::Suite;
use crate::machine::Machine;

/// The memory in KiB that attachd and its helper may gain after the warm-up. A leak of three KiB per volume would be
/// more.
const SLACK: u64 = 512;

/// A service that copies an export again and again: `copying EXPORT SHA256`.
const COPYING: &str = r#"
mkdir -p /run/copying
for n in $(seq 1000000); do
    sum=$(nbdcopy "nbd://127.0.0.1/$1" - | sha256sum)
    [ "${sum%% *}" = "$2" ] || { echo "copy $n: $sum"; exit 1; }
    echo "$n" >/run/copying/new && mv /run/copying/new /run/copying/done
done"#;

/// Lists everything that attachd and the NBD server keep: files, open files, rows, units. Without what comes and goes
/// with clients and requests (processes, the helper), and without the stories of withdrawn volumes, which are kept on
/// purpose.
const KEPT: &str = r#"
find /run/attachd* /var/lib/attachd /etc/attachd /dev/disk -printf '%y %p\n' | sort
for table in $(sqlite3 -readonly /var/lib/attachd/attachd.db .tables); do
    [ $table = timeline ] ||
        echo "rows of $table: $(sqlite3 -readonly /var/lib/attachd/attachd.db "SELECT count(*) FROM $table")"
done
echo "attachd's open files: $(ls /proc/$(systemctl show --value -p MainPID attachd)/fd | wc -l)"
systemctl list-units --all --plain --no-legend 'attachd*' | grep -v -e @ -e attachd-helper.service | awk '{ print $1, $3, $4 }'"#;

/// Prints a process's own memory in KiB, by unit.
const MEMORY: &str = r#"
for unit in attachd attachd-helper attachd-nbdkit attachd-nbd-server; do
    pid=$(systemctl show --value -p MainPID $unit)
    [ "$pid" = 0 ] || echo "$unit $(awk '/^RssAnon/ { print $2 }' /proc/$pid/status)"
done"#;

/// An NBD server in one mode.
struct Server {
    suite: Suite,
    set_up: String,
    /// Whether it runs permanently and can be copied from again and again. Otherwise each client starts one, which
    /// takes seconds here.
    runs: bool,
}

fn cycles(name: &str, server: &Server, count: usize) {
    let guest = Guest::up_of(server.suite, name, Machine::Q35);
    guest.run(&server.set_up);
    println!("{}", guest.run("attachctl health || true"));
    let neighbour = Volume::random();
    let disk = guest.disk(&neighbour, 16 * MIB);
    guest.intend(&neighbour);
    guest.plug(&disk);
    guest.wait(&neighbour, "ready");
    if server.runs {
        guest.run(&format!("cat >/usr/local/bin/copying <<'END OF FILE'{COPYING}\nEND OF FILE\n"));
        let copying = format!("sh /usr/local/bin/copying {} {}", neighbour.export(), disk.sha256());
        guest.run(&format!("systemd-run --quiet --unit=copying {copying}"));
    }
    guest.hold(std::slice::from_ref(&neighbour));
    guest.hammer_reads();

    let kept = guest.run(KEPT);
    // By then everything has its working size.
    let step = count / 5;
    let mut warm = BTreeMap::new();
    let begun = Instant::now();
    for number in 1..=count {
        cycle(&guest);
        if number % step == 0 {
            let memory = memory(&guest);
            println!("{number} cycles, {:.0?}: {memory:?}", begun.elapsed());
            warm = if number == step { memory } else { warm };
        }
    }
    if server.runs {
        let copies = guest.run("systemctl is-active --quiet copying && cat /run/copying/done");
        println!("{} whole copies of the neighbour", copies.trim());
        assert!(copies.trim().parse::<usize>().unwrap() >= 20, "the control: it was copied all the time");
    }
    let counts = guest.stop_hammer();
    assert!(counts.right > 100 && counts.refused == 0 && counts.wrong == 0, "{counts:?}");
    assert_eq!(guest.run(KEPT), kept);
    assert!(warm.contains_key("attachd"));
    for (unit, now) in memory(&guest) {
        // The helper ends when it has no requests for a while.
        let Some(then) = warm.get(&unit) else { continue };
        match unit.as_str() {
            "attachd" | "attachd-helper" => assert!(now < then + SLACK, "{unit}: {then} KiB, then {now}"),
            // Each client's thread allocates again.
            "attachd-nbdkit" => assert!(now < then + then / 2, "{unit}: {then} KiB, then {now}"),
            // The server keeps every section that it has ever read.
            _ => println!("{unit}: {then} KiB, then {now}"),
        }
    }
}

fn memory(guest: &Guest) -> BTreeMap<String, u64> {
    let line = |line: &str| line.split_once(' ').map(|(unit, size)| (unit.to_owned(), size.parse().unwrap()));
    guest.run(MEMORY).lines().filter_map(line).collect()
}

/// Runs one volume's whole life.
fn cycle(guest: &Guest) {
    let volume = Volume::random();
    let disk = guest.disk(&volume, MIB);
    let (id, export) = (&volume.id, volume.export());
    guest.intend(&volume);
    guest.plug(&disk);
    guest.run(&format!(
        r#"attachctl show {id} --wait ready --timeout 90 >/dev/null &&
        sum=$(nbdcopy --connections=1 nbd://127.0.0.1/{export} - | sha256sum) && [ "${{sum%% *}}" = {} ] &&
        attachctl intent withdraw {id} && ! nbdcopy nbd://127.0.0.1/{export} - >/dev/null"#,
        disk.sha256()
    ));
    guest.unplug(&disk);
    fs::remove_file(&disk.file).unwrap();
}

/// Starts the units as docs/security.md says.
fn nbd_server(suite: Suite, unit: &str) -> Server {
    let set_up = format!(
        "sed -i 's/^#backend = .*/backend = \"nbd-server\"/' /etc/attachd/attachd.toml
        systemctl disable --now attachd-nbdkit.socket attachd-nbdkit.service
        systemctl enable --now {unit} && systemctl restart attachd"
    );
    Server { suite, set_up, runs: unit.ends_with(".service") }
}

#[test]
fn two_hundred_cycles_with_nbdkit_disturb_no_client_and_leave_nothing() {
    let nbdkit = Server { suite: Suite::usual(), set_up: "true".to_owned(), runs: true };
    cycles("two_hundred_cycles_with_nbdkit_disturb_no_client_and_leave_nothing", &nbdkit, 200);
}

/// Debian 13's server survives the signal.
#[test]
fn two_hundred_cycles_with_nbd_server_disturb_no_client_and_leave_nothing() {
    let nbd_server = nbd_server(Suite::Trixie, "attachd-nbd-server.service");
    cycles("two_hundred_cycles_with_nbd_server_disturb_no_client_and_leave_nothing", &nbd_server, 200);
}

/// Debian 12's server must not be signalled. Its start for each client takes many seconds in an emulated guest, so
/// there are few cycles.
#[test]
fn cycles_with_nbd_server_started_for_each_client_disturb_no_client_and_leave_nothing() {
    let nbd_server = nbd_server(Suite::Bookworm, "attachd-nbd-server.socket");
    cycles("cycles_with_nbd_server_started_for_each_client_disturb_no_client_and_leave_nothing", &nbd_server, 12);
}

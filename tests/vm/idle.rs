//! The cost of an idle daemon.

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::machine::Machine;

/// Sums the voluntary context switches of all threads: each is a sleep that has ended.
const WAKE_UPS: &str = "cat /proc/$(systemctl show --value -p MainPID attachd)/task/*/status | awk '/^voluntary/ { n += $2 } END { print n }'";

#[test]
fn an_idle_daemon_wakes_up_for_the_watchdog_alone() {
    let guest = Guest::up("an_idle_daemon_wakes_up_for_the_watchdog_alone", Machine::Q35);
    let volumes: Vec<_> = (0..3).map(|_| Volume::random()).collect();
    guest.intend_all(&volumes);
    for volume in &volumes {
        guest.plug(&guest.disk(volume, MIB));
        guest.wait(volume, "ready");
    }
    let count = || guest.run(WAKE_UPS).trim().parse::<u64>().unwrap();
    let before = count();
    guest.run("attachctl list >/dev/null");
    assert!(count() > before, "the control: a question is a wake-up");
    // Threads for blocking work end after ten idle seconds; the remaining ones are the daemon's, its store's and its
    // journal's.
    guest.eventually("[ $(ls /proc/$(systemctl show --value -p MainPID attachd)/task | wc -l) -le 3 ]");
    let each = "grep -H '^voluntary' /proc/$(systemctl show --value -p MainPID attachd)/task/*/status";
    println!("{}", guest.run(each));
    let before = count();
    guest.output_within("sleep 300", std::time::Duration::from_mins(7));
    let idle = count() - before;
    println!("{}", guest.run(each));
    println!("{idle} wake-ups in 5 minutes with 3 volumes served");
    let rss =
        "grep -E '^(Name|VmRSS|RssAnon|VmHWM)' /proc/$(systemctl show --value -p MainPID UNIT)/status | tr '\\n' ' '";
    for unit in ["attachd", "attachd-nbdkit"] {
        println!("{}", guest.run(&rss.replace("UNIT", unit)));
    }
    for unit in ["attachd", "attachd-nbdkit", "attachd-helper"] {
        let told = guest.run(&format!("systemd-analyze security --no-pager {unit}.service | tail -1"));
        println!("{unit}: {}", told.trim());
    }
    // The watchdog is fed every two and a half minutes.
    assert!(idle <= 3, "{idle} wake-ups");
}

//! Everything through which attachd can be reached: listeners, sockets, files.

use std::os::unix::fs::PermissionsExt;

use lab::Certificates;

use crate::host::Host;

#[test]
fn no_other_listener_exists() {
    let host = Host::installed();
    let (_volume, _disk) = host.served();
    let tcp = host.run("ss", &["-Hltn"]);
    println!("# ss -ltn\n{tcp}");
    let addresses: Vec<_> = tcp.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(addresses, ["127.0.0.1:10809"], "nbdkit, the tunnel's end");

    let unix = host.run("ss", &["-Hlx"]);
    let ours: Vec<_> = unix.lines().filter(|line| line.contains("attachd")).collect();
    println!("# ss -lx\n{}", ours.join("\n"));
    let mut paths: Vec<_> = ours.iter().filter_map(|line| line.split_whitespace().nth(4)).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/run/attachd/attachd.sock", "/run/attachd/helper.sock"]);
}

#[test]
fn every_file_has_the_documented_owner_and_mode() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let claim = format!("/var/lib/attachd/claims/{}", volume.serial);
    for (path, expected) in [
        ("/usr/sbin/attachd", "root root 755"),
        ("/usr/bin/attachctl", "root root 755"),
        ("/usr/libexec/attachd-helper", "root root 755"),
        ("/usr/libexec/attachd-host-disks", "root root 755"),
        ("/etc/attachd", "root root 755"),
        ("/etc/attachd/attachd.toml", "root root 644"),
        ("/etc/attachd/host-disks", "root root 755"),
        ("/etc/attachd/nbd-server/signal.conf", "root root 644"),
        ("/etc/attachd/nbd-server/socket.conf", "root root 644"),
        ("/var/lib/attachd", "attachd attachd 755"),
        ("/var/lib/attachd/attachd.db", "attachd attachd 600"),
        ("/var/lib/attachd/claims", "attachd attachd 755"),
        (&claim, "attachd attachd 600"),
        ("/run/attachd", "attachd attachd 755"),
        ("/run/attachd/attachd.sock", "attachd attachd 660"),
        ("/run/attachd/helper.sock", "attachd attachd 600"),
        ("/run/attachd/exports", "attachd attachd 755"),
        ("/run/attachd/exports.new", "attachd attachd 755"),
        ("/run/attachd-nbdkit", "attachd-nbd attachd-nbd 755"),
        ("/run/attachd/nbd-server.d", "attachd attachd 755"),
        ("/run/attachd-nbd-server", "attachd-nbd attachd-nbd 755"),
        ("/usr/lib/udev/rules.d/59-attachd.rules", "root root 644"),
    ] {
        let shown = host.run("stat", &["--format=%U %G %a", path]);
        println!("{path:48} {}", shown.trim());
        assert_eq!(shown.trim(), expected, "{path}");
    }
    // Of the installed files, only programs are executable, and none is writable by others.
    let loose = host.run("sh", &["-c", "dpkg -L attachd | xargs -r -d '\\n' stat --format='%F %U %a %n'"]);
    for line in loose.lines() {
        let mode = line.split_whitespace().rev().nth(1).unwrap();
        assert!(line.contains(" root ") && ["755", "644"].contains(&mode), "{line}");
    }
}

/// The shipped example contains every key.
#[test]
fn the_shipped_configuration_is_valid_as_it_is_and_with_every_line_in_force() {
    let shipped = include_str!("../../packaging/deb/attachd.toml");
    let in_force: String = shipped
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).unwrap_or(line)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    // nbd-server has keys that nbdkit lacks. Certificates and a shared key exclude each other.
    let in_force = in_force.replace("backend = \"nbdkit\"", "backend = \"nbd-server\"");
    // Its sections are in a folder of their own beside the links.
    let in_force = in_force.replace("\"/run/attachd/exports\"", "\"/run/attachd/nbd-server.d\"");
    let without = |prefix: &str| -> String {
        in_force.lines().filter(|line| !line.starts_with(prefix)).flat_map(|line| [line, "\n"]).collect()
    };
    // TLS of the API is for an address that other hosts can reach.
    let certificates = without("tls_psk_").replace("\"127.0.0.1:8090\"", "\"0.0.0.0:8090\"");
    // A Unix socket of MariaDB has no TLS. Nothing listens at this address, which is no mistake of the file.
    let certificates = certificates.replace("mysql:///run/mysqld/mysqld.sock", "mysql://127.0.0.1:1");
    let key = without("tls_").replace("token_file = \"/etc/attachd/tls/api-token\"\n", "");
    let key = key.replace("[helper]", "tls_psk_file = \"/etc/attachd/tls/keys.psk\"\n[helper]");
    let dir = tempfile::tempdir().unwrap();
    // The files that the example names are checked too.
    let tls = Certificates::make(&dir.path().join("tls"), "127.0.0.1").unwrap();
    std::fs::write(tls.file("keys.psk"), "attachd:000102030405060708090a0b0c0d0e0f\n").unwrap();
    std::fs::write(tls.file("api-token"), "0123456789abcdef\n").unwrap();
    std::fs::write(tls.file("mariadb-password"), "secret\n").unwrap();
    for secret in ["keys.psk", "api-token", "mariadb-password"] {
        std::fs::set_permissions(tls.file(secret), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let [certificates, key] = [certificates, key].map(|text| {
        let text = text.replace("/etc/attachd/mariadb-password", "/etc/attachd/tls/mariadb-password");
        text.replace("/etc/attachd/tls", tls.folder().to_str().unwrap())
    });
    for (name, text) in [("shipped.toml", shipped), ("certificates.toml", &certificates), ("key.toml", &key)] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let check = std::process::Command::new(env!("CARGO_BIN_EXE_attachd"))
            .args(["check-config", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
    let sections = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/config")).unwrap();
    let source: String = sections.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let keys: Vec<_> = source.match_indices(".set(\"").map(|(at, mark)| source.split_at(at + mark.len()).1).collect();
    assert!(keys.len() > 20, "the control: these are the keys");
    for rest in keys {
        let key = rest.split('"').next().unwrap();
        assert!(in_force.contains(&format!("\n{key} = ")), "the example does not say {key}");
    }
}

//! Clients in the guest that open exports continually, from early in the boot, and check whose bytes they get.

use lab::Volume;

use crate::guest::Guest;

const PROGRAM: &str = include_str!("hammer.pl");

/// What the clients got.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) right: u64,
    pub(crate) refused: u64,
    pub(crate) wrong: u64,
}

impl Guest {
    /// Installs the clients for the next boot, before any part of attachd is started.
    pub(crate) fn hammer_from_boot(&self, volumes: &[Volume]) {
        self.install_hammer(volumes, "");
        self.run("systemctl enable hammer.service && sync");
    }

    /// Starts the clients now.
    pub(crate) fn hammer(&self, volumes: &[Volume]) {
        self.install_hammer(volumes, "");
        self.run("systemctl start hammer.service");
    }

    /// Starts clients that stay connected, whatever they get.
    pub(crate) fn hold(&self, volumes: &[Volume]) {
        self.install_hammer(volumes, "HOLD=1");
        self.run("systemctl start hammer.service");
    }

    /// Waits until there were more than a hundred right reads.
    pub(crate) fn hammer_reads(&self) {
        self.run("timeout 110 cat /run/hammer/right");
    }

    /// Waits until there were more than a hundred right reads and more than a hundred refusals, and stops the
    /// clients.
    pub(crate) fn hammered(&self) -> Counts {
        self.run("timeout 110 cat /run/hammer/enough");
        self.stop_hammer()
    }

    /// Stops the clients.
    pub(crate) fn stop_hammer(&self) -> Counts {
        let told = self.run("systemctl stop hammer.service && cat /run/hammer/counts");
        let words: Vec<_> = told.split_whitespace().collect();
        let count = |at: usize| words[at].parse().unwrap();
        let counts = Counts { right: count(1), refused: count(3), wrong: count(5) };
        println!("clients: {counts:?}");
        if counts.wrong > 0 {
            println!("{}", self.run("journalctl --no-pager -u hammer.service | grep WRONG | head -20"));
        }
        counts
    }

    fn install_hammer(&self, volumes: &[Volume], environment: &str) {
        let targets: Vec<_> = volumes.iter().map(|volume| format!("{}:{}", volume.export(), volume.serial)).collect();
        let targets = targets.join(" ");
        let unit = format!(
            "[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service systemd-journald.socket
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=exec
Environment={environment}
ExecStartPre=/bin/sh -c 'rm -rf /run/hammer && mkdir /run/hammer && mkfifo /run/hammer/right /run/hammer/enough'
ExecStart=/usr/bin/perl /usr/local/bin/hammer.pl {targets}
TimeoutStopSec=10
[Install]
WantedBy=sysinit.target
"
        );
        let files = [("/usr/local/bin/hammer.pl", PROGRAM), ("/etc/systemd/system/hammer.service", unit.as_str())];
        for (path, text) in files {
            self.run(&format!("cat >{path} <<'END OF FILE'\n{text}\nEND OF FILE\n"));
        }
        self.run("systemctl daemon-reload");
    }
}

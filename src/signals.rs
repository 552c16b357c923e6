//! The signals that stop or reload the daemon, and who sent them, so that the journal can say who stopped it.

use std::io;

use futures_util::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Process;
use signal_hook_tokio::SignalsInfo;

/// The meaning of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// SIGTERM or SIGINT: end; exports stay served.
    Stop,
    /// SIGHUP: read the configuration and all disks again.
    Reload,
}

/// The signals that the daemon listens for.
pub(crate) struct Signals(SignalsInfo<WithOrigin>);

impl Signals {
    /// Starts to listen. Needs a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        SignalsInfo::with_exfiltrator([SIGTERM, SIGINT, SIGHUP], WithOrigin::default()).map(Self)
    }

    /// Waits for the next signal and logs who sent it.
    pub(crate) async fn next(&mut self) -> Asks {
        // The stream ends only when its handle is closed, and nobody closes it.
        let Some(origin) = self.0.next().await else { return std::future::pending().await };
        let (name, asks) = match origin.signal {
            SIGHUP => ("SIGHUP", Asks::Reload),
            SIGINT => ("SIGINT", Asks::Stop),
            _ => ("SIGTERM", Asks::Stop),
        };
        let what = match asks {
            Asks::Stop => "stops",
            Asks::Reload => "reloads its configuration",
        };
        let process = origin.process.as_ref();
        tracing::info!(
            SIGNAL = name,
            SENDER_PID = process.map(|process| process.pid),
            SENDER_UID = process.map(|process| process.uid),
            "attachd {what}: {name} from {}",
            sender(process)
        );
        asks
    }
}

/// Describes the sender, for people.
fn sender(process: Option<&Process>) -> String {
    match process {
        Some(Process { pid, uid, .. }) => match name_of(*pid) {
            Some(name) => format!("process {pid} ({name}) of user {uid}"),
            None => format!("process {pid} of user {uid}"),
        },
        None => "the kernel (a key on its terminal, or its terminal was closed)".to_owned(),
    }
}

/// Returns the name of a process; `None` if it has ended or is hidden from the service (`ProtectProc=invisible`).
fn name_of(pid: i32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_is_reported_with_its_meaning_and_its_sender() {
        let mut signals = Signals::listen().unwrap();
        let me = rustix::process::getpid();
        for (signal, asks) in [
            (rustix::process::Signal::HUP, Asks::Reload),
            (rustix::process::Signal::INT, Asks::Stop),
            (rustix::process::Signal::TERM, Asks::Stop),
        ] {
            rustix::process::kill_process(me, signal).unwrap();
            assert_eq!(signals.next().await, asks);
        }
        rustix::process::kill_process(me, rustix::process::Signal::HUP).unwrap();
        let origin = signals.0.next().await.unwrap();
        let (pid, uid) = (me.as_raw_nonzero(), rustix::process::getuid());
        let told = sender(origin.process.as_ref());
        assert!(told.starts_with(&format!("process {pid} (")) && told.ends_with(&format!("of user {uid}")), "{told}");
        assert!(sender(None).contains("the kernel"), "control: without a sender none is named");
    }
}

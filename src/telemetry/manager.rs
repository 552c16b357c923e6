//! Messages to the service manager: ready, reloading, stopping, a status line, and the watchdog's sign that the
//! engine still answers.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) nothing is sent and there are no wake-ups.

use sd_notify::NotifyState;
use tokio::sync::broadcast::error::RecvError;

use crate::engine::Handle;
use crate::engine::world::World;
use crate::readable::Interval;
use crate::volume::counted;

/// Reports that start-up or a reload is done.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that the configuration is being read again.
pub fn reloading() {
    // systemd pairs the two messages of a reload by this time.
    let now = NotifyState::monotonic_usec_now();
    notify(&[NotifyState::Reloading, now.unwrap_or(NotifyState::MonotonicUsec(0))]);
}

/// Reports what the start is waiting for.
pub fn waiting(why: &str) {
    tracing::warn!("{why}");
    notify(&[NotifyState::Status(why)]);
}

/// Reports that the daemon ends in order.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Reports "ready", then updates the status line and feeds the watchdog, until the engine ends.
pub async fn report(handle: Handle) {
    ready();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut told = String::new();
    let Ok(mut events) = handle.events() else { return };
    // Half of the time limit, as systemd recommends. With the shipped five minutes that is one wake-up in 150 s.
    let interval = sd_notify::watchdog_enabled().map(|limit| Interval::new(limit / 2)).transpose();
    let interval = match interval {
        Ok(interval) => interval,
        // Without the clock the watchdog is not fed, so systemd will restart the daemon.
        Err(error) => return tracing::error!(%error, "no clock for the watchdog"),
    };
    let mut due = interval.is_some();
    loop {
        // This request to the engine is the check: a daemon that hangs sends nothing and is restarted.
        let Ok(status) = handle.read(status).await else { return };
        if std::mem::take(&mut due) {
            notify(&[NotifyState::Watchdog]);
        }
        if status != told {
            notify(&[NotifyState::Status(&status)]);
            told = status;
        }
        tokio::select! {
            event = events.recv() => match event {
                // Many events give one status line; it already contains the later ones.
                Ok(_) => while events.try_recv().is_ok() {},
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            () = tick(interval.as_ref()) => due = true,
        }
    }
}

async fn tick(interval: Option<&Interval>) {
    match interval {
        Some(interval) => interval.tick().await,
        None => std::future::pending().await,
    }
}

fn status(world: &World) -> String {
    let told = counted(|state| world.counts().get(&state).copied().unwrap_or(0));
    if told.is_empty() { "no volumes".to_owned() } else { format!("volumes: {told}") }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

//! What the service manager is told: ready, reloading, stopping, a line of status, and that the engine still answers.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) all of it does nothing and wakes nobody.

use sd_notify::NotifyState;
use tokio::sync::broadcast::error::RecvError;

use crate::engine::Handle;
use crate::engine::world::World;
use crate::readable::Interval;
use crate::volume::counted;

/// Says that start-up or a reload is done.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that the configuration is being read again.
pub fn reloading() {
    // systemd pairs the two messages of a reload by this time.
    let now = NotifyState::monotonic_usec_now();
    notify(&[NotifyState::Reloading, now.unwrap_or(NotifyState::MonotonicUsec(0))]);
}

/// Says what the start waits for.
pub fn waiting(why: &str) {
    tracing::warn!("{why}");
    notify(&[NotifyState::Status(why)]);
}

/// Says that the daemon ends in good order.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Says ready, then keeps the line of status true and answers for the engine, until the engine is gone.
pub async fn report(handle: Handle) {
    ready();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut told = String::new();
    let Ok(mut events) = handle.events() else { return };
    // Half the limit, as systemd recommends; with the shipped five minutes that is one wake-up in 150 s.
    let interval = sd_notify::watchdog_enabled().map(|limit| Interval::new(limit / 2)).transpose();
    let interval = match interval {
        Ok(interval) => interval,
        // systemd will restart a daemon that never answers for itself.
        Err(error) => return tracing::error!(%error, "no clock for the watchdog"),
    };
    let mut due = interval.is_some();
    loop {
        // Asking the engine is the check: a daemon that hangs sends nothing and is restarted.
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
                // A burst is one line: what else came meanwhile is in the status already.
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

//! A plain listener on udev's group: an independent witness of what udevd sent, and when.

use crate::forge::socket;
use crate::watch::readable;
use crate::wire::{self, Properties, UDEV_GROUP};
use anyhow::{Context, Result, bail};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, bind, recv, sockopt};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// As large as libudev's own buffer, so that the witness receives all events of a flood.
const BUFFER: usize = 128 << 20;

/// One event.
#[derive(Debug, Clone)]
pub struct Heard {
    /// CLOCK_MONOTONIC in nanoseconds when it was received.
    pub monotonic_ns: u64,
    /// Its properties.
    pub properties: Properties,
}

impl Heard {
    /// A property, or "".
    pub fn get(&self, key: &str) -> &str {
        self.properties.get(key).map_or("", String::as_str)
    }

    /// Returns whether udev has processed a disk from the beginning and found no claim.
    pub fn unclaims(&self) -> bool {
        self.get("ACTION") == "add" && self.get("ATTACHD_CLAIMED").is_empty()
    }
}

/// A plain netlink socket joined to udev's group in the network namespace it was made in.
#[derive(Debug)]
pub struct BareListener(OwnedFd);

impl BareListener {
    pub(crate) fn new() -> Result<BareListener> {
        let socket = socket()?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).context("SO_RCVBUFFORCE")?;
        bind(&socket, &SocketAddrNetlink::new(0, UDEV_GROUP)).context("joining udev's group")?;
        Ok(BareListener(socket))
    }

    /// Returns the next event, or `None` if there was none within the limit.
    pub fn next(&self, limit: Duration) -> Result<Option<Heard>> {
        let deadline = Instant::now() + limit;
        loop {
            if !readable(&[self.0.as_fd()], deadline.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
            let mut buffer = [0_u8; 16384];
            let (_, length) = recv(&self.0, &mut buffer[..], RecvFlags::empty()).context("receiving an event")?;
            let monotonic_ns = monotonic_ns();
            if let Some(properties) = buffer.get(..length).and_then(wire::decode) {
                return Ok(Some(Heard { monotonic_ns, properties }));
            }
        }
    }

    /// Returns the first event that `wanted` accepts; the error lists the events that came instead.
    pub fn wait_for(&self, limit: Duration, wanted: impl Fn(&Heard) -> bool) -> Result<Heard> {
        let deadline = Instant::now() + limit;
        let mut others = Vec::new();
        while let Some(heard) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if wanted(&heard) {
                return Ok(heard);
            }
            others.push(format!("{} {} {}", heard.get("ACTION"), heard.get("DEVNAME"), heard.get("ID_SERIAL")));
        }
        bail!("the awaited udev event did not come within {limit:?}; these did: {others:#?}")
    }

    /// Waits until udev has processed this node's disk and found no claim, so that the node has its old group again.
    ///
    /// The event for a marked disk may come late: the daemon also reads the disk at the kernel's event, and serves a
    /// disk that udev has marked before udev's event arrives.
    pub fn given_back(&self, limit: Duration, node: &Path) -> Result<()> {
        self.wait_for(limit, |heard| Path::new(heard.get("DEVNAME")) == node && heard.unclaims()).map(drop)
    }

    /// Returns everything that has arrived and was not taken yet.
    pub fn drain(&self) -> Result<Vec<Heard>> {
        let mut all = Vec::new();
        while let Some(heard) = self.next(Duration::ZERO)? {
            all.push(heard);
        }
        Ok(all)
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

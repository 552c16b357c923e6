//! Sends forged udev events. Any process with CAP_NET_ADMIN can send them, so attachd must survive them.

use crate::wire::{self, UDEV_GROUP};
use anyhow::{Context, Result};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};
use std::os::fd::OwnedFd;

/// Sends messages in libudev's format to the udev group of the network namespace it was made in.
#[derive(Debug)]
pub struct Forger(OwnedFd);

impl Forger {
    pub(crate) fn new() -> Result<Forger> {
        Ok(Forger(socket()?))
    }

    /// Sends one event. A listener requires `ACTION`, `DEVPATH`, `SUBSYSTEM` and `SEQNUM`.
    pub fn send(&self, properties: &[(&str, &str)]) -> Result<()> {
        self.send_raw(&wire::encode(properties))
    }

    /// Sends an event that [`wire::encode`] made (for floods), or arbitrary bytes.
    pub fn send_raw(&self, message: &[u8]) -> Result<()> {
        match sendto(&self.0, message, SendFlags::empty(), &SocketAddrNetlink::new(0, UDEV_GROUP)) {
            // "No listener" and "a listener's buffer is full" are expected in a flood and are not failures of
            // sending.
            Ok(_) | Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOBUFS) => Ok(()),
            Err(e) => Err(e).context("sending a forged event"),
        }
    }
}

pub(crate) fn socket() -> Result<OwnedFd> {
    let (flags, protocol) = (SocketFlags::CLOEXEC, Some(netlink::KOBJECT_UEVENT));
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol).context("a netlink socket")
}

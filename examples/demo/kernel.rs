//! The times of the kernel's events about a disk: the reference for "at once", independent of attachd.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The kernel's multicast group, whose events come before any udev rule.
const KERNEL_GROUP: u32 = 1;

/// One event.
#[derive(Debug)]
pub(crate) struct Said {
    /// When it was received.
    pub(crate) at: Timestamp,
    /// `add`, `change` or `remove`.
    pub(crate) action: String,
    device: String,
}

/// A thread that only records the time of each event.
#[derive(Debug)]
pub(crate) struct Ear(Receiver<Said>);

impl Ear {
    /// Starts to listen, in the network namespace of the calling thread.
    pub(crate) fn new() -> Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT));
        let socket = socket.context("a netlink socket")?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP)).context("joining the kernel's group")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || listen(&socket, &sender));
        Ok(Self(receiver))
    }

    /// Returns the first event of the device after `since`.
    pub(crate) fn first(&self, device: &str, since: Timestamp, limit: Duration) -> Result<Said> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let said = self.0.recv_timeout(left).with_context(|| format!("no kernel event of {device}"))?;
            if said.device == device && said.at >= since {
                return Ok(said);
            }
        }
    }
}

fn listen(socket: &OwnedFd, sender: &Sender<Said>) {
    let mut buffer = [0_u8; 16384];
    while let Ok((_, length)) = recv(socket, &mut buffer[..], RecvFlags::empty()) {
        let at = Timestamp::now();
        let said = buffer.get(..length).and_then(|message| parse(message, at));
        if said.is_some_and(|said| sender.send(said).is_err()) {
            return;
        }
    }
}

/// Parses `ACTION@/devices/…/NAME`, followed by properties, each ended by a zero byte.
fn parse(message: &[u8], at: Timestamp) -> Option<Said> {
    let head = std::str::from_utf8(message.split(|byte| *byte == 0).next()?).ok()?;
    let (action, path) = head.split_once('@')?;
    let device = path.rsplit('/').next()?;
    Some(Said { at, action: action.to_owned(), device: device.to_owned() })
}

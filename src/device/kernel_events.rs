//! The kernel's events, read when somebody asks and not before: which loop devices have changed since an event count.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

/// The multicast group of the kernel's own events.
const KERNEL: u32 = 1;

/// Longer than any event: the kernel's limit is two kilobytes and the name of the device.
const LONGEST: usize = 8192;

/// The events that the kernel has sent since [`KernelEvents::listen`].
///
/// Nobody is woken by them. What is not read waits in the socket, and what the socket cannot hold is lost. No loss goes
/// unnoticed, because the kernel numbers its events and [`KernelEvents::since`] asks for every number.
pub(super) struct KernelEvents {
    /// `None` in tests.
    socket: Option<OwnedFd>,
    /// By number: the loop device that the event is about, if it is about one.
    heard: BTreeMap<u64, Option<String>>,
}

/// What has happened since an event count.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Since {
    /// The count up to which every event is known.
    pub(super) count: u64,
    /// The loop devices that had an event.
    pub(super) loops: BTreeSet<String>,
}

impl KernelEvents {
    /// Starts to listen. Needs no privilege.
    pub(super) fn listen() -> rustix::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self { socket: Some(socket), heard: BTreeMap::new() })
    }

    /// Returns what has happened after event number `count`; `None` unless every event from there to number `asked` has
    /// been heard.
    pub(super) fn since(&mut self, count: u64, asked: u64) -> Option<Since> {
        self.receive();
        self.forget(count);
        let mut since = Since { count, loops: BTreeSet::new() };
        while let Some(device) = self.heard.remove(&(since.count + 1)) {
            since.count += 1;
            since.loops.extend(device);
        }
        (since.count >= asked).then_some(since)
    }

    /// Forgets the events up to this number.
    pub(super) fn forget(&mut self, count: u64) {
        self.heard = self.heard.split_off(&(count + 1));
    }

    /// Takes everything out of the socket. An error of the socket is a loss, which shows as a missing number.
    fn receive(&mut self) {
        let mut buffer = [0; LONGEST];
        while let Some(socket) = &self.socket {
            match recvfrom(socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, length, sender)) => {
                    // Other processes could send events too, with any number.
                    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
                    if sender.is_some_and(|sender| sender.pid() == 0) {
                        self.note(&buffer[..length]);
                    }
                }
                // The socket was full. It tells that once, and goes on with the oldest event that it still has.
                Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Notes one event. One that cannot be understood is missing.
    pub(super) fn note(&mut self, event: &[u8]) {
        if let Some((number, device)) = parse(event) {
            self.heard.insert(number, device.map(str::to_owned));
        }
    }

    /// Hears nothing but what the test notes.
    #[cfg(test)]
    pub(super) fn of_a_test() -> Self {
        Self { socket: None, heard: BTreeMap::new() }
    }
}

/// Returns the number of an event (`action@path`, then one `KEY=value` after the other, each ended by a zero byte), and
/// the loop device that it is about, if it is about one. A loop device's partition is not a loop device.
fn parse(event: &[u8]) -> Option<(u64, Option<&str>)> {
    let mut fields = event.split(|byte| *byte == 0).filter_map(|field| str::from_utf8(field).ok());
    let (_, path) = fields.next()?.split_once('@')?;
    // The kernel writes the number last.
    let number = fields.rev().find_map(|field| field.strip_prefix("SEQNUM="))?.parse().ok()?;
    let name = path.rsplit('/').next().filter(|name| is_loop(name));
    Some((number, name))
}

/// Returns whether a device's name is that of a whole loop device.
pub(super) fn is_loop(name: &str) -> bool {
    let number = name.strip_prefix("loop");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64, path: &str) -> Vec<u8> {
        format!("change@{path}\0ACTION=change\0DEVPATH={path}\0SUBSYSTEM=block\0SEQNUM={number}\0").into_bytes()
    }

    #[test]
    fn an_event_has_its_number_and_the_loop_device_and_not_a_partition_or_another_disk() {
        let about = |path: &str| parse(&event(7, path)).map(|(number, name)| (number, name.map(str::to_owned)));
        assert_eq!(about("/devices/virtual/block/loop12"), Some((7, Some("loop12".into()))));
        for other in
            ["/devices/virtual/block/loop12/loop12p1", "/devices/virtual/bdi/7:12", "/devices/a/block/vda", "/loop"]
        {
            assert_eq!(about(other), Some((7, None)), "{other}");
        }
        let injected = b"change@/x\0SEQNUM=3\0KEY=1\0SEQNUM=9\0";
        assert_eq!(parse(injected), Some((9, None)), "the kernel's own number is the last");
        for odd in [&b""[..], b"libudev\0", b"change@/x\0", b"change@/x\0SEQNUM=\0", b"change@/x\0SEQNUM=-1\0"] {
            assert_eq!(parse(odd), None);
        }
    }

    #[test]
    fn what_happened_is_known_only_if_no_number_is_missing_in_any_order() {
        let mut events = KernelEvents::of_a_test();
        assert_eq!(events.since(4, 4), Some(Since { count: 4, loops: BTreeSet::new() }));
        for (number, path) in [(4, "/block/loop0"), (6, "/block/loop6"), (8, "/block/loop8")] {
            events.note(&event(number, path));
        }
        assert_eq!(events.since(4, 6), None, "number 5 is missing");
        events.note(&event(5, "/block/vda"));
        // Number 6 is still there; 8 waits for 7.
        assert_eq!(events.since(4, 6), Some(Since { count: 6, loops: ["loop6".to_owned()].into() }));
        events.note(&event(7, "/block/loop7"));
        assert_eq!(events.since(6, 9), None, "number 9 has not been heard");
        events.forget(9);
        assert_eq!(events.since(9, 9), Some(Since { count: 9, loops: BTreeSet::new() }));
    }
}

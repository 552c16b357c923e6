//! The only user of libudev: reads two netlink sockets, copies each event and sends the copy on.
//!
//! libudev counts references without atomics, so all of its objects stay on one thread. The loop only copies and
//! sends. If events are lost (the kernel's buffer overran, or the channel was full), it sends one [`Notice::Lost`],
//! and the receiver does a resync.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use rustix::net::netlink::SocketAddrNetlink;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::event::{DiskEvent, Origin};

/// The number of datagrams read before other tasks get their turn.
const AT_ONCE: usize = 256;

/// A message of the monitor.
#[derive(Debug)]
pub enum Notice {
    /// One event.
    Event(DiskEvent),
    /// An unknown number of events is lost; the text says where.
    Lost(&'static str),
}

/// Why the sockets could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// A system call failed.
    #[error("cannot listen to {0:?} events: {1}")]
    Listen(Origin, #[source] io::Error),
    /// The socket is bound but would receive nothing. Either it is in a private network namespace, or libudev found
    /// no running udevd and no devtmpfs and silently joined no group.
    #[error(
        "the socket for {origin:?} events joined multicast group {groups} instead of {wanted}: it would hear nothing. \
         Is systemd-udevd running, and can this service see /run/udev?"
    )]
    Deaf {
        /// The sender of the events.
        origin: Origin,
        /// The groups that the socket joined.
        groups: u32,
        /// The group that it needs.
        wanted: u32,
    },
}

/// Both sockets, before [`Monitor::follow`] reads them.
pub struct Monitor {
    listeners: [EventSocket; 2],
    stats: Arc<Stats>,
}

/// Statistics of the sockets, for health and metrics.
#[derive(Debug)]
pub struct Stats {
    /// The socket for udevd's events.
    pub udev: SocketStats,
    /// The socket for the kernel's events.
    pub kernel: SocketStats,
}

/// Statistics of one socket.
#[derive(Debug)]
pub struct SocketStats {
    port: u32,
    group: u32,
    /// The size in bytes of the kernel's receive buffer, its overhead included.
    pub receive_buffer: usize,
    /// The number of disk events received.
    pub events: AtomicU64,
    /// How often the buffer overran.
    pub overruns: AtomicU64,
}

struct EventSocket {
    origin: Origin,
    socket: AsyncFd<udev::MonitorSocket>,
}

impl Monitor {
    /// Subscribes to events. Call this before the present disks are read, so that no event is missed. Needs a tokio
    /// runtime.
    pub fn subscribe() -> Result<Self, MonitorError> {
        let (udev, udev_stats) = EventSocket::join(Origin::Udev)?;
        let (kernel, kernel_stats) = EventSocket::join(Origin::Kernel)?;
        let stats = Arc::new(Stats { udev: udev_stats, kernel: kernel_stats });
        Ok(Self { listeners: [udev, kernel], stats })
    }

    /// Returns the statistics, shared.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Reads both sockets until the receiver is dropped.
    pub async fn follow<Input: From<Notice>>(self, events: mpsc::Sender<Input>) {
        let [udev, kernel] = &self.listeners;
        tokio::join!(udev.follow(&self.stats.udev, &events), kernel.follow(&self.stats.kernel, &events));
    }
}

impl EventSocket {
    fn join(origin: Origin) -> Result<(Self, SocketStats), MonitorError> {
        let failed = |error| MonitorError::Listen(origin, error);
        let (builder, group) = match origin {
            Origin::Udev => (udev::MonitorBuilder::new(), 2),
            Origin::Kernel => (udev::MonitorBuilder::new_kernel(), 1),
        };
        // Filtered by device type, not by udev tag: a tag filter misses the removal of a disk whose database entry is
        // gone.
        let socket = builder
            .and_then(|builder| builder.match_subsystem_devtype("block", "disk"))
            .and_then(udev::MonitorBuilder::listen)
            .map_err(failed)?;
        let address = rustix::net::getsockname(&socket).map_err(|errno| failed(errno.into()))?;
        let address = netlink_address(address).map_err(|errno| failed(errno.into()))?;
        if address.groups() != group {
            return Err(MonitorError::Deaf { origin, groups: address.groups(), wanted: group });
        }
        let stats = SocketStats {
            port: address.pid(),
            group,
            receive_buffer: rustix::net::sockopt::socket_recv_buffer_size(&socket)
                .map_err(|errno| failed(errno.into()))?,
            events: AtomicU64::new(0),
            overruns: AtomicU64::new(0),
        };
        // SAFETY: the socket owns its descriptor until it is dropped and always returns the same one; `AsyncFd` owns
        // the socket, and nothing here takes the socket out again.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        Ok((Self { origin, socket }, stats))
    }

    async fn follow<Input: From<Notice>>(&self, stats: &SocketStats, events: &mpsc::Sender<Input>) {
        while let Ok(mut ready) = self.socket.readable().await {
            let mut lost = None;
            while self.drain(stats, events, &mut lost) {
                // Many events in a row must not keep other tasks on this thread from running.
                tokio::task::yield_now().await;
            }
            // Data that arrived after `drain` found the socket empty raises a new edge, so no wake-up is lost.
            ready.clear_ready();
            if let Some(place) = lost {
                // This may block: events that the socket cannot hold in the meantime become the next `Lost`.
                if events.send(Notice::Lost(place).into()).await.is_err() {
                    return;
                }
            } else if events.is_closed() {
                return;
            }
        }
    }

    /// Reads up to [`AT_ONCE`] datagrams. Returns false if the socket is really empty. Sets `lost` if events were
    /// lost.
    ///
    /// libudev returns "nothing" in three cases: the socket is empty; the buffer overran (ENOBUFS, once, before the
    /// older events that are still queued); or a datagram was read and dropped (EAGAIN, with more datagrams behind
    /// it).
    fn drain<Input: From<Notice>>(
        &self,
        stats: &SocketStats,
        events: &mpsc::Sender<Input>,
        lost: &mut Option<&'static str>,
    ) -> bool {
        let socket = self.socket.get_ref();
        for _ in 0..AT_ONCE {
            if let Some(event) = socket.iter().next() {
                let property =
                    |key: &str| event.property_value(key).and_then(|value| value.to_str()).map(str::to_owned);
                if let Some(event) = DiskEvent::from_properties(self.origin, property) {
                    stats.events.fetch_add(1, Ordering::Relaxed);
                    if lost.is_none() && events.try_send(Notice::Event(event).into()).is_err() {
                        *lost = Some("the channel to the engine was full");
                    }
                }
            } else if io::Error::last_os_error().raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) {
                stats.overruns.fetch_add(1, Ordering::Relaxed);
                *lost = Some("the socket's buffer overran");
            } else if !readable(socket) {
                return false;
            }
        }
        true
    }
}

impl SocketStats {
    /// Returns how many datagrams the kernel dropped because the buffer was full, since the socket was made. `None`
    /// if unreadable.
    pub fn drops(&self) -> Option<u64> {
        drops(&std::fs::read_to_string("/proc/self/net/netlink").ok()?, self.port, self.group)
    }
}

fn readable(socket: &udev::MonitorSocket) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn netlink_address(address: SocketAddrAny) -> Result<SocketAddrNetlink, Errno> {
    address.try_into()
}

/// Returns the `Drops` column of `/proc/net/netlink` for one uevent socket.
fn drops(table: &str, port: u32, group: u32) -> Option<u64> {
    /// The protocol `NETLINK_KOBJECT_UEVENT`.
    const UEVENT: &str = "15";
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, protocol, pid, groups, _, _, _, _, drops, ..] = columns[..] else { return None };
        let ours = protocol == UEVENT && pid.parse() == Ok(port) && u32::from_str_radix(groups, 16) == Ok(group);
        ours.then(|| drops.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_counter_is_found_by_protocol_port_and_group() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            0000000000000000 15  4711       00000001 0        0        0     2        3        60311\n\
            0000000000000000 0   4712       00000002 0        0        0     2        9        60313\n\
            0000000000000000 15  4712       00000002 0        0        0     2        834      60312\n";
        assert_eq!(drops(table, 4712, 2), Some(834));
        assert_eq!(drops(table, 4711, 2), None);
        assert_eq!(drops("", 1, 2), None);
    }
}

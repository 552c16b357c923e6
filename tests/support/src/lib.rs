//! The lab: a private world for each of attachd's system tests ("udevd in a box").
//!
//! [`Lab::new`] gives the **calling thread** (and everything it spawns afterwards, threads included) its own network
//! and mount namespaces, its own `/dev`, `/run`, `/etc`, users, and a real `systemd-udevd`. So tests run in parallel,
//! change no file of the host, and leave nothing behind even when they are killed: children die with the thread that
//! started them, loop devices free themselves, and what a killed test leaves on the disk is swept by the next one.
//!
//! ```text
//!   world ─▶ people, rules ─▶ udevd ─▶ disk ─▶ nbdkit ─▶ attachd ─▶ api
//!                                        │                            │
//!                                   listen, forge                  reader   (independent witnesses)
//! ```
//!
//! Three things the kernel does not let us make private, and how the lab lives with them:
//!
//! * **Loop devices are global.** Each lab owns a range of a thousand loop numbers ([`slot`]), and only it has nodes
//!   for them. Other labs' disks are still *listed* in `/sys/block`, so serials must differ between tests: take them
//!   from [`Lab::volume`].
//! * **Kernel events are global.** Every lab's udevd sees every lab's disks; without a node and with a foreign backing
//!   file it does nothing with them.
//! * **Namespaces belong to threads.** Create the lab first, then the runtime or the threads that are to live in it.

pub mod activation;
pub mod api;
pub mod attachd;
pub mod cable;
mod certificates;
pub mod child;
mod cloud;
pub mod debian;
pub mod disk;
pub mod forge;
mod freeze;
pub mod helper;
mod lab;
pub mod listen;
mod loops;
pub mod mariadb;
pub mod nbd;
pub mod nbd_server;
pub mod nbdkit;
pub mod people;
mod reader;
mod restart;
pub mod rmem;
pub mod rules;
mod shown;
pub mod slot;
pub mod sse;
mod swap;
pub mod systemd_box;
mod tables;
pub mod tcp;
pub mod udevd;
pub mod volume;
pub mod watch;
pub mod wire;
mod world;

pub use activation::{HeldSocket, NotifySocket};
pub use api::{Api, Reply};
pub use attachd::{Attachd, AttachdOptions};
pub use certificates::Certificates;
pub use cloud::LabCloud;
pub use disk::{Disk, DiskOptions};
pub use forge::Forger;
pub use freeze::{Freezable, Frozen};
pub use helper::Helper;
pub use lab::{Lab, LabBuilder};
pub use listen::{BareListener, Heard};
pub use mariadb::MariaDb;
pub use nbd::NbdClient;
pub use rmem::RmemMax;
pub use sse::Events;
pub use swap::Swap;
pub use tcp::TcpCaller;
pub use udevd::Udevd;
pub use volume::Volume;

//! attachd turns "this cloud volume will be attached here" into a served NBD export, driven by udev events.
//!
//! ```text
//!  kernel ─▶ udevd ─▶ monitor ─▶ engine ─▶ evidence ─▶ store ─▶ export ─▶ probe ─▶ ready
//!                     (a copy)     ▲        (sysfs)    (SQLite)  (a link)  (NBD    (answer, event
//!  caller ─▶ socket ─▶ intent ─────┘                                       handshake)  stream)
//! ```
//!
//! The modules are in the order of the data. `docs/architecture.md` has the table of which module uses which.

mod accounts;
mod blocking;
pub mod budget;
pub mod clock;
pub mod effect;
pub mod folder;
pub mod identity;
pub mod limits;
mod memory;
pub mod place;
mod procfs;
mod readable;
pub mod reason;
mod stamp;

pub mod cloud;
pub mod device;
pub mod operation;
pub mod volume;

pub mod store;

pub mod projection;

mod wire;

pub mod api;
pub mod claiming;
pub mod claims;
pub mod config;
pub mod ctl;
pub mod engine;
pub mod export;
pub mod folder_watch;
pub mod helper_client;
pub mod operations;

pub mod daemon;
pub mod helper;
pub mod reload;
pub mod remote;
mod signals;
pub mod telemetry;

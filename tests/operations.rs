//! Operations end to end: callers, attachd, the stand-in for CloudStack, real disks. What a caller is told, and what CloudStack
//! was asked.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

#[path = "operations/already.rs"]
mod already;
#[path = "operations/away.rs"]
mod away;
mod common;
#[path = "operations/cut.rs"]
mod cut;
#[path = "operations/flush.rs"]
mod flush;
#[path = "operations/limits.rs"]
mod limits;
#[path = "operations/many.rs"]
mod many;
#[path = "operations/not_possible.rs"]
mod not_possible;
#[path = "operations/old_server.rs"]
mod old_server;
#[path = "operations/progress.rs"]
mod progress;
#[path = "operations/shown.rs"]
mod shown;
#[path = "operations/silent.rs"]
mod silent;
#[path = "operations/trouble.rs"]
mod trouble;
#[path = "operations/world.rs"]
mod world;
#[path = "operations/writer.rs"]
mod writer;

//! Clients that write while their volume is to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::json;
use stand_in::{JobFault, Refusal};

use crate::common::*;
use crate::world::World;

const BLOCK: u64 = 4096;

/// A client that writes numbers, one after the other, and flushes each.
struct Writer {
    /// The last number that was flushed.
    flushed: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(world: &World, export: &str) -> Self {
        let mut client = world.lab.nbd_client(export).unwrap();
        let (flushed, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (its_flushed, its_ends) = (Arc::clone(&flushed), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            for number in 1.. {
                if its_ends.load(Ordering::SeqCst) {
                    return;
                }
                client.write(place(number), &number.to_be_bytes()).unwrap();
                client.flush().unwrap();
                its_flushed.store(number, Ordering::SeqCst);
            }
        });
        Self { flushed, ends, thread: Some(thread) }
    }

    /// Waits until it has gone on.
    fn goes_on(&self) {
        let before = self.flushed.load(Ordering::SeqCst);
        while self.flushed.load(Ordering::SeqCst) < before + 10 {
            assert!(!self.thread.as_ref().unwrap().is_finished(), "it was disturbed");
            std::thread::yield_now();
        }
    }
}

fn place(number: u64) -> u64 {
    number % (MIB / BLOCK) * BLOCK
}

#[test]
fn a_detach_is_refused_while_a_client_writes_and_by_force_its_last_flushed_byte_is_on_the_disk() {
    let world = World::new();
    let volume = world.attached();
    let mut writer = Writer::start(&world, &volume.export());
    writer.goes_on();
    for kind in ["detach", "delete"] {
        let error = world.failed(kind, &volume, json!({}), "CLIENTS_CONNECTED");
        assert!(error.contains("127.0.0.1"), "the client is named: {error}");
        writer.goes_on();
    }
    assert_eq!(world.calls("detachVolume"), 0, "{}", world.cloud.told());
    assert!(world.lab.nbd_connects(&volume.export()), "a second client gets in");

    // A guest's disk goes under a client; a loop device does not, so the client goes just before.
    let (ends, thread) = (Arc::clone(&writer.ends), writer.thread.take().unwrap());
    let mut thread = Some(thread);
    world.cloud.before_unplug(move |_| {
        ends.store(true, Ordering::SeqCst);
        thread.take().map(JoinHandle::join).unwrap().unwrap();
    });
    world.completed("detach", &volume, json!({ "force": true }));
    world.is_unknown_here(&volume);
    let last = writer.flushed.load(Ordering::SeqCst);
    let disk = std::fs::read(world.cloud.file(&volume).unwrap()).unwrap();
    let at = usize::try_from(place(last)).unwrap();
    assert_eq!(disk[at..at + 8], last.to_be_bytes(), "the last flushed byte is on the disk");
}

#[test]
fn a_detach_that_cloudstack_refuses_gives_the_export_back_and_the_clients_next_connection_works() {
    let world = World::new();
    let volume = world.attached();
    let mut client = world.lab.nbd_client(&volume.export()).unwrap();
    client.write(0, b"before").unwrap();
    client.flush().unwrap();
    drop(client);
    world.cloud.next_job("detachVolume", JobFault::Fails(Refusal::runtime("it is not possible now")));
    let error = world.failed("detach", &volume, json!({}), "CLOUD_REFUSED");
    assert!(error.contains("it is not possible now"), "{error}");
    wait(&world.api, &volume, "ready");
    let mut client = world.lab.nbd_client(&volume.export()).unwrap();
    assert_eq!(client.read(0, 6).unwrap(), b"before");
    client.write(0, b"after ").unwrap();
    client.flush().unwrap();
    drop(client);
    world.completed("detach", &volume, json!({}));
    assert_eq!(std::fs::read(world.cloud.file(&volume).unwrap()).unwrap()[..6], *b"after ");
}

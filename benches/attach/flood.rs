//! A flood of forged events that overruns every socket, with one real disk in it.

use std::os::fd::AsFd as _;
use std::sync::mpsc as sync;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use lab::{Lab, RmemMax, wire};
use tokio::sync::mpsc;

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, Witness, now_ns, runtime, time_ns};

/// The default of most distributions: then an unprivileged listener has a buffer of 425,984 bytes, for about 300
/// events.
pub(crate) const RMEM_MAX: u32 = 212_992;

/// A disk that is not served by then never will be.
const SOON: Duration = Duration::from_secs(10);

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let rounds = plan.count(10, 2);
    let flood = plan.count(20_000, 5000);
    // The limit is set before anybody asks for a buffer.
    let lab = setup::lab()?;
    let _rmem = RmemMax::set(RMEM_MAX)?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    let buffer = setup::health(&api)?["monitor"]["udev"]["receive_buffer_bytes"].as_u64().context("a number")?;
    let witness = Witness::new(&lab)?;
    let yardstick = Yardstick::start(&lab, usize::try_from(buffer)?)?;
    let forger = lab.forger()?;
    let forged = forged();

    let mut ready = Samples::default();
    let mut rows = Table::new(&[
        "round",
        "attachd: ready after ms",
        "tokio-udev: events received",
        "of the real disk",
        "errors told",
    ]);
    let mut seen = 0;
    for round in 1..=rounds {
        let volume = lab.volume();
        setup::intend(&api, &volume.id)?;
        let mut disk = setup::disk(&lab, &volume.serial, 1 << 20)?;
        yardstick.take();
        attachd.sigstop()?;
        yardstick.pause();
        (0..flood / 2).try_for_each(|_| forger.send_raw(&forged))?;
        disk.attach()?;
        witness.announced(&disk)?;
        (0..flood / 2).try_for_each(|_| forger.send_raw(&forged))?;
        let begun_ns = now_ns();
        attachd.sigcont()?;
        yardstick.resume();
        let took = if let Err(error) = api.wait_volume(&volume.id, "ready", SOON) {
            println!("{error:#}");
            "never".to_owned()
        } else {
            let shown = api.get(&format!("/api/v1/volumes/{}", volume.id))?.expect(200)?;
            let mut this = Samples::default();
            this.add_between(begun_ns, time_ns(&shown["since"])?);
            ready.extend(&this);
            ms(this.max())
        };
        // By now it has read everything that its socket held.
        thread::sleep(Duration::from_millis(500));
        let heard = yardstick.take();
        let (real, errors) = (heard.iter().filter(|serial| **serial == volume.serial).count(), yardstick.errors());
        seen += usize::from(real > 0);
        println!("round {round}: attachd {took} ms; tokio-udev heard {} events, {real} of the disk", heard.len());
        rows.row([round.to_string(), took, heard.len().to_string(), real.to_string(), errors.to_string()]);
        setup::withdraw(&api, &volume.id)?;
        disk.detach()?;
    }
    let health = setup::health(&api)?;
    let udev = &health["monitor"]["udev"];
    let mut counts = Table::new(&["attachd", "overruns", "drops", "losses answered with a resync"]);
    counts.row([
        "all rounds".to_owned(),
        udev["overruns"].to_string(),
        udev["drops"].to_string(),
        health["resync"]["losses"].to_string(),
    ]);
    let goals = vec![Goal {
        wanted: "attachd misses nothing: every real disk in the flood is served".into(),
        measured: format!(
            "{} of {rounds} (max {} ms); seen by tokio-udev's stream: {seen} of {rounds}",
            ready.len(),
            ms(ready.max())
        ),
        met: ready.len() == rounds,
    }];
    let about = format!(
        "rmem_max is {RMEM_MAX}, as most distributions have it; the receive buffer of both listeners is {buffer} \
         bytes. attachd is stopped (SIGSTOP), tokio-udev's stream is not read, {flood} forged events are sent with one \
         real attach in their midst, then both go on. Measured from that moment. tokio-udev hides an overrun: its \
         stream neither shows the disk nor an error."
    );
    let raw = vec![("attachd ready".to_owned(), ready)];
    Ok(Section { title: "A forged flood", about, tables: vec![rows, counts], goals, raw })
}

/// Returns an event about a disk that does not exist.
fn forged() -> Vec<u8> {
    wire::encode(&[
        ("ACTION", "change"),
        ("DEVPATH", "/devices/virtual/block/loop999999"),
        ("SUBSYSTEM", "block"),
        ("DEVTYPE", "disk"),
        ("DEVNAME", "/dev/loop999999"),
        ("MAJOR", "7"),
        ("MINOR", "999999"),
        ("DISKSEQ", "1"),
        ("SEQNUM", "1"),
        ("ID_SERIAL", "00000000000000000000"),
        ("PADDING", PADDING),
    ])
}

/// A real event of a disk has about 900 bytes of properties.
const PADDING: &str = match std::str::from_utf8(&[b'x'; 600]) {
    Ok(text) => text,
    Err(_) => "",
};

/// The yardstick: a stream of the crate tokio-udev, in the lab of the thread that starts it.
pub(crate) struct Yardstick {
    tell: mpsc::UnboundedSender<Tell>,
    heard: sync::Receiver<Result<String, String>>,
    errors: std::cell::Cell<usize>,
}

enum Tell {
    Pause,
    Resume,
}

impl Yardstick {
    /// Starts it with this receive buffer (as the kernel counts it, overhead included).
    pub(crate) fn start(_lab: &Lab, buffer: usize) -> Result<Self> {
        let (tell, told) = mpsc::unbounded_channel();
        let (sender, heard) = sync::channel();
        let (up, is_up) = sync::channel();
        // libudev's objects stay on one thread. It ends when the sender of orders is dropped.
        thread::spawn(move || {
            let followed = runtime().and_then(|runtime| runtime.block_on(follow(buffer, told, &sender, &up)));
            if let Err(error) = followed {
                let _ = sender.send(Err(format!("{error:#}")));
            }
        });
        is_up.recv().context("tokio-udev's stream did not come up")?;
        Ok(Self { tell, heard, errors: std::cell::Cell::new(0) })
    }

    /// Stops reading.
    pub(crate) fn pause(&self) {
        let _ = self.tell.send(Tell::Pause);
        // By then it has stopped: an idle runtime needs microseconds.
        thread::sleep(Duration::from_millis(50));
    }

    /// Continues reading.
    pub(crate) fn resume(&self) {
        let _ = self.tell.send(Tell::Resume);
    }

    /// Returns the serials of the events since the last call (empty for events without one).
    pub(crate) fn take(&self) -> Vec<String> {
        let items: Vec<_> = self.heard.try_iter().collect();
        let errors = items.iter().filter(|item| item.is_err()).count();
        self.errors.set(self.errors.get() + errors);
        items.into_iter().flatten().collect()
    }

    /// Returns the number of errors so far.
    pub(crate) fn errors(&self) -> usize {
        self.errors.get()
    }
}

async fn follow(
    buffer: usize,
    mut told: mpsc::UnboundedReceiver<Tell>,
    heard: &sync::Sender<Result<String, String>>,
    up: &sync::Sender<()>,
) -> Result<()> {
    let socket = tokio_udev::MonitorBuilder::new()?.match_subsystem_devtype("block", "disk")?.listen()?;
    // The kernel doubles the requested size.
    rustix::net::sockopt::set_socket_recv_buffer_size(socket.as_fd(), buffer / 2)?;
    let mut stream = tokio_udev::AsyncMonitorSocket::new(socket)?;
    up.send(())?;
    let mut paused = false;
    loop {
        tokio::select! {
            biased;
            order = told.recv() => match order {
                Some(order) => paused = matches!(order, Tell::Pause),
                None => return Ok(()),
            },
            item = stream.next(), if !paused => match item {
                Some(Ok(event)) => {
                    let serial = event.property_value("ID_SERIAL").map(|serial| serial.to_string_lossy().into_owned());
                    heard.send(Ok(serial.unwrap_or_default()))?;
                }
                Some(Err(error)) => heard.send(Err(error.to_string()))?,
                None => return Ok(()),
            },
        }
    }
}

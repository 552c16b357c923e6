//! Reads disks outside of the engine, within a time limit. A serial is a request to the hypervisor, which may never
//! answer it.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::input::{Input, Inputs};
use super::tools::{AllDisks, Disks};
use super::udevd;
use crate::blocking::begin;
use crate::device::DevNum;
use crate::device::facts::{Facts, LinkTarget};
use crate::device::found::Found;
use crate::device::sysfs::Sysfs;

/// How long a disk may take to report its serial.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// The number of disks that may hang. Each of them keeps a thread. Beyond it no disk is asked.
const MOST_HANGING: usize = 256;

/// The number of disks read at one time.
const AT_ONCE: usize = 16;

/// Reads disks of the running kernel. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    sysfs: Sysfs,
    /// A permit is held until the answer or the time limit, so that a disk that hangs delays the others only for a
    /// limited time.
    places: Arc<Semaphore>,
    /// Disks that owe an answer. None of them is asked again, so that each costs one thread only.
    hanging: Arc<Mutex<HashSet<DevNum>>>,
    back: mpsc::Sender<Input>,
}

impl Reader {
    /// Returns a reader that notifies the engine of disks that answer late.
    pub fn new(sysfs: Sysfs, inputs: &Inputs) -> Self {
        let back = inputs.sender.clone();
        Self { sysfs, places: Arc::new(Semaphore::new(AT_ONCE)), hanging: Arc::default(), back }
    }

    /// Returns the disk's facts, or the facts without the identity if the disk does not answer in time. A late answer
    /// is reported by [`Input::Answered`].
    async fn read(&self, devnum: DevNum) -> Found<Facts> {
        let why = format!("no answer within {} s", LOOK_LIMIT.as_secs());
        let place = Arc::clone(&self.places).acquire_owned().await;
        if self.hanging().contains(&devnum) {
            return self.sysfs.read_unanswered(devnum, &why);
        }
        let sysfs = self.sysfs.clone();
        let begun = if self.hanging().len() < MOST_HANGING {
            begin(move || sysfs.read(devnum))
        } else {
            Err(io::Error::other(format!("{MOST_HANGING} disks do not answer")))
        };
        let mut reading = match begun {
            Ok(reading) => reading,
            // Whether the disk is gone is known without a thread.
            Err(error) => return self.sysfs.read_unanswered(devnum, &error.to_string()),
        };
        if let Ok(found) = tokio::time::timeout(LOOK_LIMIT, &mut reading).await {
            return found.unwrap_or_else(|error| Found::Unknown(error.to_string()));
        }
        drop(place);
        self.hanging().insert(devnum);
        let reader = self.clone();
        tokio::spawn(async move {
            // The late answer is of a past moment, so the disk is read again.
            let _ = reading.await;
            reader.hanging().remove(&devnum);
            let _ = reader.back.send(Input::Answered(devnum)).await;
        });
        self.sysfs.read_unanswered(devnum, &why)
    }

    /// Reads every disk that is present.
    async fn read_all(&self) -> io::Result<AllDisks> {
        let mut readings = JoinSet::new();
        for devnum in self.sysfs.list()? {
            let reader = self.clone();
            readings.spawn(async move { (devnum, reader.read(devnum).await) });
        }
        Ok(readings.join_all().await)
    }

    fn hanging(&self) -> std::sync::MutexGuard<'_, HashSet<DevNum>> {
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disks for Reader {
    fn read(&self, devnum: DevNum) -> BoxFuture<'static, Found<Facts>> {
        let reader = self.clone();
        async move { reader.read(devnum).await }.boxed()
    }

    fn read_all(&self) -> BoxFuture<'static, io::Result<AllDisks>> {
        let reader = self.clone();
        async move { reader.read_all().await }.boxed()
    }

    fn read_unanswered(&self, devnum: DevNum, why: &str) -> Found<Facts> {
        self.sysfs.read_unanswered(devnum, why)
    }

    fn still(&self, devnum: DevNum, diskseq: u64) -> Found<()> {
        self.sysfs.still(devnum, diskseq)
    }

    fn resolve(&self, link: &str) -> io::Result<LinkTarget> {
        self.sysfs.resolve(link)
    }

    fn udevd_is_at_work(&self) -> bool {
        udevd::at_work()
    }
}

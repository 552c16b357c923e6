mod conformance;
mod operations;
mod refused;
mod tables;
mod target;

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use tokio::task::JoinHandle;

use super::task::{PACE, Pace};
use super::*;
use crate::clock;
use crate::device::evidence::Evidence;
use crate::device::facts::sample;
use crate::identity::VolumeId;
use crate::operation::Placeholder;
use crate::store::sample::{StoreFolder, run};
use crate::store::{Change, Following, News, Owed};
use crate::volume::{Record, State};

/// Short times for tests.
const QUICK: Pace = Pace {
    gather: Duration::from_millis(1),
    away: (Duration::from_millis(5), Duration::from_millis(20)),
    set_aside: (Duration::from_millis(20), Duration::from_millis(40)),
    quiet: Duration::from_millis(50),
};

/// An open store and the task of its projection.
struct Running {
    store: Store,
    closing: JoinHandle<()>,
    following: JoinHandle<()>,
    records: Vec<Record>,
}

impl StoreFolder {
    /// Starts the daemon's own projection.
    async fn start(&self) -> Running {
        self.start_on(10809, PACE).await
    }

    async fn start_on(&self, port: u16, pace: Pace) -> Running {
        let (store, closing, records) = self.open().await;
        let source = source::Volumes::new(store.follow(SQLITE, Follows::Volumes), basis(port));
        let following = tokio::spawn(task::run(source, Sqlite::new(port), pace));
        Running { store, closing, following, records }
    }

    /// Starts a projection to another target.
    async fn start_in(&self, target: target::Memory) -> Running {
        let (store, closing, records) = self.open().await;
        let source = source::Volumes::new(store.follow("memory", Follows::Volumes), "1".into());
        let following = tokio::spawn(task::run(source, target, QUICK));
        Running { store, closing, following, records }
    }
}

impl StoreFolder {
    /// Makes the tables, and returns a connection as another program would have.
    async fn open_once_and_connect(&self) -> SqliteConnection {
        let (store, closing, _) = self.open().await;
        drop(store);
        closing.await.unwrap();
        self.other().await
    }
}

impl Running {
    /// Stops in order.
    async fn stop(self) {
        drop(self.store);
        self.closing.await.unwrap();
        self.following.await.unwrap();
    }

    /// Stops as a kill does.
    async fn kill(self) {
        self.following.abort();
        let _ = self.following.await;
        drop(self.store);
        self.closing.await.unwrap();
    }

    async fn following(&self) -> Following {
        self.store.pulse().await.followers.remove(0)
    }

    /// Waits until `holds` is true.
    async fn until(&self, what: &str, holds: impl Fn(&Following) -> bool) -> Following {
        let mut checks = tokio::time::interval(Duration::from_millis(5));
        for _ in 0..2000 {
            checks.tick().await;
            let following = self.following().await;
            if holds(&following) {
                return following;
            }
        }
        panic!("{what}: {:?}", self.following().await);
    }

    /// Waits until this many volumes are set aside, all others are shown, and one of those set aside is named, which happens a
    /// moment later.
    async fn until_set_aside(&self, volumes: u64) -> Following {
        let owed = Owed { records: 0, set_aside: volumes };
        let counted = |following: &Following| following.owed.as_ref() == Some(&owed);
        self.until("set aside", |following| counted(following) && following.progress.example.is_some()).await
    }

    async fn until_shown(&self) {
        self.until("something is owed", |following| following.owed.is_some_and(|owed| owed.records == 0)).await;
    }
}

async fn text(connection: &mut SqliteConnection, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

fn volume(n: u32) -> VolumeId {
    format!("{n:08x}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap()
}

fn intend(volume: VolumeId) -> Change {
    Change::Intend(crate::volume::sample::intent(volume))
}

fn map(volume: VolumeId) -> Change {
    let proven = sample::evidence();
    let serial = volume.serial();
    Change::Map(volume, Evidence { serial, link: format!("/dev/disk/by-id/virtio-{serial}"), ..proven })
}

fn stand(volume: VolumeId, state: State) -> Change {
    Change::News(volume, News::Stand(state, None, clock::wall()))
}

/// The changes of a volume that gets served.
fn ready(volume: VolumeId) -> Vec<Change> {
    vec![intend(volume), map(volume), stand(volume, State::Ready)]
}

const OWED: &str = "SELECT volume_id FROM changed ORDER BY 1";
const STATES: &str = "SELECT linux_state || ' ' || status FROM device_mappings JOIN nbd_exports ON volume_uuid = volume_id ORDER BY volume_id";

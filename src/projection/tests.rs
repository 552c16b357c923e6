use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::task::JoinHandle;

use super::task::{PACE, Pace};
use super::*;
use crate::clock;
use crate::device::evidence::Evidence;
use crate::device::facts::sample;
use crate::identity::VolumeId;
use crate::store::{Change, Following, News, Options, Owed};
use crate::volume::{Record, State};

/// What waits for nothing in a test.
const QUICK: Pace = Pace {
    gather: Duration::from_millis(1),
    away: (Duration::from_millis(5), Duration::from_millis(20)),
    set_aside: (Duration::from_millis(20), Duration::from_millis(40)),
    quiet: Duration::from_millis(50),
};

/// A folder with a store in it.
struct Place(tempfile::TempDir);

/// What runs on it.
struct Running {
    store: Store,
    closing: JoinHandle<()>,
    following: JoinHandle<()>,
    records: Vec<Record>,
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.path().join("attachd.db")
    }

    async fn open(&self) -> (Store, JoinHandle<()>, Vec<Record>) {
        let options = Options { path: &self.file(), history_days: 90, boot_id: "this boot", spare: self.0.path() };
        Store::open(options).await.unwrap()
    }

    /// The daemon's own.
    async fn start(&self) -> Running {
        self.start_on(10809, PACE).await
    }

    async fn start_on(&self, port: u16, pace: Pace) -> Running {
        let (store, closing, records) = self.open().await;
        let follower = store.follow(SQLITE);
        let following = tokio::spawn(task::run(follower, Sqlite::new(port), basis(port), pace));
        Running { store, closing, following, records }
    }

    /// Into another target.
    async fn start_in(&self, target: Memory) -> Running {
        let (store, closing, records) = self.open().await;
        let following = tokio::spawn(task::run(store.follow("memory"), target, "1".into(), QUICK));
        Running { store, closing, following, records }
    }

    /// Another program's connection.
    async fn other(&self) -> SqliteConnection {
        SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(self.file())).await.unwrap()
    }
}

impl Running {
    /// In order.
    async fn stop(self) {
        drop(self.store);
        self.closing.await.unwrap();
        self.following.await.unwrap();
    }

    /// Without a word.
    async fn kill(self) {
        self.following.abort();
        let _ = self.following.await;
        drop(self.store);
        self.closing.await.unwrap();
    }

    async fn following(&self) -> Following {
        self.store.pulse().await.followers.remove(0)
    }

    /// Waits until it stands so.
    async fn until(&self, what: &str, stands: impl Fn(&Following) -> bool) -> Following {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        for _ in 0..2000 {
            looks.tick().await;
            let following = self.following().await;
            if stands(&following) {
                return following;
            }
        }
        panic!("{what}: {:?}", self.following().await);
    }

    /// Waits until so many are set aside, and one of them is named: that comes a moment after the count.
    async fn until_set_aside(&self, volumes: u64) -> Following {
        let counted = |following: &Following| following.owed.is_some_and(|owed| owed.set_aside == volumes);
        self.until("set aside", |following| counted(following) && following.progress.example.is_some()).await
    }

    async fn until_shown(&self) {
        self.until("something is owed", |following| following.owed.is_some_and(|owed| owed.volumes == 0)).await;
    }
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
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

/// Served.
fn ready(volume: VolumeId) -> Vec<Change> {
    vec![intend(volume), map(volume), stand(volume, State::Ready)]
}

const OWED: &str = "SELECT volume_id FROM changed ORDER BY 1";
const STATES: &str = "SELECT linux_state || ' ' || status FROM device_mappings JOIN nbd_exports ON volume_uuid = volume_id ORDER BY volume_id";

#[tokio::test]
async fn what_changed_last_is_shown_when_the_daemon_has_ended() {
    let place = Place::new();
    let running = place.start().await;
    running.store.write(vec![intend(volume(1)), map(volume(1))]).await.unwrap();
    running.store.post(volume(1), vec![News::Stand(State::Ready, None, clock::wall())]);
    let files = || -> Vec<_> { place.0.path().read_dir().unwrap().map(|file| file.unwrap().file_name()).collect() };
    assert!(files().len() > 1, "the control: there is a log beside it");
    running.stop().await;
    assert_eq!(files(), ["attachd.db"], "it is one file again");
    let mut other = place.other().await;
    assert_eq!(text(&mut other, OWED).await, [""; 0]);
    assert_eq!(text(&mut other, STATES).await, ["detected active"]);
}

#[tokio::test]
async fn a_volume_that_is_lost_or_refused_keeps_its_rows_says_so_and_keeps_what_others_wrote_until_it_is_withdrawn() {
    let place = Place::new();
    let running = place.start().await;
    let mut other = place.other().await;
    running.store.write(ready(volume(1))).await.unwrap();
    running.until_shown().await;
    assert_eq!(text(&mut other, STATES).await, ["detected active"]);
    run(
        &mut other,
        "UPDATE device_mappings SET operation_mode = 'failover', vm_context_id = 'ctx', ossea_snapshot_id = 'snap', \
         cloudstack_device_id = 3, cloudstack_state = 'theirs', created_at = 'then'; \
         UPDATE nbd_exports SET vm_disk_id = 7, job_id = 'job', device_mapping_uuid = NULL, config_path = 'conf'",
    )
    .await;
    let theirs = "SELECT concat_ws(' ', operation_mode, m.vm_context_id, ossea_snapshot_id, cloudstack_device_id, \
        cloudstack_state, m.created_at, vm_disk_id, job_id, ifnull(device_mapping_uuid, '-'), config_path, e.id) \
        FROM device_mappings m JOIN nbd_exports e ON volume_uuid = volume_id";
    let written = text(&mut other, theirs).await;
    assert_eq!(written, ["failover ctx snap 3 theirs then 7 job - conf 1"], "the control");
    for state in [State::Lost, State::Refused, State::Detaching, State::Exporting, State::Ready] {
        running.store.write(vec![map(volume(1)), stand(volume(1), state)]).await.unwrap();
        running.until_shown().await;
        assert_eq!(text(&mut other, theirs).await, written, "{state}");
        let shown = text(&mut other, STATES).await;
        let says = [state.as_str(), "pending", "active"].iter().any(|word| shown[0].ends_with(word));
        assert!(says, "{state}: {shown:?}");
    }
    running.store.write(vec![Change::Withdraw(volume(1))]).await.unwrap();
    running.until_shown().await;
    assert_eq!(text(&mut other, "SELECT volume_id FROM nbd_exports").await, [""; 0]);
    assert_eq!(text(&mut other, "SELECT volume_uuid FROM device_mappings").await, [""; 0]);
}

/// Somebody has made a column of theirs obligatory: an insert would be refused, what is there is kept up to date.
#[tokio::test]
async fn a_column_that_others_have_added_is_in_nobodys_way() {
    let place = Place::new();
    let running = place.start().await;
    let mut other = place.other().await;
    running.store.write(ready(volume(1))).await.unwrap();
    running.until_shown().await;
    run(
        &mut other,
        "ALTER TABLE device_mappings ADD COLUMN theirs TEXT; UPDATE device_mappings SET theirs = 'x'; \
         CREATE TRIGGER obligatory BEFORE INSERT ON device_mappings WHEN NEW.theirs IS NULL BEGIN \
         SELECT RAISE(ABORT, 'theirs is missing'); END",
    )
    .await;
    running.store.write(vec![stand(volume(1), State::Lost)]).await.unwrap();
    running.until_shown().await;
    assert_eq!(text(&mut other, STATES).await, ["lost lost"]);
    assert_eq!(running.following().await.owed, Some(Owed { volumes: 0, set_aside: 0 }));
    running.store.write(ready(volume(2))).await.unwrap();
    let following = running.until_set_aside(1).await;
    assert_eq!(following.progress.example.unwrap().0, volume(2));
}

const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON nbd_exports WHEN NEW.volume_id LIKE '00000002%' BEGIN \
    SELECT RAISE(ABORT, 'not this one'); END";

#[tokio::test]
async fn a_row_that_is_refused_is_set_aside_and_named_and_its_neighbours_are_shown() {
    let place = Place::new();
    let running = place.start().await;
    let mut other = place.other().await;
    run(&mut other, REFUSE).await;
    // A row of somebody else's has the path of another.
    let path = format!("/dev/disk/by-id/virtio-{}", volume(4).serial());
    sqlx::query(
        "INSERT INTO device_mappings (id, volume_uuid, vm_id, device_path, cloudstack_state, linux_state, size) \
         VALUES ('x', 'x', 'x', ?, 'x', 'x', 0)",
    )
    .bind(path)
    .execute(&mut other)
    .await
    .unwrap();
    running.store.write((1..=5).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    let following = running.until_set_aside(2).await;
    running.until_shown().await;
    let shown = text(&mut other, "SELECT substr(volume_id, 8, 1) FROM nbd_exports ORDER BY 1").await;
    assert_eq!(shown, ["1", "3", "5"], "the neighbours");
    let mapped =
        text(&mut other, "SELECT substr(volume_uuid, 8, 1) FROM device_mappings WHERE id <> 'x' ORDER BY 1").await;
    assert_eq!(mapped, shown, "all of a volume's rows or none");
    let (named, why) = following.progress.example.unwrap();
    assert_eq!(named, volume(2));
    assert!(why.contains("not this one"), "{why}");
    assert_eq!(running.store.pulse().await.failure, None, "the store has nothing to do with that");
    // What is in the way has gone, and the volume changes.
    run(&mut other, "DROP TRIGGER refuse").await;
    running.store.write(vec![stand(volume(2), State::Lost)]).await.unwrap();
    running.until("it is shown", |following| following.owed.is_some_and(|owed| owed.set_aside == 1)).await;
    assert_eq!(text(&mut other, STATES).await, ["detected active", "lost lost", "detected active", "detected active"]);
    assert_eq!(text(&mut other, "SELECT volume_id FROM set_aside").await, [volume(4).to_string()]);
}

#[tokio::test]
async fn what_is_set_aside_is_tried_again_after_a_while_and_at_a_start() {
    for restart in [false, true] {
        let place = Place::new();
        let mut running = place.start_on(10809, if restart { PACE } else { QUICK }).await;
        let mut other = place.other().await;
        run(&mut other, REFUSE).await;
        running.store.write(ready(volume(2))).await.unwrap();
        running.until_set_aside(1).await;
        if restart {
            running.stop().await;
            running = place.start().await;
            running.until("the control", |following| following.owed.is_some_and(|owed| owed.set_aside == 1)).await;
            running.stop().await;
            run(&mut other, "DROP TRIGGER refuse").await;
            running = place.start().await;
        } else {
            run(&mut other, "DROP TRIGGER refuse").await;
        }
        running.until("all is shown", |following| following.owed == Some(Owed { volumes: 0, set_aside: 0 })).await;
        assert_eq!(text(&mut other, STATES).await, ["detected active"]);
    }
}

/// The truth would have to wait for it.
#[tokio::test]
async fn a_trigger_that_does_not_end_holds_up_neither_the_store_nor_other_rows() {
    let place = Place::new();
    let running = place.start().await;
    let mut other = place.other().await;
    run(
        &mut other,
        "CREATE TABLE theirs (n); CREATE TRIGGER endless AFTER INSERT ON nbd_exports WHEN NEW.volume_id LIKE '00000002%' BEGIN \
         INSERT INTO theirs WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 1000000000000) \
         SELECT max(n) FROM numbers; END",
    )
    .await;
    running.store.write((1..=3).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    let following = running.until_set_aside(1).await;
    let (named, why) = following.progress.example.unwrap();
    assert_eq!((named, &*why), (volume(2), "it takes longer than 200 ms"));
    assert_eq!(text(&mut other, STATES).await, ["detected active", "detected active"]);
    let begun = std::time::Instant::now();
    running.store.write(vec![stand(volume(2), State::Lost)]).await.unwrap();
    running.store.write(ready(volume(4))).await.unwrap();
    assert!(begun.elapsed() < crate::store::SILENT_AFTER, "{:?}", begun.elapsed());
    running.until_shown().await;
    assert_eq!(text(&mut other, STATES).await.len(), 3);
}

/// It is the tables' fault, and no row's.
#[tokio::test]
async fn a_table_that_is_gone_is_told_and_when_it_is_back_it_is_caught_up_with() {
    let place = Place::new();
    let running = place.start_on(10809, QUICK).await;
    let mut other = place.other().await;
    run(&mut other, "ALTER TABLE nbd_exports RENAME TO aside").await;
    running.store.write((1..=50).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    let no_table = |why: &String| why.contains("no such table");
    let following = running.until("told", |following| following.progress.failure.as_ref().is_some_and(no_table)).await;
    assert_eq!(following.owed, Some(Owed { volumes: 50, set_aside: 0 }));
    assert!(following.progress.behind_since.is_some());
    run(&mut other, "ALTER TABLE aside RENAME TO nbd_exports").await;
    running.until_shown().await;
    assert_eq!(text(&mut other, STATES).await.len(), 50);
    running.until("it works", |following| following.progress.failure.is_none()).await;
}

/// Which rows depend on the configuration.
#[tokio::test]
async fn with_another_port_all_rows_are_written_once_more_and_with_the_same_none() {
    let place = Place::new();
    let running = place.start().await;
    running.store.write((1..=30).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    running.stop().await;
    let mut other = place.other().await;
    run(&mut other, "UPDATE nbd_exports SET updated_at = 'seen'").await;
    place.start().await.stop().await;
    let ports = "SELECT DISTINCT port || ' ' || updated_at FROM nbd_exports";
    assert_eq!(text(&mut other, ports).await, ["10809 seen"], "the control");
    place.start_on(10810, PACE).await.stop().await;
    let ports = text(&mut other, ports).await;
    assert!(!ports.is_empty() && ports.iter().all(|port| port.starts_with("10810 ")), "{ports:?}");
}

/// The store of an earlier version, with rows that it still owed.
#[tokio::test]
async fn what_an_earlier_version_owed_is_shown_withdrawn_volumes_too() {
    let place = Place::new();
    let running = place.start().await;
    running.store.write((1..=4).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    running.stop().await;
    let mut other = place.other().await;
    // As it has shown them: a lost volume had no row. One was withdrawn, and one has come, which it had not shown yet.
    run(
        &mut other,
        "DELETE FROM nbd_exports WHERE volume_id LIKE '00000001%' OR volume_id LIKE '00000004%'; \
         DELETE FROM device_mappings WHERE volume_uuid LIKE '00000001%' OR volume_uuid LIKE '00000004%'; \
         UPDATE intents SET state = 'lost' WHERE volume_id LIKE '00000001%'; \
         DELETE FROM intents WHERE volume_id LIKE '00000002%'; \
         DELETE FROM mappings WHERE volume_id LIKE '00000002%'; \
         DROP TRIGGER mapping_made; DROP TRIGGER mapping_changed; DROP TRIGGER mapping_gone; DROP TRIGGER volume_changed; \
         DROP TABLE changed; DROP TABLE set_aside; DROP TABLE followers; \
         CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, volume_id TEXT NOT NULL, vm_id TEXT NOT NULL, \
         at INTEGER NOT NULL, device_path TEXT, size_bytes INTEGER, export_status TEXT) STRICT; \
         INSERT INTO outbox (volume_id, vm_id, at) SELECT volume_id, 'vm', 0 FROM nbd_exports WHERE volume_id LIKE '00000002%'; \
         INSERT INTO outbox (volume_id, vm_id, at, device_path, size_bytes, export_status) \
         SELECT volume_id, 'vm', 0, device_path, size_bytes, 'pending' FROM mappings WHERE volume_id LIKE '00000004%'; \
         DELETE FROM _sqlx_migrations WHERE version = 4",
    )
    .await;
    assert_eq!(text(&mut other, STATES).await.len(), 2, "the control: one too much, two too few");
    let running = place.start().await;
    running.until("all are shown", |following| following.owed.is_some_and(|owed| owed.volumes == 0)).await;
    let shown = text(&mut other, "SELECT substr(volume_id, 8, 1) || ' ' || status FROM nbd_exports ORDER BY 1").await;
    assert_eq!(shown, ["1 lost", "3 active", "4 active"]);
    assert_eq!(running.records.len(), 3);
}

/// A target that the test has in its hand.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    rows: BTreeMap<VolumeId, Shown>,
    away: bool,
    breaks: bool,
    hangs: bool,
    refuses: BTreeSet<VolumeId>,
    writes: usize,
}

impl Target for Memory {
    async fn write(&mut self, rows: &[Rows], _: &mut Follower) -> Result<(), TargetError> {
        if self.0.lock().unwrap().hangs {
            std::future::pending::<()>().await;
        }
        let mut inner = self.0.lock().unwrap();
        inner.writes += 1;
        let breaks = std::mem::take(&mut inner.breaks);
        if breaks {
            drop(inner);
            panic!("as the test wants it");
        }
        if inner.away {
            return Err(TargetError::Away("it is away".into()));
        }
        if let Some(row) = rows.iter().find(|row| inner.refuses.contains(&row.volume)) {
            return Err(TargetError::Refused(format!("not {}", row.volume)));
        }
        for Rows { volume, present } in rows.iter().cloned() {
            match present {
                Some(present) => drop(inner.rows.insert(volume, present)),
                None => drop(inner.rows.remove(&volume)),
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_target_that_is_away_costs_a_row_for_each_changed_volume_changes_nothing_else_and_is_caught_up_with() {
    let place = Place::new();
    let target = Memory::default();
    let running = place.start_in(target.clone()).await;
    running.store.write((1..=3).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    running.until_shown().await;
    assert_eq!(target.0.lock().unwrap().rows.len(), 3, "the control");
    target.0.lock().unwrap().away = true;
    for _ in 0..50 {
        for state in [State::Lost, State::Ready] {
            running.store.write((1..=3).map(|n| stand(volume(n), state)).collect()).await.unwrap();
        }
    }
    running.store.write(vec![Change::Withdraw(volume(3))]).await.unwrap();
    let following = running.until("told", |following| following.progress.failure.is_some()).await;
    assert_eq!(following.owed, Some(Owed { volumes: 3, set_aside: 0 }));
    assert_eq!(following.progress.failure.as_deref(), Some("it is away"));
    let behind = following.progress.behind_since.unwrap();
    assert!(behind <= clock::wall());
    let mut other = place.other().await;
    assert_eq!(text(&mut other, OWED).await.len(), 3, "300 changes of three volumes");
    assert_eq!(running.store.pulse().await.failure, None);

    // Also through a death of the daemon.
    running.kill().await;
    let running = place.start_in(target.clone()).await;
    running.until("told", |following| following.progress.failure.is_some()).await;
    target.0.lock().unwrap().away = false;
    running.until_shown().await;
    let following = running.until("it works", |following| following.progress.behind_since.is_none()).await;
    assert_eq!(following.progress.failure, None);
    assert_eq!(target.0.lock().unwrap().rows.keys().copied().collect::<Vec<_>>(), [volume(1), volume(2)]);
}

/// One that says so keeps nobody; one that says nothing keeps the end waiting for three seconds.
#[tokio::test]
async fn a_target_that_is_away_or_hangs_at_the_end_is_waited_for_in_bounds_and_caught_up_with_by_the_next_start() {
    for hangs in [false, true] {
        let place = Place::new();
        let target = Memory::default();
        let running = place.start_in(target.clone()).await;
        running.until("it has begun", |following| following.owed.is_some()).await;
        {
            let mut inner = target.0.lock().unwrap();
            (inner.away, inner.hangs) = (true, hangs);
        }
        running.store.write(ready(volume(1))).await.unwrap();
        let begun = std::time::Instant::now();
        let Running { store, closing, following, .. } = running;
        drop(store);
        closing.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(if hangs { 5 } else { 2 }), "{:?}", begun.elapsed());
        following.abort();
        let _ = following.await;
        *target.0.lock().unwrap() = Inner::default();
        place.start_in(target.clone()).await.stop().await;
        assert_eq!(target.0.lock().unwrap().rows.len(), 1);
    }
}

/// A fault of attachd's own is said, as long as anybody can ask.
#[tokio::test]
async fn a_task_that_breaks_off_is_told_and_changes_nothing_else() {
    let place = Place::new();
    let target = Memory::default();
    let running = place.start_in(target.clone()).await;
    running.until("it has begun", |following| following.owed.is_some()).await;
    assert_eq!(running.following().await.progress.failure, None, "the control");
    target.0.lock().unwrap().breaks = true;
    running.store.write(ready(volume(1))).await.unwrap();
    let following = running.until("told", |following| following.progress.failure.is_some()).await;
    assert!(following.progress.failure.unwrap().contains("has ended"));
    running.store.write(ready(volume(2))).await.unwrap();
    running.kill().await;
}

#[tokio::test]
async fn nothing_is_written_when_nothing_of_it_changes() {
    let place = Place::new();
    let target = Memory::default();
    let running = place.start_in(target.clone()).await;
    running.store.write(ready(volume(1))).await.unwrap();
    running.until_shown().await;
    let writes = target.0.lock().unwrap().writes;
    // What does not concern it: an intent without a disk comes and goes, a step is told.
    for _ in 0..20 {
        running.store.write(vec![intend(volume(2)), stand(volume(2), State::Expired)]).await.unwrap();
        running.store.write(vec![Change::Withdraw(volume(2))]).await.unwrap();
    }
    running.store.write(vec![stand(volume(1), State::Lost)]).await.unwrap();
    running.until_shown().await;
    assert_eq!(target.0.lock().unwrap().writes, writes + 1, "the last one, which does");
}

#[derive(Debug, Clone)]
enum Step {
    Map(u32),
    Stand(u32, State),
    Withdraw(u32),
    Away(bool),
    Refuse(u32),
    TakeAll,
    Restart,
    CatchUp,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let states = proptest::sample::select(State::ALL.to_vec());
    let step = prop_oneof![
        4 => (0..4_u32).prop_map(Step::Map),
        6 => (0..4_u32, states).prop_map(|(n, state)| Step::Stand(n, state)),
        2 => (0..4_u32).prop_map(Step::Withdraw),
        1 => any::<bool>().prop_map(Step::Away),
        1 => (0..4_u32).prop_map(Step::Refuse),
        1 => Just(Step::TakeAll),
        1 => Just(Step::Restart),
        2 => Just(Step::CatchUp),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Whatever happens, and whatever the target takes meanwhile: in the end it shows what is on record.
#[tokio::test]
async fn whatever_happens_the_target_shows_what_is_on_record_in_the_end() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..24 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let place = Place::new();
        let target = Memory::default();
        let mut running = place.start_in(target.clone()).await;
        for step in &steps {
            let changes = match step.clone() {
                Step::Map(n) => vec![intend(volume(n)), map(volume(n))],
                Step::Stand(n, state) => vec![stand(volume(n), state)],
                Step::Withdraw(n) => vec![Change::Withdraw(volume(n))],
                Step::Away(away) => {
                    target.0.lock().unwrap().away = away;
                    continue;
                }
                Step::Refuse(n) => {
                    target.0.lock().unwrap().refuses.insert(volume(n));
                    continue;
                }
                Step::TakeAll => {
                    target.0.lock().unwrap().refuses.clear();
                    continue;
                }
                Step::Restart => {
                    running.kill().await;
                    running = place.start_in(target.clone()).await;
                    continue;
                }
                Step::CatchUp => {
                    if !target.0.lock().unwrap().away {
                        running.until_shown().await;
                    }
                    continue;
                }
            };
            running.store.write(changes).await.unwrap();
        }
        {
            let mut inner = target.0.lock().unwrap();
            (inner.away, inner.refuses) = (false, BTreeSet::new());
        }
        running.until("nothing is owed", |following| following.owed == Some(Owed { volumes: 0, set_aside: 0 })).await;
        running.stop().await;
        let (_store, _closing, records) = place.open().await;
        let expected: BTreeMap<VolumeId, Shown> = records
            .iter()
            .filter_map(|record| rows(record).present.map(|present| (record.intent.volume, present)))
            .collect();
        assert_eq!(target.0.lock().unwrap().rows, expected, "{steps:?}");
    }
}

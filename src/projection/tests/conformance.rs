//! One suite for every target, on its own database: what other programs see, step by step. Each target must show the same,
//! to the last column.

use std::time::Duration;

use lab::MariaDb;

use super::*;

/// A target and its database, as other programs use it.
trait Subject {
    type Target: Target<Rows> + Sync;

    /// Makes an empty database, with the parents that rows of other programs need.
    async fn empty(&mut self) -> StoreFolder;

    fn target(&self) -> Self::Target;

    /// Runs statements as another program.
    async fn run(&mut self, sql: &'static str);

    /// Returns the only column of each row.
    async fn lines(&mut self, sql: &'static str) -> Vec<String>;

    /// Makes the database refuse new rows of the volume 2.
    async fn refuse(&mut self);
}

/// The store's own file, and another program's connection to it.
#[derive(Default)]
struct InSqlite(Option<SqliteConnection>);

impl Subject for InSqlite {
    type Target = Sqlite;

    async fn empty(&mut self) -> StoreFolder {
        let folder = StoreFolder::new();
        let (store, closing, _) = folder.open().await;
        drop(store);
        closing.await.unwrap();
        self.0 = Some(folder.other().await);
        folder
    }

    fn target(&self) -> Sqlite {
        Sqlite::new(10809)
    }

    async fn run(&mut self, sql: &'static str) {
        run(self.0.as_mut().unwrap(), sql).await;
    }

    async fn lines(&mut self, sql: &'static str) -> Vec<String> {
        text(self.0.as_mut().unwrap(), sql).await
    }

    async fn refuse(&mut self) {
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON nbd_exports WHEN NEW.volume_id LIKE '00000002%' BEGIN \
            SELECT RAISE(ABORT, 'not this one'); END";
        self.run(refuse).await;
    }
}

/// MariaDB with the predecessor's schema.
struct InMariadb {
    server: MariaDb,
    databases: u32,
}

impl InMariadb {
    fn new() -> Self {
        Self { server: MariaDb::start().unwrap(), databases: 0 }
    }

    fn database(&self) -> String {
        format!("oma{}", self.databases)
    }

    fn settings(&self) -> DatabaseSettings {
        let mut settings = DatabaseSettings::new(self.server.url().parse().unwrap());
        (settings.user, settings.database) = ("root".to_owned(), self.database());
        settings
    }

    fn sql(&self, text: &str) -> String {
        self.server.sql(&self.database(), text).unwrap()
    }
}

impl Subject for InMariadb {
    type Target = Mariadb;

    async fn empty(&mut self) -> StoreFolder {
        self.databases += 1;
        self.server.sql("", &format!("CREATE DATABASE {}", self.database())).unwrap();
        self.sql(include_str!("../../../tests/data/migratekit_oma.sql"));
        self.sql(
            "INSERT INTO vm_replication_contexts (context_id, vm_name) VALUES ('ctx', 'vm'); \
             INSERT INTO replication_jobs VALUES ('job', NULL, 'running'); INSERT INTO vm_disks VALUES (7, NULL, 'disk')",
        );
        StoreFolder::new()
    }

    fn target(&self) -> Mariadb {
        Mariadb::new(self.settings(), 10809)
    }

    async fn run(&mut self, sql: &'static str) {
        self.sql(sql);
    }

    async fn lines(&mut self, sql: &'static str) -> Vec<String> {
        self.sql(sql).lines().map(str::to_owned).collect()
    }

    async fn refuse(&mut self) {
        self.sql(
            "DELIMITER //\nCREATE TRIGGER refuse BEFORE INSERT ON nbd_exports FOR EACH ROW \
             IF NEW.volume_id LIKE '00000002%' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF//\n",
        );
    }
}

/// The columns that attachd writes, but for the times.
const MAPPINGS: &str = "SELECT concat_ws(' ', id, volume_uuid, vm_id, operation_mode, cloudstack_device_id, \
    requires_device_correlation, device_path, cloudstack_state, linux_state, size) FROM device_mappings ORDER BY volume_uuid";
const EXPORTS: &str = "SELECT concat_ws(' ', volume_id, device_mapping_uuid, export_name, port, device_path, status) \
    FROM nbd_exports ORDER BY volume_id";
const THEIRS: &str = "SELECT concat_ws(' ', operation_mode, m.vm_context_id, m.ossea_snapshot_id, m.snapshot_status, \
    m.cloudstack_device_id, m.cloudstack_state, m.created_at, e.vm_disk_id, e.job_id, ifnull(e.device_mapping_uuid, '-'), \
    e.config_path, e.id) FROM device_mappings m JOIN nbd_exports e ON m.volume_uuid = e.volume_id";

/// A suite in progress: what was seen so far.
struct Suite<'s, S> {
    subject: &'s mut S,
    seen: Vec<String>,
}

/// What is wrong, for a target that does not conform.
type Conforms = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Conforms {
    if holds { Ok(()) } else { Err(what()) }
}

impl<S: Subject> Suite<'_, S> {
    async fn start(&self, folder: &StoreFolder) -> Running {
        let (store, closing, records) = folder.open().await;
        let source = source::Volumes::new(store.follow(SQLITE, Follows::Volumes), basis(10809));
        let following = tokio::spawn(task::run(source, self.subject.target(), QUICK));
        Running { store, closing, following, records }
    }

    async fn tables(&mut self) -> (Vec<String>, Vec<String>) {
        let tables = (self.subject.lines(MAPPINGS).await, self.subject.lines(EXPORTS).await);
        self.seen.extend(tables.0.iter().chain(&tables.1).cloned());
        tables
    }

    /// A volume has one row in each table from its first disk until its withdrawal.
    async fn rows_live_as_long_as_their_volume(&mut self) -> Conforms {
        let folder = self.subject.empty().await;
        let running = self.start(&folder).await;
        running.store.write(vec![intend(volume(1))]).await.unwrap();
        running.until_shown().await;
        ensure(self.tables().await == (vec![], vec![]), || "a row before the first disk".to_owned())?;
        running.store.write(ready(volume(1))).await.unwrap();
        for state in State::ALL {
            running.store.write(vec![stand(volume(1), state)]).await.unwrap();
            running.until_shown().await;
            let (mapped, exported) = self.tables().await;
            ensure((mapped.len(), exported.len()) == (1, 1), || format!("{state}: {mapped:?} {exported:?}"))?;
            let (linux, status) = match state {
                State::Ready => ("detected", "active"),
                State::Matched | State::Exporting => ("detected", "pending"),
                state => (state.as_str(), state.as_str()),
            };
            let says = mapped[0].contains(&format!(" {linux} ")) && exported[0].ends_with(&format!(" {status}"));
            ensure(says, || format!("{state}: {mapped:?} {exported:?}"))?;
        }
        running.store.write(vec![Change::Withdraw(volume(1))]).await.unwrap();
        running.until_shown().await;
        ensure(self.tables().await == (vec![], vec![]), || "a row after the withdrawal".to_owned())?;
        running.stop().await;
        Ok(())
    }

    /// What other programs write survives every change, a restart, and all rows being written once more.
    async fn columns_of_others_stay(&mut self) -> Conforms {
        let folder = self.subject.empty().await;
        let running = self.start(&folder).await;
        running.store.write(ready(volume(1))).await.unwrap();
        running.until_shown().await;
        let theirs = "UPDATE device_mappings SET operation_mode = 'failover', vm_context_id = 'ctx', \
            ossea_snapshot_id = 'snap', snapshot_status = 'ready', cloudstack_device_id = 3, cloudstack_state = 'theirs', \
            created_at = '2026-01-01 00:00:00'; \
            UPDATE nbd_exports SET vm_disk_id = 7, job_id = 'job', device_mapping_uuid = NULL, config_path = 'conf'";
        self.subject.run(theirs).await;
        let written = self.subject.lines(THEIRS).await;
        let control = "failover ctx snap ready 3 theirs 2026-01-01 00:00:00 7 job - conf 1";
        ensure(written == [control], || format!("the control: {written:?}"))?;
        for state in [State::Lost, State::Refused, State::Detaching, State::Exporting, State::Ready] {
            running.store.write(vec![map(volume(1)), stand(volume(1), state)]).await.unwrap();
            running.until_shown().await;
            let now = self.subject.lines(THEIRS).await;
            ensure(now == written, || format!("{state}: {now:?}"))?;
        }
        running.stop().await;
        let (store, closing, records) = folder.open().await;
        // Another basis: all rows are written once more.
        let source = source::Volumes::new(store.follow(SQLITE, Follows::Volumes), "another".into());
        let following = tokio::spawn(task::run(source, self.subject.target(), QUICK));
        let running = Running { store, closing, following, records };
        running.until_shown().await;
        let now = self.subject.lines(THEIRS).await;
        ensure(now == written, || format!("after a restart: {now:?}"))?;
        running.stop().await;
        Ok(())
    }

    /// A refused row is named in the database's words, its volume has no half, and its neighbours are written.
    async fn a_refused_row_blocks_nobody(&mut self) -> Conforms {
        let folder = self.subject.empty().await;
        let running = self.start(&folder).await;
        self.subject.refuse().await;
        running.store.write((1..=30).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
        let following = running.until_set_aside(1).await;
        running.until_shown().await;
        let (named, why) = following.progress.example.unwrap();
        ensure(named == volume(2).to_string() && why.contains("not this one"), || format!("{named}: {why}"))?;
        let (mapped, exported) = self.tables().await;
        ensure((mapped.len(), exported.len()) == (29, 29), || format!("{} {}", mapped.len(), exported.len()))?;
        self.subject.run("DROP TRIGGER refuse").await;
        running.until("all is shown", |following| following.owed == Some(Owed { records: 0, set_aside: 0 })).await;
        let (mapped, exported) = self.tables().await;
        ensure((mapped.len(), exported.len()) == (30, 30), || format!("{} {}", mapped.len(), exported.len()))?;
        running.stop().await;
        Ok(())
    }

    /// While the tables are away only the number of changed volumes grows; then the rows are the present ones.
    async fn a_database_that_was_away_has_the_present_rows(&mut self) -> Conforms {
        let folder = self.subject.empty().await;
        let running = self.start(&folder).await;
        running.store.write((1..=3).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
        running.until_shown().await;
        // The target has statements prepared now.
        running.store.write((1..=3).map(|n| stand(volume(n), State::Lost)).collect()).await.unwrap();
        running.until_shown().await;
        self.subject.run("ALTER TABLE nbd_exports RENAME TO aside").await;
        for state in [State::Lost, State::Ready].into_iter().cycle().take(20) {
            running.store.write((1..=3).map(|n| stand(volume(n), state)).collect()).await.unwrap();
        }
        running.store.write(vec![stand(volume(1), State::Lost), Change::Withdraw(volume(3))]).await.unwrap();
        let following = running.until("told", |following| following.progress.failure.is_some()).await;
        ensure(following.owed == Some(Owed { records: 3, set_aside: 0 }), || format!("{following:?}"))?;
        self.subject.run("ALTER TABLE aside RENAME TO nbd_exports").await;
        running.until_shown().await;
        running.until("it works", |following| following.progress.failure.is_none()).await;
        running.until_shown().await;
        let (mapped, exported) = self.tables().await;
        let ends = |n: usize, word: &str| exported.get(n).is_some_and(|row| row.ends_with(word));
        let right = (mapped.len(), exported.len()) == (2, 2) && ends(0, " lost") && ends(1, " active");
        ensure(right, || format!("{mapped:?} {exported:?}"))?;
        running.stop().await;
        Ok(())
    }

    /// A volume that another VM has: a name in place of the path, and no export.
    async fn a_volume_of_another_vm_has_a_name_in_place_of_its_path(&mut self) -> Conforms {
        let folder = self.subject.empty().await;
        let running = self.start(&folder).await;
        let place = |n: u32, root| Placeholder {
            volume: volume(n),
            vm: "00000008-1b59-4f62-97e8-cefffdfe3804".parse().unwrap(),
            root,
            operation: "00000009-1b59-4f62-97e8-cefffdfe3804".parse().unwrap(),
            since: clock::wall(),
        };
        running.store.write(vec![Change::Place(place(1, false)), Change::Place(place(2, true))]).await.unwrap();
        running.until_shown().await;
        let (mapped, exported) = self.tables().await;
        let is_there = mapped.iter().all(|row| row.contains(" failover ") && row.contains(" remote-vm-"));
        ensure(mapped.len() == 2 && exported.is_empty() && is_there, || format!("{mapped:?} {exported:?}"))?;
        let mut here = vec![Change::Displace(volume(1))];
        here.extend(ready(volume(1)));
        running.store.write(here).await.unwrap();
        running.until_shown().await;
        let (mapped, exported) = self.tables().await;
        let is_here = mapped[0].contains(" oma ") && mapped[0].contains("/virtio-") && mapped[1].contains(" failover ");
        ensure((mapped.len(), exported.len()) == (2, 1) && is_here, || format!("{mapped:?} {exported:?}"))?;
        running.stop().await;
        Ok(())
    }

    /// After many changes, some of them during a restart, the tables show the records.
    async fn in_the_end_the_tables_show_the_records(&mut self) -> Conforms {
        let folder = self.subject.empty().await;
        let mut running = self.start(&folder).await;
        for round in 0..40_u32 {
            let n = round * 7 % 11;
            let state = State::ALL[round as usize % State::ALL.len()];
            let changes = match round % 5 {
                0..=2 => vec![intend(volume(n)), map(volume(n)), stand(volume(n), state)],
                3 => vec![stand(volume(n), state)],
                _ => vec![Change::Withdraw(volume(n))],
            };
            running.store.write(changes).await.unwrap();
            if round % 13 == 12 {
                running.stop().await;
                running = self.start(&folder).await;
            }
        }
        running.until_shown().await;
        let (mapped, exported) = self.tables().await;
        running.stop().await;
        let (_store, _closing, records) = folder.open().await;
        let all = records.iter().filter_map(|record| Some((record.intent.volume, rows(record).present?)));
        let mut expected: Vec<(String, String)> = all
            .map(|(volume, shown)| {
                let ShownVolume { vm_id, device_path, size_bytes, linux_state, export_status, .. } = shown;
                let (id, export) = (volume.to_string(), volume.export_name());
                let mapping = format!("{id} {id} {vm_id} oma 1 {device_path} attached {linux_state} {size_bytes}");
                (mapping, format!("{id} {id} {export} 10809 {device_path} {}", export_status.unwrap()))
            })
            .collect();
        expected.sort();
        ensure(expected.len() > 3, || "the control: some are left".to_owned())?;
        let shown: Vec<(String, String)> = mapped.into_iter().zip(exported).collect();
        ensure(shown == expected, || format!("{shown:#?} instead of {expected:#?}"))
    }
}

/// Returns all that was seen, or what is wrong.
async fn conforms<S: Subject>(subject: &mut S) -> Result<Vec<String>, String> {
    let mut suite = Suite { subject, seen: Vec::new() };
    suite.rows_live_as_long_as_their_volume().await?;
    suite.columns_of_others_stay().await?;
    suite.a_refused_row_blocks_nobody().await?;
    suite.a_database_that_was_away_has_the_present_rows().await?;
    suite.a_volume_of_another_vm_has_a_name_in_place_of_its_path().await?;
    suite.in_the_end_the_tables_show_the_records().await?;
    Ok(suite.seen)
}

#[tokio::test]
async fn sqlite_and_mariadb_show_the_same_rows() {
    let in_sqlite = conforms(&mut InSqlite::default()).await.unwrap();
    let in_mariadb = conforms(&mut InMariadb::new()).await.unwrap();
    assert!(in_sqlite.len() > 100, "the control: {}", in_sqlite.len());
    assert_eq!(in_sqlite, in_mariadb);
}

/// A fault that a target may have.
#[derive(Clone, Copy)]
enum FaultOf {
    /// Each change is a row more.
    KeepsALog,
    /// A lost volume loses its rows.
    DeletesOnLost,
    /// The whole row is written each time.
    Overwrites,
}

struct Faulty(FaultOf);

impl Target<Rows> for Faulty {
    async fn write(&mut self, rows: &[Rows], follower: &mut Follower) -> Result<(), TargetError> {
        let mut rows = rows.to_vec();
        if matches!(self.0, FaultOf::DeletesOnLost) {
            for row in &mut rows {
                row.present.take_if(|present| present.linux_state == "lost");
            }
        }
        Sqlite::new(10809).write(&rows, follower).await?;
        let more = match self.0 {
            FaultOf::KeepsALog => {
                "INSERT INTO device_mappings (id, volume_uuid, vm_id, device_path, cloudstack_state, linux_state, size) \
                 SELECT hex(randomblob(8)), hex(randomblob(8)), vm_id, hex(randomblob(8)), 'attached', linux_state, size \
                 FROM device_mappings LIMIT 1"
            }
            FaultOf::DeletesOnLost => "SELECT 1",
            FaultOf::Overwrites => {
                "UPDATE device_mappings SET operation_mode = 'oma', snapshot_status = 'none' WHERE device_path LIKE '/dev/%'"
            }
        };
        let (_turn, connection) =
            follower.at_the_file(Some(Duration::from_secs(1))).await.map_err(|e| TargetError::Away(e.to_string()))?;
        sqlx::query(more).execute(&mut **connection).await.map_err(|error| TargetError::Away(error.to_string()))?;
        Ok(())
    }
}

struct InFaulty(FaultOf, InSqlite);

impl Subject for InFaulty {
    type Target = Faulty;

    async fn empty(&mut self) -> StoreFolder {
        self.1.empty().await
    }

    fn target(&self) -> Faulty {
        Faulty(self.0)
    }

    async fn run(&mut self, sql: &'static str) {
        self.1.run(sql).await;
    }

    async fn lines(&mut self, sql: &'static str) -> Vec<String> {
        self.1.lines(sql).await
    }

    async fn refuse(&mut self) {
        self.1.refuse().await;
    }
}

#[tokio::test]
async fn a_target_that_keeps_a_log_or_deletes_on_lost_or_overwrites_what_others_wrote_does_not_conform() {
    for (fault, why) in [
        (FaultOf::KeepsALog, "attaching: ["),
        (FaultOf::DeletesOnLost, "lost: [] []"),
        (FaultOf::Overwrites, "lost: [\"oma ctx snap none"),
    ] {
        let told = conforms(&mut InFaulty(fault, InSqlite::default())).await.unwrap_err();
        assert!(told.starts_with(why), "{told}");
    }
}

//! The predecessor's own database: what oma-api finds there, and that attachd serves whatever happens to it.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::*;
use lab::{Api, Attachd, Disk, Lab, MariaDb, Volume, people};
use serde_json::Value;

const DATABASE: &str = "migratekit_oma";

/// The rights that docs/projection.md names.
fn grants() -> String {
    let text = include_str!("../docs/projection.md");
    let (_, rest) = text.split_once("```sql\n").expect("the grants are there");
    let (grants, _) = rest.split_once("```").unwrap();
    grants.replace("'a-long-password'", "'hunter2'")
}

/// A lab whose attachd shows its volumes in a MariaDB, with the rights that the documentation names.
struct Scene {
    attachd: Attachd,
    api: Api,
    mariadb: MariaDb,
    lab: Lab,
}

fn configured(lab: &Lab, mariadb: &MariaDb) {
    let password = Path::new("/etc/attachd/mariadb-password");
    std::fs::write(password, "hunter2\n").unwrap();
    std::fs::set_permissions(password, std::fs::Permissions::from_mode(0o400)).unwrap();
    chown(password, Some(people::ATTACHD.id), None).unwrap();
    let projection = format!("urls = [\"{}\"]\npassword_file = \"{}\"", mariadb.url(), password.display());
    lab.attachd_config(&format!("{CONFIG}[projection]\n{projection}\n")).unwrap();
}

fn with_database() -> (Lab, MariaDb) {
    let lab = with_nbdkit();
    let mariadb = MariaDb::start().unwrap();
    mariadb.sql("", &format!("CREATE DATABASE {DATABASE}")).unwrap();
    mariadb.sql(DATABASE, include_str!("data/migratekit_oma.sql")).unwrap();
    mariadb.sql(DATABASE, &grants()).unwrap();
    configured(&lab, &mariadb);
    (lab, mariadb)
}

impl Scene {
    fn new() -> Self {
        let (lab, mariadb) = with_database();
        let attachd = start(&lab);
        Self { api: attachd.api(), attachd, mariadb, lab }
    }

    fn sql(&self, text: &str) -> String {
        self.mariadb.sql(DATABASE, text).unwrap()
    }

    /// Waits until the tables show this. No event reports when rows are written.
    fn until_shown(&self, query: &str, expected: &str) {
        let begun = Instant::now();
        loop {
            let shown = self.sql(query);
            if shown == expected {
                return;
            }
            assert!(begun.elapsed() < 3 * SOON, "{query}: {shown} instead of {expected}\n{:#}", health(&self.api));
        }
    }

    /// Waits until the tables show each of these volumes as served, and nothing else.
    fn until_all_served(&self, volumes: &[&Volume]) {
        let mut expected: Vec<String> =
            volumes.iter().map(|volume| format!("{}\tdetected\tactive", volume.id)).collect();
        expected.sort();
        let query = "SELECT volume_id, linux_state, status FROM nbd_exports JOIN device_mappings ON volume_uuid = volume_id \
            ORDER BY 1";
        self.until_shown(query, &expected.join("\n"));
        self.until_shown("SELECT (SELECT count(*) FROM device_mappings) - (SELECT count(*) FROM nbd_exports)", "0");
    }

    /// Waits until health says that the tables are behind, and why, and returns its words.
    fn until_behind(&self, why: &str) -> String {
        let is_it = |problem: &&Value| {
            let message = problem["message"].as_str().unwrap();
            problem["code"] == "PROJECTION_BEHIND" && message.contains("target mariadb") && message.contains(why)
        };
        let begun = Instant::now();
        loop {
            let health = health(&self.api);
            if let Some(problem) = health["problems"].as_array().unwrap().iter().find(is_it) {
                assert_eq!(health["status"], "degraded");
                return problem["message"].as_str().unwrap().to_owned();
            }
            assert!(begun.elapsed() < 3 * SOON, "{health:#}");
            std::thread::yield_now();
        }
    }
}

/// What other programs see, and what they have written, through a whole life of a volume.
#[test]
fn oma_api_finds_a_volumes_rows_and_what_it_writes_into_them_stays() {
    let mut scene = Scene::new();
    let volume = scene.lab.volume();
    scene.sql(&format!(
        "INSERT INTO vm_replication_contexts (context_id, vm_name) VALUES ('ctx', 'vm'); \
         INSERT INTO vm_disks VALUES (7, 'ctx', 'disk-2000'); INSERT INTO replication_jobs VALUES ('job', 'ctx', 'running'); \
         INSERT INTO ossea_volumes (vm_context_id, volume_id, volume_name, size_gb, status) VALUES ('ctx', '{}', 'v', 1, 'creating')",
        volume.id
    ));
    intend(&scene.api, &volume);
    let mut disk = scene.lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let shown = wait(&scene.api, &volume, "ready");
    let path = shown["device_path"].as_str().unwrap();
    scene.until_all_served(&[&volume]);
    let mapping = "SELECT vm_context_id, operation_mode, device_path, size, cloudstack_state, snapshot_status FROM device_mappings";
    assert_eq!(scene.sql(mapping), format!("ctx\toma\t{path}\t{MIB}\tattached\tnone"));
    let export = "SELECT vm_context_id, device_mapping_uuid, export_name, port, device_path FROM nbd_exports";
    assert_eq!(scene.sql(export), format!("ctx\t{0}\tmigration-vol-{0}\t10809\t{path}", volume.id));
    let theirs = "SELECT status, device_path FROM ossea_volumes";
    assert_eq!(scene.sql(theirs), format!("attached\t{path}"));

    scene.sql(
        "UPDATE device_mappings SET operation_mode = 'failover', ossea_snapshot_id = 'snap', snapshot_status = 'ready'; \
         UPDATE nbd_exports SET vm_disk_id = 7, job_id = 'job'",
    );
    let written = "SELECT m.operation_mode, m.vm_context_id, ossea_snapshot_id, snapshot_status, vm_disk_id, job_id, e.id, \
        linux_state, e.status FROM device_mappings m JOIN nbd_exports e ON volume_uuid = volume_id";
    let with = |states: &str| format!("failover\tctx\tsnap\tready\t7\tjob\t1\t{states}");
    scene.until_shown(written, &with("detected\tactive"));
    disk.detach().unwrap();
    wait(&scene.api, &volume, "lost");
    scene.until_shown(written, &with("lost\tlost"));
    disk.attach().unwrap();
    wait(&scene.api, &volume, "ready");
    scene.until_shown(written, &with("detected\tactive"));
    assert!(scene.attachd.terminate().unwrap().success());
    scene.attachd = start(&scene.lab);
    scene.api = scene.attachd.api();
    wait(&scene.api, &volume, "ready");
    resync(&scene.api);
    scene.until_shown(written, &with("detected\tactive"));

    withdraw(&scene.api, &volume);
    scene.until_shown("SELECT (SELECT count(*) FROM device_mappings) + (SELECT count(*) FROM nbd_exports)", "0");
    scene.until_shown(theirs, "detached\tNULL");
}

/// oma-api deletes the parent of the rows, and they go with it. The volume is still served, so its rows come back, without
/// the parent.
#[test]
fn rows_that_went_with_their_parent_are_there_again_after_a_restart() {
    let mut scene = Scene::new();
    let volume = scene.lab.volume();
    scene.sql(&format!(
        "INSERT INTO vm_replication_contexts (context_id, vm_name) VALUES ('ctx', 'vm'); \
         INSERT INTO ossea_volumes (vm_context_id, volume_id, volume_name, size_gb) VALUES ('ctx', '{}', 'v', 1)",
        volume.id
    ));
    intend(&scene.api, &volume);
    let mut disk = scene.lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&scene.api, &volume, "ready");
    scene.until_all_served(&[&volume]);
    scene.sql("DELETE FROM vm_replication_contexts");
    assert_eq!(scene.sql("SELECT count(*) FROM device_mappings"), "0", "the control: the rows went with it");
    assert!(scene.attachd.terminate().unwrap().success());
    scene.attachd = start(&scene.lab);
    scene.api = scene.attachd.api();
    scene.until_all_served(&[&volume]);
    assert_eq!(scene.sql("SELECT vm_context_id FROM device_mappings"), "NULL");
}

/// What ends a trouble.
type End = Box<dyn FnOnce(&mut Scene)>;

#[test]
fn while_mariadb_is_stopped_volumes_are_served_and_the_rows_are_right_in_the_end() {
    away("does MariaDB run there", |scene| {
        scene.mariadb.stop().unwrap();
        Box::new(|scene| scene.mariadb.start_again().unwrap())
    });
}

#[test]
fn while_mariadb_is_killed_volumes_are_served_and_the_rows_are_right_in_the_end() {
    away("does MariaDB run there", |scene| {
        scene.mariadb.kill().unwrap();
        Box::new(|scene| scene.mariadb.start_again().unwrap())
    });
}

#[test]
fn while_mariadb_is_read_only_volumes_are_served_and_the_rows_are_right_in_the_end() {
    away("--read-only option", |scene| {
        scene.sql("SET GLOBAL read_only = 1");
        Box::new(|scene| drop(scene.sql("SET GLOBAL read_only = 0")))
    });
}

#[test]
fn while_the_limit_of_connections_is_reached_volumes_are_served_and_the_rows_are_right_in_the_end() {
    away("max_user_connections", |scene| {
        scene.sql("GRANT USAGE ON *.* TO attachd@localhost WITH MAX_USER_CONNECTIONS 1");
        // attachd's own connection may not be closed yet.
        scene.until_shown("SELECT count(*) FROM information_schema.PROCESSLIST WHERE USER = 'attachd'", "0");
        let mut other = scene.mariadb.session_of("attachd", "hunter2", DATABASE).unwrap();
        other.run("SELECT 1").unwrap();
        Box::new(|_| drop(other))
    });
}

#[test]
fn while_a_table_is_locked_by_another_client_volumes_are_served_and_the_rows_are_right_in_the_end() {
    away("Lock wait timeout exceeded", |scene| {
        let mut other = scene.mariadb.session(DATABASE).unwrap();
        other.run("LOCK TABLES nbd_exports WRITE").unwrap();
        Box::new(|_| drop(other))
    });
}

#[test]
fn while_a_table_is_missing_volumes_are_served_and_the_rows_are_right_in_the_end() {
    away("no table nbd_exports", |scene| {
        scene.sql("RENAME TABLE nbd_exports TO aside");
        Box::new(|scene| drop(scene.sql("RENAME TABLE aside TO nbd_exports")))
    });
}

/// Makes the trouble while volumes come and go, and then ends it. `says`: what health says of it.
fn away(says: &str, make: impl FnOnce(&mut Scene) -> End) {
    let mut scene = Scene::new();
    let (kept, kept_disk) = served(&scene.lab, &scene.api);
    let (gone, _gone_disk) = served(&scene.lab, &scene.api);
    scene.until_all_served(&[&kept, &gone]);
    let end = make(&mut scene);
    let counted = scene.mariadb.counted().ok();
    withdraw(&scene.api, &gone);
    let mut new: Vec<(Volume, Disk)> = (0..4).map(|_| served(&scene.lab, &scene.api)).collect();
    for _ in 0..3 {
        let (volume, disk) = &mut new[0];
        disk.detach().unwrap();
        wait(&scene.api, volume, "lost");
        disk.attach().unwrap();
        wait(&scene.api, volume, "ready");
    }
    scene.lab.nbdcopy_equals(&kept.export(), kept_disk.file()).unwrap();
    scene.lab.nbdcopy_equals(&new[3].0.export(), new[3].1.file()).unwrap();
    let said = scene.until_behind(says);
    assert!(!said.contains("hunter2"), "{said}");
    assert_eq!(health(&scene.api)["store"]["state"], "ok");
    if let (Some((asked, connected)), Ok((asks, connects))) = (counted, scene.mariadb.counted()) {
        // Of these, the two counts made two connections and two statements.
        let (asks, connects) = (asks - asked, connects - connected);
        println!("{says}: {asks} statements, {connects} connections");
        assert!(connects < 25 && asks < 300, "{asks} statements, {connects} connections");
    }
    end(&mut scene);
    let expected: Vec<&Volume> = new.iter().map(|(volume, _)| volume).chain([&kept]).collect();
    scene.until_all_served(&expected);
    let begun = Instant::now();
    while health(&scene.api)["status"] != "healthy" {
        assert!(begun.elapsed() < 2 * SOON, "{:#}", health(&scene.api));
    }
}

/// The daemon starts and serves without MariaDB, and it has the rows when it comes.
#[test]
fn attachd_starts_without_mariadb_and_is_killed_while_it_is_away_and_loses_no_row() {
    let (lab, mut mariadb) = with_database();
    mariadb.stop().unwrap();
    let attachd = start(&lab);
    let mut scene = Scene { api: attachd.api(), attachd, mariadb, lab };
    let (volume, _disk) = served(&scene.lab, &scene.api);
    let said = scene.until_behind("does MariaDB run there");
    assert!(said.contains("1 volume(s)"), "{said}");
    scene.attachd.kill9().unwrap();
    scene.attachd = start(&scene.lab);
    scene.api = scene.attachd.api();
    wait(&scene.api, &volume, "ready");
    scene.mariadb.start_again().unwrap();
    scene.until_all_served(&[&volume]);
}

/// A refused row is one volume's own trouble.
#[test]
fn a_row_that_mariadb_refuses_is_named_in_its_words_and_others_are_written() {
    let scene = Scene::new();
    let refused = scene.lab.volume();
    scene.sql(&format!(
        "DELIMITER //\nCREATE TRIGGER refuse BEFORE INSERT ON nbd_exports FOR EACH ROW IF NEW.volume_id = '{}' THEN \
         SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF//\n",
        refused.id
    ));
    intend(&scene.api, &refused);
    let mut disk = scene.lab.disk(&refused.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&scene.api, &refused, "ready");
    scene.lab.nbdcopy_equals(&refused.export(), disk.file()).unwrap();
    let (neighbour, _its_disk) = served(&scene.lab, &scene.api);
    scene.until_all_served(&[&neighbour]);
    let begun = Instant::now();
    let told = loop {
        let health = health(&scene.api);
        let mut problems = health["problems"].as_array().unwrap().iter();
        if let Some(problem) = problems.find(|problem| problem["code"] == "PROJECTION_REFUSED") {
            break problem["message"].as_str().unwrap().to_owned();
        }
        assert!(begun.elapsed() < SOON, "{health:#}");
    };
    let has = ["target mariadb", &refused.id, "not this one", "error 1644"].iter().all(|part| told.contains(part));
    assert!(has, "{told}");

    // It is tried again when the volume changes.
    scene.sql("DROP TRIGGER refuse");
    disk.detach().unwrap();
    wait(&scene.api, &refused, "lost");
    disk.attach().unwrap();
    wait(&scene.api, &refused, "ready");
    scene.until_all_served(&[&neighbour, &refused]);
    let begun = Instant::now();
    while health(&scene.api)["status"] != "healthy" {
        assert!(begun.elapsed() < SOON, "{:#}", health(&scene.api));
    }
}

/// Nothing is connected and nothing runs while nothing changes.
#[test]
fn an_idle_daemon_has_no_connection_to_mariadb() {
    let scene = Scene::new();
    let (volume, mut disk) = served(&scene.lab, &scene.api);
    scene.until_all_served(&[&volume]);
    let connections = "SELECT count(*) FROM information_schema.PROCESSLIST WHERE USER = 'attachd'";
    scene.until_shown(connections, "0");
    disk.detach().unwrap();
    wait(&scene.api, &volume, "lost");
    scene.until_shown("SELECT linux_state FROM device_mappings", "lost");
    scene.until_shown(connections, "0");
}

/// What does not fit is one sentence, and nothing is changed.
#[test]
fn check_config_says_in_one_sentence_why_a_database_cannot_be_used() {
    let (_lab, mut mariadb) = with_database();
    let check = || {
        let output = Command::new(bin()).args(["check-config", "--config", lab::attachd::CONFIG]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(), (true, String::new()), "the control");
    for (change, says, back) in [
        (
            "SET PASSWORD FOR attachd@localhost = PASSWORD('other')",
            "correct [projection] user and the password",
            "SET PASSWORD FOR attachd@localhost = PASSWORD('hunter2')",
        ),
        (
            "REVOKE DELETE ON nbd_exports FROM attachd@localhost",
            "grant the rights",
            "GRANT DELETE ON nbd_exports TO attachd@localhost",
        ),
        ("RENAME TABLE ossea_volumes TO aside", "no table ossea_volumes", "RENAME TABLE aside TO ossea_volumes"),
        (
            "RENAME TABLE nbd_exports TO aside; CREATE VIEW nbd_exports AS SELECT * FROM aside",
            "nbd_exports is a view, and has to be a table",
            "DROP VIEW nbd_exports; RENAME TABLE aside TO nbd_exports",
        ),
        (
            "ALTER TABLE device_mappings MODIFY device_path varchar(40) NOT NULL",
            "device_mappings.device_path is varchar(40), and has to be a text of at least 191 characters",
            "ALTER TABLE device_mappings MODIFY device_path varchar(255) NOT NULL",
        ),
        (
            "ALTER TABLE nbd_exports RENAME COLUMN port TO gate",
            "nbd_exports has no column port",
            "ALTER TABLE nbd_exports RENAME COLUMN gate TO port",
        ),
    ] {
        mariadb.sql(DATABASE, change).unwrap();
        let (valid, told) = check();
        assert!(!valid && told.contains(says) && !told.contains("hunter2"), "{change}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        mariadb.sql(DATABASE, back).unwrap();
        assert_eq!(check(), (true, String::new()), "{back}");
    }
    mariadb.stop().unwrap();
    let (valid, told) = check();
    assert!(valid && told.contains("was not checked") && told.contains("does MariaDB run there"), "{told}");
}

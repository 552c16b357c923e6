//! The rows in the store's own file.

use super::*;

#[tokio::test]
async fn the_last_change_is_written_before_the_daemon_ends() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    running.store.write(vec![intend(volume(1)), map(volume(1))]).await.unwrap();
    running.store.post(volume(1), vec![News::Stand(State::Ready, None, clock::wall())]);
    let files = || -> Vec<_> { folder.path().read_dir().unwrap().map(|file| file.unwrap().file_name()).collect() };
    assert!(files().len() > 1, "the control: there is a log file");
    running.stop().await;
    assert_eq!(files(), ["attachd.db"], "it is one file again");
    let mut other = folder.other().await;
    assert_eq!(text(&mut other, OWED).await, [""; 0]);
    assert_eq!(text(&mut other, STATES).await, ["detected active"]);
}

#[tokio::test]
async fn a_lost_or_refused_volume_keeps_its_rows_and_foreign_columns_until_its_withdrawal() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    let mut other = folder.other().await;
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

/// What the predecessor's readers see of a volume that an operation had attached to another VM.
#[tokio::test]
async fn a_volume_of_another_vm_has_a_row_in_the_predecessors_words_and_no_export() {
    let place = |n: u32, root| Placeholder {
        volume: volume(n),
        vm: "00000008-1b59-4f62-97e8-cefffdfe3804".parse().unwrap(),
        root,
        operation: "00000009-1b59-4f62-97e8-cefffdfe3804".parse().unwrap(),
        since: clock::wall(),
    };
    let all = "SELECT concat_ws(' ', operation_mode, vm_id, cloudstack_device_id, requires_device_correlation, device_path, \
        cloudstack_state, linux_state, size) FROM device_mappings ORDER BY volume_uuid";
    let exports = "SELECT export_name FROM nbd_exports";
    let path = |n| format!("remote-vm-{}-{}", place(n, false).vm, volume(n));
    let row = |n, device: &str| format!("failover {} {device}0 {} attached n/a 0", place(n, false).vm, path(n));
    let folder = StoreFolder::new();
    let running = folder.start().await;
    let mut other = folder.other().await;
    running.store.write(vec![Change::Place(place(1, false)), Change::Place(place(2, true))]).await.unwrap();
    running.until_shown().await;
    assert_eq!(text(&mut other, all).await, [row(1, ""), row(2, "0 ")]);
    assert_eq!(text(&mut other, exports).await, [""; 0]);

    // It comes here, and goes there again. The middle of that is not seen where the task is slower than the changes.
    for seen in [true, false] {
        let mut here = vec![Change::Displace(volume(1))];
        here.extend(ready(volume(1)));
        let there = vec![Change::Withdraw(volume(1)), Change::Place(place(1, false))];
        if seen {
            running.store.write(here).await.unwrap();
            running.until_shown().await;
            assert_eq!(text(&mut other, STATES).await, ["detected active"], "the control");
            running.store.write(there).await.unwrap();
        } else {
            running.store.write([there, here].into_iter().flatten().collect()).await.unwrap();
        }
        running.until_shown().await;
        let mapped = text(&mut other, all).await;
        if seen {
            assert_eq!(mapped, [row(1, ""), row(2, "0 ")]);
            assert_eq!(text(&mut other, exports).await, [""; 0]);
        } else {
            assert!(mapped[0].starts_with("oma ") && mapped[0].contains("virtio-"), "{mapped:?}");
            assert_eq!(text(&mut other, exports).await, [volume(1).export_name()]);
        }
    }
    running.store.write(vec![Change::Withdraw(volume(1)), Change::Displace(volume(2))]).await.unwrap();
    running.until_shown().await;
    assert_eq!(text(&mut other, all).await, [""; 0]);
    running.stop().await;
}

/// The port is part of the configuration.
#[tokio::test]
async fn another_port_rewrites_all_rows_and_the_same_port_none() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    running.store.write((1..=30).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    running.stop().await;
    let mut other = folder.other().await;
    run(&mut other, "UPDATE nbd_exports SET updated_at = 'seen'").await;
    folder.start().await.stop().await;
    let ports = "SELECT DISTINCT port || ' ' || updated_at FROM nbd_exports";
    assert_eq!(text(&mut other, ports).await, ["10809 seen"], "the control");
    folder.start_on(10810, PACE).await.stop().await;
    let ports = text(&mut other, ports).await;
    assert!(!ports.is_empty() && ports.iter().all(|port| port.starts_with("10810 ")), "{ports:?}");
}

/// The store of an earlier version, with rows that it had not written yet.
#[tokio::test]
async fn rows_that_an_earlier_version_had_not_written_are_written_withdrawn_volumes_too() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    running.store.write((1..=4).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    running.stop().await;
    let mut other = folder.other().await;
    // As the earlier version left the tables: a lost volume had no row. It had not written one withdrawal and one new
    // volume yet.
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
    assert_eq!(text(&mut other, STATES).await.len(), 2, "the control: one row too many, two missing");
    let running = folder.start().await;
    running.until("all are shown", |following| following.owed.is_some_and(|owed| owed.records == 0)).await;
    let shown = text(&mut other, "SELECT substr(volume_id, 8, 1) || ' ' || status FROM nbd_exports ORDER BY 1").await;
    assert_eq!(shown, ["1 lost", "3 active", "4 active"]);
    assert_eq!(running.records.len(), 3);
}

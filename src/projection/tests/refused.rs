//! Rows that cannot be written.

use super::*;
use crate::store::Owed;

/// With an obligatory column of another program, inserts are refused, but existing rows are still updated.
#[tokio::test]
async fn an_obligatory_column_of_another_program_does_not_stop_updates() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    let mut other = folder.other().await;
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
    assert_eq!(running.following().await.owed, Some(Owed { records: 0, set_aside: 0 }));
    running.store.write(ready(volume(2))).await.unwrap();
    let following = running.until_set_aside(1).await;
    assert_eq!(following.progress.example.unwrap().0, volume(2).to_string());
}

const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON nbd_exports WHEN NEW.volume_id LIKE '00000002%' BEGIN \
    SELECT RAISE(ABORT, 'not this one'); END";

#[tokio::test]
async fn a_refused_row_is_set_aside_and_named_and_other_rows_are_written() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    let mut other = folder.other().await;
    run(&mut other, REFUSE).await;
    // A foreign row has the path of a volume's row.
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
    assert_eq!(named, volume(2).to_string());
    assert!(why.contains("not this one"), "{why}");
    assert_eq!(running.store.pulse().await.failure, None, "the store itself works");
    // The trigger is removed, and the volume changes.
    run(&mut other, "DROP TRIGGER refuse").await;
    running.store.write(vec![stand(volume(2), State::Lost)]).await.unwrap();
    running.until("it is shown", |following| following.owed.is_some_and(|owed| owed.set_aside == 1)).await;
    assert_eq!(text(&mut other, STATES).await, ["detected active", "lost lost", "detected active", "detected active"]);
    assert_eq!(text(&mut other, "SELECT volume_id FROM set_aside").await, [volume(4).to_string()]);
}

#[tokio::test]
async fn rows_set_aside_are_tried_again_after_a_while_and_at_a_start() {
    for restart in [false, true] {
        let folder = StoreFolder::new();
        let mut running = folder.start_on(10809, if restart { PACE } else { QUICK }).await;
        let mut other = folder.other().await;
        run(&mut other, REFUSE).await;
        running.store.write(ready(volume(2))).await.unwrap();
        running.until_set_aside(1).await;
        if restart {
            running.stop().await;
            running = folder.start().await;
            running.until("the control", |following| following.owed.is_some_and(|owed| owed.set_aside == 1)).await;
            running.stop().await;
            run(&mut other, "DROP TRIGGER refuse").await;
            running = folder.start().await;
        } else {
            run(&mut other, "DROP TRIGGER refuse").await;
        }
        running.until("all is shown", |following| following.owed == Some(Owed { records: 0, set_aside: 0 })).await;
        assert_eq!(text(&mut other, STATES).await, ["detected active"]);
    }
}

/// A trigger runs in the transaction of the row, so the store would have to wait for it.
#[tokio::test]
async fn an_endless_trigger_delays_neither_the_store_nor_other_rows() {
    let folder = StoreFolder::new();
    let running = folder.start().await;
    let mut other = folder.other().await;
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
    assert_eq!((named, &*why), (volume(2).to_string(), "it takes longer than 200 ms"));
    assert_eq!(text(&mut other, STATES).await, ["detected active", "detected active"]);
    // The second write makes the trigger run once more. It would count for hours, so the answers and the third row prove
    // that neither the store nor the other rows waited for its end.
    running.store.write(vec![stand(volume(2), State::Lost)]).await.unwrap();
    running.store.write(ready(volume(4))).await.unwrap();
    running.until_shown().await;
    assert_eq!(text(&mut other, STATES).await.len(), 3);
    assert_eq!(text(&mut other, "SELECT n FROM theirs").await, [""; 0], "the trigger never came to its end");
}

/// The tables are at fault, and no row.
#[tokio::test]
async fn a_missing_table_is_reported_and_filled_when_it_is_back() {
    let folder = StoreFolder::new();
    let running = folder.start_on(10809, QUICK).await;
    let mut other = folder.other().await;
    run(&mut other, "ALTER TABLE nbd_exports RENAME TO aside").await;
    running.store.write((1..=50).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    let no_table = |why: &String| why.contains("no such table");
    let following = running.until("told", |following| following.progress.failure.as_ref().is_some_and(no_table)).await;
    assert_eq!(following.owed, Some(Owed { records: 50, set_aside: 0 }));
    assert!(following.progress.behind_since.is_some());
    run(&mut other, "ALTER TABLE aside RENAME TO nbd_exports").await;
    running.until_shown().await;
    assert_eq!(text(&mut other, STATES).await.len(), 50);
    running.until("it works", |following| following.progress.failure.is_none()).await;
}

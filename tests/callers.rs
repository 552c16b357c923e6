//! Today's callers, replayed: each file of `tests/callers/rows` has the calls of one caller of the predecessor, in its order
//! and with its waits. `docs/callers.md` is written from the same files.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

#[path = "callers/caller.rs"]
mod caller;
mod common;
#[path = "callers/page.rs"]
mod page;
#[path = "callers/predecessor.rs"]
mod predecessor;
#[path = "callers/replay.rs"]
mod replay;
#[path = "callers/restarts.rs"]
mod restarts;
#[path = "callers/row.rs"]
mod row;
#[path = "callers/world.rs"]
mod world;

use std::collections::BTreeSet;

use row::Row;

/// Makes a test of each row, and the list of their files.
macro_rules! rows {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $name() {
                replay::replay(&Row::read($file));
            }
        )*

        /// The files with a test, in the order of the page.
        const ROWS: &[&str] = &[$($file),*];
    };
}

rows! {
    replication_has_a_new_disk_served: "replication-new-disk",
    replication_finds_a_reused_disk_served: "replication-reused-disk",
    replication_attaches_a_reused_disk_that_is_gone: "replication-reused-disk-gone",
    a_reused_disk_that_was_deleted_is_said_to_be_gone: "replication-reused-disk-deleted",
    the_volume_managers_clean_up_leaves_nothing: "volume-manager",
    the_volume_managers_clean_up_deletes_also_after_a_refused_detach: "volume-manager-detach-fails",
    failover_gives_both_disks_to_the_other_vm: "failover",
    failover_that_fails_has_its_disk_served_here_again: "failover-fails",
    the_clean_up_after_a_test_failover_brings_all_disks_back: "test-failover-clean-up",
    the_clean_up_of_a_failed_execution_brings_all_disks_back: "failed-execution",
    the_clean_up_that_waits_for_nothing_brings_its_disk_back_too: "failed-execution-forgets",
    job_delete_leaves_no_volume: "job-delete",
    job_delete_that_fails_is_told_so_and_can_be_repeated: "job-delete-fails",
    vm_cleanup_ends_with_each_volume_detached: "vm-cleanup",
    driver_injection_gets_the_path_of_the_right_disk: "virtio-injection",
    the_clean_up_script_of_a_failed_job_reads_ids_and_statuses: "script-failed-job",
    a_script_that_looks_at_no_answer_has_its_volume_deleted: "script-fresh-slate",
    the_script_of_orphans_deletes_the_volume_it_names_and_no_other: "script-orphans",
    installers_and_the_gui_find_attachd_well: "health",
    operators_lines_show_what_is_so: "operators",
    the_by_id_procedures_attach_work_as_they_stand: "by-id-procedures",
}

#[test]
fn each_row_has_a_test_and_a_place_on_the_page() {
    let there: BTreeSet<_> = row::files().into_iter().collect();
    let tested: BTreeSet<_> = ROWS.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(there, tested);
}

#[test]
fn the_page_of_the_callers_is_what_the_rows_say() {
    page::is_up_to_date(&ROWS.iter().map(|file| Row::read(file)).collect::<Vec<_>>());
}

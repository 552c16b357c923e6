//! One case each, with what a caller gets. Each has its control beside it: the same request where nothing is in the way.

use std::time::Duration;

use super::world::{CALL_LIMIT, Trouble, here};
use super::*;
use crate::cloud::{VolumeKind, VolumeState};
use crate::identity::{OperationId, VmId};
use crate::operation::IdempotencyKey;
use crate::operations::{Refused, tools};
use crate::reason::Code;
use crate::volume::{IntentOrigin, State};

fn to(volume: VolumeId, vm: VmId) -> Request {
    Request::Attach(Attach { volume, to: Place::Vm(vm) })
}

fn from(volume: VolumeId, vm: VmId) -> Request {
    Request::Detach(Detach { volume, from: Some(Place::Vm(vm)), force: false, client_wait_seconds: 0 })
}

fn forced(volume: VolumeId) -> Request {
    Request::Detach(Detach { volume, from: None, force: true, client_wait_seconds: 0 })
}

/// It fails with this code and these words, and CloudStack was asked for nothing.
async fn refused(world: &Arc<World>, request: Request, code: &str, words: &[&str]) {
    let operations = world.start();
    let before = world.state().log.len();
    let operation = done(&operations, request).await;
    let (found, message) = failed(&operation);
    assert_eq!(found, code, "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    assert_eq!(world.state().log.len(), before, "{:?}", world.state().log);
    assert!(world.state().sealed.is_empty());
    operations.stop();
}

#[tokio::test(start_paused = true)]
async fn what_is_so_already_completes_at_once_and_is_adopted() {
    let world = World::new();
    let (served, loose) = (world.with(volume(1, Some(own()))), world.with(volume(2, None)));
    let there = world.with(volume(3, Some(test_vm())));
    let operations = world.start();
    for request in [attach(served), detach(loose), delete(id(9)), to(there, test_vm())] {
        let operation = done(&operations, request).await;
        assert!(completed(&operation) && operation.response.as_ref().unwrap().adopted, "{operation:#?}");
    }
    assert_eq!(world.state().log, [""; 0], "nothing was asked for");
    assert_eq!(world.state().placeholders[&there].vm, test_vm());
    let control = done(&operations, attach(loose)).await;
    assert!(completed(&control) && !control.response.as_ref().unwrap().adopted);
    assert_eq!(world.state().log.len(), 1);
}

/// CloudStack's record is behind its hypervisor's: the disk goes before the volume is shown detached.
#[tokio::test(start_paused = true)]
async fn a_volume_that_turns_out_to_be_detached_while_its_adopted_attach_waits_for_the_disk_is_attached() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    world.state().disks.remove(&id);
    world.state().here.insert(id, here(State::Lost, IntentOrigin::Announced, id));
    let later = Arc::clone(&world);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        later.state().volumes.get_mut(&id).unwrap().vm = None;
    });
    let operations = world.start();
    let operation = done(&operations, attach(id)).await;
    assert!(completed(&operation), "{operation:#?}");
    // It is served by its disk before the job has ended.
    world.settled(&operations, operation.id).await;
    assert!(!operation.response.as_ref().unwrap().adopted, "CloudStack was asked to attach it");
    assert_eq!(world.state().volumes[&id].vm, Some(own()));
    assert_eq!(world.state().log.len(), 1, "{:?}", world.state().log);
}

#[tokio::test(start_paused = true)]
async fn a_detach_of_what_cloudstack_has_detached_already_withdraws_it_here() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    world.state().volumes.get_mut(&id).unwrap().vm = None;
    let operation = done(&world.start(), detach(id)).await;
    assert!(completed(&operation) && operation.progress.adopted);
    assert!(world.state().here.is_empty() && world.state().log.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_another_vm_has_is_neither_attached_nor_detached_nor_deleted_unless_that_vm_is_named() {
    let world = World::new();
    let id = world.with(volume(1, Some(test_vm())));
    let there = test_vm().to_string();
    for request in [attach(id), detach(id), delete(id), to(id, super::id(0xc)), from(id, super::id(0xc))] {
        refused(&world, request, "VOLUME_ELSEWHERE", &[&there]).await;
    }
    let control = done(&world.start(), from(id, test_vm())).await;
    assert!(completed(&control), "{control:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_something_else_is_done_with_is_left_alone() {
    for (state, shown) in [(VolumeState::Migrating, "Migrating"), (VolumeState::Snapshotting, "Snapshotting")] {
        let world = World::new();
        let id = world.with(crate::cloud::CloudVolume { state: state.clone(), ..volume(1, None) });
        let here = world.with(crate::cloud::CloudVolume { state, ..volume(2, Some(own())) });
        refused(&world, attach(id), "VOLUME_BUSY", &[shown]).await;
        refused(&world, detach(here), "VOLUME_BUSY", &[shown]).await;
        assert_eq!(world.state().here[&here].state, State::Ready);
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cloudstack_does_not_know_is_named() {
    let world = World::new();
    for request in [attach(id(1)), detach(id(1)), to(id(1), test_vm()), cleanup(id(1), false)] {
        refused(&world, request, "NO_SUCH_VOLUME", &["00000001-"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn delete_and_cleanup_touch_no_root_volume_and_delete_none_that_is_protected() {
    let world = World::new();
    let root = world.with(crate::cloud::CloudVolume { kind: VolumeKind::Root, ..volume(1, Some(test_vm())) });
    let delete_there =
        Request::Delete(Detach { volume: root, from: Some(Place::Vm(test_vm())), force: true, client_wait_seconds: 0 });
    refused(&world, delete_there, "ROOT_VOLUME", &["root disk"]).await;
    refused(&world, cleanup(root, true), "ROOT_VOLUME", &["root disk"]).await;
    let protected = world.with(crate::cloud::CloudVolume { delete_protection: true, ..volume(2, Some(own())) });
    refused(&world, delete(protected), "DELETE_PROTECTED", &["delete protection"]).await;
    assert_eq!(world.state().here[&protected].state, State::Ready, "it is served as before");
    world.state().volumes.get_mut(&protected).unwrap().delete_protection = false;
    assert!(completed(&done(&world.start(), delete(protected)).await), "the control");
}

#[tokio::test(start_paused = true)]
async fn a_cleanup_touches_neither_the_own_vm_nor_one_that_does_not_have_the_volume() {
    let world = World::new();
    let (elsewhere, here) = (world.with(volume(1, Some(id(0xc)))), world.with(volume(2, Some(own()))));
    refused(&world, cleanup(elsewhere, true), "VOLUME_ELSEWHERE", &["0000000c-", "0000000b-"]).await;
    let of_own =
        Request::Cleanup(CleanUp { volume: here, test_vm: own(), delete_vm: true, force: true, back_to: Place::Here });
    let why = world.start().submit(submission(of_own)).await.unwrap_err();
    assert_eq!(why.code(), Code::OwnVm, "{why}");
    // The volume is back already: the VM is somebody else's by now.
    let operation = done(&world.start(), cleanup(here, true)).await;
    assert_eq!(operation.response.as_ref().unwrap().vm_deleted, Some(false));
    assert!(world.state().vms.contains_key(&test_vm()) && world.state().log.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_attached_while_the_own_vm_is_not_known() {
    let world = World::new();
    let id = world.with(volume(1, None));
    let operations = world.start_as(|| Err("the sources differ".to_owned()));
    for request in [attach(id), to(id, test_vm()), to(id, own()), cleanup(id, false)] {
        let why = operations.submit(submission(request)).await.unwrap_err();
        assert!(matches!(&why, Refused::OwnVmUnknown(why) if why == "the sources differ"), "{why}");
    }
    assert!(world.state().operations.is_empty() && world.state().log.is_empty());
    assert!(completed(&done(&world.start(), attach(id)).await), "the control");
}

#[tokio::test(start_paused = true)]
async fn a_client_keeps_its_volume_unless_forced_and_disturbs_nobody() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    world.state().clients.insert(id);
    for request in [detach(id), delete(id)] {
        refused(&world, request, "CLIENTS_CONNECTED", &["127.0.0.1:7"]).await;
    }
    assert_eq!(world.state().here[&id].state, State::Ready);
    let operation = done(&world.start(), forced(id)).await;
    assert!(completed(&operation), "{operation:#?}");
    assert!(world.state().here.is_empty() && world.state().wrongs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_or_fails_gives_the_export_back_and_leaves_no_intent() {
    for (trouble, code, words) in [
        (Trouble { jobs_cancelled: true, ..Trouble::default() }, "JOB_CANCELLED", "cancelled"),
        (Trouble { jobs_fail: Some("no free slot"), ..Trouble::default() }, "CLOUD_REFUSED", "no free slot"),
    ] {
        let world = World::new();
        let (served, loose) = (world.with(volume(1, Some(own()))), world.with(volume(2, None)));
        *world.trouble() = trouble;
        let operations = world.start();
        for request in [detach(served), attach(loose), to(loose, test_vm())] {
            let (found, message) = failed(&done(&operations, request).await);
            assert!(found == code && message.contains(words), "{found} {message}");
        }
        let state = world.state();
        assert_eq!(state.here.keys().collect::<Vec<_>>(), [&served]);
        assert!(state.here[&served].state == State::Ready && state.placeholders.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_is_away_for_a_minute_is_waited_for_and_one_that_lets_nobody_in_is_not() {
    let world = World::new();
    let id = world.with(volume(1, None));
    world.trouble().away_until = Some(Duration::from_mins(1));
    let operations = world.start();
    let operation = done(&operations, attach(id)).await;
    assert!(completed(&operation), "{operation:#?}");
    world.settled(&operations, operation.id).await;
    let looks = world.state().points.iter().filter(|point| *point == "before:cloud.volume").count();
    assert!(looks < 15, "{looks}: it is asked at growing intervals");
    world.trouble().not_let_in = true;
    refused(&world, detach(id), "CLOUD_NOT_LET_IN", &["verify user credentials"]).await;
    assert_eq!(world.state().here[&id].state, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_is_kept_and_what_comes_after_it_is_seen_to_before_the_next_operation_of_the_volume() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    world.trouble().jobs_hang = true;
    let operations = world.start();
    let limited = Submission { limit_seconds: Some(30), ..submission(detach(id)) };
    let operation = operations.submit(limited).await.unwrap().operation;
    let begun = tokio::time::Instant::now();
    let operation = operations.ended(operation.id).await.unwrap();
    assert!((30..32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let (code, message) = failed(&operation);
    assert!(code == "TIME_IS_UP" && message.contains("may go on"), "{message}");
    // CloudStack may yet take the disk: nobody is let in, and nothing else is begun.
    assert!(world.state().sealed.contains_key(&id) && !operation.is_settled());
    let next = submit(&operations, attach(id)).await.operation;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(operations.get(next.id).await.unwrap().state, OperationState::Pending);
    // It comes to nothing in the end: the export is given back.
    world.end_jobs();
    let next = operations.ended(next.id).await.unwrap();
    assert!(completed(&next) && next.progress.adopted, "{next:#?}");
    let state = world.state();
    assert!(state.sealed.is_empty() && state.here[&id].state == State::Ready && state.wrongs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_create_that_ends_after_its_time_leaves_no_volume() {
    let world = World::new();
    world.trouble().jobs_hang = true;
    let operations = world.start();
    let limited = Submission { limit_seconds: Some(30), ..submission(create()) };
    let operation = operations.submit(limited).await.unwrap().operation;
    let operation = operations.ended(operation.id).await.unwrap();
    assert_eq!(failed(&operation).0, "TIME_IS_UP");
    assert_eq!(world.state().volumes.len(), 1, "the control: it is there");
    world.end_jobs();
    world.settled(&operations, operation.id).await;
    assert!(world.state().volumes.is_empty(), "{:?}", world.state().log);
}

#[tokio::test(start_paused = true)]
async fn an_attached_volume_whose_disk_does_not_come_fails_with_the_cure_and_keeps_its_intent() {
    let world = World::new();
    let id = world.with(volume(1, None));
    world.trouble().no_serial = true;
    let operations = world.start();
    let operation = done(&operations, attach(id)).await;
    let (code, message) = failed(&operation);
    assert_eq!(code, "NOT_SERVED");
    assert!(message.contains("stopped and started") && message.contains(id.serial().as_str()), "{message}");
    world.settled(&operations, operation.id).await;
    assert_eq!(world.state().here[&id].state, State::Attaching, "it says why it waits");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_refused_for_long_ends_the_attach_with_its_reason() {
    let world = World::new();
    let id = world.with(volume(1, None));
    world.trouble().refuse = Some("the disk is on the bus scsi");
    let operation = done(&world.start(), attach(id)).await;
    let (code, message) = failed(&operation);
    assert!(code == "NOT_SERVED" && message.contains("SCHEME_OFF") && message.contains("bus scsi"), "{message}");
    assert!(!message.contains(".."), "each sentence ends once: {message}");
    let took = operation.completed_at.unwrap().duration_since(operation.created_at);
    assert!(took.as_secs() < 60, "not at its deadline: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_still_here_after_its_detach_is_not_taken_for_attached_again() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    // CloudStack has detached it, the guest has not.
    world.state().volumes.get_mut(&id).unwrap().vm = None;
    refused(&world, attach(id), "DISK_STILL_HERE", &["not carried out in this guest"]).await;
}

#[tokio::test(start_paused = true)]
async fn asked_for_again_it_is_the_same_operation_by_its_key_or_while_it_is_open() {
    let world = World::new();
    let id = world.with(volume(1, None));
    let operations = world.start();
    let first = submit(&operations, attach(id)).await;
    let same = submit(&operations, to(id, own())).await;
    assert!(first.new && !same.new && first.operation.id == same.operation.id, "by its own VM's id, too");
    let other = submit(&operations, detach(id)).await;
    let third = submit(&operations, attach(id)).await;
    assert!(other.new && third.new, "attach, detach, attach are three");
    for operation in [&first, &other, &third] {
        assert!(completed(&operations.ended(operation.operation.id).await.unwrap()));
    }
    let log: Vec<String> = world.state().log.iter().map(|call| call[..6].to_owned()).collect();
    assert_eq!(log, ["attach", "detach", "attach"], "in the order in which they came");

    let key: IdempotencyKey = "k".parse().unwrap();
    let keyed = |request, uid| Submission { key: Some(key.clone()), uid: Some(uid), ..submission(request) };
    let first = operations.submit(keyed(detach(id), 7)).await.unwrap();
    operations.ended(first.operation.id).await.unwrap();
    let again = operations.submit(keyed(detach(id), 7)).await.unwrap();
    assert!(!again.new && again.operation.id == first.operation.id, "ended long ago");
    let why = operations.submit(keyed(attach(id), 7)).await.unwrap_err();
    assert!(matches!(why, Refused::KeyUsed { .. }), "{why}");
    assert!(operations.submit(keyed(attach(id), 8)).await.unwrap().new, "another user's key is another one");
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_called_off_while_nothing_was_asked_of_cloudstack_and_no_later() {
    let world = World::new();
    let (id, other) = (world.with(volume(1, Some(own()))), world.with(volume(2, None)));
    world.trouble().away_until = Some(Duration::from_secs(20));
    let operations = world.start();
    let early = submit(&operations, detach(id)).await.operation;
    let behind = submit(&operations, attach(id)).await.operation;
    for operation in [&behind, &early] {
        let cancelled = operations.cancel(operation.id).await.unwrap();
        assert_eq!(cancelled.state, OperationState::Cancelled);
    }
    assert!(world.state().log.is_empty() && world.state().here[&id].state == State::Ready);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let late = submit(&operations, attach(other)).await.operation;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let why = operations.cancel(late.id).await.unwrap_err();
    assert!(matches!(why, Refused::TooLate { step: "attach", .. }), "{why}");
    assert!(completed(&operations.ended(late.id).await.unwrap()));
    assert!(matches!(operations.cancel(late.id).await, Err(Refused::TooLate { .. })));
    let unknown = OperationId::from(tools::new_id());
    assert_eq!(operations.cancel(unknown).await.unwrap_err(), Refused::Unknown(unknown));
}

#[tokio::test(start_paused = true)]
async fn an_attach_is_done_by_its_disk_before_the_jobs_answer() {
    let world = World::new();
    let id = world.with(volume(1, None));
    let operations = world.start();
    let operation = done(&operations, attach(id)).await;
    assert!(completed(&operation));
    assert_eq!(world.state().volumes[&id].vm, None, "the control: the job has not ended");
    world.settled(&operations, operation.id).await;
    assert_eq!(world.state().volumes[&id].vm, Some(own()));
}

#[tokio::test(start_paused = true)]
async fn two_data_disks_and_the_root_disk_of_one_vm_have_places_of_their_own_which_go_with_them() {
    let world = World::new();
    let ids = [1, 2, 3].map(|n| world.with(volume(n, None)));
    let operations = world.start();
    let root = Request::AttachRoot(Attach { volume: ids[2], to: Place::Vm(test_vm()) });
    let mut paths = std::collections::BTreeSet::new();
    for request in [to(ids[0], test_vm()), to(ids[1], test_vm()), root] {
        let operation = done(&operations, request).await;
        paths.insert(operation.response.as_ref().unwrap().device_path.clone().unwrap());
    }
    assert_eq!(paths.len(), 3, "{paths:?}");
    assert_eq!(operations.placeholders().len(), 3);
    // Without a VM that is named: where it is on record.
    assert!(completed(&done(&operations, detach(ids[0])).await));
    assert_eq!(operations.placeholders().len(), 2);
    operations.stop();
    assert_eq!(world.start().placeholders().len(), 2, "also after a restart");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_wanted_here_is_not_attached_to_another_vm() {
    let world = World::new();
    let id = world.with(volume(1, None));
    world.state().here.insert(id, here(State::Waiting, IntentOrigin::Announced, id));
    refused(&world, to(id, test_vm()), "INTENT_HERE", &["withdraw"]).await;
    let attached = done(&world.start(), attach(id)).await;
    assert!(completed(&attached), "the control, and an announced intent is as good");
}

#[tokio::test(start_paused = true)]
async fn no_user_takes_the_operations_from_the_others() {
    let world = World::new();
    world.trouble().away_until = Some(Duration::from_secs(1));
    let operations = world.start();
    for n in 0..256 {
        submit(&operations, attach(id(n))).await;
    }
    let why = operations.submit(submission(attach(id(300)))).await.unwrap_err();
    assert_eq!(why.code(), Code::TooManyOperations, "{why}");
    let another = Submission { uid: Some(8), ..submission(attach(id(300))) };
    assert!(operations.submit(another).await.unwrap().new);
}

/// A call that hangs keeps nobody from seeing that the volume is served.
#[tokio::test(start_paused = true)]
async fn an_attach_is_done_by_its_disk_while_a_call_has_no_answer() {
    for silent in ["cloud.attach", "cloud.job"] {
        let world = World::new();
        let id = world.with(volume(1, None));
        let operations = world.start();
        world.trouble().silent = match silent {
            "cloud.job" => &["cloud.job"],
            _ => &["cloud.attach"],
        };
        let begun = tokio::time::Instant::now();
        let operation = done(&operations, attach(id)).await;
        assert!(completed(&operation), "{operation:#?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{silent}: {:?}", begun.elapsed());
        assert!(!operation.is_settled(), "the control: CloudStack has not answered");
        world.trouble().silent = &[];
        world.settled(&operations, operation.id).await;
        assert!(begun.elapsed() > CALL_LIMIT, "the control: it has hung that long: {:?}", begun.elapsed());
        assert_eq!(world.state().log.len(), 1, "and nothing was asked for twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_is_kept_while_a_call_has_no_answer() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    world.trouble().silent = &["cloud.detach"];
    let operations = world.start();
    let limited = Submission { limit_seconds: Some(10), ..submission(detach(id)) };
    let operation = operations.submit(limited).await.unwrap().operation;
    let begun = tokio::time::Instant::now();
    let operation = operations.ended(operation.id).await.unwrap();
    assert!((10..12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(failed(&operation).0, "TIME_IS_UP");
    assert!(world.state().sealed.contains_key(&id), "what CloudStack may be doing is waited for");
    world.settled(&operations, operation.id).await;
    assert!(world.state().here.is_empty(), "in the end it is detached");
}

#[tokio::test(start_paused = true)]
async fn the_job_of_a_server_that_chooses_the_id_itself_is_on_record_and_followed() {
    let world = World::new();
    let (id, there) = (world.with(volume(1, Some(own()))), world.with(volume(2, None)));
    world.trouble().old_server = true;
    let operations = world.start();
    assert!(completed(&done(&operations, detach(id)).await));
    for request in [to(there, test_vm()), create()] {
        let operation = done(&operations, request).await;
        assert!(completed(&operation), "{operation:#?}");
        let (asked, given) = (operation.progress.step.job(), operation.progress.job_given);
        assert!(given.is_some() && given != asked, "{operation:#?}");
        assert_eq!(world.state().operations[&operation.id].progress.job(), given, "on record");
    }
    // What the job says is told: without its id only the volume could be asked.
    world.trouble().jobs_fail = Some("no free slot");
    let operation = done(&operations, attach(id)).await;
    assert!(failed(&operation).1.contains("no free slot"), "{operation:#?}");
    // The control: a server that takes the id that it is given.
    (world.trouble().old_server, world.trouble().jobs_fail) = (false, None);
    let control = done(&operations, attach(id)).await;
    assert!(completed(&control) && control.progress.job_given.is_none(), "{control:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_operation_begins_with_is_asked_while_it_is_put_on_record_and_only_if_no_other_goes_first() {
    let world = World::new();
    let id = world.with(volume(1, None));
    let operations = world.start();
    let (first, second) = (submit(&operations, attach(id)).await, submit(&operations, detach(id)).await);
    let position = |point: &str| world.state().points.iter().position(|passed| passed == point).unwrap();
    assert!(position("before:cloud.volume") < position("after:record"), "{:?}", world.state().points);
    let looks = |world: &World| world.state().points.iter().filter(|point| *point == "before:cloud.volume").count();
    assert_eq!(looks(&world), 1, "the second waits for its turn");
    for operation in [first, second] {
        assert!(completed(&operations.ended(operation.operation.id).await.unwrap()));
    }
    assert_eq!(world.state().volumes[&id].vm, None, "the second has seen what the first has done");
}

/// The intent, the step and the wish on record are one transaction: nothing is asked of CloudStack without it.
#[tokio::test(start_paused = true)]
async fn an_attach_whose_intent_is_gone_after_a_restart_puts_it_on_record_again_before_it_asks() {
    let world = World::new();
    let id = world.with(volume(1, None));
    let operations = world.start();
    world.trouble().away_until = Some(Duration::from_secs(3));
    let begun = submit(&operations, attach(id)).await.operation;
    tokio::time::sleep(Duration::from_secs(1)).await;
    operations.stop();
    // As if it had died when the claim could not be written, and the intent was taken back.
    {
        let mut state = world.state();
        let operation = state.operations.get_mut(&begun.id).unwrap();
        operation.state = OperationState::Executing;
        operation.progress.step = crate::operation::Step::Attach { job: crate::identity::JobId::from(tools::new_id()) };
        operation.progress.vm = Some(own());
        assert!(state.here.is_empty(), "the control");
    }
    let operations = world.start();
    assert!(completed(&operations.ended(begun.id).await.unwrap()));
    let points = world.state().points.clone();
    let at = |name: &str| points.iter().position(|point| point == name).unwrap();
    assert!(at("after:host.intend") < at("before:cloud.attach"), "{points:?}");
}

#[tokio::test(start_paused = true)]
async fn which_vm_this_host_is_is_found_out_again_when_cloudstack_does_not_know_what_it_is_asked_for() {
    let world = World::new();
    let id = world.with(volume(1, None));
    world.trouble().no_such_vm = true;
    let operations = world.start();
    let (code, message) = failed(&done(&operations, attach(id)).await);
    assert!(code == "CLOUD_REFUSED" && message.contains("Unable to find virtual machine"), "{code} {message}");
    assert_eq!(world.state().doubts, 1);
    world.trouble().no_such_vm = false;
    world.trouble().jobs_fail = Some("no free slot");
    assert_eq!(failed(&done(&operations, attach(id)).await).0, "CLOUD_REFUSED");
    assert_eq!(world.state().doubts, 1, "the control: any other refusal says nothing about it");
}

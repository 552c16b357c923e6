//! What came by the predecessor's routes: a detach that waits for clients, and requests that cannot be carried out.

use serde_json::json;
use std::time::Duration;

use super::world::{World, id, own, test_vm, volume};
use super::{attach, cleanup, failed, submission, submit};
use crate::identity::VolumeId;
use crate::operation::{
    Attach, CleanUp, Detach, Kind, Operation, OperationState, Place, Request, Unusable, Written, predecessor,
};
use crate::operations::{Operations, Refused, Submission};
use crate::volume::State;

fn written() -> Option<Written> {
    serde_json::from_value(json!({ "volume_id": "v", "vm_id": "" })).unwrap()
}

fn waiting(volume: VolumeId, delete: bool) -> Request {
    let detach = Detach { volume, from: None, force: false, client_wait_seconds: 30 };
    if delete { Request::Delete(detach) } else { Request::Detach(detach) }
}

#[tokio::test(start_paused = true)]
async fn a_detach_waits_for_its_clients_as_long_as_it_was_told_and_serves_them_meanwhile() {
    for delete in [false, true] {
        let world = World::new();
        let id = world.with(volume(1, Some(own())));
        world.state().clients.insert(id);
        let operations = world.start();
        let asked = || Submission { written: written(), ..submission(waiting(id, delete)) };
        let begun = tokio::time::Instant::now();
        let operation = operations.submit(asked()).await.unwrap().operation;
        let ended = operations.ended(operation.id).await.unwrap();
        assert!((30..31).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!(failed(&ended).0, "CLIENTS_CONNECTED");
        let error = predecessor::error(&ended).unwrap();
        assert!(error.starts_with("CloudStack volume detachment failed: "), "{error}");
        assert!(world.state().sealed.is_empty() && world.state().here[&id].state == State::Ready);
        assert!(world.state().log.is_empty(), "CloudStack was asked for nothing");
        let looks = world.state().points.iter().filter(|point| *point == "before:host.seal").count();
        assert!((10..30).contains(&looks), "{looks}: it is looked at growing intervals");

        // They go after ten seconds: then it goes on.
        let operation = operations.submit(asked()).await.unwrap().operation;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(operations.get(operation.id).await.unwrap().state, OperationState::Executing);
        world.state().clients.clear();
        let begun = tokio::time::Instant::now();
        let ended = operations.ended(operation.id).await.unwrap();
        assert_eq!(ended.state, OperationState::Completed, "{ended:#?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_that_waits_for_its_clients_can_be_cancelled() {
    let world = World::new();
    let id = world.with(volume(1, Some(own())));
    world.state().clients.insert(id);
    let operations = world.start();
    let operation = submit(&operations, waiting(id, false)).await.operation;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let cancelled = operations.cancel(operation.id).await.unwrap();
    assert_eq!(cancelled.state, OperationState::Cancelled);
    assert!(world.state().sealed.is_empty() && world.state().here[&id].state == State::Ready);
}

/// Submits a request that has to be on record as failed, and returns it.
async fn on_record(world: &World, operations: &Operations, request: Request) -> Operation {
    let submission = Submission { written: written(), ..submission(request) };
    let submitted = operations.submit(submission).await.unwrap();
    assert!(submitted.new);
    let operation = Operation::clone(&submitted.operation);
    assert!(operation.completed_at.is_some() && operation.is_settled(), "{operation:#?}");
    let kept = world.state().operations[&operation.id].clone();
    assert_eq!(kept, operation, "as it was answered");
    assert!(world.state().log.is_empty() && world.state().here.is_empty(), "nothing was begun");
    operation
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_carried_out_is_on_record_if_it_came_by_the_predecessors_routes_and_refused_otherwise() {
    let world = World::new();
    let operations = world.start();
    let (id, why) = (id(1), "vm_id: \"\" is not a VM id".to_owned());
    let unusable = Request::Unusable(Unusable { kind: Kind::AttachRoot, volume: Some(id), why: why.clone() });
    let operation = on_record(&world, &operations, unusable.clone()).await;
    assert_eq!(failed(&operation), ("INVALID_BODY", why));
    assert_eq!(operation.request.kind(), Kind::AttachRoot);
    let shown = predecessor::request(&operation);
    assert_eq!(shown.get("vm_id"), Some(&json!("")), "as it was written");

    let root = Request::AttachRoot(Attach { volume: id, to: Place::Vm(own()) });
    assert_eq!(failed(&on_record(&world, &operations, root.clone()).await).0, "OWN_VM");
    let Request::Cleanup(back) = cleanup(id, false) else { unreachable!() };
    let elsewhere = Request::Cleanup(CleanUp { back_to: Place::Vm(test_vm()), ..back });
    assert_eq!(failed(&on_record(&world, &operations, elsewhere.clone()).await).0, "VOLUME_ELSEWHERE");
    let nobody = world.start_as(|| Err("nobody knows".to_owned()));
    assert_eq!(failed(&on_record(&world, &nobody, attach(id)).await).0, "OWN_VM_UNKNOWN");

    // The control: by attachd's own route each is refused, and nothing is on record.
    let before = world.state().operations.len();
    for request in [unusable, root, elsewhere] {
        let refused = operations.submit(submission(request)).await.unwrap_err();
        assert!(!matches!(refused, Refused::Store(_)), "{refused}");
    }
    assert_eq!(world.state().operations.len(), before);
}

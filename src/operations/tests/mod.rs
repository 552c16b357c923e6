//! Operations against doubles, in virtual time.

mod asked_before;
mod cases;
mod deaths;
mod rules;
mod world;

use std::sync::Arc;

use super::{Operations, Submission, Submitted};
use crate::identity::VolumeId;
use crate::operation::{Attach, CleanUp, Create, Detach, Operation, OperationState, Place, Request};
use world::{World, id, own, test_vm, volume};

fn submission(request: Request) -> Submission {
    Submission { request, written: None, key: None, limit_seconds: None, uid: Some(7) }
}

async fn submit(operations: &Operations, request: Request) -> Submitted {
    operations.submit(submission(request)).await.unwrap()
}

/// Asked for and followed to its end.
async fn done(operations: &Operations, request: Request) -> Operation {
    let submitted = submit(operations, request).await;
    let ended = operations.ended(submitted.operation.id).await.unwrap();
    Operation::clone(&ended)
}

fn attach(volume: VolumeId) -> Request {
    Request::Attach(Attach { volume, to: Place::Here })
}

fn detach(volume: VolumeId) -> Request {
    Request::Detach(Detach { volume, from: None, force: false, client_wait_seconds: 0 })
}

fn delete(volume: VolumeId) -> Request {
    Request::Delete(Detach { volume, from: None, force: false, client_wait_seconds: 0 })
}

fn create() -> Request {
    Request::Create(Create {
        name: "disk".parse().unwrap(),
        size: ((3 << 30) + 1).try_into().unwrap(),
        disk_offering: "offering".parse().unwrap(),
        zone: "zone".parse().unwrap(),
    })
}

fn cleanup(volume: VolumeId, delete_vm: bool) -> Request {
    Request::Cleanup(CleanUp { volume, test_vm: test_vm(), delete_vm, force: true, back_to: Place::Here })
}

fn failed(operation: &Operation) -> (&'static str, String) {
    assert_eq!(operation.state, OperationState::Failed, "{operation:#?}");
    let fault = operation.fault.as_ref().unwrap();
    (fault.code.name(), fault.message.clone())
}

fn completed(operation: &Operation) -> bool {
    operation.state == OperationState::Completed
}

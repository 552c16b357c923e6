//! An operation: the request for it, and its progress.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::names::FaultCode;
use super::nullable;
use super::number::whole;
use super::shown_as_written;
use crate::identity::{JobId, OperationId, VmId, VolumeId};
use crate::operation::predecessor::More;
use crate::operation::{self, Kind, OperationState};
use crate::reason::{Code, Named};

/// The name of the events that are an [`OperationView`].
pub(crate) const OPERATION: &str = "operation";

/// A request for an operation. [`Field::is_needed`] returns which fields a type takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOperation {
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) volume_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk_offering_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) zone_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) force: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) delete_vm: Option<bool>,
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub(crate) client_wait_seconds: Option<u32>,
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_seconds: Option<u32>,
}

/// A field of [`NewOperation`] besides `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    VolumeId,
    VmId,
    Name,
    SizeBytes,
    DiskOfferingId,
    ZoneId,
    Force,
    DeleteVm,
    ClientWaitSeconds,
    DeadlineSeconds,
}

impl Field {
    /// Every field.
    pub(crate) const ALL: [Self; 10] = [
        Self::VolumeId,
        Self::VmId,
        Self::Name,
        Self::SizeBytes,
        Self::DiskOfferingId,
        Self::ZoneId,
        Self::Force,
        Self::DeleteVm,
        Self::ClientWaitSeconds,
        Self::DeadlineSeconds,
    ];

    /// Returns the field's name in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::VolumeId => "volume_id",
            Self::VmId => "vm_id",
            Self::Name => "name",
            Self::SizeBytes => "size_bytes",
            Self::DiskOfferingId => "disk_offering_id",
            Self::ZoneId => "zone_id",
            Self::Force => "force",
            Self::DeleteVm => "delete_vm",
            Self::ClientWaitSeconds => "client_wait_seconds",
            Self::DeadlineSeconds => "deadline_seconds",
        }
    }

    /// Returns whether a request of this kind needs the field (`Some(true)`), may have it (`Some(false)`), or must
    /// not have it (`None`).
    pub(crate) const fn is_needed(self, kind: Kind) -> Option<bool> {
        let is_create = matches!(kind, Kind::Create);
        let is_cleanup = matches!(kind, Kind::Cleanup);
        match self {
            Self::DeadlineSeconds => Some(false),
            Self::Name | Self::SizeBytes | Self::DiskOfferingId | Self::ZoneId if is_create => Some(true),
            Self::VolumeId if !is_create => Some(true),
            Self::VmId if !is_create => Some(is_cleanup),
            Self::DeleteVm if is_cleanup => Some(false),
            Self::Force if is_cleanup || matches!(kind, Kind::Detach | Kind::Delete) => Some(false),
            Self::ClientWaitSeconds if matches!(kind, Kind::Detach | Kind::Delete) => Some(false),
            _ => None,
        }
    }
}

impl NewOperation {
    /// Returns a request of this kind without other fields.
    pub(crate) const fn of(kind: Kind) -> Self {
        Self {
            kind,
            volume_id: None,
            vm_id: None,
            name: None,
            size_bytes: None,
            disk_offering_id: None,
            zone_id: None,
            force: None,
            delete_vm: None,
            client_wait_seconds: None,
            deadline_seconds: None,
        }
    }

    /// Returns whether the request has this field.
    pub(crate) const fn says(&self, field: Field) -> bool {
        match field {
            Field::VolumeId => self.volume_id.is_some(),
            Field::VmId => self.vm_id.is_some(),
            Field::Name => self.name.is_some(),
            Field::SizeBytes => self.size_bytes.is_some(),
            Field::DiskOfferingId => self.disk_offering_id.is_some(),
            Field::ZoneId => self.zone_id.is_some(),
            Field::Force => self.force.is_some(),
            Field::DeleteVm => self.delete_vm.is_some(),
            Field::ClientWaitSeconds => self.client_wait_seconds.is_some(),
            Field::DeadlineSeconds => self.deadline_seconds.is_some(),
        }
    }
}

impl NewOperation {
    /// Returns its fields except for the type, as JSON.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        match json!(self) {
            Value::Object(mut fields) => {
                fields.remove("type");
                fields
            }
            _ => Map::new(),
        }
    }
}

/// An operation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct OperationView {
    pub(crate) id: OperationId,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) status: OperationState,
    /// The volume's UUID. Empty while the volume of a create is not known.
    pub(crate) volume_id: String,
    /// The VM of the operation, if it is known. For a cleanup it is the VM of the test.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm_id: Option<VmId>,
    /// The fields of the request's body.
    #[schema(value_type = Object)]
    pub(crate) request: Map<String, Value>,
    /// The result, when the operation has succeeded.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) response: Option<ResponseView>,
    /// Why the operation failed: a sentence.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Why the operation failed: the code for programs.
    #[schema(value_type = Option<FaultCode>)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) code: Option<Named<Code>>,
    /// What to do next, if the error does not say it.
    #[schema(value_type = Option<String>)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) hint: Option<Cow<'static, str>>,
    /// The present step. `null` when the operation has ended.
    #[serde(deserialize_with = "nullable")]
    pub(crate) step: Option<StepView>,
    /// When the time limit ends, by the present wall clock. The limit itself is measured by a clock that nobody can
    /// set.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) deadline_at: Timestamp,
    /// The caller's idempotency key (`Idempotency-Key`).
    #[serde(deserialize_with = "nullable")]
    pub(crate) key: Option<String>,
    /// The user who made the request.
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid: Option<u32>,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) updated_at: Timestamp,
    /// When the operation ended.
    #[schema(value_type = String, format = DateTime, nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) completed_at: Option<Timestamp>,
}

/// The progress of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = OperationStep)]
pub(crate) struct StepView {
    /// The present step.
    #[schema(value_type = String)]
    pub(crate) name: Cow<'static, str>,
    // Without a description of its own: beside an inline schema it would become a second one, of another type.
    #[schema(inline)]
    pub(crate) waits_for: Party,
    /// The step in words.
    pub(crate) text: String,
    /// Since when the operation has been in this step. For `kernel`: when CloudStack said so.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) since: Timestamp,
    /// The id of CloudStack's job. CloudStack's `queryAsyncJobResult` shows the job.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, format = "uuid")]
    pub(crate) job_id: Option<JobId>,
    /// Whether the operation can be cancelled now.
    pub(crate) cancellable: bool,
}

/// Who must act now: `turn` (an earlier operation of the volume), `cloud`, `kernel` (CloudStack has attached the volume, and the kernel
/// does not show its disk yet), `udev` (the kernel shows the disk, and udev has not finished with it) or `attachd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Party {
    Turn,
    Cloud,
    Kernel,
    Udev,
    Attachd,
}
shown_as_written!(Party);

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = OperationResponse)]
pub(crate) struct ResponseView {
    #[serde(deserialize_with = "nullable")]
    pub(crate) volume_id: Option<VolumeId>,
    /// The VM that has the volume now, or had it.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm_id: Option<VmId>,
    /// The by-id path of the volume's disk. For another VM it is the placeholder `remote-vm-<vm>-<volume>`.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device_path: Option<String>,
    /// For a root disk that was attached by the predecessor's route: 0.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device_id: Option<u32>,
    /// For a cleanup: whether the VM was deleted.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm_deleted: Option<bool>,
    /// For a cleanup by the predecessor's route: the VM of the test.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) test_vm_id: Option<String>,
    /// For a cleanup by the predecessor's route: the VM to which the volume came back.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) oma_vm_id: Option<String>,
    /// For a detach of a served volume: whether the clients' writes were flushed to the disk.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flush: Option<FlushView>,
    /// Whether nothing had to be done, so that nothing was asked of CloudStack.
    pub(crate) adopted: bool,
    /// The result in a sentence.
    pub(crate) message: String,
}

/// Whether the clients' writes were flushed to the disk before it was detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Flush)]
pub(crate) struct FlushView {
    #[schema(inline)]
    pub(crate) state: FlushState,
    /// Why the flush failed.
    #[serde(deserialize_with = "nullable")]
    pub(crate) why: Option<String>,
}

/// `done`, `not_served` (there was nothing to flush) or `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FlushState {
    Done,
    NotServed,
    Failed,
}
shown_as_written!(FlushState);

impl ResponseView {
    /// Returns the view of a response, with what callers of the predecessor's routes read besides.
    pub(crate) fn new(response: operation::Response, more: More) -> Self {
        let operation::Response { volume_id, vm_id, device_path, vm_deleted, flush, adopted, message } = response;
        let More { device_id, device_path: or_path, test_vm_id, oma_vm_id } = more;
        let (device_path, flush) = (device_path.or(or_path), flush.map(FlushView::from));
        Self { volume_id, vm_id, device_path, device_id, vm_deleted, test_vm_id, oma_vm_id, flush, adopted, message }
    }
}

impl From<operation::Flush> for FlushView {
    fn from(flush: operation::Flush) -> Self {
        match flush {
            operation::Flush::Done => Self { state: FlushState::Done, why: None },
            operation::Flush::NotServed => Self { state: FlushState::NotServed, why: None },
            operation::Flush::Failed(why) => Self { state: FlushState::Failed, why: Some(why) },
        }
    }
}

/// The details of `WAIT_TIMEOUT` of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationStanding {
    /// The operation's state.
    pub(crate) status: OperationState,
    /// The operation's progress.
    #[serde(deserialize_with = "nullable")]
    pub(crate) step: Option<StepView>,
}

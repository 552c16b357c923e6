//! The JSON of the API. Each shape is declared once: attachd writes these types and attachctl reads the same types.
//! So a field that is renamed on one side fails to compile or to parse and is never shown as empty.
//!
//! The OpenAPI document is made from these types and from the handlers in [`crate::api`]. A reader ignores unknown
//! fields, because a newer attachd may send more. A missing field is an error, even if its value may be `null`
//! ([`nullable`]); a field that may be absent is marked (`default`).

mod asked;
mod cloud;
mod device;
mod error;
mod export;
mod health;
mod intent;
mod names;
mod number;
mod operation;
mod operation_schema;
#[cfg(test)]
mod tests;
mod volume;

use serde::{Deserialize, Deserializer};

pub(crate) use asked::{WrongField, as_asked, difference};
pub(crate) use cloud::{CloudHealth, CloudState, LastRefusal, OwnVmHealth};
pub(crate) use device::{DeviceList, DeviceView, Resynced};
pub(crate) use error::{ErrorBody, WaitTimeoutDetails};
pub(crate) use export::{CheckedExport, ExportEntry, ExportList, PredecessorStatus, ServedCount};
pub(crate) use health::{
    BackendHealth, BackendMode, BackendState, Health, HealthProblem, HealthStatus, HelperHealth, HelperState,
    ListenerHealth, ListenerOrigin, MonitorHealth, OperationsHealth, ProjectionHealth, Remark, ResyncHealth,
    SocketHealth, StoreHealth, StoreState, UdevdHealth, UdevdState,
};
pub(crate) use intent::{IntentList, IntentView, NewIntent, WithdrawnView};
pub(crate) use number::{whole_in_query, whole_or_negative};
pub(crate) use operation::{NewOperation, OPERATION, OperationStanding, OperationView, Party, ResponseView, StepView};
pub(crate) use operation_schema::MOST_SECONDS;
pub(crate) use volume::{
    EntryView, EventView, EvidenceView, ExportState, ExportView, MISSED, Missed, ReasonView, VOLUME, VolumeList,
    VolumeView,
};

/// Reads a field that is always present and may be `null`. Without this function an absent field would be read as
/// `null`.
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// Implements `Display` with the JSON spelling.
macro_rules! shown_as_written {
    ($($name:ty),+) => { $(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                serde::Serialize::serialize(self, f)
            }
        }
    )+ };
}
use shown_as_written;

//! What goes over the API's socket: each JSON shape once. attachd writes these types and attachctl reads the same ones, so a
//! field that has another name in one of the two is not compiled, or not understood, and never shown as nothing.
//!
//! The OpenAPI document is made of these types and of what the handlers in [`crate::api`] say. Who reads passes over fields
//! that are not known here: a newer attachd may say more. A field that is missed is an error, also one that may be `null`
//! ([`nullable`]); those that may be left out say so (`default`).

mod device;
mod error;
mod export;
mod health;
mod intent;
mod names;
mod number;
#[cfg(test)]
mod tests;
mod volume;

use serde::{Deserialize, Deserializer};

pub(crate) use device::{DeviceList, DeviceView, Resynced};
pub(crate) use error::{ErrorBody, Standing};
pub(crate) use export::{CheckedExport, ExportEntry, ExportList, PredecessorStatus};
pub(crate) use health::{
    BackendHealth, BackendMode, BackendState, Health, HealthProblem, HealthStatus, HelperHealth, HelperState,
    MonitorHealth, ProjectionHealth, Remark, ResyncHealth, SocketHealth, StoreHealth, StoreState, UdevdHealth,
    UdevdState,
};
pub(crate) use intent::{IntentList, IntentView, NewIntent, WithdrawnView};
pub(crate) use number::whole_in_query;
pub(crate) use volume::{
    EntryView, EventView, EvidenceView, ExportState, ExportView, MISSED, Missed, ReasonView, VOLUME, VolumeList,
    VolumeView,
};

/// A field that is always there and may be `null`. Without this, one that is not there would be read as `null`.
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// Shown as it is written in JSON.
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

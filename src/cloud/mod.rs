//! CloudStack: the calls that attachd makes, and the answers, as types. [`Cloud`] has all calls; the rest of attachd knows neither
//! the HTTP nor the JSON of CloudStack.
//!
//! A call that changes something is sent once. The error says whether it may have been carried out
//! ([`CallError::may_be_done`]); then [`Cloud::volume`] and [`Cloud::job`] tell. Only a call that reads is sent again by itself,
//! after a failed connection.

mod access;
mod answer;
mod client;
mod error;
mod http;
mod job;
mod json;
mod keys;
mod own_vm;
mod refusal;
mod resolve;
mod seen;
mod settings;
mod shapes;
mod sign;
mod vm;
mod volume;
mod words;

use std::pin::Pin;

use crate::identity::VolumeId;
pub use crate::identity::{JobId, VmId};
pub use access::Access;
pub use client::Client;
pub use error::{CallError, Refusal, RefusalKind, Sent};
pub use http::judge_authorities;
pub use job::{JobStatus, Started};
pub use keys::judge_secret_file;
pub use own_vm::{OwnVm, OwnVmFinder, VmSource};
pub use seen::{Outcome, Seen, Trouble, TroubleKind};
pub use settings::{ApiUrl, BadUrl, CloudSettings, ProxyUrl, SecretFile};
pub use vm::{CloudVm, Mac, VmState};
pub use volume::{CloudVolume, NewVolume, VolumeKind, VolumeState};

/// The result of a call, when it is there.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send + 'a>>;

/// The calls to CloudStack. `None` in an answer: it knows no such thing.
///
/// The calls that take a [`JobId`] begin a job and return. The caller chooses the id (`customjobid`) and records it before the
/// call, so that it finds the job again after a crash. CloudStack refuses an id that was used before.
pub trait Cloud: Send + Sync {
    /// Returns a volume as it is now; this decides after every unclear result.
    fn volume(&self, id: VolumeId) -> Answer<'_, Option<CloudVolume>>;

    /// Returns the volume of exactly this name, for a create whose outcome is unclear and that used a unique name. Of several
    /// volumes, the first that CloudStack lists.
    fn volume_named<'a>(&'a self, name: &'a str) -> Answer<'a, Option<CloudVolume>>;

    /// Returns all volumes that are attached to a VM.
    fn volumes_of<'a>(&'a self, vm: &'a VmId) -> Answer<'a, Vec<CloudVolume>>;

    /// Returns a VM as it is now.
    fn vm<'a>(&'a self, id: &'a VmId) -> Answer<'a, Option<CloudVm>>;

    /// Begins to make a volume. May be called once for each job id: with a used id CloudStack makes a second volume before it
    /// refuses.
    fn create<'a>(&'a self, job: JobId, what: &'a NewVolume) -> Answer<'a, Started>;

    /// Begins to attach a volume to a VM. `device_id` 0: as its root disk.
    fn attach<'a>(&'a self, job: JobId, volume: VolumeId, vm: &'a VmId, device_id: Option<u32>) -> Answer<'a, Started>;

    /// Begins to detach a volume from the VM that has it.
    fn detach(&self, job: JobId, volume: VolumeId) -> Answer<'_, Started>;

    /// Deletes a volume. There is no job: the answer comes when it is done.
    fn delete(&self, volume: VolumeId) -> Answer<'_, ()>;

    /// Returns the status of a job.
    fn job(&self, job: JobId) -> Answer<'_, Option<JobStatus>>;

    /// Begins to stop a VM. `forced`: without waiting for its operating system.
    fn stop_vm<'a>(&'a self, job: JobId, vm: &'a VmId, forced: bool) -> Answer<'a, Started>;

    /// Begins to delete a VM for good, with its root volume.
    fn destroy_vm<'a>(&'a self, job: JobId, vm: &'a VmId) -> Answer<'a, Started>;
}

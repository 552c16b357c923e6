//! CloudStack: what is asked of it, and what it answers, as types. [`Cloud`] is the whole of it that attachd uses; the rest of
//! attachd knows neither HTTP nor JSON of CloudStack's.
//!
//! A call that changes something is sent once, and never again by itself: whoever makes it knows from the error whether it may
//! have been carried out ([`CallError::may_be_done`]), and asks [`Cloud::volume`] and [`Cloud::job`] what is so. A call that only
//! reads may be sent again when its connection failed.

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

/// What comes back from a call, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send + 'a>>;

/// CloudStack. `None` in an answer: it knows no such thing.
///
/// The calls that take a [`JobId`] begin a job there and return: the caller chooses the id before it calls (`customjobid`), puts
/// it on record, and so finds the job again after a crash. CloudStack refuses an id that was used before.
pub trait Cloud: Send + Sync {
    /// A volume as it is now: the judge after every unclear result.
    fn volume(&self, id: VolumeId) -> Answer<'_, Option<CloudVolume>>;

    /// The volume of exactly this name: after a create whose outcome is unclear, for a name that only this create uses. Of
    /// several the first that CloudStack lists.
    fn volume_named<'a>(&'a self, name: &'a str) -> Answer<'a, Option<CloudVolume>>;

    /// All volumes that a VM has attached.
    fn volumes_of<'a>(&'a self, vm: &'a VmId) -> Answer<'a, Vec<CloudVolume>>;

    /// A VM as it is now.
    fn vm<'a>(&'a self, id: &'a VmId) -> Answer<'a, Option<CloudVm>>;

    /// Begins to make a volume. To be asked once for a job: a repeated id makes a second volume before it is refused.
    fn create<'a>(&'a self, job: JobId, what: &'a NewVolume) -> Answer<'a, Started>;

    /// Begins to attach a volume to a VM. `device_id` 0: as its root disk.
    fn attach<'a>(&'a self, job: JobId, volume: VolumeId, vm: &'a VmId, device_id: Option<u32>) -> Answer<'a, Started>;

    /// Begins to detach a volume from the VM that has it.
    fn detach(&self, job: JobId, volume: VolumeId) -> Answer<'_, Started>;

    /// Deletes a volume. There is no job: the answer comes when it is done.
    fn delete(&self, volume: VolumeId) -> Answer<'_, ()>;

    /// How far a job is.
    fn job(&self, job: JobId) -> Answer<'_, Option<JobStatus>>;

    /// Begins to stop a VM. Forced: its power is cut.
    fn stop_vm<'a>(&'a self, job: JobId, vm: &'a VmId, forced: bool) -> Answer<'a, Started>;

    /// Begins to delete a VM for good, with its root volume.
    fn destroy_vm<'a>(&'a self, job: JobId, vm: &'a VmId) -> Answer<'a, Started>;
}

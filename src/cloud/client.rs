//! The client: [`Cloud`] by HTTP.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::answer::opened;
use super::error::{CallError, RefusalKind, Sent};
use super::http::{Failed, Http};
use super::job::{JobStatus, Started};
use super::json::Object;
use super::keys::KeyFiles;
use super::seen::Seen;
use super::settings::CloudSettings;
use super::sign::{self, Parameter};
use super::vm::CloudVm;
use super::volume::{CloudVolume, NewVolume};
use super::{Answer, Cloud, shapes};
use crate::clock::{self, Steady};
use crate::identity::{JobId, VmId, VolumeId};

/// The pauses before a call that only reads is sent again after a failed connection.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

/// How often a call is made while CloudStack does not accept the keys and these change.
const ATTEMPTS: usize = 3;

/// A client of CloudStack's API. Nothing is opened, read or started before the first call, and no connection is kept between
/// calls.
pub struct Client {
    parts: RwLock<Arc<Parts>>,
    seen: Mutex<Seen>,
}

/// The parts that depend on the settings.
struct Parts {
    settings: CloudSettings,
    keys: Arc<KeyFiles>,
    http: Http,
}

impl Parts {
    fn new(settings: CloudSettings) -> Arc<Self> {
        let keys = Arc::new(KeyFiles::new(settings.key_file.clone(), settings.secret_file.clone()));
        Arc::new(Self { keys, http: Http::new(settings.clone()), settings })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("settings", &self.parts().settings).finish_non_exhaustive()
    }
}

/// Whether a call only reads or changes something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Read,
    Change,
}

impl Client {
    /// Makes a client with these settings.
    pub fn new(settings: CloudSettings) -> Self {
        Self { parts: RwLock::new(Parts::new(settings)), seen: Mutex::default() }
    }

    /// Uses other settings from the next call on.
    pub fn change(&self, settings: CloudSettings) {
        *self.parts.write().unwrap_or_else(PoisonError::into_inner) = Parts::new(settings);
        self.seen().begin_anew(Steady::now());
    }

    /// Returns what the calls so far have shown.
    pub fn has_seen(&self) -> Seen {
        self.seen().clone()
    }

    fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        does: Does,
        command: &'static str,
        parameters: Vec<Parameter<'_>>,
        read: impl Fn(&Object) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let parts = self.parts();
        let mut again = AGAIN.iter().filter(|_| does == Does::Read);
        loop {
            let began = Steady::now();
            let outcome = parts.as_somebody(command, &parameters).await;
            if let Err(Unanswered::Http(Failed::NotSent(_) | Failed::Broke(_))) = &outcome
                && let Some(pause) = again.next()
            {
                tokio::time::sleep(*pause).await;
                continue;
            }
            let kept_in = matches!(&outcome, Err(Unanswered::Http(Failed::KeptIn(_))));
            let result = outcome.map_err(CallError::from).and_then(|answer| read(&answer));
            self.seen().note(command, &result, kept_in, (began, clock::wall()));
            if let Err(error) = &result {
                tracing::debug!(command, %error, "a call to CloudStack has failed");
            }
            return result;
        }
    }

    async fn begin(
        &self,
        command: &'static str,
        job: JobId,
        mut parameters: Vec<Parameter<'_>>,
    ) -> Result<Started, CallError> {
        parameters.push(("customjobid", job.to_string()));
        self.call(Does::Change, command, parameters, shapes::started).await
    }

    async fn list_volumes(&self, parameter: Parameter<'_>) -> Result<Vec<CloudVolume>, CallError> {
        // Not paged: a VM has fewer volumes than a page, and CloudStack refuses a page that is larger than its own limit.
        let parameters = vec![parameter, ("listall", "true".to_owned())];
        let result = self.call(Does::Read, "listVolumes", parameters, shapes::volumes).await;
        none_if_gone(result).map(Option::unwrap_or_default)
    }
}

/// Why a call has no answer.
enum Unanswered {
    Http(Failed),
    Error(CallError),
}

impl From<Unanswered> for CallError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Error(error) => error,
            Unanswered::Http(Failed::NotAble(why)) => Self::NotAble { why },
            Unanswered::Http(Failed::NotSent(why) | Failed::KeptIn(why)) => Self::Unreachable { sent: Sent::No, why },
            Unanswered::Http(Failed::Broke(why) | Failed::TimedOut(why)) => {
                Self::Unreachable { sent: Sent::Unclear, why }
            }
        }
    }
}

impl Parts {
    /// Makes the call with the present keys. If CloudStack does not accept these and the files change meanwhile, makes it again
    /// with the new keys: a call that was not accepted was not carried out.
    async fn as_somebody(&self, command: &str, parameters: &[Parameter<'_>]) -> Result<Object, Unanswered> {
        let not_able = |why: String| Unanswered::Error(CallError::NotAble { why });
        let mut keys = self.keys.current().await.map_err(not_able)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let body = sign::body(command, parameters, &keys, clock::wall());
            let body = body.map_err(|error| not_able(format!("it cannot be signed: {error}")))?;
            let raw = self.http.post(body).await.map_err(Unanswered::Http)?;
            let answer = opened(command, &raw, clock::wall());
            let refused = matches!(&answer, Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotLetIn);
            if !refused || attempts == ATTEMPTS {
                return answer.map_err(Unanswered::Error);
            }
            match self.keys.other_than(&keys, tokio::time::sleep).await {
                Some(other) => keys = other,
                None => return answer.map_err(Unanswered::Error),
            }
        }
    }
}

/// Turns the refusal "there is no such thing" into `None`.
fn none_if_gone<T>(result: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match result {
        Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Gone => Ok(None),
        other => other.map(Some),
    }
}

impl Cloud for Client {
    fn volume(&self, id: VolumeId) -> Answer<'_, Option<CloudVolume>> {
        Box::pin(async move {
            let all = self.list_volumes(("id", id.to_string())).await?;
            Ok(all.into_iter().find(|volume| volume.id == id))
        })
    }

    fn volume_named<'a>(&'a self, name: &'a str) -> Answer<'a, Option<CloudVolume>> {
        Box::pin(async move {
            let all = self.list_volumes(("name", name.to_owned())).await?;
            Ok(all.into_iter().find(|volume| volume.name == name))
        })
    }

    fn volumes_of<'a>(&'a self, vm: &'a VmId) -> Answer<'a, Vec<CloudVolume>> {
        Box::pin(async move {
            let mut all = self.list_volumes(("virtualmachineid", vm.to_string())).await?;
            // A server that does not know the filter lists other volumes as well.
            all.retain(|volume| volume.vm == Some(*vm));
            Ok(all)
        })
    }

    fn vm<'a>(&'a self, id: &'a VmId) -> Answer<'a, Option<CloudVm>> {
        Box::pin(async move {
            let parameters = vec![("id", id.to_string()), ("listall", "true".to_owned())];
            let all = self.call(Does::Read, "listVirtualMachines", parameters, shapes::vms).await;
            Ok(none_if_gone(all)?.unwrap_or_default().into_iter().find(|vm| vm.id == *id))
        })
    }

    fn create<'a>(&'a self, job: JobId, what: &'a NewVolume) -> Answer<'a, Started> {
        let NewVolume { name, gib, disk_offering, zone } = what;
        let parameters = vec![
            ("name", name.clone()),
            ("size", gib.to_string()),
            ("diskofferingid", disk_offering.clone()),
            ("zoneid", zone.clone()),
        ];
        Box::pin(self.begin("createVolume", job, parameters))
    }

    fn attach<'a>(&'a self, job: JobId, volume: VolumeId, vm: &'a VmId, device_id: Option<u32>) -> Answer<'a, Started> {
        let mut parameters = vec![("id", volume.to_string()), ("virtualmachineid", vm.to_string())];
        parameters.extend(device_id.map(|id| ("deviceid", id.to_string())));
        Box::pin(self.begin("attachVolume", job, parameters))
    }

    fn detach(&self, job: JobId, volume: VolumeId) -> Answer<'_, Started> {
        Box::pin(self.begin("detachVolume", job, vec![("id", volume.to_string())]))
    }

    fn delete(&self, volume: VolumeId) -> Answer<'_, ()> {
        Box::pin(self.call(Does::Change, "deleteVolume", vec![("id", volume.to_string())], shapes::done))
    }

    fn job(&self, job: JobId) -> Answer<'_, Option<JobStatus>> {
        Box::pin(async move {
            let parameters = vec![("jobid", job.to_string())];
            none_if_gone(self.call(Does::Read, "queryAsyncJobResult", parameters, shapes::job).await)
        })
    }

    fn stop_vm<'a>(&'a self, job: JobId, vm: &'a VmId, forced: bool) -> Answer<'a, Started> {
        let parameters = vec![("id", vm.to_string()), ("forced", forced.to_string())];
        Box::pin(self.begin("stopVirtualMachine", job, parameters))
    }

    fn destroy_vm<'a>(&'a self, job: JobId, vm: &'a VmId) -> Answer<'a, Started> {
        let parameters = vec![("id", vm.to_string()), ("expunge", "true".to_owned())];
        Box::pin(self.begin("destroyVirtualMachine", job, parameters))
    }
}

#[cfg(test)]
mod tests;

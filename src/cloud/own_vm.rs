//! Finds out which VM in CloudStack this host is. Two sources name it: the configuration, and the UUID in SMBIOS, which libvirt
//! sets to the VM's id. CloudStack has to confirm it by the address of a network interface. An id that is not confirmed counts
//! as unknown: it is never guessed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::vm::{CloudVm, Mac};
use super::{Cloud, settings};
use crate::blocking::blocking;
use crate::identity::VmId;
use crate::place::small_file_of_root;

/// The credential with the UUID of SMBIOS, which only root can read (`LoadCredential=` in attachd.service).
const SMBIOS: &str = "vm-uuid";

/// The network interfaces of this host.
const INTERFACES: &str = "/sys/class/net";

/// How long "unknown" stays the answer, so that callers who ask at the same time share one call.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

/// How long a confirmed id is not asked for again.
const KNOWN_FOR: Duration = Duration::from_mins(10);

/// This host's own VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnVm {
    /// It is this one.
    Known {
        /// Its id.
        id: VmId,
        /// Where the id comes from.
        from: VmSource,
    },
    /// It is not known.
    Unknown {
        /// Why not, and what to do about it.
        why: String,
    },
}

/// Where an id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmSource {
    /// `[host] vm_id`.
    Configuration,
    /// SMBIOS.
    Smbios,
    /// Both say the same.
    Both,
}

impl fmt::Display for VmSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "[host] vm_id",
            Self::Smbios => "SMBIOS",
            Self::Both => "[host] vm_id and SMBIOS",
        })
    }
}

/// Returns the id that the sources name, or why there is none. `smbios`: the text of the credential, or why it cannot be read.
fn candidate(configured: Option<VmId>, smbios: Result<&str, String>) -> Result<(VmId, VmSource), String> {
    match (configured, smbios.and_then(read_smbios)) {
        (Some(configured), Ok(found)) if configured != found => Err(format!(
            "[host] vm_id says {configured} and SMBIOS says {found}: correct or remove [host] vm_id (it may be a copy of \
             another host's configuration)"
        )),
        (Some(id), Ok(_)) => Ok((id, VmSource::Both)),
        (Some(id), Err(_)) => Ok((id, VmSource::Configuration)),
        (None, Ok(id)) => Ok((id, VmSource::Smbios)),
        (None, Err(why)) => Err(format!("[host] vm_id is not set, and {why}: set it to the id that CloudStack shows")),
    }
}

fn read_smbios(text: &str) -> Result<VmId, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("SMBIOS shows no UUID".to_owned());
    }
    // Firmware without a UUID shows zeros or ones.
    let mut digits = text.chars().filter(|c| *c != '-');
    let first = digits.next();
    if digits.all(|digit| Some(digit) == first) {
        return Err(format!("the UUID in SMBIOS is a constant ({text})"));
    }
    text.parse().map_err(|_| "SMBIOS shows a text that is no UUID".to_owned())
}

/// Judges a candidate by what CloudStack shows of the VM and by the addresses of this host.
fn confirmed(id: VmId, from: VmSource, vm: Option<&CloudVm>, ours: &[Mac]) -> OwnVm {
    let unknown = |why: String| OwnVm::Unknown { why };
    let Some(vm) = vm else {
        return unknown(format!(
            "{from} says {id}, and CloudStack shows no such VM to this key: check the id, and that the key's account owns the VM"
        ));
    };
    if vm.macs.iter().any(|mac| ours.contains(mac)) {
        return OwnVm::Known { id, from };
    }
    let list = |macs: &[Mac]| match macs {
        [] => "none".to_owned(),
        macs => macs.iter().take(8).map(Mac::to_string).collect::<Vec<_>>().join(", "),
    };
    // Where one side has no addresses, nothing contradicts what the administrator has configured.
    if from != VmSource::Smbios && (vm.macs.is_empty() || ours.is_empty()) {
        return OwnVm::Known { id, from };
    }
    unknown(format!(
        "{from} says {id}, and no network interface of this host has an address of that VM (VM: {}; this host: {}): set [host] \
         vm_id to the id of the VM that this host is",
        list(&vm.macs),
        list(ours)
    ))
}

/// Finds out which VM this host is, when a caller needs to know.
pub struct OwnVmFinder {
    cloud: Arc<dyn Cloud>,
    configured: Mutex<Option<VmId>>,
    smbios: PathBuf,
    interfaces: PathBuf,
    /// One caller finds out; the others wait and share the result.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Option<(Instant, OwnVm)>>,
}

impl OwnVmFinder {
    /// Makes a finder. `configured`: `[host] vm_id`. Nothing is read yet.
    pub fn new(cloud: Arc<dyn Cloud>, configured: &str) -> Self {
        Self {
            cloud,
            configured: Mutex::new(configured.parse().ok()),
            smbios: settings::credential(SMBIOS),
            interfaces: INTERFACES.into(),
            turn: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Returns this host's own VM. A known one is confirmed again after ten minutes, or after [`Self::forget`].
    pub async fn find(&self) -> OwnVm {
        if let Some(known) = self.recent() {
            return known;
        }
        let _turn = self.turn.lock().await;
        if let Some(known) = self.recent() {
            return known;
        }
        let before = self.last_found();
        let found = match (self.find_out().await, &before) {
            (Ok(found), _) => found,
            // That nobody can be asked at the moment says nothing against what was confirmed before.
            (Err(_), Some(known @ OwnVm::Known { .. })) => known.clone(),
            (Err(why), _) => OwnVm::Unknown { why },
        };
        match &found {
            _ if before.as_ref() == Some(&found) => {}
            OwnVm::Known { id, from } => tracing::info!("this host is the VM {id} ({from})"),
            OwnVm::Unknown { why } => tracing::warn!("which VM this host is is unknown: {why}"),
        }
        *self.last() = Some((Instant::now(), found.clone()));
        found
    }

    /// Finds out again at the next question. To be called when CloudStack no longer knows the VM.
    pub fn forget(&self) {
        *self.last() = None;
    }

    /// Takes another `[host] vm_id`, and finds out again at the next question.
    pub fn reconfigure(&self, configured: &str) {
        *self.configured.lock().unwrap_or_else(PoisonError::into_inner) = configured.parse().ok();
        self.forget();
    }

    /// Returns what was found last; `None`: no caller has asked yet.
    pub fn last_found(&self) -> Option<OwnVm> {
        self.last().as_ref().map(|(_, found)| found.clone())
    }

    fn recent(&self) -> Option<OwnVm> {
        match &*self.last() {
            Some((at, known @ OwnVm::Known { .. })) if at.elapsed() < KNOWN_FOR => Some(known.clone()),
            Some((at, unknown @ OwnVm::Unknown { .. })) if at.elapsed() < UNKNOWN_FOR => Some(unknown.clone()),
            _ => None,
        }
    }

    /// An error says why it could not be found out.
    async fn find_out(&self) -> Result<OwnVm, String> {
        let (smbios, interfaces) = (self.smbios.clone(), self.interfaces.clone());
        let read = blocking(move || (text(&smbios), addresses(&interfaces))).await;
        let (smbios, ours) = match read {
            Ok((smbios, Ok(ours))) => (smbios, ours),
            Ok((_, Err(why))) => return Err(why),
            Err(error) => return Err(error.to_string()),
        };
        let configured = *self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, from) = match candidate(configured, smbios.as_deref().map_err(Clone::clone)) {
            Ok(candidate) => candidate,
            Err(why) => return Ok(OwnVm::Unknown { why }),
        };
        match self.cloud.vm(&id).await {
            Ok(vm) => Ok(confirmed(id, from, vm.as_ref(), &ours)),
            Err(error) => Err(format!("{from} says {id}, and that cannot be confirmed: {error}")),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, OwnVm)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(path: &Path) -> Result<String, String> {
    let read = small_file_of_root(path, 4096);
    let bytes = read.map_err(|error| format!("the UUID in SMBIOS cannot be read ({}: {error})", path.display()))?;
    String::from_utf8(bytes).map_err(|_| "SMBIOS shows a text that is no UUID".to_owned())
}

/// Returns the addresses of the interfaces that have a device, which leaves out loopback, bridges and tunnels.
fn addresses(interfaces: &Path) -> Result<Vec<Mac>, String> {
    let failed =
        |error: std::io::Error| format!("the network interfaces cannot be read ({}: {error})", interfaces.display());
    let mut macs = Vec::new();
    for entry in std::fs::read_dir(interfaces).map_err(failed)? {
        let interface = entry.map_err(failed)?.path();
        // An interface that has just gone has no address.
        let address = std::fs::read_to_string(interface.join("address")).unwrap_or_default();
        let mac = address.trim().parse().ok().filter(Mac::is_of_one);
        macs.extend(mac.filter(|_| interface.join("device").exists()));
    }
    macs.sort_unstable();
    Ok(macs)
}

#[cfg(test)]
mod tests;

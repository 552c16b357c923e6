//! CloudStack in the lab: the stand-in, whose disks are the lab's loop devices.

use crate::disk::{Disk, DiskOptions, Shelf};
use crate::{Volume, people};
use anyhow::{Context, Result};
use stand_in::{Cloud, Plug, Setup, Unit, Vm};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Disks up to this size are filled from end to end.
const FILLED: u64 = 16 << 20;

/// A stand-in whose host is this lab.
#[derive(Debug)]
pub struct LabCloud {
    stand_in: Cloud,
    disks: Arc<Disks>,
    vm: String,
}

impl LabCloud {
    /// The files with the key and with the secret.
    pub const KEY_FILES: [&str; 2] = [KEY_FILE, SECRET_FILE];

    pub(crate) fn start(shelf: &Arc<Shelf>, setup: Setup) -> Result<LabCloud> {
        let disks =
            Arc::new(Disks { shelf: Arc::clone(shelf), by_volume: Mutex::default(), before_unplug: Mutex::default() });
        let stand_in = Cloud::start(setup, Arc::clone(&disks) as Arc<dyn Plug>)?;
        let vm = Volume::random().id;
        stand_in.add_vm(Vm { here: true, ..Vm::running(&vm, "appliance") });
        Ok(LabCloud { stand_in, disks, vm })
    }

    /// The VM that this host is.
    pub fn vm_here(&self) -> &str {
        &self.vm
    }

    /// Puts a volume there that is ready and attached to nothing.
    pub fn add(&self, volume: &Volume, size: u64) {
        self.stand_in.add_volume(stand_in::Volume::ready(&volume.id, &format!("volume {}", volume.id), size));
    }

    /// What attachd is told of it: the section `[cloudstack]`, with the files of the keys, and who this host is.
    pub fn config(&self) -> Result<String> {
        let key = self.stand_in.key();
        self.write_keys(&key.key, &key.secret)?;
        let (url, vm) = (self.stand_in.url(), &self.vm);
        let [key, secret] = [KEY_FILE, SECRET_FILE];
        Ok(format!(
            "[cloudstack]\nurl = \"{url}\"\nkey_file = \"{key}\"\nsecret_file = \"{secret}\"\n[host]\nvm_id = \"{vm}\"\n"
        ))
    }

    /// Writes the files of the keys anew.
    pub fn write_keys(&self, key: &str, secret: &str) -> Result<()> {
        for (path, text) in [(KEY_FILE, key), (SECRET_FILE, secret)] {
            let path = Path::new(path);
            let fresh = path.with_extension("new");
            fs::write(&fresh, format!("{text}\n"))?;
            chown(&fresh, Some(people::ATTACHD.id), Some(people::ATTACHD.id))?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
            fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// The file of a volume's disk, once it was plugged.
    pub fn file(&self, volume: &Volume) -> Result<PathBuf> {
        let disks = self.disks.all();
        disks.get(&volume.id).map(|disk| disk.file().to_owned()).context("it was never plugged")
    }

    /// What happens just before a disk is taken away, with the volume's id. A loop device does not go under a client as a
    /// guest's disk does: the client has to go first.
    pub fn before_unplug(&self, act: impl FnMut(&str) + Send + 'static) {
        *self.disks.before_unplug.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(act));
    }

    /// When a volume's disk was last plugged (`CLOCK_MONOTONIC`): just before the kernel was told of it.
    pub fn plugged_ns(&self, volume: &Volume) -> Option<u64> {
        self.disks.all().get(&volume.id).and_then(Disk::bound_ns)
    }

    /// The node of a volume's disk, if it is plugged.
    pub fn node(&self, volume: &Volume) -> Option<PathBuf> {
        self.disks.all().get(&volume.id).filter(|disk| disk.is_attached()).map(Disk::node)
    }
}

const KEY_FILE: &str = "/etc/attachd/cloudstack-key";
const SECRET_FILE: &str = "/etc/attachd/cloudstack-secret";

impl Deref for LabCloud {
    type Target = Cloud;

    fn deref(&self) -> &Cloud {
        &self.stand_in
    }
}

/// What a disk is called that shows no serial.
const NO_SERIAL: &str = "no-serial";

type BeforeUnplug = Box<dyn FnMut(&str) + Send>;

/// The disks of the volumes that were ever plugged: their bytes stay when they are unplugged.
struct Disks {
    shelf: Arc<Shelf>,
    by_volume: Mutex<BTreeMap<String, Disk>>,
    before_unplug: Mutex<Option<BeforeUnplug>>,
}

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.all().fmt(f)
    }
}

impl Disks {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Disk>> {
        self.by_volume.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plug for Disks {
    fn plug(&self, unit: &Unit) -> Result<()> {
        let mut disks = self.all();
        let serial = unit.serial.as_deref().unwrap_or(NO_SERIAL);
        // A disk that has got its serial is another file here: that is where it is read from.
        if disks.get(&unit.volume).is_none_or(|disk| disk.serial() != serial) {
            disks.insert(unit.volume.clone(), made(&self.shelf, unit)?);
        }
        disks.get_mut(&unit.volume).context("it is there")?.attach()
    }

    fn unplug(&self, volume: &str) -> Result<()> {
        if let Some(act) = &mut *self.before_unplug.lock().unwrap_or_else(PoisonError::into_inner) {
            act(volume);
        }
        self.all().get_mut(volume).context("it was never plugged")?.detach()
    }
}

/// A large one has its serial at the beginning, at each eighth and at the end, and holes between.
fn made(shelf: &Arc<Shelf>, unit: &Unit) -> Result<Disk> {
    let serial = unit.serial.as_deref().unwrap_or(NO_SERIAL);
    let options = DiskOptions { blank: unit.size > FILLED, ..DiskOptions::default() };
    let disk = Disk::new(shelf, serial, unit.size, options)?;
    if options.blank {
        let mut file = fs::File::options().write(true).open(disk.file())?;
        let mark: Vec<u8> = format!("{} {serial}\n", unit.volume).into_bytes().into_iter().cycle().take(4096).collect();
        for place in (0..8).map(|eighth| unit.size / 8 * eighth).chain([unit.size - 4096]) {
            file.seek(SeekFrom::Start(place))?;
            file.write_all(&mark)?;
        }
    }
    Ok(disk)
}

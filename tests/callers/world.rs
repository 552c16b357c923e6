//! The host on which the callers are replayed, and how its volumes are looked at from outside of attachd.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::{Api, Attachd, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::{Fault, JobFault, Refusal, Vm};

use crate::caller::PORT;
use crate::common::cloud::lab_in_cloud;
use crate::common::*;
use crate::row::{Before, Broken, Row, Then};

/// Another VM, switched off.
pub(crate) const OTHER: &str = "00000000-0000-4000-8000-0000000000bb";

/// CloudStack's calls that change something.
const CHANGES: [&str; 8] = [
    "createVolume",
    "attachVolume",
    "detachVolume",
    "deleteVolume",
    "startVirtualMachine",
    "stopVirtualMachine",
    "destroyVirtualMachine",
    "expungeVirtualMachine",
];

/// Fields are dropped in order: the daemon first, which asks the cloud when it is started once more, the world last.
pub(crate) struct World {
    pub(crate) attachd: Option<Attachd>,
    pub(crate) cloud: LabCloud,
    pub(crate) lab: Lab,
    /// By their names in the row.
    pub(crate) volumes: BTreeMap<String, Volume>,
    /// Exports that were still there when CloudStack took the disk.
    pulled: Arc<Mutex<Vec<String>>>,
    /// How many calls CloudStack has had before the first of the caller.
    before: usize,
}

impl World {
    /// The world before the first call of this row.
    pub(crate) fn of(row: &Row) -> Self {
        let mut world = Self::new();
        for given in &row.given {
            let volume = world.given(given.is);
            world.volumes.insert(given.volume.clone(), volume);
        }
        for Broken { command, says } in &row.fault {
            let refusal = Refusal::runtime(says);
            if command == "deleteVolume" {
                // The one that is no job.
                world.cloud.next(command, Fault::Refused(refusal));
            } else {
                world.cloud.next_job(command, JobFault::Fails(refusal));
            }
        }
        world.before = world.cloud.calls().len();
        world
    }

    /// A host with no volumes.
    pub(crate) fn new() -> Self {
        let mut world = Self::stopped();
        world.attachd = Some(start(&world.lab));
        world
    }

    /// The same, with attachd not started yet.
    pub(crate) fn stopped() -> Self {
        let (lab, cloud) = lab_in_cloud();
        let config = format!("{CONFIG}{}[api]\ntcp = \"{PORT}\"\n", cloud.config().unwrap());
        lab.attachd_config(&config).unwrap();
        cloud.add_vm(Vm { state: "Stopped".into(), ..Vm::running(OTHER, "other") });
        let pulled: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&pulled);
        cloud.before_unplug(move |volume| {
            if Path::new("/run/attachd/exports").join(format!("migration-vol-{volume}")).is_symlink() {
                seen.lock().unwrap().push(volume.to_owned());
            }
        });
        Self { attachd: None, cloud, lab, volumes: BTreeMap::new(), pulled, before: 0 }
    }

    pub(crate) fn attachd(&self) -> &Attachd {
        self.attachd.as_ref().unwrap()
    }

    pub(crate) fn api(&self) -> Api {
        self.attachd().api()
    }

    fn given(&self, is: Before) -> Volume {
        let volume = self.lab.volume();
        self.cloud.add(&volume, MIB);
        match is {
            Before::Detached => {}
            Before::Served => self.attach(&volume, json!({})),
            Before::AtTheOtherVm => self.attach(&volume, json!({ "vm_id": OTHER })),
            Before::Deleted => {
                let body = json!({ "type": "delete", "volume_id": volume.id });
                self.end(&self.api().post("/api/v1/operations", &body).unwrap().expect(201).unwrap());
            }
        }
        volume
    }

    fn attach(&self, volume: &Volume, mut body: Value) {
        body["type"] = "attach".into();
        body["volume_id"] = volume.id.clone().into();
        self.end(&self.api().post("/api/v1/operations", &body).unwrap().expect(201).unwrap());
    }

    /// Waits until an operation has completed.
    pub(crate) fn end(&self, begun: &Value) {
        let id = begun["id"].as_str().unwrap();
        let path = format!("/api/v1/operations/{id}?wait=done&timeout_seconds=60");
        let ended = self.api().request("GET", &path, None, Duration::from_secs(80)).unwrap();
        assert_eq!(ended.json["status"], "completed", "{}{}", ended.text, self.told());
    }

    /// Checks that a volume is as it has to be, by the disk, the NBD server and CloudStack.
    pub(crate) fn is(&self, name: &str, id: &str, then: Then) {
        let volume = Volume::of(id);
        let known = self.cloud.volume(id).unwrap_or_else(|| panic!("{name}: CloudStack has never heard of {id}"));
        let vm = known.vm.as_deref();
        let wanted_vm = match then {
            Then::Served => Some(self.cloud.vm_here()),
            Then::Detached | Then::Deleted => None,
            Then::AtTheOtherVm | Then::RootOfTheOtherVm => Some(OTHER),
        };
        assert_eq!((vm, known.removed), (wanted_vm, matches!(then, Then::Deleted)), "{name}{}", self.told());
        if let Then::RootOfTheOtherVm = then {
            assert_eq!(known.device_id, Some(0), "{name} is the root disk");
        }
        let exports = self.lab.nbd_list().unwrap();
        if let Then::Served = then {
            wait(&self.api(), &volume, "ready");
            self.lab.nbdcopy_equals(&volume.export(), &self.cloud.file(&volume).unwrap()).unwrap();
        } else {
            assert!(!exports.contains(&volume.export()), "{name} has no export: {exports:?}");
            assert!(!Path::new("/var/lib/attachd/claims").join(&volume.serial).exists(), "{name} has no claim");
        }
    }

    /// Checks that no disk was taken while its export was there, and what CloudStack was asked to change.
    pub(crate) fn was_asked(&self, row: &Row, names: &BTreeMap<String, String>) {
        assert_eq!(
            *self.pulled.lock().unwrap(),
            Vec::<String>::new(),
            "the export goes before the disk{}",
            self.told()
        );
        assert_eq!(self.cloud.faults_left(), Vec::<String>::new());
        let calls = self.cloud.calls();
        let of_row = self.volumes.iter().map(|(name, volume)| (name, &volume.id)).chain(names);
        let name_of = |id: &str| of_row.clone().find(|(_, of)| *of == id).map_or(id, |(name, _)| name).to_owned();
        let mut asked: Vec<String> = Vec::new();
        for call in calls.iter().skip(self.before).filter(|call| CHANGES.contains(&call.command.as_str())) {
            let said = |parameter| Some(call.get(parameter)).filter(|value| !value.is_empty());
            let volume = said("id").map(|id| format!(" {}", name_of(id)));
            let vm = said("virtualmachineid").map(|id| format!(" to {}", name_of(id)));
            let place = said("deviceid").map(|place| format!(" as device {place}"));
            let parts = [Some(call.command.clone()), volume, vm, place];
            asked.push(parts.into_iter().flatten().collect());
        }
        let mut wanted = row.cloud.clone();
        if row.at_once {
            // Stable, so the calls of each volume keep their order.
            let by_volume = |line: &String| line.split(' ').nth(1).map(str::to_owned);
            asked.sort_by_key(by_volume);
            wanted.sort_by_key(by_volume);
        }
        assert_eq!(asked, wanted, "what CloudStack was asked to change{}", self.told());
    }

    /// What either side tells of it, when something is not as it has to be.
    pub(crate) fn told(&self) -> String {
        format!("\n{}\n{}", self.cloud.told(), self.attachd().stderr_text())
    }
}

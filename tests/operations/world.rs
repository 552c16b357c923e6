//! The world of these tests, and the words they use.

use std::time::Duration;

use lab::{Api, Attachd, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::{Setup, Vm};

use crate::common::*;

/// Another VM.
pub(crate) const OTHER: &str = "00000000-0000-4000-8000-0000000000bb";

/// Fields are dropped in order: the daemon first, which asks the cloud when it is started once more, the world last.
pub(crate) struct World {
    pub(crate) attachd: Attachd,
    pub(crate) api: Api,
    pub(crate) cloud: LabCloud,
    pub(crate) lab: Lab,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    /// With another CloudStack.
    pub(crate) fn with(setup: Setup) -> Self {
        let lab = with_nbdkit();
        let cloud = lab.cloud(setup).unwrap();
        cloud.add_vm(Vm::running(OTHER, "other"));
        lab.attachd_config(&format!("{CONFIG}{}", cloud.config().unwrap())).unwrap();
        let attachd = start(&lab);
        let api = attachd.api();
        Self { attachd, api, cloud, lab }
    }

    /// A volume that CloudStack has and nobody has attached.
    pub(crate) fn volume(&self) -> Volume {
        let volume = self.lab.volume();
        self.cloud.add(&volume, MIB);
        volume
    }

    /// A volume that attachd has attached, and serves.
    pub(crate) fn attached(&self) -> Volume {
        let volume = self.volume();
        self.completed("attach", &volume, json!({}));
        // It is served before CloudStack has said how the job ended: attachd asks for that afterwards.
        let is_asked = |cloud: &stand_in::Cloud| {
            let Some(job) = cloud.jobs().pop() else { return false };
            let asked = cloud.calls_of("queryAsyncJobResult");
            job.completed.is_some_and(|end| asked.iter().any(|call| call.answered && call.at > end))
        };
        assert!(self.cloud.wait(SOON, is_asked), "{}", self.told());
        volume
    }

    /// Begins an operation; it is on record.
    #[allow(clippy::needless_pass_by_value, reason = "it reads as a sentence")]
    pub(crate) fn begin(&self, kind: &str, volume: &Volume, more: Value) -> Value {
        let reply = self.api.post("/api/v1/operations", &body(kind, volume, &more)).unwrap();
        assert!(matches!(reply.status, 200 | 201), "{kind}: {} {}", reply.status, reply.text);
        reply.json
    }

    /// The operation when it has ended.
    pub(crate) fn end(&self, operation: &Value) -> Value {
        let id = operation["id"].as_str().unwrap();
        let path = format!("/api/v1/operations/{id}?wait=done&timeout_seconds=60");
        let reply = self.api.request("GET", &path, None, Duration::from_secs(80)).unwrap();
        assert!(reply.status == 200, "it has not ended: {}{}", reply.text, self.told());
        reply.json
    }

    /// An operation that is done.
    pub(crate) fn completed(&self, kind: &str, volume: &Volume, more: Value) -> Value {
        let ended = self.end(&self.begin(kind, volume, more));
        assert_eq!(ended["status"], "completed", "{kind}: {ended:#}{}", self.told());
        ended
    }

    /// An operation that fails with this code: what its caller is told.
    pub(crate) fn failed(&self, kind: &str, volume: &Volume, more: Value, code: &str) -> String {
        self.is_failed(&self.end(&self.begin(kind, volume, more)), code)
    }

    pub(crate) fn is_failed(&self, ended: &Value, code: &str) -> String {
        let error = ended["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!((&ended["status"], &ended["code"]), (&json!("failed"), &json!(code)), "{ended:#}{}", self.told());
        println!("{code}: {error}");
        error
    }

    /// What either side tells of it, when something is not as it has to be.
    fn told(&self) -> String {
        format!("{}\n{}", self.cloud.told(), self.attachd.stderr_text())
    }

    /// How many calls of a command CloudStack has had.
    pub(crate) fn calls(&self, command: &str) -> usize {
        self.cloud.calls_of(command).len()
    }

    /// It is served, with the bytes of its disk.
    pub(crate) fn is_served(&self, volume: &Volume) {
        wait(&self.api, volume, "ready");
        self.lab.nbdcopy_equals(&volume.export(), &self.cloud.file(volume).unwrap()).unwrap();
    }

    /// Nothing of it is left here.
    pub(crate) fn is_unknown_here(&self, volume: &Volume) {
        self.api.get(&format!("/api/v1/volumes/{}", volume.id)).unwrap().expect(404).unwrap();
        assert!(!self.lab.nbd_list().unwrap().contains(&volume.export()));
        assert!(!std::path::Path::new("/var/lib/attachd/claims").join(&volume.serial).exists());
    }

    /// The VM that CloudStack shows for it.
    pub(crate) fn vm_of(&self, volume: &Volume) -> Option<String> {
        self.cloud.volume(&volume.id).unwrap().vm
    }
}

fn body(kind: &str, volume: &Volume, more: &Value) -> Value {
    let mut body = json!({ "type": kind, "volume_id": volume.id });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

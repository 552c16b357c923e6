//! Operations with a cloud, real disks and an NBD server: killed at every step, and with every answer of the cloud cut off. After
//! the restart each ends with the truth, and cloud, store, exports and devices agree.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use common::*;
use lab::{Attachd, AttachdOptions, Lab, LabCloud, Reply, Volume};
use serde_json::{Value, json};
use stand_in::{Fault, Setup, Vm};

const OPERATIONS: &str = "/api/v1/operations";
const EFFECTS: &str = "/run/attachd/effects";
const CLAIMS: &str = "/var/lib/attachd/claims";
const TEST_VM: &str = "00000000-0000-4000-8000-0000000000bb";
const GIB: u64 = 1 << 30;

/// What is asked for, one after the other: each leads to where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Create,
    Attach,
    Detach,
    AttachThere,
    Cleanup,
    Delete,
}

const STORY: [Asked; 6] =
    [Asked::Create, Asked::Attach, Asked::Detach, Asked::AttachThere, Asked::Cleanup, Asked::Delete];

struct Scene {
    attachd: Attachd,
    cloud: LabCloud,
    deaths: usize,
    volume: Option<String>,
    lab: Lab,
}

impl Scene {
    /// `kill_at`: a point at which the daemon dies. `cut`: a call of the cloud whose answer is cut off.
    fn begin(kill_at: Option<&str>, cut: Option<(u64, Fault)>) -> Self {
        let mut lab = Lab::new();
        lab.not_restarted("it is started again wherever it was killed, and its end is compared");
        let cloud = lab.cloud(Setup { job_takes: Duration::from_millis(50), ..Setup::default() }).unwrap();
        cloud.add_vm(Vm { here: false, ..Vm::running(TEST_VM, "test") });
        if let Some((number, fault)) = cut {
            cloud.call_number(number, fault);
        }
        lab.attachd_config(&format!("{CONFIG}{}", cloud.config().unwrap())).unwrap();
        lab.nbdkit_start().unwrap();
        let mut options = AttachdOptions::default();
        options.env.push(("ATTACHD_EFFECT_LOG".into(), EFFECTS.into()));
        options.env.extend(kill_at.map(|point| ("ATTACHD_KILL_AT".into(), point.into())));
        let (attachd, deaths) = match lab.attachd_start(bin(), &options) {
            Err(error) if kill_at.is_some() && error.to_string().contains("SIGKILL") => (start(&lab), 1),
            started => (started.unwrap(), 0),
        };
        Self { attachd, cloud, deaths, volume: None, lab }
    }

    /// Asks until there is an answer, as a caller does whose answer was lost; the key is the same each time.
    fn ask(&mut self, asked: Asked) -> Value {
        let body = self.body(asked);
        for _ in 0..5 {
            match self.answer(asked, &body) {
                Ok(ended) => return ended,
                Err(error) => {
                    self.attachd
                        .wait_exit(SOON)
                        .unwrap_or_else(|_| panic!("{asked:?}: {error:#}\n{}", self.attachd.stderr_text()));
                    self.deaths += 1;
                    self.attachd = start(&self.lab);
                }
            }
        }
        panic!("{asked:?}: it dies again and again\n{}", self.attachd.stderr_text());
    }

    /// The operation when it has ended. An error: there is no answer.
    fn answer(&self, asked: Asked, body: &Value) -> Result<Value> {
        let api = self.attachd.api();
        let told = |reply: &Reply| format!("{asked:?}: {}\n{}", reply.text, self.attachd.stderr_text());
        let begun = api.post_keyed(OPERATIONS, body, &format!("{asked:?}"))?;
        assert!(matches!(begun.status, 200 | 201), "{}", told(&begun));
        let path = format!("{OPERATIONS}/{}?wait=done", begun.json["id"].as_str().unwrap());
        let ended = api.request("GET", &path, None, Duration::from_secs(80))?;
        assert_eq!(ended.status, 200, "{}", told(&ended));
        let mut ended = ended.json;
        // It is recorded once more when a job that goes on after the answer has ended.
        ended.as_object_mut().unwrap().remove("updated_at");
        Ok(ended)
    }

    fn body(&self, asked: Asked) -> Value {
        let mut body = match asked {
            Asked::Create => json!({
                "type": "create", "name": "disk", "size_bytes": GIB - 5,
                "disk_offering_id": self.cloud.offering(), "zone_id": self.cloud.zone(),
            }),
            Asked::Attach => json!({ "type": "attach" }),
            Asked::AttachThere => json!({ "type": "attach", "vm_id": TEST_VM }),
            Asked::Detach => json!({ "type": "detach" }),
            Asked::Delete => json!({ "type": "delete" }),
            Asked::Cleanup => json!({ "type": "cleanup", "vm_id": TEST_VM, "delete_vm": true, "force": true }),
        };
        if let Some(volume) = self.volume.as_ref().filter(|_| asked != Asked::Create) {
            body["volume_id"] = json!(volume);
        }
        body["deadline_seconds"] = json!(60);
        body
    }

    /// Asked for, and then everybody agrees on how it is. Asked once more, it is the same answer.
    fn through(&mut self, asked: Asked) {
        let ended = self.ask(asked);
        assert_eq!(
            ended["status"],
            "completed",
            "{asked:?}: {ended:#}\n{}\n{}",
            self.cloud.told(),
            self.attachd.stderr_text()
        );
        self.volume = ended["volume_id"].as_str().map(str::to_owned);
        self.cloud.wait_quiet(SOON).unwrap();
        self.agree(asked);
        assert_eq!(self.ask(asked), ended, "{asked:?}: asked once more");
        self.agree(asked);
    }

    fn agree(&self, asked: Asked) {
        let id = self.volume.clone().unwrap();
        let (cloud, api) = (self.cloud.volume(&id).filter(|volume| !volume.removed), self.attachd.api());
        let volume = Volume::of(&id);
        let what = format!("{asked:?}: {cloud:#?}\n{}\n{}", self.cloud.told(), self.attachd.stderr_text());
        let vm = cloud.as_ref().and_then(|cloud| cloud.vm.clone());
        let here = matches!(asked, Asked::Attach | Asked::Cleanup);
        let expected = match asked {
            Asked::Attach | Asked::Cleanup => Some(self.cloud.vm_here().to_owned()),
            Asked::AttachThere => Some(TEST_VM.to_owned()),
            Asked::Create | Asked::Detach | Asked::Delete => None,
        };
        assert_eq!(vm, expected, "{what}");
        assert_eq!(cloud.is_some(), asked != Asked::Delete, "{what}");
        assert_eq!(self.cloud.volumes().len(), usize::from(asked != Asked::Delete), "no orphan: {what}");
        // The store, what is claimed, what is served, and the disk.
        assert_eq!(api.get(&format!("/api/v1/intents/{id}")).unwrap().status, if here { 200 } else { 404 }, "{what}");
        assert_eq!(Path::new(CLAIMS).join(&volume.serial).exists(), here, "{what}");
        assert_eq!(self.cloud.node(&volume).is_some(), here, "{what}");
        if here {
            assert_eq!(show(&api, &volume)["state"], "ready", "{what}");
        }
        assert_eq!(self.lab.nbd_client(&volume.export()).is_ok(), here, "{what}");
        let vm_there = self.cloud.vm(TEST_VM).is_some_and(|vm| !vm.removed);
        assert_eq!(vm_there, asked < Asked::Cleanup, "{what}");
    }

    fn play(mut self) -> Self {
        for asked in STORY {
            self.through(asked);
        }
        self
    }
}

fn passed() -> Vec<String> {
    fs::read_to_string(EFFECTS).unwrap().lines().map(str::to_owned).collect()
}

/// The points that belong to operations: each name once before and once after, at its first and at its last passage.
fn points(all: &[String]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for point in all {
        let (name, number) = point.rsplit_once(':').unwrap();
        // How often CloudStack is asked how something is depends on how long that takes.
        let asks =
            ["cloud.job", "cloud.volume", "cloud.volume-named", "cloud.vm"].iter().any(|read| name.ends_with(read));
        let counts = !asks || number == "1";
        if counts && (name.contains(":cloud.") || name.contains(":record.") || name.contains("placeholder")) {
            by_name.entry(name).or_default().push(number);
        }
    }
    let ends = by_name.iter().flat_map(|(name, numbers)| {
        let ends: BTreeSet<_> = [numbers.first(), numbers.last()].into_iter().flatten().collect();
        ends.into_iter().map(move |number| format!("{name}:{number}"))
    });
    ends.collect()
}

#[test]
fn undisturbed_each_operation_is_done_with_no_needless_call() {
    let scene = Scene::begin(None, None).play();
    let changes = scene.cloud.calls().into_iter().map(|call| call.command);
    let changes: Vec<String> =
        changes.filter(|command| !command.starts_with("list") && !command.starts_with("query")).collect();
    let expected = [
        "createVolume",
        "attachVolume",
        "detachVolume",
        "attachVolume",
        "stopVirtualMachine",
        "detachVolume",
        "attachVolume",
        "destroyVirtualMachine",
        "detachVolume",
        "deleteVolume",
    ];
    assert_eq!(changes, expected, "{}", scene.cloud.told());
}

/// One lab for each, some at a time, each on a thread of its own.
fn for_each<T: Sync>(all: &[T], play: impl Fn(&T) + Sync) {
    for some in all.chunks(4) {
        std::thread::scope(|scope| {
            let play = &play;
            let threads: Vec<_> = some.iter().map(|one| scope.spawn(move || play(one))).collect();
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}

/// What an undisturbed run gives.
fn undisturbed<T: Send>(of: impl FnOnce(Scene) -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| of(Scene::begin(None, None).play())).join().unwrap())
}

#[test]
fn killed_before_and_after_every_effect_each_operation_ends_with_the_truth() {
    let points = undisturbed(|_| points(&passed()));
    for name in ["create", "attach", "detach", "delete", "stop-vm", "destroy-vm"] {
        for side in ["before", "after"] {
            assert!(points.contains(&format!("{side}:cloud.{name}:1")), "{points:#?}");
        }
    }
    for_each(&points, |point| {
        let scene = Scene::begin(Some(point), None).play();
        assert_eq!(scene.deaths, 1, "{point} was not passed");
    });
}

#[test]
fn with_the_clouds_answer_cut_off_at_any_call_each_operation_ends_with_the_truth() {
    let calls = undisturbed(|scene| scene.cloud.calls().len());
    assert!(calls > 20, "{calls}");
    let cuts = (1..=u64::try_from(calls).unwrap()).flat_map(|number| [(number, false), (number, true)]);
    for_each(&cuts.collect::<Vec<_>>(), |&(number, carried_out)| {
        let fault = if carried_out { Fault::CutAfter } else { Fault::CutBefore };
        let scene = Scene::begin(None, Some((number, fault))).play();
        assert_eq!(scene.deaths, 0, "call {number}, carried out: {carried_out}");
    });
}

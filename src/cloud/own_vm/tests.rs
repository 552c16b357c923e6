//! The decisions by a table, and the finder over files and a CloudStack that knows one VM.

use super::super::{Answer, CallError, CloudVolume, JobStatus, NewVolume, Sent, Started, VmState};
use super::*;
use crate::identity::{JobId, VolumeId};
use proptest::prelude::*;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const OWN: &str = "0d2f6d8e-58a3-4d20-9f3c-3c1f2a7d0c11";
const OTHER: &str = "11111111-58a3-4d20-9f3c-3c1f2a7d0c11";

fn id(text: &str) -> VmId {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    format!("02:00:4c:00:00:{last:02x}").parse().unwrap()
}

fn vm(id: VmId, macs: &[Mac]) -> CloudVm {
    CloudVm { id, name: "vm".into(), state: VmState::Running, macs: macs.to_vec() }
}

#[test]
fn sources_that_agree_name_a_candidate_and_sources_that_differ_name_none() {
    let of = |configured: Option<&str>, smbios: Result<&str, &str>| {
        candidate(configured.map(id), smbios.map_err(str::to_owned))
    };
    assert_eq!(of(Some(OWN), Ok(OWN)), Ok((id(OWN), VmSource::Both)));
    assert_eq!(of(None, Ok(&format!("{}\n", OWN.to_uppercase()))), Ok((id(OWN), VmSource::Smbios)));
    assert_eq!(of(Some(OWN), Err("away")), Ok((id(OWN), VmSource::Configuration)));
    let differ = of(Some(OWN), Ok(OTHER)).unwrap_err();
    assert!(differ.contains(OWN) && differ.contains(OTHER), "both are named: {differ}");
    assert!(of(None, Err("away")).unwrap_err().contains("away"));
}

#[test]
fn a_constant_or_no_uuid_in_smbios_proves_nothing() {
    for (nothing, why) in [
        ("", "no UUID"),
        ("\n", "no UUID"),
        ("00000000-0000-0000-0000-000000000000", "constant"),
        ("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "constant"),
        ("Not Settable", "no UUID"),
        ("0d2f6d8e58a34d209f3c3c1f2a7d0c11", "no UUID"),
    ] {
        assert!(candidate(None, Ok(nothing)).unwrap_err().contains(why), "{nothing}");
        assert_eq!(candidate(Some(id(OWN)), Ok(nothing)), Ok((id(OWN), VmSource::Configuration)), "{nothing}");
    }
}

#[test]
fn a_candidate_is_known_only_if_cloudstack_and_the_interfaces_agree() {
    use VmSource::{Both, Configuration, Smbios};
    let judged = |from, vm: Option<&[Mac]>, ours: &[Mac]| {
        let vm = vm.map(|macs| self::vm(id(OWN), macs));
        matches!(confirmed(id(OWN), from, vm.as_ref(), ours), OwnVm::Known { .. })
    };
    for from in [Configuration, Smbios, Both] {
        assert!(judged(from, Some(&[mac(1), mac(2)]), &[mac(2), mac(3)]), "{from}: one address is shared");
        assert!(!judged(from, Some(&[mac(1)]), &[mac(3)]), "{from}: another host's");
        assert!(!judged(from, None, &[mac(1)]), "{from}: CloudStack knows no such VM");
    }
    assert!(!judged(Smbios, Some(&[]), &[mac(1)]), "nothing confirms it");
    assert!(!judged(Smbios, Some(&[mac(1)]), &[]));
    assert!(
        judged(Configuration, Some(&[]), &[mac(1)]) && judged(Both, Some(&[mac(1)]), &[]),
        "nothing speaks against it"
    );
}

proptest! {
    #[test]
    fn what_is_known_was_named_by_a_source_and_no_text_makes_it_panic(text in any::<String>(), configured in any::<bool>()) {
        let configured = configured.then(|| id(OWN));
        if let Ok((found, _)) = candidate(configured, Ok(&text)) {
            prop_assert!(configured == Some(found) || text.trim().eq_ignore_ascii_case(&found.to_string()));
        }
    }
}

/// Knows one VM, or nobody reaches it; counts the questions.
struct Double {
    vm: Mutex<Option<CloudVm>>,
    away: AtomicBool,
    asked: AtomicUsize,
}

impl Cloud for Double {
    fn vm<'a>(&'a self, wanted: &'a VmId) -> Answer<'a, Option<CloudVm>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let known = self.vm.lock().unwrap().clone().filter(|vm| vm.id == *wanted);
        let away = || CallError::Unreachable { sent: Sent::No, why: "away".into() };
        Box::pin(async move { if self.away.load(Ordering::Relaxed) { Err(away()) } else { Ok(known) } })
    }

    fn volume(&self, _: VolumeId) -> Answer<'_, Option<CloudVolume>> {
        unreachable!()
    }
    fn volume_named<'a>(&'a self, _: &'a str) -> Answer<'a, Option<CloudVolume>> {
        unreachable!()
    }
    fn volumes_of<'a>(&'a self, _: &'a VmId) -> Answer<'a, Vec<CloudVolume>> {
        unreachable!()
    }
    fn create<'a>(&'a self, _: JobId, _: &'a NewVolume) -> Answer<'a, Started> {
        unreachable!()
    }
    fn attach<'a>(&'a self, _: JobId, _: VolumeId, _: &'a VmId, _: Option<u32>) -> Answer<'a, Started> {
        unreachable!()
    }
    fn detach(&self, _: JobId, _: VolumeId) -> Answer<'_, Started> {
        unreachable!()
    }
    fn delete(&self, _: VolumeId) -> Answer<'_, ()> {
        unreachable!()
    }
    fn job(&self, _: JobId) -> Answer<'_, Option<JobStatus>> {
        unreachable!()
    }
    fn stop_vm<'a>(&'a self, _: JobId, _: &'a VmId, _: bool) -> Answer<'a, Started> {
        unreachable!()
    }
    fn destroy_vm<'a>(&'a self, _: JobId, _: &'a VmId) -> Answer<'a, Started> {
        unreachable!()
    }
}

/// A host with an interface of its own, a bridge and a loopback, and a finder that reads there.
struct Host {
    dir: tempfile::TempDir,
    cloud: Arc<Double>,
    finder: OwnVmFinder,
}

impl Host {
    fn new(configured: &str, smbios: &str, known: Option<CloudVm>, away: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cloud = Arc::new(Double { vm: Mutex::new(known), away: AtomicBool::new(away), asked: AtomicUsize::new(0) });
        for (name, address) in [("eth0", mac(1)), ("br0", mac(2))] {
            let interface = dir.path().join("net").join(name);
            fs::create_dir_all(&interface).unwrap();
            fs::write(interface.join("address"), format!("{address}\n")).unwrap();
        }
        fs::create_dir(dir.path().join("net/eth0/device")).unwrap();
        fs::create_dir(dir.path().join("net/lo")).unwrap();
        fs::write(dir.path().join("net/lo/address"), "00:00:00:00:00:00\n").unwrap();
        fs::write(dir.path().join("vm-uuid"), smbios).unwrap();
        let mut finder = OwnVmFinder::new(cloud.clone(), configured);
        (finder.smbios, finder.interfaces) = (dir.path().join("vm-uuid"), dir.path().join("net"));
        Self { dir, cloud, finder }
    }

    fn asked(&self) -> usize {
        self.cloud.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn the_own_vm_is_found_once_by_whoever_asks_first_and_again_when_it_is_gone() {
    let host = Host::new("", OWN, Some(vm(id(OWN), &[mac(1)])), false);
    assert_eq!((host.finder.last_found(), host.asked()), (None, 0), "nobody has asked yet");
    let all = futures_util::future::join_all((0..50).map(|_| host.finder.find())).await;
    let known = OwnVm::Known { id: id(OWN), from: VmSource::Smbios };
    assert!(all.iter().all(|found| *found == known), "{all:?}");
    assert_eq!((host.asked(), host.finder.last_found()), (1, Some(known)));
    host.finder.forget();
    *host.cloud.vm.lock().unwrap() = None;
    assert!(matches!(host.finder.find().await, OwnVm::Unknown { .. }));
    host.finder.find().await;
    assert_eq!(host.asked(), 2, "unknown is the answer for a moment");
}

#[tokio::test]
async fn a_vm_with_the_address_of_a_bridge_is_another_one() {
    let host = Host::new("", OWN, Some(vm(id(OWN), &[mac(2)])), false);
    let OwnVm::Unknown { why } = host.finder.find().await else { panic!() };
    assert!(why.contains(&mac(2).to_string()) && why.contains(&mac(1).to_string()), "{why}");
}

#[tokio::test]
async fn a_cloudstack_that_is_away_or_a_missing_credential_confirms_nothing() {
    let host = Host::new(OWN, OWN, None, true);
    assert!(matches!(host.finder.find().await, OwnVm::Unknown { why } if why.contains("cannot be confirmed")));
    let host = Host::new("", OWN, None, false);
    fs::remove_file(host.dir.path().join("vm-uuid")).unwrap();
    assert!(matches!(host.finder.find().await, OwnVm::Unknown { why } if why.contains("vm-uuid: No such file")));
    assert_eq!(host.asked(), 0);
    host.finder.reconfigure(OWN);
    *host.cloud.vm.lock().unwrap() = Some(vm(id(OWN), &[mac(1)]));
    let known = OwnVm::Known { id: id(OWN), from: VmSource::Configuration };
    assert_eq!(host.finder.find().await, known, "the control: named by the configuration");
}

/// Time passes by moving the moment of the last answer: the finder has no clock of its own.
#[tokio::test]
async fn a_known_vm_is_confirmed_again_later_and_stays_known_while_nobody_can_be_asked() {
    let mut host = Host::new("", OWN, Some(vm(id(OWN), &[mac(1)])), false);
    let known = OwnVm::Known { id: id(OWN), from: VmSource::Smbios };
    assert_eq!(host.finder.find().await, known);
    let age = |host: &Host| host.finder.last().as_mut().unwrap().0 -= KNOWN_FOR;
    age(&host);
    assert_eq!((host.finder.find().await, host.asked()), (known.clone(), 2));
    age(&host);
    *host.cloud.vm.lock().unwrap() = None;
    assert!(matches!(host.finder.find().await, OwnVm::Unknown { .. }), "the control: CloudStack says that it is gone");

    host = Host::new("", OWN, Some(vm(id(OWN), &[mac(1)])), false);
    host.finder.find().await;
    age(&host);
    host.cloud.away.store(true, Ordering::Relaxed);
    assert_eq!((host.finder.find().await, host.asked()), (known, 2), "no answer says nothing");
}

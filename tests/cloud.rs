//! attachd's client of CloudStack against the stand-in, which checks signatures by rules of its own, and against the client `cs`
//! of Python's registry.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use attachd::cloud::{
    CallError, Client, Cloud as _, CloudSettings, JobId, JobStatus, NewVolume, RefusalKind, SecretFile, Sent, VmId,
    VmState, VolumeKind, VolumeState,
};
use attachd::identity::VolumeId;
use jiff::SignedDuration;
use serde_json::{Value, json};
use stand_in::{Age, Answer, Cloud, Fault, JobFault, Key, NoPlug, Setup, Vm, Volume};

const SOON: Duration = Duration::from_secs(20);
const HOST: &str = "00000000-0000-4000-8000-0000000000aa";
const MAC: &str = "02:00:00:00:00:01";
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/cs/bin/python");
const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cloud/tests/ask.py");

/// The client, and the stand-in it talks to.
struct Pair {
    client: Client,
    cloud: Cloud,
    keys: tempfile::TempDir,
}

impl Pair {
    fn with(setup: Setup) -> Self {
        let cloud = Cloud::start(setup, Arc::new(NoPlug)).unwrap();
        cloud.add_vm(Vm { macs: vec![MAC.into()], here: true, ..Vm::running(HOST, "appliance") });
        let keys = tempfile::tempdir().unwrap();
        let client = client(&cloud.url(), keys.path());
        let pair = Self { client, cloud, keys };
        pair.take_keys(&pair.cloud.key());
        pair
    }

    fn new() -> Self {
        Self::with(Setup::default())
    }

    fn take_keys(&self, key: &Key) {
        write_keys(self.keys.path(), &key.key, &key.secret);
    }

    /// A volume that is attached to nothing.
    fn volume(&self) -> VolumeId {
        let id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
        self.cloud.add_volume(Volume::ready(&id, "a volume", 1 << 30));
        id.parse().unwrap()
    }

    async fn attach(&self, volume: VolumeId) -> Result<JobId, CallError> {
        Ok(self.client.attach(job_id(), volume, &host(), None).await?.job)
    }

    async fn ended(&self, job: JobId) -> JobStatus {
        self.cloud.wait_quiet(SOON).unwrap();
        self.client.job(job).await.unwrap().unwrap()
    }

    fn is_attached(&self, volume: VolumeId) -> bool {
        self.cloud.volume(&volume.to_string()).unwrap().vm.is_some()
    }
}

fn client(url: &str, keys: &Path) -> Client {
    let mut settings = CloudSettings::new(url.parse().unwrap());
    settings.key_file = SecretFile::Named(keys.join("key"));
    settings.secret_file = SecretFile::Named(keys.join("secret"));
    settings.timeout = Duration::from_secs(10);
    Client::new(settings)
}

fn write_keys(folder: &Path, key: &str, secret: &str) {
    for (name, text) in [("key", key), ("secret", secret)] {
        fs::write(folder.join("new"), text).unwrap();
        fs::set_permissions(folder.join("new"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }
}

fn host() -> VmId {
    HOST.parse().unwrap()
}

fn job_id() -> JobId {
    uuid::Uuid::from_u128(fastrand::u128(..)).to_string().parse().unwrap()
}

#[tokio::test]
async fn every_call_is_let_in_by_a_server_that_checks_signatures_by_its_own_rules() {
    let pair = Pair::new();
    let (client, cloud) = (&pair.client, &pair.cloud);
    let vm = client.vm(&host()).await.unwrap().unwrap();
    assert_eq!((vm.state, vm.macs), (VmState::Running, vec![MAC.parse().unwrap()]));
    // Every character that Java encodes in its own way, and text that is not ASCII.
    let name = "a b+c*d-e_f.g/h=é€%&[]!'()~ Z";
    let new = NewVolume { name: name.into(), gib: 2, disk_offering: cloud.offering(), zone: cloud.zone() };
    let job = job_id();
    let begun = client.create(job, &new).await.unwrap();
    assert_eq!(begun.job, job);
    let id = begun.volume.unwrap();
    assert_eq!(pair.ended(job).await, JobStatus::Succeeded { volume: Some(id) });
    let found = client.volume_named(name).await.unwrap().unwrap();
    assert_eq!((found.id, found.size_bytes, found.kind), (id, 2 << 30, VolumeKind::Data));

    let job = client.attach(job_id(), id, &host(), None).await.unwrap().job;
    assert_eq!(pair.ended(job).await, JobStatus::Succeeded { volume: Some(id) });
    let attached = client.volume(id).await.unwrap().unwrap();
    assert_eq!((attached.vm, attached.device_id, attached.state), (Some(host()), Some(1), VolumeState::Ready));
    assert_eq!(client.volumes_of(&host()).await.unwrap().len(), 1);
    let job = client.detach(job_id(), id).await.unwrap().job;
    assert_eq!(pair.ended(job).await, JobStatus::Succeeded { volume: Some(id) });
    client.delete(id).await.unwrap();
    assert_eq!(client.volume(id).await.unwrap(), None);
    let job = client.stop_vm(job_id(), &host(), true).await.unwrap().job;
    assert!(matches!(pair.ended(job).await, JobStatus::Succeeded { volume: None }));
    let job = client.destroy_vm(job_id(), &host()).await.unwrap().job;
    assert!(matches!(pair.ended(job).await, JobStatus::Succeeded { volume: None }));
    assert_eq!(client.vm(&host()).await.unwrap(), None);
    let calls = cloud.calls();
    assert!(calls.iter().all(|call| call.method == "POST" && call.is_done()), "{}", cloud.told());
}

/// The body of one call, as it goes over the wire.
async fn body_of(name: &str, keys: &Path) -> Vec<(String, String)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client(&format!("http://{}/client/api", listener.local_addr().unwrap()), keys);
    let taken = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&text).contains("&signature=") {
            let n = stream.read(&mut piece).unwrap();
            text.extend(&piece[..n]);
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8(text).unwrap().rsplit_once("\r\n\r\n").unwrap().1.to_owned()
    });
    assert!(client.volume_named(name).await.is_err());
    let body = taken.join().unwrap();
    let url = reqwest::Url::parse(&format!("http://x/?{body}")).unwrap();
    url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

#[tokio::test]
async fn what_is_signed_is_what_the_pypi_client_signs_but_for_the_tilde() {
    let keys = tempfile::tempdir().unwrap();
    write_keys(keys.path(), "the-key", "the/secret+");
    let mut python = Command::new(PYTHON);
    python.args([DRIVER, "http://nowhere", "", ""]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap_or_else(|error| panic!("{PYTHON}: {error}: run `make setup-test`"));
    let mut to = python.stdin.take().unwrap();
    let mut questions = Vec::new();
    for (name, same) in [
        ("plain", true),
        ("a b+c*d-e_f.g/h=%&", true),
        ("ÄÖÜ 漢字 \u{1f4be}", true),
        ("UPPER lower", true),
        ("a;b,c:d@e?f#g$h!i'j(k)l[m]n{o}p|q\\r\"s<t>u^v`w", true),
        ("~", false),
    ] {
        let body = body_of(name, keys.path()).await;
        let signature = body.iter().find(|(name, _)| name == "signature").unwrap().1.clone();
        let signed: serde_json::Map<String, Value> = body
            .into_iter()
            .filter(|(name, _)| name != "signature")
            .map(|(name, value)| (name, value.into()))
            .collect();
        writeln!(to, "{}", json!({ "sign": signed, "secret": "the/secret+" })).unwrap();
        questions.push((name, same, signature));
    }
    drop(to);
    let told = String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap();
    let theirs: Vec<String> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(theirs.len(), questions.len());
    for ((name, same, ours), theirs) in questions.into_iter().zip(theirs) {
        assert_eq!(ours == theirs, same, "{name}: {ours} {theirs}");
    }
}

#[tokio::test]
async fn no_error_says_that_a_call_was_not_carried_out_when_it_was() {
    let pair = Pair::new();
    let mut seen = [0, 0];
    for (fault, done) in [
        (Fault::CutBefore, false),
        (Fault::ResetBefore, false),
        (Fault::Instead(Answer::page(502, "<html>no gateway</html>")), false),
        (Fault::Instead(Answer::garbage()), false),
        (Fault::CutAfter, true),
        (Fault::ResetAfter, true),
        (Fault::CutInAnswer, true),
        (Fault::InsteadAfter(Answer::page(504, "<html>it took too long</html>")), true),
        (Fault::InsteadAfter(Answer::garbage()), true),
        (Fault::InsteadAfter(Answer::huge(64 << 20)), true),
        (Fault::InsteadAfter(Answer::page(302, "")), true),
    ] {
        let volume = pair.volume();
        pair.cloud.next("attachVolume", fault.clone());
        let error = pair.attach(volume).await.unwrap_err();
        pair.cloud.wait_quiet(SOON).unwrap();
        assert!(error.may_be_done(), "{fault:?}: {error}");
        assert_eq!(pair.is_attached(volume), done, "{fault:?}: the control");
        seen[usize::from(done)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0);
    assert_eq!(pair.cloud.calls_of("attachVolume").len(), 11, "none was sent twice:{}", pair.cloud.told());

    let volume = pair.volume();
    pair.cloud.next("attachVolume", Fault::Instead(Answer::throttled(7)));
    let error = pair.attach(volume).await.unwrap_err();
    assert_eq!(error, CallError::Throttled { after: Duration::from_secs(7) });
    pair.cloud.go_away();
    let error = pair.attach(volume).await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable { sent: Sent::No, .. }), "{error}");
    assert!(!error.may_be_done() && !pair.is_attached(volume));
    pair.cloud.come_back().unwrap();
    pair.attach(volume).await.unwrap();
}

#[tokio::test]
async fn what_only_reads_is_asked_again_after_a_cut() {
    let pair = Pair::new();
    let volume = pair.volume();
    pair.cloud.next("listVolumes", Fault::CutBefore);
    pair.cloud.next("listVolumes", Fault::CutInAnswer);
    assert_eq!(pair.client.volume(volume).await.unwrap().unwrap().id, volume);
    assert_eq!(pair.cloud.calls_of("listVolumes").len(), 3);
    assert_eq!(pair.cloud.faults_left(), Vec::<String>::new());
}

#[tokio::test]
async fn who_is_not_let_in_is_told_what_it_can_be_and_rotated_keys_are_taken_up() {
    let pair = Pair::new();
    let volume = pair.volume();
    pair.client.volume(volume).await.unwrap();
    let refused = async || match pair.client.volume(volume).await {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    pair.cloud.change_keys(|keys| keys[0].valid = false);
    let expired = refused().await;
    assert_eq!(expired.kind, RefusalKind::NotLetIn);
    assert!(expired.hint.as_deref().unwrap().contains("the clocks agree"), "{expired:?}");
    // The new pair is made first, then the files are changed, then the old one goes.
    let fresh = Key::new("fresh", "pair");
    pair.cloud.change_keys(|keys| keys.push(fresh.clone()));
    pair.take_keys(&fresh);
    pair.client.volume(volume).await.unwrap();
    pair.cloud.change_keys(|keys| drop(keys.remove(0)));
    pair.client.volume(volume).await.unwrap();

    pair.cloud.change_keys(|keys| keys[0].denied = ["listVolumes".to_owned()].into());
    assert_eq!(refused().await.kind, RefusalKind::NotAllowed);
    pair.cloud.change_keys(|keys| keys[0].denied.clear());
    for (minutes, word) in [(20, "behind"), (-20, "ahead of")] {
        pair.cloud.set_skew(SignedDuration::from_mins(minutes));
        let skewed = refused().await;
        assert_eq!(skewed.kind, RefusalKind::NotLetIn);
        assert!(skewed.hint.as_deref().unwrap().contains(word), "{skewed:?}");
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_job_id_names_its_own_and_one_that_takes_it_refuses_it_twice() {
    let old = Pair::with(Setup { age: Age::Old, ..Setup::default() });
    let volume = old.volume();
    let wish = job_id();
    let given = old.client.attach(wish, volume, &host(), None).await.unwrap().job;
    assert_ne!(given, wish);
    assert!(old.client.job(given).await.unwrap().is_some() && old.client.job(wish).await.unwrap().is_none());
    old.cloud.wait_quiet(SOON).unwrap();
    assert!(old.is_attached(volume), "the control: it was done");
    old.cloud.detach(&volume.to_string()).unwrap();
    old.client.delete(volume).await.unwrap();

    let new = Pair::new();
    let (volume, wish) = (new.volume(), job_id());
    assert_eq!(new.client.attach(wish, volume, &host(), None).await.unwrap().job, wish);
    let again = new.client.attach(wish, volume, &host(), None).await.unwrap_err();
    assert!(again.to_string().contains("already exists"), "{again}");
}

#[tokio::test]
async fn what_is_wrong_with_an_attach_is_of_its_kind_in_the_jobs_result() {
    let pair = Pair::new();
    let volume = pair.volume();
    let ends = async |change: fn(&mut Vm)| {
        pair.cloud.change_vm(HOST, change);
        let job = pair.attach(volume).await.unwrap();
        let JobStatus::Failed(refusal) = pair.ended(job).await else { panic!("it has not failed") };
        pair.cloud.change_vm(HOST, |vm| *vm = Vm { here: true, ..Vm::running(HOST, "appliance") });
        refusal.kind
    };
    assert_eq!(ends(|vm| vm.max_data_disks = 0).await, RefusalKind::Limit);
    assert_eq!(ends(|vm| vm.state = "Migrating".into()).await, RefusalKind::Conflict);
    assert_eq!(ends(|vm| vm.has_snapshots = true).await, RefusalKind::Conflict);
    assert_eq!(ends(|vm| vm.has_backups = true).await, RefusalKind::Conflict);
    pair.cloud.next_job("attachVolume", JobFault::Cancelled);
    let job = pair.attach(volume).await.unwrap();
    assert_eq!(pair.ended(job).await, JobStatus::Cancelled);
    pair.cloud.next_job("attachVolume", JobFault::Forgotten);
    let job = pair.attach(volume).await.unwrap();
    pair.cloud.wait_quiet(SOON).unwrap();
    assert_eq!(pair.client.job(job).await.unwrap(), None);
    assert!(pair.is_attached(volume), "the control: it was done, and nobody remembers the job");
    pair.cloud.change_volume(&volume.to_string(), |volume| volume.delete_protection = true);
    let job = pair.client.detach(job_id(), volume).await.unwrap().job;
    pair.ended(job).await;
    let protected = pair.client.delete(volume).await.unwrap_err();
    assert!(matches!(&protected, CallError::Refused(refusal) if refusal.kind == RefusalKind::Conflict), "{protected}");
}

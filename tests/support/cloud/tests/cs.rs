//! The stand-in held against somebody else's client: `cs` of PyPI, which knows CloudStack and neither attachd nor this crate.

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stand_in::{Age, Cloud, Fault, Gate, JobFault, Key, Kind, NoPlug, Outcome, Plug, Refusal, Setup, Unit, Vm, Volume};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../target/cs/bin/python");
const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ask.py");
const HOST: &str = "00000000-0000-4000-8000-0000000000aa";
const OTHER: &str = "00000000-0000-4000-8000-0000000000bb";
const NOT_LET_IN: &str = "unable to verify user credentials and/or request signature";

/// The client, and the stand-in it talks to.
struct Pair {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    cloud: Cloud,
}

impl Pair {
    fn with(setup: Setup, plug: Arc<dyn Plug>) -> Result<Pair> {
        let cloud = Cloud::start(setup, plug)?;
        cloud.add_vm(Vm { macs: vec!["02:00:00:00:00:01".into()], here: true, ..Vm::running(HOST, "appliance") });
        cloud.add_vm(Vm::running(OTHER, "other"));
        let key = cloud.key();
        let mut command = Command::new(PYTHON);
        command.arg(DRIVER).args([cloud.url(), key.key, key.secret]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("{PYTHON}: run `make setup-test`"))?;
        let to = process.stdin.take().context("its input")?;
        let from = BufReader::new(process.stdout.take().context("its output")?);
        Ok(Pair { process, to, from, cloud })
    }

    fn new() -> Result<Pair> {
        Pair::with(Setup::default(), Arc::new(NoPlug))
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.to, "{request}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        serde_json::from_str(&line).context(line)
    }

    /// A call that succeeds.
    fn call(&mut self, command: &str, with: &Value) -> Result<Value> {
        let answer = self.ask(&json!({ "command": command, "with": with }))?;
        ensure!(answer["error"].is_null(), "{command} {with}: {answer}");
        Ok(answer["ok"].clone())
    }

    /// A call that fails: the error.
    fn fails(&mut self, command: &str, with: &Value) -> Result<Value> {
        let answer = self.ask(&json!({ "command": command, "with": with }))?;
        ensure!(answer["ok"].is_null(), "{command} {with}: {answer}");
        Ok(answer["error"].clone())
    }

    /// A job's result, or what is wrong.
    fn job(&mut self, command: &str, with: &Value) -> Result<Value> {
        let mut with = with.clone();
        with["fetch_result"] = json!(true);
        self.ask(&json!({ "command": command, "with": with }))
    }

    fn volume(&self) -> String {
        let id = uuid();
        self.cloud.add_volume(Volume::ready(&id, "a volume", 1 << 30));
        id
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn uuid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("/proc is mounted").trim().to_owned()
}

#[test]
fn it_is_let_in_and_understands_every_answer() -> Result<()> {
    let mut pair = Pair::new()?;
    let zone = pair.call("listZones", &json!({}))?["zone"][0]["id"].clone();
    let vms = pair.call("listVirtualMachines", &json!({ "id": HOST }))?;
    assert_eq!(
        (&vms["count"], &vms["virtualmachine"][0]["nic"][0]["macaddress"]),
        (&json!(1), &json!("02:00:00:00:00:01"))
    );
    let offering = pair.cloud.offering();
    // Every character that Java encodes in its own way but one, and text that is not ASCII.
    let name = "a b+c*d-e_f.g/h=é€%&[]!'()";
    let wish = json!({ "name": name, "zoneid": zone, "diskofferingid": offering, "size": 2 });
    let made = pair.job("createVolume", &wish)?["ok"]["volume"].clone();
    assert_eq!(
        (&made["name"], &made["size"], &made["state"]),
        (&json!(name), &json!(2_u64 << 30), &json!("Allocated"))
    );
    let id = made["id"].as_str().context("an id")?.to_owned();

    let attached = pair.job("attachVolume", &json!({ "id": id, "virtualmachineid": HOST }))?["ok"]["volume"].clone();
    assert_eq!((&attached["virtualmachineid"], &attached["deviceid"]), (&json!(HOST), &json!(1)));
    let listed = pair.call("listVolumes", &json!({ "virtualmachineid": HOST }))?;
    assert_eq!((&listed["count"], &listed["volume"][0]["state"]), (&json!(1), &json!("Ready")));
    let refused = pair.fails("deleteVolume", &json!({ "id": id }))?;
    assert_eq!((&refused["status"], &refused["said"]["cserrorcode"]), (&json!(431), &json!(4350)), "{refused}");

    let detached = pair.job("detachVolume", &json!({ "id": id }))?["ok"]["volume"].clone();
    assert!(detached["virtualmachineid"].is_null() && detached["deviceid"].is_null(), "{detached}");
    assert_eq!(pair.call("deleteVolume", &json!({ "id": id }))?, json!({ "success": true }));
    assert_eq!(pair.call("listVolumes", &json!({ "id": id }))?, json!({}), "gone, and its id still known");
    let unknown = pair.fails("listVolumes", &json!({ "id": uuid() }))?;
    assert_eq!(unknown["status"], 431, "{unknown}");
    let jobs = pair.call("listAsyncJobs", &json!({ "resourcetype": "Volume", "resourceid": id }))?;
    assert_eq!(jobs["count"], 3, "{jobs}");
    let told = pair.cloud.told();
    let key = pair.cloud.key();
    assert!(!told.contains(&key.key) && !told.contains("signature"), "the log has no secret: {told}");
    Ok(())
}

#[test]
fn who_is_not_let_in_is_told_the_same_whatever_the_reason_and_who_may_not_is_told_another() -> Result<()> {
    let mut pair = Pair::new()?;
    pair.call("listZones", &json!({}))?;
    let ask = |pair: &mut Pair, client: Value| pair.ask(&json!({ "command": "listZones", "client": client }));
    let wrong = ask(&mut pair, json!({ "secret": "another" }))?["error"].clone();
    assert_eq!((&wrong["status"], &wrong["said"]["errortext"]), (&json!(401), &json!(NOT_LET_IN)));
    assert_eq!(ask(&mut pair, json!({ "key": "nobody" }))?["error"], wrong);
    assert_eq!(ask(&mut pair, json!({ "secret": null }))?["error"], wrong);
    pair.cloud.change_keys(|keys| keys[0].valid = false);
    assert_eq!(pair.fails("listZones", &json!({}))?, wrong);
    pair.cloud.change_keys(|keys| keys[0].valid = true);
    // A second pair is let in beside the first, as in a rotation.
    pair.cloud.change_keys(|keys| keys.push(Key::new("second", "other")));
    assert!(ask(&mut pair, json!({ "key": "second", "secret": "other" }))?["ok"].is_object());
    pair.cloud.change_keys(|keys| keys[0].denied = ["listZones".to_owned()].into());
    let denied = pair.fails("listZones", &json!({}))?;
    assert_eq!(denied["status"], 401);
    assert_ne!(denied["said"]["errortext"], NOT_LET_IN);
    let unknown = pair.fails("makeCoffee", &json!({}))?;
    assert_eq!((&unknown["status"], &unknown["said"]["errortext"]), (&json!(401), &json!(NOT_LET_IN)));
    Ok(())
}

/// Known of `cs` 5.2.0: Java encodes the tilde, `cs` does not.
#[test]
fn a_tilde_is_signed_as_java_encodes_it_which_this_client_does_not() -> Result<()> {
    let mut pair = Pair::new()?;
    let ask = |pair: &mut Pair, name: &str, java: bool| {
        pair.ask(&json!({ "command": "listVolumes", "with": { "name": name }, "java": java }))
    };
    assert!(ask(&mut pair, "ab", false)?["ok"].is_object(), "the control");
    assert_eq!(ask(&mut pair, "a~b", false)?["error"]["status"], 401);
    assert!(ask(&mut pair, "a~b", true)?["ok"].is_object());
    Ok(())
}

#[test]
fn times_and_methods_are_enforced_where_that_is_set() -> Result<()> {
    let get = |command: &str, with: Value| json!({ "command": command, "with": with, "client": { "method": "get" } });
    let expires = |minutes: i64| {
        let moment = Timestamp::now() + SignedDuration::from_mins(minutes);
        json!({ "expires": moment.strftime("%Y-%m-%dT%H:%M:%S%z").to_string(), "signatureVersion": "3" })
    };
    let mut strict = Pair::new()?;
    let volume = strict.volume();
    let attach = json!({ "id": volume, "virtualmachineid": HOST });
    assert_eq!(strict.ask(&get("attachVolume", attach.clone()))?["error"]["status"], 405);
    assert!(strict.ask(&get("listVolumes", json!({})))?["ok"].is_object(), "a question may be a GET");
    assert!(strict.ask(&json!({ "command": "listZones", "with": expires(14) }))?["ok"].is_object());
    for minutes in [-1, 16] {
        assert_eq!(strict.fails("listZones", &expires(minutes))?["status"], 401, "{minutes} minutes ahead");
    }
    let without = json!({ "command": "listZones", "client": { "expiration": -1 } });
    assert_eq!(strict.ask(&without)?["error"]["status"], 401);
    strict.cloud.set_skew(SignedDuration::from_mins(11));
    assert_eq!(strict.fails("listZones", &json!({}))?["status"], 401, "its clock is ahead: that has expired");
    strict.cloud.set_skew(SignedDuration::from_mins(-6));
    assert_eq!(strict.fails("listZones", &json!({}))?["status"], 401, "its clock is behind: that is too far ahead");

    let mut lax = Pair::with(Setup { enforce: false, ..Setup::default() }, Arc::new(NoPlug))?;
    let volume = lax.volume();
    let attach = json!({ "id": volume, "virtualmachineid": HOST });
    assert!(lax.ask(&get("attachVolume", attach))?["ok"]["jobid"].is_string());
    assert!(lax.ask(&without)?["ok"].is_object());
    assert!(lax.call("listZones", &expires(16))?.is_object());
    assert_eq!(lax.fails("listZones", &expires(-1))?["status"], 401);
    Ok(())
}

#[test]
fn a_job_id_that_was_used_is_refused_and_a_volume_that_was_made_for_it_stays() -> Result<()> {
    let mut pair = Pair::new()?;
    let (volume, job) = (pair.volume(), uuid());
    let attach = json!({ "id": volume, "virtualmachineid": HOST, "customjobid": job });
    assert_eq!(pair.call("attachVolume", &attach)?["jobid"], job.as_str());
    let refused = pair.fails("attachVolume", &attach)?;
    assert!(refused["said"]["errortext"].to_string().contains("already exists"), "{refused}");
    assert_eq!(
        pair.fails("detachVolume", &json!({ "id": volume, "customjobid": uuid().to_uppercase() }))?["status"],
        431
    );

    let (zone, offering) = (pair.cloud.zone(), pair.cloud.offering());
    let create = json!({ "name": "one", "zoneid": zone, "diskofferingid": offering, "size": 1, "customjobid": uuid() });
    pair.call("createVolume", &create)?;
    assert_eq!(pair.fails("createVolume", &create)?["status"], 431);
    assert_eq!(pair.call("listVolumes", &json!({ "name": "one" }))?["count"], 2, "the orphan");
    Ok(())
}

#[test]
fn a_server_of_long_ago_ignores_the_callers_job_id_and_the_resource() -> Result<()> {
    let mut pair = Pair::with(Setup { age: Age::Old, ..Setup::default() }, Arc::new(NoPlug))?;
    let (one, other, job) = (pair.volume(), pair.volume(), uuid());
    for volume in [&one, &other] {
        let begun =
            pair.call("attachVolume", &json!({ "id": volume, "virtualmachineid": HOST, "customjobid": job }))?;
        assert_ne!(begun["jobid"], job.as_str());
    }
    assert_eq!(pair.fails("queryAsyncJobResult", &json!({ "jobid": job }))?["status"], 431);
    let jobs = pair.call("listAsyncJobs", &json!({ "resourcetype": "Volume", "resourceid": one }))?;
    assert_eq!(jobs["count"], 2);
    pair.cloud.wait_quiet(SOON)?;
    pair.job("detachVolume", &json!({ "id": one }))?;
    assert_eq!(pair.call("deleteVolume", &json!({ "id": one }))?, json!({ "success": "true" }));
    Ok(())
}

#[test]
fn refusals_of_attach_and_detach_come_in_the_jobs_result() -> Result<()> {
    let mut pair = Pair::new()?;
    let volume = pair.volume();
    let attach = json!({ "id": volume, "virtualmachineid": HOST });
    assert_eq!(
        pair.fails("attachVolume", &json!({ "id": volume }))?["status"],
        431,
        "a missing parameter: in the call"
    );
    let said = |answer: Value| answer["error"]["said"]["errortext"].as_str().unwrap_or_default().to_owned();
    let no = pair.job("detachVolume", &json!({ "id": volume }))?;
    assert_eq!(no["error"]["said"]["errorcode"], 431, "{no}");
    assert_eq!(said(no), "The specified volume is not attached to a VM.");
    assert!(
        said(pair.job("detachVolume", &json!({ "id": volume, "deviceid": 1 }))?).starts_with("Please provide either")
    );
    pair.cloud.change_vm(HOST, |vm| vm.max_data_disks = 0);
    assert!(said(pair.job("attachVolume", &attach)?).contains("the maximum number of data disks (0)"));
    pair.cloud.change_vm(HOST, |vm| (vm.max_data_disks, vm.has_backups) = (64, true));
    assert!(said(pair.job("attachVolume", &attach)?).contains("does not have any backups"));
    pair.cloud.change_vm(HOST, |vm| (vm.has_backups, vm.state) = (false, "Migrating".into()));
    assert!(said(pair.job("attachVolume", &attach)?).contains("either running or stopped"));
    pair.cloud.change_vm(HOST, |vm| vm.state = "Running".into());
    pair.job("attachVolume", &attach)?;
    assert!(said(pair.job("attachVolume", &attach)?).contains("not attached to any VM"));
    Ok(())
}

#[test]
fn a_root_volume_is_attached_to_a_stopped_vm_alone_and_is_a_data_volume_again_afterwards() -> Result<()> {
    let mut pair = Pair::new()?;
    let volume = pair.volume();
    let attach = json!({ "id": volume, "virtualmachineid": OTHER, "deviceid": 0 });
    let no = pair.job("attachVolume", &attach)?;
    assert!(no["error"]["said"]["errortext"].to_string().contains("only when vm is in states: Stopped"), "{no}");
    let stopped = pair.job("stopVirtualMachine", &json!({ "id": OTHER, "forced": true }))?;
    assert_eq!(stopped["ok"]["virtualmachine"]["state"], "Stopped", "{stopped}");
    assert_eq!(pair.job("attachVolume", &attach)?["ok"]["volume"]["type"], "ROOT");
    assert_eq!(pair.job("detachVolume", &json!({ "id": volume }))?["ok"]["volume"]["type"], "DATADISK");
    pair.job("attachVolume", &attach)?;
    pair.job("destroyVirtualMachine", &json!({ "id": OTHER, "expunge": true }))?;
    assert_eq!(pair.call("listVirtualMachines", &json!({ "id": OTHER }))?, json!({}));
    assert!(pair.cloud.volume(&volume).is_some_and(|volume| volume.removed && volume.kind == Kind::Root));
    Ok(())
}

#[test]
fn a_call_is_cut_before_or_after_it_was_carried_out_and_the_log_knows_which() -> Result<()> {
    let mut pair = Pair::new()?;
    for (fault, done) in [
        (Fault::CutBefore, false),
        (Fault::ResetBefore, false),
        (Fault::Instead(stand_in::Answer::page(502, "no gateway")), false),
        (Fault::CutAfter, true),
        (Fault::ResetAfter, true),
        (Fault::CutInAnswer, true),
        (Fault::InsteadAfter(stand_in::Answer::page(504, "it took too long")), true),
    ] {
        let volume = pair.volume();
        pair.cloud.next("attachVolume", fault.clone());
        let error = pair.fails("attachVolume", &json!({ "id": volume, "virtualmachineid": HOST }))?;
        assert!(error["what"].is_string(), "{error}");
        pair.cloud.wait_quiet(SOON)?;
        let call = pair.cloud.calls_of("attachVolume").pop().context("it is in the log")?;
        assert_eq!((call.is_done(), call.answered), (done, false), "{fault:?}: {call}");
        let attached = pair.cloud.volume(&volume).is_some_and(|volume| volume.vm.is_some());
        assert_eq!(attached, done, "{fault:?}");
    }
    assert_eq!(pair.cloud.faults_left(), Vec::<String>::new());
    Ok(())
}

#[test]
fn answers_of_others_limits_and_an_absence_are_as_a_client_meets_them() -> Result<()> {
    let mut pair = Pair::new()?;
    pair.cloud.next("listZones", Fault::Instead(stand_in::Answer::throttled(7)));
    assert_eq!(pair.fails("listZones", &json!({}))?["status"], 429);
    pair.cloud.next("*", Fault::Instead(stand_in::Answer::garbage()));
    assert_eq!(pair.fails("listZones", &json!({}))?["what"], "CloudStackException");
    pair.cloud.next("listZones", Fault::Instead(stand_in::Answer::huge(8 << 20)));
    assert_eq!(pair.fails("listZones", &json!({}))?["what"], "CloudStackException");
    pair.cloud.next("listZones", Fault::Refused(Refusal::runtime("out of order")));
    assert_eq!(pair.fails("listZones", &json!({}))?["said"]["errortext"], "out of order");
    let number = u64::try_from(pair.cloud.calls().len())? + 2;
    pair.cloud.call_number(number, Fault::CutBefore);
    pair.call("listZones", &json!({}))?;
    assert_eq!(pair.fails("listVolumes", &json!({}))?["what"], "ConnectionError");

    pair.cloud.go_away();
    assert_eq!(pair.fails("listZones", &json!({}))?["what"], "ConnectionError");
    pair.cloud.come_back()?;
    pair.call("listZones", &json!({}))?;
    assert!(pair.cloud.calls().iter().all(|call| call.outcome != Outcome::Pending));
    Ok(())
}

#[test]
fn jobs_are_cancelled_forgotten_or_say_what_is_not_so() -> Result<()> {
    let mut pair = Pair::new()?;
    let volume = pair.volume();
    let attach = json!({ "id": volume, "virtualmachineid": HOST });
    let (cloud_has, detach) =
        (|pair: &Pair| pair.cloud.volume(&volume).is_some_and(|volume| volume.vm.is_some()), json!({ "id": volume }));
    pair.cloud.next_job("attachVolume", JobFault::Cancelled);
    // `cs` itself would ask for ever: it reads a result that a cancelled job has not, and takes that for a failed call.
    let job = pair.call("attachVolume", &attach)?["jobid"].clone();
    pair.cloud.wait_quiet(SOON)?;
    let cancelled = pair.call("queryAsyncJobResult", &json!({ "jobid": job }))?;
    assert_eq!((&cancelled["jobstatus"], cancelled.get("jobresult")), (&json!(3), None), "{cancelled}");
    assert!(!cloud_has(&pair));
    pair.cloud.next_job("attachVolume", JobFault::Fails(Refusal::of(530, 4300, "There is another job")));
    assert_eq!(pair.job("attachVolume", &attach)?["error"]["said"]["errorcode"], 530);
    assert!(!cloud_has(&pair));
    pair.cloud.next_job("attachVolume", JobFault::FailsAfter(Refusal::runtime("the agent did not answer")));
    assert!(pair.job("attachVolume", &attach)?["error"].is_object());
    assert!(cloud_has(&pair));
    pair.cloud.next_job("detachVolume", JobFault::Forgotten);
    let job = pair.call("detachVolume", &detach)?["jobid"].clone();
    pair.cloud.wait_quiet(SOON)?;
    assert_eq!(pair.fails("queryAsyncJobResult", &json!({ "jobid": job }))?["status"], 431);
    assert!(!cloud_has(&pair));
    Ok(())
}

/// A disk that comes and goes where the test can see it.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Seen {
    fn told(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics with it").clone()
    }
}

impl Plug for Seen {
    fn plug(&self, unit: &Unit) -> Result<()> {
        let serial = unit.serial.clone().unwrap_or_default();
        self.0.lock().expect("nobody panics with it").push(format!("plug {serial} {}", unit.size));
        Ok(())
    }

    fn unplug(&self, volume: &str) -> Result<()> {
        self.0.lock().expect("nobody panics with it").push(format!("unplug {volume}"));
        Ok(())
    }
}

#[test]
fn a_disk_comes_before_the_job_has_said_so_and_goes_before_the_volume_is_free() -> Result<()> {
    let seen = Arc::new(Seen::default());
    let mut pair = Pair::with(Setup::default(), Arc::clone(&seen) as Arc<dyn Plug>)?;
    let (volume, elsewhere) = (pair.volume(), pair.volume());
    let serial: String = volume.replace('-', "").chars().take(20).collect();
    let attach = json!({ "id": volume, "virtualmachineid": HOST });
    pair.job("attachVolume", &json!({ "id": elsewhere, "virtualmachineid": OTHER }))?;
    assert_eq!(seen.told(), Vec::<String>::new(), "the disk of another VM does not come here");
    pair.job("attachVolume", &attach)?;
    assert_eq!(seen.told(), [format!("plug {serial} {}", 1 << 30)]);

    // A guest that does not let go.
    pair.cloud.next_job("detachVolume", JobFault::NotLetGo);
    let no = pair.job("detachVolume", &json!({ "id": volume }))?;
    assert!(no["error"]["said"]["errortext"].to_string().contains("waiting for [10000] milliseconds"), "{no}");
    assert!(pair.cloud.volume(&volume).is_some_and(|volume| volume.vm.is_some() && volume.plugged));
    pair.job("detachVolume", &json!({ "id": volume }))?;
    assert_eq!(seen.told()[1..], [format!("unplug {volume}")]);

    // The other way about: the word first, the disk later.
    let gate = Gate::new();
    pair.cloud.next_job("attachVolume", JobFault::DiskLater(gate.clone()));
    assert_eq!(pair.job("attachVolume", &attach)?["ok"]["volume"]["virtualmachineid"], HOST);
    assert_eq!(seen.told().len(), 2);
    gate.open();
    pair.cloud.wait_quiet(SOON)?;
    assert_eq!(seen.told().len(), 3);

    // Without power no disks, and a stopped VM's come when it is started.
    pair.cloud.switch_vm(HOST, false)?;
    pair.cloud.switch_vm(HOST, true)?;
    assert_eq!(seen.told()[3..], [format!("unplug {volume}"), format!("plug {serial} {}", 1 << 30)]);
    Ok(())
}

/// apache/cloudstack#14214.
#[test]
fn a_detach_that_straggles_takes_the_newer_attachment() -> Result<()> {
    let seen = Arc::new(Seen::default());
    let mut pair = Pair::with(Setup::default(), Arc::clone(&seen) as Arc<dyn Plug>)?;
    let volume = pair.volume();
    let (attach, detach) = (json!({ "id": volume, "virtualmachineid": HOST }), json!({ "id": volume }));
    let gate = Gate::new();
    pair.job("attachVolume", &attach)?;
    pair.cloud.next_job("detachVolume", JobFault::Straggles(gate.clone()));
    let late = pair.call("detachVolume", &detach)?["jobid"].clone();
    assert!(gate.reached(SOON));
    assert_eq!(pair.call("queryAsyncJobResult", &json!({ "jobid": late }))?["jobstatus"], 3);
    pair.job("detachVolume", &detach)?;
    pair.job("attachVolume", &attach)?;
    assert!(pair.cloud.volume(&volume).is_some_and(|volume| volume.plugged), "the control: it is there");
    gate.open();
    pair.cloud.wait_quiet(SOON)?;
    assert!(pair.cloud.volume(&volume).is_some_and(|volume| !volume.plugged && volume.vm.is_none()));
    assert_eq!(seen.told().len(), 4);
    Ok(())
}

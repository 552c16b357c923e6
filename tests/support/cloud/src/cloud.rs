//! The stand-in as a test holds it.

use crate::answer::Refusal;
use crate::door::Key;
use crate::jobs::{self, Job};
use crate::log::Call;
use crate::plug::Plug;
use crate::script::{Fault, JobFault, Script};
use crate::serve::Server;
use crate::world::{Age, Vm, Volume, World};
use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Which stand-in.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Which server it is.
    pub age: Age,
    /// `enforce.post.requests.and.timestamps`
    pub enforce: bool,
    /// How long each job takes.
    pub job_takes: Duration,
}

impl Default for Setup {
    fn default() -> Setup {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Setup { listen, age: Age::New, enforce: true, job_takes: Duration::ZERO }
    }
}

/// A stand-in that runs, until it is dropped.
pub struct Cloud {
    inner: Arc<Inner>,
    server: Mutex<Option<Server>>,
    address: SocketAddr,
}

/// What its threads share.
pub(crate) struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    plug: Mutex<Option<Arc<dyn Plug>>>,
}

/// Everything there is to know.
pub(crate) struct State {
    pub(crate) age: Age,
    pub(crate) enforce: bool,
    pub(crate) job_takes: Duration,
    pub(crate) skew: SignedDuration,
    pub(crate) keys: Vec<Key>,
    pub(crate) world: World,
    pub(crate) jobs: Vec<Job>,
    pub(crate) script: Script,
    pub(crate) log: Vec<Call>,
    /// VMs of which a job is being done.
    busy: BTreeSet<String>,
    changes: u64,
}

impl State {
    /// By its own clock.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now() + self.skew
    }

    pub(crate) fn job(&mut self, id: &str) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.id == id).expect("jobs stay on the list")
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and tells who waits for that.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        state.changes += 1;
        self.changed.notify_all();
        result
    }

    /// Waits until no other job of the VM is being done; over when it is dropped.
    pub(crate) fn turn(&self, vm: &str) -> Turn<'_> {
        let mut state = self.state();
        while !state.busy.insert(vm.to_owned()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { inner: self, vm: vm.to_owned() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.state().now()
    }

    pub(crate) fn plug(&self) -> Result<Arc<dyn Plug>> {
        let plug = self.plug.lock().unwrap_or_else(PoisonError::into_inner);
        plug.clone().context("the stand-in has ended")
    }
}

pub(crate) struct Turn<'a> {
    inner: &'a Inner,
    vm: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.inner.change(|state| state.busy.remove(&self.vm));
    }
}

impl Cloud {
    /// Starts it; its threads are in the namespaces of the calling one.
    pub fn start(setup: Setup, plug: Arc<dyn Plug>) -> Result<Cloud> {
        let id = || uuid::Uuid::new_v4().to_string();
        let world = World { zone: id(), offering: id(), ..World::default() };
        // Of any length, with the characters that are encoded.
        let keys = vec![Key::new(&format!("key-{}", id()), &format!("secret/+={}", id()))];
        let state = State {
            age: setup.age,
            enforce: setup.enforce,
            job_takes: setup.job_takes,
            skew: SignedDuration::ZERO,
            keys,
            world,
            jobs: Vec::new(),
            script: Script::default(),
            log: Vec::new(),
            busy: BTreeSet::new(),
            changes: 0,
        };
        let plug = Mutex::new(Some(plug));
        let inner = Arc::new(Inner { state: Mutex::new(state), changed: Condvar::new(), plug });
        let server = Server::start(setup.listen, &inner)?;
        Ok(Cloud { inner, address: server.address(), server: Mutex::new(Some(server)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client is told.
    pub fn url(&self) -> String {
        format!("http://{}/client/api", self.address)
    }

    /// The first pair of keys.
    pub fn key(&self) -> Key {
        self.inner.state().keys[0].clone()
    }

    /// All pairs, to change them: rotated, expired, denied.
    pub fn change_keys(&self, change: impl FnOnce(&mut Vec<Key>)) {
        self.inner.change(|state| change(&mut state.keys));
    }

    /// Its clock is so much ahead of ours.
    pub fn set_skew(&self, skew: SignedDuration) {
        self.inner.change(|state| state.skew = skew);
    }

    /// How long each job takes from now on.
    pub fn set_job_takes(&self, time: Duration) {
        self.inner.change(|state| state.job_takes = time);
    }

    /// The id of the only zone.
    pub fn zone(&self) -> String {
        self.inner.state().world.zone.clone()
    }

    /// The id of the only disk offering.
    pub fn offering(&self) -> String {
        self.inner.state().world.offering.clone()
    }

    /// Puts a VM there.
    pub fn add_vm(&self, vm: Vm) {
        self.inner.change(|state| state.world.vms.insert(vm.id.clone(), vm));
    }

    /// Puts a volume there. One that is attached already has no disk here.
    pub fn add_volume(&self, volume: Volume) {
        self.inner.change(|state| state.world.volumes.insert(volume.id.clone(), volume));
    }

    /// A volume as the cloud knows it, also when it was deleted.
    pub fn volume(&self, id: &str) -> Option<Volume> {
        self.inner.state().world.volumes.get(id).cloned()
    }

    /// All volumes that were not deleted.
    pub fn volumes(&self) -> Vec<Volume> {
        self.inner.state().world.volumes.values().filter(|volume| !volume.removed).cloned().collect()
    }

    /// A VM as the cloud knows it.
    pub fn vm(&self, id: &str) -> Option<Vm> {
        self.inner.state().world.vms.get(id).cloned()
    }

    /// Changes a volume behind everybody's back. Its disk stays as it is.
    ///
    /// # Panics
    /// When there is none.
    pub fn change_volume(&self, id: &str, change: impl FnOnce(&mut Volume)) {
        self.inner.change(|state| change(state.world.volumes.get_mut(id).expect("a volume of the cloud")));
    }

    /// Changes a VM behind everybody's back. Its disks stay as they are.
    ///
    /// # Panics
    /// When there is none.
    pub fn change_vm(&self, id: &str, change: impl FnOnce(&mut Vm)) {
        self.inner.change(|state| change(state.world.vms.get_mut(id).expect("a VM of the cloud")));
    }

    /// Attaches a volume, as somebody else than the caller under test: no call and no job tells of it.
    pub fn attach(&self, volume: &str, vm: &str) -> Result<()> {
        done(jobs::attach_now(&self.inner, volume, vm))
    }

    /// Detaches a volume as somebody else.
    pub fn detach(&self, volume: &str) -> Result<()> {
        done(jobs::detach_now(&self.inner, volume))
    }

    /// Stops a VM or starts it, with its disks, as somebody else than the caller under test.
    pub fn switch_vm(&self, id: &str, on: bool) -> Result<()> {
        let to = if on { "Running" } else { "Stopped" };
        done(self.inner.switch(id, to))
    }

    /// What happens to the next call of a command (`*`: of any). Said twice: to the one after it.
    pub fn next(&self, command: &str, fault: Fault) {
        self.inner.change(|state| state.script.next(command, fault));
    }

    /// What happens to the next job of a command. Said twice: to the one after it.
    pub fn next_job(&self, command: &str, fault: JobFault) {
        self.inner.change(|state| state.script.next_job(command, fault));
    }

    /// What happens to each call of a command (`*`: of any) from now on.
    pub fn each(&self, command: &str, fault: Fault) {
        self.inner.change(|state| state.script.each(command, fault));
    }

    /// What happens to the call of this number, whatever it is.
    pub fn call_number(&self, number: u64, fault: Fault) {
        self.inner.change(|state| state.script.by_number(number, fault));
    }

    /// Nothing more goes wrong.
    pub fn calm(&self) {
        self.inner.change(|state| state.script = Script::default());
    }

    /// The faults that were said and have not come about.
    pub fn faults_left(&self) -> Vec<String> {
        self.inner.state().script.left()
    }

    /// All calls, in the order they came.
    pub fn calls(&self) -> Vec<Call> {
        self.inner.state().log.clone()
    }

    /// The calls of a command.
    pub fn calls_of(&self, command: &str) -> Vec<Call> {
        self.inner.state().log.iter().filter(|call| call.command == command).cloned().collect()
    }

    /// All jobs, in the order they were begun.
    pub fn jobs(&self) -> Vec<Job> {
        self.inner.state().jobs.clone()
    }

    /// Nobody remembers the jobs that were begun until now.
    pub fn forget_jobs(&self) {
        self.inner.change(|state| state.jobs.iter_mut().for_each(|job| job.known = false));
    }

    /// Nobody listens any more, and all connections are cut.
    pub fn go_away(&self) {
        drop(self.server().take());
    }

    /// It listens again at the same place.
    pub fn come_back(&self) -> Result<()> {
        let mut server = self.server();
        if server.is_none() {
            *server = Some(Server::start(self.address, &self.inner)?);
        }
        Ok(())
    }

    /// Waits until something is so; looks whenever anything has changed. False: it was not within the limit.
    pub fn wait(&self, limit: Duration, is_so: impl Fn(&Cloud) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let changes = self.inner.state().changes;
            if is_so(self) {
                return true;
            }
            let mut state = self.inner.state();
            while state.changes == changes {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                state = self.inner.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Waits until there were so many calls of a command. What there was instead is in the error.
    pub fn wait_calls(&self, command: &str, count: usize, limit: Duration) -> Result<()> {
        let came = self.wait(limit, |cloud| cloud.calls_of(command).len() >= count);
        anyhow::ensure!(came, "no {count} calls of {command} within {limit:?}; the calls: {}", self.told());
        Ok(())
    }

    /// Waits until no job has anything left to do.
    pub fn wait_quiet(&self, limit: Duration) -> Result<()> {
        let quiet = self.wait(limit, |cloud| cloud.jobs().iter().all(|job| job.over));
        anyhow::ensure!(quiet, "jobs are under way after {limit:?}: {:#?}", self.jobs());
        Ok(())
    }

    /// The log as a text, a line each.
    pub fn told(&self) -> String {
        self.calls().iter().map(|call| format!("\n  {call}")).collect()
    }

    fn server(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done<T>(result: Result<T, Refusal>) -> Result<()> {
    result.map(drop).map_err(|refusal| anyhow::anyhow!(refusal.text))
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.go_away();
        // Who waits at a gate for ever keeps no disk.
        self.inner.plug.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the stand-in at {}, with these calls:{}", self.address, self.told())
    }
}

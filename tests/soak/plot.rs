//! The random actions.

use std::time::{Duration, Instant};

use lab::{Disk, Reply};
use rustix::process::Signal;
use serde_json::json;

use crate::common::SOON;
use crate::ledger::held;
use crate::scene::{Scene, Wish};

/// The limit of volumes at one time.
const MOST: usize = 20;

impl Scene {
    /// Does one action, and the pause after it.
    pub(crate) fn act(&mut self, random: &mut fastrand::Rng, may_kill: bool) {
        self.end_faults(Instant::now());
        let id = random.choice(self.held.keys()).cloned();
        match (random.u8(0..100), id) {
            (0..15, _) | (_, None) if self.held.len() < MOST => {
                let id = self.add(random);
                // Half of the disks are attached before their intent.
                if random.bool() {
                    self.attach(&id);
                }
                self.intend(&id);
            }
            (0..30, Some(id)) => self.intend(&id),
            (30..55, Some(id)) if self.held[&id].disk.is_attached() => self.pull(&id),
            (30..55, Some(id)) => self.attach(&id),
            (55..68, Some(id)) => {
                // This is often the volume that is being copied, which is the interesting case.
                let copied = held(&self.ledger.copying).0.clone().filter(|id| self.held.contains_key(id));
                let id = copied.filter(|_| random.bool()).unwrap_or(id);
                self.withdraw(&id, random.u8(0..5) == 0);
            }
            (68..71, Some(id)) => self.duplicate(&id),
            (71..75, Some(id)) => self.forget(&id),
            (75..90, _) if self.faults.len() < 2 => self.begin_fault(random),
            (90..93, _) => self.resync(),
            (93..96, _) => self.restart(random, may_kill),
            (96..97, _) => self.restart_server(),
            (97..99, _) => self.doze(random),
            _ => {}
        }
        self.still_lives();
        std::thread::sleep(Duration::from_millis(random.u64(0..120)));
    }

    fn did(&self, what: &'static str, id: &str) {
        self.ledger.count(what);
        self.ledger.did(format_args!("{what} {id}"));
    }

    /// Announces the volume. What is known of it afterwards depends on the answer.
    fn intend(&mut self, id: &str) {
        let held = self.held.get_mut(id).unwrap();
        let body = json!({ "volume_id": id, "size_bytes": held.known.size, "vm_id": "soak" });
        let answer = self.ledger.api.post("/api/v1/intents", &body);
        let status = answer.as_ref().ok().map(|reply| reply.status);
        self.ledger.did(format_args!("intend {id}: {}", said(&answer)));
        match (held.wish, status) {
            (Wish::Wanted, Some(201)) => self.ledger.fail(format_args!("{id}: an answered intent was lost")),
            (Wish::Unwanted, Some(200)) => self.ledger.fail(format_args!("{id}: a withdrawn intent is back")),
            (_, Some(200 | 201)) => {
                held.wish = Wish::Wanted;
                self.ledger.count("intents");
            }
            (Wish::Wanted, Some(400..500)) => {
                self.ledger.fail(format_args!("{id}: an answered intent is refused: {}", said(&answer)));
            }
            // The intent was on record before, whatever happened to this request.
            (Wish::Wanted | Wish::Leaving, _) => self.ledger.count("intents unanswered"),
            (_, Some(409)) => self.ledger.count("intents refused"),
            _ => {
                held.wish = Wish::Unknown;
                self.ledger.count("intents unanswered");
            }
        }
    }

    fn withdraw(&mut self, id: &str, force: bool) {
        let held = self.held.get_mut(id).unwrap();
        held.revocations += 1;
        let copying = self::held(&self.ledger.copying).clone();
        let answer = self.ledger.api.delete(&format!("/api/v1/intents/{id}{}", if force { "?force=true" } else { "" }));
        let copied = copying.0.as_deref() == Some(id) && copying == *self::held(&self.ledger.copying);
        self.ledger.did(format_args!(
            "withdraw {id}{}{}: {}",
            if force { " by force" } else { "" },
            if copied { ", which is being copied" } else { "" },
            said(&answer)
        ));
        match (held.wish, answer.as_ref().ok().map(|reply| reply.status)) {
            (Wish::Wanted, Some(200)) if copied && !force => {
                self.ledger.fail(format_args!("{id}: withdrawn from under a client"));
            }
            (_, Some(200)) => {
                held.wish = if force { Wish::Leaving } else { Wish::Unwanted };
                self.ledger.count("withdrawals");
            }
            (Wish::Wanted, Some(404)) => self.ledger.fail(format_args!("{id}: an answered intent was lost")),
            (_, Some(404)) => held.wish = Wish::Unwanted,
            (_, Some(409)) => self.ledger.count("withdrawals refused"),
            _ => {
                // A volume that was withdrawn by force is on record as such, and goes by itself.
                held.wish = match held.wish {
                    Wish::Wanted | Wish::Unknown => Wish::Unknown,
                    decided @ (Wish::Leaving | Wish::Unwanted) => decided,
                };
                self.ledger.count("withdrawals unanswered");
            }
        }
    }

    fn attach(&mut self, id: &str) {
        let held = self.held.get_mut(id).unwrap();
        if held.disk.is_attached() {
            return;
        }
        held.disk.attach().unwrap();
        self.did("attach", id);
    }

    /// Pulls the disk when no client is connected, and waits until attachd notices.
    fn pull(&mut self, id: &str) {
        // A stopped server or udevd with the disk open would keep the disk.
        if self.somebody_is_silent() || self.something_is_covered() {
            return;
        }
        let held = self.held.get_mut(id).unwrap();
        let known = held.known.clone();
        let Ok(nobody) = known.gate.try_write() else { return };
        known.turns.begin();
        held.revocations += 1;
        held.disk.detach().unwrap();
        drop(nobody);
        self.did("pull", id);
        self.until_not_served(id);
    }

    /// While faults are active it may take until they end.
    fn until_not_served(&self, id: &str) {
        let known = &self.held[id].known;
        if !self.faults.is_empty() {
            return;
        }
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            let state = self.ledger.api.get(&format!("/api/v1/volumes/{id}")).ok();
            if state.is_some_and(|reply| reply.json["state"] != "ready") {
                return known.turns.end();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ledger.fail(format_args!("{id} is ready {SOON:?} after its disk has gone"));
    }

    /// Attaches a second disk with the serial of a served volume for a moment, without clients.
    fn duplicate(&mut self, id: &str) {
        let held = self.held.get_mut(id).unwrap();
        let known = held.known.clone();
        if !held.disk.is_attached() || held.wish != Wish::Wanted || !self.faults.is_empty() {
            return;
        }
        let Ok(_nobody) = known.gate.try_write() else { return };
        known.turns.begin();
        held.revocations += 1;
        let mut twin = self.twin(&known.volume, known.size);
        twin.attach().unwrap();
        self.did("duplicate", id);
        if let Err(error) = self.ledger.api.wait_volume(id, "refused", SOON) {
            self.ledger.fail(format_args!("{id} has two disks and is not refused: {error:#}"));
        }
        twin.detach().unwrap();
        // The remaining disk may have got the other one's link in the meantime.
        self.lab.retrigger(&self.held[id].disk).unwrap();
        known.turns.end();
    }

    /// Removes a volume that is not wanted any more, with its disk.
    fn forget(&mut self, id: &str) {
        let held = &self.held[id];
        if held.wish != Wish::Unwanted || self.somebody_is_silent() || self.something_is_covered() {
            return;
        }
        let known = held.known.clone();
        let Ok(_nobody) = known.gate.try_write() else { return };
        self.ledger.remove(&known.volume);
        let gone = self.held.remove(id);
        if let Some(mut disk) = gone.map(|held| held.disk).filter(Disk::is_attached) {
            disk.detach().unwrap();
        }
        self.did("forget", id);
    }

    fn resync(&self) {
        let answer = self.ledger.api.post("/api/v1/resync", &json!({}));
        self.ledger.did(format_args!("resync: {}", said(&answer)));
        self.ledger.count("resyncs");
    }

    fn restart(&mut self, random: &mut fastrand::Rng, may_kill: bool) {
        if !may_kill || self.faults.iter().any(|(_, fault)| fault.hinders_a_start()) {
            return;
        }
        if random.u8(0..4) == 0 {
            self.did("stop and start", "");
            if let Err(error) = self.attachd.terminate() {
                self.ledger.fail(format_args!("the daemon does not stop: {error:#}"));
            }
        } else {
            self.did("kill -9", "");
            self.attachd.kill9().unwrap();
        }
        // A disk may come while no daemon runs.
        let id = random.choice(self.held.keys()).cloned();
        if let Some(id) = id.filter(|id| !self.held[id].disk.is_attached()) {
            self.attach(&id);
        }
        self.start();
    }

    /// The NBD server is killed and started again, as by its unit.
    fn restart_server(&mut self) {
        if self.somebody_is_silent() {
            return;
        }
        self.ledger.server.begin();
        self.did("kill nbdkit", "");
        self.lab.nbdkit_kill().unwrap();
        self.lab.nbdkit_start().unwrap();
        // A moment later every export is proven again or is not ready. Until then no client checks.
        self.until_server_is_up();
        self.ledger.server.end();
    }

    fn until_server_is_up(&self) {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            let health = self.ledger.api.get("/api/v1/health");
            let pid = self.lab.nbdkit_pid().map(i64::from);
            if health.is_ok_and(|reply| reply.json["backend"]["pid"].as_i64() == pid) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.ledger.fail("the NBD server is up again and attachd does not know it");
    }

    /// Stops the daemon's process for a moment, as on a host that swaps.
    fn doze(&self, random: &mut fastrand::Rng) {
        self.did("doze", "");
        let _ = self.attachd.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(random.u64(10..700)));
        let _ = self.attachd.signal(Signal::CONT);
    }

    fn begin_fault(&mut self, random: &mut fastrand::Rng) {
        let Some(fault) = self.fault(random) else { return };
        self.ledger.count("faults");
        self.ledger.did(format_args!("begin: {}", fault.name()));
        let most = if matches!(fault, crate::faults::Fault::Silent(..)) { 3_000 } else { 8_000 };
        self.faults.push((Instant::now() + Duration::from_millis(random.u64(50..most)), fault));
    }

    pub(crate) fn end_faults(&mut self, now: Instant) {
        let ledger = self.ledger.clone();
        self.faults.retain(|(until, fault)| {
            if *until <= now {
                ledger.did(format_args!("end: {}", fault.name()));
            }
            *until > now
        });
    }

    fn somebody_is_silent(&self) -> bool {
        self.faults.iter().any(|(_, fault)| matches!(fault, crate::faults::Fault::Silent(..)))
    }

    fn something_is_covered(&self) -> bool {
        self.faults.iter().any(|(_, fault)| matches!(fault, crate::faults::Fault::Covered(..)))
    }
}

fn said(answer: &anyhow::Result<Reply>) -> String {
    match answer {
        Ok(reply) if reply.status < 300 => reply.status.to_string(),
        Ok(reply) => format!("{} {}", reply.status, reply.json["code"].as_str().unwrap_or(&reply.text)),
        Err(error) => format!("{error:#}"),
    }
}

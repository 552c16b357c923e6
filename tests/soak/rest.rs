//! Everything comes to rest: no fault is active, and everything must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::scene::{STORE, Scene, Wish};

/// Longer than any back-off.
const LIMIT: Duration = Duration::from_secs(90);

impl Scene {
    /// Ends all faults and compares everything. `level`: memory is measured.
    pub(crate) fn rest(&mut self, level: bool) {
        self.end_faults(Instant::now() + Duration::from_hours(1));
        self.ledger.did("rest");
        let _ = self.ledger.api.post("/api/v1/resync", &json!({}));
        let begun = Instant::now();
        loop {
            self.still_lives();
            let Err(why) = self.agree() else { break };
            if self.ledger.failed() {
                return;
            }
            if begun.elapsed() > LIMIT {
                let health = self.ledger.api.get("/api/v1/health").map(|reply| reply.json["problems"].to_string());
                return self.ledger.fail(format_args!("{LIMIT:?} after the last fault: {why}\nhealth: {health:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.ledger.most("slowest rest ms", u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.ledger.count("rests");
        self.held.values().for_each(|held| held.known.turns.end());
        if level {
            self.levels.push(self.level());
        }
    }

    /// Checks whether everything agrees. The error may be temporary.
    fn agree(&mut self) -> Result<(), String> {
        let intents = self.ids("intents")?;
        let volumes = list(&self.ledger, "volumes")?;
        for (id, held) in &mut self.held {
            match held.wish {
                Wish::Wanted if !intents.contains_key(id) => {
                    self.ledger.fail(format_args!("{id}: an answered intent was lost"));
                }
                Wish::Unwanted if intents.contains_key(id) => return Err(format!("{id} was withdrawn and is there")),
                Wish::Leaving if intents.contains_key(id) => return Err(format!("{id} does not go")),
                Wish::Leaving => held.wish = Wish::Unwanted,
                Wish::Unknown => {
                    held.wish = if intents.contains_key(id) { Wish::Wanted } else { Wish::Unwanted };
                }
                Wish::Wanted | Wish::Unwanted => {}
            }
            let Some(intent) = intents.get(id) else { continue };
            if intent["size_bytes"] != held.known.size || intent["vm_id"] != "soak" {
                self.ledger.fail(format_args!("{id}: the intent reads otherwise now: {intent}"));
            }
            let volume = volumes.iter().find(|volume| volume["volume_id"] == **id);
            let state = volume.and_then(|volume| volume["state"].as_str()).unwrap_or("not listed");
            if held.disk.is_attached() != (state == "ready") {
                let disk = if held.disk.is_attached() { "here" } else { "away" };
                let reason = volume.map(|volume| volume["reason"].to_string()).unwrap_or_default();
                return Err(format!("{id}: its disk is {disk} and it is {state} {reason}"));
            }
        }
        self.nothing_was_taken_unasked()?;
        let wanted: BTreeSet<&String> = intents.keys().collect();
        let rows = rows()?;
        same("rows", &rows.iter().collect(), &wanted)?;
        let serials: BTreeSet<String> = wanted.iter().map(|id| lab::Volume::of(id).serial).collect();
        same("claims", &names("/var/lib/attachd/claims")?, &serials)?;
        let ready = volumes.iter().filter(|volume| volume["state"] == "ready");
        let exports = ready.filter_map(|volume| Some(volume["export"]["name"].as_str()?.to_owned())).collect();
        same("exports", &names("/run/attachd/exports")?, &exports)
    }

    /// Checks that a failed read has revoked no export.
    fn nothing_was_taken_unasked(&self) -> Result<(), String> {
        for (id, held) in self.held.iter().filter(|(_, held)| held.wish == Wish::Wanted) {
            let reply = self.ledger.api.get(&format!("/api/v1/volumes/{id}")).map_err(|error| format!("{error:#}"))?;
            let Some(timeline) = reply.json["timeline"].as_array() else { return Err(format!("{id}: {}", reply.text)) };
            let revoked = timeline.iter().filter(|entry| entry["event"] == "revoked");
            let why: Vec<String> = revoked.map(Value::to_string).collect();
            if why.len() > held.revocations {
                self.ledger.fail(format_args!(
                    "{id}: its export was taken away {} times, for {} reasons there were: {why:#?}",
                    why.len(),
                    held.revocations
                ));
            }
        }
        Ok(())
    }

    fn ids(&self, what: &str) -> Result<BTreeMap<String, Value>, String> {
        let all = list(&self.ledger, what)?.into_iter();
        Ok(all.filter_map(|one| Some((one["volume_id"].as_str()?.to_owned(), one))).collect())
    }

    /// Returns the daemon's memory in KiB, and its descriptors.
    fn level(&self) -> (u64, usize) {
        let pid = self.attachd.pid().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let level = (rss.unwrap(), open);
        println!("        at rest: {} KiB, {} descriptors", level.0, level.1);
        level
    }
}

fn list(ledger: &Ledger, what: &str) -> Result<Vec<Value>, String> {
    let reply = ledger.api.get(&format!("/api/v1/{what}")).map_err(|error| format!("{what}: {error:#}"))?;
    reply.json[what].as_array().cloned().ok_or_else(|| format!("{what}: {} {}", reply.status, reply.text))
}

fn rows() -> Result<BTreeSet<String>, String> {
    let mut sqlite = Command::new("sqlite3");
    let output = sqlite.args(["-readonly", &format!("{STORE}/attachd.db"), "SELECT volume_id FROM intents"]).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("sqlite3: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(text.lines().map(str::to_owned).collect())
}

fn names(folder: &str) -> Result<BTreeSet<String>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{folder}: {error}"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn same<T: Ord + std::fmt::Debug>(what: &str, there: &BTreeSet<T>, wanted: &BTreeSet<T>) -> Result<(), String> {
    let (more, less) = (there.difference(wanted), wanted.difference(there));
    if there == wanted {
        return Ok(());
    }
    Err(format!("{what}: too many {:?}, missing {:?}", more.collect::<Vec<_>>(), less.collect::<Vec<_>>()))
}

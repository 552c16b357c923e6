//! The world as attachd shows it: everything that must survive a restart, and nothing else.

use crate::api::Api;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

/// The limit of volumes whose stories are compared; each costs a request.
const STORIES: usize = 16;

/// The fields of a volume's state. The reason's message is left out, because it may contain a count or a duration.
const STATE: [&str; 8] = ["state", "since", "vm_id", "device_path", "device_node", "size_bytes", "diskseq", "evidence"];

/// The fields of a volume's announcement.
const WISH: [&str; 5] = ["vm_id", "asked size", "deadline", "user", "created"];

/// The text for a field without a value.
const NONE: &str = "null";

/// A volume's fields, by name.
type Fields = BTreeMap<&'static str, String>;

/// What attachd shows.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) volumes: BTreeMap<String, Fields>,
    /// What the API lists as offered but not attachd's.
    others: BTreeMap<String, String>,
    pub(crate) folders: BTreeMap<String, String>,
    stories: BTreeMap<String, Vec<Value>>,
}

impl Shown {
    /// Reads everything.
    pub(crate) fn by(api: &Api) -> Result<Shown> {
        let get = |path: &str| api.get(path)?.expect(200).with_context(|| path.to_owned());
        let (volumes, intents, exports) = (get("/api/v1/volumes")?, get("/api/v1/intents")?, get("/api/v1/exports")?);
        let mut shown =
            Shown { volumes: BTreeMap::new(), others: BTreeMap::new(), folders: folders()?, stories: BTreeMap::new() };
        for volume in list(&volumes, "volumes") {
            let id = volume["volume_id"].as_str().context("a volume without its id")?;
            let fields = shown.volumes.entry(id.to_owned()).or_default();
            for field in STATE {
                fields.insert(field, text(&volume[field]));
            }
            fields.insert("reason", text(&volume["reason"]["code"]));
            fields.insert("export", text(&volume["export"]));
        }
        for intent in list(&intents, "intents") {
            let id = intent["volume_id"].as_str().context("an intent without its volume")?;
            let fields = shown.volumes.entry(id.to_owned()).or_default();
            for (name, field) in [("asked size", "size_bytes"), ("deadline", "deadline_seconds"), ("user", "uid")] {
                fields.insert(name, text(&intent[field]));
            }
            fields.insert("created", text(&intent["created_at"]));
        }
        for export in list(&exports, "exports") {
            let name = text(&export["name"]);
            shown.others.insert(format!("export {name}"), text(&export["state"]));
        }
        shown.others.insert("foreign exports".into(), text(&exports["foreign"]));
        for id in shown.volumes.keys().take(STORIES) {
            let volume = api.get(&format!("/api/v1/volumes/{id}"))?;
            // The volume may have gone since it was listed.
            if volume.status != 404 {
                shown.stories.insert(id.clone(), list(&volume.expect(200)?, "timeline").to_vec());
            }
        }
        Ok(shown)
    }

    /// Returns a volume that is being worked on: its next state comes by itself.
    pub(crate) fn moving(&self) -> Option<&str> {
        let moves = |fields: &Fields| match fields["state"].as_str() {
            "matched" => true,
            "exporting" => fields["reason"] == NONE,
            _ => false,
        };
        self.volumes.iter().find(|(_, fields)| moves(fields)).map(|(id, _)| id.as_str())
    }

    /// Returns both worlds side by side, if `after` differs in more than may have changed in between.
    pub(crate) fn difference(&self, after: &Shown) -> Option<String> {
        let differ = |id: &String| self.volumes.get(id) != after.volumes.get(id);
        let differing: BTreeSet<_> = self.volumes.keys().chain(after.volumes.keys()).filter(|id| differ(id)).collect();
        let rightly =
            |id: &String| self.volumes.get(id).is_some_and(|before| may_become(before, after.volumes.get(id)));
        let rest = |all: &BTreeMap<String, String>| without(all, differing.iter().copied());
        let interrupted = self.interrupted(after);
        let well = differing.iter().all(|id| rightly(id))
            && rest(&self.others) == rest(&after.others)
            && rest(&self.folders) == rest(&after.folders)
            && interrupted.is_none();
        (!well).then(|| format!("{}{}", side_by_side(&self.lines(), &after.lines()), interrupted.unwrap_or_default()))
    }

    /// Returns the links, claims and rows of volumes that no work in progress may change.
    pub(crate) fn resting(&self, folders: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        without(folders, self.volumes.iter().filter(|(_, fields)| is_in_other_hands(fields)).map(|(id, _)| id))
    }

    /// Returns the expected rows in the predecessor's tables: path, size, `linux_state` and `status` of each volume
    /// that has had a disk.
    pub(crate) fn rows(&self) -> BTreeMap<String, String> {
        let mapped = self.volumes.iter().filter(|(_, fields)| fields["device_path"] != NONE);
        let row = |fields: &Fields| {
            let words = match fields["state"].as_str() {
                "ready" => "detected active".to_owned(),
                "exporting" => "detected pending".to_owned(),
                state => format!("{state} {state}"),
            };
            format!("{} {} {words}", fields["device_path"], fields["size_bytes"])
        };
        mapped.map(|(id, fields)| (id.clone(), row(fields))).collect()
    }

    /// Returns a story that has lost a step, or that says that clients were refused because of the restart.
    fn interrupted(&self, after: &Shown) -> Option<String> {
        self.stories.iter().find_map(|(id, before)| {
            let later = after.stories.get(id)?;
            let since = later.strip_prefix(before.as_slice());
            let served = |shown: &Shown| shown.volumes.get(id).is_some_and(|fields| fields["state"] == "ready");
            let revoked = |steps: &[Value]| steps.iter().any(|step| step["event"] == "revoked");
            let well = since.is_some_and(|since| !(served(self) && served(after) && revoked(since)));
            (!well).then(|| format!("the story of {id}:\n{before:#?}\nand after the restart:\n{later:#?}"))
        })
    }

    fn lines(&self) -> BTreeMap<String, String> {
        let fields = self.volumes.iter().flat_map(|(id, fields)| {
            fields.iter().map(move |(name, value)| (format!("volume {id} {name}"), value.clone()))
        });
        fields.chain(self.others.clone()).chain(self.folders.clone()).collect()
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|(name, value)| writeln!(f, "{name}: {value}"))
    }
}

/// Returns whether another program decides the next step: udev, which was asked to process the disk again, or the
/// clients, after a forced withdrawal. A volume that an operation has sealed stays sealed.
fn is_in_other_hands(fields: &Fields) -> bool {
    match (fields["state"].as_str(), fields["reason"].as_str()) {
        ("refused", "NOT_MARKED" | "LINK_MISSING" | "LINK_ELSEWHERE") => true,
        ("detaching", reason) => reason != "SEALED",
        _ => false,
    }
}

/// Returns whether a volume may have changed in this way over a restart.
fn may_become(before: &Fields, after: Option<&Fields>) -> bool {
    let Some(after) = after else { return before["state"] == "detaching" && is_in_other_hands(before) };
    let kept = WISH.iter().all(|field| before.get(field) == after.get(field));
    // A deadline may pass in the meantime.
    let expired = before["state"] == "waiting" && before["deadline"] != NONE && after["reason"] == "DEADLINE_PASSED";
    kept && (expired || is_in_other_hands(before))
}

/// Removes the lines about these volumes.
fn without<'a>(all: &BTreeMap<String, String>, volumes: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let names: Vec<_> = volumes.flat_map(|id| [id.clone(), id.replace('-', "")[..20].to_owned()]).collect();
    let about = |line: &str| names.iter().any(|name| line.contains(name.as_str()));
    all.iter().filter(|(line, _)| !about(line)).map(|(line, value)| (line.clone(), value.clone())).collect()
}

/// Returns the problems in health after everything was read again. Problems that a daemon learns only from another
/// program are left out, and so are the volumes' own problems.
pub(crate) fn problems(api: &Api) -> Result<BTreeSet<String>> {
    // With a problem the status may be 503.
    let health = api.get("/api/v1/health")?.json;
    let codes = list(&health, "problems").iter().map(|problem| text(&problem["code"]));
    let learned =
        |code: &String| ["BACKEND_", "HELPER_", "SERVER_", "UDEVD_", "VOLUMES_"].iter().any(|of| code.starts_with(of));
    Ok(codes.filter(|code| !learned(code)).collect())
}

/// Reads the served links and the claims directly, without attachd.
pub(crate) fn folders() -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (what, folder) in [("link", "/run/attachd/exports"), ("claim", "/var/lib/attachd/claims")] {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            let leads_to = fs::read_link(&path).unwrap_or_default();
            found.insert(format!("{what} {}", name(&path)), leads_to.display().to_string());
        }
    }
    Ok(found)
}

/// Returns a string unchanged, and anything else as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn list<'a>(body: &'a Value, name: &str) -> &'a [Value] {
    body[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn side_by_side(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut text = String::new();
    for name in names {
        let [before, after] = [before, after].map(|side| side.get(name).map_or("-", String::as_str));
        let _ = match before == after {
            true => writeln!(text, "same    {name}: {before}"),
            false => writeln!(text, "DIFFERS {name}\n  before {before}\n  after  {after}"),
        };
    }
    text
}

//! One caller's calls, as data.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// What a caller does, and what it is promised.
///
/// `{name}` in a path, a body or an expected answer is a volume of `given`, something that an earlier step has read, or one
/// of `here` (this host's VM), `other` (another VM), `zone`, `offering`, `base` (where attachd listens).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// The heading on the page.
    pub(crate) caller: String,
    /// Where its calls are in the predecessor's tree.
    pub(crate) program: String,
    /// What it may rely on at the end.
    pub(crate) promise: String,
    /// What is worth knowing besides.
    #[serde(default)]
    pub(crate) note: String,
    #[serde(default)]
    pub(crate) client: Client,
    /// The volumes before its first call.
    #[serde(default)]
    pub(crate) given: Vec<Given>,
    /// What CloudStack does not do.
    #[serde(default)]
    pub(crate) fault: Vec<Broken>,
    pub(crate) step: Vec<Step>,
    /// The volumes after its last call.
    #[serde(default)]
    pub(crate) after: Vec<After>,
    /// What CloudStack was asked to change, in this order.
    #[serde(default)]
    pub(crate) cloud: Vec<String>,
    /// Operations of several volumes are under way at once, so the order of `cloud` is by volume only.
    #[serde(default)]
    pub(crate) at_once: bool,
}

/// The HTTP client of a caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Client {
    /// oma-api's `VolumeClient`: keeps its connection, gives up on a request after 30 s, bears an answer that it cannot
    /// use while it polls.
    #[default]
    Common,
    /// Go's default client: no time limit, and the first answer that it cannot use ends the caller.
    Go,
    /// `curl` and `jq` in a shell.
    Shell,
}

/// A volume before the first call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    pub(crate) volume: String,
    pub(crate) is: Before,
}

/// How a volume is before the first call.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Before {
    /// In CloudStack, attached to nothing, unknown here.
    Detached,
    /// Attached here and served.
    Served,
    /// Attached to the other VM through attachd.
    AtTheOtherVm,
    /// Deleted in CloudStack.
    Deleted,
}

/// A command of CloudStack that fails the next time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Broken {
    pub(crate) command: String,
    pub(crate) says: String,
}

/// One thing that the caller does.
#[derive(Debug, Deserialize)]
#[serde(tag = "does", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Step {
    /// One request.
    Call(Request),
    /// Asks for an operation again and again.
    Poll(Poll),
    /// Waits without asking.
    Sleep { seconds: u64 },
    /// Lines of a shell script, as they stand.
    Shell(Shell),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// `METHOD /path`
    pub(crate) call: String,
    pub(crate) body: Option<Value>,
    /// The status that it requires.
    pub(crate) requires: u16,
    /// Another status comes here: `requires` is not met, and the caller goes on as `if_not` says.
    pub(crate) comes: Option<u16>,
    /// What it does with another status.
    pub(crate) if_not: String,
    /// Its own time limit, where that is shorter than its client's.
    pub(crate) limit_seconds: Option<u64>,
    /// What it reads of the answer: names and JSON pointers.
    #[serde(default)]
    pub(crate) reads: BTreeMap<String, String>,
    /// What the answer has to be, by JSON pointer: a value, a beginning (`text*`), or anything but nothing (`*`).
    #[serde(default)]
    pub(crate) answer: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Poll {
    /// The operation's id.
    pub(crate) operation: String,
    pub(crate) every_seconds: u64,
    /// How long it polls; without this, until the operation has ended.
    pub(crate) limit_seconds: Option<u64>,
    /// The status that the operation ends with here.
    pub(crate) ends: String,
    /// What it does when the operation has failed or the time is up.
    pub(crate) if_not: String,
    #[serde(default)]
    pub(crate) reads: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) answer: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shell {
    pub(crate) lines: String,
    /// Names that the script has set before: shell variables.
    #[serde(default)]
    pub(crate) with: BTreeMap<String, String>,
    /// What it prints, whole; `*` at the end: how it begins.
    pub(crate) prints: String,
    /// They are run again after this time, until they print that.
    pub(crate) every_seconds: Option<u64>,
    /// How often, at most.
    #[serde(default)]
    pub(crate) times: u32,
    /// What they may print until then.
    #[serde(default)]
    pub(crate) meanwhile: Vec<String>,
    /// Its last line is what this name is for from here on.
    #[serde(default)]
    pub(crate) reads: String,
}

/// A volume after the last call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    pub(crate) volume: String,
    pub(crate) is: Then,
}

/// How a volume is after the last call, as others than attachd see it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Then {
    /// Attached here, and an NBD client reads its disk's bytes.
    Served,
    /// Attached to nothing, unknown here, no export.
    Detached,
    /// Not in CloudStack any more, unknown here, no export.
    Deleted,
    /// Attached to the other VM, no export.
    AtTheOtherVm,
    /// The same, as its root disk.
    RootOfTheOtherVm,
}

impl Row {
    /// Reads the row of this file.
    pub(crate) fn read(name: &str) -> Self {
        let path = folder().join(name).with_extension("toml");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// Returns the names of all files.
pub(crate) fn files() -> Vec<String> {
    let files = fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/callers/rows")
}

//! attachd's answers, as far as attachctl shows them to people. Fields it does not know are passed over.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A volume.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    #[serde(rename = "volume_id")]
    pub(super) id: String,
    pub(super) serial: String,
    pub(super) vm_id: String,
    pub(super) state: String,
    pub(super) since: Option<Timestamp>,
    pub(super) device_path: Option<String>,
    pub(super) device_node: Option<String>,
    pub(super) size_bytes: Option<u64>,
    pub(super) export: Export,
    pub(super) evidence: Option<Evidence>,
    pub(super) reason: Option<Reason>,
    pub(super) timeline: Vec<Entry>,
}

/// An export, of a volume or in the list of exports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Export {
    pub(super) name: String,
    pub(super) uri: String,
    pub(super) state: String,
    pub(super) device_path: Option<String>,
}

/// What ties the device to the volume.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Evidence {
    pub(super) serial: String,
    pub(super) scheme: String,
    pub(super) devnum: String,
    pub(super) diskseq: u64,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
    pub(super) boot_id: String,
    pub(super) at: Option<Timestamp>,
}

/// Why a volume is not served.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Reason {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) hint: String,
}

/// One step of a volume's story.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    pub(super) at: Option<Timestamp>,
    pub(super) event: String,
    pub(super) detail: String,
}

/// A step as it happens.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) at: Option<Timestamp>,
    pub(super) volume_id: String,
    #[serde(rename = "event")]
    pub(super) step: String,
    pub(super) detail: String,
    pub(super) state: String,
    pub(super) reason: Option<Reason>,
}

/// An intent on record.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Intent {
    pub(super) volume_id: String,
    pub(super) serial: String,
    pub(super) state: String,
}

impl Event {
    /// The particulars in one line.
    pub(super) fn remarks(&self) -> String {
        match &self.reason {
            // A step that led to the reason repeats its message.
            Some(reason) if self.detail.is_empty() || self.detail.contains(&reason.message) => {
                format!("{}: {}", reason.code, reason.message)
            }
            Some(reason) => format!("{} ({})", self.detail, reason.code),
            None => self.detail.clone(),
        }
    }
}

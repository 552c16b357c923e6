//! attachd in the guest, used through attachctl.

use lab::Volume;
use serde_json::Value;

use crate::agent::Output;
use crate::disk::Disk;
use crate::guest::Guest;

impl Guest {
    /// Announces a volume; attachd must accept it.
    pub(crate) fn intend(&self, volume: &Volume) {
        self.run(&format!("attachctl intent add {}", volume.id));
    }

    /// Announces all of them.
    pub(crate) fn intend_all(&self, volumes: &[Volume]) {
        for volume in volumes {
            self.intend(volume);
        }
    }

    /// Announces a volume; attachd must refuse it. Returns its answer.
    pub(crate) fn intend_in_vain(&self, volume: &Volume) -> Value {
        let told = self.output(&format!("attachctl --json intent add {}", volume.id));
        assert!(told.code != 0, "accepted: {}", told.out);
        json_of(&told)
    }

    /// Waits for a volume's state, and returns the volume.
    pub(crate) fn wait(&self, volume: &Volume, state: &str) -> Value {
        json_of(&self.succeed(&format!("attachctl --json show {} --wait {state} --timeout 90", volume.id)))
    }

    pub(crate) fn show(&self, volume: &Volume) -> Value {
        json_of(&self.succeed(&format!("attachctl --json show {}", volume.id)))
    }

    pub(crate) fn withdraw(&self, volume: &Volume) {
        self.run(&format!("attachctl intent withdraw {}", volume.id));
    }

    pub(crate) fn resync(&self) {
        self.run("attachctl resync");
    }

    /// Checks that the whole export equals the disk's file, byte for byte.
    pub(crate) fn export_equals(&self, volume: &Volume, disk: &Disk) {
        let script = format!("nbdcopy nbd://127.0.0.1/{} - | sha256sum", volume.export());
        let told = self.run(&script);
        assert_eq!(told.split_whitespace().next(), Some(disk.sha256().as_str()), "{}", disk.file.display());
    }

    /// Returns whether an NBD client gets the export. (`nbdinfo` would not do: it gets an answer about an export that
    /// nbd-server remembers, even if no client is let in.)
    pub(crate) fn is_served(&self, volume: &Volume) -> bool {
        self.output(&format!("nbdcopy nbd://127.0.0.1/{} - >/dev/null", volume.export())).code == 0
    }

    fn succeed(&self, script: &str) -> Output {
        let told = self.output(script);
        assert!(told.code == 0, "{script} ended with {}: {}{}", told.code, told.out, told.err);
        told
    }
}

/// attachctl prints results on standard output and errors on standard error.
fn json_of(told: &Output) -> Value {
    let text = if told.out.trim().is_empty() { &told.err } else { &told.out };
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {told:?}"))
}

/// Returns the time of a step in a volume's story, in milliseconds of the day.
pub(crate) fn moment(volume: &Value, event: &str) -> f64 {
    let timeline = volume["timeline"].as_array().unwrap();
    let entry = timeline.iter().rev().find(|entry| entry["event"] == event);
    let at = entry.unwrap_or_else(|| panic!("no {event}: {volume:#}"))["at"].as_str().unwrap();
    let (_, time) = at.trim_end_matches('Z').split_once('T').unwrap();
    let parts: Vec<f64> = time.split(':').map(|part| part.parse().unwrap()).collect();
    ((parts[0] * 60.0 + parts[1]) * 60.0 + parts[2]) * 1000.0
}

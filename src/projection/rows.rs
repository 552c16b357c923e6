//! What the predecessor's tables show of a volume, as a pure function of its record.
//!
//! A volume has its rows from its first proven disk until its withdrawal, whatever happens in between, because other
//! programs write into the rows too and must find their data again. Before the first disk there is no path and no
//! size to show.

use jiff::Timestamp;

use crate::identity::VolumeId;
use crate::operation::Placeholder;
use crate::volume::{Record, State};

/// The rows of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The volume.
    pub volume: VolumeId,
    /// What the rows show; `None`: there are no rows.
    pub present: Option<ShownVolume>,
}

/// Which host has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// This host has it: the predecessor's `oma`.
    Here,
    /// Another VM has it: the predecessor's `failover`. There is nothing of it on this host.
    Elsewhere {
        /// It is that VM's root disk.
        root: bool,
    },
}

/// The columns that attachd owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownVolume {
    /// Which host has the volume.
    pub mode: Mode,
    /// The VM; empty while unknown.
    pub vm_id: String,
    /// The by-id path of the last disk that was proven to be the volume's; on another VM, a name in its place.
    pub device_path: String,
    /// The disk's size in bytes; 0 on another VM, as the predecessor has it.
    pub size_bytes: i64,
    /// `detected`: the disk is here. `n/a`: another VM has it. Otherwise the state that says what is wrong.
    pub linux_state: &'static str,
    /// `active`: the volume is served; `pending`: it will be served. Otherwise the state that says why it is not
    /// served. `None`: there is no row of an export.
    pub export_status: Option<&'static str>,
    /// The time of the last change.
    pub at: Timestamp,
}

/// Returns the rows of a wanted volume.
pub fn rows(record: &Record) -> Rows {
    let present = record.mapping.as_ref().map(|mapping| {
        let (linux_state, export_status) = words(record.state);
        ShownVolume {
            mode: Mode::Here,
            vm_id: record.intent.vm_id.clone(),
            device_path: mapping.link.clone(),
            // The column is a signed integer.
            size_bytes: mapping.size_bytes.try_into().unwrap_or(i64::MAX),
            linux_state,
            export_status: Some(export_status),
            at: record.since.map_or(mapping.at, |since| since.max(mapping.at)),
        }
    });
    Rows { volume: record.intent.volume, present }
}

/// Returns the rows of a volume that another VM has.
pub fn rows_elsewhere(placeholder: &Placeholder) -> Rows {
    let present = ShownVolume {
        mode: Mode::Elsewhere { root: placeholder.root },
        vm_id: placeholder.vm.to_string(),
        device_path: placeholder.device_path(),
        size_bytes: 0,
        linux_state: "n/a",
        export_status: None,
        at: placeholder.since,
    };
    Rows { volume: placeholder.volume, present: Some(present) }
}

/// Returns `linux_state` and `status`, with the predecessor's words where it had one.
fn words(state: State) -> (&'static str, &'static str) {
    match state {
        State::Ready => ("detected", "active"),
        State::Matched | State::Exporting => ("detected", "pending"),
        State::Attaching | State::Waiting | State::Lost | State::Detaching | State::Refused | State::Expired => {
            (state.as_str(), state.as_str())
        }
    }
}

impl Rows {
    /// Returns the rows of a volume that is not wanted.
    pub fn none(volume: VolumeId) -> Self {
        Self { volume, present: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::evidence::Evidence;
    use crate::device::facts::sample;
    use crate::reason::Code;
    use crate::volume::{By, Reason};

    fn record(state: State) -> Record {
        let intent = crate::volume::sample::intent(sample::volume());
        Record { intent, mapping: Some(sample::evidence()), state, reason: None, since: None, sealed: None }
    }

    #[test]
    fn a_served_volume_has_the_predecessors_status_and_another_one_says_its_state() {
        let shown = State::ALL.map(|state| {
            let present = rows(&record(state)).present.unwrap();
            (state.as_str(), present.linux_state, present.export_status.unwrap())
        });
        let expected = [
            ("attaching", "attaching", "attaching"),
            ("waiting", "waiting", "waiting"),
            ("matched", "detected", "pending"),
            ("exporting", "detected", "pending"),
            ("ready", "detected", "active"),
            ("lost", "lost", "lost"),
            ("detaching", "detaching", "detaching"),
            ("refused", "refused", "refused"),
            ("expired", "expired", "expired"),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn before_its_first_disk_a_volume_has_no_rows() {
        for state in State::ALL {
            let record = Record { mapping: None, ..record(state) };
            assert_eq!(rows(&record), Rows::none(record.intent.volume));
        }
    }

    fn time(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    proptest! {
        /// For every record: the rows are the volume's, they fit their columns, only a served volume is `active`, and
        /// fields that the rows do not show change nothing.
        #[test]
        fn rows_show_the_record_and_nothing_else(
            state in proptest::sample::select(State::ALL.to_vec()),
            size in any::<u64>(),
            since in proptest::option::of(-1_000_000_000..1_000_000_000_i64),
            proven_at in -1_000_000_000..1_000_000_000_i64,
            sealed in any::<bool>(),
        ) {
            let mapping = Evidence { size_bytes: size, at: time(proven_at), ..sample::evidence() };
            let record = Record { mapping: Some(mapping), since: since.map(time), ..record(state) };
            let shown = rows(&record);
            prop_assert_eq!(shown.volume, record.intent.volume);
            let present = shown.present.clone().unwrap();
            prop_assert!(present.size_bytes >= 0);
            if let Ok(size) = i64::try_from(size) {
                prop_assert_eq!(present.size_bytes, size);
            }
            prop_assert_eq!(present.mode, Mode::Here);
            let status = present.export_status.unwrap();
            prop_assert_eq!(status == "active", state == State::Ready);
            prop_assert!(present.linux_state.len() <= 32 && status.len() <= 191, "the columns' width");
            prop_assert!(present.at >= time(proven_at) && since.is_none_or(|since| present.at >= time(since)));
            let reason = Some(Reason::new(Code::StoreFailed, "why"));
            let sealed = sealed.then_some(By::Withdrawal);
            prop_assert_eq!(rows(&Record { reason, sealed, ..record }), shown);
        }
    }
}

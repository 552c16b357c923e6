//! Doing beforehand, outside, what an export needs before there is a disk, so that little is left to do when it comes.

use std::io;

use super::Engine;
use super::input::{Input, Ticket};
use super::settle::pause;
use super::world::Preparation;
use crate::identity::VolumeId;
use crate::reason::Code;

impl Engine {
    /// Begins it, unless it is done, under way, or to be tried later. Says whether it is done.
    pub(super) fn prepare(&mut self, id: VolumeId) -> bool {
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let (failed, attempts) = match &volume.preparation {
            Preparation::Done => return true,
            Preparation::UnderWay { .. } => return false,
            Preparation::No | Preparation::Failed { .. } if volume.departure.leaving.is_closed() => return false,
            Preparation::Failed { again_at, .. } if *again_at > volume.judged => return false,
            Preparation::Failed { why, attempts, .. } => (Some(why.clone()), *attempts),
            Preparation::No => (None, 0),
        };
        if !self.tools.backend.prepares() {
            volume.preparation = Preparation::Done;
            return true;
        }
        volume.preparation = Preparation::UnderWay { again: false, failed, attempts };
        self.begin_to_prepare(id);
        false
    }

    fn begin_to_prepare(&self, id: VolumeId) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let backend = self.tools.backend.clone();
        let step = self.work(move || backend.prepare(id));
        self.outside("step.prepare", step, move |result| {
            let result = result.map_err(io::Error::from).flatten().flatten();
            Input::Prepared { ticket, result }
        });
    }

    /// Somebody has touched what was prepared, or a caller wants it tried now.
    pub(super) fn prepare_again(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        match &mut volume.preparation {
            _ if volume.departure.leaving.is_closed() => {}
            Preparation::UnderWay { again, .. } => *again = true,
            Preparation::Failed { again_at, .. } => {
                *again_at = volume.judged;
                self.prepare(id);
            }
            // It is as it was until it is known to be otherwise.
            Preparation::Done => self.begin_to_prepare(id),
            Preparation::No => drop(self.prepare(id)),
        }
    }

    pub(super) fn prepared(&mut self, ticket: Ticket, result: io::Result<bool>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let now = self.tools.clock.now();
        let Some(volume) = self.world.volume_mut(id) else { return };
        let before = std::mem::replace(&mut volume.preparation, Preparation::Done);
        let (again, failed, attempts) = match before {
            Preparation::UnderWay { again, failed, attempts } => (again, failed, attempts),
            _ => (false, None, 0),
        };
        match result {
            Ok(new) => {
                if volume.trouble.as_ref().is_some_and(|trouble| trouble.reason.code == Code::ExportFolder) {
                    volume.trouble = None;
                }
                if new {
                    self.changed(id);
                }
                if again {
                    self.begin_to_prepare(id);
                }
            }
            Err(error) => {
                let (why, attempts) = (error.to_string(), attempts + 1);
                // Said once: it is tried again and again.
                if failed.as_ref() != Some(&why) {
                    tracing::warn!(VOLUME_ID = %id, error = why, "the export cannot be prepared");
                }
                let again_at = if again { volume.judged } else { now + pause(attempts) };
                volume.preparation = Preparation::Failed { why, kind: error.kind(), attempts, again_at };
            }
        }
        self.settle(id);
    }
}

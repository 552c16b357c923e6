//! Reading everything and putting right what differs: the one routine behind start, loss, reload and repair.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::Engine;
use super::input::{Done, Input};
use super::tools::AllDisks;
use super::waiting::Round;
use crate::device::monitor;
use crate::device::table::{Heard, Reading};
use crate::identity::VolumeId;
use crate::reason::StoryStep;
use crate::volume::User;

/// How long until the list of disks is read again after that failed.
const LIST_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Volumes settled in one turn when many wait.
const AT_ONCE: usize = 64;

impl Engine {
    /// Reads and compares everything. `done` is told when all of it was.
    pub(super) fn resync(&mut self, reason: &'static str, by: Option<User>, done: Done) {
        if let Some(by) = by {
            tracing::info!(EVENT = StoryStep::Resync.name(), UID = by.0, "a resync was asked for by {by}");
        }
        let (exports_done, exports) = oneshot::channel();
        let (claims_done, claims) = oneshot::channel();
        let (disks_done, disks) = oneshot::channel();
        self.list_exports(Some(exports_done));
        self.restore_claims(Some(claims_done));
        self.ask_for_host_disks();
        self.world.try_again(self.tools.clock.now());
        self.tools.truth.tidy();
        self.scan(reason, Some(disks_done));
        let all = async move {
            let _ = exports.await;
            let _ = claims.await;
            let _ = done.send(disks.await.unwrap_or(Err("it failed by a defect of attachd: ask again".to_owned())));
        };
        self.tools.outside.start(all.boxed());
    }

    /// Reads all disks outside; they come back as [`Input::Scanned`].
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.next_reading();
        let round = self.waiting.begin(done);
        self.outside("step.scan", self.tools.disks.read_all(), move |all| {
            let all = all.unwrap_or_else(|died| Err(died.into()));
            Input::Scanned { reading, all, reason, round }
        });
    }

    pub(super) fn scanned(
        &mut self,
        reading: Reading,
        all: std::io::Result<AllDisks>,
        reason: &'static str,
        round: Round,
    ) {
        match all {
            Ok(all) => {
                let disks = all.iter().filter(|(_, found)| found.is_here()).count();
                tracing::info!(reason, disks, "read all disks");
                for (devnum, found) in &all {
                    self.read_or_not(*devnum, found, &[Heard::Look]);
                }
                let at_work = || self.tools.disks.udevd_is_at_work();
                self.world.ear.look_for_missed(at_work);
                let ear = &self.world.ear;
                self.world.table.replace(all, reading, |devnum| ear.is_held_up_at(devnum));
                self.unmark_unwanted();
                self.world.resyncs.count += 1;
                self.world.resyncs.last_reason = reason;
                self.world.resyncs.last_at = Some(self.tools.clock.wall());
                let ids = self.world.ids();
                self.settle_some(ids, Some(round));
            }
            Err(error) => {
                tracing::error!(%error, reason, "cannot read the list of disks; trying again shortly");
                self.waiting.end(round, &Err(error.to_string()));
                // What was lost is still lost: until this succeeds there is a timer.
                self.later(LIST_AGAIN, monitor::Notice::Lost("the list of disks could not be read").into());
            }
        }
    }

    /// Gives back the nodes of disks that were withdrawn and, for a crash in between, never un-marked.
    pub(super) fn unmark_unwanted(&mut self) {
        let serials: BTreeSet<_> = self.world.table.all().filter_map(|disk| self.marked_in_vain(disk)).collect();
        for serial in serials {
            self.unmark(serial);
        }
    }

    /// Settles the first of these, and the rest in turn with other inputs: ten thousand volumes keep nobody waiting. Says
    /// that the round has ended after the last.
    pub(super) fn settle_some(&mut self, mut ids: Vec<VolumeId>, round: Option<Round>) {
        let rest = ids.split_off(ids.len().min(AT_ONCE));
        for id in ids {
            self.settle(id);
        }
        if !rest.is_empty() {
            return self.afterwards(Input::Settle { ids: rest, round });
        }
        if let Some(round) = round {
            self.waiting.end(round, &Ok(()));
        }
    }
}

//! The steps that run outside. Each starts here with what it needs, and always comes back as an input. This file does
//! not know the engine, or the engine's state.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::admissions::{NotAdmitted, described};
use super::answers::{Clients, Rejection};
use super::asking::{self, Question};
use super::departure::Removed;
use super::errands::{Asked, unless_died};
use super::input::Input;
use super::leaving::Outcome;
use super::outside;
use super::telling::{self, FileChange, NotTold};
use super::tools::{self, Died, Tools, answered, write};
use super::volume::Ticket;
use super::waiting::Round;
use crate::device::DevNum;
use crate::device::evidence::Evidence;
use crate::device::facts::LinkTarget;
use crate::device::found::Found;
use crate::device::table::Reading;
use crate::export::probe::ProbeError;
use crate::helper_client::HelperError;
use crate::identity::{Serial, VolumeId};
use crate::reason::{Case, StoryStep};
use crate::store::{Change, News, StoreError};
use crate::volume::{Entry, Intent, Reason};

/// Starts the steps.
pub(super) struct Steps {
    pub(super) tools: Tools,
    /// The sender for the inputs.
    back: mpsc::Sender<Input>,
}

impl Steps {
    pub(super) fn new(tools: Tools, back: mpsc::Sender<Input>) -> Self {
        Self { tools, back }
    }

    /// Starts a step outside. `back` makes the input of its result, and owns what must be answered in any case.
    fn outside<T: Send + 'static>(
        &self,
        name: &'static str,
        step: impl Future<Output = T> + Send + 'static,
        back: impl FnOnce(Result<T, Died>) -> Input + Send + 'static,
    ) {
        self.tools.outside.start(outside::run(name, step, back, self.back.clone()).boxed());
    }

    /// Runs work that may block, for a step.
    pub(super) fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, std::io::Result<T>> {
        tools::work(&*self.tools.outside, work)
    }

    /// Sends an input after this time.
    pub(super) fn later(&self, wait: Duration, input: Input) {
        let (back, pause) = (self.back.clone(), self.tools.outside.pause(wait));
        let step = async move {
            pause.await;
            let _ = back.send(input).await;
        };
        self.tools.outside.start(step.boxed());
    }

    /// Sends an input behind those that wait already.
    pub(super) fn afterwards(&self, input: Input) {
        let back = self.back.clone();
        self.tools.outside.start(async move { drop(back.send(input).await) }.boxed());
    }

    /// Reads one disk.
    pub(super) fn read(&self, devnum: DevNum, reading: Reading) {
        let (step, disks) = (self.tools.disks.read(devnum), Arc::clone(&self.tools.disks));
        self.outside("step.look", step, move |found| {
            // It is unknown what the disk is, and also whether it is gone.
            let found = found.unwrap_or_else(|died| disks.read_unanswered(devnum, &died.to_string()));
            Input::Looked { devnum, reading, found }
        });
    }

    /// Reads all disks.
    pub(super) fn read_all(&self, reading: Reading, reason: &'static str, round: Round) {
        self.outside("step.scan", self.tools.disks.read_all(), move |all| {
            let all = all.unwrap_or_else(|died| Err(died.into()));
            Input::Scanned { reading, all, reason, round }
        });
    }

    /// Reads the disks of an intent that is not accepted yet.
    pub(super) fn examine(&self, volume: VolumeId, present: Vec<DevNum>) {
        let disks = Arc::clone(&self.tools.disks);
        let step = async move {
            let mut read = Vec::new();
            for devnum in present {
                // A disk that does not answer in time names no use. Evidence reads it again before anything is
                // published.
                read.extend(disks.read(devnum).await.here());
            }
            read
        };
        self.outside("step.examine", step, move |disks| Input::Examined { volume, disks });
    }

    /// Lists the folders of exports. Exports of volumes that are not in `known` are strays.
    pub(super) fn list_exports(&self, known: BTreeSet<VolumeId>, round: Round) {
        let backend = self.tools.backend.clone();
        let step = self.work(move || backend.list(&known));
        self.outside("step.exports", step, move |result| {
            let contents = result.map_err(io::Error::from).flatten().flatten();
            Input::Exports { contents, round }
        });
    }

    /// Restores the claims: `wanted` volumes must have one. Claims of volumes in `under_way` are being added or
    /// removed, and are left as they are.
    pub(super) fn restore_claims(&self, wanted: Vec<VolumeId>, under_way: Vec<VolumeId>, round: Round) {
        let step = self.tools.claims.restore(wanted, under_way);
        self.outside("step.claims", step, move |result| {
            let result = result.map_err(io::Error::from).flatten();
            Input::Claims { result, round }
        });
    }

    /// Asks udev to handle the disk of this serial again.
    pub(super) fn retrigger(&self, serial: Serial, asked: Asked) {
        let step = self.tools.helper.retrigger(serial);
        self.outside("step.retrigger", step, move |answer| Input::Helper { asked, answer: unless_died(answer) });
    }

    /// Asks the helper to record the disks on which this host runs. Until then, mounted disks and swap are refused
    /// anyway.
    pub(super) fn host_disks(&self) {
        self.outside("step.host-disks", self.tools.helper.host_disks(), |answer| Input::Helper {
            asked: Asked::HostDisks,
            answer: unless_died(answer),
        });
    }

    /// Prepares an export.
    pub(super) fn prepare(&self, ticket: Ticket) {
        let backend = self.tools.backend.clone();
        let step = self.work(move || backend.prepare(ticket.volume));
        self.outside("step.prepare", step, move |result| {
            let result = result.map_err(io::Error::from).flatten().flatten();
            Input::Prepared { ticket, result }
        });
    }

    /// Notifies the server of all changes up to this one.
    pub(super) fn tell(&self, last: Option<FileChange>) {
        let backend = self.tools.backend.clone();
        let check = self.work(move || backend.check());
        let step = telling::tell(check, self.tools.helper.clone());
        self.outside("step.tell", step, move |result| {
            let result = result.unwrap_or_else(|died| Err(NotTold::Helper(HelperError::Died(died.to_string()))));
            Input::Told { last, result }
        });
    }

    /// Checks whether the server answers in this life of it.
    pub(super) fn greet(&self, life: u64) {
        let step = self.tools.server.greet();
        self.outside("step.greet", step, move |greeted| {
            let greeted = greeted.unwrap_or_else(|died| Err((ProbeError::Died(died.to_string()), String::new())));
            Input::Greeted { life, greeted }
        });
    }

    /// Makes a mapping durable.
    pub(super) fn record(&self, ticket: Ticket, evidence: Evidence) {
        let begun = self.tools.truth.begin(vec![Change::Map(ticket.volume, evidence.clone())]);
        self.outside("step.record", answered(begun), move |written| {
            let died = |died: Died| Reason::of_case(Case::WriteBrokeOff, died.to_string());
            let result = written.map_err(died).and_then(|written| written.map_err(|error| error.reason()));
            Input::Recorded { ticket, evidence, result }
        });
    }

    /// Asks the helper whether a process has the disk open exclusively. The answer is about one disk at one moment.
    /// It is used for the export that is made in the same turn, or not at all.
    pub(super) fn try_open(&self, ticket: Ticket, evidence: Evidence) {
        let step = self.tools.helper.exclusive(evidence.devnum, evidence.serial);
        self.outside("step.exclusive", step, move |answer| Input::Tried {
            ticket,
            evidence,
            answer: unless_died(answer),
        });
    }

    /// Makes a handshake for an export, as a client does.
    pub(super) fn probe(&self, ticket: Ticket, epoch: u64, evidence: Evidence) {
        let id = ticket.volume;
        let answer = self.tools.server.ask(id.export_name());
        let (disks, outside) = (Arc::clone(&self.tools.disks), Arc::clone(&self.tools.outside));
        let proven = evidence.clone();
        let step = async move {
            let (evidence, name) = (proven, id.export_name());
            let (mut result, goodbye) = match answer.await {
                Ok((served, goodbye)) => (Ok(served), Some(goodbye)),
                Err(error) => (Err(error), None),
            };
            let there = |target| matches!(target, LinkTarget::Device(devnum, _) if devnum == evidence.devnum);
            if result.is_ok() {
                let still = disks.still(evidence.devnum, evidence.diskseq);
                match still_leads(&still, disks.resolve(&evidence.link), there) {
                    Found::Here(()) => {}
                    Found::Gone => result = Err(ProbeError::Exchanged(name)),
                    Found::Unknown(why) => result = Err(ProbeError::Unread(name, why)),
                }
            }
            if let Some(goodbye) = goodbye {
                // The engine goes first, because closing the connection wakes the server's threads.
                let close = async move {
                    tokio::task::yield_now().await;
                    drop(goodbye);
                };
                outside.start(close.boxed());
            }
            result
        };
        self.outside("step.probe", step, move |result| {
            let result = result.unwrap_or_else(|died| Err(ProbeError::Died(died.to_string())));
            Input::Probed { ticket, epoch, evidence, result }
        });
    }

    /// Asks who is connected. `epoch` is the volume's last revocation.
    pub(super) fn clients(&self, ticket: Ticket, epoch: u64, questions: Vec<Question>) {
        let (helper, server) = (Arc::clone(&self.tools.helper), Arc::clone(&self.tools.server));
        let step = async move { asking::ask(&*helper, &*server, &questions).await };
        self.outside("step.clients", step, move |found| {
            let unknown = |died: Died| Clients::Unknown { why: died.to_string(), candidates: Vec::new() };
            Input::Clients { ticket, epoch, clients: found.unwrap_or_else(unknown) }
        });
    }

    /// Makes the changes of a volume's withdrawal durable.
    pub(super) fn leave(&self, ticket: Ticket, changes: Vec<Change>) {
        let truth = Arc::clone(&self.tools.truth);
        self.outside("step.leave", async move { write(&*truth, changes).await }, move |written| {
            let outcome = match written {
                Ok(Ok(())) => Outcome::Written,
                Ok(Err(error)) => Outcome::Failed(Rejection::Store(error)),
                Err(died) => Outcome::Failed(Rejection::NotDurable(died.to_string())),
            };
            Input::Leaving { ticket, outcome }
        });
    }

    /// Removes the preparation and the claim of a withdrawn volume.
    pub(super) fn unclaim(&self, ticket: Ticket) {
        let id = ticket.volume;
        let (claims, backend) = (Arc::clone(&self.tools.claims), Arc::clone(&self.tools.backend));
        let outside = Arc::clone(&self.tools.outside);
        let forget = move || backend.forget(id);
        let prepared = self.tools.backend.prepares();
        let step = async move {
            // A link is removed at once.
            let forgotten = if prepared { tools::work(&*outside, forget).await.flatten() } else { forget() };
            Removed { prepared: forgotten, claim: claims.remove(id.serial()).await }
        };
        self.outside("step.unclaim", step, move |removed| {
            let died = |died: Died| Removed { prepared: Err(died.clone().into()), claim: Err(died.into()) };
            Input::Unclaimed { ticket, removed: removed.unwrap_or_else(died) }
        });
    }

    /// Makes an intent durable: the row, with `also` in the same transaction, then the claim with its folder synced.
    pub(super) fn admit(&self, intent: &Intent, also: &[Change]) {
        let volume = intent.volume;
        let (truth, claims) = (Arc::clone(&self.tools.truth), Arc::clone(&self.tools.claims));
        let entry = Entry { at: intent.created_at, event: StoryStep::Intent.into(), detail: described(intent) };
        let mut row = vec![Change::Intend(intent.clone()), Change::News(volume, News::Note(entry))];
        row.extend_from_slice(also);
        let step = async move {
            write(&*truth, row).await.map_err(|error| NotAdmitted::Refused(Rejection::Store(error)))?;
            claims.add(volume).await.map_err(|error| NotAdmitted::unclaimed(&error))
        };
        self.outside("step.admit", step, move |result| {
            // The row may have been recorded.
            let result = result.unwrap_or_else(|died| Err(NotAdmitted::unclaimed(&died)));
            Input::Admitted { volume, result }
        });
    }

    /// Deletes the row of an intent that has no claim, because such an intent does not count.
    pub(super) fn take_back(&self, volume: VolumeId, why: String) {
        let (truth, claims) = (Arc::clone(&self.tools.truth), Arc::clone(&self.tools.claims));
        let step = async move {
            let _ = claims.remove(volume.serial()).await;
            write(&*truth, vec![Change::Withdraw(volume)]).await.map_err(|error| error.to_string())
        };
        self.outside("step.take-back", step, move |undone| {
            let failed = undone.map_err(|died| died.to_string()).and_then(|undone| undone).err();
            let refused = |rest: &str| Rejection::NotClaimed(format!("the claim could not be written: {why}{rest}"));
            let result = match failed {
                None => NotAdmitted::Refused(refused("")),
                Some(error) => {
                    let rest =
                        format!(", and the intent is still to be taken back ({error}; it is tried again by itself)");
                    NotAdmitted::Left(refused(&rest))
                }
            };
            Input::Admitted { volume, result: Err(result) }
        });
    }

    /// Deletes the remaining row of a refused intent. `attempts` is the number of attempts.
    pub(super) fn delete_leftover(&self, volume: VolumeId, attempts: u32) {
        let truth = Arc::clone(&self.tools.truth);
        let step = async move { write(&*truth, vec![Change::Withdraw(volume)]).await };
        self.outside("step.take-back", step, move |result| {
            let result = result.unwrap_or(Err(StoreError::Closed));
            Input::TakenBack { volume, attempts, result }
        });
    }
}

/// Returns whether the disk is still the same, and its link leads to it.
pub(super) fn still_leads(
    still: &Found<()>,
    target: io::Result<LinkTarget>,
    leads: impl Fn(LinkTarget) -> bool,
) -> Found<()> {
    match (still, target) {
        (Found::Gone, _) => Found::Gone,
        (Found::Unknown(why), _) => Found::Unknown(why.clone()),
        (Found::Here(()), Err(error)) => Found::Unknown(format!("its link: {error}")),
        (Found::Here(()), Ok(target)) => {
            if leads(target) {
                Found::Here(())
            } else {
                Found::Gone
            }
        }
    }
}

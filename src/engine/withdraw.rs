//! Taking a volume out of service, for a while or for good: what [`super::leaving`] decides is done here.
//!
//! [`Engine::leave`] takes a caller's wish, [`Engine::go_on`] what has come of the last step; who is connected is found
//! out in [`super::asking`]. How far a volume is, and who waits for the answer, is in its [`Departure`] and nowhere else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::input::{Clients, Input, Rejection, Reply, Ticket};
use super::leaving::{self, Act, Call, From, Leaving, Next, Outcome, Seal, Write};
use super::outside::Died;
use super::{Engine, asking, tools};
use crate::clock;
use crate::helper_client::Holders;
use crate::identity::VolumeId;
use crate::reason::{Code, StoryStep};
use crate::store::{Change, News};
use crate::volume::{By, Entry, Reason, State, User};

/// First and longest wait between two looks whether a lingering volume's clients are gone: nothing tells that by itself.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A volume's way out of service.
#[derive(Default)]
pub(super) struct Departure {
    /// How far it is.
    pub(super) leaving: Leaving,
    /// By whose wish, if that is known: it may have been before the daemon's start.
    user: Option<User>,
    /// Who waits for the answer.
    reply: Option<Reply<Holders>>,
    /// When its clients are to be looked at again.
    look_at: Option<Instant>,
    /// The step that is on record as soon as what is being written is.
    entry: Option<Entry>,
    /// Its claim went meanwhile, or was not looked for, which is nobody's concern as long as the volume goes itself.
    pub(super) claim_unsure: bool,
    /// A section came meanwhile: a thread that prepared the export was later than the one that removed what was prepared.
    pub(super) section_came: bool,
}

/// What has become of the rest of a volume whose rows are gone.
pub(crate) struct Removed {
    /// What was prepared for its export.
    pub(super) prepared: std::io::Result<()>,
    pub(super) claim: std::io::Result<()>,
}

/// Who wants something of a volume, and waits for the answer.
pub(crate) struct Caller {
    pub(super) user: User,
    pub(super) reply: Reply<Holders>,
}

impl Departure {
    /// As the store remembers it.
    pub(super) fn remembered(sealed: Option<By>) -> Self {
        Self { leaving: leaving::remembered(sealed), ..Self::default() }
    }

    /// By whose wish its export is taken away, if that is known.
    pub(super) fn user(&self) -> Option<User> {
        self.user.filter(|_| self.leaving.is_closed())
    }

    /// When the clock is to be looked at.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at.filter(|_| matches!(self.leaving, Leaving::Lingering { asking: false, .. }))
    }

    /// Why its export is not there.
    pub(super) fn reason(&self) -> Reason {
        match self.leaving.operation() {
            Some(operation) => {
                Reason::new(Code::Sealed, format!("its export was taken away for the operation {operation}"))
            }
            None => Reason::new(Code::BeingWithdrawn, "it is being withdrawn: its export was taken away"),
        }
    }

    /// The same when clients are connected, and it was withdrawn by force.
    fn insisted(&self, clients: &Holders, server_unit: &str) -> Reason {
        let by = self.user.map(|user| format!(" by {user}")).unwrap_or_default();
        let message = format!("withdrawn by force{by} while NBD clients are connected: {clients}");
        Reason::about(Code::ClientsConnected, server_unit, message)
    }

    /// The step that is told when that is written, and its particulars.
    fn told(&self, write: &Write) -> Option<(StoryStep, String)> {
        let by = self.user.map(|user| format!(" by {user}")).unwrap_or_default();
        let (event, who, clients) = match (write, &self.leaving) {
            (Write::Seal(operation), Leaving::Sealed(_, Seal::Recording { clients })) => {
                (StoryStep::Sealed, format!("for the operation {operation}{by}"), Some(clients))
            }
            (Write::Unseal(operation), _) => (StoryStep::Unsealed, format!("for the operation {operation}{by}"), None),
            (Write::Rows, Leaving::Going { from, clients }) => {
                let who = match from {
                    From::Lingering { .. } => format!("as asked for before, by force{by}"),
                    From::Withdrawal { force: true } => format!("by force{by}"),
                    From::Withdrawal { force: false } => by.trim_start().to_owned(),
                    From::Operation(operation) => format!("for the operation {operation}{by}"),
                };
                (StoryStep::Withdrawn, who, Some(clients))
            }
            _ => return None,
        };
        let connected = clients.filter(|clients| !clients.clients.is_empty());
        Some((event, connected.map_or(who.clone(), |clients| format!("{who}; connected: {clients}"))))
    }

    /// For what its export was taken away.
    pub(super) fn purpose(&self) -> String {
        let by = |user: Option<User>| user.map(|user| format!(" asked for by {user}")).unwrap_or_default();
        match (self.leaving.operation(), self.user) {
            (Some(operation), user) => format!("for the operation {operation}{}", by(user)),
            (None, None) => String::new(),
            (None, user) => format!("for the withdrawal{}", by(user)),
        }
    }
}

impl Engine {
    /// A caller wants a volume taken out of service, or back.
    pub(super) fn leave(&mut self, id: VolumeId, call: Call, caller: Caller) {
        let Some(volume) = self.world.volume_mut(id) else {
            return drop(caller.reply.send(Err(Rejection::Unknown(id))));
        };
        match leaving::called(id, &volume.departure.leaving, call) {
            Err(answer) => drop(caller.reply.send(answer)),
            Ok((leaving, act)) => {
                let departure = &mut volume.departure;
                departure.reply = Some(caller.reply);
                // Who asks once more for what lingers did not ask first.
                if !matches!(leaving, Leaving::Lingering { .. }) {
                    departure.user = Some(caller.user);
                }
                self.follow(id, Next { leaving, act, answer: None });
            }
        }
    }

    /// Something has come of the last step.
    pub(super) fn go_on(&mut self, id: VolumeId, outcome: Outcome) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let departure = &mut volume.departure;
        if matches!(outcome, Outcome::Failed(_)) {
            departure.entry = None;
        }
        let leaving = std::mem::take(&mut departure.leaving);
        self.follow(id, leaving::next(id, leaving, outcome));
    }

    /// The same, when it comes from outside: for this life of the volume.
    pub(super) fn gone_on(&mut self, ticket: Ticket, outcome: Outcome) {
        if self.world.holds(ticket) {
            self.go_on(ticket.volume, outcome);
        }
    }

    pub(super) fn clients_known(&mut self, ticket: Ticket, epoch: u64, clients: Clients) {
        let Some(volume) = self.world.volume(ticket.volume) else { return };
        let current = !volume.published && volume.epoch == epoch;
        self.gone_on(ticket, Outcome::Clients { clients, current });
    }

    fn follow(&mut self, id: VolumeId, mut next: Next) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let published = volume.published;
        volume.departure.leaving.clone_from(&next.leaving);
        if published && next.closes() && !self.revoke(id, None) {
            next = next.stuck(id);
            if let Some(volume) = self.world.volume_mut(id) {
                volume.departure.leaving.clone_from(&next.leaving);
            }
        }
        let departure = self.world.volume_mut(id).map(|volume| &mut volume.departure);
        let stays = departure.filter(|departure| !departure.leaving.may_go());
        if stays.is_some_and(|departure| std::mem::take(&mut departure.claim_unsure)) {
            self.restore_claims(None);
        }
        let reply = match (&next.answer, self.world.volume_mut(id)) {
            (Some(_), Some(volume)) => volume.departure.reply.take(),
            _ => None,
        };
        // Who hears the answer sees where the volume stands now.
        self.act(id, next.act);
        if let (Some(reply), Some(answer)) = (reply, next.answer) {
            let _ = reply.send(answer);
        }
    }

    fn act(&mut self, id: VolumeId, act: Act) {
        match act {
            Act::Rest => self.wind(id),
            Act::Ask => self.ask_for_clients(id),
            Act::Write(write) => self.put_on_record(id, &write),
            Act::TellSealed => {
                self.tell_recorded(id);
                let reason = self.world.volume(id).map(|volume| volume.departure.reason());
                self.stand(id, State::Detaching, reason);
                self.rest(id);
            }
            Act::TellLingering(clients) => {
                let unit = self.tools.server_unit;
                let reason = self.world.volume(id).map(|volume| volume.departure.insisted(&clients, unit));
                self.stand(id, State::Detaching, reason);
                self.rest(id);
                self.look_later(id);
            }
            Act::LookLater => self.look_later(id),
            Act::GiveBack => {
                self.tell_recorded(id);
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.departure = Departure { reply: volume.departure.reply.take(), ..Departure::default() };
                }
                self.stand_staying(id);
                self.settle(id);
            }
            Act::Unclaim => self.unclaim(id),
            Act::Forget => self.forget(id),
        }
    }

    fn ask_for_clients(&mut self, id: VolumeId) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume(id) else { return };
        let (mapping, boot) = (volume.mapping.as_ref(), &self.world.ground.boot_id);
        let questions = asking::questions(id.serial(), mapping, boot, &self.world.table);
        let epoch = volume.epoch;
        let (helper, server) = (Arc::clone(&self.tools.helper), Arc::clone(&self.tools.server));
        let step = async move { asking::ask(&*helper, &*server, &questions).await };
        self.outside("step.clients", step, move |found| {
            let unknown = |died: Died| Clients::Unknown { why: died.to_string(), candidates: Vec::new() };
            Input::Clients { ticket, epoch, clients: found.unwrap_or_else(unknown) }
        });
    }

    /// Writes it, with where the volume stands and what is told of it, in one transaction: whatever is killed, they agree.
    fn put_on_record(&mut self, id: VolumeId, write: &Write) {
        let unit = self.tools.server_unit;
        let at = clock::whole(self.tools.clock.wall());
        let (Some(ticket), Some(volume)) = (self.world.ticket(id), self.world.volume_mut(id)) else { return };
        let entry = volume.departure.told(write).map(|(event, detail)| Entry { at, event: event.into(), detail });
        volume.departure.entry.clone_from(&entry);
        let departure = &volume.departure;
        let (sealed, state, reason) = match write {
            Write::Seal(operation) => (Some(By::Operation(*operation)), State::Detaching, Some(departure.reason())),
            Write::Lingers(clients) => {
                (Some(By::Withdrawal), State::Detaching, Some(departure.insisted(clients, unit)))
            }
            Write::Unseal(_) | Write::Rows => (None, volume.state_when_given_back(), None),
        };
        let changes = match write {
            Write::Rows => vec![Change::Withdraw(id)],
            Write::Seal(_) | Write::Lingers(_) | Write::Unseal(_) => {
                vec![Change::News(id, News::Stand(state, reason, at)), Change::Seal(id, sealed)]
            }
        };
        let note = entry.map(|entry| Change::News(id, News::Note(entry)));
        let changes = note.into_iter().chain(changes).collect();
        // What has led here is told before.
        self.post(id);
        let truth = Arc::clone(&self.tools.truth);
        self.outside("step.leave", async move { tools::write(&*truth, changes).await }, move |written| {
            let outcome = match written {
                Ok(Ok(())) => Outcome::Written,
                Ok(Err(error)) => Outcome::Failed(Rejection::Store(error)),
                Err(died) => Outcome::Failed(Rejection::NotDurable(died.to_string())),
            };
            Input::Leaving { ticket, outcome }
        });
    }

    fn look_later(&mut self, id: VolumeId) {
        let now = self.tools.clock.now();
        let Some(volume) = self.world.volume_mut(id) else { return };
        if let Leaving::Lingering { looks, .. } = volume.departure.leaving {
            let wait = (LOOK_AGAIN.0 * (1 << looks.saturating_sub(1).min(5))).min(LOOK_AGAIN.1);
            volume.departure.look_at = Some(now + wait);
        }
        self.wind(id);
    }

    /// The rows are gone: from here on nothing brings the volume back.
    fn unclaim(&mut self, id: VolumeId) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let (claims, backend) = (Arc::clone(&self.tools.claims), Arc::clone(&self.tools.backend));
        let outside = Arc::clone(&self.tools.outside);
        let forget = move || backend.forget(id);
        let prepared = self.tools.backend.prepares();
        // The volume stays known, and so nobody else's, until its claim is gone: a new intent for it would make one.
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

    /// The volume goes, whatever could not be removed: that is nobody's from now on, and is removed as such.
    pub(super) fn unclaimed(&mut self, ticket: Ticket, removed: &Removed) {
        let id = ticket.volume;
        let section_came = self.world.volume(id).is_some_and(|volume| volume.departure.section_came);
        self.gone_on(ticket, Outcome::Unclaimed);
        if section_came {
            self.world.exported.strangers(self.tools.clock.now());
        }
        if let Err(error) = &removed.prepared {
            tracing::error!(VOLUME_ID = %id, %error, "what was prepared for the export could not be removed; it is tried again by itself");
            self.list_exports(None);
        }
        if let Err(error) = &removed.claim {
            tracing::error!(VOLUME_ID = %id, %error, "the claim could not be removed; it is tried again by itself");
            self.restore_claims(None);
        }
    }

    fn forget(&mut self, id: VolumeId) {
        self.post(id);
        self.tell_recorded(id);
        if self.world.remove(id).is_some() && self.world.table.with_serial(id.serial()).next().is_some() {
            // The claim is gone: the node goes back to its old group.
            self.unmark(id.serial());
        }
    }

    /// What was written with the rest is told.
    fn tell_recorded(&mut self, id: VolumeId) {
        let entry = self.world.volume_mut(id).and_then(|volume| volume.departure.entry.take());
        if let Some(entry) = entry {
            self.note_recorded(id, entry);
        }
    }
}

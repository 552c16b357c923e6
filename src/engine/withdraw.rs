//! Taking a volume away, told in the order it happens.
//!
//! [`Engine::withdraw`] asks who is connected ([`super::asking`]); [`Engine::clients_known`] does what
//! [`leaving::next`] makes of the answer. Without clients the export is taken away, so that nobody new can come, and it is
//! asked again: whoever came in between is noticed, and the export is given back, which proves it anew. Meanwhile the
//! volume is `detaching`, but not on record, for it may stay. Then the rows are committed away, then the claim goes, then
//! the answer is given. With clients that are connected and `force`, the export goes and the volume stays, `detaching`,
//! until they are gone: also across a restart.
//!
//! How far it is, and who waits for the answer, is in the volume ([`Leaving`]) and nowhere else.

use std::mem;
use std::time::{Duration, Instant};

use super::input::{Clients, Input, Rejection, Ticket, Withdrawal};
use super::leaving::{self, Answer, By, Caller, Leaving, Lingering, Look, Next};
use super::outside::Died;
use super::{Engine, asking};
use crate::blocking::blocking;
use crate::clock;
use crate::helper_client::Holders;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::store::{Change, News, StoreError};
use crate::volume::{Entry, Reason, State};

/// First and longest wait between two looks whether a `detaching` volume's clients are gone: nothing tells that by itself.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Engine {
    /// A caller wants a volume withdrawn. First of all: who is connected?
    pub(super) fn withdraw(&mut self, id: VolumeId, caller: Caller) {
        let Some(volume) = self.world.volume_mut(id) else {
            return drop(caller.reply.send(Err(Rejection::Unknown(id))));
        };
        match &mut volume.leaving {
            Leaving::No => volume.leaving = Leaving::Asking(caller),
            Leaving::Lingering(lingering) if lingering.look != Look::UnderWay => lingering.caller = Some(caller),
            // Another request, or a look of our own, is at it.
            _ => return drop(caller.reply.send(Err(Rejection::Leaving(id)))),
        }
        self.ask_for_clients(id);
    }

    fn ask_for_clients(&mut self, id: VolumeId) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume(id) else { return };
        let (mapping, boot) = (volume.mapping.as_ref(), &self.world.ground.boot_id);
        let questions = asking::questions(id.serial(), mapping, boot, &self.world.table);
        let epoch = volume.epoch;
        if let Some(Leaving::Lingering(lingering)) = self.world.volume_mut(id).map(|volume| &mut volume.leaving) {
            lingering.look = Look::UnderWay;
        }
        let (helper, server) = (self.tools.helper.clone(), self.tools.server.address);
        let step = async move { asking::ask(&helper, server, &questions).await };
        self.outside("step.clients", step, move |found| {
            let unknown = |died: Died| Clients::Unknown { why: died.to_string(), candidates: Vec::new() };
            Input::Clients { ticket, epoch, clients: found.unwrap_or_else(unknown) }
        });
    }

    /// It is known who is connected, as far as it can be.
    pub(super) async fn clients_known(&mut self, ticket: Ticket, epoch: u64, clients: Clients) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let Some(volume) = self.world.volume(id) else { return };
        let next = leaving::next(Answer {
            clients: &clients,
            current: !volume.published && volume.epoch == epoch,
            lingers: volume.leaving.lingers(),
            force: volume.leaving.caller().is_some_and(|caller| caller.force),
        });
        match (next, clients) {
            (Next::SealAndAsk, _) => self.seal(id).await,
            (Next::Insist, Clients::Connected(holders)) => self.insist(id, holders),
            (Next::Go | Next::Insist, clients) => self.go(id, listed(clients)).await,
            (Next::Refuse, Clients::Unknown { why, candidates: clients }) => {
                self.stay(id, Rejection::ClientsUnknown { volume: id, why, clients }).await;
            }
            (Next::Refuse, clients) => {
                self.stay(id, Rejection::ClientsConnected { volume: id, clients: listed(clients) }).await;
            }
            // It was forced before: the same answer again.
            (Next::LookLater, clients) => self.look_again_later(id, Ok(Withdrawal { clients: listed(clients) })),
        }
    }

    /// From now on nobody new can come. Who came before is seen by asking once more.
    async fn seal(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.leaving = match mem::take(&mut volume.leaving) {
            Leaving::Asking(caller) => Leaving::Sealed(caller),
            other => other,
        };
        if volume.published && !self.revoke(id, None) {
            return self.stay(id, Rejection::ExportStuck(id)).await;
        }
        self.ask_for_clients(id);
    }

    /// Clients are connected and the caller insists: the wish is made durable, then the export goes.
    fn insist(&mut self, id: VolumeId, clients: Holders) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume_mut(id) else { return };
        let caller = match mem::take(&mut volume.leaving) {
            Leaving::Asking(caller) | Leaving::Sealed(caller) => caller,
            other => return volume.leaving = other,
        };
        let reason = Reason::about(
            Code::ClientsConnected,
            self.tools.server_unit,
            format!("withdrawn by force by {} while NBD clients are connected: {clients}", caller.by),
        );
        let changes = vec![Change::News(id, News::Stand(State::Detaching, Some(reason.clone()), clock::wall()))];
        volume.leaving = Leaving::Insisting { caller, clients, reason };
        let store = self.tools.store.clone();
        self.outside("step.detach", async move { store.write(changes).await }, move |written| Input::Detaching {
            ticket,
            result: durable(written),
        });
    }

    pub(super) async fn detaching(&mut self, ticket: Ticket, result: Result<(), Rejection>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        if let Err(rejection) = result {
            return self.stay(id, rejection).await;
        }
        let Some(volume) = self.world.volume_mut(id) else { return };
        let (caller, clients, reason) = match mem::take(&mut volume.leaving) {
            Leaving::Insisting { caller, clients, reason } => (caller, clients, reason),
            other => return volume.leaving = other,
        };
        volume.leaving = Leaving::Lingering(Lingering { by: Some(caller.by), ..Lingering::default() });
        let revoked = !volume.published || self.revoke(id, None);
        self.stand(id, State::Detaching, Some(reason));
        let _ = caller.reply.send(if revoked { Ok(Withdrawal { clients }) } else { Err(Rejection::ExportStuck(id)) });
        self.rest(id).await;
        self.look_again_later(id, Err(Rejection::Leaving(id)));
    }

    /// A leaving volume's time has come, or something happened to its disk.
    pub(super) fn go_on_leaving(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id) else { return };
        if matches!(&volume.leaving, Leaving::Lingering(lingering) if lingering.look != Look::UnderWay) {
            if volume.published {
                // An export that could not be removed: nobody new may come in while the others go.
                self.revoke(id, None);
            }
            self.ask_for_clients(id);
        }
    }

    /// Answers who asked for the same again, if somebody did, and sets the clock.
    fn look_again_later(&mut self, id: VolumeId, answer: Result<Withdrawal, Rejection>) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        if let Leaving::Lingering(lingering) = &mut volume.leaving {
            let wait = (LOOK_AGAIN.0 * (1 << lingering.looks.min(5))).min(LOOK_AGAIN.1);
            lingering.looks += 1;
            lingering.look = Look::At(Instant::now() + wait);
            lingering.caller.take().map(|caller| caller.reply.send(answer));
        }
        self.wind(id);
    }

    /// First the export, then the rows: from there on nothing brings the volume back.
    async fn go(&mut self, id: VolumeId, clients: Holders) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume_mut(id) else { return };
        let (caller, before) = match mem::take(&mut volume.leaving) {
            Leaving::Asking(caller) | Leaving::Sealed(caller) => (Some(caller), None),
            Leaving::Lingering(mut lingering) => (lingering.caller.take(), Some(lingering)),
            other => return volume.leaving = other,
        };
        let entry = Entry {
            at: clock::wall(),
            event: "withdrawn".into(),
            detail: how(caller.as_ref(), before.as_ref(), &clients),
        };
        volume.leaving = Leaving::Going { caller, clients, before };
        if volume.published && !self.revoke(id, None) {
            return self.stay(id, Rejection::ExportStuck(id)).await;
        }
        let changes = vec![Change::News(id, News::Note(entry)), Change::Withdraw(id)];
        self.post(id, Vec::new());
        let store = self.tools.store.clone();
        self.outside("step.withdraw", async move { store.write(changes).await }, move |written| Input::Withdrawn {
            ticket,
            result: durable(written),
        });
    }

    pub(super) async fn withdrawn(&mut self, ticket: Ticket, result: Result<(), Rejection>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        if let Err(rejection) = result {
            return self.stay(id, rejection).await;
        }
        let (claiming, backend) = (self.tools.claiming.clone(), self.tools.backend.clone());
        let forget = move || {
            if let Err(error) = backend.forget(id) {
                tracing::error!(VOLUME_ID = %id, %error, "what was prepared for the export could not be removed");
            }
        };
        let prepared = self.tools.backend.prepares();
        // The volume stays known, and so nobody else's, until its claim is gone: a new intent for it would make one.
        let step = async move {
            // A link is removed at once.
            if prepared {
                blocking(forget).await?;
            } else {
                forget();
            }
            claiming.remove(id.serial()).await
        };
        self.outside("step.unclaim", step, move |removed| {
            let removed = removed.map_err(std::io::Error::from).flatten();
            if let Err(error) = removed {
                tracing::error!(VOLUME_ID = %id, %error, "the claim could not be removed; a resync removes it");
            }
            Input::Unclaimed { ticket }
        });
    }

    /// It could not be done, for this reason: what was taken away is given back. A volume that was withdrawn by force stays
    /// on its way out. Who hears of it sees where the volume stands now.
    async fn stay(&mut self, id: VolumeId, why: Rejection) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        match mem::take(&mut volume.leaving) {
            Leaving::No => {}
            Leaving::Asking(caller) => drop(caller.reply.send(Err(why))),
            Leaving::Lingering(lingering) => {
                volume.leaving = Leaving::Lingering(lingering);
                self.look_again_later(id, Err(why));
            }
            Leaving::Going { caller, before: Some(lingering), .. } => {
                volume.leaving = Leaving::Lingering(Lingering { caller, ..lingering });
                self.look_again_later(id, Err(why));
            }
            Leaving::Sealed(caller)
            | Leaving::Insisting { caller, .. }
            | Leaving::Going { caller: Some(caller), before: None, .. } => {
                self.stand_staying(id);
                self.settle(id).await;
                let _ = caller.reply.send(Err(why));
            }
            Leaving::Going { caller: None, before: None, .. } => self.settle(id).await,
        }
    }

    pub(super) fn unclaimed(&mut self, ticket: Ticket) {
        if !self.world.holds(ticket) {
            return;
        }
        let id = ticket.volume;
        let detail = match self.world.volume(id).map(|volume| &volume.leaving) {
            Some(Leaving::Going { caller, clients, before }) => how(caller.as_ref(), before.as_ref(), clients),
            _ => return,
        };
        self.note(id, "withdrawn", detail);
        let serial = id.serial();
        let Some(volume) = self.world.remove(id) else { return };
        let disk = self.world.table.with_serial(serial).next().map(|device| &device.facts);
        let present = disk.is_some();
        super::story::log(id, State::Detaching, disk, &volume.notes);
        // The withdrawal itself is on record already, with its rows.
        let rest = volume.notes.into_iter().map(|note| note.entry).filter(|entry| entry.event != "withdrawn");
        self.tools.store.post(id, rest.map(News::Note).collect());
        if let Leaving::Going { caller: Some(caller), clients, .. } = volume.leaving {
            let _ = caller.reply.send(Ok(Withdrawal { clients }));
        }
        if present {
            // The claim is gone: the node goes back to its old group.
            self.unmark(serial);
        }
    }
}

/// What became of a write.
fn durable(written: Result<Result<(), StoreError>, Died>) -> Result<(), Rejection> {
    match written {
        Ok(written) => written.map_err(Rejection::Store),
        Err(died) => Err(Rejection::NotDurable(died.to_string())),
    }
}

/// The clients of an answer, for whoever wants to see them.
fn listed(clients: Clients) -> Holders {
    match clients {
        Clients::None => Holders { clients: Vec::new(), exact: true },
        Clients::Connected(holders) => holders,
        // Any of these may be connected.
        Clients::Unknown { candidates, .. } => Holders { clients: candidates, exact: false },
    }
}

/// By whom a volume was withdrawn, and who is still connected.
fn how(caller: Option<&Caller>, before: Option<&Lingering>, clients: &Holders) -> String {
    let by = |by: Option<By>| by.map(|by| format!(" by {by}")).unwrap_or_default();
    let who = match (caller, before) {
        (_, Some(lingering)) => format!("as asked for before, by force{}", by(lingering.by)),
        (Some(caller), None) if caller.force => format!("by force{}", by(Some(caller.by))),
        (caller, None) => by(caller.map(|caller| caller.by)).trim_start().to_owned(),
    };
    if clients.clients.is_empty() { who } else { format!("{who}; connected: {clients}") }
}

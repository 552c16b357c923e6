//! Taking a volume away, told in the order it happens.
//!
//! [`Engine::withdraw`] asks who is connected; [`Engine::clients_known`] refuses, or begins. Without clients the export is
//! taken away, so that nobody new can come, and it is asked again: whoever came in between is noticed, and the export is
//! given back, which proves it anew. Meanwhile the volume is `detaching`, but not on record, for it may stay. Then the
//! rows are committed away, then the claim goes, then the answer is given. With clients that are connected and `force`,
//! the export goes and the volume stays, `detaching`, until they are gone: also across a restart.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::input::{Asked, Clients, Input, Rejection, Reply, Ticket, Withdrawal};
use super::outside::Died;
use super::world::Volume;
use super::{Engine, settle};
use crate::device::DevNum;
use crate::device::closing::Closing;
use crate::export::clients;
use crate::helper_client::{HelperClient, HelperError, Holders};
use crate::identity::VolumeId;
use crate::store::{Change, StoreError};
use crate::volume::{Entry, Reason, State};

/// First and longest wait between two looks whether a `detaching` volume's clients are gone: nothing tells that by itself.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a server may take to close a disk that nobody seems to use, but that it has open: what attachd's own handshake,
/// or a client that has hung up, had open.
const CLOSING: Duration = Duration::from_millis(500);

impl Engine {
    /// A caller wants a volume withdrawn. First of all: who is connected?
    pub(super) fn withdraw(&mut self, id: VolumeId, force: bool, reply: Reply<Withdrawal>) {
        match self.world.volume(id) {
            None => drop(reply.send(Err(Rejection::Unknown(id)))),
            // Another request, or a look of our own, is at it.
            Some(volume) if volume.asking || (volume.leaving && volume.lingering.is_none()) => {
                drop(reply.send(Err(Rejection::Leaving(id))));
            }
            Some(_) => self.ask_for_clients(id, Some((force, reply)), false),
        }
    }

    /// `sealed`: the export was taken away for this very request.
    fn ask_for_clients(&mut self, id: VolumeId, request: Option<(bool, Reply<Withdrawal>)>, sealed: bool) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let offered = |volume: &&Volume| sealed || volume.published || volume.lingering.is_some();
        let offered = self.world.volume(id).filter(offered);
        let mapped =
            offered.and_then(|volume| volume.mapping.as_ref()).map(|mapping| (mapping.devnum, mapping.diskseq));
        // A disk that is gone has no clients, whoever has its number now.
        let disk = mapped.and_then(|mapped| {
            let device = self.world.table.with_serial(id.serial()).find(|device| settle::disk(device) == mapped)?;
            Some((device.facts.devnum, Path::new("/dev").join(&device.facts.name)))
        });
        if let Some(volume) = self.world.volume_mut(id) {
            volume.asking = true;
        }
        let (helper, server) = (self.tools.helper.clone(), self.tools.server.address);
        let step = async move {
            match disk {
                Some((devnum, node)) => clients_of(&helper, server, devnum, &node).await,
                None => (Clients::None, None),
            }
        };
        self.outside("step.clients", step, move |found| {
            let (clients, answer) =
                found.unwrap_or_else(|died| (Clients::Unknown(vec![format!("unknown: {died}")]), None));
            Input::Clients { ticket, clients, answer, request, sealed }
        });
    }

    /// It is known who is connected, as far as it can be.
    pub(super) async fn clients_known(
        &mut self,
        ticket: Ticket,
        clients: Clients,
        answer: Option<Result<(), HelperError>>,
        request: Option<(bool, Reply<Withdrawal>)>,
        sealed: bool,
    ) {
        if let Some(answer) = answer {
            self.helper_answered(Asked::Holders, answer).await;
        }
        let id = ticket.volume;
        let Some(volume) = self.world.volume_mut(id).filter(|volume| volume.instance == ticket.instance) else {
            if let Some((_, reply)) = request {
                let _ = reply.send(Err(Rejection::Unknown(id)));
            }
            return;
        };
        volume.asking = false;
        let lingering = volume.lingering.is_some();
        match (clients, request) {
            (Clients::None, Some(request)) if volume.published => {
                volume.leaving = true;
                if self.revoke(id, None) {
                    self.ask_for_clients(id, Some(request), true);
                } else {
                    self.stay(id, Rejection::ExportStuck(id), request.1).await;
                }
            }
            (Clients::None, request) => {
                let nobody = Holders { clients: Vec::new(), exact: true };
                self.take_away(id, nobody, request.map(|(_, reply)| reply)).await;
            }
            // It was forced before: the same answer again.
            (Clients::Connected(clients), Some((_, reply))) if lingering => {
                let _ = reply.send(Ok(Withdrawal { clients }));
                self.look_again_later(id);
            }
            (Clients::Unknown(clients), Some((_, reply))) if lingering => {
                let _ = reply.send(Ok(Withdrawal { clients: candidates(clients) }));
                self.look_again_later(id);
            }
            (Clients::Connected(_) | Clients::Unknown(_), None) => self.look_again_later(id),
            (Clients::Connected(clients), Some((false, reply))) => {
                self.refuse(id, sealed, Rejection::ClientsConnected { volume: id, clients }, reply).await;
            }
            (Clients::Unknown(clients), Some((false, reply))) => {
                self.refuse(id, sealed, Rejection::ClientsUnknown { volume: id, clients }, reply).await;
            }
            (Clients::Connected(clients), Some((true, reply))) => self.linger(ticket, clients, reply),
            // Nobody could say when they are gone.
            (Clients::Unknown(clients), Some((true, reply))) => {
                self.take_away(id, candidates(clients), Some(reply)).await;
            }
        }
    }

    async fn refuse(&mut self, id: VolumeId, sealed: bool, why: Rejection, reply: Reply<Withdrawal>) {
        if sealed {
            self.stay(id, why, reply).await;
        } else {
            let _ = reply.send(Err(why));
        }
    }

    /// It is not withdrawn after all; what was taken away is given back.
    async fn stay(&mut self, id: VolumeId, why: Rejection, reply: Reply<Withdrawal>) {
        let lingering = self.world.volume(id).and_then(|volume| volume.lingering);
        self.not_withdrawn(id, lingering, why, Some(reply)).await;
    }

    /// Clients are connected and the caller insists: the wish is made durable, then the export goes.
    fn linger(&mut self, ticket: Ticket, clients: Holders, reply: Reply<Withdrawal>) {
        let id = ticket.volume;
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.leaving = true;
        let reason = Reason::new(
            "CLIENTS_CONNECTED",
            format!("withdrawn by force while NBD clients are connected: {clients}"),
            "They keep what they have opened. To cut them: `ss -K dst <address>` as root, or restart the NBD server.",
        );
        let changes = vec![Change::Stand(id, State::Detaching, Some(reason.clone()))];
        let store = self.tools.store.clone();
        self.outside("step.detach", async move { store.write(changes).await }, move |written| {
            let result = durable(written);
            Input::Detaching { ticket, reason, clients, result, reply }
        });
    }

    pub(super) async fn detaching(
        &mut self,
        ticket: Ticket,
        reason: Reason,
        clients: Holders,
        result: Result<(), Rejection>,
        reply: Reply<Withdrawal>,
    ) {
        let id = ticket.volume;
        let Some(volume) = self.world.volume_mut(id).filter(|volume| volume.instance == ticket.instance) else {
            return;
        };
        if let Err(rejection) = result {
            return self.stay(id, rejection, reply).await;
        }
        volume.lingering = Some(0);
        let revoked = !volume.published || self.revoke(id, None);
        self.stand(id, State::Detaching, Some(reason));
        let _ = reply.send(if revoked { Ok(Withdrawal { clients }) } else { Err(Rejection::ExportStuck(id)) });
        self.rest(id).await;
        self.look_again_later(id);
    }

    /// A leaving volume's time has come, or something happened to its disk.
    pub(super) fn go_on_leaving(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id) else { return };
        if volume.lingering.is_some() && !volume.asking {
            if volume.published {
                // An export that could not be removed: nobody new may come in while the others go.
                self.revoke(id, None);
            }
            self.ask_for_clients(id, None, false);
        }
    }

    fn look_again_later(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let looks = volume.lingering.unwrap_or(0);
        volume.lingering = Some(looks + 1);
        let wait = (LOOK_AGAIN.0 * (1 << looks.min(5))).min(LOOK_AGAIN.1);
        self.world.set_wake(id, Some(Instant::now() + wait));
    }

    /// First the export, then the rows: from there on nothing brings the volume back.
    async fn take_away(&mut self, id: VolumeId, open: Holders, reply: Option<Reply<Withdrawal>>) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.leaving = true;
        let lingering = volume.lingering.take();
        if volume.published && !self.revoke(id, None) {
            return self.not_withdrawn(id, lingering, Rejection::ExportStuck(id), reply).await;
        }
        let entry = Entry { at: Timestamp::now(), event: "withdrawn".into(), detail: open.to_string() };
        let changes = vec![Change::Note(id, entry), Change::Withdraw(id)];
        self.post(id, Vec::new()).await;
        let store = self.tools.store.clone();
        self.outside("step.withdraw", async move { store.write(changes).await }, move |written| {
            let result = durable(written).map(|()| Withdrawal { clients: open });
            Input::Withdrawn { ticket, lingering, result, reply }
        });
    }

    pub(super) async fn withdrawn(
        &mut self,
        ticket: Ticket,
        lingering: Option<u32>,
        result: Result<Withdrawal, Rejection>,
        reply: Option<Reply<Withdrawal>>,
    ) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let withdrawal = match result {
            Ok(withdrawal) => withdrawal,
            Err(rejection) => return self.not_withdrawn(id, lingering, rejection, reply).await,
        };
        if let Err(error) = self.tools.backend.forget(id) {
            tracing::error!(VOLUME_ID = %id, %error, "what was prepared for the export could not be removed");
        }
        let claims = self.tools.claims.clone();
        // The volume stays known, and so nobody else's, until its claim is gone: a new intent for it would make one.
        let step = async move { tokio::task::spawn_blocking(move || claims.remove(id.serial())).await };
        self.outside("step.unclaim", step, move |removed| {
            let removed = removed.map_err(std::io::Error::from).and_then(|joined| joined?);
            if let Err(error) = removed {
                tracing::error!(VOLUME_ID = %id, %error, "the claim could not be removed; a resync removes it");
            }
            Input::Unclaimed { ticket, withdrawal, reply }
        });
    }

    /// It could not be done. A volume that was withdrawn by force stays on its way out.
    async fn not_withdrawn(
        &mut self,
        id: VolumeId,
        lingering: Option<u32>,
        why: Rejection,
        reply: Option<Reply<Withdrawal>>,
    ) {
        if let Some(volume) = self.world.volume_mut(id) {
            volume.lingering = lingering;
            volume.leaving = lingering.is_some();
        }
        if lingering.is_some() {
            self.look_again_later(id);
        } else {
            self.stand_staying(id);
            self.settle(id).await;
        }
        // Who hears of it sees where the volume stands now.
        reply.map(|reply| reply.send(Err(why)));
    }

    pub(super) async fn unclaimed(&mut self, ticket: Ticket, withdrawal: Withdrawal, reply: Option<Reply<Withdrawal>>) {
        if !self.world.holds(ticket) {
            return;
        }
        let id = ticket.volume;
        self.note(id, "withdrawn", String::new());
        let serial = id.serial();
        let notes = self.world.remove(id).map(|volume| volume.notes).unwrap_or_default();
        let disk = self.world.table.with_serial(serial).next().map(|device| &device.facts);
        let present = disk.is_some();
        super::story::log(id, State::Detaching, disk, &notes);
        // The withdrawal itself is on record already, with its rows.
        let rest = notes.into_iter().filter(|note| note.event != "withdrawn").map(|note| Change::Note(id, note));
        let _ = self.tools.store.post(rest.collect()).await;
        reply.map(|reply| reply.send(Ok(withdrawal)));
        if present {
            // The claim is gone: the node goes back to its old group.
            self.unmark(serial);
        }
    }
}

/// What became of a write.
fn durable(written: Result<Result<(), StoreError>, Died>) -> Result<(), Rejection> {
    let why = match written {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(died) => died.to_string(),
    };
    Err(Rejection::NotDurable(why))
}

/// Any of these may be connected.
fn candidates(clients: Vec<String>) -> Holders {
    Holders { clients, exact: false }
}

/// Who is connected to this device's export, and whether the helper answered if it was asked.
async fn clients_of(
    helper: &HelperClient,
    server: std::net::SocketAddr,
    devnum: DevNum,
    node: &Path,
) -> (Clients, Option<Result<(), HelperError>>) {
    // No connection to the server at all needs nobody's help to be read.
    let read = tokio::task::spawn_blocking(move || clients::connected(server)).await;
    let candidates = match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(candidates) if candidates.is_empty() => return (Clients::None, None),
        Ok(candidates) => candidates,
        Err(error) => vec![format!("unknown, the table of connections cannot be read: {error}")],
    };
    match holders(helper, devnum, node).await {
        Ok(None) => (Clients::None, Some(Ok(()))),
        // Open, but by nobody that can be seen: not nobody.
        Ok(Some(holders)) if holders.clients.is_empty() => (Clients::Unknown(candidates), Some(Ok(()))),
        Ok(Some(holders)) => (Clients::Connected(holders), Some(Ok(()))),
        Err(error) => (Clients::Unknown(candidates), Some(Err(error))),
    }
}

/// Who has this disk open. One that nobody seems to have open, and yet is open, may be just being closed.
async fn holders(helper: &HelperClient, devnum: DevNum, node: &Path) -> Result<Option<Holders>, HelperError> {
    // Before the question: what is closed after the answer was made up is not missed.
    let closing = Closing::watch(node);
    let limit = tokio::time::Instant::now() + CLOSING;
    loop {
        let last = tokio::time::Instant::now() >= limit;
        let answer = helper.holders(devnum).await;
        // Who may be another disk's client is none of this one's, should it be closed in a moment.
        if last || !matches!(&answer, Ok(Some(holders)) if !holders.exact || holders.clients.is_empty()) {
            return answer;
        }
        // Without a watch, asked once more when the time is over.
        let _ = match &closing {
            Ok(closing) => tokio::time::timeout_at(limit, closing.closed()).await,
            Err(_) => tokio::time::timeout_at(limit, std::future::pending()).await,
        };
    }
}

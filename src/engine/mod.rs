//! The only writer of the state: inputs come in on one channel, each is decided on, and the steps that follow are
//! started.
//!
//! The module has two levels. Below are the *parts*: [`looks`], [`admissions`], [`telling`], [`errands`], [`leaving`]
//! with [`departure`], [`handshakes`], [`preparation`], [`upkeep`] with [`claimed`] and [`exported`], [`udevd`],
//! [`waiting`], [`events`], and the [`volume`]s. Each part keeps its own state. It is notified of what has happened,
//! and returns what to do. No part knows the engine. [`world`] holds all parts.
//!
//! [`story`] reports what happened. [`steps`] starts slow work (reading a disk, a commit, a handshake) outside. Each
//! step comes back as another input.
//!
//! Above is the [`core::Engine`], which has one of each part, in files each of which calls only those before it.
//! [`begin`] starts what a part wants done. [`step`] takes a volume's next step. [`leave`] does what [`leaving`]
//! decides. [`settle`] advances a volume as far as possible by [`decide::decide`]. [`results`], [`exports`] and
//! [`request`] handle what comes in. [`Engine::run`], in this file, passes each [`input::Input`] to them. Quick work
//! is done at once: a link is made or removed in microseconds. Each volume has one slow step at a time, which keeps
//! its order. Different volumes run side by side. `tests/layers.rs` checks all of this.
//!
//! No turn waits for anything. Only [`Engine::run`] is asynchronous. What a turn has to write is posted to the store
//! after it.

mod admissions;
mod again;
mod answers;
mod asking;
mod begin;
mod claimed;
mod core;
pub mod decide;
mod departure;
mod errands;
mod events;
mod exported;
mod exports;
mod handshakes;
mod input;
mod leave;
mod leaving;
mod looks;
mod outside;
mod pause;
mod preparation;
mod reader;
pub mod real;
mod request;
mod rest;
mod results;
mod settle;
#[cfg(test)]
mod sim;
mod step;
mod steps;
mod story;
pub mod telling;
pub mod tools;
pub mod turns;
pub mod udevd;
mod upkeep;
mod volume;
mod waiting;
pub mod world;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use self::answers::{Accepted, Event, Rejection, SharedEvent, Withdrawal};
use self::claimed::Claimed;
pub use self::core::Engine;
use self::departure::Caller;
use self::events::Events;
pub(crate) use self::input::Input;
pub use self::input::Inputs;
use self::input::Request;
use self::leaving::Call;
pub use self::reader::Reader;
use self::steps::Steps;
use self::story::Story;
pub use self::tools::Tools;
use self::turns::Turns;
use self::volume::Volume;
use self::waiting::Waiting;
use self::world::World;
use crate::claims::Restored;
use crate::config::Limits;
use crate::device::event::{DiskEvent, Origin};
use crate::device::evidence::Ground;
use crate::device::found::Found;
use crate::device::host_changes::UseChanged;
use crate::device::table::Heard;
use crate::device::{DevNum, monitor};
use crate::export::server::Server;
use crate::helper_client::Holders;
use crate::identity::{OperationId, VolumeId};
use crate::store::{Change, StoreError};
use crate::volume::{By, Intent, Record, User};

/// The handle of the engine.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    /// Weak, because the stream ends with the engine.
    events: broadcast::WeakSender<SharedEvent>,
    turns: Turns,
}

/// The error of a call while the daemon stops.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("attachd is stopping")]
pub struct Stopping;

impl Handle {
    /// Reads the world.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&World) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        let look = Box::new(move |world: &World| drop(reply.send(look(world))));
        self.ask(Request::Read(look)).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Accepts an intent. It is durable when this returns success.
    pub async fn intend(&self, intent: Intent) -> Result<Result<Accepted, Rejection>, Stopping> {
        self.intend_with(intent, Vec::new()).await
    }

    /// The same. `also` is written in the same transaction if the intent is [`Accepted::New`], and else not.
    pub async fn intend_with(
        &self,
        intent: Intent,
        also: Vec<Change>,
    ) -> Result<Result<Accepted, Rejection>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Intend { intent, also, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Withdraws an intent in any state. With `force` also while clients are connected.
    pub async fn withdraw(
        &self,
        volume: VolumeId,
        force: bool,
        user: User,
    ) -> Result<Result<Withdrawal, Rejection>, Stopping> {
        let left = self.leave(volume, Call::Seal { by: By::Withdrawal, force }, user).await?;
        Ok(left.map(|clients| Withdrawal { clients }))
    }

    /// Seals a volume for an operation: revokes its export. The seal is recorded when this returns success, with the
    /// clients that are still connected. The export stays revoked until that operation unseals or releases the
    /// volume. With `force` also while clients are connected.
    pub async fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        user: User,
    ) -> Result<Result<Holders, Rejection>, Stopping> {
        self.leave(volume, Call::Seal { by: By::Operation(operation), force }, user).await
    }

    /// Gives back the export that the operation has revoked.
    pub async fn unseal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> Result<Result<(), Rejection>, Stopping> {
        Ok(self.leave(volume, Call::Unseal(operation), user).await?.map(drop))
    }

    /// Withdraws a volume that the operation has sealed. With `force` also while clients are connected; then it goes
    /// when they are gone.
    pub async fn release(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        user: User,
    ) -> Result<Result<Holders, Rejection>, Stopping> {
        self.leave(volume, Call::Release { operation, force }, user).await
    }

    async fn leave(&self, volume: VolumeId, call: Call, user: User) -> Result<Result<Holders, Rejection>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Leave(volume, call, Caller { user, reply })).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Reads everything again. Returns when every volume has been compared with it, or why that failed. `by` is who
    /// asks for it, if it is not attachd itself.
    pub async fn resync(&self, reason: &'static str, by: Option<User>) -> Result<Result<(), String>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Resync(reason, by, reply)).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Uses new settings: the id of this host's own VM for intents that name none, and the limits of intents.
    pub async fn take_over(&self, vm_id: String, limits: Limits) -> Result<(), Stopping> {
        let (done, answer) = oneshot::channel();
        self.ask(Request::TakeOver { vm_id, limits, done }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Checks whether the server answers, and waits for the result. There is no check if the last one is recent or a
    /// check is costly.
    pub async fn ask_server(&self) -> Result<(), Stopping> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::AskServer(reply)).await?;
        // A dropped answer is enough: the caller reads what the engine knows.
        let _ = answer.await;
        Ok(())
    }

    /// Reports that a client would not have been served. These volumes are proven anew. `server`: the server may be
    /// the cause.
    pub async fn doubt(&self, volumes: Vec<VolumeId>, server: bool) -> Result<(), Stopping> {
        self.ask(Request::Doubt { volumes, server }).await
    }

    /// Returns how long the engine's turns have taken.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Subscribes to events from now on.
    pub fn events(&self) -> Result<broadcast::Receiver<SharedEvent>, Stopping> {
        self.events.upgrade().map(|events| events.subscribe()).ok_or(Stopping)
    }

    /// Ends the streams of events. Requests are still answered.
    pub async fn end_event_streams(&self) -> Result<(), Stopping> {
        self.ask(Request::EndEventStreams).await
    }

    /// Returns the sender for the monitor and the server's watch.
    pub(crate) fn inputs(&self) -> mpsc::Sender<Input> {
        self.inputs.clone()
    }

    async fn ask(&self, request: Request) -> Result<(), Stopping> {
        self.inputs.send(Input::Request(request)).await.map_err(|_| Stopping)
    }
}

impl Engine {
    /// Returns an engine that remembers `records`. Nothing happens before [`Engine::run`]. `claims` is the result of
    /// restoring the claims.
    pub fn new(
        ground: Ground,
        tools: Tools,
        Inputs { sender: back, receiver: inputs }: Inputs,
        records: Vec<Record>,
        claims: &std::io::Result<Restored>,
    ) -> (Self, Handle) {
        let (events, listen) = Events::new();
        let turns = Turns::default();
        let handle = Handle { inputs: back.clone(), events: listen, turns: turns.clone() };
        let story = Story::new(events, tools.truth.clone());
        let mut world = World::new(ground, tools.helper.clone(), tools.clock.clone());
        let now = tools.clock.now();
        world.claimed = Claimed::new(claims, now);
        let wall = tools.clock.wall();
        for record in records {
            world.insert(Volume::from_record(record, wall, now));
        }
        let engine = Self {
            world,
            steps: Steps::new(tools, back),
            inputs,
            story,
            epochs: 0,
            turns,
            waiting: Waiting::default(),
        };
        (engine, handle)
    }

    /// Reads what is present and compares every volume with it. Before this is done nothing can be decided, so
    /// nothing else is handled: an empty table would mean that every disk is gone.
    pub async fn look_around(&mut self) -> std::io::Result<()> {
        self.adopt_exports().await;
        let reading = self.world.looks.next();
        let all = self.steps.tools.disks.read_all().await?;
        let round = self.waiting.begin(None);
        self.scanned(reading, Ok(all), "start", round);
        Ok(())
    }

    /// Works until `stop` resolves. Exports stay as they are.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        self.steps.host_disks();
        tokio::pin!(stop);
        let mut condition = self.steps.tools.truth.condition();
        loop {
            let wake = self.world.next_wake();
            let input = tokio::select! {
                biased;
                () = &mut stop => return,
                () = until(wake) => Input::Tick,
                () = works(&mut condition) => Input::StoreWorks,
                input = self.inputs.recv() => match input {
                    Some(input) => input,
                    None => return,
                },
            };
            let begun = self.steps.tools.clock.now();
            self.handle(input);
            self.turns.took(self.steps.tools.clock.now() - begun);
            if self.story.has_news() {
                // Subscribers come first: events are sent before they are written.
                tokio::task::yield_now().await;
                self.story.post_all(&mut self.world);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::StoreWorks => self.store_is_back(),
            Input::Monitor(monitor::Notice::Event(event)) => self.event(&event),
            Input::Monitor(monitor::Notice::Lost(place)) => {
                tracing::warn!(place, "events were lost; reading all disks again");
                self.world.resyncs.losses += 1;
                self.world.ear.forget();
                self.scan(place, None);
            }
            Input::UseChanged(UseChanged(disks)) => self.use_changed(disks),
            Input::Server(server) => self.server_changed(server),
            Input::Greeted { life, greeted } => self.greeted(life, greeted),
            Input::GreetAgain { life } => self.greet_again(life),
            Input::Request(Request::AskServer(reply)) => self.server_is_asked_for(reply),
            Input::Request(Request::Doubt { volumes, server }) => self.doubt(volumes, server),
            Input::Request(Request::Read(look)) => look(&self.world),
            Input::Request(Request::Resync(reason, by, done)) => self.resync(reason, by, done),
            Input::Exports { contents, round } => self.exports_listed(contents, round),
            Input::Folders(changes) => self.folders_changed(changes),
            Input::Prepared { ticket, result } => self.prepared(ticket, &result),
            Input::Claims { result, round } => self.claims_restored(&result, round),
            Input::Request(Request::Intend { intent, also, reply }) => self.intend(intent, also, reply),
            Input::Request(Request::Leave(volume, call, caller)) => {
                if self.leave(volume, call, caller) {
                    self.settle(volume);
                }
            }
            Input::Clients { ticket, epoch, clients } => self.clients_known(ticket, epoch, clients),
            Input::Leaving { ticket, outcome } => self.gone_on(ticket, outcome),
            Input::Unclaimed { ticket, removed } => self.unclaimed(ticket, &removed),
            Input::TakeBackAgain(volume, attempts) => self.take_back_again(volume, attempts),
            Input::TakenBack { volume, attempts, result } => self.taken_back(volume, attempts, result.is_ok()),
            Input::Request(Request::TakeOver { vm_id, limits, done }) => {
                (self.steps.tools.vm_id, self.steps.tools.limits) = (vm_id, limits);
                let _ = done.send(());
            }
            Input::Request(Request::EndEventStreams) => self.story.events.end(),
            Input::Settle { ids, round } => self.settle_some(ids, round),
            Input::Examined { volume, disks } => self.examined(volume, disks),
            Input::Admitted { volume, result } => self.admitted(volume, result),
            Input::Answered(devnum) => self.look(devnum, Heard::Asked),
            Input::Looked { devnum, reading, found } => self.looked(devnum, reading, found),
            Input::Told { last, result } => self.told(last, &result),
            Input::TellAgain => self.tell_again(),
            Input::UnmarkAgain(serial, attempts) => self.unmark_again(serial, attempts),
            Input::Helper { asked, answer } => self.helper_answered(asked, &answer),
            Input::Scanned { reading, all, reason, round } => self.scanned(reading, all, reason, round),
            Input::Recorded { ticket, evidence, result } => self.recorded(ticket, evidence, result),
            Input::Tried { ticket, evidence, answer } => self.tried(ticket, &evidence, answer),
            Input::Probed { ticket, epoch, evidence, result } => self.probed(ticket, epoch, &evidence, result),
        }
    }

    /// Handles that udevd was away for a while. It never repeats what it has missed, neither the kernel's events nor
    /// the requests.
    fn udevd_has_missed(&mut self, reason: &'static str) {
        self.world.try_again(self.steps.tools.clock.now());
        self.scan(reason, None);
    }

    /// Handles an event of a disk from udevd or the kernel.
    fn event(&mut self, event: &DiskEvent) {
        let now = udevd::Moment { wall: event.at, steady: self.steps.tools.clock.now() };
        match event.origin {
            Origin::Kernel => self.world.ear.kernel(event.seqnum, event.devnum, now),
            Origin::Udev if self.world.ear.udevd(event.seqnum, event.devnum, now) => {
                tracing::info!("udevd is heard again");
                self.udevd_has_missed("udevd is back");
            }
            Origin::Udev => {}
        }
        tracing::debug!(devnum = %event.devnum, action = event.action, origin = ?event.origin, "event");
        self.drop_exchanged(event.devnum);
        self.look(event.devnum, Heard::Event(event.origin, event.diskseq, event.at));
    }

    /// Handles that this host has begun or ceased to use these disks. The report is of a past moment, so the disks
    /// are read.
    fn use_changed(&mut self, disks: Vec<DevNum>) {
        for devnum in disks {
            if self.world.table.of(devnum).is_some() {
                self.look(devnum, Heard::Asked);
            }
        }
    }

    /// Revokes the exports of a disk that is gone. They go at once, whatever another disk with its number reports and
    /// however long that takes.
    fn drop_exchanged(&mut self, devnum: DevNum) {
        let Some(diskseq) = self.world.known_diskseq(devnum) else { return };
        // What cannot be found out this quickly is found out by the reading that follows.
        if self.steps.tools.disks.still(devnum, diskseq).is_gone() {
            let now = self.steps.tools.clock.now();
            let turned = self.world.looks.learn(devnum, &Found::Gone, &[Heard::Asked], now);
            let concerned = if turned { self.world.mapped_to(devnum) } else { Vec::new() };
            let reading = self.world.looks.next();
            let touched = self.world.table.update(devnum, Found::Gone, reading, Heard::Asked);
            self.settle_serials(touched);
            self.settle_some(concerned, None);
        }
    }

    /// Handles the watch's report about the server.
    fn server_changed(&mut self, server: Server) {
        let Some(waiting) = self.world.handshakes.watched(server) else { return };
        for reply in waiting {
            self.server_is_asked_for(reply);
        }
        self.judge_server();
    }

    /// Handles that the store can be written again: volumes that wait for it are retried at once.
    fn store_is_back(&mut self) {
        let waits = |volume: &&Volume| volume.trouble.as_ref().is_some_and(|trouble| trouble.reason.code.is_of_store());
        let ids: Vec<VolumeId> = self.world.volumes().filter(waits).map(|volume| volume.intent.volume).collect();
        for id in &ids {
            if let Some(volume) = self.world.volume_mut(*id) {
                volume.trouble = None;
            }
            self.world.distrust(*id);
        }
        self.settle_some(ids, None);
    }

    fn tick(&mut self) {
        let now = self.steps.tools.clock.now();
        let disks = Arc::clone(&self.steps.tools.disks);
        let late = self.world.ear.tick(now, || disks.udevd_is_at_work());
        if late == udevd::Late::Missed {
            self.udevd_has_missed("udevd has missed an event");
        }
        if late == udevd::Late::Overdue {
            let silent = matches!(self.world.ear.udevd_is(), udevd::Udevd::Silent(_));
            let disks: Vec<String> = self.world.ear.overdue().map(|(devnum, _)| devnum.to_string()).collect();
            let (waited, disks) = (udevd::OVERDUE_AFTER.as_secs(), disks.join(", "));
            tracing::warn!(silent, disks, "udevd has not answered a kernel event for {waited} s");
            self.settle_some(self.world.ids(), None);
        }
        for devnum in self.world.looks.due(now) {
            self.look(devnum, Heard::Asked);
        }
        let due = self.world.due(now);
        if self.world.exported.upkeep.is_due(now) {
            self.list_exports(None);
        }
        if self.world.claimed.upkeep.is_due(now) {
            self.restore_claims(None);
        }
        for id in &due {
            // What was read before the wait is of a past moment.
            self.world.distrust(*id);
        }
        self.settle_some(due, None);
    }
}

/// Resolves when the store can be written again after it could not.
async fn works(condition: &mut watch::Receiver<Option<StoreError>>) {
    while condition.changed().await.is_ok() {
        if condition.borrow_and_update().is_none() {
            return;
        }
    }
    // The store has ended.
    std::future::pending::<()>().await;
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
